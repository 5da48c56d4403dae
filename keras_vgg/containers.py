"""Check zip archives and HDF5 files of arrays before they are read.

A damaged or hostile file can claim terabytes, and a damaged HDF5 file can make HDF5 loop without
end or crash. After these checks, reading a file ends and needs no more memory than its size
explains.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from keras_vgg.files import is_of_the_disk
from keras_vgg.memory_errors import unread_file

# Keras, PyTorch and safetensors do not compress weights, and weights hardly compress. But zeros
# compress well, such as those of an optimiser before its first step, so the factor is not 1.
MOST_EXPANSION = 20
ALWAYS_ALLOWED_BYTES = 64 * 2**20

# A check takes 0.3 s plus the time to read the file; a very slow disk takes 1 s for 10 MB.
LEAST_SECONDS = 30
BYTES_PER_SECOND = 10_000_000

_PROGRAM = Path(__file__).with_name("hdf5_check.py")
_FAULT, _NO_MEMORY = 3, 4  # the same as in that program, which this module does not import
_KILL = -9  # the status after SIGKILL, which the system sends where memory has run out


def most_bytes(path: Path) -> int:
    """Return the bytes that the arrays of a file may take in memory."""
    return ALWAYS_ALLOWED_BYTES + MOST_EXPANSION * path.stat().st_size


def require_plausible_size(path: Path, declared_bytes: int) -> None:
    """Raise a ValueError if a file claims more bytes than `most_bytes`."""
    if declared_bytes > most_bytes(path):
        raise ValueError(
            f"{path} is damaged or not safe to read: it has {path.stat().st_size:,} bytes, and its "
            f"arrays claim {declared_bytes:,}; at most {most_bytes(path):,} are plausible"
        )


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Give a zip archive to read. Its faults name the file, also those found while it is read.

    Raises:
        OSError: the file cannot be read.
        ValueError: the archive is damaged.
        MemoryError: memory does not hold it.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield archive
        except MemoryError as error:
            raise unread_file(path, error) from error
        except Exception as error:  # zipfile raises many errors for a damaged archive
            if is_of_the_disk(error):
                raise
            raise ValueError(f"{path} is damaged: {error or type(error).__name__}") from error


def require_archive(path: Path) -> list[str]:
    """Check a zip archive's declared sizes and return its members' names.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a zip archive, needs another version of zip, or its members
            claim more than `most_bytes`. The error names the file.
    """
    with open_archive(path) as archive:
        members = archive.infolist()
    require_plausible_size(path, sum(member.file_size for member in members))
    return [member.filename for member in members]


def require_hdf5(path: Path, member: str = "") -> None:
    """Let another process read all of an HDF5 file, with limits of time and memory.

    The time limit is 30 seconds, plus a second for every 10 MB. This process checks a file once,
    and again only if the file has changed.

    Args:
        path: An HDF5 file, or a zip archive that `require_archive` accepts.
        member: The HDF5 file's name in the archive.

    Raises:
        OSError: the file cannot be opened, or no process can be started.
        ValueError: the file is damaged, claims more than `most_bytes`, refers to other files, or
            takes longer than the limit. The error names the file.
        MemoryError: the memory that is left is too small for a file of this size.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
    _check_hdf5(path, member, (status.st_size, status.st_mtime_ns, status.st_ino))


@functools.lru_cache(maxsize=256)
def _check_hdf5(path: Path, member: str, state: tuple[int, ...]) -> None:
    """Check a file in the state (bytes, time of the last change, inode). Errors are not cached."""
    seconds = LEAST_SECONDS + state[0] // BYTES_PER_SECOND
    arguments = [str(path), member, str(most_bytes(path)), str(seconds + 5)]
    try:
        process = subprocess.run(
            [sys.executable, "-P", str(_PROGRAM), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            # One thread: a pool of 64 would need a gigabyte.
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
    if process.returncode in (_NO_MEMORY, _KILL):
        raise MemoryError(
            f"the memory is too small to check {path}, which has {state[0]:,} bytes: end what else "
            "holds memory"
        )
    # A crash gives a negative status on POSIX, and a status with these bits on Windows.
    if process.returncode < 0 or process.returncode >= 0xC0000000:
        crash = process.returncode
        name = f"signal {-crash}" if crash < 0 else f"status {crash:#x}"
        raise ValueError(f"{path} is damaged: HDF5 crashes when it reads this file ({name})")
    if process.returncode:
        lines = process.stderr.decode("utf-8", "backslashreplace").strip().splitlines()
        raise OSError(
            f"{path} cannot be checked: a process of {sys.executable} failed with status "
            f"{process.returncode}: {lines[-1] if lines else 'no message'}"
        )
