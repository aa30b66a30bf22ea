"""What the head of an image says before any decoder runs: kind, size, orientation, date."""

import re
import struct
import zlib
from datetime import datetime
from typing import Any, NamedTuple

from PIL import Image

# EXIF's numbers: https://exiftool.org/TagNames/EXIF.html
_ORIENTATION = 0x0112
_CHANGED = 0x0132
_DETAILS = 0x8769  # where the next two stand
_TAKEN, _DIGITISED = 0x9003, 0x9004
_DATE = re.compile(r"\s*([0-9]{4})[:/-]([0-9]{2})[:/-]([0-9]{2})[ T]([0-9]{2}):([0-9]{2}):([0-9]{2})")
_BMP_HEADERS = {12, 40, 52, 56, 64, 108, 124}  # bytes: its versions
# What Pillow's decoders raise for files that are broken, each its own way.
BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    EOFError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class ImageError(Exception):
    """Bytes that become no picture: `type`, `decode` or `pixels`, words, and the size where the header states it."""

    def __init__(self, status: str, message: str, size: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.status, self.size = status, size


class Facts(NamedTuple):
    """What only the received file tells of a picture; None where it does not.

    has_alpha: it has an alpha channel or a transparent colour. animated: more than one frame is shown, one after the
    other. exif_orientation: 1 to 8; not known of a TIFF, which is turned when it is read.
    exif_date: `2019-05-01T12:30:00`, in the camera's own time: EXIF has no zone.
    """

    has_alpha: bool | None = None
    animated: bool | None = None
    exif_orientation: int | None = None
    exif_date: str | None = None


def sniff(data: bytes) -> str | None:
    """The media type that the bytes are; None for what is neither an image that is decoded here nor well known."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "image/bmp"
    if data.startswith((b"II*\0", b"MM\0*")):
        return "image/tiff"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(64, int.from_bytes(data[:4], "big"))]
        return "image/avif" if b"avif" in brands or b"avis" in brands else "image/heic" if b"hei" in brands else None
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<"):
        if b"<svg" in start:
            return "image/svg+xml"
        return "text/html" if b"<html" in start or b"<!doctype html" in start else "text/xml"
    return None


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height that a WebP's header states (RFC 9649). Raises ImageError."""
    kind, head = data[12:16], data[20:30]
    if len(head) == 10:
        if kind == b"VP8X":
            return 1 + int.from_bytes(head[4:7], "little"), 1 + int.from_bytes(head[7:10], "little")
        if kind == b"VP8L":
            bits = int.from_bytes(head[1:5], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if kind == b"VP8 ":
            return int.from_bytes(head[6:8], "little") & 0x3FFF, int.from_bytes(head[8:10], "little") & 0x3FFF
    raise ImageError("decode", "no WebP header")


def jpeg_exif(jpeg: bytes) -> tuple[int | None, str | None]:
    """As `read_exif`; nothing of it is read where there is none."""
    place = jpeg.find(b"Exif\0\0", 0, 65_536)
    if place < 6 or jpeg[place - 4 : place - 2] != b"\xff\xe1":
        return None, None
    end = place - 2 + int.from_bytes(jpeg[place - 2 : place], "big")
    exif = Image.Exif()
    try:
        exif.load(jpeg[place:end])
    except BROKEN:  # a picture with broken notes is a picture
        return None, None
    return read_exif(exif)


def read_exif(exif: Image.Exif) -> tuple[int | None, str | None]:
    """Orientation, 1 to 8, and when the picture was taken, else digitised, else changed; None for what is not there or
    has no meaning."""

    def value(tag: int, *folder: int) -> Any:
        try:
            return (exif.get_ifd(*folder) if folder else exif).get(tag)
        except BROKEN:
            return None

    places = ((_TAKEN, _DETAILS), (_DIGITISED, _DETAILS), (_CHANGED,))
    return orientation(value(_ORIENTATION)), next(
        (date for place in places if (date := exif_date(value(*place)))), None
    )


def orientation(value: object) -> int | None:
    """1 to 8."""
    return value if type(value) is int and 1 <= value <= 8 else None


def exif_date(value: object) -> str | None:
    """EXIF's `2019:05:01 12:30:00` in ISO 8601; None for what is no date."""
    match = _DATE.match(value) if isinstance(value, str) else None
    try:
        return datetime(*map(int, match.groups())).isoformat() if match else None  # type: ignore[arg-type]
    except ValueError:  # the 0th of month 0: a camera that was never set
        return None
