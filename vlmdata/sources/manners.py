"""How a crawl behaves towards hosts: which it may ask, what their robots.txt says, and how often they are asked."""

import datetime
import email.utils
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import scrapy
from scrapy import signals
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.exceptions import IgnoreRequest
from scrapy.http import Response
from scrapy.resolver import CachingHostnameResolver
from scrapy.utils.sitemap import sitemap_urls_from_robots
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface import implementer

from vlmdata.download.address import Blocked, Gate
from vlmdata.sources.urls import host_and_port

_LONGEST_DELAY = 60.0  # seconds; a robots.txt that asks for more must not stop the crawl
_LONGEST_WAIT = 600.0  # seconds that Retry-After is granted
_TRIES = 5  # of a page that the host refuses with 429 or 503
_ROUNDS = 8  # of waiting for a host that refuses everything, before it is left alone
REFUSALS = (429, 503)


class OtherHost(IgnoreRequest):
    """A redirect to a host that the recipe does not name."""


class Boundary:
    """Scrapy middleware: no request leaves the hosts of `start`, and a robots.txt that fails forbids all.

    It stands nearest to the engine: before robots.txt is asked for, and behind retries, so that the last answer counts.
    """

    def __init__(self, spider: Any) -> None:
        self.spider = spider

    @classmethod
    def from_crawler(cls, crawler: Any) -> "Boundary":
        return cls(crawler.spider)

    def process_request(self, request: scrapy.Request) -> None:
        place = host_and_port(request.url)
        name, _, port = place.rpartition(":")
        if request.meta.get("dont_obey_robotstxt"):  # may be redirected to any public host: RFC 9309, 2.3.1.2
            request.meta.setdefault("robots_of", place)
        elif not self.spider.within(request.url):
            raise OtherHost(f"it leads to another host, {request.url}: name that one in `start` if it is meant")
        try:
            self.spider.gate.check(name.strip("[]"), int(port))
        except Blocked as error:
            raise IgnoreRequest(str(error)) from error

    def process_response(self, request: scrapy.Request, response: Response) -> Response:
        place = request.meta.get("robots_of")
        if place is None or place in self.spider.without_robots:
            return response
        if response.status >= 500 or response.status in REFUSALS:
            return self._forbid_all(request, f"HTTP {response.status}")
        if response.status >= 300:  # RFC 9309, 2.3.1.3: unavailable means no restriction
            response = response.replace(body=b"")
        else:
            self.spider.robots.add(place)
        self.spider.on_robots(place, list(sitemap_urls_from_robots(response.body, request.url)))
        return response

    def process_exception(self, request: scrapy.Request, exception: Exception) -> Response | None:
        if "robots_of" not in request.meta:
            return None
        return self._forbid_all(request, str(exception) or type(exception).__name__)

    def _forbid_all(self, request: scrapy.Request, reason: str) -> Response:
        """RFC 9309, 2.3.1.4: unreachable means complete disallow."""
        self.spider.without_robots[request.meta["robots_of"]] = reason
        return Response(request.url, body=b"User-agent: *\nDisallow: /\n", request=request)


class Pace:
    """Scrapy middleware: when a host may be asked again.

    The time between two requests to a host is the longest of the recipe's `delay`, its robots.txt's crawl-delay, and,
    with `autothrottle`, what the host needs for an answer, so that about one request is under way
    (https://docs.scrapy.org/en/latest/topics/autothrottle.html). After a 429 or 503 nothing is asked of the host for
    as long as its Retry-After says, at most ten minutes, else for a time that doubles.
    Scrapy's own AutoThrottle forgets a crawl-delay, and its retries do not wait.
    """

    def __init__(self, crawler: Any) -> None:
        self.crawler, self.source = crawler, crawler.spider.source
        self.crawl_delay: dict[str, float] = {}
        self.free_at: dict[str, float] = {}
        self.rounds: Counter[str] = Counter()
        crawler.signals.connect(self.on_robots, signals.robots_parsed)
        crawler.signals.connect(self.on_request, signals.request_reached_downloader)
        crawler.signals.connect(self.on_response, signals.response_downloaded)

    @classmethod
    def from_crawler(cls, crawler: Any) -> "Pace":
        return cls(crawler)

    def on_robots(self, robotparser: Any, request: scrapy.Request) -> None:
        host = slot_name(request)
        asked = min(robotparser.crawl_delay(self.source.agent) or 0.0, _LONGEST_DELAY)
        self.crawl_delay[host] = max(self.crawl_delay.get(host, 0.0), asked)

    def on_request(self, request: scrapy.Request) -> None:
        slot = self._slot(request)
        if slot is not None:
            slot.delay = max(slot.delay, self._least(request))

    def on_response(self, response: Response, request: scrapy.Request) -> None:
        slot, latency = self._slot(request), request.meta.get("download_latency")
        if response.status in REFUSALS:
            self._wait(request, slot, response)
            return
        self.rounds[slot_name(request)] = 0
        if latency is not None and self.source.autothrottle:
            wanted = min(max(latency, (slot.delay + latency) / 2), _LONGEST_DELAY)
            if response.status == 200 or wanted > slot.delay:  # an error page, which is quick, makes nothing faster
                slot.delay = max(wanted, self._least(request))

    def _wait(self, request: scrapy.Request, slot: Any, response: Response) -> None:
        host, now, asked = slot_name(request), time.monotonic(), retry_after(response.headers)
        if now >= self.free_at.get(host, 0.0):  # an answer to what was under way tells nothing new
            self.rounds[host] += 1
        if self.gave_up(request):
            return
        wait = min(2.0 ** (self.rounds[host] - 1) if asked is None else asked, _LONGEST_WAIT)
        self.free_at[host] = max(self.free_at.get(host, 0.0), now + wait)
        # Scrapy's downloader sends a host nothing for `delay` seconds after `lastseen`.
        slot.delay = max(slot.delay, 0.001)
        slot.lastseen = self.free_at[host] - slot.delay

    def process_response(self, request: scrapy.Request, response: Response) -> Response | scrapy.Request:
        request.meta["gave_up"] = self.gave_up(request)
        if response.status not in REFUSALS or self.gave_up(request):
            return response
        tries = 2 if "robots_of" in request.meta else _TRIES
        if (retry_after(response.headers) or 0.0) > _LONGEST_WAIT:
            tries = 1
        reason = f"HTTP {response.status}"
        again = get_retry_request(request, spider=self.crawler.spider, reason=reason, max_retry_times=tries - 1)
        return again or response

    def gave_up(self, request: scrapy.Request) -> bool:
        """Whether the host has refused everything for so long that it is left alone."""
        return self.rounds[slot_name(request)] > _ROUNDS

    def _least(self, request: scrapy.Request) -> float:
        return max(self.source.delay, self.crawl_delay.get(slot_name(request), 0.0))

    def _slot(self, request: scrapy.Request) -> Any:
        return self.crawler.engine.downloader.slots.get(request.meta.get("download_slot"))


def slot_name(request: scrapy.Request) -> str:
    """The host that a request goes to, which Scrapy's downloader has a queue for."""
    return urlsplit(request.url).hostname or ""


def retry_after(headers: Mapping[str, Any]) -> float | None:
    """The seconds that `Retry-After` asks for, from its number or its date, or None. RFC 9110, 10.2.3."""
    value = (headers.get("Retry-After") or b"").decode("latin-1").strip()
    if value.isdecimal() and value.isascii():
        return float(value[:9])
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())


class Resolver(CachingHostnameResolver):
    """Asks the system for a host's addresses and gives out those that the gate lets through.

    What is given out is what is connected to, literal addresses too: neither a redirect nor a DNS answer leads into
    the machine's own network.
    """

    def __init__(self, reactor: Any, cache_size: int, gate: Gate) -> None:
        super().__init__(reactor, cache_size)
        self.gate = gate

    @classmethod
    def from_crawler(cls, crawler: Any, reactor: Any) -> "Resolver":
        settings = crawler.settings
        return cls(reactor, settings.getint("DNSCACHE_SIZE"), Gate(settings.getlist("PRIVATE_HOSTS")))

    def resolveHostName(self, resolutionReceiver: Any, hostName: str, portNumber: int = 0, *more: Any) -> Any:
        passing: Any = _Passing(resolutionReceiver, self.gate, hostName, portNumber)
        return super().resolveHostName(passing, hostName, portNumber, *more)


@implementer(IResolutionReceiver)
class _Passing:
    """Hands on what the gate lets through of a name's addresses."""

    def __init__(self, receiver: Any, gate: Gate, host: str, port: int) -> None:
        self.receiver, self.gate, self.host, self.port = receiver, gate, host, port

    def resolutionBegan(self, resolution: Any) -> None:
        self.receiver.resolutionBegan(resolution)

    def addressResolved(self, address: Any) -> None:
        try:
            self.gate.choose(self.host, self.port, [address.host])
        except Blocked:
            return
        self.receiver.addressResolved(address)

    def resolutionComplete(self) -> None:
        self.receiver.resolutionComplete()
