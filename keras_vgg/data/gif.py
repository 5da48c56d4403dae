"""The first frame of a GIF. TensorFlow decodes every frame of a file, even where it returns one.

A frame of 100 megapixels takes 70 kB, so 2 MB could ask for 3 GB of memory. Here the rest of the
file is cut off before anything is decoded. The format is GIF89a's, sections 15 to 26.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

# The first frame may end after so many blocks of at most 255 bytes, 67 MB together. It takes about
# a second to step over them, and a file may have one every two bytes.
MAX_BLOCKS = 2**18
TOO_MANY_BLOCKS = f"a GIF whose first frame ends only after more than {MAX_BLOCKS:,} blocks"

_EXTENSION, _IMAGE = 0x21, 0x2C  # the first bytes of what may precede a frame, and of a frame
_UNROLLED = 16  # blocks in each turn of the loop, which costs as much as several


class FirstFrame(NamedTuple):
    """A GIF that ends after its first frame.

    Attributes:
        encoded: Its bytes. The frame has no offset any more, for the decoder would cut off what
            lies beyond the frame's own size. A file that ends before its first frame does, or is
            no GIF, is here as it was: the decoder says what is wrong.
        canvas: int32 [2], (height, width) of the picture that is to be seen.
        sides: int32 [2], of the frame if that has more pixels than the canvas, else the canvas.
        corner: int32 [2], (top, left) of the frame on the canvas.
    """

    encoded: tf.Tensor
    canvas: tf.Tensor
    sides: tf.Tensor
    corner: tf.Tensor


# A graph, for outside one the loop would run in Python; and not inlined, for then each JPEG would
# pass all of its operations by.
@tf.function(
    input_signature=[tf.TensorSpec([], tf.string)], experimental_attributes={"_noinline": True}
)
def first_frame(encoded: tf.Tensor) -> FirstFrame:
    """Return the first frame of a GIF's bytes, without decoding.

    Raises:
        tf.errors.InvalidArgumentError: the frame ends after more than MAX_BLOCKS.
    """
    with tf.device("CPU"):  # many steps, each of a few bytes
        # A zero ends a walk. From inside the file, no step leads farther than these.
        content = tf.pad(tf.io.decode_raw(encoded, tf.uint8), [[0, 1100]])
        start, end = _bounds(content)
        canvas = _two_numbers(content, 0, 8, 6)
        corner, frame = _two_numbers(content, start, 3, 1), _two_numbers(content, start, 7, 5)
        pixels = tf.reduce_prod(tf.cast(tf.stack([canvas, frame]), tf.int64), axis=1)
        whole = (start > 0) & (end <= tf.strings.length(encoded))

        def cut() -> tf.Tensor:
            head = tf.strings.substr(encoded, 0, start + 1)
            rest = tf.strings.substr(encoded, start + 5, end - start - 5)
            return tf.strings.join([head, b"\0\0\0\0", rest, b";"])

        return FirstFrame(
            tf.cond(whole, cut, lambda: encoded),
            canvas,
            tf.where((pixels[0] > 0) & (pixels[0] < pixels[1]) & (start > 0), frame, canvas),
            corner,
        )


def on_canvas(image: tf.Tensor, frame: FirstFrame) -> tf.Tensor:
    """Return the decoded frame, [h, w, 3], in its place on the canvas, which is black elsewhere."""
    corner = tf.minimum(frame.corner, frame.canvas)
    room = frame.canvas - corner
    seen = image[: room[0], : room[1]]
    beyond = room - tf.shape(seen)[:2]
    return tf.pad(seen, tf.concat([tf.stack([corner, beyond], axis=1), [[0, 0]]], axis=0))


def _bounds(content: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the place of the first frame's head, and the place after its data; 0: no frame.

    Before the frame come extensions. An extension and a frame's data are chains of blocks: a length
    and so many bytes, again and again, until a length is 0.
    """

    def chain_of(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the first block of the extension or frame at a place; and the place of a frame."""
        is_frame = content[place] == _IMAGE
        # A frame's head has 10 bytes, maybe colours, and one that says how the pixels are packed.
        data = place + 11 + _colour_bytes(content[place + 9])
        # What is neither ends the walk: this block is empty.
        other = tf.where(content[place] == _EXTENSION, place + 2, tf.size(content) - 2)
        return tf.where(is_frame, data, other), tf.where(is_frame, place, 0)

    def goes_on(at: tf.Tensor, start: tf.Tensor, blocks: tf.Tensor) -> tf.Tensor:
        return (content[at] > 0) | ((start == 0) & (at < tf.size(content) - 2))

    def step(at: tf.Tensor, start: tf.Tensor, blocks: tf.Tensor) -> tuple[tf.Tensor, ...]:
        for _ in range(_UNROLLED):
            length = tf.cast(tf.gather(content, at), tf.int32)
            at += length + tf.sign(length)
        after, frame = chain_of(at + 1)
        next_chain = (content[at] == 0) & (start == 0)
        at, start = tf.where(next_chain, after, at), tf.where(next_chain, frame, start)
        blocks += _UNROLLED
        few = tf.raw_ops.Assert(condition=blocks <= MAX_BLOCKS, data=[TOO_MANY_BLOCKS])
        with tf.control_dependencies([few]):
            return at, start, tf.identity(blocks)

    first = chain_of(13 + _colour_bytes(content[10]))
    at, start, _ = tf.while_loop(goes_on, step, (*first, tf.constant(0)))
    return start, at + 1


def _two_numbers(content: tf.Tensor, start: tf.Tensor | int, first: int, second: int) -> tf.Tensor:
    """Return the two-byte numbers at these distances from `start`, int32 [2]."""
    places = tf.add(start, [first, second])
    low = tf.cast(tf.gather(content, places), tf.int32)
    return low + 256 * tf.cast(tf.gather(content, places + 1), tf.int32)


def _colour_bytes(flags: tf.Tensor) -> tf.Tensor:
    """Return the bytes of the colour table that flags announce: 0, or 3 for each of its colours."""
    flags = tf.cast(flags, tf.int32)
    return tf.where(flags >= 128, 6 * tf.bitwise.left_shift(1, tf.bitwise.bitwise_and(flags, 7)), 0)
