"""Asks for URLs on the web, safely: checked addresses, TLS verified, bytes, redirects and time bounded.

One `Client` serves one part, in one event loop. A host is asked for its robots.txt once.
"""

import asyncio
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from urllib.parse import urljoin

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from vlmdata.download.address import Blocked, Gate, Resolver
from vlmdata.download.consent import ROBOTS_BYTES, WORDS, Robots, Said, add_headers, add_tdm, product, refusal
from vlmdata.download.failure import FetchError, TooManyRedirects, decompress, explain, http_error
from vlmdata.download.optout import LISTED, OptOut
from vlmdata.download.tdmrep import MOST_BYTES, PATH, Reservations
from vlmdata.recipe import Consent, Download

_REDIRECTS = 5
_AT_ONE_HOST = 8  # requests at once
_IDLE = 4.0  # seconds that a connection waits for the next request
_DRAIN = 16_384  # bytes of an error page that are read so that its connection can be used again
_LOOKUPS = 16  # DNS requests at once
_LONGEST_HEADER = 65_536
_ACCEPT = "image/avif,image/webp,image/png,image/jpeg,image/*;q=0.9,*/*;q=0.5"


@dataclass(frozen=True)
class Answer:
    """What came of one URL: `success` with a body, or an error class of DESIGN.md and words about it."""

    status: str
    error: str | None = None
    body: bytes | None = None
    consent: Said = field(default_factory=lambda: dict.fromkeys(WORDS))
    fetched_at: datetime | None = None


@dataclass
class _Errand:
    """One URL on its way: the seconds left for it, the lists that it must not meet, and what its hosts said; `filed` is
    what the tdmrep.json of the host that is asked now says of it."""

    left: float
    said: Said = field(default_factory=lambda: dict.fromkeys(WORDS))
    began: datetime | None = None
    filed: str | None = None
    optout: OptOut = field(default_factory=OptOut)


@dataclass(frozen=True)
class _Reply:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Client:
    """A web client for URLs that nobody vouches for. Make, use and close it inside one event loop."""

    def __init__(self, options: Download, consent: Consent) -> None:
        self._options, self._respect = options, consent.respect
        self._agent = product(options.agent)
        self._gate = Gate(options.allow_hosts)
        self._lookups = ThreadPoolExecutor(_LOOKUPS, "vlmdata-dns")
        self._slots = asyncio.Semaphore(options.concurrency)
        self._hosts: dict[tuple[str, int], asyncio.Semaphore] = {}
        self._robots: dict[str, asyncio.Task[Robots]] = {}
        connector = aiohttp.TCPConnector(
            resolver=Resolver(self._gate, self._lookups, options.timeout),
            socket_factory=self._gate.socket,
            ttl_dns_cache=300,
            limit=0,
            keepalive_timeout=_IDLE,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": user_agent(options), "Accept": _ACCEPT, "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=options.timeout, sock_read=options.timeout),
            auto_decompress=False,
            trust_env=False,
            max_line_size=_LONGEST_HEADER,
            max_field_size=_LONGEST_HEADER,
        )

    async def close(self) -> None:
        for task in self._robots.values():
            task.cancel()
        await self._session.close()
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def image(self, url: str, optout: OptOut) -> Answer:
        """Fetch one image. Never raises for what a URL, a host or its answer is. No redirect leads to what a list
        names."""
        async with self._slots:
            errand = _Errand(self._options.deadline, optout=optout)
            try:
                body = await self._fetch(errand, url, self._options.max_bytes, image=True)
            except FetchError as error:
                return Answer(error.status, str(error), None, errand.said, errand.began)
            return Answer("success", None, body, errand.said, errand.began)

    async def _fetch(self, errand: _Errand, url: str, limit: int, image: bool) -> bytes:
        """The body of the answer; tried again where that may help, within the errand's seconds."""
        for attempt in range(self._options.retries + 1):
            try:
                reply = await self._follow(errand, url, limit, image)
                if 200 <= reply.status < 300:
                    return reply.body
                raise http_error(reply.status, reply.headers)
            except FetchError as error:
                # Spread by the URL, not by chance: many URLs of one host do not come back together.
                pause = max(error.wait, 0.25 * 2**attempt * (0.5 + zlib.crc32(url.encode()) / 2**32))
                if not error.transient or attempt == self._options.retries or pause >= errand.left:
                    raise
            errand.left -= pause
            await asyncio.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    async def _follow(self, errand: _Errand, address: str, limit: int, image: bool) -> _Reply:
        """The answer at the end of at most 5 redirects. Each hop is checked like the first, its robots.txt too."""
        url = parse_url(address)
        for _ in range(_REDIRECTS + 1):
            self._check(url)
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

    def _check(self, url: URL) -> None:
        if url.scheme not in ("http", "https") or not url.host or not url.port:
            raise FetchError("blocked", "not an http or https URL")
        try:
            self._gate.check(url.host, url.port)
        except Blocked as error:
            raise FetchError("blocked", str(error)) from error

    async def _ask_robots(self, errand: _Errand, url: URL) -> None:
        """Note what robots.txt of the URL's host says. Raises FetchError when it forbids, or cannot be asked."""
        origin = f"{url.scheme}://{url.host_port_subcomponent}"
        if origin not in self._robots:
            self._robots[origin] = asyncio.create_task(self._read_host(origin))
        try:
            # Shielded, since others wait for the same answer.
            robots = await asyncio.shield(self._robots[origin])
        except FetchError as error:
            if "robots" in self._respect:
                raise FetchError(error.status, f"robots.txt: {error}") from error
            return
        errand.filed = robots.reserved.says(str(url))
        allowed = robots.allows(str(url))
        if not allowed or errand.said["robots"] is None:
            errand.said["robots"] = "allow" if allowed else "deny"
        if not allowed and "robots" in self._respect:
            raise FetchError("robots", robots.reason)

    async def _read_host(self, origin: str) -> Robots:
        """robots.txt, and then what the host reserves; a host that is closed is asked for no more."""
        robots = await self._read_robots(origin)
        if not robots.closed:
            robots.reserved = await self._read_reserved(origin)
        return robots

    async def _read_robots(self, origin: str) -> Robots:
        """The host's rules. Raises FetchError when the host cannot be reached: then nothing of it may be fetched."""

        try:
            body = await self._fetch(_Errand(self._options.deadline), f"{origin}/robots.txt", ROBOTS_BYTES, image=False)
        except TooManyRedirects:
            return Robots(404, b"", self._agent)  # RFC 9309, 2.3.1.2: it counts as not there
        except FetchError as error:
            if error.http is None:
                raise
            return Robots(error.http, b"", self._agent)
        return Robots(200, body, self._agent)

    async def _read_reserved(self, origin: str) -> Reservations:
        """What the host's tdmrep.json says. One that does not come says nothing: robots.txt is what closes a host."""
        try:
            body = await self._fetch(_Errand(self._options.deadline), f"{origin}{PATH}", MOST_BYTES, image=False)
        except FetchError:
            return Reservations()
        return Reservations(body)

    async def _hop(self, errand: _Errand, url: URL, limit: int, image: bool) -> _Reply:
        """One request without redirects, within the errand's seconds. Waiting for its turn at the host is free."""
        turn = self._hosts.setdefault((url.host or "", url.port or 0), asyncio.Semaphore(_AT_ONE_HOST))
        async with turn:
            loop = asyncio.get_running_loop()
            started = loop.time()
            try:
                async with asyncio.timeout(errand.left):
                    return await self._request(errand, url, limit, image)
            except aiohttp.ClientError as error:
                raise explain(error, self._options.timeout) from error
            except TimeoutError as error:
                raise FetchError("timeout", f"not done within {self._options.deadline:g} s") from error
            finally:
                errand.left -= loop.time() - started

    async def _request(self, errand: _Errand, url: URL, limit: int, image: bool) -> _Reply:
        async with self._session.get(url, allow_redirects=False) as response:
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
            chunks, size = [], 0
            async for chunk in response.content.iter_any():
                chunks.append(chunk)
                size += len(chunk)
                if size > limit:
                    if image:
                        raise FetchError("too_large", f"more than {limit} bytes")
                    break
            body = decompress(b"".join(chunks), response.headers.get("Content-Encoding", ""), limit)
            return _Reply(response.status, response.headers, body)


def user_agent(options: Download) -> str:
    """`vlmdata/0.1.0 (+contact)`: who asks, and how to reach them."""
    name = options.agent if "/" in options.agent else f"{options.agent}/{version('vlmdata')}"
    return f"{name} (+{options.contact})" if options.contact else name


def parse_url(text: str) -> URL:
    """A URL as it is to be sent. Raises FetchError(`blocked`) for what is none."""
    try:
        # What is encoded already stays untouched: another spelling of a signed URL is another URL.
        url = URL(text, encoded=re.fullmatch(r"[!#-;=?-\[\]_a-z|~]+", text) is not None)
        return url.with_fragment(None) if url.host and url.port else url
    except (ValueError, TypeError) as error:
        raise FetchError("blocked", "not a URL") from error
