"""Tables of URLs and captions, and the signatures that must not stay in them."""

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
import re
import tracemalloc
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import serve
from hypothesis import given
from hypothesis import strategies as st

from vlmdata import sources
from vlmdata.dataset import Dataset
from vlmdata.download import lists
from vlmdata.download.optout import parse
from vlmdata.errors import DataError, InputError
from vlmdata.recipe import CommonCrawlSource, TableSource
from vlmdata.sources import clean_text, commoncrawl, strip_signature
from vlmdata.sources.columns import clean_texts, strip_signatures
from vlmdata.sources.files import find, literal
from vlmdata.sources.table import READERS
from vlmdata.sources.urls import web_url

PAIRS = [("https://example.org/1.jpg", 'a "quoted", line'), ("https://example.org/2.jpg", "zwei\nZeilen")]


def source(path: object, **options: object) -> TableSource:
    return TableSource.model_validate({"kind": "table", "path": str(path), "caption": "TEXT", **options})


def rows(path: object, **options: object) -> list[dict[str, object]]:
    table = source(path, **options)
    sources.check(table)
    batches = list(sources.read(table, "."))
    schema = pa.schema([*sources.ROWS, *sources.signals(table)])
    assert all(batch.schema.equals(schema) and batch.num_rows <= 5_000 for batch in batches)
    return pa.Table.from_batches(batches, schema).to_pylist()


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
        (
            "https://cdn.discordapp.com/attachments/1/2/a.png?ex=65a&is=65b&hm=c0&w=9",
            "https://cdn.discordapp.com/attachments/1/2/a.png?w=9",
        ),
        (
            "https://x/maps/api/staticmap?center=1,2&key=AIzaSy0&size=9x9",
            "https://x/maps/api/staticmap?center=1,2&size=9x9",
        ),
        ("https://x/a?key=%41IzaSy0", "https://x/a"),
        (
            "https://x/a?q-sign-algorithm=sha1&q-ak=A&q-sign-time=1;2&q-key-time=1;2&q-header-list=&q-url-param-list=&q-signature=f&x=1",
            "https://x/a?x=1",
        ),
        ("https://x/a?AccessKeyId=A&Expires=1&Signature=s&v=2", "https://x/a?v=2"),
        ("https://x/a;jsessionid=0A1.n1/b;v=2?c=1", "https://x/a/b;v=2?c=1"),
        ("https://x/a;JSESSIONID=0A1", "https://x/a"),
        ("https://x/a?auth_key=1-0-0-f", "https://x/a"),
        ("https://x/a?sign=1&access_key=2&client_secret=3&auth=4&authorization=5&pwd=6&b=7", "https://x/a?b=7"),
    ],
)
def test_what_gives_access_leaves_the_url(url: str, plain: str) -> None:
    assert strip_signature(url) == (plain, url)
    assert strip_signature(plain) == (plain, None)
    both = strip_signatures(pa.array([url, None, plain]))
    assert [column.to_pylist() for column in both] == [[plain, None, plain], [url, None, None]]


@pytest.mark.parametrize(
    "url",
    [
        "https://x/a?ex=1&is=2",
        "https://x/a?hm=1",
        "https://x/a?key=value&AccessKeyId=1",
        "https://x/a;v=1/b?design=2",
        "https://x/a?expires=3&se=4&sp=5",
        "https://x/a@b.jpg",
        "pics:/a?b#c",
        "https://x/a?q=token",
    ],
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


def packed(data: bytes, name: str) -> bytes:
    end = name.rpartition(".")[2]
    if end == "zst":
        return pa.compress(data, codec="zstd", asbytes=True)
    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(end, lambda plain: plain)(data)


@pytest.mark.parametrize("end", ["", ".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("form", ["parquet", "csv", "tsv", "json", "jsonl", "txt"])
def test_every_format_may_be_packed_in_every_way(form: str, end: str, tmp_path: Path) -> None:
    if form == "json":
        data = json.dumps([{"url": url, "TEXT": caption} for url, caption in PAIRS]).encode()
    elif form == "txt":
        data = "".join(f"{url}\t{' '.join(caption.split())}\n" for url, caption in PAIRS).encode()
    else:
        data = written(form, tmp_path).read_bytes()
    path = tmp_path / f"packed.{form}{end}"
    path.write_bytes(packed(data, path.name))
    found = rows(path, caption="caption" if form == "txt" else "TEXT")
    assert [(row["url"], row["caption"]) for row in found] == [
        ("https://example.org/1.jpg", 'a "quoted", line'),
        ("https://example.org/2.jpg", "zwei Zeilen"),
    ]


def test_any_fsspec_url_is_read() -> None:
    memory = fsspec.filesystem("memory")
    with memory.open("/lists/a.csv.gz", "wb") as file:
        file.write(gzip.compress(b"url,TEXT\nhttp://a/1,one\n"))
    try:
        assert [row["caption"] for row in rows("memory://lists/*.csv.gz")] == ["one"]
    finally:
        memory.rm("/lists", recursive=True)


def test_a_url_with_a_query_is_one_file_whose_form_its_path_tells(tmp_path: Path) -> None:
    bodies = {name: written(name.partition(".")[2], tmp_path).read_bytes() for name in ("l.csv", "l.parquet")}
    routes = {
        f"/{name}?download=true&Signature=5ecret": lambda wire, body=body: wire.answer(body)
        for name, body in bodies.items()
    }
    with serve(routes | {"/shut.csv?Signature=5ecret": lambda wire: wire.answer(b"", "403 Forbidden")}) as site:
        for path in list(routes):
            assert len(rows(site.url(path))) == 2
        for wrong, reason in {
            "/l.html": "told by its end",
            "/no.csv": "cannot be read",
            "/shut.csv": "cannot be read",
        }.items():
            with pytest.raises((InputError, DataError), match=reason) as caught:
                rows(site.url(f"{wrong}?Signature=5ecret"))
            assert "5ecret" not in str(caught.value)


def test_a_list_at_a_signed_url_is_found_by_every_reader_of_lists(tmp_path: Path) -> None:
    """The opt-out lists and Common Crawl's listings, too."""
    optout = "/optout.csv?Signature=5ecret"
    listing = "/warc.paths.gz?Signature=5ecret"
    with serve(
        {
            optout: lambda wire: wire.answer(b"https://x.example/a.jpg,takedown\n"),
            listing: lambda wire: wire.answer(gzip.compress(b"https://x.example/a.warc.gz\n")),
        }
    ) as site:
        crawl = CommonCrawlSource(kind="commoncrawl", paths=[site.url(listing)], format="warc")
        assert commoncrawl.files(crawl) == ["https://x.example/a.warc.gz"]
        found = lists.find([site.url(optout)], "consent.optout")
        with pytest.raises(InputError, match=r"optout\.csv, line 1: 2 values") as caught:
            lists.prepare(Dataset(str(tmp_path)), "optout", found, parse, lists.digest(found))
        gone = lists.find([site.url("/gone.csv?Signature=5ecret")], "consent.optout")
        with pytest.raises(InputError, match=r"gone\.csv: cannot be read") as absent:
            lists.digest(gone)
        assert "5ecret" not in f"{caught.value} {absent.value}"


@pytest.mark.parametrize("name", ["[12]", "a*b?[!c]", "**", "[[x]"])
def test_a_literal_path_means_itself_whatever_signs_it_has(name: str, tmp_path: Path) -> None:
    for folder in (name, "1", "aXbYd"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.csv").write_text("")
    path = str(tmp_path / name / "a.csv")
    assert [found for _, found in find(literal(path), "x")] == [path]


@pytest.mark.parametrize(
    "text",
    [
        '[{"url": "http://a/1", "TEXT": "one", "x": [1, {"y": 2}]}, {"TEXT": "two", "url": "http://a/2"}, 7]',
        '{"info": {"n": [2]}, "notes": [], "rows": [{"url": "http://a/1", "TEXT": "one"}, '
        '{"url": "http://a/2", "TEXT": "two"}]}',
        '{"TEXT": ["one", "two"], "n": [1, 2], "url": ["http://a/1", "http://a/2"]}',
        '{"url": "http://a/1", "TEXT": "one", "x": [1]}\n{"url": "http://a/2", "TEXT": "two"}\n',
    ],
    ids=["array", "member", "lists", "lines"],
)
def test_json_of_every_shape(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    assert [(r["url"], r["caption"]) for r in rows(tmp_path / "a.json")] == [
        ("http://a/1", "one"),
        ("http://a/2", "two"),
    ]


def test_json_is_read_in_pieces_whatever_stands_at_their_ends(tmp_path: Path) -> None:
    """Values longer than the buffer, and numbers, strings and escapes cut by its end."""
    many = [
        {"url": f"http://a/{n}", "TEXT": '\\u00e9 "ü' * (n % 60), "pad": "x" * (n * 37 % 90_000), "n": n}
        for n in range(1, 400)
    ]
    (tmp_path / "a.json").write_text(json.dumps(many))
    found = rows(tmp_path / "a.json", keep=["n"])
    assert [(r["url"], r["source_n"]) for r in found] == [(m["url"], m["n"]) for m in many if m["TEXT"]]
    lists = {"url": ["http://a/1"] * 30_000, "n": list(range(10**14, 10**14 + 30_000)), "TEXT": ["t"] * 30_000}
    (tmp_path / "a.json").write_text(json.dumps(lists))
    assert [row["source_n"] for row in rows(tmp_path / "a.json", keep={"n": "int64"})] == lists["n"]


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        ('[{"url": "u", "TEXT": "t"}, {"url": ', DataError, "not JSON"),
        ('[{"url": "u", "TEXT": "t"} 5]', DataError, "not JSON: , or ] is expected"),
        ('"text"', InputError, "neither an array nor an object"),
        ('{"url": "u", "TEXT": "t"}', InputError, "one object without a list"),
        ('{"url": ["u", "v"], "TEXT": ["t"]}', DataError, "not of one length"),
        ("[" * 100_000, DataError, "nested too deeply|not JSON"),
        ('{"url": [["u"]], "TEXT": ["t"]}', InputError, "holds list"),
        ("", InputError, "neither an array"),
    ],
)
def test_json_that_is_no_table_is_refused_with_the_reason(
    text: str, error: type[Exception], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(error, match=reason):
        list(sources.read(source(tmp_path / "a.json"), "."))


def test_a_list_of_urls_needs_captions(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("http://a/1\nhttp://a/2\n")
    with pytest.raises(InputError, match=r"urls.txt is a list of URLs alone.*captions\.txt"):
        sources.check(source(tmp_path / "urls.txt", caption="caption"))
    (tmp_path / "both.txt").write_text('http://a/1\tone\thing\n\nhttp://a/2\nhttp://a/3\t"three\n')
    found = rows(tmp_path / "both.txt", caption="caption")
    assert [(r["url"], r["caption"]) for r in found] == [("http://a/1", "one hing"), ("http://a/3", '"three')]


def test_a_list_of_urls_beside_a_list_of_captions(tmp_path: Path) -> None:
    (tmp_path / "urls.txt").write_text("http://a/1\nhttp://a/2\n")
    (tmp_path / "captions.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    options = {"caption": "caption", "captions": str(tmp_path / "captions.txt.gz")}
    assert [row["caption"] for row in rows(tmp_path / "urls.txt", **options)] == ["one", "two"]
    for wrong, reason in {b"one\n": "more lines", b"one\ntwo\nthree\n": "fewer lines"}.items():
        (tmp_path / "captions.txt.gz").write_bytes(gzip.compress(wrong))
        with pytest.raises(DataError, match=reason):
            list(sources.read(source(tmp_path / "urls.txt", **options), "."))
    with pytest.raises(InputError, match="matches no file"):
        sources.check(source(tmp_path / "*.txt", caption="caption", captions=str(tmp_path / "no.txt")))


def test_a_csv_without_names_on_top(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('one,http://a/1,7\n"t,wo",http://a/2,8\n')
    found = rows(tmp_path / "a.csv", columns=["TEXT", "url", "n"], keep={"n": "int64"})
    assert [(r["url"], r["caption"], r["source_n"]) for r in found] == [
        ("http://a/1", "one", 7),
        ("http://a/2", "t,wo", 8),
    ]


def test_what_is_left_aside_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.csv").write_bytes(
        b"n,url,TEXT\n1,http://a/1,one\n2,,no\nthree\nx\xff,http://a/4,f\xffour,more\n,http://a/5,five\n"
    )
    with caplog.at_level("WARNING"):
        found = rows(tmp_path / "a.csv", keep={"n": "int64"})
    assert sorted((r["caption"], r["source_n"]) for r in found) == [("five", None), ("f\ufffdour", None), ("one", 1)]
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "1 rows with too few fields" in told
    assert "1 rows without a URL or a caption" in told
    assert "1 values of 'n' do not fit the column and are null" in told


@pytest.mark.parametrize(
    ("header", "row"),
    [("n,url,TEXT", "{},http://a/{},t,"), ("url,TEXT,n", "http://a/{},t"), ("url,TEXT", "http://a/{},t")],
)
def test_rows_of_another_length_than_the_header_are_all_read_in_their_order(
    header: str, row: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    count = 150_000
    text = "".join(f"{row.format(n, n)}\n" for n in range(count))
    (tmp_path / "a.csv").write_text(f"{header}\n{text}x\n")
    table = source(tmp_path / "a.csv")
    found = [url for batch in sources.read(table, ".") for url in batch["url"].to_pylist()]
    assert len(found) == count
    assert (found[0], found[-1]) == ("http://a/0", f"http://a/{count - 1}")
    assert found[count // 2] == f"http://a/{count // 2}"
    assert "1 rows with too few fields" in caplog.text


@pytest.mark.parametrize("lines", [20, 1_100_000])
def test_a_quote_that_is_not_closed_does_not_swallow_the_rows_behind_it(lines: int, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('url,TEXT\nhttp://a/1,one\nhttp://a/2,"two\n' + "u,three\n" * lines)
    with pytest.raises(DataError, match=r"a\.csv: a (quote .* is not closed|row is longer)"):
        list(sources.read(source(tmp_path / "a.csv"), "."))


def test_long_rows_make_short_batches(tmp_path: Path) -> None:
    """A batch ends at some megabytes, and the types are learnt from no more."""
    many, long = 20, "x" * 1_000_000
    columns = {
        "url": [f"http://a/{n}" for n in range(many)],
        "TEXT": ["t"] * many,
        "n": [1] * many,
        "pad": [long] * many,
    }
    each = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    texts = {
        "a.json": json.dumps(each), "b.json": json.dumps(columns), "c.jsonl": "\n".join(map(json.dumps, each)),
        "d.csv": "\n".join([",".join(columns), *(",".join(map(str, row.values())) for row in each)]),
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    pq.write_table(pa.table(columns), tmp_path / "e.parquet", use_dictionary=False)
    for name in (*texts, "e.parquet"):
        table = source(tmp_path / name, keep=["n", "pad"])
        batches = list(sources.read(table, "."))
        assert sum(batch.num_rows for batch in batches) == many, name
        assert max(batch.nbytes for batch in batches) < 10_000_000, name
        assert [len(pad) for batch in batches for pad in batch["source_pad"].to_pylist()] == [len(long)] * many, name
        assert str(sources.signals(table).field("source_pad").type) == "string", name


def test_json_types_are_learnt_without_holding_what_they_are_learnt_from(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", compresslevel=1) as file:
        for n in range(30):
            file.write(json.dumps({"url": f"http://a/{n}", "TEXT": "t", "pad": "x" * 4_000_000}) + "\n")
    tracemalloc.start()
    sources.check(source(tmp_path / "a.jsonl.gz"))
    batches = sum(batch.num_rows for batch in sources.read(source(tmp_path / "a.jsonl.gz"), "."))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert batches == 30
    assert peak < 60_000_000


def test_a_file_is_looked_at_once_for_all_who_ask_for_its_columns_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[object] = []
    columns, batches = READERS["jsonl"]
    monkeypatch.setitem(READERS, "jsonl", (lambda file: looked.append(file) or columns(file), batches))
    path = written("jsonl", tmp_path)
    for _ in range(3):
        rows(path)
    assert len(looked) == 1
    path.write_text('{"url": "http://a/1", "TEXT": "t", "more": 1}\n')
    assert rows(path, keep=["more"])[0]["source_more"] == 1


def test_more_columns_than_a_table_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,TEXT" + ",x" * 20_000 + "\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({str(n): n for n in range(20_000)}))
    for name in ("a.csv", "a.jsonl"):
        with pytest.raises(DataError, match="more than 10,000 columns"):
            sources.check(source(tmp_path / name))


def test_further_columns_become_signals_with_types(tmp_path: Path) -> None:
    """Parquet's own types; those of text formats by their first rows or by the recipe. No value is null."""
    table = {
        "url": ["http://a/1", "http://a/2"], "TEXT": ["one", "two"], "CLIP score": pa.array([0.5, None], pa.float32()),
        "n": pa.array([1, 2], pa.int16()), "big": pa.array([2**64 - 1, 0], pa.uint64()), "ok": [True, None],
        "link": ["https://x/a?X-Amz-Signature=5ecret&b=1", " two  words "], "day": [datetime.date(2020, 1, 2), None],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    options = {"keep": ["CLIP score", "n", "big", "ok", "link", "day"]}
    types = {f.name: str(f.type) for f in sources.signals(source(tmp_path / "a.parquet", **options))}
    assert types == {
        "source_clip_score": "float", "source_n": "int64", "source_big": "uint64", "source_ok": "bool",
        "source_link": "string", "source_day": "string",
    }  # fmt: skip
    first, second = rows(tmp_path / "a.parquet", **options)
    assert [first[name] for name in types] == [0.5, 1, 2**64 - 1, True, "https://x/a?b=1", "2020-01-02"]
    assert [second[name] for name in types] == [None, 2, 0, None, "two words", None]

    lines = [
        {"url": f"http://a/{n}", "TEXT": "t", "s": n / 2, "no": 10**17 + n, "b": n > 1, "x": "NaN"} for n in (1, 2)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = rows(tmp_path / "a.jsonl", keep=["s", "no", "b", "x"])
    kept = [[row[f"source_{name}"] for name in ("s", "no", "b", "x")] for row in found]
    assert kept == [[0.5, "100000000000000001", False, "NaN"], [1.0, "100000000000000002", True, "NaN"]]


def test_columns_of_pairs_come_from_the_columns_that_the_recipe_names(tmp_path: Path) -> None:
    columns = {
        "url": ["http://a/1"] * 3, "TEXT": ["a", "b", "c"], "key": [1.0, 2.0, None], "md": ["A" * 32, "nonsense", None],
        "page": ["https://u:p@x/y", "", None], "by": ["CC BY", "?", None], "about": [" so  so", "", None],
        "tongue": ["en", "", None],
    }  # fmt: skip
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = rows(
        tmp_path / "a.parquet", source_id="key", expected_hash="md", page_url="page", license="by", context="about",
        lang_hint="tongue",
    )  # fmt: skip
    names = ("source_id", "expected_hash", "page_url", "license", "context", "lang_hint")
    assert [[row[name] for name in names] for row in found] == [
        ["1", "md5:" + "a" * 32, "https://x/y", "CC BY", "so so", "en"],
        ["2", None, None, None, None, None],
        [None] * 6,
    ]


def test_no_column_of_pairs_keeps_what_gives_access(tmp_path: Path) -> None:
    secret = "https://u:5ecret@x/y?token=5ecret&a=1"
    names = ("page_url", "license", "source_id", "context")
    columns = {
        "url": [secret, "http://a/1"],
        "TEXT": [secret, "see https://x/#1 there"],
        **{n: [secret, None] for n in names},
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    first, second = rows(tmp_path / "a.parquet", **{name: name for name in names})
    assert [first.pop(name) for name in ("url", "caption", *names)] == ["https://x/y?a=1"] * 6
    assert first.pop("fetch_url") == secret
    assert "5ecret" not in str(first)
    assert second["caption"] == "see https://x/#1 there"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keep": ["nn"]}, r"table\.keep: .* no column 'nn'; did you mean 'n'"),
        ({"keep": ["boxes"]}, "the column 'boxes' holds list"),
        ({"keep": ["n", "N"]}, "'N' and 'n' would both be source_n"),
        ({"keep": ["id"]}, "'source_id' is a column of pairs"),
        ({"source_id": "uid"}, r"table\.source_id: .* no column 'uid'"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(options: dict[str, object], reason: str, tmp_path: Path) -> None:
    columns = {"url": ["u"], "TEXT": ["t"], "n": [1], "N": [1], "id": [1], "boxes": [[1.0]]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=reason):
        sources.check(source(tmp_path / "a.parquet", **options))


def test_a_table_is_somewhere() -> None:
    for wrong in ({}, {"path": "a.csv", "hf": "name"}):
        with pytest.raises(ValueError, match="either `path` or `hf`"):
            TableSource.model_validate({"kind": "table", **wrong})


_URL_PIECES = re.split(
    "(?<=.) ",
    "http:// HTTPS:// x: a.b/c ? & @ # [ ] sig token = %58-Amz-Signature X-Amz-Date oh oe Expires Signature é ſig "
    "Key-Pair-Id \u212a \u2100 sv "
    "key key= AIza %41Iza %41 hm ex is ; ;jsessionid= ;%6asessionid / AccessKeyId sign \n  ",
)


@given(st.lists(st.lists(st.sampled_from(_URL_PIECES), max_size=9).map("".join), max_size=20))
def test_whole_columns_of_urls_lose_what_single_urls_lose(urls: list[str]) -> None:
    plain, signed = strip_signatures(pa.array(urls, pa.string()))
    assert list(zip(plain.to_pylist(), signed.to_pylist(), strict=True)) == [strip_signature(url) for url in urls]


@given(st.lists(st.text(st.sampled_from("ab \t\n\0\x1c\x85\xa0\u2003\u3000\u200bé山")), max_size=20))
def test_whole_columns_of_text_are_cleaned_like_single_texts(texts: list[str]) -> None:
    assert clean_texts(pa.array(texts, pa.string())).to_pylist() == [clean_text(text) for text in texts]
