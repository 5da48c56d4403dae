"""The versions of packages, for the record of what made a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import metadata


def package_versions(names: Iterable[str]) -> dict[str, str | None]:
    """Return the version of each package; None where none can be found, which is no error.

    A module that is imported states its own version, whatever distribution it came in:
    `tensorflow` may be installed as tensorflow-cpu, or run from a source tree.

    Args:
        names: Names as `pip install` has them, such as "tensorflow-datasets".
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
