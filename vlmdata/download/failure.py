"""Why a request came to nothing: what servers, sockets and TLS say, as one of DESIGN.md's error classes with words."""

import os
import re
import socket
import ssl
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp

from vlmdata.download.address import Blocked

_DAY = 86_400.0  # seconds
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class FetchError(Exception):
    """A request that came to nothing: error class, words, and whether another try may help."""

    def __init__(
        self, status: str, message: str, transient: bool = False, wait: float = 0.0, http: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.transient, self.wait, self.http = status, transient, wait, http


class TooManyRedirects(FetchError):
    """A chain of redirects without an end."""


def http_error(status: int, headers: Mapping[str, str]) -> FetchError:
    """The error class of an answer that brings no image, with the wait that a 429 or 503 asks for."""
    wait = _retry_after(headers.get("Retry-After", "").strip()) if status in (429, 503) else 0.0
    # A redirect that leads nowhere is counted with the answers that bring no image.
    kind = "5xx" if status >= 500 else "4xx"
    return FetchError(kind, f"HTTP {status}", status in _TRANSIENT, wait, status)


def _retry_after(text: str) -> float:
    """Seconds that a Retry-After asks for, as a number or a date (RFC 9110, 10.2.3); a day at most."""
    if re.fullmatch(r"\d{1,9}", text):
        return min(float(text), _DAY)
    try:
        wait = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # no date, or one without a zone
        return 0.0
    return min(max(wait, 0.0), _DAY)


def explain(error: aiohttp.ClientError, seconds: float) -> FetchError:
    """The error class of what aiohttp raised, in words that are the same each time: no ports, no addresses."""
    cause = getattr(error, "os_error", None)
    if isinstance(cause, Blocked):
        return FetchError("blocked", str(cause))
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        again = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN
        return FetchError("dns", (cause.strerror if cause else None) or "the host has no address", again)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return FetchError("timeout", f"no connection within {seconds:g} s", True)
    if isinstance(error, aiohttp.ServerTimeoutError):
        return FetchError("timeout", f"nothing came for {seconds:g} s", True)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        fault = error.certificate_error
        return FetchError("tls", fault.verify_message if isinstance(fault, ssl.SSLCertVerificationError) else "name")
    if isinstance(error, aiohttp.ClientSSLError):
        reason = cause.reason if isinstance(cause, ssl.SSLError) else None
        return FetchError("tls", (reason or "no TLS connection").replace("_", " ").lower())
    if isinstance(error, aiohttp.ClientPayloadError):
        return FetchError("connect", "the answer broke off", True)
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return FetchError("connect", "the server closed the connection", True)
    if isinstance(error, aiohttp.ClientOSError):
        return FetchError("connect", os.strerror(error.errno) if error.errno else "no connection", True)
    if isinstance(error, aiohttp.InvalidURL):
        return FetchError("blocked", "not a URL")
    if isinstance(error, aiohttp.ClientResponseError):
        return FetchError("connect", "not a valid HTTP answer")
    return FetchError("connect", type(error).__name__)


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its Content-Encoding, which nobody asked for.

    Raises FetchError: `too_large` for more than `limit` bytes, `decode` for a broken stream, `type` for an encoding
    other than gzip and deflate.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise FetchError("type", "sent with a Content-Encoding that nobody asked for")
    raw = encoding == "deflate" and (body[:1] or b"x")[0] & 0x0F != 8  # some send it without zlib's header
    stream = zlib.decompressobj(-15 if raw else 47)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise FetchError("decode", f"the {encoding} stream is broken") from error
    if len(plain) > limit:
        raise FetchError("too_large", f"more than {limit} bytes when decompressed")
    if not stream.eof:
        raise FetchError("decode", f"the {encoding} stream breaks off")
    return plain
