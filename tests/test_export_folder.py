"""A folder appears whole or not at all, whatever kills the process that makes it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from keras_vgg.export import folder
from keras_vgg.export.folder import whole_folder

RECORD = '{"artifacts": []}'


def fill(directory: Path, text: str, overwrite: bool = True) -> None:
    with whole_folder(directory, "marker", overwrite) as built:
        (built.parent / "scratch").mkdir()
        (built / "marker").write_text(RECORD)
        (built / "content").write_text(text)


def test_it_appears_when_it_is_whole(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    with whole_folder(directory, "marker", overwrite=False) as built:
        (built / "marker").write_text(RECORD)
        assert not directory.exists()

    assert [path.name for path in directory.iterdir()] == ["marker"]
    assert list(directory.parent.iterdir()) == [directory]


def test_an_error_leaves_nothing_not_even_parents(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "a/b", "marker", True) as built:
        (built / "marker").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    directory = tmp_path / "export"
    fill(directory, "old")

    with pytest.raises(ZeroDivisionError), whole_folder(directory, "marker", True) as built:
        (built / "content").write_text(str(1 / 0))
    assert (directory / "content").read_text() == "old"
    with pytest.raises(FileExistsError, match="exists; choose another folder"):
        fill(directory, "new", overwrite=False)
    assert (directory / "content").read_text() == "old"
    assert list(tmp_path.iterdir()) == [directory]


def test_a_folder_without_the_marker_is_never_replaced(tmp_path: Path) -> None:
    thesis = tmp_path / "home" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years of work")

    with pytest.raises(FileExistsError, match="is not an export"):
        fill(thesis.parent, "new")
    assert thesis.read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [thesis.parent]


def test_a_folder_with_files_of_its_user_is_never_replaced(tmp_path: Path) -> None:
    directory = tmp_path / "export"
    fill(directory, "old")
    (directory / ".DS_Store").touch()
    with whole_folder(directory, "marker", True, {"marker", "content"}) as built:
        (built / "marker").write_text(RECORD)
    assert [path.name for path in directory.iterdir()] == ["marker"]

    (directory / "notes.txt").write_text("what I found")
    message = r"export also holds notes\.txt, which no export writes"
    with (
        pytest.raises(FileExistsError, match=message),
        whole_folder(directory, "marker", True, {"marker"}),
    ):
        pass
    assert (directory / "notes.txt").read_text() == "what I found"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link, target = tmp_path / "latest", tmp_path / "exports" / "one"
    target.parent.mkdir()
    link.symlink_to(target)
    fill(link, "first")
    fill(link, "second")
    assert link.is_symlink()
    assert (target / "content").read_text() == "second"
    assert {path.name for path in tmp_path.iterdir()} == {"latest", "exports"}
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("record", ["", "[1]", '"artifacts"', '{"name": "my page"}', "[" * 99_999])
def test_a_folder_with_another_programs_record_is_never_replaced(
    record: str, tmp_path: Path
) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (page / "marker").write_text(record)

    began = False
    with (
        pytest.raises(FileExistsError, match=r"not an export \(its marker lists no artifacts\)"),
        whole_folder(page, "marker", True),
    ):
        began = True
    assert not began
    assert (page / "marker").read_text() == record
    assert list(tmp_path.iterdir()) == [page]


KILLED = """
import importlib.util, os, shutil, signal, sys
from pathlib import Path

# By its file, for the package would import TensorFlow every time.
spec = importlib.util.spec_from_file_location("folder", sys.argv[3])
folder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(folder)
directory, step = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def counted(call):
    def wrapper(*arguments, **options):
        global calls
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return call(*arguments, **options)
    return wrapper

os.replace, os.open, shutil.rmtree = map(counted, (os.replace, os.open, shutil.rmtree))
with folder.whole_folder(directory, "marker", True) as built:
    counted(lambda: None)()
    (built.parent / "scratch").mkdir()
    (built / "marker").write_text('{"artifacts": []}')
    (built / "content").write_text("new")
    counted(lambda: None)()
print("finished")
"""


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("existing", [False, True])
def test_a_kill_at_any_step_loses_nothing(existing: bool, tmp_path: Path) -> None:
    killed = 0
    for step in range(30):
        directory = tmp_path / str(step) / "export"
        directory.parent.mkdir()
        if existing:
            fill(directory, "old")
        command = [sys.executable, "-c", KILLED, str(directory), str(step), folder.__file__]
        done = subprocess.run(command, capture_output=True, text=True)
        if "finished" in done.stdout:
            break
        assert done.returncode == -9, done.stderr
        killed += 1
        there = directory / "content"
        if there.exists():
            assert there.read_text() in ("old", "new")
        # What is left is taken up by the next one, which may fail itself.
        if existing:
            with pytest.raises(ZeroDivisionError), whole_folder(directory, "marker", True):
                raise ZeroDivisionError
            assert there.read_text() in ("old", "new")
        fill(directory, "newest")
        assert there.read_text() == "newest"
        assert list(directory.parent.iterdir()) == [directory]
    assert done.stdout == "finished\n"
    assert killed >= 5


@pytest.mark.parametrize("lock", [folder._locked_folder, folder._locked_file])
def test_two_at_a_time_are_refused(
    lock: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "_locked", lock)  # _locked_file: as on Windows
    directory = tmp_path / "export"
    with whole_folder(directory, "marker", True) as built:
        (built / "marker").write_text(RECORD)
        with pytest.raises(BlockingIOError, match=r"another process is exporting to .*export"):
            fill(directory, "second")
        assert (built / "marker").exists()
    fill(directory, "third")
    assert (directory / "content").read_text() == "third"
