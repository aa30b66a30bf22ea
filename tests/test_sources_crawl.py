"""Crawls of small websites on loopback."""

import gzip
import importlib.metadata
import itertools
import logging
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from vlmdata import sources
from vlmdata.errors import DataError, InputError, MachineError
from vlmdata.recipe import CrawlSource

Answer = tuple[int, dict[str, str], str | bytes]


class Web:
    """A website of path -> answer; None is no answer, what is not there is 404.

    Keeps (path, user agent, time) of every request.
    """

    def __init__(self, pages: dict[str, str | Answer]) -> None:
        self.pages, self.requests = pages, list[tuple[str, str, float]]()
        self.answered: Callable[[str], None] = lambda path: None
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize, disable_nagle_algorithm = -1, True  # head and body leave together, at once

            def do_GET(self) -> None:
                web.requests.append((self.path, self.headers["User-Agent"], time.monotonic()))
                answer = web.pages.get(self.path, (404, {}, "nothing here"))
                if answer is None:  # gone: the connection ends without an answer
                    self.close_connection = True
                    return
                status, headers, body = (200, {}, answer) if isinstance(answer, str) else answer
                self.send_response(status)
                for name, value in {"Content-Type": "text/html; charset=utf-8", **headers}.items():
                    self.send_header(name, value)
                content = body if isinstance(body, bytes) else body.encode()
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                self.wfile.flush()
                web.answered(self.path)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def asked(self, path: str) -> int:
        return sum(asked == path for asked, *_ in self.requests)


@pytest.fixture
def web() -> Iterator[Callable[[dict[str, Any]], Web]]:
    made: list[Web] = []

    def make(pages: dict[str, Any]) -> Web:
        made.append(Web(pages))
        return made[-1]

    yield make
    for one in made:
        one.server.shutdown()
        one.server.server_close()


def crawl(folder: Path, *start: str, **options: Any) -> list[dict[str, Any]]:
    source = CrawlSource.model_validate({"kind": "crawl", "name": "site", "start": list(start), **options})
    sources.check(source)
    folder.mkdir(exist_ok=True)
    batches = list(sources.read(source, str(folder)))
    return pa.Table.from_batches(batches, sources.ROWS).to_pylist()


def unordered(rows: list[dict[str, Any]]) -> list[str]:
    """Rows without the time of reading, in one order."""
    return sorted(repr({**row, "crawled_at": None}) for row in rows)


def test_what_is_no_page_makes_no_other_page_be_asked_for_twice(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {"Content-Type": "application/json"}
    site = web({"/": "".join(f"<a href=/{number}></a><a href=/{number}.json></a>" for number in range(100))})
    site.pages |= {f"/{number}": f"<img src={number}.png alt='box {number}'>" for number in range(100)}
    site.pages |= {f"/{number}.json": (200, data, "{}" if number else " " * 70_000) for number in range(100)}
    with caplog.at_level(logging.INFO):
        rows = crawl(tmp_path, f"{site.url}/", agent="vlmdata", contact="https://example.org/bot", delay=0)
    assert len(rows) == 100
    assert "100 pages not read: not a page of HTML" in caplog.text
    asked = [path for path, *_ in site.requests]
    assert len(asked) == len(set(asked))
    assert set(site.pages) < set(asked)


def test_a_large_page_behind_an_answer_that_is_no_page_is_read(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path
) -> None:
    large = "<img src=1.png alt='a large page'>" + "<p>" + " " * 100_000
    site = web({"/": "<a href=/moved></a><a href=/late></a>", "/large": large})
    site.pages["/moved"] = (301, {"Location": "/large", "Content-Type": "text/plain"}, "there")
    site.pages["/late"] = (500, {"Content-Type": "application/json"}, "{}")

    def answered(path: str) -> None:
        if path == "/late":
            site.pages["/late"] = (200, {}, large.replace("1.png", "2.png"))

    site.answered = answered
    rows = crawl(tmp_path, f"{site.url}/", agent="vlmdata", contact="https://example.org/bot", delay=0)
    assert sorted(row["url"] for row in rows) == [f"{site.url}/1.png", f"{site.url}/2.png"]


def test_a_site_is_read_politely_and_only_within_its_host(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = web({"/": "<img src=a alt='of another host'>"})
    site = web(
        {
            "/robots.txt": "User-agent: vlmdata\nDisallow: /private/\n",
            "/": (
                '<html lang=en><a href="a.html#x">a</a><a href="/a.html">a</a><a href="/private/p">p</a>'
                f'<a href="{other.url}/">o</a><a href="/dead">d</a><a href="/moved">m</a><a href="/away">w</a>'
                '<a href="/data.json">j</a><a href="/big.zip">z</a><a href="javascript:x">s</a><a href="http://[::1">b</a>'
            ),
            "/a.html": '<img src="i/1.png" alt="one \x00 red   box"><img src=2.png><a href="/"></a><a href="/b">b</a>',
            "/b": (
                200,
                {"X-Robots-Tag": "noai"},
                "<img src='/x?token=5ecret' alt=two><meta name=robots content=nofollow><a href=/c>",
            ),
            "/moved": (302, {"Location": "/a.html"}, ""),
            "/away": (302, {"Location": f"{other.url}/"}, ""),
            "/data.json": (200, {"Content-Type": "application/json"}, "{}"),
            "/big.zip": "never asked for",
            "/private/p": "never asked for",
            "/c": "never asked for",
        }
    )
    with caplog.at_level(logging.INFO):
        rows = crawl(tmp_path, f"{site.url}/", agent="vlmdata", contact="https://example.org/bot")
    one, two = sorted(rows, key=lambda row: row["caption"])
    assert (one["url"], one["caption"], one["caption_from"]) == (f"{site.url}/i/1.png", "one red box", "alt")
    assert (one["page_url"], one["source"]) == (f"{site.url}/a.html", "site")
    assert one["page_consent"] == {"robots": "allow", "noai": None, "tdm": None, "noml": None}
    assert abs(one["crawled_at"].timestamp() - time.time()) < 60
    assert (two["url"], two["fetch_url"]) == (f"{site.url}/x", f"{site.url}/x?token=5ecret")
    assert two["page_consent"]["noai"] == "deny"
    assert [site.asked(path) for path in ("/private/p", "/big.zip", "/c", "/robots.txt", "/b")] == [0, 0, 0, 1, 1]
    assert other.requests == []
    agents = {agent for _, agent, _ in site.requests}
    assert len(agents) == 1
    assert agents == {f"vlmdata/{importlib.metadata.version('vlmdata')} (+https://example.org/bot)"}
    told = " ".join(record.getMessage() for record in caplog.records)
    for reason in ("1 pages not read: HTTP 404", "forbidden by robots.txt", "another host", "not a page of HTML"):
        assert reason in told


def test_every_page_is_read_whatever_the_order_and_max_pages_is_exact(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path
) -> None:
    pages = {f"/{n}": f"<a href=/{2 * n}><a href=/{2 * n + 1}><img src={n}.png alt='image {n}'>" for n in range(1, 80)}
    site = web(pages)
    rows = crawl(tmp_path, f"{site.url}/1")
    assert sorted(row["caption"] for row in rows) == sorted(f"image {n}" for n in range(1, 80))
    assert {row["page_consent"]["robots"] for row in rows} == {None}, "there is no robots.txt"
    assert len(crawl(tmp_path, f"{site.url}/1", max_pages=7)) == 7


def test_a_killed_crawl_goes_on_without_asking_for_done_pages_again_and_loses_none(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path
) -> None:
    pages = {
        f"/{n}": f"<a href=/{2 * n}><a href=/{2 * n + 1}>" + f"<img src={n}.png alt='image {n}'>" * (n % 3)
        for n in range(1, 128)
    }
    site = web({"/robots.txt": "User-agent: *\nAllow: /\n", **pages})
    code = (
        "from vlmdata.recipe import CrawlSource; from vlmdata import sources;"
        f"source = CrawlSource(kind='crawl', name='site', start=['{site.url}/1'], autothrottle=False);"
        f"list(sources.read(source, {str(tmp_path)!r}))"
    )
    for enough, killed in ((30, "crawler"), (80, "both")):
        with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as parent:
            wait_for(lambda enough=enough: len(site.requests) >= enough)
            [child] = psutil.Process(parent.pid).children()
            child.kill()
            if killed == "both":
                parent.kill()
        assert parent.returncode
    rows = crawl(tmp_path, f"{site.url}/1", autothrottle=False)
    times = [site.asked(path) for path in pages]
    assert min(times) == 1
    assert max(times) <= 3
    assert sum(times) - len(times) <= 2 * 8, "more pages were asked for again than were in flight"
    whole = crawl(tmp_path / "undisturbed", f"{site.url}/1", autothrottle=False)
    assert unordered(rows) == unordered(whole)
    assert len(rows) == sum(n % 3 for n in range(1, 128))


def test_sitemaps_lead_to_pages_that_nothing_links_to(web: Callable[[dict[str, Any]], Web], tmp_path: Path) -> None:
    site = web({f"/{name}": f"<img src=i alt='{name}'><a href=/linked>" for name in ("", "plain", "packed", "linked")})

    def sitemap(kind: str, *urls: str) -> str:
        return (
            f'<?xml version="1.0"?><{kind} xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
            + "".join(
                f"<x><loc>{url if url.startswith('http') else site.url + url}</loc></x>".replace(
                    "x>", "url>" if kind == "urlset" else "sitemap>"
                )
                for url in urls
            )
            + f"</{kind}>"
        )

    xml = {"Content-Type": "application/xml"}
    site.pages |= {
        "/robots.txt": f"Sitemap: {site.url}/index.xml\nUser-agent: *\nDisallow: /no\n",
        "/index.xml": (200, xml, sitemap("sitemapindex", "/packed.xml.gz", "/deep-1.xml", "/broken.xml")),
        "/packed.xml.gz": (200, {"Content-Type": "application/gzip"},
                           gzip.compress(sitemap("urlset", "/packed", "/no", "http://other.invalid/").encode())),
        "/broken.xml": (200, xml, "<html>"),
        "/sitemap.xml": (200, xml, sitemap("urlset", "/plain", "/zipped.zip")),
        **{f"/deep-{n}.xml": (200, xml, sitemap("sitemapindex", f"/deep-{n + 1}.xml")) for n in range(1, 9)},
    }  # fmt: skip
    captions = {row["caption"] for row in crawl(tmp_path / "1", f"{site.url}/", sitemaps=True, max_depth=0)}
    assert captions == {"", "plain", "packed"} - {""}
    assert site.asked("/deep-3.xml") == 1
    assert [site.asked(path) for path in ("/deep-4.xml", "/no", "/zipped.zip", "/linked")] == [0, 0, 0, 0]
    crawl(tmp_path / "2", f"{site.url}/plain", sitemaps=False)
    assert site.asked("/index.xml") == 1


def test_the_depth_limit_counts_links_from_the_start(web: Callable[[dict[str, Any]], Web], tmp_path: Path) -> None:
    site = web({f"/{n}": f"<a href=/{n + 1}><img src=i alt='page {n}'>" for n in range(9)})
    rows = crawl(tmp_path, f"{site.url}/0", f"{site.url}/5", max_depth=2)
    assert sorted(row["caption"] for row in rows) == [f"page {n}" for n in (0, 1, 2, 5, 6, 7)]
    assert site.asked("/3") == 0


def test_pages_with_one_canonical_page_are_read_once_and_under_its_address(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path
) -> None:
    def page(caption: str, canonical: str, links: str = "") -> str:
        return f"<head><link rel=canonical href='{canonical}'></head><img src=/i alt='{caption}'>{links}"

    links = "".join(f"<a href='{link}'>" for link in ("/p?sort=a", "/p?sort=b", "/lost", "/far", "/one"))
    site = web(
        {
            "/": f"<p>{links}",
            "/p?sort=a": page("p", "p", "<a href='/p?sort=c'>"),
            "/p?sort=b": page("p", "/p"),
            "/p": page("p", "/p"),
            "/lost": page("lost", "/no-such-page"),
            "/far": page("far", "https://elsewhere.invalid/far"),
            "/one": page("one", "/two"),
            "/two": page("two", "/one"),
        }
    )
    rows = crawl(tmp_path, f"{site.url}/")
    told = sorted((row["page_url"].removeprefix(site.url), row["caption"]) for row in rows)
    assert told == [("/far", "far"), ("/lost", "lost"), ("/one", "one"), ("/p", "p"), ("/two", "two")]
    assert site.asked("/p?sort=c") == 0, "the links of a copy are its canonical page's to give"


def test_a_host_that_asks_for_time_gets_it(web: Callable[[dict[str, Any]], Web], tmp_path: Path) -> None:
    site = web({f"/{n}": f"<a href=/{n + 1}><a href=/{n + 2}><img src=i alt='page {n}'>" for n in range(1, 9)})
    busy = {"/3": (429, {"Retry-After": "2"}, "later"), "/5": (503, {}, "later")}
    well = {path: site.pages[path] for path in busy}
    site.pages |= busy
    site.answered = lambda path: site.pages.update({path: well[path]}) if path in well else None
    rows = crawl(tmp_path, f"{site.url}/1", autothrottle=False)
    assert sorted(row["caption"] for row in rows) == [f"page {n}" for n in range(1, 9)]
    for path, seconds in (("/3", 2.0), ("/5", 1.0)):
        first, again = [moment for asked, _, moment in site.requests if asked == path]
        assert again - first >= seconds
        waiting = [asked for asked, _, moment in site.requests if first + 0.1 < moment < first + seconds - 0.1]
        assert waiting == [], "nothing else is asked of the host meanwhile"


def test_a_host_that_goes_away_ends_the_crawl_and_the_next_run_goes_on(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path
) -> None:
    well: dict[str, Any] = {f"/{n}": f"<a href=/{n + 1}><img src=i alt='page {n}'>" for n in range(9)}
    site = web(well)
    well["/3"] = "".join(f"<a href=/{n}>" for n in range(4, 9)) + "<img src=i alt='page 3'>"
    site.pages = {**well, **{f"/{n}": (503, {"Retry-After": "0"}, "later") for n in range(4, 9)}}
    with pytest.raises(MachineError, match=r"503 again and again. Run it again later: 4 pages are kept, 5 wait"):
        crawl(tmp_path, f"{site.url}/0")
    site.pages = {**well, "/robots.txt": (500, {}, "")}
    with pytest.raises(MachineError, match=r"robots.txt cannot be read: HTTP 500. Run it again later: 4 pages"):
        crawl(tmp_path, f"{site.url}/0")
    site.pages = well
    assert len(crawl(tmp_path, f"{site.url}/0")) == 9
    assert [site.asked(f"/{n}") for n in range(4)] == [1, 1, 1, 1]


def test_no_private_address_is_reached_that_the_recipe_does_not_name(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name server that answers with a private address, in the crawler's own process.
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\nasked = socket.getaddrinfo\n"
        "socket.getaddrinfo = lambda host, *more, **named: "
        "asked('127.0.0.1' if host.endswith('.example') else host, *more, **named)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    inside = web({"/": "<img src=a alt=b>", "/robots.txt": "User-agent: *\nAllow: /\n"})
    named = f"http://pictures.example:{inside.server.server_port}/"
    with pytest.raises(DataError, match="not a public one"):
        crawl(tmp_path / "1", named)
    outside = web({"/": "<img src=a alt=b>", "/robots.txt": (302, {"Location": f"{inside.url}/robots.txt"}, "")})
    with pytest.raises(DataError, match=r"robots\.txt cannot be read: the address is not a public one"):
        crawl(tmp_path / "2", f"{outside.url}/")
    assert inside.requests == []
    assert outside.asked("/") == 0
    assert len(crawl(tmp_path / "3", named, allow_hosts=[named.split("/")[2]])) == 1


def test_who_crawls_without_a_contact_is_told_so_but_not_at_home(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for start, told in (("http://127.0.0.1:1/", False), ("http://[::1]:1/", False), ("http://10.0.0.1:1/", True)):
        caplog.clear()
        source = CrawlSource.model_validate({"kind": "crawl", "start": [start], "allow_hosts": ["10.0.0.1"]})
        with pytest.raises(NotADirectoryError):
            next(sources.read(source, __file__))
        assert ("no `contact`" in caplog.text) == told


def test_crawl_delay_is_kept(web: Callable[[dict[str, Any]], Web], tmp_path: Path) -> None:
    pages = {f"/{n}": f"<a href=/{n + 1}><a href=/{n + 2}><img src=a alt=b>" for n in range(5)}
    site = web({"/robots.txt": "User-agent: *\nCrawl-delay: 0.4\n", **pages})
    assert len(crawl(tmp_path, f"{site.url}/0")) == 5
    times = [moment for path, _, moment in site.requests if path != "/robots.txt"]
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) > 0.3


def test_start_pages_that_cannot_be_read_are_told_with_their_reasons_and_cost_the_others_nothing(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sites = {
        "HTTP 404": web({}).url,
        "forbidden by robots.txt": web({"/robots.txt": "User-agent: *\nDisallow: /\n", "/": "x"}).url,
        "it leads to another host, http://other.invalid/: name": web(
            {"/": (301, {"Location": "http://u:LEAK@other.invalid/?sig=LEAK"}, "")}
        ).url,
        "not a page of HTML": web({"/": (200, {"Content-Type": "image/png"}, "x"), "/?token=LEAK": "x"}).url,
        "robots.txt cannot be read: DNS lookup failed": "http://gone.invalid",
    }
    urls = [f"{url}/" for url in sites.values()]
    well = web({"/": "<img src=a alt=b>"})
    gone = f"{web({}).url}/gone?token=LEAK"
    assert len(crawl(tmp_path / "1", *urls, gone, f"{well.url}/")) == 1
    (told,) = [record.getMessage() for record in caplog.records if "a start page could not be read" in record.msg]
    for reason, url in {**sites, "HTTP 404": gone.removesuffix("?token=LEAK")}.items():
        assert re.search(rf"{re.escape(url)}/?: [^;]*{re.escape(reason)}", told), (reason, told)
    assert well.url not in told
    with pytest.raises(DataError, match=r"^sources\.site: no start page could be read: .*HTTP 404") as caught:
        crawl(tmp_path / "2", *urls, gone)
    assert "LEAK" not in caplog.text + str(caught.value)


def test_a_start_page_whose_host_cannot_be_reached_for_now_waits_for_the_next_run(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path
) -> None:
    # A robots.txt that fails means no, whatever its body says.
    away = web({"/robots.txt": (503, {}, "User-agent: *\nAllow: /\n"), "/": "<img src=a alt=away>"})
    well = web({"/": "<img src=a alt=well>"})
    start = (f"{away.url}/", "http://127.0.0.1:1/", f"{well.url}/")
    refused = r"127.0.0.1:1: robots.txt cannot be read: Connection was refused"
    with pytest.raises(
        MachineError, match=rf"{refused}.*read: HTTP 503\. Run it again later: 1 pages are kept, 2 wait"
    ):
        crawl(tmp_path, *start)
    away.pages["/robots.txt"] = ""
    with pytest.raises(MachineError, match=rf"{refused}.*: 2 pages are kept, 1 wait"):
        crawl(tmp_path, *start)
    assert (away.asked("/"), well.asked("/")) == (1, 1)


def test_a_host_that_is_away_for_a_day_stops_the_crawl_no_longer(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    closed = web({"/robots.txt": (500, {}, "")})
    site = web({"/": "<a href=/1><a href=/2><img src=a alt=b>", "/1": None, "/2": None})
    start = (f"{site.url}/", f"{closed.url}/")
    for _ in range(2):
        site.answered = lambda path: site.pages.update({"/": None}) if path == "/" else None
        with pytest.raises(MachineError, match=r"1 pages are kept, 3 wait; a host that is still away after a day"):
            crawl(tmp_path, *start)
    with sqlite3.connect(tmp_path / "site.frontier") as db:
        db.execute("UPDATE away SET since = since - 90000")
    db.close()
    assert [row["caption"] for row in crawl(tmp_path, *start)] == ["b"]
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    places = [url.removeprefix("http://") for url in (site.url, closed.url)]
    for place in places:
        assert any(f"{place} could not be reached for a day" in line for line in told), told
    assert any(f"a start page could not be read, and is left out: {closed.url}/: robots.txt" in line for line in told)


@pytest.mark.parametrize("pages", [40, 8])
def test_pages_of_a_host_that_goes_away_for_a_while_are_all_read_in_the_end(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path, pages: int
) -> None:
    well: dict[str, Any] = {f"/{n}": f"<img src=i alt='page {n}'>" for n in range(pages)}
    well |= {"/": "".join(f"<a href=/{n}>" for n in range(pages)), "/robots.txt": ""}
    site = web(dict(well))

    def go_away(path: str) -> None:
        if path == "/3":
            site.pages = dict.fromkeys(well)

    site.answered = go_away
    with pytest.raises(MachineError, match=r"can no longer be reached: .*Run it again later: 5 pages are kept"):
        crawl(tmp_path, f"{site.url}/", concurrency=1, autothrottle=False)
    site.pages, site.answered = well, lambda path: None
    rows = crawl(tmp_path, f"{site.url}/", autothrottle=False)
    assert {row["caption"] for row in rows} == {f"page {n}" for n in range(pages)}
    assert site.asked("/") <= 4, "asked once, and whether the host is there, thrice"
    assert site.asked("/3") == 1


def test_pages_without_an_answer_cost_themselves_only_where_the_host_has_one(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = dict.fromkeys(f"/dead/{n}" for n in range(45))
    links = "".join(f"<a href={path}>" for path in (*dead, "/1", "/2", "/3", "/4"))
    copy = "<head><link rel=canonical href=/2></head><img src=a alt=copy>"
    site = web({"/": links, "/1": "<img src=a alt=one>", "/2": None, "/3": copy, "/4": None, "/robots.txt": "", **dead})
    with caplog.at_level(logging.INFO):
        rows = crawl(tmp_path, f"{site.url}/", autothrottle=False)
    assert sorted(row["caption"] for row in rows) == ["copy", "one"]
    assert "47 pages not read: " in caplog.text


def test_a_name_with_a_version_is_addressed_by_the_name_alone(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path
) -> None:
    pages = {
        "/": "<a href=/no><a href=/1>",
        "/no": "x",
        "/1": (200, {"X-Robots-Tag": "MyBot: noai"}, "<img src=a alt=b>"),
    }
    site = web({"/robots.txt": "User-agent: mybot\nDisallow: /no\n", **pages})
    rows = crawl(tmp_path, f"{site.url}/", agent="MyBot/1.0", contact="me@example.org")
    assert [row["page_consent"]["noai"] for row in rows] == ["deny"]
    assert site.asked("/no") == 0
    assert {agent for _, agent, _ in site.requests} == {"MyBot/1.0 (+me@example.org)"}


def test_a_start_that_is_no_url_is_refused_without_a_request(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sources\.site\.start"):
        crawl(tmp_path, "http://[::1/")


def test_a_page_larger_than_the_limit_costs_itself_only(web: Callable[[dict[str, Any]], Web], tmp_path: Path) -> None:
    site = web({"/": "<a href=/big><a href=/deep><img src=a alt=b>", "/big": "x" * 50_000, "/deep": "<div>" * 30_000})
    site.pages["/big"] = "<img src=big alt=big>" + "x" * 500_000
    assert [row["caption"] for row in crawl(tmp_path, f"{site.url}/", max_page_bytes=200_000)] == ["b"]


def test_the_crawler_ends_with_the_process_that_started_it(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path
) -> None:
    site = web({"/robots.txt": "User-agent: *\nCrawl-delay: 5\n", "/": "<a href=/1><a href=/2><a href=/3>"})
    code = (
        "from vlmdata.recipe import CrawlSource; from vlmdata import sources;"
        f"list(sources.read(CrawlSource(kind='crawl', start=[{site.url + '/'!r}]), {str(tmp_path)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        wait_for(lambda: site.asked("/") > 0)
        [child] = psutil.Process(parent.pid).children()
        parent.kill()
    wait_for(lambda: not child.is_running())


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end, "it did not come about in 30 seconds"
        time.sleep(0.05)
