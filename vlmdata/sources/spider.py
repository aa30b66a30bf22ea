"""The crawl itself, in a process of its own since Scrapy's reactor starts only once in one.

`python -m vlmdata.sources.spider OPTIONS.json ROWS.arrow` prints its progress as lines of JSON, the last of which is
the outcome. It ends when its standard input is closed: it never outlives the process that started it.
"""

import datetime
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import scrapy
from scrapy import signals
from scrapy.crawler import CrawlerProcess
from scrapy.exceptions import CloseSpider, IgnoreRequest, StopDownload
from scrapy.http import HtmlResponse, Response
from scrapy.linkextractors import IGNORED_EXTENSIONS
from scrapy.spidermiddlewares.httperror import HttpError
from twisted.python.failure import Failure

from vlmdata.recipe import CrawlSource
from vlmdata.sources import BATCH_ROWS, ROWS, strip_signature
from vlmdata.sources.page import read_page
from vlmdata.sources.urls import host_and_port, web_url

_LONGEST_DELAY = 60.0  # seconds; a robots.txt that asks for more must not stop the crawl
_NOT_PAGES = tuple(f".{extension}" for extension in IGNORED_EXTENSIONS)


class OtherHost(IgnoreRequest):
    """A redirect to a host that the recipe does not name."""


class Boundary:
    """Scrapy middleware: no request leaves the hosts of `start`, and a robots.txt that fails forbids all."""

    def __init__(self, crawler: Any) -> None:
        self.crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Any) -> "Boundary":
        return cls(crawler)

    def process_request(self, request: scrapy.Request) -> None:
        if not self.crawler.spider.within(request.url):
            raise OtherHost(f"it leads to another host, {request.url}: name that one in `start` if it is meant")

    def process_response(self, request: scrapy.Request, response: Response) -> Response:
        if request.meta.get("dont_obey_robotstxt"):
            if response.status >= 500:  # RFC 9309, 2.3.1.4: unreachable means complete disallow
                return response.replace(status=200, body=b"User-agent: *\nDisallow: /\n")
            if response.status >= 400:  # RFC 9309, 2.3.1.3: unavailable means no restriction
                return response.replace(body=b"")
            self.crawler.spider.robots.add(host_and_port(response.url))
        return response


class PageSpider(scrapy.Spider):
    """Reads every page that can be reached within the hosts of `start`, nearest first."""

    name = "pages"

    def __init__(self, source: CrawlSource, rows: pa.RecordBatchFileWriter) -> None:
        super().__init__()
        self.source, self.rows = source, rows
        self.first = [url for url in (web_url(link) for link in source.start) if url]
        self.hosts = {host for url in self.first for host in _hosts(url)}
        self.robots: set[str] = set()
        self.delay = 0.0
        self.asked: set[str] = set()
        self.read: set[str] = set()
        self.failed: dict[str, str] = {}
        self.failures: Counter[str] = Counter()
        self.held: list[dict[str, Any]] = []
        self.pairs = self.images_left_out = 0
        self.told = time.monotonic()

    @classmethod
    def from_crawler(cls, crawler: Any, *args: Any, **options: Any) -> "PageSpider":
        spider = super().from_crawler(crawler, *args, **options)
        crawler.signals.connect(spider.on_robots, signals.robots_parsed)
        crawler.signals.connect(spider.on_request, signals.request_reached_downloader)
        crawler.signals.connect(spider.on_headers, signals.headers_received)
        return spider

    def within(self, url: str) -> bool:
        return url.startswith(("http://", "https://")) and host_and_port(url) in self.hosts

    async def start(self) -> AsyncIterator[scrapy.Request]:
        for url in self.first:
            if url not in self.asked:
                self.asked.add(url)
                yield self._request(url, {"start": url})

    def _request(self, url: str, meta: dict[str, str] | None = None) -> scrapy.Request:
        # `asked` does what Scrapy's filter would do, without a hash of every link of every page.
        return scrapy.Request(url, self.parse, errback=self.on_failure, dont_filter=True, meta=meta)

    def on_robots(self, robotparser: Any, request: scrapy.Request) -> None:
        asked = robotparser.crawl_delay(self.source.agent)
        self.delay = max(self.delay, min(asked or 0.0, _LONGEST_DELAY))

    def on_request(self, request: scrapy.Request) -> None:
        slot = self.crawler.engine.downloader.slots.get(request.meta["download_slot"])
        if slot is not None and self.delay > slot.delay:
            slot.delay, slot.jitter = self.delay, 0.0

    def on_headers(self, headers: Any, request: scrapy.Request, **_: Any) -> None:
        kind = (headers.get("Content-Type") or b"text/html").lower()
        if b"html" not in kind and not request.meta.get("dont_obey_robotstxt"):
            raise StopDownload(fail=False)  # parse sees what it is

    def on_failure(self, failure: Failure) -> None:
        error, request = failure.value, failure.request  # type: ignore[attr-defined]
        if isinstance(error, HttpError):
            reason = f"HTTP {error.response.status}"
        elif isinstance(error, OtherHost):
            reason = "another host"
        elif isinstance(error, IgnoreRequest):
            reason = "forbidden by robots.txt"
        else:
            reason = type(error).__name__
        self.failures[reason] += 1
        if "start" in request.meta:
            detail = str(error) if isinstance(error, OtherHost) or reason == type(error).__name__ else reason
            self.failed[request.meta["start"]] = detail or reason

    def parse(self, response: Response) -> Iterator[scrapy.Request]:
        if self.source.max_pages is not None and len(self.read) >= self.source.max_pages:
            raise CloseSpider("max_pages")
        url = web_url(response.url)
        if url is None or url in self.read:  # two links may be redirected to one page
            return
        headers = {
            name.decode("latin-1").lower(): [value.decode("latin-1") for value in values]
            for name, values in response.headers.items()
        }
        try:
            if not isinstance(response, HtmlResponse):
                raise ValueError("not a page of HTML")
            page = read_page(response.text, url, headers, self.source.agent)
        except ValueError as error:
            self.failures[str(error)] += 1
            if "start" in response.meta:
                self.failed[response.meta["start"]] = str(error)
            return
        self.read.add(url)
        self.asked.add(url)
        self.images_left_out += page.left_out
        self._keep(url, page)
        for link in page.links:
            if link not in self.asked and self.within(link) and not link.lower().endswith(_NOT_PAGES):
                self.asked.add(link)
                yield self._request(link)

    def _keep(self, url: str, page: Any) -> None:
        robots = "allow" if host_and_port(url) in self.robots else None
        shared = dict.fromkeys(ROWS.names) | {
            "source": self.source.name,
            "page_url": strip_signature(url)[0],
            "lang_hint": page.lang,
            "license": page.license,
            "page_consent": {"robots": robots, **page.consent},
            "crawled_at": datetime.datetime.now(datetime.UTC),
        }
        for image in page.images:
            self.held.append(shared | image._asdict())
        self.pairs += len(page.images)
        if len(self.held) >= BATCH_ROWS:
            self.flush()
        if time.monotonic() - self.told >= 1:
            self.told = time.monotonic()
            self.tell()

    def flush(self) -> None:
        for start in range(0, len(self.held), BATCH_ROWS):
            self.rows.write_batch(pa.RecordBatch.from_pylist(self.held[start : start + BATCH_ROWS], ROWS))
        self.held = []

    def tell(self, **more: Any) -> None:
        print(json.dumps({"pages": len(self.read), "pairs": self.pairs, **more}), flush=True)  # noqa: T201 - the protocol


def settings(source: CrawlSource, version: str) -> dict[str, Any]:
    """Scrapy's settings for a source. https://docs.scrapy.org/en/latest/topics/settings.html"""
    return {
        "USER_AGENT": f"{source.agent}/{version}" + (f" (+{source.contact})" if source.contact else ""),
        "ROBOTSTXT_OBEY": True,
        "ROBOTSTXT_USER_AGENT": source.agent,
        "CONCURRENT_REQUESTS": max(16, source.concurrency),
        "CONCURRENT_REQUESTS_PER_DOMAIN": source.concurrency,
        "DOWNLOAD_DELAY": source.delay,
        "DOWNLOAD_DELAY_JITTER": 0.0,
        "DOWNLOAD_MAXSIZE": source.max_page_bytes,
        "DOWNLOAD_WARNSIZE": 0,
        "DOWNLOAD_TIMEOUT": 60,
        "DOWNLOAD_VERIFY_CERTIFICATES": True,
        "REDIRECT_MAX_TIMES": 5,
        "DOWNLOADER_MIDDLEWARES": {
            Boundary: 540,  # behind retries, so that robots.txt's last answer counts
            "scrapy.downloadermiddlewares.offsite.OffsiteMiddleware": None,  # it lets subdomains and other ports pass
        },
        "SCHEDULER_MEMORY_QUEUE": "scrapy.squeues.FifoMemoryQueue",  # nearest pages first
        "CONCURRENT_ITEMS": 1,  # pages yield requests alone; Scrapy would start a hundred tasks for each page
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


def main(options: str, rows: str) -> None:
    """Crawl, write the rows as an Arrow file and print the outcome."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    spec = json.loads(Path(options).read_text("utf-8"))
    source = CrawlSource.model_validate(spec["source"])
    with pa.ipc.new_file(rows, ROWS, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        process = CrawlerProcess(settings(source, spec["version"]))
        crawler = process.create_crawler(PageSpider)
        process.crawl(crawler, source=source, rows=writer)
        process.start()
        spider = crawler.spider
        assert isinstance(spider, PageSpider)
        assert crawler.stats is not None
        spider.flush()
    spider.tell(
        failed=spider.failed,
        failures=dict(spider.failures.most_common(20)),
        errors=sum(v for k, v in crawler.stats.get_stats().items() if k.startswith("spider_exceptions/")),
        left_out=spider.images_left_out,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
