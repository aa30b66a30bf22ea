"""What only the received file tells: transparency, animation, EXIF's orientation and date; no EXIF is fatal."""

import io
import json
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vlmdata.download.decode import as_it_is, to_jpeg
from vlmdata.download.header import Facts, exif_date
from vlmdata.sources.img2dataset import noted

TAKEN = "2019:05:01 12:30:00"
TAKEN_ISO = "2019-05-01T12:30:00"


def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, channels), np.uint8)
    return Image.fromarray(pixels.squeeze(), mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def facts(data: bytes) -> Facts:
    return to_jpeg(data, 32, 95, 10**6).facts


def with_exif(**values: object) -> Image.Exif:
    exif = Image.Exif()
    numbers = {"turn": 0x0112, "changed": 0x0132}
    for name, number in numbers.items():
        if name in values:
            exif[number] = values[name]
    exif.get_ifd(0x8769).update(
        {number: values[name] for name, number in {"taken": 0x9003, "digitised": 0x9004}.items() if name in values}
    )
    return exif


@pytest.mark.parametrize(
    ("data", "has_alpha"),
    [
        (encoded(picture(), "JPEG"), False),
        (encoded(picture(), "PNG"), False),
        (encoded(picture("RGBA"), "PNG"), True),
        (encoded(picture("LA"), "PNG"), True),
        (encoded(picture().quantize(8), "PNG", transparency=3), True),
        (encoded(picture().quantize(8), "GIF", transparency=3), True),
        (encoded(picture().quantize(8), "GIF"), False),
        (encoded(picture("RGBA"), "WEBP"), True),
        (encoded(picture(), "WEBP"), False),
        (encoded(picture(), "BMP"), False),
    ],
)
def test_transparency_is_seen(data: bytes, has_alpha: bool) -> None:
    assert facts(data) == Facts(has_alpha, False, None, None)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_an_animation_is_seen_its_first_frame_stored_and_a_tiffs_pages_are_none(kind: str) -> None:
    frames = [picture(seed=seed) for seed in range(3)]
    frames = [frame.quantize(64) for frame in frames] if kind == "GIF" else frames
    moving = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert facts(moving).animated is (kind != "TIFF")
    still = to_jpeg(encoded(frames[0], kind), 32, 95, 10**6)
    assert still.facts.animated is False
    assert kind in ("AVIF", "WEBP") or to_jpeg(moving, 32, 95, 10**6).jpeg == still.jpeg


def test_of_a_tiff_the_date_is_known_and_not_how_it_lay() -> None:
    # Pillow has turned it before anybody can ask
    assert facts(encoded(picture(), "TIFF", exif=with_exif(turn=6, changed=TAKEN)))[2:] == (None, TAKEN_ISO)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_exif_is_read_of_every_other_kind(kind: str) -> None:
    found = facts(encoded(picture(), kind, exif=with_exif(turn=6, taken=TAKEN, changed="2020:01:01 00:00:00")))
    assert found[2:] == (6, "2019-05-01T12:30:00")


def test_the_date_is_that_of_taking_else_of_digitising_else_of_change() -> None:
    dates = {"taken": "2001:01:01 00:00:00", "digitised": "2002:01:01 00:00:00", "changed": "2003:01:01 00:00:00"}
    for year, name in zip((2001, 2002, 2003), list(dates), strict=True):
        assert facts(encoded(picture(), "JPEG", exif=with_exif(**dates))).exif_date == f"{year}-01-01T00:00:00"
        dates[name] = "0000:00:00 00:00:00"


def test_an_image_that_is_stored_as_it_is_has_its_facts_too() -> None:
    kept = as_it_is(encoded(picture(), "JPEG", exif=with_exif(turn=1, taken=TAKEN)), 100, 10**6)
    assert kept is not None
    assert kept.facts == Facts(False, False, 1, "2019-05-01T12:30:00")
    assert as_it_is(encoded(picture(), "JPEG", exif=with_exif(turn=6)), 100, 10**6) is None


def hostile(tiff: bytes) -> bytes:
    """A sound JPEG with these bytes as its EXIF."""
    jpeg = encoded(picture(), "JPEG")
    segment = b"Exif\0\0" + tiff[:65_000]
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def entry(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHII", tag, kind, count, value)


ITSELF = b"II*\0\x08\0\0\0" + struct.pack("<H", 2) + entry(0x8769, 4, 1, 8) + entry(0x0112, 3, 1, 9) + b"\x08\0\0\0"


@settings(max_examples=40, deadline=None)
@example(ITSELF)  # its details are itself, and its next folder too
@example(b"II*\0\x08\0\0\0" + struct.pack("<H", 65_535) + entry(0x9003, 2, 2**32 - 1, 8) * 5_000)
@example(b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry(0x0112, 2, 2**31, 8))
@example(b"MM\0*" + b"\xff" * 65_000)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.builds(
                entry,
                st.sampled_from([0x0112, 0x0132, 0x8769, 0x9003, 0x9004, 0x8825, 0x927C]),
                st.integers(0, 20),
                st.integers(0, 2**32 - 1),
                st.integers(0, 2**32 - 1),
            ),
            max_size=8,
        ).map(lambda entries: b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries)),
    )
)
def test_no_exif_whatever_spoils_a_picture(tiff: bytes) -> None:
    found = to_jpeg(hostile(tiff), 32, 95, 10**6)
    assert sorted((found.width, found.height)) == [32, 48]
    assert found.facts.exif_orientation in (None, *range(1, 9))
    assert found.facts.exif_date is None or exif_date(found.facts.exif_date) == found.facts.exif_date


def test_an_exif_that_is_cut_off_is_none() -> None:
    jpeg = encoded(picture(), "JPEG", exif=with_exif(turn=6, taken=TAKEN))
    tiff = jpeg[jpeg.index(b"Exif\0\0") + 6 :]
    for length in range(0, 60, 3):
        assert to_jpeg(hostile(tiff[:length]), 32, 95, 10**6).facts[:2] == (False, False)


@pytest.mark.parametrize(
    ("value", "date"),
    [
        (TAKEN, "2019-05-01T12:30:00"), ("2019-05-01T12:30:00", "2019-05-01T12:30:00"),
        ("2019:05:01 12:30:00.25+02:00", "2019-05-01T12:30:00"), ("2019:02:30 12:30:00", None),
        ("0000:00:00 00:00:00", None), ("2019:05:01", None), ("", None), (None, None), (b"2019", None),
        (20190501, None),
        ("٢٠١٩:05:01 12:30:00", None),
    ],
)  # fmt: skip
def test_a_date_is_a_day_of_the_calendar_or_none(value: object, date: str | None) -> None:
    assert exif_date(value) == date


@pytest.mark.parametrize(
    ("exif", "expected"),
    [
        (json.dumps({"Image Orientation": "Rotated 90 CW", "EXIF DateTimeOriginal": TAKEN}), (6, TAKEN_ISO)),
        (json.dumps({"Image Orientation": "Horizontal (normal)", "Image DateTime": TAKEN}), (1, "2019-05-01T12:30:00")),
        (json.dumps({"Image Orientation": ["Rotated 180"], "Image DateTime": 7}), (None, None)),
        ("{}", (None, None)), ("[1]", (None, None)), ("{", (None, None)), ("[" * 100_000, (None, None)),
        (None, (None, None)), (5, (None, None)),
    ],
)  # fmt: skip
def test_img2datasets_exif_is_read(exif: object, expected: tuple[int | None, str | None]) -> None:
    assert noted(exif) == expected
