"""What the head of an image says before any decoder runs: kind, size, orientation."""

import struct
import zlib

from PIL import Image

_ORIENTATION = 0x0112
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


def jpeg_orientation(jpeg: bytes) -> int:
    """1 to 8; 1 where there is none."""
    place = jpeg.find(b"Exif\0\0", 0, 65_536)
    if place < 6 or jpeg[place - 4 : place - 2] != b"\xff\xe1":
        return 1
    end = place - 2 + int.from_bytes(jpeg[place - 2 : place], "big")
    exif = Image.Exif()
    try:
        exif.load(jpeg[place:end])
        return orientation(exif)
    except BROKEN:  # a picture with broken notes is a picture
        return 1


def orientation(exif: Image.Exif) -> int:
    """1 to 8: https://exiftool.org/TagNames/EXIF.html, 0x0112."""
    turn = exif.get(_ORIENTATION, 1)
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1
