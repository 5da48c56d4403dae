"""Arrays kept in pieces: in order, whole, of one computation."""

import errno
from pathlib import Path

import numpy as np
import pytest

from keras_vgg import array_cache
from keras_vgg.array_cache import ArrayCache


def test_an_interrupted_computation_goes_on(tmp_path):
    first = ArrayCache(tmp_path / "a" / "b", {"n": (1, 2)})
    assert first.done == 0
    first.add(x=np.arange(3), y=np.zeros((3, 2)))
    first.add(x=np.arange(3, 5), y=np.ones((2, 2)))
    again = ArrayCache(tmp_path / "a" / "b", {"n": [1, 2]})
    assert again.done == 5
    again.add(x=np.array([5]), y=np.ones((1, 2)))
    found = ArrayCache(tmp_path / "a" / "b", {"n": (1, 2)}).load()
    np.testing.assert_array_equal(found["x"], np.arange(6))
    assert found["y"].shape == (6, 2)


def test_two_processes_may_begin_at_once(tmp_path, monkeypatch):
    """The second comes when the first has made the folder, and not yet its key."""
    write = array_cache.write_atomically

    def late(path, write_to):
        monkeypatch.setattr(array_cache, "write_atomically", write)

        def meanwhile(target):
            write_to(target)
            ArrayCache(tmp_path / "a", {"n": 1}).add(x=np.arange(3))

        write(path, meanwhile)

    monkeypatch.setattr(array_cache, "write_atomically", late)
    first = ArrayCache(tmp_path / "a", {"n": 1})
    assert first.done == 3


def test_another_computation_begins_anew(tmp_path):
    ArrayCache(tmp_path / "a", {"n": 1}).add(x=np.arange(3))
    other = ArrayCache(tmp_path / "a", {"n": 2})
    assert other.done == 0
    with pytest.raises(ValueError, match="holds nothing yet"):
        other.load()


@pytest.mark.parametrize("kept", [0, 40, -1])
def test_a_piece_that_was_cut_off_is_made_again(tmp_path, kept):
    pieces = ArrayCache(tmp_path / "a", {})
    pieces.add(x=np.arange(3))
    pieces.add(x=np.arange(3, 6))
    last = max((tmp_path / "a").glob("*.npz"))
    last.write_bytes(last.read_bytes()[:kept])
    again = ArrayCache(tmp_path / "a", {})
    assert again.done == 3
    again.add(x=np.arange(3, 9))
    np.testing.assert_array_equal(ArrayCache(tmp_path / "a", {}).load()["x"], np.arange(9))


def test_a_piece_that_cannot_be_opened_now_stays(tmp_path, monkeypatch):
    ArrayCache(tmp_path / "a", {}).add(x=np.arange(3))

    opened = Path.open

    def refused(path, *arguments, **options):
        if path.suffix == ".npz":
            raise OSError(errno.EMFILE, "too many open files")
        return opened(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        with pytest.raises(OSError, match="too many open files"):
            ArrayCache(tmp_path / "a", {})
    assert ArrayCache(tmp_path / "a", {}).done == 3


def test_damage_inside_a_piece_is_named(tmp_path):
    pieces = ArrayCache(tmp_path / "a", {})
    pieces.add(x=np.arange(1000))
    (path,) = (tmp_path / "a").glob("*.npz")
    content = bytearray(path.read_bytes())
    content[2000] ^= 255
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"{path.name} is damaged, delete it"):
        ArrayCache(tmp_path / "a", {}).load()


def test_what_follows_a_gap_is_not_used(tmp_path):
    pieces = ArrayCache(tmp_path / "a", {})
    for start in (0, 2, 4):
        pieces.add(x=np.arange(start, start + 2))
    sorted((tmp_path / "a").glob("*.npz"))[1].unlink()
    assert ArrayCache(tmp_path / "a", {}).done == 2
