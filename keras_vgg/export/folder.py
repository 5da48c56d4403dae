"""A folder that appears whole or not at all, whatever happens while it is made."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_folder(directory: Path, marker: str, overwrite: bool) -> Iterator[Path]:
    """An empty folder to fill, which is put at `directory` when all went well, and else removed.

    It lies beside `directory`, in a folder that also keeps what was there before until the new one
    is in its place, and may hold other folders meanwhile. What a killed process left is cleared
    away, or put back, by the next one.

    Args:
        marker: A file that only such folders have: no other folder is ever replaced.
        overwrite: Replace what is there.

    Raises:
        FileExistsError: the directory exists and may not be replaced.
        BlockingIOError: another process is at work on the directory.
        OSError: a folder cannot be made or moved.
    """
    missing = [parent for parent in directory.parents if not parent.exists()]
    scratch = directory.parent / f".{directory.name}.exporting"
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(scratch, directory):
            try:
                _put_back(scratch / "replaced", directory, marker)
                _check(directory, marker, overwrite)
                for left in scratch.iterdir():  # by a killed process
                    shutil.rmtree(left)
                built = scratch / "new"
                built.mkdir()
                yield built
                _put_in_place(built, directory, aside=scratch / "replaced")
            finally:
                shutil.rmtree(scratch)
    finally:
        for parent in missing:
            with contextlib.suppress(OSError):  # it is not empty: there is an export in it
                parent.rmdir()


@contextlib.contextmanager
def _locked(scratch: Path, directory: Path) -> Iterator[None]:
    """For this process alone; the kernel lets go of the lock when it ends, however it does."""
    handle = os.open(scratch, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it until just now may have removed it.
            mine = os.path.samestat(os.fstat(handle), os.stat(scratch))
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise BlockingIOError(f"another process is exporting to {directory}")
        yield
    finally:
        os.close(handle)


def _put_back(replaced: Path, directory: Path, marker: str) -> None:
    """After a kill between the last two steps."""
    if not os.path.lexists(directory) and (replaced / marker).is_file():
        os.replace(replaced, directory)
    else:
        shutil.rmtree(replaced, ignore_errors=True)


def _check(directory: Path, marker: str, overwrite: bool) -> None:
    if not os.path.lexists(directory):
        return
    if not overwrite:
        raise FileExistsError(f"{directory} exists; choose another folder, or overwrite it")
    if not (directory / marker).is_file():
        raise FileExistsError(
            f"{directory} is not an export (it has no {marker}), so it is not overwritten"
        )


def _put_in_place(built: Path, directory: Path, aside: Path) -> None:
    """Rename built to directory; what was there goes aside, or back if that fails."""
    replaces = os.path.lexists(directory)
    if replaces:
        os.replace(directory, aside)
    try:
        os.replace(built, directory)
    except OSError:
        if replaces:
            os.replace(aside, directory)
        raise
