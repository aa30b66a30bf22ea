"""The URLs of one part, queued by host: a slow host holds up nobody but its own URLs.

All but the attributes that say so is used in the network's event loop alone.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from yarl import URL

from vlmdata.download.errand import Answer, Errand
from vlmdata.download.failure import FetchError
from vlmdata.download.fetch import Client, parse_url
from vlmdata.download.hosts import Host
from vlmdata.download.optout import OptOut

Outcome = Answer | Exception
_Entry = tuple[int, URL] | asyncio.Future[None]
_AT_ONCE = 500  # URLs that are queued before others have the loop


class Frontier:
    """Takes URLs from the hosts in turn, each as its host admits it.

    done: called with the number and the outcome of each URL. optout: the list that no request may meet.
    heard: when something came last; opens: when the last of the hosts that were waited for opens. Both by
    time.monotonic; any thread may read them.
    """

    def __init__(self, client: Client, done: Callable[[int, Outcome], None], optout: OptOut) -> None:
        self._client, self._done, self._optout = client, done, optout
        self._places = client.options.concurrency
        self._patience = client.options.deadline
        self._queues: dict[Host, deque[_Entry]] = {}
        self._ready: deque[Host] = deque()  # those with a queue that are not waited for
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._brought = self._used = 0  # bodies
        self._stopped = self._closed = False
        self.heard = self.opens = time.monotonic()

    async def add(self, urls: Sequence[tuple[int, str]]) -> None:
        """Queue numbered URLs."""
        for start in range(0, len(urls), _AT_ONCE):
            if self._closed:
                return
            for number, text in urls[start : start + _AT_ONCE]:
                try:
                    url = parse_url(text)
                    self._client.check(url)
                except FetchError as error:
                    self._done(number, Answer(error.status, str(error)))
                else:
                    self._queue(self._client.host(url), (number, url))
            self.go_on()
            await asyncio.sleep(0)

    async def close(self) -> None:
        """Give up what is not done."""
        self._closed = True
        for host in self._queues:
            host.forget(self)
        self._queues, self._ready = {}, deque()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def used(self) -> bool:
        """A body is decoded; called by the thread that does it. Whether `go_on` should be called in the loop."""
        self._used += 1
        return self._stopped and self._brought - self._used <= self._places

    def wake(self, host: Host) -> None:
        """See `hosts.Waiter`."""
        if host in self._queues:
            self._ready.append(host)
            self.go_on()

    async def turn(self, errand: Errand, host: Host) -> None:
        """Wait until a request to `host` may begin, and begin it. Raises the FetchError of a refusal."""
        now = time.monotonic()
        if errand.running and host.admits(now):
            host.enter(now)
            return
        self.give_place(errand)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue(host, turn)
        self.go_on()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and not turn.exception():
                self._running -= 1
                host.leave()
            raise
        errand.running = True

    def give_place(self, errand: Errand) -> None:
        """While it waits, others may run."""
        if errand.running:
            errand.running = False
            self._running -= 1
            self.go_on()

    def _queue(self, host: Host, entry: _Entry) -> None:
        queue = self._queues.get(host)
        if queue is None:
            queue = self._queues[host] = deque()
            self._ready.append(host)
        if isinstance(entry, tuple):
            queue.append(entry)
        else:
            queue.appendleft(entry)  # what has begun comes first

    def _full(self) -> bool:
        """Whether all places are taken, or there are bodies enough that wait for the decoder."""
        return self._running >= self._places or self._running + self._brought - self._used >= 2 * self._places

    def go_on(self) -> None:
        """Begin what can begin, one request of each host after the other."""
        self._stopped = False
        while self._ready:
            if self._full():
                self._stopped = True
                if self._full():  # no place has become free in between
                    return
                self._stopped = False
            now = time.monotonic()
            host = self._ready.popleft()
            queue = self._queues[host]
            refusal = host.refusal(now, self._patience)
            if refusal is not None:
                del self._queues[host]
                self._refuse(queue, refusal)
            elif host.admits(now):
                entry = queue.popleft()
                if queue:
                    self._ready.append(host)
                else:
                    del self._queues[host]
                self._begin(host, entry, now)
            else:
                self.opens = max(self.opens, host.opens)
                host.wait(self)

    def _begin(self, host: Host, entry: _Entry, now: float) -> None:
        if isinstance(entry, tuple):
            errand = Errand(self._patience, optout=self._optout, frontier=self, running=True, host=host)
            task = asyncio.get_running_loop().create_task(self._run(*entry, errand))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: errand.leave())  # cancelled before it began
        elif entry.done():  # cancelled while it waited
            return
        else:
            entry.set_result(None)
        host.enter(now)
        self._running += 1

    def _refuse(self, queue: deque[_Entry], refusal: FetchError) -> None:
        for entry in queue:
            if isinstance(entry, tuple):
                self._done(entry[0], Answer(refusal.status, str(refusal)))
            elif not entry.done():
                entry.set_exception(FetchError(refusal.status, str(refusal), http=refusal.http))

    async def _run(self, number: int, url: URL, errand: Errand) -> None:
        outcome: Outcome
        try:
            outcome = await self._client.image(url, errand)
        except Exception as error:  # noqa: BLE001 - a bug: raised again by the thread that waits for the outcome
            outcome = error
        errand.leave()
        if errand.running:
            self._running -= 1
        if isinstance(outcome, Answer) and outcome.body is not None:
            self._brought += 1
        self._done(number, outcome)
        self.go_on()
