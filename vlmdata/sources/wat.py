"""WAT files: Common Crawl's metadata of pages as JSON, a record a page."""

import datetime
import html
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import msgspec
from fastwarc.warc import WarcRecordType

from vlmdata.sources.found import Found, Values
from vlmdata.sources.metas import open_graph, page_language
from vlmdata.sources.page import page_says, product
from vlmdata.sources.urls import LONGEST_CAPTION, clean_text, linked_url, shorten, strip_signature, web_url
from vlmdata.sources.warc import blocks

_MOST_IMAGES = 5_000
_MOST_METAS = 500
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")

_HEARD = frozenset({"x-robots-tag", "tdm-reservation", "content-language"})
_NAMES = _HEARD | {"robots"}

# Of the JSON only what is read here: https://github.com/iipc/webarchive-commons writes it (ExtractingParseObserver).
# A value that should be a string and is not (`"alt": null`) counts as one that is not there: it costs no other.
# Nothing here can refer to itself, so that Python's collector of cycles need not look at it.


class _Link(msgspec.Struct, gc=False):
    path: Any = ""
    url: Any = ""
    alt: Any = ""
    title: Any = ""
    rel: Any = ""


class _Meta(msgspec.Struct, rename={"http_equiv": "http-equiv"}, gc=False):
    name: Any = ""
    property: Any = ""
    http_equiv: Any = ""
    content: Any = ""


class _Head(msgspec.Struct, rename="pascal", gc=False):
    base: Any = ""
    title: Any = ""
    metas: list[_Meta] | None = None
    link: list[_Link] | None = None


class _Html(msgspec.Struct, rename="pascal", gc=False):
    head: _Head | None = None
    links: list[_Link] | None = None


class _Message(msgspec.Struct, rename="pascal", gc=False):
    status: Any = ""


class _Response(
    msgspec.Struct, rename={"html": "HTML-Metadata", "headers": "Headers", "message": "Response-Message"}, gc=False
):
    html: _Html | None = None
    headers: dict[str, Any] | None = None
    message: _Message | None = None


class _Payload(msgspec.Struct, rename={"response": "HTTP-Response-Metadata"}, gc=False):
    response: _Response | None = None


class _Origin(msgspec.Struct, rename={"date": "WARC-Date", "url": "WARC-Target-URI"}, gc=False):
    date: Any = ""
    url: Any = ""


class _Envelope(msgspec.Struct, rename={"payload": "Payload-Metadata", "origin": "WARC-Header-Metadata"}, gc=False):
    payload: _Payload | None = None
    origin: _Origin | None = None


class _Record(msgspec.Struct, rename="pascal", gc=False):
    envelope: _Envelope


_decode = msgspec.json.Decoder(_Record).decode


def pages(file: BinaryIO, agent: str, counts: Counter[str]) -> Iterator[Found]:
    """The pages of a WAT file with their `IMG@/src` links that have an alt or a title, and the page's Open Graph image.

    What cannot be read is noted in `counts`, under the words that a user reads.
    """
    agent = product(agent)
    for _, block in blocks(file, WarcRecordType.metadata, counts):
        try:
            envelope = _parse(block)
        except (ValueError, RecursionError):
            counts["records that are not such JSON as WAT holds"] += 1
            continue
        response = envelope.payload.response if envelope.payload else None
        page = response.html if response else None
        if response is None or page is None or envelope.origin is None:
            counts["records of requests and of what is no HTML"] += 1
            continue
        if response.message is not None and response.message.status not in ("", "200", None, 200):
            counts["responses of another status than 200"] += 1
            continue
        url = web_url(_text(envelope.origin.url).strip("<> "))
        if url is None:
            counts["responses without a web address"] += 1
            continue
        counts["pages"] += 1
        yield _found(url, page, response.headers or {}, _date(envelope.origin.date), agent, counts)


def _parse(block: bytes) -> _Envelope:
    try:
        return _decode(block).envelope
    except msgspec.ValidationError:
        raise
    except ValueError:
        # Anchors' texts are cut to 100 UTF-16 units, which leaves halves of surrogate pairs: only json reads these.
        return msgspec.convert(json.loads(block), _Record).envelope


def _found(
    url: str,
    page: _Html,
    headers: dict[str, Any],
    date: datetime.datetime | None,
    agent: str,
    counts: Counter[str],
) -> Found:
    head = page.head or _Head()
    base = (web_url(_plain(head.base), url) if head.base else None) or url
    images: list[Values] = []
    left_out, license_url = 0, None
    for link in page.links or ():
        if link.path == "IMG@/src":
            if len(images) >= _MOST_IMAGES:
                left_out += 1
            elif (link.alt or link.title) and link.url and (image := _image(link, base)):
                images.append(image)
        elif link.rel and license_url is None and _licenses(link):
            license_url = linked_url(_plain(link.url), base)
    if license_url is None:
        license_url = next((linked_url(_plain(link.url), base) for link in head.link or () if _licenses(link)), None)
    if left_out:
        counts["images left out: more than 5,000 on a page"] += left_out
    metas = [(name, _plain(meta.content)) for meta in (head.metas or ())[:_MOST_METAS] if (name := _name(meta, agent))]
    said = {
        heard: [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
        for name, value in headers.items()
        if (heard := name.lower()) in _HEARD
    }
    if preview := open_graph(metas, _plain(head.title), base):
        images.append(preview)
    _, consent = page_says(metas, said, agent)
    license_url = strip_signature(license_url)[0] if license_url else None
    lang = page_language(metas, said)
    return Found(strip_signature(url)[0], lang, license_url, {"robots": None, **consent}, date, images)


def _name(meta: _Meta, agent: str) -> str | None:
    """A meta's name in lower case, of those that say something here."""
    name = (_text(meta.property) or _text(meta.name) or _text(meta.http_equiv)).strip().lower()
    return name if name in _NAMES or name.startswith(("og:", "twitter:")) or name == agent else None


def _image(link: _Link, base: str) -> Values | None:
    """An image of a page; None for one without words or a web address."""
    caption, caption_from = clean_text(_plain(link.alt)), "alt"
    if not caption:
        caption, caption_from = clean_text(_plain(link.title)), "title"
    link_url = _plain(link.url) if caption else ""
    url = linked_url(link_url, base) if link_url else None
    if url is None:
        return None
    url, signed = strip_signature(url)
    return url, signed, shorten(caption, LONGEST_CAPTION), caption_from, None


def _licenses(link: _Link) -> bool:
    rel = _text(link.rel).lower()
    return "license" in rel and "license" in rel.split() and isinstance(link.url, str)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _plain(value: Any) -> str:
    """Attributes stand in WAT as the page spells them: `&amp;` is still one. Without its `;` it may be a parameter."""
    text = _text(value)
    return _ENTITY.sub(lambda match: html.unescape(match[0]), text) if "&" in text else text


def _date(value: Any) -> datetime.datetime | None:
    try:
        date = datetime.datetime.fromisoformat(_text(value))
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=datetime.UTC)
