"""A folder that appears whole or not at all, whatever happens while it is made."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def whole_folder(
    directory: Path, marker: str, overwrite: bool, names: Collection[str] | None = None
) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes `directory` at the end, and is removed on errors.

    The folder lies in a scratch folder beside `directory`, which may hold other folders meanwhile.
    The scratch folder also keeps the earlier `directory` until the new one is in place. What a
    killed process left is removed, or put back, by the next one. If `directory` is a link, what it
    points to is made or replaced.

    Args:
        marker: The JSON file of such a folder, which lists its `artifacts`. No other folder is ever
            replaced.
        overwrite: Replace an earlier folder.
        names: What such a folder may hold: one with more, such as notes, is not replaced. None:
            anything.

    Raises:
        FileExistsError: the directory exists and may not be replaced.
        BlockingIOError: another process is at work on the directory.
        OSError: a folder cannot be made or moved.
    """
    directory = Path(os.path.realpath(directory)) if directory.is_symlink() else directory
    missing_parents = [parent for parent in directory.parents if not parent.exists()]
    scratch = directory.parent / f".{directory.name}.exporting"
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(scratch, directory):
            try:
                _put_back(scratch / "replaced", directory, marker)
                require_replaceable(directory, marker, overwrite, names)
                for abandoned in scratch.iterdir():  # by a killed process
                    shutil.rmtree(abandoned)
                new_folder = scratch / "new"
                new_folder.mkdir()
                yield new_folder
                _put_in_place(new_folder, directory, aside=scratch / "replaced")
            finally:
                shutil.rmtree(scratch)
    finally:
        for parent in missing_parents:
            with contextlib.suppress(OSError):  # The parent holds the export, so it stays.
                parent.rmdir()


@contextlib.contextmanager
def _locked_folder(scratch: Path, directory: Path) -> Iterator[None]:
    """Lock the scratch folder itself; the kernel unlocks it when the process ends."""
    import fcntl

    handle = os.open(scratch, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The process that had the lock may have removed the folder before this one got it.
            is_current = os.path.samestat(os.fstat(handle), os.stat(scratch))
        except (BlockingIOError, FileNotFoundError):
            is_current = False
        if not is_current:
            raise BlockingIOError(_in_use(directory))
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked_file(scratch: Path, directory: Path) -> Iterator[None]:
    """Lock a file beside the scratch folder; on Windows, filelock removes the file at the end."""
    try:
        with FileLock(scratch.with_suffix(".lock"), timeout=0):
            yield
    except Timeout:
        raise BlockingIOError(_in_use(directory)) from None


# Windows has no fcntl and cannot lock a folder.
_locked = _locked_folder if importlib.util.find_spec("fcntl") else _locked_file


def _in_use(directory: Path) -> str:
    return f"another process is exporting to {directory}; wait for it, or choose another folder"


def _put_back(replaced: Path, directory: Path, marker: str) -> None:
    """Restore the earlier folder if a process was killed between the last two steps."""
    if not os.path.lexists(directory) and (replaced / marker).is_file():
        os.replace(replaced, directory)
    else:
        shutil.rmtree(replaced, ignore_errors=True)


def require_replaceable(
    directory: Path, marker: str, overwrite: bool, names: Collection[str] | None = None
) -> None:
    """Raise FileExistsError if `whole_folder` may not make or replace a folder."""
    if not os.path.lexists(directory):
        return
    if not overwrite:
        raise FileExistsError(f"{directory} exists; choose another folder, or overwrite it")
    if not (directory / marker).is_file():
        raise FileExistsError(
            f"{directory} is not an export (it has no {marker}), so it is not overwritten"
        )
    if not _lists_artifacts(directory / marker):
        raise FileExistsError(
            f"{directory} is not an export (its {marker} lists no artifacts), so it is not"
            " overwritten"
        )
    others = sorted({path.name for path in directory.iterdir()} - {*(names or ()), ".DS_Store"})
    if names is not None and others:
        raise FileExistsError(
            f"{directory} also holds {others[0]}, which no export writes, so it is not overwritten;"
            " move that away, or choose another folder"
        )


def _lists_artifacts(record: Path) -> bool:
    """Return whether a JSON file is an export's record: another program's has other fields."""
    try:
        content = json.loads(record.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "artifacts" in content


def _put_in_place(new_folder: Path, directory: Path, aside: Path) -> None:
    """Rename the new folder to `directory`; the earlier one goes aside, or back on an error."""
    replaces = os.path.lexists(directory)
    if replaces:
        os.replace(directory, aside)
    try:
        os.replace(new_folder, directory)
    except OSError:
        if replaces:
            os.replace(aside, directory)
        raise
