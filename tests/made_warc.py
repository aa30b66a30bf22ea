"""WARC files written record by record, and WAT files in Common Crawl's layout made of them."""

import gzip
import json
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

from fastwarc.stream_io import ZstdWriter
from fastwarc.warc import ArchiveIterator, WarcRecordType

DATE = "2024-05-18T01:58:10Z"


def record(kind: str, url: str, content: bytes, mime: str = "application/http; msgtype=response", **more: str) -> bytes:
    """One WARC record, uncompressed."""
    headers = {"WARC-Type": kind, "WARC-Target-URI": url, "WARC-Date": DATE,
               "WARC-Record-ID": "<urn:uuid:12e2bd4a-7a1f-4b7e-9d65-0b8ac7e3ae52>", "Content-Type": mime,
               "Content-Length": str(len(content)), **more}  # fmt: skip
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"WARC/1.0\r\n{lines}\r\n".encode() + content + b"\r\n\r\n"


def response(url: str, body: str | bytes, status: str = "200 OK", **headers: str) -> bytes:
    """A record of an HTTP response; headers: `content_type="text/html"`."""
    said = {"content_type": "text/html; charset=utf-8", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in said.items())
    content = body.encode() if isinstance(body, str) else body
    return record("response", url, f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + content)


def pack(records: Iterable[bytes], packing: str = "gz") -> bytes:
    """A WARC file, each record compressed on its own as Common Crawl does it: gz, zst, or plain."""
    if packing == "plain":
        return b"".join(records)
    if packing == "gz":
        return b"".join(gzip.compress(one, 6, mtime=0) for one in records)
    packed = BytesIO()
    for one in records:
        writer = ZstdWriter(packed)
        writer.write(one)
        writer.finish()
        writer.flush()
    return packed.getvalue()


class _Observer(HTMLParser):
    """The links and the head of a page, as webarchive-commons' ExtractingParseObserver notes them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.head: dict[str, Any] = {}
        self.links: list[dict[str, str]] = []
        self.anchors: list[dict[str, str]] = []
        self.in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = {name: value for name, value in reversed(attrs) if value is not None}

        def entry(url: str, *names: str) -> dict[str, str]:
            kept = {name: said[name] for name in names if name in said}
            return {"path": f"{tag.upper()}@/{url}", "url": said[url], **kept}

        if tag == "img" and "src" in said:
            self.links.append(entry("src", "alt", "title"))
        elif tag == "a" and "href" in said:
            self.anchors.append(entry("href", "target", "alt", "title", "rel", "hreflang", "type"))
        elif tag == "base" and "href" in said:
            self.head["Base"] = said["href"]
        elif tag == "link" and "href" in said:
            self.head.setdefault("Link", []).append(entry("href", "rel", "type"))
        elif tag == "script" and "src" in said:
            self.head.setdefault("Scripts", []).append(entry("src", "type"))
        elif tag == "meta":
            names = ("name", "rel", "content", "http-equiv", "property")
            self.head.setdefault("Metas", []).append({name: said[name] for name in names if name in said})
        self.in_title = tag == "title"

    def handle_data(self, data: str) -> None:
        if self.in_title:
            self.head["Title"] = data
        elif self.anchors:
            self.anchors[-1]["text"] = (self.anchors[-1].get("text", "") + data)[:100]

    def handle_endtag(self, tag: str) -> None:
        self.in_title = False
        if tag == "a" and self.anchors:
            self.links.append(self.anchors.pop())


def wat(warc: bytes, name: str = "CC-MAIN-made.warc.gz") -> Iterator[bytes]:
    """A record of WAT for each record of a WARC file: the envelope as Common Crawl's files have it."""
    yield record("warcinfo", name, b"Software-Info: made for a test\r\n", "application/warc-fields")
    for found in ArchiveIterator(BytesIO(warc), record_types=WarcRecordType.response | WarcRecordType.request):
        kind = found.headers["WARC-Type"]
        message: dict[str, Any] = {"Headers": dict(found.http_headers.to_tuples())}
        if kind == "response":
            version, status, reason = (found.http_headers.status_line or "- - -").split(" ", 2)
            message["Response-Message"] = {"Status": status, "Version": version, "Reason": reason}
            body = found.reader.read().decode("utf-8", "replace")
            if (found.http_content_type or "").startswith("text/html"):
                observer = _Observer()
                observer.feed(body.replace("&", "&amp;"))  # so that attributes keep the page's own spelling
                message["HTML-Metadata"] = {"Head": observer.head, "Links": observer.links}
            message["Entity-Length"] = str(len(body))
        envelope = {
            "Container": {"Filename": name, "Compressed": True, "Offset": str(found.stream_pos)},
            "Envelope": {
                "Payload-Metadata": {f"HTTP-{kind.capitalize()}-Metadata": message,
                                     "Actual-Content-Type": f"application/http; msgtype={kind}"},
                "Format": "WARC",
                "WARC-Header-Metadata": dict(found.headers.to_tuples()),
            },
        }  # fmt: skip
        content = json.dumps(envelope, ensure_ascii=False).encode()
        yield record("metadata", found.headers["WARC-Target-URI"], content, "application/json")


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path
