"""Where the members of a tar are, read from its headers alone: nothing is extracted, no name is used as a path.

Plain and GNU headers, and pax ones (POSIX.1-2017, pax, "pax Interchange Format"). Written for tars from strangers:
Python's tarfile reads a header of any stated size into memory and keeps every member that it has seen.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
_LONGEST_HEADER = 1 << 20  # bytes of a pax header or a GNU long name; real ones have some hundred
_FILES = (b"0", b"\0", b"7")
_EXTENDED = (b"x", b"g", b"L", b"K")


class BrokenTar(ValueError):
    """Headers that make no sense, or a file that ends too early: what came before it is sound."""


@dataclass(frozen=True)
class Member:
    """A plain file in a tar: `offset` and `size` are of its bytes."""

    name: str
    offset: int
    size: int


def members(file: BinaryIO) -> Iterator[Member]:
    """The plain files of a tar in their order; links, devices, folders and sparse files are passed over.

    file: seekable. Names are as they stand in the tar, bytes that are not UTF-8 as surrogates.
    Raises BrokenTar behind the last member that is whole, OSError as `file` does.
    """
    end = file.seek(0, os.SEEK_END)
    place = 0
    known: dict[str, str] = {}  # what extended headers say about the next member
    everywhere: dict[str, str] = {}  # what a global header says about all that follow
    while place < end:
        header = _read(file, place, BLOCK, end)
        if header == bytes(BLOCK):
            return
        _check(header, place)
        kind, size = header[156:157], _number(header[124:136], place)
        start = place + BLOCK
        if kind in _EXTENDED:
            if size > _LONGEST_HEADER:
                raise BrokenTar(f"an extended header of {size} bytes at byte {place}")
            said = _extended(kind, _read(file, start, size, end), start)
            (everywhere if kind == b"g" else known).update(said)
            place = start + _padded(size)
            continue
        about, known = everywhere | known, {}
        if kind == b"S":
            start = _behind_map(file, header, start, end)
        if "size" in about:
            size = _decimal(about["size"], place)
        if kind not in (*_FILES, b"S"):
            size = 0 if kind in b"123456" else size
        place = start + _padded(size)
        if start + size > end:
            raise BrokenTar(f"it ends at byte {end}, in the middle of a member")
        if kind in _FILES and "GNU.sparse" not in about:
            name = about.get("path") or _name(header)
            if not name.endswith("/"):  # a folder in the oldest tars
                yield Member(name, start, size)
    raise BrokenTar(f"it ends at byte {end} without a mark of its end")


def _read(file: BinaryIO, place: int, size: int, end: int) -> bytes:
    file.seek(place)
    data = file.read(size)
    if len(data) < size:
        raise BrokenTar(f"it ends at byte {end}, in the middle of a header")
    return data


def _check(header: bytes, place: int) -> None:
    """The checksum counts its own field as spaces; some old tars added signed bytes."""
    stated = _number(header[148:156], place)
    plain = sum(header) - sum(header[148:156]) + 8 * 32
    if stated != plain and stated != plain - 256 * sum(byte > 127 for byte in header[:148] + header[156:]):
        raise BrokenTar(f"no tar header at byte {place}")


def _number(field: bytes, place: int) -> int:
    """Octal digits, or base 256 behind a byte of 0x80. Raises BrokenTar, for a negative number too."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.partition(b"\0")[0].strip()
    if field[0] > 127 or not all(48 <= digit < 56 for digit in text):
        raise BrokenTar(f"no number in the header at byte {place}")
    return int(text or b"0", 8)


def _decimal(text: str, place: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BrokenTar(f"no size in the header at byte {place}")
    return int(text)


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _name(header: bytes) -> str:
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    # Only POSIX's format has a prefix; GNU's keeps times in that place.
    whole = b"/".join((prefix, name)) if prefix and header[257:263] == b"ustar\0" else name
    return whole.decode("utf-8", "surrogateescape")


def _extended(kind: bytes, data: bytes, place: int) -> dict[str, str]:
    """What an extended header says: pax's `length key=value` lines, or GNU's one long name."""
    if kind == b"L":
        return {"path": data.partition(b"\0")[0].decode("utf-8", "surrogateescape")}
    if kind == b"K":
        return {}
    said = {}
    here = 0
    while here < len(data) and data[here]:
        digits, _, _ = data[here : here + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        line = data[here : here + length]
        if length < 5 or len(line) < length or not line.endswith(b"\n"):
            raise BrokenTar(f"a pax header that makes no sense at byte {place}")
        key, _, value = line[len(digits) + 1 : -1].partition(b"=")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse"):  # nothing else is of use here
            said[key[:10].decode()] = value.decode("utf-8", "surrogateescape")
        here += length
    return said


def _behind_map(file: BinaryIO, header: bytes, place: int, end: int) -> int:
    """Where a GNU sparse file's data begins: behind the blocks that go on with its map of holes."""
    more = header[482]
    while more:
        more = _read(file, place, BLOCK, end)[504]
        place += BLOCK
    return place
