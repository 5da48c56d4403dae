"""keras_vgg.data.decode, against Pillow: every format, every refusal, and windows of a JPEG."""

import functools
import io
import queue
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from keras_vgg import augment
from keras_vgg.augment import Picture
from keras_vgg.augment.picture import decoded_smaller
from keras_vgg.data import decode as decoding
from keras_vgg.data.decode import decode, encoded_sides, load_image, transform_encoded, why_bad
from tests import bombs

HEIGHT, WIDTH = 45, 61

# --- what the tests encode -------------------------------------------------------------------


def smooth(mode: str = "RGB") -> Image.Image:
    """A picture in which no two mirrorings or turns are alike, and JPEG loses little."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    channels = (x * 4, y * 5, 128 + 60 * np.sin(x / 9) + 50 * np.cos(y / 7))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).convert(mode)


def noisy() -> Image.Image:
    """RGBA, every value random."""
    values = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    return Image.fromarray(values)


def indexed() -> Image.Image:
    """Random indices of a palette of 64 colours, so neither is like its grey."""
    image = noisy().convert("RGB").quantize(64)
    assert image.mode == "P"
    return image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def frames(kind: str, **options: object) -> bytes:
    second = ImageOps.mirror(smooth())
    return saved(smooth(), kind, save_all=True, append_images=[second], **options)


def png_of_16_bits(values: np.ndarray) -> bytes:
    """[h, w] or [h, w, 3] -> PNG; Pillow writes no colour of 16 bits."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if values.ndim == 2 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*named) for named in chunks)


def exif(order: str, orientation: int | None, others: int = 0) -> bytes:
    """An APP1 segment; the orientation (if any) comes after `others` tags of smaller numbers."""

    def pack(form: str, *values: int) -> bytes:
        return struct.pack(("<" if order == "II" else ">") + form, *values)

    # ImageWidth and its neighbours, LONGs; then Orientation, a SHORT in the first half of its 4.
    entries = [pack("HHII", 0x0100 + i, 4, 1, 0x0112) for i in range(others)]
    if orientation is not None:
        entries.append(pack("HHIHH", 0x0112, 3, 1, orientation, 0))
    directory = pack("H", len(entries)) + b"".join(entries) + pack("I", 0)
    body = b"Exif\0\0" + order.encode() + pack("HI", 42, 8) + directory
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def with_exif(jpeg: bytes, segment: bytes, jfif: bool) -> bytes:
    """The JPEG with the segment after its JFIF segment, or instead of it."""
    assert jpeg[:4] == b"\xff\xd8\xff\xe0"
    end = 4 + int.from_bytes(jpeg[4:6], "big")
    return jpeg[: end if jfif else 2] + segment + jpeg[end:]


# Pillow's decoder is libjpeg's exact IDCT, TensorFlow's the fast one: few levels apart.
LOSSY = {
    "jpeg": lambda: saved(smooth(), "JPEG", quality=90),
    "jpeg, colour at full resolution": lambda: saved(smooth(), "JPEG", quality=90, subsampling=0),
    "jpeg, progressive": lambda: saved(smooth(), "JPEG", quality=90, progressive=True),
    "jpeg, grey": lambda: saved(smooth("L"), "JPEG", quality=90),
    "jpeg, CMYK": lambda: saved(smooth("CMYK"), "JPEG", quality=90),
}
EXACT = {
    "png": lambda: saved(smooth(), "PNG"),
    "png, palette": lambda: saved(indexed(), "PNG"),
    "png, palette with transparency": lambda: saved(indexed(), "PNG", transparency=3),
    "png, RGBA": lambda: saved(noisy(), "PNG"),
    "png, LA": lambda: saved(noisy().convert("LA"), "PNG"),
    "png, grey": lambda: saved(smooth("L"), "PNG"),
    "png, 1 bit": lambda: saved(smooth("1"), "PNG"),
    "bmp": lambda: saved(smooth(), "BMP"),
    "bmp, grey": lambda: saved(smooth("L"), "BMP"),
    "bmp, palette": lambda: saved(indexed(), "BMP"),
    "bmp, RGBA": lambda: saved(noisy(), "BMP"),
    "gif": lambda: saved(indexed(), "GIF"),
    "gif, animated": lambda: frames("GIF"),
    # Both decode with libwebp, so the lossy ones agree too.
    "webp": lambda: saved(smooth(), "WEBP"),
    "webp, lossless": lambda: saved(smooth(), "WEBP", lossless=True),
    "webp, lossless with alpha": lambda: saved(noisy(), "WEBP", lossless=True, exact=True),
    "webp, with alpha": lambda: saved(noisy(), "WEBP"),
    "webp, with Exif": lambda: saved(smooth(), "WEBP", lossless=True, exif=Image.Exif()),
    "webp, animated": lambda: frames("WEBP", lossless=True),
}
FORMATS = LOSSY | EXACT
by_name = pytest.mark.parametrize("name", FORMATS)
by_header = pytest.mark.parametrize(
    "name",
    [
        *("jpeg", "jpeg, progressive", "jpeg, CMYK", "png", "bmp", "gif", "gif, animated"),
        *("webp", "webp, lossless", "webp, with alpha", "webp, animated"),
    ],
)


def pillow(encoded: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))


@functools.cache
def pipeline(
    function: Callable[[tf.Tensor], tf.Tensor],
) -> tuple[queue.SimpleQueue[bytes], Iterator[tf.Tensor]]:
    """What is put into the queue comes through a Dataset: one, for each takes long to make."""
    waiting: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    source = tf.data.Dataset.from_generator(
        lambda: iter(waiting.get, None), output_signature=tf.TensorSpec([], tf.string)
    )
    options = tf.data.Options()  # nothing that looks ahead
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return waiting, iter(source.map(function).with_options(options))


def in_dataset(function: Callable[[tf.Tensor], tf.Tensor], encoded: bytes) -> np.ndarray:
    waiting, mapped = pipeline(function)
    waiting.put(encoded)
    return next(mapped).numpy()


def both_ways(function: Callable[[tf.Tensor], tf.Tensor], encoded: bytes) -> np.ndarray:
    """What the function makes of it, eagerly and inside tf.data alike."""
    eager = function(tf.constant(encoded)).numpy()
    np.testing.assert_array_equal(in_dataset(function, encoded), eager)
    return eager


def assert_same_but_for_idct(image: np.ndarray, expected: np.ndarray) -> None:
    apart = np.abs(image.astype(int) - expected)
    assert apart.max() <= 8
    assert apart.mean() < 1.5


# --- formats ---------------------------------------------------------------------------------


@by_name
def test_decodes_as_pillow_does(name: str) -> None:
    encoded = FORMATS[name]()
    image = both_ways(decode, encoded)
    assert image.dtype == np.uint8
    assert image.shape == (HEIGHT, WIDTH, 3)
    if name in LOSSY:
        assert_same_but_for_idct(image, pillow(encoded))
    else:
        np.testing.assert_array_equal(image, pillow(encoded))
    assert why_bad(tf.constant(encoded)) is None


@by_name
def test_sides_without_decoding(name: str) -> None:
    sides = both_ways(encoded_sides, FORMATS[name]())
    assert sides.dtype == np.int32
    assert sides.tolist() == [HEIGHT, WIDTH]


def test_webp_comes_in_three_kinds() -> None:
    kinds = {EXACT[name]()[12:16] for name in EXACT if name.startswith("webp")}
    assert kinds == {b"VP8 ", b"VP8L", b"VP8X"}


def test_of_an_animation_the_first_frame() -> None:
    for name in ("gif, animated", "webp, animated"):
        assert Image.open(io.BytesIO(FORMATS[name]())).n_frames == 2
        # GIF: 256 colours of a palette; Pillow may choose others for the second frame.
        apart = np.abs(decode(tf.constant(FORMATS[name]())).numpy().astype(int) - smooth())
        assert apart.mean() < 8
        assert np.abs(np.asarray(smooth(), int) - ImageOps.mirror(smooth())).mean() > 30


def test_transparent_in_a_gif_is_black() -> None:
    encoded = saved(indexed(), "GIF", transparency=3)
    opened = Image.open(io.BytesIO(encoded))
    transparent = np.asarray(opened) == opened.info["transparency"]
    assert 0 < transparent.sum() < transparent.size / 2
    expected = np.where(transparent[..., None], 0, opened.convert("RGB"))
    np.testing.assert_array_equal(both_ways(decode, encoded), expected)


@pytest.mark.parametrize("channels", [(), (3,)])
def test_of_16_bits_the_upper_8_stay(channels: tuple[int, ...]) -> None:
    shape = (HEIGHT, WIDTH, *channels)
    values = np.random.default_rng(0).integers(0, 65536, shape, dtype=np.uint16)
    values[:2] = 0x00FF  # rounding would show
    encoded = png_of_16_bits(values)
    opened = Image.open(io.BytesIO(encoded))
    assert opened.size == (WIDTH, HEIGHT)  # Pillow takes it for a PNG too
    expected = np.broadcast_to((values >> 8).reshape(HEIGHT, WIDTH, -1), (HEIGHT, WIDTH, 3))
    np.testing.assert_array_equal(both_ways(decode, encoded), expected)
    assert encoded_sides(tf.constant(encoded)).numpy().tolist() == [HEIGHT, WIDTH]


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(
    ("bit_depth", "expected"),
    [
        ("12", [0, 0, 62, 255, 255]),
        pytest.param("14", [0, 0, 15, 63, 255], marks=pytest.mark.slow),
        ("16", [0, 0, 3, 15, 255]),  # the default
        ("10", [0, 0, 250, 255, 255]),
        ("stretch", [0, 0, 4, 16, 255]),
    ],
)
def test_the_bits_of_a_16_bit_file_that_carry_the_image(bit_depth: str, expected: list) -> None:
    encoded = png_of_16_bits(np.array([0, 3, 1000, 4095, 65535], np.uint16).reshape(1, 5))
    decoded = both_ways(partial(decode, bit_depth=bit_depth), encoded)
    assert decoded[0, :, 1].tolist() == expected
    shallow = saved(smooth(), "PNG")
    np.testing.assert_array_equal(decode(shallow, bit_depth=bit_depth), decode(shallow))


def test_a_stretched_file_has_all_levels_and_a_flat_one_is_black() -> None:
    values = np.arange(1000, 1201, dtype=np.uint16).reshape(3, 67)
    decoded = decode(png_of_16_bits(values), bit_depth="stretch").numpy()
    assert (decoded.min(), decoded.max(), len(np.unique(decoded))) == (0, 255, 201)
    assert (
        not decode(png_of_16_bits(np.full((2, 2), 7, np.uint16)), bit_depth="stretch").numpy().any()
    )


def test_a_bmp_from_the_top_down() -> None:
    encoded = bytearray(saved(smooth(), "BMP"))
    encoded[22:26] = struct.pack("<i", -HEIGHT)
    image = both_ways(decode, bytes(encoded))
    np.testing.assert_array_equal(image, np.asarray(smooth())[::-1])
    assert encoded_sides(tf.constant(bytes(encoded))).numpy().tolist() == [HEIGHT, WIDTH]


# --- orientation -----------------------------------------------------------------------------

UPRIGHT = LOSSY["jpeg"]()


@pytest.mark.parametrize("jfif", [True, False])
@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_jpeg_is_turned_upright(orientation: int, order: str, jfif: bool) -> None:
    for others in (0, 5):
        encoded = with_exif(UPRIGHT, exif(order, orientation, others), jfif)
        assert Image.open(io.BytesIO(encoded)).getexif().get(0x0112) == orientation
        image = decode(tf.constant(encoded)).numpy()
        assert image.shape == ((HEIGHT, WIDTH, 3) if orientation < 5 else (WIDTH, HEIGHT, 3))
        assert_same_but_for_idct(image, pillow(encoded))
        assert decoding.orientation(tf.constant(encoded)) == orientation
    np.testing.assert_array_equal(in_dataset(decode, encoded), image)
    assert both_ways(encoded_sides, encoded).tolist() == [HEIGHT, WIDTH]  # as stored


@pytest.mark.parametrize("order", ["II", "MM"])
def test_the_orientation_of_the_thumbnail_turns_no_upright_image(order: str) -> None:
    """A second directory, of the thumbnail, still says how the camera was held."""
    segment = exif(order, 1)
    second = exif(order, 6, others=1)[18:]  # its number of tags, and the tags
    pad = b"\0" * (-(len(segment) - 18 - 2 + 2) % 12)  # where the pattern can reach it
    body = segment[4:-4] + b"\0\0\0\0" + pad + second
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    encoded = with_exif(UPRIGHT, segment, False)
    assert decoding.orientation(tf.constant(encoded)) == 1


def test_the_orientations_differ() -> None:
    """Else the test above would pass whatever is turned."""
    images = [pillow(with_exif(UPRIGHT, exif("II", code), True)) for code in range(1, 9)]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert one.shape != other.shape or np.abs(one.astype(int) - other).max() > 50


@pytest.mark.parametrize(
    "encoded",
    [
        UPRIGHT,
        with_exif(UPRIGHT, exif("II", None, 5), True),
        with_exif(UPRIGHT, exif("MM", None, 5), False),
        with_exif(UPRIGHT, exif("MM", 0), True),  # not a value that there is
        with_exif(UPRIGHT, exif("II", 9), True),
        UPRIGHT + exif("II", 6),  # after the image
    ],
)
def test_upright_where_exif_says_nothing(encoded: bytes) -> None:
    assert both_ways(decoding.orientation, encoded) == 1
    np.testing.assert_array_equal(decode(tf.constant(encoded)), decode(tf.constant(UPRIGHT)))


def test_orientation_as_pillow_writes_it() -> None:
    tags = Image.Exif()
    tags[0x010F], tags[0x0110], tags[0x0112] = "a maker", "a model of some length", 6
    for encoded in (saved(smooth(), "JPEG", exif=tags), saved(smooth("L"), "JPEG", exif=tags)):
        assert_same_but_for_idct(both_ways(decode, encoded), pillow(encoded))
        assert decoding.orientation(tf.constant(encoded)) == 6


# --- what is refused -------------------------------------------------------------------------


def refused(encoded: bytes) -> str:
    """The reason; decode must raise InvalidArgumentError in both ways."""
    for call in (lambda: decode(tf.constant(encoded)), lambda: in_dataset(decode, encoded)):
        with pytest.raises(tf.errors.InvalidArgumentError) as raised:
            call()
        from_error = decoding.reason(raised.value)
        assert_readable(from_error)
    reason = why_bad(tf.constant(encoded))
    assert_readable(reason)
    return reason


def assert_readable(reason: str | None) -> None:
    assert isinstance(reason, str)
    assert 10 < len(reason) < 120
    assert reason.isprintable()  # one line
    for noise in ("{{", "}}", "[Op:", "[[", "function_node", "assertion", "device", "Iterator"):
        assert noise not in reason


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (b"", "the file is empty"),
        (b"this is no picture, but some words", "not a JPEG, PNG, BMP, GIF or WebP image"),
        (b"BM", "not a JPEG, PNG, BMP, GIF or WebP image"),
        (b"\x89PNG\r\n\x1a\n", "not a JPEG, PNG, BMP, GIF or WebP image"),
        (b"\xff\xd8\xff\xe0", "Invalid JPEG data"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(30), "not a JPEG, PNG, BMP, GIF or WebP image"),
        (b"\xff\x0a" + bytes(60), "not a JPEG, PNG, BMP, GIF or WebP image"),  # as JPEG XL begins
        (saved(smooth("1"), "BMP"), "channels .* must be 1, 3 or 4"),
    ],
)
def test_what_is_no_image(encoded: bytes, expected: str) -> None:
    assert re.search(expected, refused(encoded))


@by_header
def test_truncated(name: str) -> None:
    """Cut anywhere, a file is refused; of an animation only the first frame counts."""
    encoded = FORMATS[name]()
    refused(encoded[: len(encoded) // 3])
    whole = decode(tf.constant(encoded)).numpy()
    accepted = 0
    lengths = [len(encoded) * i // 6 for i in range(1, 6)]
    for length in (*lengths, len(encoded) - 2, len(encoded) - 1):
        cut = tf.constant(encoded[:length])
        reason = why_bad(cut)
        if reason is None:
            np.testing.assert_array_equal(decode(cut), whole)
            accepted += 1
        else:
            assert_readable(reason)
    # A GIF is whole without its last byte, the trailer.
    limit = 4 if name == "gif, animated" else 1 if name == "gif" else 0
    assert accepted <= limit


@pytest.mark.parametrize("length", [27, 29, 40, 60])
def test_a_palette_bmp_cut_in_its_head_is_called_a_cut_bmp(length: int) -> None:
    reason = refused(EXACT["bmp, palette"]()[:length])
    assert re.search("(?i)bmp|size should match", reason), reason


def claiming(name: str, side: int) -> bytes:
    """The file, its header changed to an image of side x side pixels."""
    encoded = bytearray(FORMATS[name]())
    if name.startswith("jpeg"):
        at = encoded.find(b"\xff\xc2" if "progressive" in name else b"\xff\xc0")
        encoded[at + 5 : at + 9] = struct.pack(">HH", side, side)
    elif name.startswith("png"):
        encoded[16:24] = struct.pack(">II", side, side)
        encoded[29:33] = struct.pack(">I", zlib.crc32(encoded[12:29]))
    elif name.startswith("bmp"):
        encoded[18:26] = struct.pack("<ii", side, side)
    elif name.startswith("gif"):
        encoded[6:10] = struct.pack("<HH", side, side)
    elif encoded[12:16] == b"VP8X":
        encoded[24:30] = (side - 1).to_bytes(3, "little") * 2
    elif encoded[12:16] == b"VP8L":
        old = int.from_bytes(encoded[21:25], "little") >> 28 << 28
        encoded[21:25] = (old | (side - 1) << 14 | (side - 1)).to_bytes(4, "little")
    else:
        encoded[26:30] = struct.pack("<HH", side, side)
    return bytes(encoded)


@by_header
def test_a_decompression_bomb_is_refused_and_costs_nothing(name: str) -> None:
    small_webp = name.startswith("webp") and FORMATS[name]()[12:16] != b"VP8X"
    side = 16_000 if small_webp else 60_000  # a plain WebP has 14 bits for a side
    bomb = claiming(name, side)
    assert encoded_sides(tf.constant(bomb)).numpy().tolist() == [side, side]
    before = bombs.peak_bytes()
    said = refused(bomb)
    assert (
        said == f"more than 100,000,000 pixels: height {side}, width {side}; make the image smaller"
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="100,000,000 pixels"):
        READ_WINDOW(tf.constant(bomb))
    # The bytes of the smallest would be 768 million.
    assert bombs.peak_bytes() - before < 200_000_000


def test_sides_that_no_signed_number_holds() -> None:
    encoded = bytearray(EXACT["png"]())
    encoded[16:24] = b"\xff\xff\xff\xff" * 2
    assert refused(bytes(encoded)) == decoding._UNKNOWN


@pytest.mark.slow
@pytest.mark.parametrize("name", ["png", "jpeg", "gif"])
def test_the_largest_that_is_decoded(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(FORMATS[name]())
    assert load_image(tmp_path / "x", HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    expected = f"x: more than 2,744 pixels: height {HEIGHT}, width {WIDTH}; make the image smaller$"
    with pytest.raises(ValueError, match=expected):
        load_image(tmp_path / "x", HEIGHT * WIDTH - 1)
    whole = partial(transform_encoded, transform=reads((0, 0, 3, 3)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 2,744 pixels"):
        whole(tf.constant(FORMATS[name]()), max_pixels=HEIGHT * WIDTH - 1)


# --- windows ---------------------------------------------------------------------------------


def reads(
    part: tuple[int, int, int, int] | tf.Tensor,
) -> Callable[[tf.Tensor | Picture], tf.Tensor]:
    """A transform that reads (top, left, height, width) of a Picture, and cuts it from an image."""

    def transform(image: tf.Tensor | Picture) -> tf.Tensor:
        window = tf.convert_to_tensor(part)
        if isinstance(image, Picture):
            read = image.read(window)
        else:
            read = tf.slice(image, tf.concat([window[:2], [0]], 0), tf.concat([window[2:], [3]], 0))
        read.set_shape([None, None, 3])
        return read

    return transform


WINDOW = reads((3, 20, 8, 30))
READ_WINDOW = partial(transform_encoded, transform=WINDOW)  # one function, and so one pipeline


def windows(height: int, width: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """int32 [count, 4] inside the image; edges and sides of one pixel come often."""

    def along(side: int) -> tuple[int, int]:
        length = 1 if rng.random() < 0.2 else int(rng.integers(1, side + 1))
        ends = (0, side - length, int(rng.integers(0, side - length + 1)))
        return ends[rng.choice(3, p=[0.2, 0.2, 0.6])], length

    found = []
    for _ in range(count):
        (top, rows), (left, columns) = along(height), along(width)
        found.append((top, left, rows, columns))
    found += [(0, 0, height, width), (height - 1, width - 1, 1, 1), (0, 0, 1, 1)]
    return np.array(found, np.int32)


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([4], tf.int32)])
def read_window(encoded: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
    return transform_encoded(encoded, reads(part))


def read_windows(encoded: bytes, parts: np.ndarray) -> list[np.ndarray]:
    dataset = tf.data.Dataset.from_tensor_slices(parts)
    dataset = dataset.map(lambda part: read_window(tf.constant(encoded), part))
    return list(dataset.as_numpy_iterator())


def assert_windows(encoded: bytes, count: int, seed: int) -> None:
    """Windows are what they are of the whole."""
    whole = decode(tf.constant(encoded)).numpy()
    parts = windows(*whole.shape[:2], count, np.random.default_rng(seed))
    for (top, left, rows, columns), found in zip(parts, read_windows(encoded, parts), strict=True):
        np.testing.assert_array_equal(found, whole[top : top + rows, left : left + columns])


@pytest.mark.slow
@pytest.mark.parametrize(
    "counts",
    [(1, 1, 2, 1), pytest.param((2, 3, 6, 1), marks=pytest.mark.slow)],
)
def test_windows_of_photographs(data_folder: Path, counts: tuple[int, ...]) -> None:
    """Whether colour has all columns, every other, or every other row as well; and grey."""
    kinds: dict[object, list[Path]] = {}
    for path in sorted((data_folder / "imagenet_samples").glob("*.JPEG")):
        with Image.open(path) as image:
            kind = "grey" if image.mode == "L" else image.layer[0][1:3]
        kinds.setdefault(kind, []).append(path)
    assert {"grey", (1, 1), (2, 1), (2, 2)} <= set(kinds)
    for kind, count in zip(("grey", (1, 1), (2, 2), (2, 1)), counts, strict=True):
        for path in kinds[kind][:count]:
            assert_windows(path.read_bytes(), 25, seed=1)


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize("name", ["jpeg, colour at full resolution", "jpeg, grey", "jpeg, CMYK"])
def test_windows_of_upright_jpegs(name: str) -> None:
    assert_windows(FORMATS[name](), 60, seed=2)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("orientation", range(2, 9))
def test_windows_of_turned_jpegs(orientation: int) -> None:
    assert_windows(with_exif(UPRIGHT, exif("MM", orientation), True), 30, seed=3)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", ["png, palette", "png, RGBA", "bmp, palette", "gif", "webp"])
def test_windows_of_other_formats(name: str) -> None:
    assert_windows(FORMATS[name](), 20, seed=4)


def kind_of(image: tf.Tensor | Picture) -> tf.Tensor:
    return tf.constant("part" if isinstance(image, Picture) else "whole")


KIND = partial(transform_encoded, transform=kind_of)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (UPRIGHT, b"part"),
        (LOSSY["jpeg, grey"](), b"part"),
        (LOSSY["jpeg, CMYK"](), b"part"),
        (LOSSY["jpeg, progressive"](), b"part"),
        (with_exif(UPRIGHT, exif("II", 1), True), b"part"),
        (with_exif(UPRIGHT, exif("II", None, 3), False), b"part"),
        (with_exif(UPRIGHT, exif("II", 2), True), b"part"),
        (with_exif(UPRIGHT, exif("MM", 8, 4), False), b"part"),
        (EXACT["png"](), b"whole"),
        (EXACT["webp"](), b"whole"),
    ],
)
def test_only_a_jpeg_is_read_in_part(encoded: bytes, expected: bytes) -> None:
    assert both_ways(KIND, encoded) == expected


def test_a_picture_knows_its_sides() -> None:
    def sides(image: tf.Tensor | Picture) -> tf.Tensor:
        return image.sides if isinstance(image, Picture) else -tf.shape(image)[:2]

    ask = partial(transform_encoded, transform=sides)
    assert both_ways(ask, UPRIGHT).tolist() == [HEIGHT, WIDTH]
    turned = with_exif(UPRIGHT, exif("II", 6), True)
    assert both_ways(ask, turned).tolist() == [WIDTH, HEIGHT]


def large_jpeg(height: int, width: int) -> bytes:
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 19 + i) + np.cos(columns / (23 + i)) for i in range(3)]
    pixels = (127 + 60 * np.stack(waves, -1)).astype(np.uint8)
    return saved(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0)


@pytest.mark.parametrize("halvings", range(4))
def test_a_jpeg_is_decoded_at_a_half_a_quarter_and_an_eighth(halvings: int) -> None:
    encoded = large_jpeg(301, 411)
    whole = tf.io.decode_jpeg(encoded, ratio=2**halvings).numpy()
    pictures = []
    transform_encoded(
        tf.constant(encoded), lambda picture: pictures.append(picture) or tf.constant(0)
    )
    reduced = pictures[0].reduced(tf.constant(halvings))
    assert reduced.sides.numpy().tolist() == list(whole.shape[:2])
    part = reduced.read(tf.constant([3, 5, 20, 30])).numpy()
    assert np.abs(part.astype(int) - whole[3:23, 5:35]).max() <= 2
    assert reduced.reduced is None


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_jpeg_is_decoded_smaller_too(orientation: int) -> None:
    encoded = with_exif(large_jpeg(301, 411), exif("MM", orientation), True)
    pictures = []
    transform_encoded(
        tf.constant(encoded), lambda picture: pictures.append(picture) or tf.constant(0)
    )
    reduced = pictures[0].reduced(tf.constant(1))
    stored = Image.fromarray(tf.io.decode_jpeg(encoded, ratio=2).numpy())
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}[orientation]
    whole = np.asarray(stored.transpose(turn))
    assert reduced.sides.numpy().tolist() == list(whole.shape[:2])
    part = reduced.read(tf.constant([3, 50, 40, 30])).numpy()
    assert np.abs(part.astype(int) - whole[3:43, 50:80]).max() <= 2


@pytest.mark.parametrize(
    ("sides", "scaled", "factor"),
    [
        ((512, 700), (256, 350), 1),
        ((511, 700), (256, 350), 0),
        ((2048, 2800), (256, 350), 3),
        ((2047, 2800), (256, 350), 2),
        ((9000, 9000), (32, 32), 3),
    ],
)
def test_an_image_is_decoded_as_small_as_it_may_be(sides, scaled, factor) -> None:
    """Never smaller than what it is scaled to, and at most eight times."""
    picture = Picture(tf.constant(sides), lambda part: part, reduced=lambda factor: factor)
    found = decoded_smaller(picture, tf.constant(scaled, tf.int64))
    assert int(found) == factor


@pytest.mark.parametrize("scale", [32, 60, 90, 150, 299])
def test_training_decodes_a_large_jpeg_smaller_and_sees_the_same(scale: int) -> None:
    """Within a pixel's shift of the exact window, at every ratio."""
    encoded = large_jpeg(301, 411)
    crop = partial(augment.train_image, seed=[1, 2], size=32, scale=(scale, scale), flip=False)
    quick = transform_encoded(tf.constant(encoded), augment.takes_pictures(crop)).numpy()
    exact = augment.train_window(
        tf.constant([301, 411]), tf.constant([1, 2]), size=32, scale=(scale, scale)
    )
    expected = augment.resample(decode(encoded), exact).numpy()
    assert np.abs(quick - expected).mean() < 60 / 19 * 301 / scale  # the steepest wave's slope
    assert np.corrcoef(quick.ravel(), expected.ravel())[0, 1] > 0.97


def test_what_lies_below_a_window_is_not_decoded() -> None:
    tall = np.random.default_rng(0).integers(0, 256, (256, 64, 3), dtype=np.uint8)
    encoded = saved(Image.fromarray(tall), "JPEG", subsampling=0)
    whole = decode(tf.constant(encoded)).numpy()
    cut = encoded[: len(encoded) // 2]
    refused(cut)
    np.testing.assert_array_equal(
        both_ways(partial(transform_encoded, transform=reads((5, 9, 60, 30))), cut),
        whole[5:65, 9:39],
    )
    with pytest.raises(tf.errors.InvalidArgumentError):
        transform_encoded(tf.constant(cut), reads((200, 9, 30, 30)))


@pytest.mark.parametrize(
    "encoded", [b"", b"this is no picture", UPRIGHT[:100], EXACT["png"]()[:90]]
)
def test_transform_encoded_refuses_what_decode_does(encoded: bytes) -> None:
    for call in (
        lambda: READ_WINDOW(tf.constant(encoded)),
        lambda: in_dataset(READ_WINDOW, encoded),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError) as raised:
            call()
        assert_readable(decoding.reason(raised.value))


# --- one file --------------------------------------------------------------------------------


def test_the_bytes_decide_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(EXACT["png, palette"]())
    (tmp_path / "x.png").write_bytes(with_exif(UPRIGHT, exif("II", 6), True))
    np.testing.assert_array_equal(load_image(tmp_path / "x.jpg"), pillow(EXACT["png, palette"]()))
    image = load_image(str(tmp_path / "x.png"))
    assert image.dtype == np.uint8
    assert image.shape == (WIDTH, HEIGHT, 3)


def test_load_image_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png: no such image file$"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=rf"^{tmp_path}: is a folder, not an image file$"):
        load_image(tmp_path)
    for content, reason in (
        (b"", "the file is empty"),
        (b"this is no picture", "not a JPEG, PNG, BMP, GIF or WebP image"),
        (UPRIGHT[: len(UPRIGHT) // 2], "Invalid JPEG data"),
        (claiming("png", 60_000), "more than 100,000,000 pixels: height 60000, width 60000"),
    ):
        (tmp_path / "x.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{tmp_path}/x\.jpg: .*{reason}"):
            load_image(tmp_path / "x.jpg")
