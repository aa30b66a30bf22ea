"""The bytes of bodies that a process holds at once, from their first chunk until they are decoded."""

import asyncio
import threading


class Budget:
    """A number of bytes that all parts of a process share.

    Bodies that are being read wait when it is used up: for those that wait for the decoder, and then for the oldest of
    them, which may take what it still needs, so that not all wait for each other. What is held is at most `total` and
    one body. Readers run in the network's event loop; `give_back` may be called from any thread.
    """

    def __init__(self, total: int) -> None:
        self.free = total
        self._lock = threading.Lock()
        self._readers: dict[object, int] = {}
        self._whole = 0  # bytes of bodies that are read and not given back yet
        self._waiting: set[asyncio.Future[None]] = set()

    def take(self, reader: object, size: int) -> bool:
        """Take `size` bytes for a body that is being read. False when `reader` has to `wait` and ask again."""
        with self._lock:
            taken = self._readers.setdefault(reader, 0)
            if size > self.free and (self._whole or next(iter(self._readers)) is not reader):
                return False
            self.free -= size
            self._readers[reader] = taken + size
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

    def finish(self, reader: object, size: int) -> None:
        """`reader` reads no more; its body has `size` bytes, 0 when there is none."""
        with self._lock:
            self.free += self._readers.pop(reader, 0) - size
            self._whole += size
        self._wake()

    def give_back(self, size: int) -> None:
        """The `size` bytes of a whole body are not needed any more."""
        with self._lock:
            self.free += size
            self._whole -= size
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
