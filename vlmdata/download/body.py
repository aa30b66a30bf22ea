"""A body while it is read: no longer than the limit, and within the bytes that the process may hold."""

import asyncio

import aiohttp

from vlmdata.download.budget import Budget
from vlmdata.download.errand import Errand
from vlmdata.download.failure import FetchError, decompress


async def read_body(
    errand: Errand, response: aiohttp.ClientResponse, limit: int, image: bool, clock: asyncio.Timeout, budget: Budget
) -> bytes:
    """The bytes of an answer, decompressed, for which the errand then holds bytes of the budget.

    limit: above it an image is refused, FetchError(`too_large`), and any other file is cut. clock: stands while the
    budget is waited for.
    """
    chunks, size = [], 0
    try:
        async for chunk in response.content.iter_any():
            await _take(errand, len(chunk), clock, budget)
            errand.heard()
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                if image:
                    raise FetchError("too_large", f"more than {limit} bytes")
                break
        encoding = response.headers.get("Content-Encoding", "")
        if encoding:
            await _take(errand, limit, clock, budget)
        body = decompress(b"".join(chunks), encoding, limit)
        errand.held = len(body)
        return body
    finally:
        budget.finish(errand, errand.held)


async def _take(errand: Errand, size: int, clock: asyncio.Timeout, budget: Budget) -> None:
    """Bytes from the process's budget."""
    if not budget.take(errand, size):
        loop = asyncio.get_running_loop()
        left = (clock.when() or loop.time()) - loop.time()
        clock.reschedule(None)
        while not budget.take(errand, size):
            await budget.wait()
        clock.reschedule(loop.time() + left)
