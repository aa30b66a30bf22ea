"""From the bytes of an image of any kind to the stored JPEG: checked, upright, on white, made smaller.

What is looked at before any decoder runs: the magic bytes (never the server's word or a name) and the size that the
header states. Embedded colour profiles are ignored, as img2dataset and the training loaders do.
"""

import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# Parts run beside each other, one a core. And what Pillow finds odd in a file is no news for a terminal.
cv2.setNumThreads(1)
warnings.filterwarnings("ignore", module=r"PIL\.")

_ORIENTATION = 0x0112
_LONGEST_SIDE = 65_500  # that a JPEG can have
_MOST_SCANS = 100  # a progressive JPEG of ordinary making has about 10; thousands are an attack on the decoder's time
_SPARE = 1.5  # a JPEG is decoded at no less than so many times the size that is wanted
# Faults that leave the picture whole; libjpeg reports and repairs them.
_HARMLESS = re.compile(r"\b\d{1,2} extraneous bytes|Invalid SOS parameters|Unknown Adobe|Inconsistent progression")
# What Pillow's decoders raise for files that are broken, each its own way.
_BROKEN = (
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
# The plugins themselves and not Image.open, whose limit of pixels is one for the whole process, and which would also
# try formats that run programs (EPS).
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "image/jpeg": JpegImagePlugin.JpegImageFile,
    "image/png": PngImagePlugin.PngImageFile,
    "image/gif": GifImagePlugin.GifImageFile,
    "image/webp": WebPImagePlugin.WebPImageFile,
    "image/bmp": BmpImagePlugin.BmpImageFile,
    "image/tiff": TiffImagePlugin.TiffImageFile,
    "image/avif": AvifImagePlugin.AvifImageFile,
}


class ImageError(Exception):
    """Bytes that become no picture: `type`, `decode` or `pixels`, words, and the size where the header states it."""

    def __init__(self, status: str, message: str, size: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.status, self.size = status, size


@dataclass(frozen=True)
class Picture:
    """A stored image. `original` is (width, height) of what came, upright."""

    jpeg: bytes
    width: int
    height: int
    original: tuple[int, int]


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
    if data.startswith(b"BM") and data[14:18] in (
        b"\x0c\0\0\0",
        b"\x28\0\0\0",
        b"\x38\0\0\0",
        b"\x6c\0\0\0",
        b"\x7c\0\0\0",
    ):
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


def to_jpeg(data: bytes, size: int, quality: int, max_pixels: int) -> Picture:
    """The picture, its shorter side `size` at most (never enlarged), as a JPEG (4:2:0) of `quality`.

    Animations give their first frame, transparency turns white, 16 bits become 8, EXIF orientation is applied.
    Raises ImageError: `type` for what is no image of a kind that is decoded here, `pixels` for more than `max_pixels`
    or a side that no JPEG can have, `decode` for what is broken, truncated too.
    """
    mime = sniff(data)
    if mime not in _PLUGINS:
        raise ImageError(
            "type", f"not an image but {mime}" if mime else "not an image of a known type" if data else "empty"
        )
    if mime == "image/jpeg":
        pixels, turn, (width, height) = _read_jpeg(data, size, max_pixels)
    else:
        pixels, turn, (width, height) = _read_other(data, mime, max_pixels)
    wanted = shrunk(width, height, size)
    if max(wanted) > _LONGEST_SIDE:
        raise ImageError("pixels", f"{width} x {height}: a side too long for a JPEG", (width, height))
    pixels = _upright(_shrink(pixels, *wanted), turn)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")
    return Picture(jpeg, pixels.shape[1], pixels.shape[0], (height, width) if turn > 4 else (width, height))


def shrunk(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the shorter side `size` and the aspect kept; unchanged where it is not longer."""
    shorter = min(width, height)
    if shorter <= size:
        return width, height
    return tuple(max(1, (2 * side * size + shorter) // (2 * shorter)) for side in (width, height))  # type: ignore[return-value]


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width <= 0 or height <= 0:
        raise ImageError("decode", f"{width} x {height} pixels")
    if width * height > max_pixels:
        raise ImageError("pixels", f"{width} x {height} pixels; the limit is {max_pixels}", (width, height))


def _read_jpeg(data: bytes, size: int, max_pixels: int) -> tuple[np.ndarray, int, tuple[int, int]]:
    """RGB pixels, EXIF orientation, and the size of what came, not turned. Decoded at a reduced scale where that is
    at least 1.5 times what is wanted."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError as error:
        raise ImageError("decode", _words(error)) from error
    _check_size(width, height, max_pixels)
    if data.count(b"\xff\xda") > _MOST_SCANS:
        raise ImageError("decode", f"more than {_MOST_SCANS} scans", (width, height))
    if colours in ("CMYK", "YCCK"):
        return _read_other(data, "image/jpeg", max_pixels)
    wanted = shrunk(width, height, size)
    least = [int(side * _SPARE + 0.5) for side in wanted]
    try:
        pixels = _decode_jpeg(data, *least)
    except ValueError as error:
        raise ImageError("decode", _words(error), (width, height)) from error
    return pixels, _exif_orientation(data), (width, height)


def _decode_jpeg(data: bytes, min_width: int, min_height: int) -> np.ndarray:
    """Raises ValueError for a JPEG of which a part is missing or broken, where libjpeg would give grey instead."""

    def decode(data: bytes, strict: bool = True) -> np.ndarray:
        # Factors below 2 take libjpeg longer than they save.
        return simplejpeg.decode_jpeg(
            data, "RGB", min_width=min_width, min_height=min_height, min_factor=2.0, strict=strict
        )

    try:
        return decode(data)
    except ValueError as error:
        if "Premature end of JPEG" in str(error):
            return decode(data + b"\xff\xd9")  # only the end's marker may be missing; if more is, this raises again
        if _HARMLESS.search(str(error)) and b"\xff\xd9" in data[-4096:]:
            return decode(data, strict=False)
        raise


def _exif_orientation(jpeg: bytes) -> int:
    """1 to 8; 1 where there is none."""
    place = jpeg.find(b"Exif\0\0", 0, 65_536)
    if place < 6 or jpeg[place - 4 : place - 2] != b"\xff\xe1":
        return 1
    end = place - 2 + int.from_bytes(jpeg[place - 2 : place], "big")
    exif = Image.Exif()
    try:
        exif.load(jpeg[place:end])
        return _orientation(exif)
    except _BROKEN:  # a picture with broken notes is a picture
        return 1


def _orientation(exif: Image.Exif) -> int:
    turn = exif.get(_ORIENTATION, 1)
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _read_other(data: bytes, mime: str, max_pixels: int) -> tuple[np.ndarray, int, tuple[int, int]]:
    """RGB pixels, orientation and size of any image but the usual JPEG, by Pillow."""
    if mime == "image/webp":
        # Its decoder reserves the canvas when it is opened.
        _check_size(*_webp_size(data), max_pixels)
    try:
        with _PLUGINS[mime](io.BytesIO(data)) as image:
            _check_size(*image.size, max_pixels)
            image.load()
            try:
                turn = _orientation(image.getexif())
            except _BROKEN:
                turn = 1
            return _rgb(image), turn, image.size
    except Image.DecompressionBombError as error:  # a GIF's frame that is larger than its canvas
        raise ImageError("pixels", "more pixels than the header states") from error
    except _BROKEN as error:
        raise ImageError("decode", _words(error)) from error


def _rgb(image: Image.Image) -> np.ndarray:
    """uint8 [height, width, 3]; transparency on white. Raises ImageError for samples that have no range (32 bits)."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)
    if image.mode in ("I", "F"):
        raise ImageError("type", "samples of 32 bits")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.new("RGB", clear.size, "white")
        image.paste(clear, mask=clear.getchannel("A"))
    return np.asarray(image.convert("RGB"))


def _webp_size(data: bytes) -> tuple[int, int]:
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


def _shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Averaging over areas, which is what img2dataset does.

    Up to three times larger, the image goes to just twice the size by interpolation and from there by OpenCV's fast
    path for whole factors: half of the time, and within 50 dB of the average.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    if max(pixels.shape[0] / height, pixels.shape[1] / width) <= 3:
        pixels = cv2.resize(pixels, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def _upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Undo EXIF's orientation: https://exiftool.org/TagNames/EXIF.html, 0x0112."""
    if turn > 4:
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _words(error: BaseException) -> str:
    """What a decoder said, in one short line that is the same each time."""
    text = " ".join(str(error).split())
    text = re.sub(r"<.*?>|0x[0-9a-f]{6,}", "…", text)
    return (text or type(error).__name__)[:120]
