"""Decode an encoded image to RGB or luma: the whole image, or no more of it than is needed."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

from keras_vgg.augment import Picture, to_grey
from keras_vgg.augment.picture import without_autograph
from keras_vgg.data import gif
from keras_vgg.image_paths import expanded

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")

# A file of a few kilobytes can claim more pixels than any memory holds. One's own images may have
# 100 megapixels, which takes 0.3 GB, and 1.6 GB for a progressive JPEG that Exif turns.
MAX_PIXELS = 100_000_000
# Anyone may send an upload. 25 megapixels, more than the 24 of a phone's usual photograph, are
# decoded and shown in half a gigabyte and a few seconds, however the file was made.
MAX_UPLOAD_PIXELS = 25_000_000

# The orientation of a photograph (Exif 2.32, tag 0x0112, a SHORT) where every writer puts it: in
# the first directory of an APP1 segment at the head of the file; a second one is the thumbnail's.
# \C is one byte.
_EXIF_ORIENTATION = (
    r"\C{0,64}?Exif\x00\x00(?:"
    r"II\*\x00\x08\x00\x00\x00\C\C(?:\C{12}){0,40}?\x12\x01\x03\x00\x01\x00\x00\x00([\x01-\x08])\x00"
    r"|MM\x00\*\x00\x00\x00\x08\C\C(?:\C{12}){0,40}?\x01\x12\x00\x03\x00\x00\x00\x01\x00([\x01-\x08])"
    r")\C*"
)
_EXIF_TURNED = _EXIF_ORIENTATION.replace(r"[\x01-", r"[\x02-")  # a first look, for few images
_HEAD_BYTES = 640  # as far as the pattern can reach

_UNKNOWN = "not a JPEG, PNG, BMP, GIF or WebP image, or nothing of one but its first bytes"
_TOO_LARGE = "more than {:,} pixels, height and width"
_TOO_LARGE_TEXT = re.compile(r"\[(more than [\d,]+ pixels), height and width\] \[(-?\d+) (-?\d+)\]")


# Of 16-bit PNG files: the bits that carry the image, or each file's own smallest and largest value.
BitDepth = Literal["16", "14", "12", "10", "stretch"]


@without_autograph
def decode(
    encoded: tf.Tensor,
    max_pixels: int = MAX_PIXELS,
    bit_depth: BitDepth = "16",
    channels: int = 3,
) -> tf.Tensor:
    """Decode JPEG, PNG, BMP, GIF (first frame) or WebP bytes to uint8 [h, w, 3] RGB, upright.

    With one channel, the luma: [h, w, 1]. Of a JPEG it is the stored luma, which differs from the
    luma of its RGB by rounding, and in saturated colours, which RGB clips.
    The bytes decide, not a file's name. Grey is repeated, alpha dropped (what a GIF has transparent
    is black), a palette looked up, CMYK becomes RGB, of 16 bits the upper 8
    of the lowest `bit_depth` stay (floor(v / 256); "stretch": (v - min) * 255 / (max - min)),
    and a JPEG that Exif says is turned is turned upright.
    tf.errors.InvalidArgumentError for anything else: a truncated file (but damage after the first
    frame is not seen), a BMP of 1, 4 or 16 bits, an image of more than `max_pixels`.
    """
    return _decoder(max_pixels, bit_depth, channels)(encoded)


@functools.cache
def _decoder(
    max_pixels: int, bit_depth: BitDepth, channels: int
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return `decode` as one function: it takes 0.3 s to trace, which every pipeline would."""
    signature = [tf.TensorSpec([], tf.string)]
    decoder = partial(_decoded, max_pixels=max_pixels, bit_depth=bit_depth, channels=channels)
    return tf.function(decoder, input_signature=signature)


def _decoded(encoded: tf.Tensor, max_pixels: int, bit_depth: BitDepth, channels: int) -> tf.Tensor:
    sides, first = _sides_and_first_frame(encoded)
    with tf.control_dependencies([_known(sides), _small_enough(sides, max_pixels)]):
        if channels == 3:
            image = _in_rgb(encoded, first, bit_depth)
        else:
            image = tf.cond(
                _has_luma(encoded),
                lambda: tf.io.decode_image(encoded, channels=1, expand_animations=False),
                lambda: to_grey(_in_rgb(encoded, first, bit_depth)),
            )
    image.set_shape([None, None, channels])
    turned = orientation(encoded)
    return tf.cond(turned == 1, lambda: image, lambda: _upright(image, turned))


def _in_rgb(encoded: tf.Tensor, first: gif.FirstFrame, bit_depth: BitDepth) -> tf.Tensor:
    """Return an image as it is stored, not turned: uint8 [h, w, 3]."""
    mark = tf.strings.substr(encoded, 0, 2)
    image = tf.cond(
        mark == b"RI",
        # WebP's decoder must not be asked for 3 channels where there is alpha.
        lambda: tf.io.decode_image(encoded, expand_animations=False)[..., :3],
        lambda: tf.io.decode_image(first.encoded, channels=3, expand_animations=False),
    )
    if bit_depth != "16":
        image = tf.cond(is_16_bit(encoded), lambda: _deep(encoded, bit_depth), lambda: image)
    image = tf.cond(mark == b"BM", lambda: _looked_up(image, encoded), lambda: image)
    image = tf.cond(mark == b"GI", lambda: gif.on_canvas(image, first), lambda: image)
    image.set_shape([None, None, 3])
    return image


def _has_luma(encoded: tf.Tensor) -> tf.Tensor:
    """Return whether TensorFlow decodes one channel of a file without its colours, bool [].

    That is a JPEG, but not of CMYK, and a grey PNG of 8 bits. Of a PNG in colour, TensorFlow
    rounds the luma down.
    """
    kind = tf.strings.substr(encoded, 24, 2)  # a PNG's bits a channel and colour type
    is_png = tf.strings.substr(encoded, 0, 4) == b"\x89PNG"
    is_grey_png = is_png & ((kind == b"\x08\x00") | (kind == b"\x08\x04"))
    return tf.cond(tf.io.is_jpeg(encoded), lambda: _is_no_cmyk(encoded), lambda: is_grey_png)


def _is_no_cmyk(encoded: tf.Tensor) -> tf.Tensor:
    return tf.io.extract_jpeg_shape(encoded)[2] != 4


def _halved(sides: tf.Tensor, times: tf.Tensor) -> tf.Tensor:
    """Return sides, int32 [2], halved so often, rounded up as in libjpeg's scaled decoding."""
    ratio = tf.bitwise.left_shift(1, times)
    return (sides + ratio - 1) // ratio


def is_16_bit(encoded: tf.Tensor) -> tf.Tensor:
    """Return whether the bytes are a PNG of 16 bits a channel, bool []."""
    return (tf.strings.substr(encoded, 0, 4) == b"\x89PNG") & (
        tf.strings.substr(encoded, 24, 1) == b"\x10"
    )


def decode_16_bit(encoded: tf.Tensor) -> tf.Tensor:
    """Decode PNG bytes to int32 [h, w, 3] RGB in [0, 65535]."""
    return tf.cast(tf.io.decode_png(encoded, channels=3, dtype=tf.uint16), tf.int32)


def _deep(encoded: tf.Tensor, bit_depth: BitDepth) -> tf.Tensor:
    """Decode a 16-bit PNG to uint8 [h, w, 3]."""
    values = decode_16_bit(encoded)
    if bit_depth == "stretch":
        low, high = tf.reduce_min(values), tf.reduce_max(values)
        span = tf.maximum(high - low, 1)
        values = (2 * 255 * (values - low) + span) // (2 * span)
    else:
        values = tf.minimum(values // 2 ** (int(bit_depth) - 8), 255)
    return tf.cast(values, tf.uint8)


def transform_encoded(
    encoded: tf.Tensor,
    transform: Callable[[tf.Tensor | Picture], tf.Tensor],
    max_pixels: int = MAX_PIXELS,
    bit_depth: BitDepth = "16",
    channels: int = 3,
) -> tf.Tensor:
    """Return `transform` of an encoded image, and decode no more of it than that reads.

    `transform` maps a Picture or a decoded image, uint8 [h, w, channels], to a tensor of one shape;
    `augment.channels_for` says which channels it needs. A JPEG is a Picture, which is upright: what
    the file stores below a part of it is not decoded, so damage there is not seen. Every other
    image is decoded as a whole. Errors as in `decode`.
    """
    turned = tf.strings.regex_full_match(tf.strings.substr(encoded, 0, _HEAD_BYTES), _EXIF_TURNED)

    def of_jpeg() -> tf.Tensor:
        stored_sides = tf.io.extract_jpeg_shape(encoded)[:2]
        code = tf.cond(turned, lambda: orientation(encoded), lambda: 1)
        sides = tf.where(code >= 5, stored_sides[::-1], stored_sides)

        def read(part: tf.Tensor, halvings: tf.Tensor | None = None) -> tf.Tensor:
            whole = sides if halvings is None else _halved(sides, halvings)
            part = tf.cond(turned, lambda: _stored_part(part, whole, code), lambda: part)
            pixels = read_stored(part, halvings)
            return tf.cond(turned, lambda: _upright(pixels, code), lambda: pixels)

        def read_stored(part: tf.Tensor, halvings: tf.Tensor | None) -> tf.Tensor:
            # Where colour has half the columns, the outermost of a part would not be interpolated
            # with what lies beside it, so two more are decoded and cut off again.
            width = stored_sides[1] if halvings is None else _halved(stored_sides, halvings)[1]
            before = tf.minimum(part[1], 2)
            after = tf.minimum(width - part[1] - part[3], 2)
            wider = tf.stack([part[0], part[1] - before, part[2], part[3] + before + after])

            def decoded(ratio: int) -> tf.Tensor:
                return tf.io.decode_and_crop_jpeg(encoded, wider, channels=channels, ratio=ratio)

            if halvings is None:
                pixels = decoded(1)
            else:
                pixels = tf.switch_case(halvings, [partial(decoded, 2**i) for i in range(4)])
            pixels = tf.slice(pixels, [0, before, 0], [-1, part[3], -1])
            pixels.set_shape([None, None, channels])
            return pixels

        def reduced(halvings: tf.Tensor) -> Picture:
            read_part = partial(read, halvings=halvings)
            return Picture(_halved(sides, halvings), read_part, channels=channels)

        with tf.control_dependencies([_small_enough(sides, max_pixels)]):
            return transform(Picture(tf.identity(sides), read, reduced, channels))

    in_part = tf.io.is_jpeg(encoded)
    if channels == 1:
        in_part = tf.cond(in_part, lambda: _is_no_cmyk(encoded), lambda: False)
    return tf.cond(
        in_part, of_jpeg, lambda: transform(decode(encoded, max_pixels, bit_depth, channels))
    )


def encoded_sides(encoded: tf.Tensor) -> tf.Tensor:
    """Return the size that an image file states: int32 [2], (height, width); [0, 0] if none.

    The sides are as stored: a JPEG that Exif turns on its side is as wide here as it is high
    upright. For a GIF, they are the canvas's, or the first frame's if that claims more pixels.
    """
    return _sides_and_first_frame(encoded)[0]


def _sides_and_first_frame(encoded: tf.Tensor) -> tuple[tf.Tensor, gif.FirstFrame]:
    """Return `encoded_sides`, and a GIF's first frame; for other formats the bytes as they are."""
    first = tf.cond(
        tf.strings.substr(encoded, 0, 4) == b"GIF8",
        lambda: gif.first_frame(encoded),
        lambda: gif.FirstFrame(encoded, *[tf.zeros([2], tf.int32)] * 3),
    )
    sides = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.extract_jpeg_shape(encoded)[:2],
        lambda: _sides_in_header(encoded),
    )
    return tf.maximum(sides, first.sides), first


class _Stated(NamedTuple):
    """Where a format states its sides: (height, width), each from the places of its bytes.

    Attributes:
        at: The place of `mark`, by which the format is known.
        places: Of a number's bytes, the least significant first.
        bits: How many bits the number has,
        above: from this one on, for the height and the width,
        more: what is added to it.
        signed: The height may be negative, which says that the rows go from the top down.
    """

    at: int
    mark: bytes
    places: tuple[range, range]
    bits: int = 32
    above: tuple[int, int] = (0, 0)
    more: int = 0
    signed: bool = False


_STATED = (
    _Stated(0, b"\x89PNG", (range(23, 19, -1), range(19, 15, -1))),
    _Stated(0, b"BM", (range(22, 26), range(18, 22)), signed=True),
    _Stated(8, b"WEBPVP8 ", (range(28, 30), range(26, 28)), bits=14),
    _Stated(8, b"WEBPVP8L", (range(21, 25), range(21, 25)), bits=14, above=(14, 0), more=1),
    _Stated(8, b"WEBPVP8X", (range(27, 30), range(24, 27)), bits=24, more=1),
)
_HEADER_BYTES = 30  # as far as they reach


def _sides_in_header(encoded: tf.Tensor) -> tf.Tensor:
    """Return `encoded_sides` of PNG, BMP and WebP, at their fixed places; for others [0, 0].

    The same few operations look for all formats, since every pipeline has to prepare each
    operation.
    """
    weights = np.zeros((len(_STATED), 2, _HEADER_BYTES), np.int64)
    marks = np.full((len(_STATED), _HEADER_BYTES), -1)
    for row, stated in enumerate(_STATED):
        marks[row, stated.at : stated.at + len(stated.mark)] = list(stated.mark)
        for side, places in enumerate(stated.places):
            weights[row, side, places] = 256 ** np.arange(len(places))
    above = [stated.above for stated in _STATED]
    bits = [[stated.bits] for stated in _STATED]
    more = np.array([[stated.more] for stated in _STATED])
    # A negative number of 32 bits becomes what it is without its sign.
    folded = np.array([[2**32 if stated.signed else 2**62, 2**62] for stated in _STATED])

    head = tf.io.decode_raw(tf.reshape(encoded, [1]), tf.uint8, fixed_length=_HEADER_BYTES)
    head = tf.cast(head, tf.int64)
    numbers = tf.reduce_sum(weights * head, axis=2)
    numbers = tf.minimum(numbers, folded - numbers)
    sides = numbers // np.power(2, above) % np.power(2, bits) + more
    stands = tf.reduce_all((head == marks) | (marks < 0), axis=1, keepdims=True)
    return tf.cast(tf.reduce_max(tf.where(stands, sides, 0), axis=0), tf.int32)


@without_autograph
def orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Return Exif's orientation of a JPEG, int32 1 to 8; 1, upright, if the file states none."""
    head = tf.strings.substr(encoded, 0, _HEAD_BYTES)
    stated = tf.strings.regex_replace(head, _EXIF_ORIENTATION, r"\1\2")
    turned = tf.strings.regex_full_match(head, _EXIF_ORIENTATION) & tf.io.is_jpeg(encoded)
    code = tf.io.decode_raw(tf.reshape(stated, [1]), tf.uint8, fixed_length=1)[0, 0]
    return tf.where(turned, tf.cast(code, tf.int32), 1)


def _looked_up(image: tf.Tensor, encoded: tf.Tensor) -> tf.Tensor:
    """Look up the colours of a BMP: TensorFlow takes the 8-bit indices of a palette for grey."""
    head = tf.io.decode_raw(tf.reshape(encoded, [1]), tf.uint8, fixed_length=30)[0]
    head = tf.cast(head, tf.int32)

    def colours() -> tf.Tensor:
        # Blue, green, red, unused; 256 of them or fewer, after the two headers of 14 and head[14].
        start = tf.minimum(14 + head[14], tf.strings.length(encoded))  # the file may be cut
        table = tf.strings.substr(encoded, start, 4 * 256)
        table = tf.io.decode_raw(tf.reshape(table, [1]), tf.uint8, fixed_length=4 * 256)
        table = tf.reshape(table, [256, 4])[:, 2::-1]
        return tf.gather(table, tf.cast(image[:, :, 0], tf.int32))

    return tf.cond(head[28] == 8, colours, lambda: image)


def _transposed(image: tf.Tensor) -> tf.Tensor:
    """Transpose [h, w, c] to [w, h, c]; for tf.transpose of bytes, oneDNN complains on stderr."""
    height, width = tf.unstack(tf.shape(image)[:2])
    pixels = tf.range(height) * width + tf.range(width)[:, tf.newaxis]
    return tf.gather(tf.reshape(image, [-1, image.shape[-1]]), pixels)


@without_autograph
def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turn an image upright: 2 to 4 are mirrored or upside down, 5 to 8 have rows for columns."""
    image = tf.cond(orientation >= 5, lambda: _transposed(image), lambda: image)
    return tf.reverse(image, tf.where(_mirrored(orientation))[:, 0])


def _mirrored(orientation: tf.Tensor) -> tf.Tensor:
    """Return whether to mirror the order of the rows, and of the columns, bool [2]; then upright.

    Images of 5 to 8 are transposed before.
    """
    columns = tf.reduce_any(orientation == [2, 3, 6, 7])
    rows = tf.reduce_any(orientation == [3, 4, 7, 8])
    return tf.stack([rows, columns])


@without_autograph
def _stored_part(part: tf.Tensor, sides: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Return where a file stores a part of the upright image: (top, left, height, width).

    `sides` are those of the upright image.
    """
    first, extent = part[:2], part[2:]
    first = tf.where(_mirrored(orientation), sides - first - extent, first)
    transposed = tf.concat([first[::-1], extent[::-1]], 0)
    return tf.where(orientation >= 5, transposed, tf.concat([first, extent], 0))


def _known(sides: tf.Tensor) -> tf.Operation | None:
    return tf.raw_ops.Assert(condition=tf.reduce_all(sides > 0), data=[_UNKNOWN, sides])


def _small_enough(sides: tf.Tensor, max_pixels: int) -> tf.Operation | None:
    """Raise tf.errors.InvalidArgumentError, in the graph, if an image has more pixels."""
    pixels = tf.reduce_prod(tf.cast(sides, tf.int64))
    # The raw op, for tf.debugging.Assert wraps it in a conditional that costs more than the test.
    too_large = _TOO_LARGE.format(max_pixels)
    return tf.raw_ops.Assert(condition=pixels <= max_pixels, data=[too_large, sides])


def load_image(
    path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS, bit_depth: BitDepth = "16"
) -> np.ndarray:
    """Read an image file as uint8 [h, w, 3] RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no whole image, or has more than `max_pixels`; the error names it.
    """
    path = expanded(path)
    if not path.is_file():
        reason = "is a folder, not an image file" if path.is_dir() else "no such image file"
        raise (ValueError if path.is_dir() else FileNotFoundError)(f"{path}: {reason}")
    encoded = tf.io.read_file(os.fsencode(path))
    try:
        return decode(encoded, max_pixels, bit_depth).numpy()
    except tf.errors.OpError as error:
        raise ValueError(f"{path}: {_reason_of(encoded, error)}") from error


def why_bad(encoded: tf.Tensor) -> str | None:
    """Return why the bytes do not decode, in a few words; None if they do."""
    try:
        decode(encoded)
    except tf.errors.OpError as error:
        return _reason_of(encoded, error)
    return None


def _reason_of(encoded: tf.Tensor, error: tf.errors.OpError) -> str:
    return reason(error) if encoded.numpy() else "the file is empty"


# TensorFlow quotes a record that it cannot parse, and Python then fails to read the quotation.
TENSORFLOW_ERRORS = (tf.errors.OpError, UnicodeDecodeError)


def reason(error: tf.errors.OpError | UnicodeDecodeError) -> str:
    """Return the text of one of TENSORFLOW_ERRORS, on one line, without the names of its graph."""
    if isinstance(error, UnicodeDecodeError):
        return "not a record of an image and its label"
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    # A graph's error has its name, what is wrong, "[[{{node ...}}]]", and maybe the same again.
    places = [i for i, line in enumerate(lines) if line.startswith("[[{{") and i > 0]
    text = lines[places[0] - 1] if places else lines[0] if lines else type(error).__name__
    # "{{function_node ...}} what is wrong [Op:DecodeImage] name: "
    text = re.sub(r"^(\{\{.*?\}\} )+|( \[Op:| \[\[\{\{).*$", "", text)
    text = re.sub(r"^Error in user-defined function .* with iterator: \S+: ", "", text)
    if match := _TOO_LARGE_TEXT.search(text):
        return f"{match[1]}: height {match[2]}, width {match[3]}; make the image smaller"
    if gif.TOO_MANY_BLOCKS in text:
        return f"{gif.TOO_MANY_BLOCKS}; save the image again, or as a PNG"
    return _UNKNOWN if _UNKNOWN in text or "Unknown image file format" in text else text
