"""The bytes of bodies that a process holds at once, from their first chunk until they are decoded."""

import asyncio
import threading


class Budget:
    """A number of bytes that all parts of a process share.

    Bodies that are being read wait when it is used up. The oldest of them never waits, so that not all wait for each
    other: what is held is at most `total`, and one body. Readers run in the network's event loop; `give_back` may be
    called from any thread.
    """

    def __init__(self, total: int) -> None:
        self._free = total
        self._lock = threading.Lock()
        self._readers: dict[object, None] = {}
        self._waiting: set[asyncio.Future[None]] = set()

    def take(self, reader: object, size: int) -> bool:
        """Take `size` bytes for a body that is being read. False when `reader` has to `wait` and ask again."""
        with self._lock:
            self._readers.setdefault(reader)
            if size > self._free and next(iter(self._readers)) is not reader:
                return False
            self._free -= size
            return True

    async def wait(self) -> None:
        """Until something is given back or read."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.add(future)
        try:
            await future
        finally:
            with self._lock:
                self._waiting.discard(future)

    def leave(self, reader: object) -> None:
        """`reader` reads no more; what it took stays taken."""
        with self._lock:
            self._readers.pop(reader, None)
        self._wake()

    def give_back(self, size: int) -> None:
        with self._lock:
            self._free += size
        self._wake()

    def _wake(self) -> None:
        if not self._waiting:
            return
        with self._lock:
            waiting, self._waiting = self._waiting, set()
        for future in waiting:
            future.get_loop().call_soon_threadsafe(_finish, future)


def _finish(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
