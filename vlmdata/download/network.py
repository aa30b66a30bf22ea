"""The process's way to the web: one event loop for all parts that are downloaded side by side.

It runs while a part needs it. What is known of hosts, names and robots.txt outlives the parts, and the bytes that may
be held at once are one number for all of them.
"""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from vlmdata.download.address import Names
from vlmdata.download.budget import Budget
from vlmdata.download.fetch import Client
from vlmdata.download.hosts import Hosts
from vlmdata.download.terms import Terms
from vlmdata.errors import MachineError

BODIES = 256_000_000  # bytes of bodies that are held at once
_END = 10.0  # seconds in which the loop has to end what is left


class Network:
    """See above; `NETWORK` is the process's one."""

    def __init__(self) -> None:
        self.hosts, self.names, self.budget = Hosts(), Names(), Budget(BODIES)
        self._lock = threading.Lock()
        self._users = 0
        self._clients: dict[str, Client] = {}

    @contextmanager
    def client(self, terms: Terms) -> Iterator[Client]:
        """A client for these terms, open inside the block. Used by any thread."""
        key = f"{terms.options.model_dump_json()} {terms.consent.model_dump_json()}"
        with self._lock:
            if self._users == 0:
                self._start()
            self._users += 1
            client = self._clients.get(key)
            if client is None:
                client = Client(terms.options, terms.consent, self.hosts, self.names, self.budget)
                self._clients[key] = client
            client.buckets = (*client.buckets, terms.bucket)
        try:
            self.wait(self._open(client))
            yield client
        finally:
            with self._lock:
                rest = list(client.buckets)
                rest.remove(terms.bucket)
                client.buckets = tuple(rest)
                self._users -= 1
                if self._users == 0:
                    self._stop()

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What a coroutine that ends soon gives, run in the loop."""
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(_END)
        except TimeoutError as error:
            raise MachineError("the download's event loop does not answer (a bug)") from error

    def _start(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="vlmdata-fetch", daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        self.wait(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _open(self, client: Client) -> None:
        client.open()

    async def _close(self) -> None:
        for client in self._clients.values():
            await client.close()
        self.names.close()


NETWORK = Network()
