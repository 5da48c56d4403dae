"""A separate program that reads all of an HDF5 file, or prints the fault of the file.

`python hdf5_check.py FILE MEMBER MOST_BYTES SECONDS` ends with status 0 for a sound file. For
another file, the status is 3, and the program prints the fault. It is 4 where the machine has too
little memory for a sound file of this size. Damage can make HDF5 loop without
end or crash, and Python runs no signal handler then. So `keras_vgg.containers` starts this program
with a limit. The program imports little, because it starts for every file that is read.
"""

from __future__ import annotations

import io
import math
import signal
import sys
import zipfile
from typing import Any

import h5py
import numpy as np

FAULT = 3  # exit status: the file is not sound
NO_MEMORY = 4  # exit status: the machine has too little memory for a sound file
_ALLOWANCE = 2**30  # bytes for Python, NumPy and HDF5, besides the arrays


def require_sound(file: h5py.File, most_bytes: int) -> None:
    """Read every attribute and array, after a check that their declared sizes are plausible.

    Raises:
        ValueError: a link leads elsewhere, several links lead to one object, an array lies in other
            files or does not hold numbers, or attributes and arrays declare more than `most_bytes`
            in total.
        Exception: any error of h5py for damage.
    """
    api: Any = h5py
    datasets: list[h5py.Dataset] = []
    objects: list[Any] = [file]

    def visit(name: str, item: Any) -> None:
        objects.append(item)
        if api.h5o.get_info(item.id).rc > 1:  # it could be read many times
            raise ValueError(f"several links lead to {item.name}")
        if isinstance(item, h5py.Dataset):
            datasets.append(item)

    file.visititems(visit)
    declared = sum(_declared_bytes(item) for item in objects)
    if declared > most_bytes:
        raise ValueError(f"its arrays claim {declared:,} bytes, more than a file of its size holds")
    for item in objects:
        if isinstance(item, h5py.Group):
            _require_hard_links(item)
        for name in item.attrs:
            item.attrs[name]
    for dataset in datasets:
        dataset[()]


def _declared_bytes(item: Any) -> int:
    """Return the bytes that an object's attributes, and values if any, need in memory."""
    attributes = [item.attrs.get_id(name) for name in item.attrs]
    total = sum(
        attribute.get_space().get_simple_extent_npoints() * attribute.dtype.itemsize
        for attribute in attributes
    )
    if not isinstance(item, h5py.Dataset):
        return total
    if item.external or item.is_virtual:
        raise ValueError(f"the values of {item.name} lie in other files")
    if item.dtype.hasobject:
        raise ValueError(f"{item.name} holds text or lists instead of numbers")
    return total + math.prod(item.shape or (0,)) * item.dtype.itemsize


def _require_hard_links(group: h5py.Group) -> None:
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"{group.name} has a link, {name}, that leads to another place")


def _limit_itself(most_bytes: int, seconds: int) -> None:
    """Let the operating system end this program, also if the starting process is gone.

    Windows has neither of the two limits: there, only the starting process sets a time limit.
    """
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, (_, hard) = most_bytes + _ALLOWANCE, resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _has_room(size: int) -> bool:
    """Return whether this program could still get as many bytes as the file may claim."""
    try:
        np.empty(size, np.uint8)
    except MemoryError:
        return False
    return True


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
        content = None
        if not _has_room(most_bytes):
            return NO_MEMORY
        reason = "reading it takes more memory than a file of its size needs"
    except Exception as error:  # noqa: BLE001  the starting process raises it
        reason = str(error) or type(error).__name__
    else:
        return 0
    sys.stdout.buffer.write(reason.encode("utf-8", "backslashreplace"))
    return FAULT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
