"""WARC files: their records, whatever is damaged between them, and the HTML pages of their responses."""

import re
import zlib
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

from fastwarc.stream_io import BrotliReader, ZstdReader
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType
from w3lib.encoding import html_to_unicode

from vlmdata.sources.found import Found
from vlmdata.sources.page import read_page
from vlmdata.sources.urls import strip_signature, web_url

_LARGEST = 10_000_000  # bytes of a record, and of a page after decoding
_MOST_DAMAGES = 1_000  # in a file
_CHUNK = 1 << 20
# How a compressed record begins, or an uncompressed one.
_BEGINNINGS = (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"WARC/1.")
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})")
_HEADERS_END = re.compile(rb"\r?\n\r?\n")
_CHUNK_SIZE = re.compile(rb"\s*([0-9a-fA-F]{1,8})[^\r\n]{0,200}\r?\n")
_HTML = ("text/html", "application/xhtml+xml")


def pages(file: BinaryIO, agent: str, counts: Counter[str]) -> Iterator[Found]:
    """The HTML pages of a WARC file with their captioned images.

    Only responses of status 200 whose type is HTML or XHTML are read. All other records, and what cannot be read, are
    noted in `counts`, under the words that a user reads.
    """
    for record, block in blocks(file, WarcRecordType.response, counts):
        status, headers, body = http_response(block)
        url = web_url((record.headers.get("WARC-Target-URI") or "").strip("<> "))
        kind = headers.get("content-type", [""])[-1].partition(";")[0].strip().lower()
        if status != 200:
            counts["responses of another status than 200"] += 1
        elif kind not in _HTML:
            counts["responses that are no HTML"] += 1
        elif url is None:
            counts["responses without a web address"] += 1
        else:
            try:
                html = _text(_decoded(body, headers), headers)
                page = read_page(html, url, headers, agent, with_links=False)
            except ValueError as error:
                counts[f"pages not read: {error}"] += 1
                continue
            counts["pages"] += 1
            if page.left_out:
                counts["images left out: more than 5,000 on a page"] += page.left_out
            consent = {"robots": None, **page.consent}
            yield Found(strip_signature(url)[0], page.lang, page.license, consent, record.record_date, page.images)


def blocks(file: BinaryIO, wanted: WarcRecordType, counts: Counter[str]) -> Iterator[tuple[WarcRecord, bytes]]:
    """The records of one type with their content, at most 10 MB each; the others are counted.

    Behind a damaged place, reading goes on at the next record that can be read. A file that ends in the middle of a
    record is counted as cut off: the records before are there, that one is not.
    """
    start: int | None = 0
    while start is not None and counts["damaged places"] < _MOST_DAMAGES:
        at, fresh = start, False
        try:
            # Its iterator ends without a word where a file does, so that lengths have to be compared.
            for record in ArchiveIterator(file, parse_http=False):
                length = record.headers.get("Content-Length")
                if length is None or not length.strip().isdecimal():
                    raise OSError("a record without its length")
                at, size = max(at, record.stream_pos), int(length)
                block = record.reader.read(size) if record.record_type == wanted and size <= _LARGEST else None
                if (record.reader.consume() if block is None else len(block)) != size:
                    raise OSError("a record that is shorter than it says")
                fresh = True
                counts["records"] += 1
                if block is not None:
                    yield record, block
                elif record.record_type == wanted:
                    counts["records larger than 10 MB"] += 1
                else:
                    counts[f"records of another type: {record.record_type}"] += 1
            if not _inside_gzip(file, at):
                return
            start = None
        except OSError:
            counts["damaged places"] += fresh or start == 0  # one damage may take several beginnings to get past
            start = _next_beginning(file, at + 1)
    counts["files cut off"] += 1


def _inside_gzip(file: BinaryIO, last: int) -> bool:
    """Whether a gzip file ends inside a record of which so little is there that the iterator saw nothing of it.

    last: where its last whole record begins. Of very long ends nothing is said.
    """
    if not file.seekable():
        return False
    file.seek(last)
    rest = file.read(2 * _LARGEST)
    while rest.startswith(_BEGINNINGS[0][: len(rest)]) and 0 < len(rest) < 2 * _LARGEST:
        unpacker = zlib.decompressobj(31)
        for place in range(0, len(rest), 1 << 14):
            unpacker.decompress(rest[place : place + (1 << 14)])
            if unpacker.eof:
                rest = unpacker.unused_data + rest[place + (1 << 14) :]
                break
        else:
            return True
    return False


def _next_beginning(file: BinaryIO, after: int) -> int | None:
    """Where the next record may begin, or None. The file is left there."""
    if not file.seekable():
        return None
    file.seek(0)
    first = file.read(4)
    sign = next((sign for sign in _BEGINNINGS if first.startswith(sign[:4])), _BEGINNINGS[-1])
    file.seek(after)
    held, place = b"", after
    while chunk := file.read(_CHUNK):
        held += chunk
        found = held.find(sign)
        if found >= 0:
            file.seek(place + found)
            return place + found
        kept = held[-len(sign) + 1 :]
        place += len(held) - len(kept)
        held = kept
    return None


def http_response(block: bytes) -> tuple[int | None, dict[str, list[str]], bytes]:
    """Status (None where it has none), headers (names in lower case), body of a response as it was received."""
    end = _HEADERS_END.search(block, 0, 1 << 16)
    if end is None:
        return None, {}, b""
    status = _STATUS.match(block)
    headers: dict[str, list[str]] = {}
    for line in block[: end.start()].splitlines()[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers.setdefault(name.strip().lower().decode("latin-1"), []).append(value.strip().decode("latin-1"))
    return int(status[1]) if status else None, headers, block[end.end() :]


def _decoded(body: bytes, headers: dict[str, list[str]]) -> bytes:
    """The body without chunks and compression. Raises ValueError for what cannot be decoded, or is over 10 MB then.

    Many archives keep a header whose encoding they have undone: a body that does not look encoded is taken as it is.
    """
    if "chunked" in ",".join(headers.get("transfer-encoding", ())).lower():
        body = _joined(body)
    codings = [word.strip().lower() for word in ",".join(headers.get("content-encoding", ())).split(",")]
    for coding in reversed([word for word in codings if word not in ("", "identity")][:3]):
        if body.lstrip()[:1] in (b"<", b""):
            break
        try:
            body = _unpacked(body, coding)
        except (OSError, zlib.error) as error:
            raise ValueError(f"not {coding}, which its header says") from error
        if len(body) > _LARGEST:
            raise ValueError("larger than 10 MB")
    return body


def _joined(body: bytes) -> bytes:
    """The chunks of RFC 9112, 7.1, joined, as many as are there."""
    place, pieces = 0, []
    while match := _CHUNK_SIZE.match(body, place):
        size = int(match[1], 16)
        if not size:
            break
        pieces.append(body[match.end() : match.end() + size])
        place = match.end() + size
        place += 2 if body[place : place + 2] == b"\r\n" else 1
    return b"".join(pieces) if pieces or place or match else body


def _unpacked(body: bytes, coding: str) -> bytes:
    """At most 10 MB and a byte of what is packed in `body`."""
    if coding in ("gzip", "x-gzip"):
        return zlib.decompressobj(31).decompress(body, _LARGEST + 1)
    if coding == "deflate":  # with zlib's header as RFC 9110 has it, or without
        try:
            return zlib.decompressobj(15).decompress(body, _LARGEST + 1)
        except zlib.error:
            return zlib.decompressobj(-15).decompress(body, _LARGEST + 1)
    if coding not in ("br", "zstd"):
        raise ValueError("a content encoding that nobody knows")
    packed = (BrotliReader if coding == "br" else ZstdReader)(BytesIO(body))
    pieces, size = [], 0
    while size <= _LARGEST and (piece := packed.read(min(_CHUNK, _LARGEST + 1 - size))):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def _text(body: bytes, headers: dict[str, list[str]]) -> str:
    kind = headers.get("content-type", [""])[-1]
    try:
        return html_to_unicode(kind, body, auto_detect_fun=_guessed)[1]
    except (LookupError, UnicodeError):  # a charset such as `zip` or `idna`, which is none for texts
        return body.decode("utf-8", "replace")


def _guessed(body: bytes) -> str:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        # a page that was cut off may end in the middle of a character
        return "utf-8" if error.start > len(body) - 4 and error.end == len(body) else "cp1252"
    return "utf-8"
