"""The versions of packages, for records of how a file was made."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import metadata


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each package; None: the version is unknown.

    An imported module states its version, also if the distribution has another name: `tensorflow`
    may be installed as tensorflow-cpu, or run from a source tree.

    Args:
        names: Names for `pip install`, such as "tensorflow-datasets".
    """
    return {name: _version(name) for name in names}


def _version(name: str) -> str | None:
    module = sys.modules.get(name.replace("-", "_"))
    stated = getattr(module, "__version__", None)
    if isinstance(stated, str):
        return stated
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
