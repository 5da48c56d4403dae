"""keras_vgg.data.gif: the first frame of a GIF is found without decoding, and alone decoded."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_vgg.data import gif
from keras_vgg.data.decode import decode, encoded_sides, load_image, why_bad
from tests import bombs
from tests.test_decode import both_ways, in_dataset, indexed, refused, saved

COLOUR = (0x10, 0x20, 0x30)
RED = b"\xff\0\0" + bytes(9)
COMMENT = b"\x21\xfe" + 40 * (b"\xff" + b"a," * 127 + b"\0") + b"\0"  # 40 blocks
LOOP = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
DELAY = b"\x21\xf9\x04\0\x0a\0\0\0"


def first(encoded: bytes) -> bytes:
    return gif.first_frame(tf.constant(encoded)).encoded.numpy()


FRAME = bombs.gif_frame(30, 40)
ANIMATIONS = {
    "one frame": bombs.gif(30, 40, FRAME),
    "extensions": bombs.gif(30, 40, LOOP, COMMENT, DELAY, FRAME, DELAY, FRAME),
    "its own colours": bombs.gif(30, 40, bombs.gif_frame(30, 40, colours=RED), FRAME),
    "interlaced": saved(indexed().resize((40, 30)), "GIF", interlace=1),
    "87a": b"GIF87a" + bombs.gif(30, 40, FRAME)[6:],
    "small blocks": bombs.gif(30, 40, bombs.gif_frame(30, 40, block=1), FRAME),
    "the middle": bombs.gif(30, 40, bombs.gif_frame(10, 20, corner=(5, 7)), FRAME),
    "the right edge": bombs.gif(30, 40, bombs.gif_frame(30, 20, corner=(0, 20))),
}


@pytest.mark.parametrize("name", ANIMATIONS)
def test_the_first_frame_is_pillows(name: str) -> None:
    encoded = ANIMATIONS[name]
    with Image.open(io.BytesIO(encoded)) as opened:
        left, top, right, bottom = opened.tile[0][1]
        frame = np.asarray(opened.convert("RGB"))
    expected = np.zeros((30, 40, 3), np.uint8)  # where there is no frame, ours is black
    expected[top:bottom, left:right] = frame[top:bottom, left:right]
    np.testing.assert_array_equal(both_ways(decode, encoded), expected)
    assert (expected.sum(axis=2) > 0).any()
    assert encoded_sides(tf.constant(encoded)).numpy().tolist() == [30, 40]


def test_of_a_frame_beyond_the_canvas_the_part_on_it_is_seen() -> None:
    for corner, rows, columns in (((20, 30), 10, 10), ((29, 0), 1, 40), ((30, 0), 0, 0)):
        encoded = bombs.gif(30, 40, bombs.gif_frame(25, 50, corner=corner))
        expected = np.zeros((30, 40, 3), np.uint8)
        expected[corner[0] : corner[0] + rows, corner[1] : corner[1] + columns] = COLOUR
        np.testing.assert_array_equal(both_ways(decode, encoded), expected)


def test_nothing_after_the_first_frame_is_decoded() -> None:
    assert first(ANIMATIONS["one frame"]) == ANIMATIONS["one frame"]
    huge = bombs.gif_frame(60_000, 60_000, pixels=bytes(3))
    for rest in (FRAME * 50, huge, b"no frame", FRAME[:50], b""):
        encoded = bombs.gif(30, 40, FRAME, rest)
        assert first(encoded) == ANIMATIONS["one frame"]
        np.testing.assert_array_equal(in_dataset(decode, encoded), np.full((30, 40, 3), COLOUR))
    offset = bombs.gif(30, 40, bombs.gif_frame(10, 20, corner=(5, 7)), FRAME)
    assert first(offset) == bombs.gif(30, 40, bombs.gif_frame(10, 20))


def test_an_animation_of_many_large_frames_costs_one() -> None:
    frame = bombs.gif_frame(4000, 5000)
    encoded = bombs.gif(4000, 5000, frame * 40)  # 0.6 MB, and 0.8 GB if all were decoded
    before = bombs.peak_bytes()
    image = decode(tf.constant(encoded))
    assert tuple(image.shape) == (4000, 5000, 3)
    assert bombs.peak_bytes() - before < 300_000_000


def test_a_first_frame_that_claims_more_than_the_canvas_is_refused() -> None:
    encoded = bombs.gif(1, 1, bombs.gif_frame(60_000, 50_000, pixels=bytes(3)))
    assert encoded_sides(tf.constant(encoded)).numpy().tolist() == [60_000, 50_000]
    expected = "more than 100,000,000 pixels: height 60000, width 50000; make the image smaller"
    assert refused(encoded) == expected
    # Each is a line: neither has many pixels.
    lines = bombs.gif(1, 60_000, bombs.gif_frame(60_000, 1))
    assert decode(tf.constant(lines)).shape == (1, 60_000, 3)


@pytest.mark.slow
def test_an_endless_chain_of_blocks_is_refused() -> None:
    comment = b"\x21\xfe" + b"\x01a" * (gif.MAX_BLOCKS + 100) + b"\0"
    expected = "a GIF whose first frame ends only after more than 262,144 blocks"
    reason = why_bad(tf.constant(bombs.gif(30, 40, comment, FRAME)))
    assert reason == f"{expected}; save the image again, or as a PNG"


def test_a_gif_cut_anywhere_is_refused_or_whole() -> None:
    for encoded in (ANIMATIONS["its own colours"], saved(indexed().crop((0, 0, 5, 4)), "GIF")):
        whole = decode(tf.constant(encoded)).numpy()
        for length in range(0, len(encoded), 3):
            cut = tf.constant(encoded[:length])
            reason = why_bad(cut)
            if reason is None:
                assert length >= len(first(encoded)) - 1  # the trailer
                np.testing.assert_array_equal(decode(cut), whole)
            else:
                assert re.search("GIF|empty", reason), reason


MEASURED = """
import sys
from keras_vgg import hardware
hardware.prepare_environment()
from keras_vgg.data import load_image
from tests import bombs
load_image(sys.argv[1])
before = bombs.peak_bytes()
print(*load_image(sys.argv[2]).shape, bombs.peak_bytes() - before)
"""


@pytest.mark.slow
def test_thirty_frames_of_100_megapixels_cost_one(tmp_path: Path) -> None:
    (tmp_path / "small.gif").write_bytes(ANIMATIONS["one frame"])
    frame = bombs.gif_frame(10_000, 10_000)
    (tmp_path / "bomb.gif").write_bytes(bombs.gif(10_000, 10_000, frame * 30))
    command = [sys.executable, "-c", MEASURED, tmp_path / "small.gif", tmp_path / "bomb.gif"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    *shape, peak = map(int, done.stdout.split())
    assert shape == [10_000, 10_000, 3]
    # The frame as indices, as RGB, and the array; all frames take 3 GB more.
    assert peak < 800_000_000


def test_load_image_names_a_gif_without_a_whole_frame(tmp_path: Path) -> None:
    (tmp_path / "x.gif").write_bytes(bombs.gif(30, 40))
    with pytest.raises(ValueError, match=rf"^{tmp_path}/x\.gif: .*") as raised:
        load_image(tmp_path / "x.gif")
    assert "{{" not in str(raised.value)
