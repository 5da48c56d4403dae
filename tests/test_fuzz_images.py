"""Damaged image files: each is an image of the promised form, or the one promised error."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vgg import augment
from keras_vgg.data import load_image
from keras_vgg.data.decode import decode, reason, transform_encoded
from keras_vgg.export.saved_model import write_saved_model
from keras_vgg.models import vgg
from tests import bombs
from tests.test_decode import FORMATS, assert_readable, exif, in_dataset, png_of_16_bits, with_exif
from tests.test_gif import ANIMATIONS

pytestmark = pytest.mark.slow

MOST = 2_000_000  # pixels, so that no damaged size takes long
COUNT = 80  # damaged files of each kind
TRANSFORM = partial(augment.eval_image, size=32, scale=40)

FILES = {
    **{name: make() for name, make in FORMATS.items()},
    **{f"gif, {name}": encoded for name, encoded in ANIMATIONS.items()},
    "png, 16 bits": png_of_16_bits(np.arange(45 * 61 * 3, dtype=np.uint16).reshape(45, 61, 3)),
    "jpeg, turned": with_exif(FORMATS["jpeg"](), exif("MM", 6), True),
}


def damaged(encoded: bytes, random: np.random.Generator) -> bytes:
    """The file with one kind of damage; half of the time near the head, where the sizes are."""
    content = bytearray(encoded)
    end = len(content) if random.random() < 0.5 else min(64, len(content))
    place, other = sorted(int(p) for p in random.integers(0, end, 2))
    kind = random.integers(7)
    if kind == 0:
        for at in random.integers(0, end, random.integers(1, 9)):
            content[at] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del content[place:]
    elif kind == 2:
        del content[place : other + 1]
    elif kind == 3:
        content[place:place] = random.bytes(int(random.integers(1, 40)))
    elif kind == 4:
        content[place:place] = content[place : other + 1] * int(random.integers(1, 20))
    elif kind == 5:
        content[place : place + 4] = random.choice([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff"])
    else:
        content[place : other + 1] = random.bytes(other + 1 - place)
    return bytes(content)


def require_image(image: np.ndarray) -> None:
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert 0 < image.shape[0] * image.shape[1] <= MOST


def in_pipeline(encoded: bytes) -> np.ndarray | str:
    """The image, or what the error says."""
    try:
        return in_dataset(LIMITED, encoded)
    except tf.errors.InvalidArgumentError as error:
        return reason(error)


LIMITED = partial(decode, max_pixels=MOST)
SEEN = partial(transform_encoded, transform=TRANSFORM, max_pixels=MOST)


@pytest.mark.parametrize("number", range(len(FILES)), ids=FILES)
def test_a_damaged_file_is_an_image_or_one_error(number: int, tmp_path: Path) -> None:
    random = np.random.default_rng([1, number])
    encoded, path = list(FILES.values())[number], tmp_path / "x.jpg"
    before, images = bombs.peak_bytes(), 0
    for _ in range(COUNT):
        content = damaged(encoded, random)
        path.write_bytes(content)
        found = in_pipeline(content)
        try:
            image = load_image(path, MOST)
        except ValueError as error:
            said = str(error)
            assert said.startswith(f"{path}: ")
            assert_readable(said.removeprefix(f"{path}: "))
            assert isinstance(found, str)
            assert_readable(found)
            continue
        images += 1
        require_image(image)
        np.testing.assert_array_equal(found, image)
        seen = in_dataset(SEEN, content)
        assert seen.shape == (32, 32, 3)
        assert -1e-3 < seen.min() <= seen.max() < 255 + 1e-3  # the resampling rounds
    assert images < COUNT  # the damage is real
    assert bombs.peak_bytes() - before < 300_000_000


def test_noise_is_no_image(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    webp = b"RIFF\xff\0\0\0WEBPVP8 "
    for head in [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", webp] * 20:
        (tmp_path / "x.png").write_bytes(head + random.bytes(int(random.integers(0, 400))))
        with pytest.raises(ValueError, match=r"x\.png: "):
            load_image(tmp_path / "x.png")


def test_a_damaged_file_never_ends_a_served_model(tmp_path: Path) -> None:
    keras.utils.set_random_seed(0)
    network = {"width_multiplier": 1 / 16, "hidden_units": 16, "include_preprocessing": True}
    model = vgg("A", weights=None, input_shape=(32, 32, 3), classes=3, **network)
    write_saved_model(model, tmp_path / "saved", ["a", "b", "c"], transform=TRANSFORM)
    classify = tf.saved_model.load(str(tmp_path / "saved")).signatures["classify"]
    random, answers, refused = np.random.default_rng(3), 0, 0
    for encoded in FILES.values():
        assert len(classify(image_bytes=tf.constant([encoded]))["indices"]) == 1
        for content in (damaged(encoded, random) for _ in range(8)):
            try:
                found = classify(image_bytes=tf.constant([encoded, content]))
            except tf.errors.InvalidArgumentError:
                refused += 1
                continue
            answers += 1
            probabilities = found["probabilities"].numpy()
            assert probabilities.shape == (2, 3)
            np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)
    assert answers > len(FILES)
    assert refused > len(FILES)
