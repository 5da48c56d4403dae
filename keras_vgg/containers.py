"""Check zip archives and HDF5 files of arrays before they are read.

A damaged or hostile file can claim terabytes, and a damaged HDF5 file can make HDF5 loop without
end or crash. What passes these checks ends, and needs no more memory than its size explains.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import zipfile
from pathlib import Path

# Keras, PyTorch and safetensors store weights as they are, and weights hardly compress. Zeros do,
# such as an optimiser's before its first step: they get room.
MOST_EXPANSION = 20
ALWAYS_ALLOWED_BYTES = 64 * 2**20

# A check takes 0.3 s and the time to read the file: 1 s for 10 MB is a very slow disk.
LEAST_SECONDS = 30
BYTES_PER_SECOND = 10_000_000

_PROGRAM = Path(__file__).with_name("hdf5_check.py")
_FAULT = 3  # as in that program, which is not imported: it stands alone


def most_bytes(path: Path) -> int:
    """The bytes that the arrays of a file may take in memory."""
    return ALWAYS_ALLOWED_BYTES + MOST_EXPANSION * path.stat().st_size


def require_plausible_size(path: Path, declared_bytes: int) -> None:
    """Raise a ValueError if a file claims more bytes than `most_bytes`."""
    if declared_bytes > most_bytes(path):
        raise ValueError(
            f"{path} is damaged or not safe to read: it has {path.stat().st_size:,} bytes, and its "
            f"arrays claim {declared_bytes:,}; at most {most_bytes(path):,} are plausible"
        )


def require_archive(path: Path) -> list[str]:
    """Check a zip archive's declared sizes and return its members' names.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no zip archive, needs another version of zip, or its members claim more
            than `most_bytes`. The error names the file.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except Exception as error:  # zipfile has many ways to say that an archive is damaged
            raise ValueError(f"{path} is damaged: {error or type(error).__name__}") from error
    require_plausible_size(path, sum(member.file_size for member in members))
    return [member.filename for member in members]


def require_hdf5(path: Path, member: str = "") -> None:
    """Let another process read a whole HDF5 file, within limits of time and memory.

    The limit is 30 seconds, and a second more for every 10 MB. A file that passed is not checked
    again by this process unless it has changed.

    Args:
        path: An HDF5 file, or a zip archive that `require_archive` accepts.
        member: The HDF5 file's name in the archive.

    Raises:
        OSError: the file cannot be opened, or no process can be started.
        ValueError: it is damaged, claims more than `most_bytes`, leads to other files, or does not
            end. The error names the file.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
    _check_hdf5(path, member, (status.st_size, status.st_mtime_ns, status.st_ino))


@functools.lru_cache(maxsize=256)
def _check_hdf5(path: Path, member: str, state: tuple[int, ...]) -> None:
    """Check a file in the state (bytes, time of the last change, inode); errors are not kept."""
    seconds = LEAST_SECONDS + state[0] // BYTES_PER_SECOND
    arguments = [str(path), member, str(most_bytes(path)), str(seconds + 5)]
    try:
        process = subprocess.run(
            [sys.executable, "-P", str(_PROGRAM), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            # One process, one thread: a pool of 64 would need a gigabyte.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{path} is damaged: HDF5 had not read it after {seconds} seconds; take another copy"
        ) from None
    if process.returncode == _FAULT:
        reason = process.stdout.decode("utf-8", "backslashreplace")
        raise ValueError(
            f"{path} is damaged, or no Keras weight file (.h5, .weights.h5, .keras): {reason}"
        )
    if process.returncode < 0:
        raise ValueError(
            f"{path} is damaged: HDF5 crashes when it reads it (signal {-process.returncode})"
        )
    if process.returncode:
        lines = process.stderr.decode("utf-8", "backslashreplace").strip().splitlines()
        raise OSError(
            f"{path} cannot be checked: a process of {sys.executable} failed with status "
            f"{process.returncode}: {lines[-1] if lines else 'no message'}"
        )
