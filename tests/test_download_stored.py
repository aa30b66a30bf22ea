"""Images that a source holds already are stored as they are, and only a source's own rows can name its files."""

import hashlib
import io

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hostile import send, serve
from PIL import Image

from vlmdata.download import Terms, download_part
from vlmdata.download.stored import Stored, find, forget_failures, local_url, parse, stored_url
from vlmdata.recipe import Consent, Download
from vlmdata.schemas import table_schema

PIXELS = cv2.resize(np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8), (120, 90))


def encoded(kind="JPEG", mode="RGB", **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(exif=exif)


def row(url, source="wds", fetch_url=None, **more):
    uid = hashlib.md5(f"{url}{source}{fetch_url}".encode()).hexdigest()
    return {"uid": uid, "url": url, "fetch_url": fetch_url, "caption": "c", "captions": ["c"], "source": source,
            "caption_from": "txt", "occurrences": 1, **more}  # fmt: skip


def download(tmp_path, rows, roots, **options):
    pairs = pa.Table.from_pylist(rows, table_schema("pairs"))
    tar = tmp_path / "out.tar"
    images, observations = download_part(
        pairs,
        tar,
        "out.tar",
        Terms(Download(**{"size": 100, **options}), Consent(), {k: str(v) for k, v in roots.items()}),
    )
    assert observations["fetched_at"].null_count == len(rows) or any(r["source"] != "wds" for r in rows)
    return images.to_pylist(), tar.read_bytes()


def packed(tmp_path, *images):
    """A file with these bytes one behind the other, and the fetch_url of each."""
    (tmp_path / "root").mkdir(exist_ok=True)
    (tmp_path / "root/t.tar").write_bytes(b"".join(images))
    ends = np.cumsum([0, *map(len, images)]).tolist()
    return [
        stored_url("wds", "t.tar", Stored(start, len(image), original=(640, 480), sha256="ab" * 32))
        for start, image in zip(ends, images, strict=False)
    ]


def test_a_sound_jpeg_is_stored_byte_for_byte_and_anything_else_as_usual(tmp_path):
    kept = [encoded(), encoded(quality=30), encoded(mode="L"), encoded(progressive=True), encoded(subsampling=0)]
    anew = [encoded("PNG"), encoded("WEBP"), encoded(mode="CMYK"), turned()]
    broken = [encoded()[:1500], b"", b"text", encoded()[:300]]
    urls = packed(tmp_path, *kept, *anew, *broken)
    rows = [row(f"https://h/{n}", fetch_url=url) for n, url in enumerate(urls)]
    images, data = download(tmp_path, rows, {"wds": tmp_path / "root"})
    statuses = [image["download_status"] for image in images]
    assert statuses == ["success"] * 9 + ["decode", "type", "type", "decode"]
    stored = [data[image["offset"] :][: image["length"]] for image in images[:9]]
    assert stored[:5] == kept
    assert not set(stored[5:]) & set(anew)
    assert all(image["sha256"] == "ab" * 32 for image in images if image["download_status"] == "success")
    assert [(image["width"], image["height"]) for image in images[:9]] == [(120, 90)] * 8 + [(90, 120)]
    assert {(image["original_width"], image["original_height"]) for image in images[:9]} == {(640, 480)}


def test_a_larger_jpeg_is_made_smaller_and_limits_hold(tmp_path):
    (url,) = packed(tmp_path, encoded())
    rows = [row("https://h/a", fetch_url=url)]
    (image,), _ = download(tmp_path, rows, {"wds": tmp_path / "root"}, size=45)
    assert (image["width"], image["height"], image["original_width"]) == (60, 45, 640)
    (image,), _ = download(tmp_path, rows, {"wds": tmp_path / "root"}, max_pixels=10_000)
    assert image["download_status"] == "pixels"
    (image,), _ = download(tmp_path, rows, {"wds": tmp_path / "root"}, max_bytes=1000)
    assert image["download_status"] == "too_large"


def test_rows_of_another_source_cannot_name_a_sources_files(tmp_path):
    jpeg = encoded()
    (url,) = packed(tmp_path, jpeg)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(jpeg)
    roots = {"wds": tmp_path / "root", "photos": tmp_path / "photos"}
    rows = [
        row("photos:/a.jpg", "photos"),
        row("photos:/a.jpg", "list"),
        row("https://127.0.0.1:1/a", "list", fetch_url=url),
        row(url, "list"),
        row("wds:/t.tar/a.jpg", "photos", fetch_url=url),
        row("photos:/a.jpg", "wds", fetch_url=url),
        row("photos:/a.jpg", "wds"),
    ]
    images, _ = download(tmp_path, rows, roots)
    assert [image["download_status"] for image in images] == [
        "success", "blocked", "blocked", "blocked", "blocked", "success", "success"
    ]  # fmt: skip
    assert images[5]["stored_key"] == rows[5]["uid"]  # by its own tar, not by the other source's file


@pytest.mark.parametrize(
    ("path", "stored", "status"),
    [
        ("../secret.jpg", Stored(0, 10), "blocked"),
        ("/etc/hostname", Stored(0, 4), "blocked"),
        ("link.tar", Stored(0, 10), "blocked"),
        ("t.tar", Stored(10**9, 10), "connect"),
        ("t.tar", Stored(0, 10**6), "connect"),
        ("t.tar", Stored(0, 10**12), "too_large"),
        ("none.tar", Stored(0, 10), "4xx"),
        ("t.tar", Stored(status="dns", error="img2dataset: no name"), "dns"),
    ],
)
def test_a_place_that_is_not_in_the_sources_folder_gives_nothing(tmp_path, path, stored, status):
    packed(tmp_path, encoded())
    (tmp_path / "secret.jpg").write_bytes(encoded())
    (tmp_path / "root/link.tar").symlink_to(tmp_path / "secret.jpg")
    (image,), _ = download(
        tmp_path, [row("https://h/a", fetch_url=stored_url("wds", path, stored))], {"wds": tmp_path / "root"}
    )
    assert image["download_status"] == status
    assert image["length"] is None


def test_one_stored_image_serves_all_rows_of_its_url_and_source(tmp_path):
    (url,) = packed(tmp_path, encoded())
    failed = stored_url("wds", "t.tar", Stored(status="timeout", error="late"))
    rows = [row("https://h/a"), row("https://h/a", fetch_url=failed), row("https://h/a", fetch_url=url)]
    images, _ = download(tmp_path, rows, {"wds": tmp_path / "root"})
    assert [image["download_status"] for image in images] == ["success"] * 3
    assert {image["stored_key"] for image in images} == {rows[0]["uid"]}


@pytest.mark.parametrize("tars_first", [True, False])
def test_a_tar_says_nothing_of_another_sources_url(tmp_path, tars_first):
    """Neither its pixels nor its failures: the other row is asked for at its host, whose words on consent count."""
    (url,) = packed(tmp_path, encoded())
    failed = stored_url("wds", "t.tar", Stored(status="timeout", error="late"))
    theirs = send(encoded("PNG"), X_Robots_Tag="noai")
    with serve({"/a": theirs, "/b": send(encoded("PNG"))}) as site:
        tars = [row(site.url("/a"), fetch_url=url), row(site.url("/b"), fetch_url=failed)]
        listed = [row(site.url(path), "laion") for path in ("/a", "/b")]
        rows = [*tars, *listed] if tars_first else [*listed, *tars]
        images, _ = download(tmp_path, rows, {"wds": tmp_path / "root"}, allow_hosts=[site.host])
        asked = [path for path, _ in site.seen if path in ("/a", "/b")]
    found = {(r["source"], r["url"][-1]): image for r, image in zip(rows, images, strict=True)}
    assert {key: image["download_status"] for key, image in found.items()} == {
        ("wds", "a"): "success", ("wds", "b"): "timeout", ("laion", "a"): "noai", ("laion", "b"): "success",
    }  # fmt: skip
    assert found["laion", "a"]["consent"]["noai"] == "deny"
    assert found["laion", "b"]["consent"]["robots"] == "allow"
    assert sorted(asked) == ["/a", "/b"]


def test_what_is_written_is_read_again():
    for stored in (
        Stored(),
        Stored(5, 7, "ab" * 32, (1, 2)),
        Stored(5, 7, exif_orientation=6, exif_date="2019-05-01T12:30:00"),
        Stored(status="4xx", error="a & b=ü #", fetch_url="h?sig=x&b"),
    ):
        url = stored_url("wds", "ä b/#t?.tar", stored)
        assert parse(url) == stored
        assert find("wds", url, {"wds": "/x"}) == stored
        assert find("other", url, {"wds": "/x", "other": "/y"}) is None
        assert url.startswith(local_url("wds", "ä b/#t?.tar") + "#")


def test_failures_are_forgotten_for_another_try():
    failed = stored_url("wds", "t", Stored(status="timeout", error="late", fetch_url="https://h/a?sig=x"))
    rows = [row("https://h/a", fetch_url=failed), row("https://h/b", fetch_url=stored_url("wds", "t", Stored(1, 2)))]
    rows += [row("https://h/c", "list", fetch_url="https://h/c?sig=y"), row("https://h/d", "list", fetch_url=failed)]
    urls = forget_failures(pa.Table.from_pylist(rows, table_schema("pairs")))["fetch_url"].to_pylist()
    assert urls == ["https://h/a?sig=x", rows[1]["fetch_url"], "https://h/c?sig=y", failed]


def test_the_file_received_once_is_known_by_what_the_source_noted_or_by_its_own_bytes(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x0132] = 1, "2019:05:01 12:30:00"
    image = encoded(exif=exif)
    (tmp_path / "root").mkdir()
    (tmp_path / "root/t.tar").write_bytes(image)
    here = hashlib.sha256(image).hexdigest()
    noted = {"exif_orientation": 6, "exif_date": "2001-01-01T00:00:00"}
    places = [
        Stored(0, len(image), original=(640, 480), **noted),  # encoded anew since
        Stored(0, len(image), original=(640, 480), sha256="ab" * 32),
        Stored(0, len(image), original=(640, 480), sha256=here, **noted),
        Stored(0, len(image)),
    ]
    rows = [row(f"https://h/{n}", fetch_url=stored_url("wds", "t.tar", place)) for n, place in enumerate(places)]
    images, _ = download(tmp_path, rows, {"wds": tmp_path / "root"})
    found = [[image[name] for name in ("has_alpha", "animated", "exif_orientation", "exif_date")] for image in images]
    received = [False, False, 1, "2019-05-01T12:30:00"]
    assert found == [[None, None, 6, "2001-01-01T00:00:00"], [None] * 4, received, received]
