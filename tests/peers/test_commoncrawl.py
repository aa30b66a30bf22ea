"""Ours beside cc2dataset's own function, and on pywb's sample archives. `make test-peers` runs this."""

import json
from collections import Counter
from io import BytesIO

import pytest
from made_warc import pack, record, response, wat, write
from peer import PEERS, extract_documents_from_wat

from vlmdata.recipe import CommonCrawlSource
from vlmdata.sources.commoncrawl import read_file
from vlmdata.sources.urls import clean_text, shorten, strip_signature, web_url
from vlmdata.sources.wat import _plain

ARCHIVES = PEERS / "sample_archive/warcs"


def ours(path, form):
    source, counts = CommonCrawlSource(kind="commoncrawl", paths=[str(path)], format=form), Counter()
    return [row for batch in read_file(source, str(path), counts) for row in batch.to_pylist()], counts


def compare(tmp_path, content):
    """(pairs that are cc2dataset's alone, pairs that are ours alone, pairs of both), and what was done to theirs."""
    rows, _ = ours(write(tmp_path / "x.wat.gz", content), "wat")
    # They know neither titles nor Open Graph.
    found = {(row["url"], row["caption"]) for row in rows if row["caption_from"] == "alt"}
    theirs, changed = set(), Counter()
    for link in extract_documents_from_wat(BytesIO(content), "image"):
        url, caption = web_url(_plain(link["url"])), shorten(clean_text(_plain(link["alt"])), 2_000)
        if not caption:
            changed["an alt of spaces"] += 1
        elif url is None:
            changed["no address that a request can be made for"] += 1
        else:
            clean, signed = strip_signature(url)
            changed["signature or password taken out"] += signed is not None
            changed["fragment, port, spaces or letters outside ASCII put in one form"] += link["url"] != url
            changed["spaces or entities of the alt put in one form"] += link["alt"] != caption
            theirs.add((clean, caption))
    return theirs - found, found - theirs, theirs & found, {what: n for what, n in changed.items() if n}


def test_the_pairs_of_real_pages_are_the_same(tmp_path):
    """The pages of pywb's archive of iana.org: no difference at all, and our one form of a URL is theirs."""
    content = pack(wat((ARCHIVES / "iana.warc.gz").read_bytes()))
    theirs, found, both, changed = compare(tmp_path, content)
    assert (theirs, found) == (set(), set())
    assert len(both) >= 2
    assert changed == {}


def test_the_pairs_of_the_demos_pages_are_the_same(tmp_path):
    site = PEERS.parents[1] / "demo/site"
    pages = sorted(site.rglob("*.html"))
    if not pages:
        pytest.skip("the demo's pages are not there: make setup")
    records = [response(f"https://docs.example.org/{p.relative_to(site)}", p.read_bytes()) for p in pages]
    theirs, found, both, changed = compare(tmp_path, pack(wat(pack(records))))
    assert (theirs, found) == (set(), set())
    assert len(both) > 3_000
    assert set(changed) <= {"spaces or entities of the alt put in one form"}


def test_every_difference_has_its_reason(tmp_path):
    url = "https://example.org/docs/page.html"
    html = """<base href="/b/"><img src=a.jpg alt=plain><img src="b.jpg?x=1&amp;y=2" alt="tea &amp; milk">
        <img src="c d.jpg#top" alt="  two
        lines "><img src="https://example.org:443/e.jpg" alt=port><img src="f.jpg?X-Amz-Signature=1" alt=signed>
        <img src="data:image/gif;base64,R0" alt=data><img src="http://[/g.jpg" alt=broken><img src=h.jpg alt="  ">
        <img src=i.jpg alt=""><img src=j.jpg title=titled><img src="" alt=none><img src="//cdn.example.net/k" alt=k>"""
    theirs, found, both, changed = compare(tmp_path, pack(wat(response(url, html))))
    assert both == {
        ("https://example.org/b/a.jpg", "plain"),
        ("https://example.org/b/b.jpg?x=1&y=2", "tea & milk"),
        ("https://example.org/b/c%20d.jpg", "two lines"),
        ("https://example.org/e.jpg", "port"),
        ("https://example.org/b/f.jpg", "signed"),
        ("https://cdn.example.net/k", "k"),
    }
    assert changed == {
        "spaces or entities of the alt put in one form": 2,
        "fragment, port, spaces or letters outside ASCII put in one form": 3,
        "signature or password taken out": 1,
        "an alt of spaces": 1,
        "no address that a request can be made for": 1,  # `http://[/g.jpg`
    }
    # An empty src is the page itself to a URL's grammar; no image is there.
    assert theirs == {("https://example.org/b/", "none")}
    assert found == set()


def test_pages_that_the_peer_loses_are_ours_alone(tmp_path):
    url = "https://example.org/"

    def envelope(status, links):
        metadata = {"HTML-Metadata": {"Links": links}, "Response-Message": {"Status": status}}
        content = {"Container": {"Filename": "x"},
                   "Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": metadata},
                                "WARC-Header-Metadata": {"WARC-Target-URI": url}}}  # fmt: skip
        return record("metadata", url, json.dumps(content).encode(), "application/json")

    image = {"path": "IMG@/src", "url": "a.jpg"}
    half = envelope("200", [{"path": "A@/href", "url": "x", "text": "cut in half \ud83d"}, {**image, "alt": "beside"}])
    missing = envelope("404", [{**image, "alt": "on an error's page"}])
    good = envelope("200", [{**image, "alt": "good"}])
    theirs, found, both, _ = compare(tmp_path, pack([half, missing, good]))
    assert both == {("https://example.org/a.jpg", "good")}
    # Anchors' texts are cut to 100 UTF-16 units: simdjson refuses half a pair, and the record with all its images.
    assert found == {("https://example.org/a.jpg", "beside")}
    # Only pages that were found are pages.
    assert theirs == {("https://example.org/a.jpg", "on an error's page")}


def test_a_file_that_was_cut_off_is_lost_to_the_peer_where_its_json_is_whole_before(tmp_path):
    content = pack(wat(pack([response(f"https://example.org/{n}", f"<img src=a alt='image {n}'>") for n in range(9)])))
    theirs, found, both, _ = compare(tmp_path, content[:-40])
    assert theirs == set()
    assert len(both | found) == 8, "the last record is not there"


@pytest.mark.parametrize(
    ("name", "pages", "counted"),
    [
        ("bad.arc", 0, {"damaged places": 1, "files cut off": 1}),
        ("dupes.warc.gz", 1, {"records of another type: revisit": 9}),
        ("example-bad.warc.gz.bad", 1, {"responses of another status than 200": 1}),
        ("example-extra.warc", 1, {"records of another type: revisit": 2}),
        ("example-url-agnostic-orig.warc.gz", 1, {}),
        ("example-url-agnostic-revisit.warc.gz", 0, {"records of another type: revisit": 1}),
        ("example-wget-1-14.warc.gz", 1, {"records of another type: resource": 3}),
        ("example-wpull.warc.gz", 1, {"records of another type: resource": 1}),
        ("example.arc", 0, {"damaged places": 1, "files cut off": 1}),
        ("example.arc.gz", 0, {"damaged places": 1, "files cut off": 1}),
        ("example.warc", 1, {"responses of another status than 200": 1, "damaged places": 1}),
        ("example.warc.gz", 1, {"responses of another status than 200": 1}),
        ("example2.warc.gz", 1, {}),
        ("httpbin-resource.warc.gz", 0, {"records of another type: resource": 1}),
        ("iana.warc.gz", 16, {"records of another type: revisit": 123, "responses that are no HTML": 28}),
        ("missing-status-text.warc", 0, {"damaged places": 1, "files cut off": 1}),  # it is shorter than it says
        ("post-test.warc.gz", 0, {"responses that are no HTML": 3}),
    ],
)
def test_pywbs_archives_with_their_known_hard_cases(name, pages, counted):
    rows, counts = ours(ARCHIVES / name, "warc")
    assert counts["pages"] == pages
    assert {what: counts[what] for what in counted} == counted
    whole = {"damaged places", "files cut off"} - set(counted)
    assert not whole & set(counts)
    if name == "iana.warc.gz":
        assert {row["page_url"] for row in rows if row["caption"] == "Homepage"} == {row["page_url"] for row in rows}, (
            "every page of the site has its logo"
        )
