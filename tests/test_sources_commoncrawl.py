"""WARC and WAT files: what is read from them, and what damaged and hostile ones come to."""

import gzip
import json
import logging
import shutil
import subprocess
import threading
import zlib
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pytest
from hostile import send, serve
from made_warc import DATE, pack, record, response, wat, write

from vlmdata import sources
from vlmdata.errors import DataError, InputError, MachineError
from vlmdata.recipe import CommonCrawlSource
from vlmdata.sources import commoncrawl

PAGE = "https://example.org/docs/page.html"
HTML = '<html lang=en><title>The page</title><p>before <img src="a.jpg" alt="a red box"> after</html>'


def rows_of(path, format="warc", **options):
    """(rows, counts) of one file."""
    source = CommonCrawlSource(kind="commoncrawl", paths=[str(path)], format=format, **options)
    counts = Counter()
    batches = list(commoncrawl.read_file(source, str(path), counts))
    assert all(batch.schema.equals(sources.ROWS) for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()], counts


def warc_of(tmp_path, *records, packing="gz"):
    return rows_of(write(tmp_path / f"x.warc.{packing}", pack(records, packing)))


def wat_of(tmp_path, *records):
    return rows_of(write(tmp_path / "x.wat.gz", pack(wat(pack(records)))), "wat")


@pytest.fixture(params=["gz", "zst", "plain"])
def packing(request):
    return request.param


def test_a_page_gives_its_images_with_all_that_is_known(tmp_path, packing):
    html = (
        '<html lang="de"><head><base href="https://cdn.example.net/x/"><a rel="license" href="/by/4.0"></a></head>'
        '<p>vor <img src="a.png?token=5ecret&amp;w=1" alt="ein &amp; anderes Bild"> nach</p></html>'
    )
    headers = {"X_Robots_Tag": "noai", "tdm_reservation": "1"}
    (row,), counts = warc_of(
        tmp_path, response("<https://example.org/p?sid=1&sig=2>", html, **headers), packing=packing
    )
    assert row == {
        **dict.fromkeys(sources.ROWS.names),
        "url": "https://cdn.example.net/x/a.png?w=1",
        "fetch_url": "https://cdn.example.net/x/a.png?token=5ecret&w=1",
        "caption": "ein & anderes Bild",
        "caption_from": "alt",
        "source": "commoncrawl",
        "page_url": "https://example.org/p?sid=1",
        "context": "vor nach",
        "lang_hint": "de",
        "license": "https://cdn.example.net/by/4.0",
        "page_consent": {"robots": None, "noai": "deny", "tdm": "deny", "noml": None},
        "crawled_at": pa.scalar(DATE).cast(pa.timestamp("ms", tz="UTC")).as_py(),
    }
    assert counts == {"records": 1, "pages": 1}


def test_wat_gives_the_same_pairs_as_the_pages_it_was_made_of(tmp_path):
    pages = [
        response(PAGE, '<base href="/b/"><img src=a.jpg alt="A &quot;red&quot; box"><img src="?w=1&amp;h=2" alt=b>'),
        response(PAGE + "?2", "<img src=//x.org/c.jpg alt=' c  d '><img src=d.jpg title=e><img src=f.jpg alt=''>"),
        response(PAGE + "?3", "<meta name=robots content='noindex, noai'><link rel=license href=/l><img src=g alt=g>"),
        response(PAGE + "?4", HTML, content_language="fr", x_robots_tag="noml", tdm_reservation="0"),
        response(PAGE + "?5", '<title>T</title><meta property="og:image" content="/og.png">'
                              '<meta property="og:title" content="Shown &amp; told">'),
        response(PAGE + "?6", "<img src='data:,x' alt=x><img src=' http://u:p@x.org/s?X-Amz-Signature=1 ' alt=signed>"),
        response(PAGE + "?7", HTML, status="404 Not Found"),
    ]  # fmt: skip
    by_page, counted = warc_of(tmp_path, *pages)
    by_wat, counts = wat_of(tmp_path, *pages)
    for row in by_page + by_wat:
        row["context"] = None
        row["lang_hint"] = row["lang_hint"] if row["lang_hint"] != "en" else "fr"  # WAT has no `html lang`
    assert by_wat == by_page
    assert len(by_wat) == 8
    assert {(row["url"], row["caption"]) for row in by_wat} >= {
        ("https://example.org/b/a.jpg", 'A "red" box'),
        ("https://example.org/b/?w=1&h=2", "b"),
        ("http://x.org/s", "signed"),
        ("https://example.org/og.png", "Shown & told"),
    }
    assert counts["pages"] == counted["pages"] == 6
    assert counts["responses of another status than 200"] == 1


def test_only_pages_that_were_found_are_read_and_all_else_is_counted(tmp_path):
    rows, counts = warc_of(
        tmp_path,
        record("warcinfo", "x", b"software: test\r\n", "application/warc-fields"),
        record("request", PAGE, b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
        response(PAGE, HTML),
        record("revisit", PAGE, b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"),
        record("resource", "file:///x", HTML.encode(), "text/html"),
        record("metadata", PAGE, b"fetchTimeMs: 3\r\n", "application/warc-fields"),
        response(PAGE, HTML, status="301 Moved"),
        response(PAGE, b"\xff\xd8\xff", content_type="image/jpeg"),
        response(PAGE, '{"html": "<img>"}', content_type="application/json"),
        response("dns:example.org", HTML),
        record("response", PAGE, b"no HTTP at all"),
    )
    assert [row["url"] for row in rows] == ["https://example.org/docs/a.jpg"]
    assert counts == {
        "records": 11,
        "pages": 1,
        "responses of another status than 200": 2,
        "responses that are no HTML": 2,
        "responses without a web address": 1,
        **{
            f"records of another type: {kind}": 1 for kind in ("warcinfo", "request", "revisit", "resource", "metadata")
        },
    }


def chunks(body):
    return b"%x;name=value\r\n" % len(body) + body + b"\r\n"


@pytest.mark.parametrize(
    ("headers", "encode"),
    [
        ({"content_encoding": "gzip"}, gzip.compress),
        ({"content_encoding": "deflate"}, zlib.compress),
        ({"content_encoding": "deflate"}, lambda body: zlib.compress(body)[2:-4]),
        ({"content_encoding": "gzip, gzip"}, lambda body: gzip.compress(gzip.compress(body))),
        ({"content_encoding": "gzip"}, lambda body: body),  # undone by the crawler
        ({"transfer_encoding": "chunked"}, lambda body: chunks(body[:5]) + chunks(body[5:]) + b"0\r\n\r\n"),
        ({"transfer_encoding": "chunked"}, lambda body: body),
        ({"transfer_encoding": "chunked"}, lambda body: b"FFF\r\n" + body),  # cut off
        ({"transfer_encoding": "chunked", "content_encoding": "gzip"},
         lambda body: chunks(gzip.compress(body)) + b"0\r\n\r\n"),
        ({"content_encoding": "br"}, lambda body: pa.compress(body, "brotli", asbytes=True)),
        ({"content_encoding": "zstd"}, lambda body: pa.compress(body, "zstd", asbytes=True)),
        ({"content_type": "text/html; charset=latin1"}, lambda body: body.decode().encode("latin-1")),
        ({"content_type": "text/html"}, lambda body: body.decode().encode("latin-1")),
        ({"content_type": "text/html"}, lambda body: b"\xff\xfe" + body.decode().encode("utf-16-le")),
        ({"content_type": "text/html"}, lambda body: b"<meta charset=windows-1252>" + body.decode().encode("cp1252")),
        ({"content_type": "text/html; charset=idna"}, lambda body: body),
        ({"content_type": "text/html; charset=zip"}, lambda body: body),
    ],
)  # fmt: skip
def test_bodies_are_decoded_as_their_headers_say(tmp_path, headers, encode):
    body = "<p><img src=a.jpg alt='grün'></p>".encode()
    rows, counts = warc_of(tmp_path, response(PAGE, encode(body), **headers))
    assert [row["caption"] for row in rows] == ["grün"], counts


def test_a_body_that_is_not_what_its_header_says_is_told(tmp_path):
    _, counts = warc_of(
        tmp_path,
        response(PAGE, b"\x1f\x8b\x08 broken", content_encoding="gzip"),
        response(PAGE, b"\x00\x01", content_encoding="wombat"),
        response(PAGE, gzip.compress(b"\0" * 50_000_000), content_encoding="gzip"),
        response(PAGE, "<div>" * 30_000),
        response(PAGE, HTML),
    )
    told = {what: count for what, count in counts.items() if what.startswith("pages not read")}
    assert told == {
        "pages not read: not gzip, which its header says": 1,
        "pages not read: a content encoding that nobody knows": 1,
        "pages not read: larger than 10 MB": 1,
        "pages not read: nested more than 1000 tags deep": 1,
    }
    assert counts["pages"] == 1


def test_a_record_that_is_too_large_is_passed_over(tmp_path):
    rows, counts = warc_of(tmp_path, response(PAGE, HTML + " " * 10_000_000), response(PAGE, HTML))
    assert len(rows) == 1
    assert counts["records larger than 10 MB"] == 1


def numbered(count):
    return [response(f"https://example.org/{n}", f"<p>{n * 'x'}<img src=a.jpg alt='image {n}'>") for n in range(count)]


def test_behind_a_damaged_place_the_file_goes_on(tmp_path, packing, caplog):
    records = numbered(9)
    whole = [pack([one], packing) for one in records]
    for number, damage in ((2, b"\0" * 30), (6, b"\x1f\x8b\x08WARC/1.0\r\n\x28\xb5\x2f\xfd")):
        whole[number] = damage + whole[number][len(damage) :]
    rows, counts = rows_of(write(tmp_path / "x.warc.gz", b"".join(whole)))
    assert [row["caption"] for row in rows] == [f"image {n}" for n in (0, 1, 3, 4, 5, 7, 8)]
    assert counts["damaged places"] == 2
    assert "x.warc.gz: damaged places: 2; records read: " in caplog.text


def test_a_file_that_was_cut_off_gives_what_is_before_and_says_so(tmp_path, packing):
    records = numbered(5)
    ends = [sum(len(pack([one], packing)) for one in records[: n + 1]) for n in range(5)]
    content = pack(records, packing)
    for cut in range(ends[2] + 1, ends[4], 7):
        if cut in ends:
            continue
        rows, counts = rows_of(write(tmp_path / "x.warc.gz", content[:cut]))
        captions = [row["caption"] for row in rows]
        # a record whose text is all there may count, though its packing or its last two line ends are not
        full = sum(end <= cut for end in ends)
        assert captions in ([f"image {n}" for n in range(full)], [f"image {n}" for n in range(full + 1)]), cut
        if packing != "plain" or 4 < cut - ends[full - 1] < ends[full] - ends[full - 1] - 4:
            assert counts["files cut off"] == 1, cut


@pytest.mark.parametrize(
    "content",
    [b"", b"hello " * 1000, b"\x1f\x8b\x08\0junk", gzip.compress(b"junk" * 9999, mtime=0), b"\x28\xb5\x2f\xfdjunk" * 99,
     b"WARC/1.0\r\nContent-Length: 99999999999999999999\r\n\r\n", b"WARC/1.0\r\nContent-Length: -5\r\n\r\nxx",
     b"WARC/1.0\r\nX: " + b"a" * 200_000, b"\x1f\x8b\x08" * 100_000, b"filedesc://x 0 20140103 text/plain 10\n1 0 x\n"],
)  # fmt: skip
def test_garbage_is_no_crash_and_no_silence(tmp_path, content):
    rows, counts = rows_of(write(tmp_path / "x.warc.gz", content))
    assert rows == []
    source = CommonCrawlSource(kind="commoncrawl", paths=["x"], format="warc")
    with pytest.raises(DataError, match="no page in its WARC files"):
        commoncrawl.report(source, counts)


def test_wat_records_that_are_broken_or_hostile_are_counted_and_passed_over(tmp_path):
    def envelope(links, url=PAGE):
        metadata = {"HTML-Metadata": {"Links": links}, "Response-Message": {"Status": "200"}}
        return {"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": metadata},
                             "WARC-Header-Metadata": {"WARC-Target-URI": url, "WARC-Date": "never"}}}  # fmt: skip

    good = {"path": "IMG@/src", "url": "a.jpg", "alt": "an image"}
    half = {"path": "A@/href", "url": "x", "text": "cut \ud83d"}
    contents = [
        b"not JSON",
        b"[" * 200_000,
        b'{"Envelope": 3}',
        json.dumps(envelope([good, "a.jpg"])).encode(),
        json.dumps(envelope([half, good, {**good, "url": "http://[", "alt": "x"}, {"path": "IMG@/src"}])).encode(),
        json.dumps(envelope([good] * 6_000)).encode(),
        json.dumps({"Envelope": {"Payload-Metadata": {"HTTP-Request-Metadata": {}}}}).encode(),
        json.dumps(envelope([good], "ftp://x/")).encode(),
    ]
    content = pack([record("metadata", PAGE, one, "application/json") for one in contents])
    rows, counts = rows_of(write(tmp_path / "x.wat.gz", content), "wat")
    assert len(rows) == 5_001
    assert {row["crawled_at"] for row in rows} == {None}
    assert counts == {
        "records": 8,
        "pages": 2,
        "records that are not such JSON as WAT holds": 4,
        "records of requests and of what is no HTML": 1,
        "responses without a web address": 1,
        "images left out: more than 5,000 on a page": 1_000,
    }


def test_a_value_of_wat_that_is_no_string_costs_itself_only(tmp_path):
    """`"alt": null` and the like count as absent; the page's other images and words stay."""
    good = {"path": "IMG@/src", "url": "a.jpg", "alt": "an image", "title": None}
    odd = [None, 7, 1.5, True, [], {}, {"a": ["b"]}]
    values = [one for value in odd for one in (
        {**good, "url": value}, {**good, "path": value}, {"path": "A@/href", "url": value, "rel": value},
        {**good, "alt": value, "title": "a title"},
    )]  # fmt: skip
    for value in odd:
        head = {"Base": value, "Title": value,
                "Link": [{"path": value, "url": "/by", "rel": value}, {"url": "/by", "rel": "license"}],
                "Metas": [{"name": value, "content": value}, {"name": "robots", "content": "noai"},
                          {"property": "og:image", "content": value}]}  # fmt: skip
        metadata = {
            "HTML-Metadata": {"Head": head, "Links": [*values, good]},
            "Response-Message": {"Status": None},
            "Headers": {"X-Robots-Tag": [value, "noindex"], "Content-Language": value, "tdm-reservation": "1"},
        }
        origin = {"WARC-Target-URI": PAGE, "WARC-Date": value}
        envelope = {"Payload-Metadata": {"HTTP-Response-Metadata": metadata}, "WARC-Header-Metadata": origin}
        content = json.dumps({"Envelope": envelope}).encode()
        rows, counts = rows_of(
            write(tmp_path / "x.wat.gz", pack([record("metadata", PAGE, content, "application/json")])), "wat"
        )
        assert counts == {"records": 1, "pages": 1}
        assert [row["caption"] for row in rows] == ["a title"] * len(odd) + ["an image"]
        assert {row["license"] for row in rows} == {"https://example.org/by"}
        assert rows[0]["page_consent"] == {"robots": "deny", "noai": "deny", "tdm": "deny", "noml": None}
    nothing = {"HTML-Metadata": {"Head": {"Metas": None, "Link": None}, "Links": None}, "Headers": None}
    envelope = {"Payload-Metadata": {"HTTP-Response-Metadata": nothing}, "WARC-Header-Metadata": origin}
    content = json.dumps({"Envelope": {**envelope, "WARC-Header-Metadata": {"WARC-Target-URI": PAGE}}}).encode()
    path = write(tmp_path / "n.wat.gz", pack([record("metadata", PAGE, content, "application/json")]))
    assert rows_of(path, "wat") == ([], {"records": 1, "pages": 1})


@pytest.mark.parametrize("format", ["warc", "wat"])
def test_directives_address_the_name_of_an_agent_with_a_version(tmp_path, format):
    page = response(PAGE, f"<meta name=mybot content=noml>{HTML}", X_Robots_Tag="MyBot: noai")
    path = write(tmp_path / "x.gz", pack([page] if format == "warc" else wat(page)))
    for agent, said in (("MyBot/1.0", "deny"), ("OtherBot/1.0", None)):
        (row,), _ = rows_of(path, format, agent=agent)
        assert (row["page_consent"]["noai"], row["page_consent"]["noml"]) == (said, said)


@pytest.mark.skipif(shutil.which("wget") is None, reason="`make test` installs wget")
def test_a_warc_that_wget_wrote_of_a_site(tmp_path):
    site = tmp_path / "site"
    write(site / "index.html", b"<a href=2.html>x</a><a href=gone.html>x</a><img src=i/a.png alt='the first'>")
    write(site / "2.html", "<figure><img src=i/b.png><figcaption>Größe</figcaption></figure>".encode())
    write(site / "i/a.png", b"\x89PNG\r\n\x1a\n")
    handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=site)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        command = [
            "wget",
            "-q",
            "-r",
            "--no-parent",
            "--tries=1",
            "--timeout=10",
            "--warc-file=crawl",
            f"{url}/index.html",
        ]
        subprocess.run(command, cwd=tmp_path, timeout=60, check=False, env={"PATH": "/usr/bin:/bin", "no_proxy": "*"})
        server.shutdown()
    rows, counts = rows_of(tmp_path / "crawl.warc.gz")
    assert sorted((row["url"], row["caption"], row["caption_from"], row["page_url"]) for row in rows) == [
        (f"{url}/i/a.png", "the first", "alt", f"{url}/index.html"),
        (f"{url}/i/b.png", "Größe", "figcaption", f"{url}/2.html"),
    ]
    assert all(row["crawled_at"] is not None for row in rows)
    assert counts["pages"] == 2
    assert counts["responses of another status than 200"] >= 1
    assert "damaged places" not in counts


def test_files_are_named_by_paths_globs_and_listings(tmp_path, monkeypatch):
    for name in ("b.warc.gz", "a.warc.gz", "c [1].warc", "crawl-data/d.warc.gz"):
        write(tmp_path / "with [signs]" / name, pack([response(PAGE, HTML)]))
    folder = tmp_path / "with [signs]"
    listing = write(tmp_path / "warc.paths.gz", gzip.compress(b"crawl-data/d.warc.gz\nhttps://x.org/e.warc.gz\n\n"))

    def files(*paths, **options):
        source = CommonCrawlSource(kind="commoncrawl", paths=list(paths), format="warc", **options)
        return [name.removeprefix(f"{folder}/") for name in commoncrawl.files(source)]

    bracketed = str(folder).replace("[", "[[]")
    assert files(f"{bracketed}/*.gz", f"{folder}/c [1].warc", f"{folder}/a.warc.gz") == [
        "a.warc.gz", "b.warc.gz", "c [1].warc"]  # fmt: skip
    assert files(str(listing), base=f"{folder}/") == ["crawl-data/d.warc.gz", "https://x.org/e.warc.gz"]
    monkeypatch.chdir(tmp_path)  # a worker is elsewhere
    assert files("warc.paths.gz", base="with [signs]") == ["crawl-data/d.warc.gz", "https://x.org/e.warc.gz"]
    assert files("https://x.org/y.warc.gz?a=1") == ["https://x.org/y.warc.gz?a=1"]
    with pytest.raises(InputError, match="set `base`"):
        files(str(listing))
    with pytest.raises(InputError, match="matches no file"):
        files(str(tmp_path / "*.nothing"))
    for line in (b"/etc/passwd", b"../x.warc.gz", b"file:///etc/passwd", b"simplecache::https://x/y"):
        write(listing, gzip.compress(line))
        with pytest.raises(InputError, match="no path below `base`"):
            files(str(listing), base=str(folder))
    write(listing, b"\x1f\x8b\x08 broken")
    with pytest.raises(InputError, match="listing cannot be read"):
        files(str(listing), base=str(folder))


def test_a_source_is_refused_when_its_files_are_not_there(tmp_path):
    source = CommonCrawlSource(kind="commoncrawl", paths=[str(tmp_path / "none.warc.gz")], format="warc")
    with pytest.raises(InputError, match="matches no file"):
        sources.check(source)
    with pytest.raises(MachineError, match="cannot be fetched"):
        list(commoncrawl.read_file(source, str(tmp_path / "none.warc.gz"), Counter()))


def test_any_fsspec_url_is_read(tmp_path):
    import fsspec

    fsspec.filesystem("memory").pipe_file("/bucket/x.warc.gz", pack(numbered(3)))
    source = CommonCrawlSource(kind="commoncrawl", paths=["memory://bucket/*.warc.gz"], format="warc")
    (file,) = commoncrawl.files(source)
    (batch,) = commoncrawl.read_file(source, file, Counter())
    assert batch.num_rows == 3


def test_the_format_that_a_recipe_got_wrong_is_asked_about(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write(tmp_path / "x.warc.gz", pack(numbered(2)))
    _, counts = rows_of(path, "wat")
    source = CommonCrawlSource(kind="commoncrawl", paths=[str(path)], format="wat")
    with pytest.raises(
        DataError, match=r"no page in its WAT files \(records: 2; records of another type: response: 2\)"
    ):
        commoncrawl.report(source, counts)
    commoncrawl.report(source, Counter({"pages": 3, "files cut off": 1}))
    assert "files cut off: 1" in caplog.text


def test_a_file_on_the_web_is_known_by_what_its_server_says():
    source = CommonCrawlSource(kind="commoncrawl", paths=["http://h.example/x.warc.gz"], format="warc")
    answers = [(b"one", "a", DATE), (b"one", "a", DATE), (b"four", "a", DATE), (b"one", "b", DATE), (b"one", "a", "no")]
    told = []
    with serve({}) as site:
        url = site.url("/x.warc.gz?token=5ecret")
        for body, tag, date in answers:
            site.routes["*"] = send(body, ETag=tag, Last_Modified=date)
            told.append(commoncrawl.identity(source, url))
        assert told[0] == told[1]
        assert len(set(told)) == 4
        site.routes["*"] = send(b"one", ETag="a", Last_Modified=DATE)
        assert commoncrawl.identity(source, url.replace("5ecret", "0ther")) == told[0], "a signature is no content"
        for status, error, words in (
            ("404 Not Found", DataError, "there is no file"),
            ("503 Service Unavailable", MachineError, "cannot be reached: the server answered 503"),
        ):
            site.routes["*"] = send(b"", status)
            with pytest.raises(error, match=words) as raised:
                commoncrawl.identity(source, url)
            assert "5ecret" not in str(raised.value)
        with pytest.raises(MachineError, match=r"x\.warc\.gz: cannot be fetched: the server answered 503") as raised:
            list(commoncrawl.read_file(source, url, Counter()))
        assert "5ecret" not in str(raised.value)
    with pytest.raises(MachineError, match="cannot be reached: Client") as raised:
        commoncrawl.identity(source, url)
    assert "5ecret" not in str(raised.value)
