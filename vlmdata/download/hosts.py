"""How a host is treated: requests at once and a second, pauses that it asks for, and rest when it keeps failing.

A `Host` is one for the whole process, whatever parts ask for its URLs. All of this runs in the network's event loop.
"""

import asyncio
import random
import time
from collections import OrderedDict
from typing import Protocol

from yarl import URL

from vlmdata.download.failure import FetchError

_REMEMBERED = 50_000  # hosts
_IN_A_ROW = 5  # failures after which a host rests
LEFT_ALONE = 600.0  # seconds that a host is not asked which has failed in its rest's trial, too
_FIRST_PAUSE = 0.5  # seconds after a 429 or 503 without Retry-After; twice as long after each further one
CONNECTION = {"dns", "connect", "timeout"}  # no answer


class Waiter(Protocol):
    """Who waits for a host's turn."""

    def wake(self, host: "Host") -> None:
        """The host may admit a request now, or refuses all."""


class Host:
    """A web server by name. Times are time.monotonic's, in seconds.

    limit: requests at once. interval: seconds between the beginnings of requests, unless robots.txt wants more. share:
    so many times these seconds pass, as other processes ask it, too.
    """

    def __init__(self) -> None:
        self.limit, self.interval, self.share = 1, 0.0, 1
        self.busy = 0
        self._known, self._asked, self._delay = False, 0, 0.0  # its robots.txt
        self._began = self._next = self._shut = 0.0
        self._pauses = self._failures = 0
        self._trial = False
        self._last: FetchError | None = None
        self._waiters: dict[Waiter, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def opens(self) -> float:
        """When its rate and its Crawl-delay admit the next request."""
        return self._next

    @property
    def idle(self) -> bool:
        return not self.busy and not self._waiters

    def admits(self, now: float, robots: bool = False) -> bool:
        """Whether a request may begin. robots: one for robots.txt, before which no other begins."""
        limit = self.limit if self._known and not self._trial else 1
        return self.busy < limit and now >= self._next and now >= self._shut and (robots or not self._asked)

    def ask_robots(self) -> None:
        """Its robots.txt is being asked for."""
        self._asked += 1

    def know_robots(self, delay: float | None) -> None:
        """It has been asked for; delay: the seconds between requests that it wants, None where it did not come."""
        self._asked, self._known = self._asked - 1, True
        if delay is not None:
            self._delay = delay
            self._next = max(self._next, self._began + self.share * delay)
        self._call()

    def refusal(self, now: float, patience: float) -> FetchError | None:
        """What its URLs get instead of waiting, when it is shut for longer than `patience` seconds."""
        if self._last is None or self._shut - now <= patience:
            return None
        return FetchError(self._last.status, f"{self._last}; the host is left alone for a while", http=self._last.http)

    def enter(self, now: float) -> None:
        """A request begins."""
        self.busy += 1
        self._began = now
        self._next = max(now, self._next) + self.share * max(self.interval, self._delay)

    def leave(self) -> None:
        """A request has ended."""
        self.busy -= 1
        self._call()

    def wait(self, waiter: Waiter) -> None:
        """Have `waiter` woken when the host's turn comes. It waits again if somebody else was faster."""
        self._waiters[waiter] = None
        self._call()

    def forget(self, waiter: Waiter) -> None:
        """`waiter` does not wait any more."""
        self._waiters.pop(waiter, None)
        self._set_timer(time.monotonic())

    async def turn(self, patience: float) -> None:
        """Wait until a request for robots.txt may begin, and begin it. Raises the FetchError of a refusal."""
        now = time.monotonic()
        refusal = self.refusal(now, patience)
        if refusal:
            raise refusal
        if self.admits(now, robots=True):
            self.enter(now)
            return
        alone = _Alone(patience)
        self.wait(alone)
        try:
            await alone.turn
        except asyncio.CancelledError:
            self.forget(alone)
            if alone.turn.done() and not alone.turn.cancelled() and not alone.turn.exception():
                self.leave()
            raise

    def answered(self) -> None:
        """It has answered, if only with an error: it is there."""
        self._failures = 0
        if time.monotonic() >= self._shut:  # and not to what was on its way when the pause began
            self._pauses, self._trial = 0, False

    def asked_to_wait(self, error: FetchError) -> None:
        """It has answered 429 or 503: nothing goes there for as long as it says (Retry-After, RFC 9110, 10.2.3), else
        for a time that doubles with each such answer, give or take half."""
        now = time.monotonic()
        self._failures, self._last = 0, error
        if now >= self._shut:  # not by one of several that were on their way at once
            pause = _FIRST_PAUSE * 2**self._pauses * (0.5 + random.random())  # noqa: S311
            self._pauses += 1
            self._shut = now + (error.wait or pause)
        self._shut = max(self._shut, now + error.wait)
        self._trial = True
        self._call(all_of_them=True)

    def failed(self, error: FetchError, rest: float) -> None:
        """No connection or no answer. After five in a row it rests for `rest` seconds, and then for long when the
        next request fails, too."""
        if error.status not in CONNECTION or time.monotonic() < self._shut:
            return
        self._failures, self._last = self._failures + 1, error
        if self._failures >= _IN_A_ROW:
            first = self._failures == _IN_A_ROW and error.transient
            self._shut = time.monotonic() + (rest if first else LEFT_ALONE)
            self._trial = True
            self._call(all_of_them=True)

    def _call(self, all_of_them: bool = False) -> None:
        """Wake those whose turn it is; `all_of_them` when they may not want to wait any more."""
        now = time.monotonic()
        for waiter in list(self._waiters):
            if all_of_them or self.admits(now, robots=isinstance(waiter, _Alone)):
                self._waiters.pop(waiter, None)
                waiter.wake(self)
        self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        """Have the next one called when the host opens; a place that gets free calls by itself.

        now: when it was last looked whose turn it is. By a later clock the host might have opened in between, and
        nobody would be called.
        """
        wait = max(self._next, self._shut) - now
        if self._timer is not None and not self._waiters:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and self._waiters and wait > 0:
            self._timer = asyncio.get_running_loop().call_later(wait + 0.001, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._call()


class _Alone:
    """A request for robots.txt that waits for its host; it belongs to no part."""

    def __init__(self, patience: float) -> None:
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._patience = patience

    def wake(self, host: Host) -> None:
        now = time.monotonic()
        refusal = host.refusal(now, self._patience)
        if self.turn.cancelled():
            return
        if refusal:
            self.turn.set_exception(refusal)
        elif host.admits(now, robots=True):
            host.enter(now)
            self.turn.set_result(None)
        else:
            host.wait(self)


def host_name(url: URL) -> str:
    """What a URL's host is known by; one name for http and https where they are at their usual ports."""
    name = (url.host or "").rstrip(".")
    return name if url.port in (80, 443) else f"{name}:{url.port}"


class Hosts:
    """The hosts that the process has met, the last 50,000 of them."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[str, Host] = OrderedDict()

    def of(self, url: URL) -> Host:
        """The host of a URL."""
        name = host_name(url)
        host = self._hosts.get(name)
        if host is None:
            host = self._hosts[name] = Host()
            if len(self._hosts) > _REMEMBERED:
                self._forget()
        else:
            self._hosts.move_to_end(name)
        return host

    def _forget(self) -> None:
        for name in [name for name, host in self._hosts.items() if host.idle][: _REMEMBERED // 10]:
            del self._hosts[name]
