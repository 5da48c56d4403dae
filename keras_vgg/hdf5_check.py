"""Read all that an HDF5 file holds, or say what is wrong with it: a program of its own.

`python hdf5_check.py FILE MEMBER MOST_BYTES SECONDS` ends with status 0 for a sound file. It ends
with status 3 for another one, and prints what is wrong. Damage can make HDF5 loop without end or
crash, and no signal handler of Python runs then: so `keras_vgg.containers` starts this program and
sets it a limit. It imports no more than it needs, for it starts at every reading of a file.
"""

from __future__ import annotations

import io
import math
import signal
import sys
import zipfile
from typing import Any

import h5py

FAULT = 3  # the exit status that means: the file is not sound
_ALLOWANCE = 2**30  # memory of Python, NumPy and HDF5, beside that of the arrays


def require_sound(file: h5py.File, most_bytes: int) -> None:
    """Read every attribute and array, once their declared sizes are known to be plausible.

    Raises:
        ValueError: a link leads elsewhere, an array lies in other files or holds no numbers, or
            all together declare more than `most_bytes`.
        Exception: whatever h5py raises for damage.
    """
    datasets: list[h5py.Dataset] = []
    holders: list[Any] = [file]

    def visit(name: str, holder: Any) -> None:
        holders.append(holder)
        if isinstance(holder, h5py.Dataset):
            datasets.append(holder)

    file.visititems(visit)
    declared = sum(_declared_bytes(holder) for holder in holders)
    if declared > most_bytes:
        raise ValueError(f"its arrays claim {declared:,} bytes, more than a file of its size holds")
    for holder in holders:
        if isinstance(holder, h5py.Group):
            _require_hard_links(holder)
        for name in holder.attrs:
            holder.attrs[name]
    for dataset in datasets:
        dataset[()]


def _declared_bytes(holder: Any) -> int:
    """The bytes that the attributes of an object need in memory, and its values if it has some."""
    attributes = [holder.attrs.get_id(name) for name in holder.attrs]
    total = sum(
        attribute.get_space().get_simple_extent_npoints() * attribute.dtype.itemsize
        for attribute in attributes
    )
    if not isinstance(holder, h5py.Dataset):
        return total
    if holder.external or holder.is_virtual:
        raise ValueError(f"the values of {holder.name} lie in other files")
    if holder.dtype.hasobject:
        raise ValueError(f"{holder.name} holds text or lists instead of numbers")
    return total + math.prod(holder.shape or (0,)) * holder.dtype.itemsize


def _require_hard_links(group: h5py.Group) -> None:
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{group.name} has a link, {name}, that leads to another place")


def _limit_itself(most_bytes: int, seconds: int) -> None:
    """Let the operating system end this program, also if the one that started it is gone."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, (_, hard) = most_bytes + _ALLOWANCE, resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def main(path: str, member: str, most_bytes: int, seconds: int) -> int:
    """Check a file, or a member of a zip archive; return the exit status."""
    _limit_itself(most_bytes, seconds)
    try:
        content: Any = path
        if member:
            with zipfile.ZipFile(path) as archive:
                content = io.BytesIO(archive.read(member))
        with h5py.File(content, "r") as file:
            require_sound(file, most_bytes)
    except MemoryError:
        reason = "reading it takes more memory than a file of its size needs"
    except Exception as error:  # noqa: BLE001  the one who started this program raises it
        reason = str(error) or type(error).__name__
    else:
        return 0
    sys.stdout.buffer.write(reason.encode("utf-8", "backslashreplace"))
    return FAULT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
