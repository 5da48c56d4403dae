"""Small files that ask for much: images of one colour, which compress by thousands."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

_CLEAR, _END = 4, 5  # the codes of a GIF of 4 colours


def gif_pixels(count: int) -> bytes:
    """The data of a frame of `count` pixels of colour 0, without its division in blocks.

    Each code stands for one pixel more than the one before, until the table is full.
    """
    bits, used, data = 0, 0, bytearray()

    def put(code: int, width: int) -> None:
        nonlocal bits, used
        bits, used = bits | code << used, used + width
        while used >= 8:
            data.append(bits & 255)
            bits, used = bits >> 8, used - 8

    width, left = 3, count
    while left > 0:
        put(_CLEAR, width)
        put(0, 3)
        width, left, length, code = 3, left - 1, 2, _END + 1
        while left > 0 and code < 4095:
            run = min(length, left)
            put(code if run == length else 0 if run == 1 else _END + run - 1, width)
            left, length, code = left - run, length + 1, code + 1
            width += code == 1 << width and width < 12
    put(_END, width)
    return bytes(data) + bytes([bits])


def gif_frame(
    height: int,
    width: int,
    *,
    corner: tuple[int, int] = (0, 0),
    colours: bytes = b"",
    block: int = 255,
    pixels: bytes | None = None,
) -> bytes:
    """A frame at (top, left), with a colour table of its own or none; in blocks of `block` bytes.

    `pixels`: other data than those of colour 0 everywhere.
    """
    flags = 0x81 if colours else 0
    head = b"," + struct.pack("<HHHHBB", *corner[::-1], width, height, flags, 2)
    data = gif_pixels(height * width) if pixels is None else pixels
    parts = (data[i : i + block] for i in range(0, len(data), block))
    return head[:10] + colours + head[10:] + b"".join(bytes([len(p)]) + p for p in parts) + b"\0"


def gif(height: int, width: int, *frames: bytes, colour: bytes = b"\x10\x20\x30") -> bytes:
    """A canvas of height x width and these frames; `colour` is number 0 of 4."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x81, 0, 0)
    return head + colour + bytes(9) + b"".join(frames) + b";"


def png(height: int, width: int, bits: int = 8) -> bytes:
    """A black RGB image of 8 or 16 bits."""

    def chunk(name: bytes, body: bytes) -> bytes:
        content = name + body
        return struct.pack(">I", len(body)) + content + struct.pack(">I", zlib.crc32(content))

    packed, row = zlib.compressobj(9), bytes(1 + width * 3 * bits // 8)
    rows = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def peak_bytes() -> int:
    """The most memory this process has had at once."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("no /proc to read the peak of memory from")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
