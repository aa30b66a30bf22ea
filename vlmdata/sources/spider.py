"""The crawl itself, in a process of its own since Scrapy's reactor starts only once in one.

`python -m vlmdata.sources.spider OPTIONS.json FRONTIER` prints its progress as lines of JSON, the last of which is the
outcome. It ends when its standard input is closed: it never outlives the process that started it.
"""

import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import scrapy
from scrapy import signals
from scrapy.crawler import CrawlerProcess
from scrapy.exceptions import DownloadCancelledError, IgnoreRequest, ResponseDataLossError, StopDownload
from scrapy.http import HtmlResponse, Response
from scrapy.linkextractors import IGNORED_EXTENSIONS
from scrapy.spidermiddlewares.httperror import HttpError
from twisted.python.failure import Failure

from vlmdata.download.address import Gate
from vlmdata.download.consent import user_agent
from vlmdata.errors import MachineError
from vlmdata.recipe import CrawlSource
from vlmdata.sources import strip_signature
from vlmdata.sources.crawl import private_hosts
from vlmdata.sources.frontier import DEEPEST_SITEMAP, Frontier, Waiting
from vlmdata.sources.manners import REFUSALS, Boundary, OtherHost, Pace, Resolver, Unreachable
from vlmdata.sources.page import read_page
from vlmdata.sources.reserved import Reserved
from vlmdata.sources.scheduler import Scheduler, end
from vlmdata.sources.sitemap import MAX_SITEMAP_BYTES, read_sitemap
from vlmdata.sources.urls import host_and_port, strip_urls, web_url

_NOT_PAGES = tuple(f".{extension}" for extension in IGNORED_EXTENSIONS)
_NOT_HTML = "not a page of HTML"
_NOT_WORTH_CLOSING = 65_536  # bytes of a body that is not wanted: read to its end, the connection is kept
_LONGEST_VALIDATOR = 300  # characters
_UNREACHABLE_IN_A_ROW = 20  # pages, before the host is asked whether it is gone


class PageSpider(scrapy.Spider):
    """Reads every page that can be reached within the hosts of `start`, nearest first."""

    name = "pages"

    def __init__(self, source: CrawlSource, frontier: Frontier) -> None:
        super().__init__()
        self.source, self.frontier = source, frontier
        self.first = first_pages(source)
        self.hosts = {host for url in self.first for host in _hosts(url)}
        self.gate = Gate(private_hosts(source, self.first))
        self.robots: set[str] = set()  # the hosts and ports that have one
        self.crawl_delay: dict[str, float] = {}  # host -> seconds
        # host and port -> why its robots.txt cannot be read, and whether that is for good
        self.without_robots: dict[str, tuple[str, bool]] = {}
        self.left: dict[str, str] = {}  # host and port -> why it is asked for no more in this run
        self.given_up: dict[str, str] = {}  # … and why in no other run
        self.failed: dict[str, str] = {}
        self.row: dict[str, list[tuple[Waiting, str, str]]] = {}  # host -> its pages without an answer since its last
        self.probed: set[str] = set()
        self.told = time.monotonic()
        frontier.add(self.first, 0)
        for url in self.first:
            frontier.retry(url)

    @classmethod
    def from_crawler(cls, crawler: Any, *args: Any, **options: Any) -> "PageSpider":
        spider = super().from_crawler(crawler, *args, **options)
        crawler.signals.connect(spider.on_headers, signals.headers_received)
        crawler.signals.connect(spider.on_bug, signals.spider_error)
        return spider

    def within(self, url: str) -> bool:
        return url.startswith(("http://", "https://")) and host_and_port(url) in self.hosts

    async def start(self) -> AsyncIterator[scrapy.Request]:
        nothing: list[scrapy.Request] = []  # all that is asked for comes from the frontier
        for request in nothing:
            yield request

    def next_request(self) -> scrapy.Request | None:
        if probe := self._probe(_UNREACHABLE_IN_A_ROW):
            return probe
        while (page := self.frontier.next()) and page.host in self.given_up:
            self._fail(page, self.given_up[page.host], self.given_up[page.host])
        if page is None:
            return self._probe(1) if self.frontier.idle() else None
        meta: dict[str, Any] = {"page": page, "handle_httpstatus_list": [304]}
        if page.sitemap:
            meta["download_maxsize"] = MAX_SITEMAP_BYTES
        asked = {"If-None-Match": page.etag, "If-Modified-Since": page.modified}  # RFC 9110, 13.1
        headers = {name: value for name, value in asked.items() if value}
        return scrapy.Request(
            page.url, self.parse, errback=self.on_failure, dont_filter=True, meta=meta, headers=headers
        )

    def _probe(self, pages: int) -> scrapy.Request | None:
        """A question to a host whose last pages, at least so many, had no answer: is it gone, or are they?

        It is asked for a page that it has given before, else for its robots.txt.
        """
        host = next((host for host, row in self.row.items() if len(row) >= pages and host not in self.probed), None)
        if host is None:
            return None
        self.probed.add(host)
        url = self.frontier.read_of(host) or urljoin(self.row[host][0][0].url, "/robots.txt")
        meta = {"robots_of": host, "probe": True, "handle_httpstatus_all": True}  # "robots_of": no page of the crawl
        return scrapy.Request(url, self.on_probe, errback=self.on_probe_failure, dont_filter=True, meta=meta)

    def on_probe(self, response: Response) -> None:
        host = response.meta["robots_of"]
        if response.status >= 500:
            return self._gone(host, f"HTTP {response.status}")
        self._heard(host)

    def on_probe_failure(self, failure: Failure) -> None:
        reason = strip_urls(str(failure.value)) or type(failure.value).__name__
        self._gone(failure.request.meta["robots_of"], reason)  # type: ignore[attr-defined]

    def _gone(self, host: str, reason: str) -> None:
        self.probed.discard(host)
        if host in self.row:
            self._leave(self.row[host][0][0], f"can no longer be reached: {reason}")

    def _heard(self, host: str) -> None:
        """The host answers: the pages that had no answer before cannot be read."""
        self.probed.discard(host)
        for page, reason, detail in self.row.pop(host, ()):
            self._fail(page, reason, detail)

    def on_robots(self, place: str, sitemaps: list[str]) -> None:
        """The robots.txt of a host and port was read."""
        if not self.source.sitemaps:
            return
        scheme = "https" if place.endswith(":443") else "http"
        named = [url for url in (web_url(link) for link in sitemaps) if url and self.within(url)]
        guess = web_url(f"{scheme}://{place}/sitemap.xml")
        assert guess is not None
        self.frontier.add([*named, guess], -1 - DEEPEST_SITEMAP)

    def on_headers(self, headers: Any, request: scrapy.Request, **_: Any) -> None:
        if "probe" in request.meta:
            raise StopDownload(fail=False)
        if request.meta.pop("not_html", False):  # of the answer before, which led here
            del request.meta["download_maxsize"]
        kind = (headers.get("Content-Type") or b"text/html").lower()
        if b"html" not in kind and "page" in request.meta and not request.meta["page"].sitemap:
            # Not StopDownload: where the body's end came with the head, Twisted gives the connection that it closes to
            # another request, which reaches the host and is then sent a second time.
            request.meta.update(download_maxsize=_NOT_WORTH_CLOSING, not_html=True)

    def on_failure(self, failure: Failure) -> None:
        error, request = failure.value, failure.request  # type: ignore[attr-defined]
        page: Waiting = request.meta["page"]
        reason, detail = type(error).__name__, strip_urls(str(error)) or type(error).__name__
        if isinstance(error, HttpError):
            reason = detail = f"HTTP {error.response.status}"
            if error.response.status in REFUSALS and request.meta.get("gave_up"):
                return self._leave(page, f"answers {reason} again and again")
            self._heard(page.host)
        elif isinstance(error, DownloadCancelledError | ResponseDataLossError):  # too large, or not whole
            self._heard(page.host)
            if request.meta.get("not_html"):
                reason = detail = _NOT_HTML
        elif isinstance(error, OtherHost):
            reason = "another host"
        elif isinstance(error, Unreachable):
            if not (error.for_good and page.url in self.first):
                return self._leave(page, detail)
            reason = detail
        elif isinstance(error, IgnoreRequest):
            reason = detail
        elif page.host in self.left:
            return self._leave(page, self.left[page.host])
        else:
            self.row.setdefault(page.host, []).append((page, reason, detail))
            return self.frontier.set_aside(page)
        self._fail(page, reason, detail)

    def on_bug(self, failure: Failure, response: Response | None) -> None:
        if failure.check(sqlite3.Error):
            end(failure.value)
        if response is not None and self.frontier.holds(response.meta["page"]):
            self._fail(response.meta["page"], "a bug; --debug shows it", "a bug; --debug shows it")

    def _fail(self, page: Waiting, reason: str, detail: str) -> None:
        guessed = page.sitemap and page.url.endswith("/sitemap.xml") and reason == "HTTP 404"
        self.frontier.fail(page, None if guessed else reason)
        if page.url in self.first:
            self.failed[page.url] = detail

    def _leave(self, page: Waiting, reason: str) -> None:
        """The host cannot be asked now: the page waits for the next run, and so do those that had no answer before.

        Where it could not be a day ago either, they count as pages that cannot be read.
        """
        pages = dict.fromkeys([page, *(one for one, *_ in self.row.pop(page.host, ()))])
        if self.frontier.away_for_long(page.host):
            self.given_up[page.host] = reason
            for one in pages:
                self._fail(one, reason, reason)
            return
        self.left[page.host] = reason
        for one in pages:
            self.frontier.leave(one)

    def parse(self, response: Response) -> None:
        page: Waiting = response.meta["page"]
        self._heard(page.host)
        try:
            if response.status == 304:
                self.frontier.keep_unchanged(page)
            elif page.sitemap:
                self._keep_sitemap(page, response)
            else:
                self._keep(page, response)
        except ValueError as error:
            self._fail(page, str(error), str(error))
        if time.monotonic() - self.told >= 1:
            self.told = time.monotonic()
            self.tell()

    def _keep_sitemap(self, page: Waiting, response: Response) -> None:
        found, nested = read_sitemap(response.body, response.url)
        dated = {url: date for url, date in found.items() if date}
        within = [url for url in nested if self.within(url)]
        self.frontier.keep_sitemap(page, self._pages(list(found)), within, dated)

    def _keep(self, waiting: Waiting, response: Response) -> None:
        if not isinstance(response, HtmlResponse):
            raise ValueError(_NOT_HTML)
        url = web_url(response.url)
        if url is None:
            raise ValueError("its address is no URL")
        headers = {
            name.decode("latin-1").lower(): [value.decode("latin-1") for value in values]
            for name, values in response.headers.items()
        }
        page = read_page(response.text, url, headers, self.source.agent)
        # What the page says comes before the host's robots.txt and tdmrep.json.
        robots = page.consent["robots"] or ("allow" if host_and_port(url) in self.robots else None)
        consent = {**page.consent, "robots": robots, "tdm": page.consent["tdm"] or response.meta.get("tdm")}
        shared = {
            "source": self.source.name,
            "page_url": strip_signature(url)[0],
            "lang_hint": page.lang,
            "license": page.license,
            "page_consent": consent,
            "crawled_at": round(time.time() * 1000),
        }
        images = [image._asdict() for image in page.images]
        canonical = page.canonical if page.canonical and self.within(page.canonical) else None
        self.frontier.keep(
            waiting,
            url,
            [shared, images],
            len(images),
            self._pages(page.links),
            canonical if canonical != url else None,
            page.left_out,
            _short(headers.get("etag")),
            _short(headers.get("last-modified")),
        )

    def _pages(self, links: list[str]) -> list[str]:
        return [link for link in links if self.within(link) and not link.lower().endswith(_NOT_PAGES)]

    def tell(self, **more: Any) -> None:
        print(json.dumps({"pages": self.frontier.read, "pairs": self.frontier.pairs, **more}), flush=True)  # noqa: T201 - the protocol


def _short(values: list[str] | None) -> str | None:
    """The first of a header's values, if it is no longer than one should be."""
    return values[0] if values and 0 < len(values[0]) <= _LONGEST_VALIDATOR else None


def first_pages(source: CrawlSource) -> list[str]:
    """The start URLs in the form that they are asked for, each once."""
    return list(dict.fromkeys(url for url in map(web_url, source.start) if url))


def settings(source: CrawlSource) -> dict[str, Any]:
    """Scrapy's settings for a source. https://docs.scrapy.org/en/latest/topics/settings.html"""
    first = first_pages(source)
    return {
        "USER_AGENT": user_agent(source),
        "ROBOTSTXT_OBEY": False,  # Boundary does
        "CONCURRENT_REQUESTS": min(256, max(16, source.concurrency * len(first))),
        "CONCURRENT_REQUESTS_PER_DOMAIN": source.concurrency,
        "DOWNLOAD_DELAY": source.delay,
        "DOWNLOAD_DELAY_JITTER": 0.0,
        "DOWNLOAD_MAXSIZE": source.max_page_bytes,
        "DOWNLOAD_WARNSIZE": 0,
        "DOWNLOAD_TIMEOUT": 60,
        "DOWNLOAD_VERIFY_CERTIFICATES": True,
        "REDIRECT_MAX_TIMES": 5,
        "RETRY_HTTP_CODES": [408, 500, 502, 504, 522, 524],  # Pace waits before it retries the others
        "RETRY_GIVE_UP_LOG_LEVEL": "DEBUG",
        "DOWNLOADER_MIDDLEWARES": {
            Pace: 560,
            Boundary: 100,
            Reserved: 105,
            "scrapy.downloadermiddlewares.offsite.OffsiteMiddleware": None,  # it lets subdomains and other ports pass
        },
        "HTTPPROXY_ENABLED": False,  # a proxy would look the address up itself
        "SCHEDULER": Scheduler,
        "TWISTED_DNS_RESOLVER": Resolver,
        "PRIVATE_HOSTS": private_hosts(source, first),  # the resolver's
        "CONCURRENT_ITEMS": 1,  # pages yield nothing; Scrapy would start a hundred tasks for each page
        "WARN_ON_GENERATOR_RETURN_VALUE": False,
        "REFERER_ENABLED": False,
        "COOKIES_ENABLED": False,
        "TELNETCONSOLE_ENABLED": False,
        "EXTENSIONS": {"scrapy.extensions.logstats.LogStats": None},
        "LOG_LEVEL": "ERROR",
    }


def _hosts(url: str) -> list[str]:
    """The host and port of a URL; http and https at their own ports are one site."""
    name, _, port = host_and_port(url).rpartition(":")
    return [f"{name}:80", f"{name}:443"] if port in ("80", "443") else [f"{name}:{port}"]


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(4)


def main(options: str, path: str) -> None:
    """Crawl until the frontier has nothing more to give, and print the outcome."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    spec = json.loads(Path(options).read_text("utf-8"))
    source = CrawlSource.model_validate(spec["source"])
    try:
        frontier = Frontier(Path(path), spec["crawl"], source.concurrency, source.max_depth, source.max_pages)
    except MachineError as error:
        end(error)
    with frontier:
        process = CrawlerProcess(settings(source))
        crawler = process.create_crawler(PageSpider)
        process.crawl(crawler, source=source, frontier=frontier)
        process.start()
        spider = crawler.spider
        assert isinstance(spider, PageSpider)
        frontier.note_away(spider.left)
        spider.tell(
            left=spider.left,
            given_up=spider.given_up,
            failed=spider.failed,
            failures=frontier.failures(),
            **frontier.counts(),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
