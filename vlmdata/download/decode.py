"""From the bytes of an image of any kind to the stored JPEG: checked, upright, on white, made smaller.

What is looked at before any decoder runs: the magic bytes (never the server's word or a name) and the size that the
header states. Embedded colour profiles are ignored, as img2dataset and the training loaders do.
"""

import io
import math
import re
import warnings
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

from vlmdata.download.header import BROKEN, Facts, ImageError, jpeg_exif, read_exif, sniff, webp_size

# Parts run beside each other, one a core. And what Pillow finds odd in a file is no news for a terminal.
cv2.setNumThreads(1)
warnings.filterwarnings("ignore", module=r"PIL\.")

_LONGEST_SIDE = 65_500  # that a JPEG can have
_MOST_SCANS = 100  # a progressive JPEG of ordinary making has about 10; thousands are an attack on the decoder's time
_SPARE = 1.5  # a JPEG is decoded at no less than so many times the size that is wanted
# Faults that leave the picture whole; libjpeg reports and repairs them.
_HARMLESS = re.compile(r"\b\d{1,2} extraneous bytes|Invalid SOS parameters|Unknown Adobe|Inconsistent progression")
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


@dataclass(frozen=True)
class Picture:
    """A stored image. `original` is (width, height) of what came, upright; `facts` are of what came, too."""

    jpeg: bytes
    width: int
    height: int
    original: tuple[int, int]
    facts: Facts


def to_jpeg(data: bytes, size: int, quality: int, max_pixels: int) -> Picture:
    """The picture, its shorter side `size` at most (never enlarged), as a JPEG (4:2:0) of `quality`.

    Animations give their first frame, transparency turns white, 16 bits become 8, EXIF orientation is applied.
    Raises ImageError: `type` for what is no image of a kind that is decoded here, `pixels` for more than `max_pixels`
    or a side that no JPEG can have, `decode` for what is broken, truncated too.
    """
    mime = _kind(data)
    if mime == "image/jpeg":
        pixels, facts, (width, height) = _read_jpeg(data, size, max_pixels)
    else:
        pixels, facts, (width, height) = _read_other(data, mime, max_pixels)
    wanted = shrunk(width, height, size)
    if max(wanted) > _LONGEST_SIDE:
        raise ImageError("pixels", f"{width} x {height}: a side too long for a JPEG", (width, height))
    turn = facts.exif_orientation or 1
    pixels = upright(_shrink(pixels, *wanted), turn)
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")
    return Picture(jpeg, pixels.shape[1], pixels.shape[0], (height, width) if turn > 4 else (width, height), facts)


def to_rgb(data: bytes, max_pixels: int) -> np.ndarray:
    """The picture's pixels in their own size, uint8 RGB [height, width, 3], as `to_jpeg` would store them; same errors.

    Of a JPEG too, but slowly: by Pillow.
    """
    pixels, facts, _ = _read_other(data, _kind(data), max_pixels)
    return upright(pixels, facts.exif_orientation or 1)


def as_it_is(jpeg: bytes, size: int, max_pixels: int) -> Picture | None:
    """The picture whose bytes are just these, where they are a sound, upright JPEG in RGB or grey that is not to be
    made smaller; None for anything else, which `to_jpeg` is for."""
    if sniff(jpeg) != "image/jpeg" or jpeg.count(b"\xff\xda") > _MOST_SCANS:
        return None
    facts = Facts(False, False, *jpeg_exif(jpeg))
    if facts.exif_orientation not in (None, 1):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(jpeg)
        if colours in ("CMYK", "YCCK") or min(width, height) > size or not 0 < width * height <= max_pixels:
            return None
        # Strict, as those who read the stored image are; an eighth of the size shows as well whether all is there.
        simplejpeg.decode_jpeg(jpeg, "GRAY", min_factor=8.0)
    except (ValueError, KeyError):
        return None
    return Picture(jpeg, width, height, (width, height), facts)


def _kind(data: bytes) -> str:
    mime = sniff(data)
    if mime not in _PLUGINS:
        raise ImageError(
            "type", f"not an image but {mime}" if mime else "not an image of a known type" if data else "empty"
        )
    return mime


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


def _read_jpeg(data: bytes, size: int, max_pixels: int) -> tuple[np.ndarray, Facts, tuple[int, int]]:
    """RGB pixels, facts, and the size of what came, not turned. Decoded at a reduced scale where that is
    at least 1.5 times what is wanted."""
    if data.count(b"\xff\xda") > _MOST_SCANS:
        raise ImageError("decode", f"more than {_MOST_SCANS} scans")
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # TurboJPEG knows fewer kinds of subsampling than libjpeg
        return _read_other(data, "image/jpeg", max_pixels)
    _check_size(width, height, max_pixels)
    if colours in ("CMYK", "YCCK"):
        return _read_other(data, "image/jpeg", max_pixels)
    wanted = shrunk(width, height, size)
    least_width, least_height = (math.ceil(side * _SPARE) for side in wanted)
    try:
        pixels = _decode_jpeg(data, least_width, least_height, shrinks=min(width, height) >= _SPARE * size)
    except ValueError as error:
        raise ImageError("decode", _words(error), (width, height)) from error
    return pixels, Facts(False, False, *jpeg_exif(data)), (width, height)


def _decode_jpeg(data: bytes, min_width: int, min_height: int, shrinks: bool) -> np.ndarray:
    """Raises ValueError for a JPEG of which a part is missing or broken, where libjpeg would give grey instead.

    shrinks: the picture is made smaller afterwards, so that colours need not be interpolated now."""

    def decode(data: bytes, strict: bool = True) -> np.ndarray:
        # Factors below 2 take libjpeg longer than they save.
        return simplejpeg.decode_jpeg(
            data,
            "RGB",
            fastupsample=shrinks,
            min_width=min_width,
            min_height=min_height,
            min_factor=2.0,
            strict=strict,
        )

    try:
        return decode(data)
    except ValueError as error:
        if "Premature end of JPEG" in str(error):
            return decode(data + b"\xff\xd9")  # only the end's marker may be missing; if more is, this raises again
        if _HARMLESS.search(str(error)) and b"\xff\xd9" in data[-4096:]:
            return decode(data, strict=False)
        raise


def _read_other(data: bytes, mime: str, max_pixels: int) -> tuple[np.ndarray, Facts, tuple[int, int]]:
    """RGB pixels, facts and size of any image but the usual JPEG, by Pillow."""
    if mime == "image/webp":
        # Its decoder reserves the canvas when it is opened.
        _check_size(*webp_size(data), max_pixels)
    try:
        with _PLUGINS[mime](io.BytesIO(data)) as image:
            _check_size(*image.size, max_pixels)
            image.load()
            size, has_alpha = image.size, image.has_transparency_data
            try:
                noted = read_exif(image.getexif())
            except BROKEN:
                noted = None, None
            pixels = _rgb(image)
            return pixels, Facts(has_alpha, _animated(image), *noted), size
    except Image.DecompressionBombError as error:  # Pillow checks a GIF's frames by its own limit
        raise ImageError("pixels", _words(error)) from error
    except BROKEN as error:
        raise ImageError("decode", _words(error)) from error


def _animated(image: ImageFile.ImageFile) -> bool | None:
    """Whether frames follow; looked at last, since a GIF is then at its second. The pages of a TIFF are no frames."""
    if image.format not in ("GIF", "PNG", "WEBP", "AVIF"):
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except BROKEN:
        return None


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


def _shrink(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Averaging over areas, which is what img2dataset does, or what is hardly another picture and much cheaper.

    From 1.5 to 3 times the size is where reduced-scale decoding leaves a JPEG. Up to twice the size, interpolation
    reads every pixel and is the average at just 2. Beyond, the image goes to just twice the size by interpolation and
    from there by OpenCV's fast path for whole factors.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    factors = pixels.shape[0] / height, pixels.shape[1] / width
    if min(factors) >= _SPARE and max(factors) <= 2:
        return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
    if min(factors) >= _SPARE and max(factors) <= 2 * _SPARE:
        pixels = cv2.resize(pixels, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Undo EXIF's orientation, 1 to 8: https://exiftool.org/TagNames/EXIF.html, 0x0112. A view of the pixels."""
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
