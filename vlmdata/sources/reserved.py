"""What a crawled host reserves in its `/.well-known/tdmrep.json`, asked for once before the host's first page."""

import asyncio
import logging
from typing import Any
from urllib.parse import urlsplit

import scrapy
from scrapy.http import Response
from scrapy.http.request import NO_CALLBACK

from vlmdata.download.tdmrep import MOST_BYTES, PATH, Reservations

log = logging.getLogger(__name__)


class Reserved:
    """Scrapy middleware: leaves in a page's `meta["tdm"]` what the file says of it. A file that does not come, and one
    that robots.txt forbids, says nothing. It stands behind robots.txt: of a host that forbids all nothing is asked."""

    def __init__(self, crawler: Any) -> None:
        self.crawler = crawler
        self.asked: dict[str, asyncio.Task[Response]] = {}
        self.rules: dict[str, Reservations] = {}

    @classmethod
    def from_crawler(cls, crawler: Any) -> "Reserved":
        return cls(crawler)

    async def process_request(self, request: scrapy.Request) -> None:
        if "page" not in request.meta:  # the crawl's own: robots.txt, and the file that is asked for here
            return
        origin = _origin(request.url)
        if origin not in self.asked:
            meta = {"reserved": True, "download_maxsize": MOST_BYTES}
            own = scrapy.Request(origin + PATH, callback=NO_CALLBACK, dont_filter=True, meta=meta)
            self.asked[origin] = asyncio.ensure_future(self.crawler.engine.download_async(own))
        answer = self.asked[origin]
        await asyncio.wait([answer])
        if origin not in self.rules:
            error = answer.exception()
            log.debug("%s%s: %s", origin, PATH, error or answer.result().status)
            came = error is None and answer.result().status == 200
            self.rules[origin] = Reservations(answer.result().body if came else b"")

    def process_response(self, request: scrapy.Request, response: Response) -> Response:
        rules = self.rules.get(_origin(request.url))
        if rules is not None and "page" in request.meta:
            request.meta["tdm"] = rules.says(response.url)
        return response


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
