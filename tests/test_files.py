"""keras_vgg.files: whole or not at all."""

import errno
import os
import stat
import subprocess
import tempfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from keras_vgg import files
from keras_vgg.cli.rows import text_file
from keras_vgg.containers import require_archive
from keras_vgg.files import read_arrays, remove_leftovers, whole_file, write_atomically


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    (tmp_path / "a.json").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "a.json", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


def test_what_succeeds_replaces_it_and_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "a.json").chmod(0o640)
    names = []

    def write(path: Path) -> None:
        names.append(path.name)
        path.write_text("new")

    write_atomically(tmp_path / "a.json", write)
    assert names[0].endswith(".json")
    assert names[0].startswith(".partial-")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


@pytest.mark.skipif(os.name == "nt", reason="there are no such permissions there")
def test_a_new_file_has_the_users_permissions(tmp_path: Path, monkeypatch) -> None:
    for mask, mode in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        monkeypatch.setattr(files, "_UMASK", mask)
        path = tmp_path / f"{mask}.json"
        write_atomically(path, lambda target: target.write_text("new"))
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(os.name == "nt", reason="a process is not looked for there")
def test_only_leftovers_that_no_other_process_writes_are_removed(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a.json") as own:
        assert own.name.startswith(f".partial-{os.getpid()}-")
    (tmp_path / "a.json").unlink()
    (tmp_path / "deep").mkdir()
    # The first process of a container has the number of the one that was killed.
    ended = ("", "4194305-", f"{os.getpid()}-", "9999999999999999999-")  # Linux has at most 2^22
    for writer in ended:
        (tmp_path / f".partial-{writer}x.json").write_text("half")
    with subprocess.Popen(["sleep", "60"]) as other:
        kept = tmp_path / "deep" / f".partial-{other.pid}-x.json"
        kept.write_text("half")
        remove_leftovers(tmp_path)
        other.kill()
    assert list(tmp_path.rglob("*.json")) == [kept]
    remove_leftovers(tmp_path)
    assert not kept.exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "nowhere" / "a.json", Path.touch)


def test_arrays_are_read_or_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3))
    np.testing.assert_array_equal(read_arrays(path)["x"], np.arange(3))
    good = path.read_bytes()
    # A header that is no Python: NumPy says so in ways that depend on Python's version.
    for text in (b"{'descr'\0", b"{'descr'(", b"\xff'descr' "):
        path.write_bytes(good.replace(b"{'descr':", text))
        with pytest.raises(ValueError, match=r"a\.npz is damaged"):
            read_arrays(path)
    path.write_bytes(good[:50])
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        read_arrays(path)
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "none.npz")


def test_what_a_disk_cannot_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's file system fails for a while; a damaged archive leads to no place (EINVAL)."""
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(3))
    for code, kind in ((errno.ESTALE, OSError), (errno.EINVAL, ValueError)):

        def fails(*_: object, code: int = code, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(zipfile, "ZipFile", fails)
        for read in (read_arrays, require_archive):
            with pytest.raises(kind, match=r"Stale file handle|a.npz is damaged"):
                read(path)


def test_a_user_without_a_home_folder_has_a_cache(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("KERAS_VGG_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert files.cache_folder() == Path(tempfile.gettempdir(), "keras_vgg")


@pytest.mark.skipif(os.name == "nt", reason="there are no such permissions there")
def test_a_file_that_nobody_may_write_is_replaced(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "a.json").chmod(0o444)
    opened = []
    monkeypatch.setattr(files.os, "fsync", lambda file: opened.append(os.fstat(file).st_mode))
    write_atomically(tmp_path / "a.json", lambda path: path.write_text("new"))
    assert (tmp_path / "a.json").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o444
    assert opened[0] & stat.S_IWUSR  # no user but root opens it otherwise


@pytest.mark.skipif(os.name == "nt", reason="there are no pipes with names")
def test_rows_go_through_pipes_and_links(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "latest.csv"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    with text_file(pipe) as file:
        file.write("rows")
    reader.join()
    assert read == ["rows"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "real.csv").write_text("old")
    link.symlink_to("real.csv")
    with text_file(link) as file:
        file.write("new")
    assert link.is_symlink()
    assert (tmp_path / "real.csv").read_text() == "new"
