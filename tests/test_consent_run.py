"""Consent over whole runs: lists that change are applied without a download, and signed URLs reach no output."""

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pdqhash
import pytest
from hostile import Site, send, serve
from PIL import Image
from test_consent import blurred

from vlmdata import card, ingest, layers, snapshot, sources
from vlmdata.catalog import connect
from vlmdata.dataset import Dataset
from vlmdata.pipelines import dedup, download, known, select, shards, signals
from vlmdata.plan import make_plan
from vlmdata.recipe import CrawlSource, Recipe
from vlmdata.report import write_report

TOKEN = "s3cr3tt0ken"
PICTURES = {f"/{n}.png": blurred(n) for n in range(12)}


@pytest.fixture
def site() -> Iterator[Site]:
    with serve({path: send(body) for path, body in PICTURES.items()}) as site:
        site.routes |= {f"{path}?X-Amz-Signature={TOKEN}&v={path[1:2]}": route for path, route in site.routes.items()}
        yield site


def recipe(folder: Path, site: Site, **consent: Any) -> Recipe:
    rows = [f"{site.url(path)}?X-Amz-Signature={TOKEN}&v={path[1:2]},the picture {path}" for path in PICTURES]
    rows += [
        f"{site.url('/gone.png')}?token={TOKEN},a picture that is gone",
        f"ftp://me:{TOKEN}@h/a.png,no protocol of ours",
    ]
    (folder / "list.csv").write_text("\n".join(["url,caption", *rows, ""]))
    return Recipe.model_validate(
        {
            "dataset": str(folder / "data"),
            "sources": [{"kind": "table", "name": "web", "path": str(folder / "list.csv")}],
            "consent": consent,
            "download": {"size": 128, "retries": 0, "allow_hosts": [site.host]},
            "signals": ["text", "image"],
            "dedup": ["exact"],
            "parts": {"rows": 5},
        }
    )


def run(wanted: Recipe) -> tuple[Dataset, dict[str, str | None]]:
    """Every stage in this process, as the flow does them; uid's caption -> reason."""
    plan, dataset = make_plan(wanted), Dataset(wanted.dataset)
    found = []
    for source in wanted.sources:
        key = plan.found[source.name]
        found.append(dataset.read_table("found", key) or ingest.read_source(dataset, source, key))
    pairs = dataset.read_table("pairs", plan.pairs) or ingest.unite(dataset, found, plan.pairs, wanted.parts.rows, None)
    images = dataset.current_table("images", plan.images, [pairs]) or download.run(plan, dataset, pairs)
    tables = {"pairs": pairs, "images": images}
    if "known" in plan.tables:
        tables["known"] = known.run(plan, dataset, images)
    tables |= signals.run(plan, dataset, tables)
    tables["duplicates"] = dedup.run(plan, dataset, tables)
    number = snapshot.next_number(dataset)
    selection = select.run(plan, dataset, tables, number)
    written = shards.run(plan, dataset, tables, selection, number)
    content = snapshot.manifest(plan, number, tables, selection.samples, written, [])
    content = snapshot.manifest(
        plan, number, tables, selection.samples, written, card.write_documents(dataset, content)
    )
    dataset.publish(content)
    write_report(dataset, content)
    assert list(snapshot.verify(dataset)) == []
    rows = connect(dataset).sql("select caption, reason from samples order by caption").fetchall()
    return dataset, {caption.rpartition("/")[2]: reason for caption, reason in rows}


def pdq(content: bytes) -> str:
    bits, _ = pdqhash.compute(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    return np.packbits(bits.astype(np.uint8)).tobytes().hex()


def rejected(reasons: dict[str, str | None]) -> set[str]:
    return {caption for caption, reason in reasons.items() if reason == "consent: optout"}


def test_lists_that_change_are_applied_without_asking_anybody_again(
    tmp_path: Path, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "out.txt").write_text(f"{site.url('/0.png?v=0')}\n")
    out = {"optout": str(lists / "out.txt")}
    dataset, reasons = run(recipe(tmp_path, site, **out))
    assert rejected(reasons) == {"0.png"}
    assert not any(path.startswith("/0.png") for path in site.paths())
    asked = len(site.seen)

    # A day later: a picture's hash, another URL, and lists of known images that were not there before.
    digest = hashlib.sha256(PICTURES["/1.png"]).hexdigest()
    (lists / "out.txt").write_text(f"{site.url('/0.png?v=0')}\n{site.url('/2.png?v=2')}\n{digest}\n")
    known_hashes = f"sha256:{hashlib.sha256(PICTURES['/3.png']).hexdigest()}\npdq:{pdq(PICTURES['/4.png'])}\n"
    (lists / "known.txt").write_text(known_hashes + f"md5:{hashlib.md5(PICTURES['/5.png']).hexdigest()}\n")
    with caplog.at_level(logging.WARNING):
        dataset, reasons = run(recipe(tmp_path, site, **out, known=str(lists / "known.txt")))
    assert rejected(reasons) == {"0.png", "1.png", "2.png", "3.png", "4.png"}
    assert len(site.seen) == asked
    assert "2 pairs' images were stored before" in caplog.text
    assert "11 stored pairs could not be held against the MD5" in caplog.text
    assert "127.0.0.1" not in caplog.text
    latest = dataset.latest()
    assert latest is not None
    assert latest["number"] == 2
    kept = {row[0] for row in connect(dataset).sql("select url from samples where kept").fetchall()}
    assert kept == {f"{site.url(path)}?v={path[1:2]}" for path in list(PICTURES)[5:]}
    # Nobody who opted out is shown: eight pictures are, each once as kept.
    report = Path(dataset.path("snapshots/000002/report.html")).read_text()
    assert report.count("data:image/webp") == 7

    # A list that says less asks for nothing either; what was refused at the download stays refused.
    (lists / "out.txt").write_text("nobody.example\n")
    _, reasons = run(recipe(tmp_path, site, **out))
    assert rejected(reasons) == {"0.png"}
    assert len(site.seen) == asked


def test_what_is_respected_changes_and_nobody_is_asked_again(tmp_path: Path) -> None:
    """Pictures whose hosts, and one whose page, say no; rows of a retry among them."""
    headers = {"/0.png": {}, "/1.png": {"X_Robots_Tag": "noml"}, "/2.png": {"X_Robots_Tag": "noai"}}
    routes = {path: send(PICTURES[path], **said) for path, said in headers.items()}
    routes |= {"/robots.txt": send(b"User-agent: *\nDisallow: /3.png\n"), "/3.png": send(PICTURES["/3.png"])}
    page = b"<meta name=robots content=noml><img src=/4.png alt='the picture /4.png'><img src=/5.png alt='gone /5.png'>"
    routes |= {"/page": send(page, Content_Type="text/html"), "/4.png": send(PICTURES["/4.png"])}
    with serve(routes) as site:
        urls = [f"{site.url(path)},the picture {path}" for path in (*headers, "/3.png")]

        def wanted(*respect: str, **download: Any) -> Recipe:
            data = recipe(tmp_path, site, respect=list(respect)).model_dump(mode="json")
            (tmp_path / "list.csv").write_text("\n".join(["url,caption", *urls, ""]))
            data["sources"].append({"kind": "crawl", "start": [site.url("/page")]})
            data["download"] |= download
            return Recipe.model_validate(data)

        first = wanted("noai")
        _, reasons = run(first)
        assert reasons == {
            "0.png": None, "1.png": None, "2.png": "consent: noai", "3.png": None, "4.png": None,
            "5.png": "download: 4xx",
        }  # fmt: skip
        asked = len(site.seen)
        others = {"contact": "me@h.example", "timeout": 3, "deadline": 9, "retries": 1, "max_bytes": 10_000_000}
        dataset, reasons = run(wanted("robots", "noai", "noml", **others))
        assert reasons == {
            "0.png": None, "1.png": "consent: noml", "2.png": "consent: noai", "3.png": "consent: robots",
            "4.png": "consent: noml", "5.png": "consent: noml",
        }  # fmt: skip
        report = Path(dataset.path("snapshots/000002/report.html")).read_text()
        assert report.count("data:image/webp") == 1, "who says no is not shown"
        # What is respected no more comes back where it was stored; what was refused then stays refused.
        dataset, reasons = run(wanted())
        assert reasons == {
            "0.png": None, "1.png": None, "2.png": "consent: noai", "3.png": None, "4.png": None,
            "5.png": "download: 4xx",
        }  # fmt: skip
        assert len(site.seen) == asked
        # Until it is asked for again: the rows that are in force are judged by what was said to them.
        plan = make_plan(wanted())
        pairs, images = dataset.read_table("pairs", plan.pairs), dataset.read_table("images", plan.images)
        assert pairs is not None
        assert images is not None
        layers.retry(dataset, [pairs], images, ["noai"], 5)
        for respect, of_two in (((), None), (("noml", "noai"), "consent: noai")):
            _, reasons = run(wanted(*respect))
            assert (reasons["2.png"], reasons["1.png"]) == (of_two, "consent: noml" if respect else None)
        assert [path for path in site.paths()[asked:] if path.endswith(".png")] == ["/2.png"]


def test_what_is_known_before_the_download_is_told_and_never_stored(
    tmp_path: Path, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    hashes = [hashlib.new(kind, PICTURES[f"/{n}.png"]).hexdigest() for n, kind in enumerate(("md5", "sha1"))]
    (tmp_path / "known.txt").write_text("\n".join(hashes))
    with caplog.at_level(logging.WARNING):
        dataset, reasons = run(recipe(tmp_path, site, known=[str(tmp_path / "known.txt")]))
    assert rejected(reasons) == {"0.png", "1.png"}
    assert [record.message for record in caplog.records if record.levelno >= logging.WARNING] == [
        "KNOWN ILLEGAL IMAGES: 2 pairs' images are on a list of consent.known; none was stored"
    ]
    stored = connect(dataset).sql("select count(*) from images where length > 0").fetchall()[0][0]
    tars = b"".join(path.read_bytes() for path in Path(dataset.root).glob("images/*/*.tar"))
    assert tars.count(b"ustar") == stored == 10


def test_a_signature_reaches_no_output(tmp_path: Path, site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        dataset, reasons = run(recipe(tmp_path, site))
    assert list(reasons.values()).count(None) == len(PICTURES)  # the signed form was what came
    assert reasons["a picture that is gone"] == "download: 4xx"
    places = [path for path in Path(dataset.root).rglob("*") if path.is_file()]
    texts = {path.relative_to(dataset.root).as_posix(): _plain(path) for path in places}
    assert any(name.endswith("croissant.json") for name in texts)
    assert any(name.endswith(".tar") for name in texts)
    holders = {name.split("/")[1] for name, text in texts.items() if TOKEN in text}
    assert holders == {"found", "pairs"}  # which the download alone reads
    assert TOKEN not in caplog.text
    connection = connect(dataset)
    for name in ("samples", "images", "pairs", "observations"):
        assert TOKEN not in str(connection.sql(f"select * from {name}").fetchall())


def _plain(path: Path) -> str:
    """What a file says; Parquet as JSON, since its columns are compressed."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return json.dumps(pq.read_table(path).to_pylist(), default=str) + str(pq.read_metadata(path).metadata)
    return path.read_bytes().decode("latin-1")


def test_a_crawled_page_knows_what_its_host_reserves(tmp_path: Path) -> None:
    rules = [{"location": "/free", "tdm-reservation": 0}, {"location": "/*.html", "tdm-reservation": 1}]
    image = b'<img src="/a.png" alt="a picture">'
    pages = {
        "/": image + b"".join(b'<a href="/%s">x</a>' % name for name in (b"a.html", b"free", b"meta.html", b"no.html")),
        "/a.html": image,
        "/free": image,
        "/meta.html": b"<meta name=tdm-reservation content=0>" + image,
        "/no.html": b"<meta name=robots content='noimageindex'>" + image,
    }
    routes = {path: send(b"<html>" + html, Content_Type="text/html") for path, html in pages.items()}
    routes["/.well-known/tdmrep.json"] = send(json.dumps(rules).encode(), Content_Type="application/json")
    routes["/robots.txt"] = send(b"User-agent: *\nAllow: /\n")
    with serve(routes) as site:
        source = CrawlSource(kind="crawl", start=[site.url("/")])
        rows = [row for batch in sources.read(source, str(tmp_path)) for row in batch.to_pylist()]
        assert site.paths().count("/.well-known/tdmrep.json") == 1
    said = {row["page_url"].removeprefix(site.url("")): row["page_consent"] for row in rows}
    assert {path: consent["tdm"] for path, consent in said.items()} == {
        "/": None, "/a.html": "deny", "/free": "allow", "/meta.html": "allow", "/no.html": "deny"
    }  # fmt: skip
    assert {path for path, consent in said.items() if consent["robots"] == "deny"} == {"/no.html"}
