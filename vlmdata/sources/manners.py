"""How a crawl behaves towards hosts: which it may ask, what their robots.txt says, and how often they are asked."""

import asyncio
import datetime
import email.utils
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import scrapy
from protego import Protego
from scrapy import signals
from scrapy.downloadermiddlewares.retry import get_retry_request
from scrapy.exceptions import CannotResolveHostError, IgnoreRequest
from scrapy.http import Response
from scrapy.http.request import NO_CALLBACK
from scrapy.resolver import CachingHostnameResolver
from twisted.internet.error import DNSLookupError
from twisted.internet.interfaces import IResolutionReceiver
from zope.interface import implementer

from vlmdata.download.address import Blocked, Gate
from vlmdata.download.consent import product
from vlmdata.sources.urls import host_and_port, strip_signature, strip_urls

_LONGEST_DELAY = 60.0  # seconds; a robots.txt that asks for more must not stop the crawl
_LONGEST_WAIT = 600.0  # seconds that Retry-After is granted
_TRIES = 8  # of a page that the host refuses with 429 or 503; a host that refuses so often in a row is left alone
REFUSALS = (429, 503)
_ROBOTS_LIFE = 86_400.0  # seconds: RFC 9309, 2.4
_ROBOTS_BYTES = 512_000  # RFC 9309, 2.5


class OtherHost(IgnoreRequest):
    """A redirect to a host that the recipe does not name."""


class Unreachable(IgnoreRequest):
    """The host's robots.txt cannot be read, which forbids everything for now (RFC 9309, 2.3.1.4).

    for_good: asking later will give the same, since the host's name or address is none to be asked.
    """

    def __init__(self, reason: str, for_good: bool) -> None:
        super().__init__(f"robots.txt cannot be read: {reason}")
        self.for_good = for_good


class Boundary:
    """Scrapy middleware: no request leaves the hosts of `start`, and none goes where robots.txt says no (RFC 9309).

    Scrapy's own robots.txt middleware lets all but two of the requests pass that wait for one robots.txt, and allows
    everything where it cannot be read.
    """

    def __init__(self, crawler: Any) -> None:
        self.crawler, self.spider = crawler, crawler.spider
        self.rules: dict[str, tuple[float, asyncio.Future[Protego]]] = {}

    @classmethod
    def from_crawler(cls, crawler: Any) -> "Boundary":
        return cls(crawler)

    async def process_request(self, request: scrapy.Request) -> None:
        place, is_page = host_and_port(request.url), "robots_of" not in request.meta
        if is_page and not self.spider.within(request.url):
            raise OtherHost(
                f"it leads to another host, {strip_signature(request.url)[0]}: name that one in `start` if it is meant"
            )
        name, _, port = place.rpartition(":")
        try:
            self.spider.gate.check(name, int(port))
        except Blocked as error:
            raise IgnoreRequest(str(error)) from error
        if is_page:
            rules = await self._rules(place, request.url)
            if place in self.spider.without_robots:
                raise Unreachable(*self.spider.without_robots[place])
            if not rules.can_fetch(request.url, product(self.spider.source.agent)):
                raise IgnoreRequest("forbidden by robots.txt")

    async def _rules(self, place: str, url: str) -> Protego:
        asked_at, rules = self.rules.get(place, (0.0, None))
        if rules is None or time.monotonic() - asked_at > _ROBOTS_LIFE:
            rules = asyncio.ensure_future(self._read(place, urljoin(url, "/robots.txt")))
            self.rules[place] = time.monotonic(), rules
        return await asyncio.shield(rules)

    async def _read(self, place: str, url: str) -> Protego:
        """A host's robots.txt, which may be redirected to any public host (RFC 9309, 2.3.1.2)."""
        request = scrapy.Request(url, callback=NO_CALLBACK, dont_filter=True, meta={"robots_of": place})
        self.spider.without_robots.pop(place, None)
        body = b""
        try:
            response = await self.crawler.engine.download_async(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the host's word is not known, and nothing allowed
            name = urlsplit(url).hostname
            private = name in reactor_resolver().refused
            reason = "the host's name leads to an address that is not a public one" if private else str(error)
            for_good = private or isinstance(error, IgnoreRequest | DNSLookupError | CannotResolveHostError)
            self.spider.without_robots[place] = strip_urls(reason) or type(error).__name__, for_good
        else:
            if response.status >= 500 or response.status in REFUSALS:
                self.spider.without_robots[place] = f"HTTP {response.status}", False
            elif response.status < 300:
                body = response.body[:_ROBOTS_BYTES]
                self.spider.robots.add(place)  # else it is unavailable, which is no restriction: 2.3.1.3
        rules = Protego.parse(body.decode("utf-8-sig", "replace"))
        asked = min(rules.crawl_delay(product(self.spider.source.agent)) or 0.0, _LONGEST_DELAY)
        host = slot_name(request)
        self.spider.crawl_delay[host] = max(self.spider.crawl_delay.get(host, 0.0), asked)
        if place not in self.spider.without_robots:
            self.spider.on_robots(place, list(rules.sitemaps))
        return rules


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
        self.free_at: dict[str, float] = {}
        self.rounds: Counter[str] = Counter()
        crawler.signals.connect(self.on_request, signals.request_reached_downloader)
        crawler.signals.connect(self.on_response, signals.response_downloaded)

    @classmethod
    def from_crawler(cls, crawler: Any) -> "Pace":
        return cls(crawler)

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
        tries = _TRIES if "page" in request.meta else 2
        if (retry_after(response.headers) or 0.0) > _LONGEST_WAIT:
            tries = 1
        reason = f"HTTP {response.status}"
        again = get_retry_request(request, spider=self.crawler.spider, reason=reason, max_retry_times=tries - 1)
        return again or response

    def gave_up(self, request: scrapy.Request) -> bool:
        """Whether the host has refused everything for so long that it is left alone."""
        return self.rounds[slot_name(request)] >= _TRIES

    def _least(self, request: scrapy.Request) -> float:
        return max(self.source.delay, self.crawler.spider.crawl_delay.get(slot_name(request), 0.0))

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
        self.refused: set[str] = set()  # names that have no other addresses than private ones

    @classmethod
    def from_crawler(cls, crawler: Any, reactor: Any) -> "Resolver":
        settings = crawler.settings
        return cls(reactor, settings.getint("DNSCACHE_SIZE"), Gate(settings.getlist("PRIVATE_HOSTS")))

    def resolveHostName(self, resolutionReceiver: Any, hostName: str, portNumber: int = 0, *more: Any) -> Any:
        passing: Any = _Passing(resolutionReceiver, self, hostName, portNumber)
        return super().resolveHostName(passing, hostName, portNumber, *more)


def reactor_resolver() -> Any:
    """The one Resolver, which Scrapy has installed by the time the crawl runs."""
    from twisted.internet import reactor  # its import makes one

    return reactor.nameResolver


@implementer(IResolutionReceiver)
class _Passing:
    """Hands on what the gate lets through of a name's addresses."""

    def __init__(self, receiver: Any, resolver: Resolver, host: str, port: int) -> None:
        self.receiver, self.resolver, self.host, self.port = receiver, resolver, host, port
        self.passed = self.blocked = 0

    def resolutionBegan(self, resolution: Any) -> None:
        self.receiver.resolutionBegan(resolution)

    def addressResolved(self, address: Any) -> None:
        try:
            self.resolver.gate.choose(self.host, self.port, [address.host])
        except Blocked:
            self.blocked += 1
            return
        self.passed += 1
        self.receiver.addressResolved(address)

    def resolutionComplete(self) -> None:
        if self.blocked and not self.passed:
            self.resolver.refused.add(self.host)
        self.receiver.resolutionComplete()
