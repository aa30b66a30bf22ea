"""Crawls of small websites on loopback."""

import itertools
import logging
import re
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
from vlmdata.errors import DataError, InputError
from vlmdata.recipe import CrawlSource

Answer = tuple[int, dict[str, str], str]


class Web:
    """A website of path -> answer; what is not there is 404. Keeps (path, user agent, time) of every request."""

    def __init__(self, pages: dict[str, str | Answer]) -> None:
        self.pages, self.requests = pages, list[tuple[str, str, float]]()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.requests.append((self.path, self.headers["User-Agent"], time.monotonic()))
                answer = web.pages.get(self.path, (404, {}, "nothing here"))
                status, headers, body = (200, {}, answer) if isinstance(answer, str) else answer
                self.send_response(status)
                for name, value in {"Content-Type": "text/html; charset=utf-8", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

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
    batches = list(sources.read(source, str(folder)))
    return pa.Table.from_batches(batches, sources.ROWS).to_pylist()


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
    assert agents.pop().startswith("vlmdata/")
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


def test_crawl_delay_is_kept(web: Callable[[dict[str, Any]], Web], tmp_path: Path) -> None:
    pages = {f"/{n}": f"<a href=/{n + 1}><a href=/{n + 2}><img src=a alt=b>" for n in range(5)}
    site = web({"/robots.txt": "User-agent: *\nCrawl-delay: 0.4\n", **pages})
    assert len(crawl(tmp_path, f"{site.url}/0")) == 5
    times = [moment for path, _, moment in site.requests if path != "/robots.txt"]
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) > 0.3


def test_start_pages_that_cannot_be_read_are_an_error_with_their_reasons(
    web: Callable[[dict[str, Any]], Web], tmp_path: Path
) -> None:
    sites = {
        "HTTP 404": web({}).url,
        "forbidden by robots.txt": web({"/robots.txt": "User-agent: *\nDisallow: /\n", "/": "x"}).url,
        "it leads to another host, http://other.invalid/": web(
            {"/": (301, {"Location": "http://other.invalid/"}, "")}
        ).url,
        "not a page of HTML": web({"/": (200, {"Content-Type": "image/png"}, "x")}).url,
        "robots.txt cannot be read: Connection was refused": "http://127.0.0.1:1",
    }
    # A robots.txt that fails means no, whatever its body says.
    failing = web({"/robots.txt": (503, {}, "User-agent: *\nAllow: /\n"), "/": "x"}).url
    well = web({"/": "<img src=a alt=b>"}).url
    with pytest.raises(DataError, match=r"^sources\.site: a start page could not be read: ") as caught:
        crawl(tmp_path, *(f"{url}/" for url in (*sites.values(), failing, well)))
    for reason, url in {**sites, "robots.txt cannot be read: HTTP 503": failing}.items():
        assert re.search(rf"{re.escape(url)}/: [^;]*{re.escape(reason)}", str(caught.value)), (
            reason,
            str(caught.value),
        )
    assert well not in str(caught.value)


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
