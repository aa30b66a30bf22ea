"""Takedown and opt-out lists: URLs, domains and hashes of images that are neither asked for nor stored.

The lists, like `consent.respect`, are no part of the key of `images`, since a download is an observation: nothing that
is stored is fetched again when they change. They are applied twice. The download asks for nothing that a list names,
and refuses bytes by their hash. The selection, whose key has the lists' content in it, holds every pair against the
lists of today (and what pages and hosts were heard to say against `respect`: `select.denials`), so that a pair that was
downloaded before it was listed is rejected in the next snapshot, and no request is made. A pair that was refused and is
no longer listed stays refused until somebody asks for it again (`--retry optout`).
"""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vlmdata.download.lists import Lists, hex_entry
from vlmdata.sources.urls import one_spelling, strip_signature, web_url

LISTED = "on an opt-out list"
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_ANY_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


class OptOut:
    """The lists in force."""

    def __init__(self, lists: Lists | None = None) -> None:
        self._lists = lists or Lists()

    def refuses(self, url: str) -> bool:
        """Whether a list names this URL, its host, or a domain above that."""
        return bool(self._lists.kinds) and bool(self._named([url])[0])

    def refuses_bytes(self, sha256: str) -> bool:
        """Whether a list has this SHA-256 (64 hex digits) of an image."""
        return bool(self._hashes([sha256])[0])

    def rows(self, urls: Sequence[str], pages: Sequence[str | None], hashes: Sequence[str | None]) -> np.ndarray:
        """bool [n]: which pairs a list names by their image's URL, by their page's, or by the image's SHA-256.

        hashes: 64 hex digits each, or None.
        """
        if not self._lists.kinds:
            return np.zeros(len(urls), np.bool_)
        return self._named(urls) | self._named(pages) | self._hashes(hashes)

    def _named(self, urls: Sequence[str | None]) -> np.ndarray:
        distinct = {url: place for place, url in enumerate(dict.fromkeys(urls))}
        named = self._lists.hold("url", [_hash(url_form(url)) if url else 0 for url in distinct])
        if "domain" in self._lists.kinds:
            hosts = [domain_form(url) if url and _SCHEME.match(url) else None for url in distinct]
            above = [(place, entry) for place, host in enumerate(hosts) if host for entry in _domains(host)]
            held = self._lists.hold("domain", [entry for _, entry in above])
            named[[place for (place, _), yes in zip(above, held.tolist(), strict=True) if yes]] = True
        return named[[distinct[url] for url in urls]] if len(urls) else named

    def _hashes(self, hashes: Sequence[str | None]) -> np.ndarray:
        return self._lists.hold("sha256", [int(text[:16], 16) if text else 0 for text in hashes])


def parse(kind: str, text: str) -> list[tuple[str, bytes]]:
    """An entry of an opt-out list as (kind, hash). kind: the column's name, or nothing for a line of its own.

    Raises ValueError, which shows nothing of the text.
    """
    if kind in ("", "sha256"):
        entry = hex_entry("sha256", text.lower().removeprefix("sha256:"))
        if entry:
            return [("sha256", entry)]
    if kind == "url" or (not kind and "/" in text):
        if re.search(r"[\r\n]" if kind else r"\s", text):
            raise ValueError("a URL with white space in it: write one entry a line, and %20 for a blank")
        form = _web_form(text)
        if form is None and (_SCHEME.match(text) or not _ANY_SCHEME.match(text)):
            raise ValueError("no URL that anybody could ask for")
        return [("url", _bytes(form or text))]
    if kind in ("", "domain"):
        domain = domain_form(text)
        if domain:
            return [("domain", _bytes(domain))]
    if kind in ("md5", "sha1", "pdq", "phash"):
        raise ValueError(f"the column {kind} belongs into a list of consent.known")
    raise ValueError("no URL, domain or SHA-256 (or a first line with columns named url, domain, sha256)")


def url_form(url: str) -> str:
    """The form in which URLs are compared: without scheme, signature, fragment and default port, host in lower case,
    percent-encodings in one form. http and https are one: who opts out means the image, not the protocol. The URL of a
    local file stays as it is."""
    return _web_form(url) or url.strip()


def _web_form(url: str) -> str | None:
    """The form of a URL of the web; None for what is none."""
    url = url.strip()
    if url.startswith("//"):
        url = f"https:{url}"
    elif not _ANY_SCHEME.match(url) or re.match(r"[^/:]+\.[^/:]+:\d", url):
        url = f"https://{url}"  # example.org/a.jpg
    form = web_url(strip_signature(url)[0])
    return _SCHEME.sub("", one_spelling(form), count=1) if form else None


def domain_form(text: str) -> str | None:
    """The host of `example.org`, `*.example.org`, `example.org:80` or a URL, in lower case; None for what has none."""
    text = text.strip().lower()
    url = web_url(text if "://" in text else f"http://{text.removeprefix('*').lstrip('.')}")
    if url is None:
        return None
    host = re.sub(r":\d+$", "", url.split("/")[2].rpartition("@")[2]).strip(".")
    # A single word is more likely something else that got into the wrong list; a whole top-level domain is `*.name`.
    return host if "." in host or host[:1] == "[" or host == "localhost" or text[:1] in ("*", ".") else None


@lru_cache(100_000)
def _domains(host: str) -> list[int]:
    """The host and every domain above it."""
    labels = host.split(".")
    return [_hash(".".join(labels[place:])) for place in range(len(labels))]


def _bytes(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def _hash(text: str) -> int:
    return int.from_bytes(_bytes(text))
