"""What `vlmdata.download.decode` makes of images of every kind, broken ones too. All are made here."""

import contextlib
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from vlmdata.download.decode import shrunk, to_jpeg
from vlmdata.download.header import ImageError, sniff

LIMIT = 100_000_000


def scene(width: int, height: int) -> np.ndarray:
    """A smooth picture whose corners differ: red, green, blue and grey. RGB."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][..., None]
    corners = [np.array(c, float) for c in ((220, 30, 30), (30, 200, 30), (30, 30, 220), (128, 128, 128))]
    mixed = (1 - y) * ((1 - x) * corners[0] + x * corners[1]) + y * ((1 - x) * corners[2] + x * corners[3])
    return mixed.round().astype(np.uint8)


def packed(image: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, kind, **options)
    return out.getvalue()


def stored(data: bytes, size: int = 512) -> np.ndarray:
    """The stored picture as RGB pixels; checks that the sizes told are those of the JPEG."""
    picture = to_jpeg(data, size, 95, LIMIT)
    pixels = simplejpeg.decode_jpeg(picture.jpeg, "RGB")
    assert pixels.shape[:2] == (picture.height, picture.width)
    return pixels


def fault(data: bytes, max_pixels: int = LIMIT) -> ImageError:
    with pytest.raises(ImageError) as caught:
        to_jpeg(data, 64, 95, max_pixels)
    return caught.value


def close(found: np.ndarray, wanted: np.ndarray, dB: float = 35) -> bool:
    return found.shape == wanted.shape and cv2.PSNR(found, wanted) > dB


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 95}),
        ("BMP", {}),
        ("TIFF", {}),
        ("AVIF", {"quality": 95}),
    ],
)
def test_every_kind_comes_out_as_the_same_picture(kind: str, options: dict) -> None:
    data = packed(scene(90, 60), kind, **options)
    assert sniff(data) == f"image/{kind.lower()}"
    assert close(stored(data), scene(90, 60))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [((1000, 500), (512, 256)), ((500, 1001), (256, 513)), ((200, 900), (200, 900)), ((256, 256), (256, 256))],
)
def test_the_shorter_side_is_met_the_aspect_kept_and_nothing_enlarged(given: tuple, wanted: tuple) -> None:
    assert shrunk(*given, 256) == wanted
    for kind in ("JPEG", "PNG"):
        picture = to_jpeg(packed(scene(*given), kind), 256, 90, LIMIT)
        assert (picture.width, picture.height) == wanted
        assert picture.original == given


@pytest.mark.parametrize("size", [(300, 400), (700, 530), (1030, 800), (1600, 2200)])
def test_a_jpeg_decoded_at_reduced_scale_looks_like_the_whole_one_averaged(size: tuple) -> None:
    noise = np.random.default_rng(0).integers(0, 60, (size[1] // 4, size[0] // 4), np.uint8)
    detailed = cv2.add(scene(*size), cv2.resize(noise, size, interpolation=cv2.INTER_CUBIC)[..., None].repeat(3, 2))
    data = packed(detailed, "JPEG", quality=92)
    whole = simplejpeg.decode_jpeg(data, "RGB")
    wanted = cv2.resize(whole, shrunk(*size, 256), interpolation=cv2.INTER_AREA)
    assert close(stored(data, 256), wanted, 33)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_and_the_original_size_is_upright(turn: int, kind: str) -> None:
    upright = scene(96, 48)
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[turn]  # Pillow's transpositions
    lying = Image.fromarray(upright)
    if undo is not None:
        lying = lying.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = turn
    picture = to_jpeg(packed(lying, kind, exif=exif), 512, 95, LIMIT)
    assert picture.original == (96, 48)
    assert close(simplejpeg.decode_jpeg(picture.jpeg, "RGB"), upright, 30)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_truncated_image_is_an_error_and_never_half_grey(kind: str) -> None:
    data = packed(np.random.default_rng(1).integers(0, 255, (120, 160, 3), np.uint8), kind)
    for share in (0.05, 0.5, 0.9):
        assert fault(data[: int(len(data) * share)]).status == "decode"


def test_a_jpeg_that_lacks_only_its_end_marker_is_whole() -> None:
    assert close(stored(packed(scene(90, 60), "JPEG", quality=95)[:-2]), scene(90, 60))


def test_a_few_stray_bytes_before_a_marker_do_no_harm_but_garbage_does() -> None:
    data = packed(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8), "JPEG", quality=95)
    assert stored(data[:-2] + b"\x11\x22" + data[-2:]).shape == (64, 64, 3)
    middle = len(data) // 2
    assert fault(data[:middle] + b"\x00\x11" * 200 + data[middle + 400 :]).status == "decode"


def test_corrupt_png_data_is_a_decode_error() -> None:
    data = bytearray(packed(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8), "PNG"))
    data[len(data) // 2] ^= 0xFF
    assert fault(bytes(data)).status == "decode"


def test_animations_give_their_first_frame() -> None:
    frames = [Image.fromarray(np.full((40, 50, 3), colour, np.uint8)) for colour in ((250, 0, 0), (0, 250, 0))]
    for kind in ("GIF", "WEBP", "PNG"):
        data = packed(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert close(stored(data), np.full((40, 50, 3), (250, 0, 0), np.uint8), 30)


@pytest.mark.parametrize("transform", [0, 2])
def test_cmyk_and_ycck_jpegs_have_their_colours(transform: int) -> None:
    rgb = scene(90, 60)
    cmyk = np.dstack([255 - rgb, np.zeros(rgb.shape[:2], np.uint8)])
    data = _ycck(cmyk) if transform else packed(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95)
    assert simplejpeg.decode_jpeg_header(data)[2] == ("CMYK", "", "YCCK")[transform]
    assert close(stored(data), rgb, 30)


def _ycck(cmyk: np.ndarray) -> bytes:
    """A YCCK JPEG as Photoshop writes it: inverted inks turned into YCbCr, stored as if they were inks, and an Adobe
    marker that says so."""
    # libjpeg's inks are 255 - RGB, and these inks are inverted once more: the RGB in the file are the inks themselves.
    ycc = cv2.cvtColor(np.ascontiguousarray(cmyk[..., :3]), cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    # Pillow inverts what it writes as CMYK.
    data = packed(Image.fromarray(np.dstack([255 - ycc, cmyk[..., 3]]), "CMYK"), "JPEG", quality=95)
    place = data.index(b"Adobe")
    assert data[place - 4 : place - 2] == b"\xff\xee"
    return data[: place + 11] + b"\x02" + data[place + 12 :]


def test_16_bits_become_8_by_scale_and_not_by_clipping() -> None:
    rgb = scene(90, 60)
    deep = rgb.astype(np.uint16) * 257
    encode = {
        "rgb": cv2.imencode(".png", deep[..., ::-1])[1].tobytes(),
        "grey": cv2.imencode(".png", deep[..., 0])[1].tobytes(),
        "grey tiff": cv2.imencode(".tiff", deep[..., 0])[1].tobytes(),
        "alpha": cv2.imencode(".png", np.dstack([deep[..., ::-1], np.full_like(deep[..., 0], 65_535)]))[1].tobytes(),
    }
    for name, data in encode.items():
        assert close(stored(data), rgb[..., [0, 0, 0]] if "grey" in name else rgb), name


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_transparency_turns_white(kind: str) -> None:
    clear = np.dstack([scene(80, 64), np.zeros((64, 80), np.uint8)])
    clear[16:48, 16:48, 3] = 255
    pixels = stored(packed(clear, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (pixels[:8, :8] > 250).all()
    assert close(pixels[24:40, 24:40], scene(80, 64)[24:40, 24:40], 25)


def test_half_transparency_is_half_white() -> None:
    half = np.zeros((32, 32, 4), np.uint8)
    half[..., 3] = 128
    assert abs(int(stored(packed(half, "PNG"))[16, 16, 0]) - 127) <= 2


def test_palette_and_grey_with_a_transparent_colour_turn_white() -> None:
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([10, 200, 10, 200, 10, 10] + [0] * 762)
    palette.paste(0, (0, 0, 16, 32))
    pixels = stored(packed(palette, "PNG", transparency=0))
    assert (pixels[:, :8] > 245).all()
    assert abs(pixels[16, 24].astype(int) - (200, 10, 10)).max() < 12
    grey = Image.new("L", (32, 32), 40)
    assert (stored(packed(grey, "PNG", transparency=40)) > 250).all()


def test_what_is_no_image_is_type_whatever_it_calls_itself() -> None:
    svg = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'
    assert sniff(svg) == "image/svg+xml"
    for data in (
        svg,
        b"<!DOCTYPE html><html>",
        b"%PDF-1.7",
        b"plain text",
        b"BM is how this text begins",
        b"\0" * 99,
        b"",
    ):
        assert fault(data).status == "type"


def test_more_pixels_than_allowed_are_refused_before_they_are_decoded() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000))
    error = fault(bomb + png_chunk(b"IEND", b""))
    assert (error.status, error.size) == ("pixels", (60_000, 60_000))
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"):
        assert fault(packed(scene(101, 100), kind), 10_000).status == "pixels", kind
        assert to_jpeg(packed(scene(100, 100), kind), 64, 90, 10_000).width == 64


def test_pillows_own_limit_of_pixels_has_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("PNG", "WEBP", "GIF"):
        assert to_jpeg(packed(scene(100, 100), kind), 64, 90, LIMIT).width == 64


def test_a_side_that_no_jpeg_can_have_is_pixels() -> None:
    assert fault(packed(Image.new("L", (70_000, 2)), "PNG")).status == "pixels"


def test_a_jpeg_with_thousands_of_scans_is_refused_unread() -> None:
    data = packed(scene(64, 64), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    assert fault(data[:-2] + data[start:-2] * 200 + data[-2:]).status == "decode"


def test_random_damage_never_raises_anything_else() -> None:
    rng = np.random.default_rng(5)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"):
        whole = packed(scene(40, 30), kind)
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 6):
                data[place] = rng.integers(0, 256)
            with contextlib.suppress(ImageError):
                to_jpeg(bytes(data), 16, 90, 1_000_000)


def test_the_same_bytes_give_the_same_jpeg() -> None:
    data = packed(scene(900, 700), "JPEG")
    assert to_jpeg(data, 256, 95, LIMIT).jpeg == to_jpeg(data, 256, 95, LIMIT).jpeg
