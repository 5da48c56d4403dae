"""What of a folder is not read, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAMED = 3  # files of each reason
HEAD_BYTES = 132  # that `kind_of` looks at: DICOM's mark ends there

# The formats that are read, and what such a file may be called.
READ_FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "WebP": (".webp",),
}

# What a file begins with -> its format. Those that are read, then those that people bring.
_FORMATS = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (128, b"DICM", "DICOM"),
    (0, b"8BPS", "Photoshop"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x93NUMPY", "NumPy array"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"<svg", "SVG"),
)

_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # their sizes in bytes


def kind_of(head: bytes) -> str | None:
    """Return the format of a file's first `HEAD_BYTES`, such as "TIFF"; None: not known."""
    kind = marked_kind(head)
    is_text = kind == "BMP" and int.from_bytes(head[14:18], "little") not in _BMP_HEADERS
    return None if is_text else kind


def marked_kind(head: bytes) -> str | None:
    """Return `kind_of` for a file that decodes: its mark alone decides, as for the decoder."""
    for place, mark, kind in _FORMATS:
        if head[place : place + len(mark)] == mark:
            return kind
    return None


def printable(path: str | os.PathLike[str]) -> str:
    r"""Return a path that any terminal takes: bytes that are not UTF-8 become \xe9 and the like."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def short_name(path: str | os.PathLike[str]) -> str:
    """Return a file's folder and name, as `printable`, for a page or a picture."""
    return printable("/".join(Path(path).parts[-2:]))


@dataclass(frozen=True)
class LeftOut:
    """Files that are not read, for one reason."""

    reason: str
    count: int
    first: tuple[str, ...]

    @classmethod
    def of(cls, reason: str, paths: Sequence[str]) -> LeftOut:
        """Return the count of the paths, and the first of them by name."""
        return cls(reason, len(paths), tuple(map(printable, sorted(paths)[:NAMED])))

    def __str__(self) -> str:
        return f"{self.count:,} {self.reason}: {listed(self.first, self.count)}"


def what_is_there(left_out: Sequence[LeftOut]) -> str:
    """Return what a place without images holds, for the end of a clause; "" if nothing."""
    if not left_out:
        return ""
    return f" (it holds {'; '.join(map(str, left_out[:3]))})"


def listed(names: Sequence[str], count: int) -> str:
    """Return the names, with dots where there are more than these."""
    return ", ".join(names) + (", ..." if count > len(names) else "")
