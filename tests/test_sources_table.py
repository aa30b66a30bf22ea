"""Tables of URLs and captions, and the signatures that must not stay in them."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmdata import sources
from vlmdata.errors import DataError, InputError
from vlmdata.recipe import TableSource
from vlmdata.sources import strip_signature
from vlmdata.sources.urls import web_url

PAIRS = [("https://example.org/1.jpg", 'a "quoted", line'), ("https://example.org/2.jpg", "zwei\nZeilen")]


def source(path: object, **options: object) -> TableSource:
    return TableSource.model_validate({"kind": "table", "path": str(path), "caption": "TEXT", **options})


def rows(path: object, **options: object) -> list[dict[str, object]]:
    table = source(path, **options)
    sources.check(table)
    batches = list(sources.read(table, "."))
    assert all(batch.schema.equals(sources.ROWS) and batch.num_rows <= 5_000 for batch in batches)
    return pa.Table.from_batches(batches, sources.ROWS).to_pylist()


def written(form: str, folder: Path) -> Path:
    path = folder / f"pairs.{form}"
    if form.startswith("parquet"):
        columns = {"url": [u for u, _ in PAIRS], "n": [1, 2], "TEXT": [t for _, t in PAIRS]}
        pq.write_table(pa.table(columns), path)
        return path
    text = io.StringIO(newline="")
    if form.startswith("jsonl"):
        text.write("".join(json.dumps({"n": 1, "url": url, "TEXT": caption}) + "\n" for url, caption in PAIRS))
    else:
        table = csv.writer(text, delimiter="\t" if form.startswith("tsv") else ",")
        table.writerows([("n", "TEXT", "url"), *((1, caption, url) for url, caption in PAIRS)])
    data = text.getvalue().encode()
    if form.endswith(".gz"):
        data = gzip.compress(data)
    elif form.endswith(".zst"):
        data = pa.compress(data, codec="zstd", asbytes=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "form", ["parquet", "csv", "csv.gz", "csv.zst", "tsv", "tsv.gz", "jsonl", "jsonl.gz", "jsonl.zst"]
)
def test_every_format_gives_the_same_rows(form: str, tmp_path: Path) -> None:
    found = rows(written(form, tmp_path))
    assert [(row["url"], row["caption"]) for row in found] == [
        ("https://example.org/1.jpg", 'a "quoted", line'),
        ("https://example.org/2.jpg", "zwei Zeilen"),
    ]
    assert {row["caption_from"] for row in found} == {"TEXT"}
    assert {row["source"] for row in found} == {"table"}


def test_a_glob_is_read_in_the_order_of_names_and_in_batches(tmp_path: Path) -> None:
    for number in (2, 1):
        urls = [f"https://example.org/{number}/{row}.jpg" for row in range(6_000)]
        pq.write_table(pa.table({"url": urls, "TEXT": ["text"] * 6_000}), tmp_path / f"{number}.parquet")
    found = rows(tmp_path / "*.parquet")
    assert len(found) == 12_000
    assert found[0]["url"] == "https://example.org/1/0.jpg"
    assert found[-1]["url"] == "https://example.org/2/5999.jpg"


def test_signed_urls_keep_their_signature_in_fetch_url_alone(tmp_path: Path) -> None:
    signed = "https://bucket.example.org/a.jpg?w=9&X-Amz-Signature=5ecret&X-Amz-Date=1"
    pq.write_table(pa.table({"url": [signed], "TEXT": ["text"]}), tmp_path / "a.parquet")
    [row] = rows(tmp_path / "a.parquet")
    assert row["url"] == "https://bucket.example.org/a.jpg?w=9"
    assert row["fetch_url"] == signed
    assert "5ecret" not in str({**row, "fetch_url": None})


def test_bad_rows_are_left_aside_and_the_others_stay(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"url": "http://a/1", "TEXT": "caf\xe9\\u0000 \\ud83d"}\nnot json\n[1]\n{"url": null, "TEXT": "x"}\n'
        + b'{"url": "http://a/2", "TEXT": "  "}\n{"url": "http://a/3", "TEXT": 42}\n'
        + b"[" * 90_000
        + b"\n"
    )
    assert [(row["url"], row["caption"]) for row in rows(tmp_path / "a.jsonl")] == [
        ("http://a/1", "caf\ufffd \ufffd"),
        ("http://a/3", "42"),
    ]
    (tmp_path / "b.csv").write_bytes(b"url,TEXT\nhttp://a/1,o\x00ne\nshort\n,empty\nhttp://a/2,t\xffwo,three\n")
    assert [row["caption"] for row in rows(tmp_path / "b.csv")] == ["one", "t\ufffdwo"]


def test_text_that_is_not_utf8_in_parquet_is_mended(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\5\0\0\0"), pa.py_buffer(b"caf\xe9s"))
    coded = pa.array(["http://a/1"]).dictionary_encode()
    pq.write_table(pa.table({"url": coded, "TEXT": broken}), tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet")[0]["caption"] == "caf\ufffds"


@pytest.mark.parametrize("form", ["parquet", "csv.gz", "jsonl"])
def test_a_missing_column_is_refused_with_the_nearest_name(form: str, tmp_path: Path) -> None:
    path = written(form, tmp_path)
    with pytest.raises(InputError, match=r"table\.caption: .* no column 'TEXTS'; did you mean 'TEXT'\?"):
        sources.check(source(path, caption="TEXTS"))


def test_paths_that_cannot_be_tables_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"")
    pq.write_table(pa.table({"url": [["x"]], "TEXT": ["text"]}), tmp_path / "nested.parquet")
    for path, reason in {
        tmp_path / "no.csv": "matches no file",
        tmp_path / "*.csv": "matches no file",
        tmp_path: "matches no file",
        tmp_path / "a.xlsx": "told by its end",
        tmp_path / "nested.parquet": "the column 'url' holds list",
        "nosuch://x/a.csv": "nosuch",
    }.items():
        with pytest.raises(InputError, match=reason):
            sources.check(source(path))


@pytest.mark.parametrize("form", ["parquet", "csv.gz", "csv.zst"])
def test_a_corrupt_file_is_named(form: str, tmp_path: Path) -> None:
    path = written(form, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=path.name):
        list(sources.read(source(path), "."))


def test_a_line_without_an_end_is_refused_before_memory_is_full(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "bomb.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(17):
            file.write(b" " * 1_000_000)
    with pytest.raises(DataError, match="a line is longer"):
        list(sources.read(source(tmp_path / "bomb.jsonl.gz"), "."))


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("https://u:p@example.org/a?b=1", "https://example.org/a?b=1"),
        ("https://x/a.png?sv=2020&se=1&sp=r&sig=a%3D&w=1", "https://x/a.png?w=1"),
        ("https://x/a?Expires=1&Signature=2&Key-Pair-Id=3", "https://x/a"),
        ("https://x/a?GoogleAccessId=a&Expires=1&Signature=s", "https://x/a"),
        ("https://x/a?%58-Amz-Signature=1&b", "https://x/a?b"),
        ("https://x/a?X-Goog-Signature=1&X-Goog-Date=2", "https://x/a"),
        ("HTTP://x/a?access_token=1&q=c%20d&&e", "http://x/a?q=c%20d&&e"),
        ("https://x/a?_nc=1&oh=2&oe=3", "https://x/a?_nc=1"),
    ],
)
def test_what_gives_access_leaves_the_url(url: str, plain: str) -> None:
    assert strip_signature(url) == (plain, url)
    assert strip_signature(plain) == (plain, None)


@pytest.mark.parametrize(
    "url", ["https://x/a?expires=3&se=4&sp=5", "https://x/a@b.jpg", "pics:/a?b#c", "https://x/a?q=token"]
)
def test_a_url_without_a_signature_stays_as_it_is(url: str) -> None:
    assert strip_signature(url) == (url, None)


def test_a_fragment_is_no_part_of_a_url() -> None:
    assert strip_signature("https://x/a?b#access_token=1") == ("https://x/a?b", None)


@pytest.mark.parametrize(
    ("link", "url"),
    [
        ("HTTP://Example.ORG:80/a#b", "http://example.org/a"),
        ("a b.png", "https://h/x/a%20b.png"),
        ("//é.example/ü?ä=<1>", "https://xn--9ca.example/%C3%BC?%C3%A4=%3C1%3E"),
        ("../../../c%2Fd", "https://h/c%2Fd"),
        ("https://[::1]:8/", "https://[::1]:8/"),
        ("javascript:alert(1)", None),
        ("data:image/png;base64,AA", None),
        ("http://h:99999/", None),
        ("http://[::1/", None),
        ("http://good\\@evil/", None),
        ("http://a" + "b" * 5_000, None),
    ],
)
def test_links_become_urls_of_one_form(link: str, url: str | None) -> None:
    assert web_url(link, "https://h/x/y") == url
