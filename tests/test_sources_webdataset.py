"""WebDataset tars and img2dataset's output as a source."""

import io
import json
import os
import tarfile

import img2dataset_folder
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmdata import sources
from vlmdata.download.stored import parse
from vlmdata.errors import InputError
from vlmdata.recipe import WebdatasetSource
from vlmdata.sources.img2dataset import outcome


def make(path, *files):
    """A tar of (name, bytes, text or JSON)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            data = content if isinstance(content, bytes) else content.encode() if isinstance(content, str) else None
            data = json.dumps(content).encode() if data is None else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def rows(path, **options):
    source = WebdatasetSource.model_validate({"kind": "webdataset", "name": "wds", "path": str(path), **options})
    sources.check(source)
    schema = pa.schema([*sources.ROWS, *sources.signals(source)])
    return pa.Table.from_batches(list(sources.read(source, str(path))), schema).to_pylist()


def stored_bytes(folder, row):
    file, _, _ = row["fetch_url"].partition("#")
    place = parse(row["fetch_url"])
    with open(folder / file.removeprefix("wds:/"), "rb") as handle:
        handle.seek(place.offset)
        return handle.read(place.length)


def test_members_of_one_name_are_a_pair_whose_image_stays_where_it_is(tmp_path):
    make(tmp_path / "b.tar", ("1.jpg", b"one"), ("1.txt", " first \0 one"), ("1.json", {"caption": "not this"}))
    make(
        tmp_path / "a.tar",
        ("x/1.seg.png", b"mask"), ("x/1.jpg", b"two"), ("x/1.json", {"caption": "second", "url": "https://h/i.jpg?sig=x"}),
        ("x/2.png", b"three"), ("x/2.cls", "7"), ("x/2.json", {"text": "third", "license": "CC0", "uid": "u3"}),
        ("silent.jpg", b"no caption"), ("alone.txt", "no image"),
    )  # fmt: skip
    found = rows(tmp_path, keep=[])
    assert [(row["url"], row["caption"], row["caption_from"], row["license"], row["source_id"]) for row in found] == [
        ("https://h/i.jpg", "second", "caption", None, None),
        ("wds:/a.tar/x/2.png", "third", "text", "CC0", "u3"),
        ("wds:/b.tar/1.jpg", "first one", "file:txt", None, None),
    ]
    assert [stored_bytes(tmp_path, row) for row in found] == [b"two", b"three", b"one"]
    assert "sig" not in str(found)


def test_names_that_lead_elsewhere_are_names_alone(tmp_path):
    names = ["../up.jpg", "/abs.jpg", "a b%20#?\n.jpg", "é.jpg"]
    make(tmp_path / "t.tar", *[entry for n in names for entry in ((n, n.encode()), (n[:-3] + "txt", "some words"))])
    found = rows(tmp_path / "*.tar")
    assert [row["fetch_url"].partition("#")[0] for row in found] == ["wds:/t.tar"] * 4
    assert [stored_bytes(tmp_path, row).decode() for row in found] == names
    assert found[2]["url"] == "wds:/t.tar/a%20b%2520%23%3F%0A.jpg"


def test_scalars_of_the_json_are_signals_of_one_type(tmp_path):
    def sample(number, **about):
        return (f"{number}.jpg", b"x"), (f"{number}.json", {"caption": f"number {number}", **about})

    samples = [
        sample(n, score=n, big=2**64 - 1, ok=True, lang="en", none=None, nested=[1], mixed=n, id=n) for n in (0, 1)
    ]
    samples += [sample(2, score=0.5, big=-1, ok=1, lang=5, none=3, mixed="text", later=1), sample(3)]
    make(tmp_path / "t.tar", *[entry for pair in samples for entry in pair])
    found = rows(tmp_path)
    names = [name for name in found[0] if name.startswith("source_") and name != "source_id"]
    assert names == ["source_score", "source_none", "source_later"]  # the others are of several types
    assert [row["source_score"] for row in found] == [0.0, 1.0, 0.5, None]
    assert [row["source_id"] for row in found] == ["0", "1", None, None]
    make(tmp_path / "t.tar", *samples[0], *samples[1])
    found = rows(tmp_path, keep=["big", "lang"])
    assert [(row["source_big"], row["source_lang"]) for row in found] == [(2**64 - 1, "en")] * 2
    with pytest.raises(InputError, match="no 'lnag'; did you mean 'lang'"):
        rows(tmp_path, keep=["lnag"])


def test_signatures_reach_no_signal(tmp_path):
    about = {"caption": "c", "page": "https://user:pw@h/p?a=1&X-Amz-Signature=abc", "source_page2": "plain"}
    make(tmp_path / "t.tar", ("1.jpg", b"x"), ("1.json", about))
    (row,) = rows(tmp_path)
    assert (row["source_page"], row["source_page2"]) == ("https://h/p?a=1", "plain")


def test_a_value_of_another_type_behind_the_first_thousand_is_null_and_counted(tmp_path, caplog):
    samples = [
        ((f"{n}.jpg", b"x"), (f"{n}.json", {"caption": "c", "n": n if n < 1000 else "many"})) for n in range(1002)
    ]
    make(tmp_path / "t.tar", *[entry for pair in samples for entry in pair])
    values = [row["source_n"] for row in rows(tmp_path)]
    assert values == [*range(1000), None, None]
    assert "2 values of 'n' are not int64" in caplog.text


def test_a_broken_tar_gives_what_is_before_the_break_and_is_told(tmp_path, caplog):
    path = make(
        tmp_path / "t.tar", *[entry for n in range(5) for entry in ((f"{n}.jpg", b"x" * 600), (f"{n}.txt", "c"))]
    )
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    found = rows(tmp_path)
    assert 0 < len(found) < 5
    assert "t.tar: it ends at byte" in caplog.text


def test_hostile_json_costs_its_sample_only(tmp_path):
    bad = [
        "[" * 100_000,
        "{",
        "9" * 10_000,
        '{"caption": {"a": 1}}',
        '{"caption": "half \\ud83d", "url": 5, "sha256": "x"}',
    ]
    bad += ['{"caption": "long", "pad": "' + "x" * 1_100_000 + '"}']
    make(
        tmp_path / "t.tar",
        *[entry for n, text in enumerate(bad) for entry in ((f"{n}.jpg", b"x"), (f"{n}.json", text))],
    )
    (row,) = rows(tmp_path)
    assert row["caption"] == "half \ufffd"
    assert row["expected_hash"] is None


def test_what_cannot_be_a_source_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in/t.tar", ("a.jpg", b"x"), ("a.txt", "words"))
    (tmp_path / "root").mkdir()
    with pytest.raises(InputError, match=r"matches no \.tar"):
        rows(tmp_path / "root")
    (tmp_path / "root/t.tar").symlink_to(tmp_path / "in/t.tar")
    with pytest.raises(InputError, match="leads out"):
        rows(tmp_path / "root")
    os.unlink(tmp_path / "root/t.tar")
    make(tmp_path / "root/t.tar", ("a.jpg", b"x"))
    (tmp_path / "root/t.parquet").symlink_to(__file__)
    with pytest.raises(InputError, match=r"'t\.parquet' is a link that leads out"):
        rows(tmp_path / "root")
    os.unlink(tmp_path / "root/t.parquet")
    with pytest.raises(InputError, match="has a caption"):
        rows(tmp_path / "root")
    os.mkfifo(tmp_path / "root/pipe.tar")
    (tmp_path / "root/t.tar").unlink()
    with pytest.raises(InputError, match=r"matches no \.tar"):
        rows(tmp_path / "root")
    with pytest.raises(InputError, match=r"matches no \.tar"):
        rows(tmp_path / "none/*.tar")
    assert len(rows(tmp_path / "in/t.tar")) == 1
    assert len(rows(tmp_path / "**/t.tar")) == 1


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("img2dataset") / "output"
    img2dataset_folder.make(folder)
    return folder


def copied(output, tmp_path):
    for path in output.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_img2datasets_parquet_gives_every_row_its_outcome(output):
    found = rows(output)
    places = [parse(row["fetch_url"]) for row in found]
    assert len(found) == 34
    assert [place.status for place in places].count("success") == 24
    table = pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("*.parquet"))]).to_pylist()
    for row, place, theirs in zip(found, places, table, strict=True):
        assert (row["caption"], row["source_id"]) == (theirs["caption"], theirs["key"])
        assert row["source_similarity"] == theirs["similarity"]
        assert row["source_nsfw"] == "UNLIKELY"
        assert place.original == ((200, 150) if place.status == "success" else None)
        assert place.sha256 == theirs["sha256"]
        assert row["expected_hash"] == (f"sha256:{theirs['sha256']}" if theirs["sha256"] else None)
    assert {name for name in found[0] if name.startswith("source_")} == {
        "source_id",
        "source_similarity",
        "source_nsfw",
    }
    secret = next(row for row in found if row["url"].startswith("ftp"))
    assert parse(secret["fetch_url"]).error == "img2dataset: <urlopen error unknown url type"


def test_rows_and_images_that_do_not_meet_are_told_and_not_lost(output, tmp_path, caplog):
    folder = copied(output, tmp_path)
    table = pq.read_table(folder / "00000.parquet")
    pq.write_table(table.slice(3), folder / "00000.parquet")
    data = (folder / "00001.tar").read_bytes()
    (folder / "00001.tar").write_bytes(data[: len(data) // 2])
    found = rows(folder)
    assert len(found) == 34
    statuses = [parse(row["fetch_url"]).status for row in found]
    assert 3 < statuses.count("connect") < 12  # images behind the break
    assert statuses.count("success") + statuses.count("connect") == 24
    assert "3 samples without a row" in caplog.text


def test_a_parquet_file_cut_off_leaves_the_tar_to_speak(output, tmp_path, caplog):
    folder = copied(output, tmp_path)
    (folder / "00001.parquet").write_bytes((folder / "00001.parquet").read_bytes()[:500])
    assert len(rows(folder)) == 17 + 12
    assert "00001.parquet is not whole" in caplog.text


def test_img2datasets_folders_of_files_are_read_too(tmp_path):
    img2dataset_folder.make(tmp_path / "out", shards=1, writer="FilesSampleWriter")
    found = rows(tmp_path / "out")
    assert len(found) == 17
    good = [row for row in found if parse(row["fetch_url"]).status == "success"]
    assert len(good) == 12
    assert {row["fetch_url"].partition("#")[0] for row in good} == {
        f"wds:/00000/{path.name}" for path in (tmp_path / "out/00000").glob("*.jpg")
    }


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("success", None, "success"),
        ("failed_to_download", "HTTP Error 404: Not Found", "4xx"),
        ("failed_to_download", "HTTP Error 302: The HTTP server returned a redirect error that would lead to", "4xx"),
        ("failed_to_download", "HTTP Error 504: Gateway Time-out", "5xx"),
        ("failed_to_download", "<urlopen error timed out>", "timeout"),
        ("failed_to_download", "The read operation timed out", "timeout"),
        ("failed_to_download", "<urlopen error [Errno 110] Connection timed out>", "timeout"),
        ("failed_to_download", "<urlopen error _ssl.c:989: The handshake operation timed out>", "timeout"),
        ("failed_to_download", "<urlopen error [Errno -2] Name or service not known>", "dns"),
        ("failed_to_download", "<urlopen error [Errno -3] Temporary failure in name resolution>", "dns"),
        ("failed_to_download", "<urlopen error [Errno -5] No address associated with hostname>", "dns"),
        ("failed_to_download", "encoding with 'idna' codec failed (UnicodeError: label empty or too long)", "dns"),
        ("failed_to_download", "<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls"),
        ("failed_to_download", "<urlopen error [SSL: SSLV3_ALERT_HANDSHAKE_FAILURE] sslv3 alert (_ssl.c:997)>", "tls"),
        ("failed_to_download", "<urlopen error [Errno 111] Connection refused>", "connect"),
        ("failed_to_download", "IncompleteRead(13 bytes read, 9 more expected)", "connect"),
        ("failed_to_download", "Remote end closed connection without response", "connect"),
        ("failed_to_download", "<urlopen error no host given>", "blocked"),
        ("failed_to_download", "URL can't contain control characters. '/a b?token=s' (found at least ' ')", "blocked"),
        ("failed_to_download", "nonnumeric port: 'secret@h'", "blocked"),
        ("failed_to_download", "Use of image disallowed by X-Robots-Tag directive", "robots"),
        ("failed_to_download", "hash mismatch", "hash_mismatch"),
        ("failed_to_download", None, "connect"),
        ("failed_to_resize", "Image decoding error", "decode"),
        ("failed_to_resize", "image too small", "pixels"),
        ("failed_to_resize", "aspect ratio too large", "pixels"),
        ("failed_to_resize", "OpenCV(4.14.0) resize.cpp:4208: error: (-215:Assertion failed)", "decode"),
    ],
)
def test_img2datasets_words_become_error_classes(status, message, kind):
    found, words = outcome(status, message)
    assert found == kind
    assert "token" not in str(words)
    assert "secret" not in str(words)
