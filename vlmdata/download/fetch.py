"""Asks for URLs on the web, safely: checked addresses, TLS verified, bytes, redirects and time bounded.

One `Client` serves all parts of a process that are downloaded with the same options, in the network's event loop. A
host is asked for its robots.txt once a day.
"""

import asyncio
import math
import re
import time
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urljoin

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from vlmdata.download.address import Blocked, Gate, Names, Resolver
from vlmdata.download.body import read_body
from vlmdata.download.buckets import Bucket
from vlmdata.download.budget import Budget
from vlmdata.download.consent import ROBOTS_BYTES, Robots, add_headers, add_tdm, refusal, user_agent
from vlmdata.download.errand import Answer, Errand
from vlmdata.download.failure import FetchError, TooManyRedirects, explain, http_error
from vlmdata.download.hosts import Host, Hosts, host_name
from vlmdata.download.optout import LISTED
from vlmdata.download.tdmrep import MOST_BYTES, PATH, Reservations
from vlmdata.recipe import Consent, Download

_REDIRECTS = 5
_IDLE = 4.0  # seconds that a connection waits for the next request
_DRAIN = 16_384  # bytes of an error page that are read so that its connection can be used again
_HOST_RATE = 10.0  # requests a second to one host, unless the recipe says otherwise
_LONGEST_DELAY = 30.0  # seconds that a robots.txt can put between requests
_ROBOTS_FRESH, _ROBOTS_AGAIN = 86_400.0, 600.0  # seconds (RFC 9309, 2.4); those of one that could not be had
_ROBOTS_KEPT = 10_000  # robots.txt of hosts
_LONGEST_HEADER = 65_536
_ACCEPT = "image/avif,image/webp,image/png,image/jpeg,image/*;q=0.9,*/*;q=0.5"


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


@dataclass
class _Rules:
    """A host's robots.txt, or the request for it. until: when it has to be asked for again, by time.monotonic."""

    task: asyncio.Task[Robots]
    until: float = math.inf


class Client:
    """A web client for URLs that nobody vouches for. Open and close it inside each event loop that it is used in.

    buckets: those that it is used for now; none are all hosts.
    """

    def __init__(self, options: Download, consent: Consent, hosts: Hosts, names: Names, budget: Budget) -> None:
        self.options = options
        self.buckets: tuple[Bucket, ...] = ()
        self._respect = consent.respect
        self._agent = options.agent
        self._gate = Gate(options.allow_hosts)
        self._hosts, self._names, self._budget = hosts, names, budget
        self._robots: OrderedDict[str, _Rules] = OrderedDict()
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Before the first request in an event loop."""
        if self._session is not None:
            return
        connector = aiohttp.TCPConnector(
            resolver=Resolver(self._gate, self._names, self.options.timeout),
            socket_factory=self._gate.socket,
            use_dns_cache=False,  # the names are cached for the whole process
            limit=0,
            keepalive_timeout=_IDLE,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": user_agent(self.options), "Accept": _ACCEPT, "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=self.options.timeout, sock_read=self.options.timeout
            ),
            auto_decompress=False,
            trust_env=False,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )

    async def close(self) -> None:
        """Before the event loop ends."""
        asked = [rules.task for rules in self._robots.values() if not rules.task.done()]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
            self._session = None

    def host(self, url: URL) -> Host:
        """The host of a checked URL, with the limits of the recipe."""
        host = self._hosts.of(url)
        host.share = self._share(url)
        host.limit = max(1, self.options.per_host // host.share)
        rate = self.options.host_rate
        if rate is None and not self._gate.names(url.host or "", url.port or 0):
            rate = _HOST_RATE
        host.interval = 1 / rate if rate else 0.0
        return host

    def _share(self, url: URL) -> int:
        """By what the limits of a URL's host are divided: a host of another bucket, to which a redirect leads, may be
        asked by every process."""
        name = host_name(url)
        if any(bucket.has(name) for bucket in self.buckets):
            return 1
        return max((bucket.workers for bucket in self.buckets), default=1)

    async def image(self, url: URL, errand: Errand) -> Answer:
        """Fetch one image. Never raises for what a URL, a host or its answer is. The bytes of the body stay taken
        from the budget."""
        try:
            body = await self._fetch(errand, url, self.options.max_bytes, image=True)
        except FetchError as error:
            return Answer(error.status, str(error), None, errand.said, errand.began)
        finally:
            errand.leave()
        return Answer("success", None, body, errand.said, errand.began)

    async def _fetch(self, errand: Errand, url: URL, limit: int, image: bool) -> bytes:
        """The body of the answer; tried again where that may help, within the errand's seconds."""
        for attempt in range(self.options.retries + 1):
            try:
                reply = await self._follow(errand, url, limit, image)
                if 200 <= reply.status < 300:
                    return reply.body
                raise http_error(reply.status, reply.headers)
            except FetchError as error:
                # Spread by the URL, not by chance: many URLs of one host do not come back together.
                pause = max(error.wait, 0.25 * 2**attempt * (0.5 + zlib.crc32(str(url).encode()) / 2**32))
                if not error.transient or attempt == self.options.retries or pause >= errand.left:
                    raise
            errand.left -= pause
            if errand.frontier is not None:
                errand.frontier.give_place(errand)
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _follow(self, errand: Errand, url: URL, limit: int, image: bool) -> _Reply:
        """The answer at the end of at most 5 redirects. Each hop is checked like the first, its robots.txt too."""
        for _ in range(_REDIRECTS + 1):
            self.check(url)
            if image:
                if errand.optout.refuses(str(url)):
                    raise FetchError("optout", LISTED)
                await self._ask_robots(errand, url)
                errand.began = errand.began or datetime.now(UTC)
            reply = await self._hop(errand, url, limit, image)
            location = reply.headers.get("Location")
            if not 300 <= reply.status < 400 or reply.status in (300, 304) or not location:
                return reply
            try:
                target = urljoin(str(url), location.strip())
            except ValueError as error:
                raise FetchError("blocked", "redirected to what is no URL") from error
            url = parse_url(target)
            if url.user:  # a name and password in a redirect are not ours to use
                url = url.with_user(None)
        raise TooManyRedirects("blocked", f"more than {_REDIRECTS} redirects")

    def check(self, url: URL) -> None:
        """Raise FetchError(`blocked`) for a URL that is not to be asked for."""
        if url.scheme not in ("http", "https") or not url.host or not url.port:
            raise FetchError("blocked", "not an http or https URL")
        try:
            self._gate.check(url.host, url.port)
        except Blocked as error:
            raise FetchError("blocked", str(error)) from error

    async def _ask_robots(self, errand: Errand, url: URL) -> None:
        """Note what robots.txt of the URL's host says. Raises FetchError when it forbids, or cannot be asked."""
        origin = str(url.origin()).lower()
        rules = self._robots.get(origin)
        if rules is None or time.monotonic() >= rules.until:
            rules = self._robots[origin] = self._ask_for_rules(origin, url, errand)
            if len(self._robots) > _ROBOTS_KEPT:
                self._robots.popitem(last=False)
        self._robots.move_to_end(origin)
        try:
            # Shielded, since others wait for the same answer.
            robots = rules.task.result() if rules.task.done() else await asyncio.shield(rules.task)
        except FetchError as error:
            if "robots" in self._respect:
                raise FetchError(error.status, f"robots.txt: {error}") from error
            return
        errand.heard()
        errand.filed = robots.reserved.says(str(url))
        allowed = robots.allows(str(url))
        if not allowed or errand.said["robots"] is None:
            errand.said["robots"] = "allow" if allowed else "deny"
        if not allowed and "robots" in self._respect:
            raise FetchError("robots", robots.reason)

    async def _read_host(self, origin: str, errand: Errand) -> Robots:
        """robots.txt, and then what the host reserves; a host that is closed is asked for no more."""
        robots = await self._read_robots(origin, errand)
        if not robots.closed:
            robots.reserved = await self._read_reserved(origin)
        return robots

    async def _read_reserved(self, origin: str) -> Reservations:
        """What the host's tdmrep.json says. One that does not come says nothing: robots.txt is what closes a host."""
        errand = Errand(self.options.deadline)
        try:
            body = await self._fetch(errand, parse_url(f"{origin}{PATH}"), MOST_BYTES, image=False)
        except FetchError:
            return Reservations()
        finally:
            self.release(errand)
        return Reservations(body)

    def _ask_for_rules(self, origin: str, url: URL, errand: Errand) -> "_Rules":
        """robots.txt, asked for with the turn that the errand has at the host."""
        host = self.host(url)
        host.ask_robots()
        own = Errand(self.options.deadline, host=errand.host)
        errand.host = None
        rules = _Rules(asyncio.create_task(self._read_host(origin, own)))

        def note(task: "asyncio.Task[Robots]") -> None:
            self.release(own)
            came = not task.cancelled() and not task.exception()
            host.know_robots(min(task.result().delay, _LONGEST_DELAY, self.options.deadline) if came else None)
            good = came and not task.result().closed
            rules.until = 0.0 if task.cancelled() else time.monotonic() + (_ROBOTS_FRESH if good else _ROBOTS_AGAIN)

        rules.task.add_done_callback(note)
        return rules

    async def _read_robots(self, origin: str, errand: Errand) -> Robots:
        """The host's rules. Raises FetchError when the host cannot be reached: then nothing of it may be fetched."""

        try:
            body = await self._fetch(errand, parse_url(f"{origin}/robots.txt"), ROBOTS_BYTES, image=False)
        except TooManyRedirects:
            return Robots(404, b"", self._agent)  # RFC 9309, 2.3.1.2: it counts as not there
        except FetchError as error:
            if error.http is None:
                raise
            return Robots(error.http, b"", self._agent)
        return Robots(200, body, self._agent)

    async def _hop(self, errand: Errand, url: URL, limit: int, image: bool) -> _Reply:
        """One request without redirects, within the errand's seconds. Waiting for its turn at the host is free."""
        host = self.host(url)
        if errand.host is not host:
            errand.leave()
            if errand.frontier is not None:
                await errand.frontier.turn(errand, host)
            else:
                await host.turn(self.options.deadline)
            errand.host = host
        errand.answered = False
        started, reply = time.monotonic(), None
        try:
            async with asyncio.timeout(errand.left) as clock:
                reply = await self._request(errand, url, limit, image, clock)
            if reply.status in (429, 503):
                host.asked_to_wait(http_error(reply.status, reply.headers))
            else:
                host.answered()
            return reply
        except aiohttp.ClientError as error:
            failure = explain(error, self.options.timeout)
            self._note_failure(host, failure, errand)
            raise failure from error
        except TimeoutError as error:
            failure = FetchError("timeout", f"not done within {self.options.deadline:g} s")
            self._note_failure(host, failure, errand)
            raise failure from error
        except FetchError:
            host.answered()
            raise
        finally:
            errand.left -= time.monotonic() - started
            errand.leave()
            if reply is None:
                self.release(errand)

    def _note_failure(self, host: Host, failure: FetchError, errand: Errand) -> None:
        if errand.answered and failure.status != "timeout":
            host.answered()  # an answer that breaks off is one
        else:
            host.failed(failure, self.options.timeout)

    async def _request(self, errand: Errand, url: URL, limit: int, image: bool, clock: asyncio.Timeout) -> _Reply:
        assert self._session is not None
        async with self._session.get(url, allow_redirects=False) as response:
            errand.answered = True
            errand.heard()
            length = response.content_length
            good = 200 <= response.status < 300
            if image:
                if good:  # error pages often say noindex of themselves
                    add_headers(errand.said, response.headers, self._agent, errand.filed)
                elif response.status < 400:
                    add_tdm(errand.said, errand.filed)
                word = refusal(errand.said, self._respect)
                if word and response.status < 400:
                    raise FetchError(word, f"the host says no ({word})")
            if not good:
                if length is not None and length <= _DRAIN:
                    await response.read()
                return _Reply(response.status, response.headers, b"")
            if image and length is not None and length > limit:
                raise FetchError("too_large", f"{length} bytes; the limit is {limit}")
            body = await read_body(errand, response, limit, image, clock, self._budget)
            return _Reply(response.status, response.headers, body)

    def release(self, errand: Errand) -> None:
        """Nothing that the errand holds is needed any more: its turn at a host, the bytes of its body."""
        errand.leave()
        if errand.held:
            self._budget.give_back(errand.held)
            errand.held = 0


def parse_url(text: str) -> URL:
    """A URL as it is to be sent. Raises FetchError(`blocked`) for what is none."""
    try:
        # What is encoded already stays untouched: another spelling of a signed URL is another URL.
        url = URL(text, encoded=re.fullmatch(r"[!#-;=?-\[\]_a-z|~]+", text) is not None)
        return url.with_fragment(None) if url.host and url.port else url
    except (ValueError, TypeError) as error:
        raise FetchError("blocked", "not a URL") from error
