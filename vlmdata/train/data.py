"""WebDataset shards as a map: a sample is read by its position, so that a step's number alone determines its batch."""

import hashlib
import json
import logging
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cv2
import fsspec
import numpy as np
import simplejpeg

from vlmdata.download.decode import to_rgb, upright
from vlmdata.download.header import ImageError, jpeg_exif
from vlmdata.errors import DataError, InputError, first_line
from vlmdata.train import parquet

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")

T = TypeVar("T")
IMAGES = ("jpg", "jpeg", "png", "webp")
MAX_PIXELS = 100_000_000
_NOWHERE = (-1, 0)


@dataclass(frozen=True)
class Index:
    """Where every sample of some shards is: n samples in the shards' order."""

    tars: tuple[str, ...]
    uids: tuple[str, ...]  # the members' common name; equal to the uid in shards of ours
    tar: np.ndarray  # int32 [n], into `tars`
    image: np.ndarray  # int64 [n, 2]: offset and size, bytes
    text: np.ndarray  # int64 [n, 2]
    meta: np.ndarray  # int64 [n, 2]; offset -1 where there is no .json
    # Where these samples were chosen from others: the others, and the place of each among them, int64 [n].
    of: "tuple[Index, np.ndarray] | None" = None

    def __len__(self) -> int:
        return len(self.uids)


def index(shards: Sequence[str], spool: Path) -> Index:
    """Read the headers of WebDataset tars (local paths or fsspec URLs), each once from its beginning to its end.

    A sample is the members that share a name up to the first dot of its last part, and follow each other; it needs
    an image (jpg, jpeg, png, webp) and a txt. Others are left out, with a warning that counts and names them.
    A Parquet shard, of which no single row can be read, is first written as a tar into the folder `spool`; so are the
    pictures and turns of LLaVA's JSON.
    Raises DataError, naming the shard, for one that is cut off or is none.
    """
    tars = [tar_of(path, spool) for path in shards]
    uids: list[str] = []
    places: list[tuple[int, tuple[int, int], tuple[int, int], tuple[int, int]]] = []
    partial: list[str] = []
    for number, path in enumerate(tars):
        for uid, members in samples(path):
            image = next((members[e] for e in IMAGES if e in members), None)
            if image is None or "txt" not in members:
                partial.append(f"{path}: {uid}")
                continue
            uids.append(uid)
            places.append((number, image, members["txt"], members.get("json", _NOWHERE)))
    if partial:
        log.warning("%d samples without an image or a caption are left out, the first %s", len(partial), partial[0])
    columns: list[Any] = list(zip(*places, strict=True)) or [(), (), (), ()]
    pair = [np.array(column, np.int64).reshape(-1, 2) for column in columns[1:]]
    return Index(tuple(tars), tuple(uids), np.array(columns[0], np.int32), pair[0], pair[1], pair[2])


def tar_of(path: str, spool: Path) -> str:
    if path.endswith(".json"):
        from vlmdata.train.conversations import spooled

        return spooled(path, None, spool)
    return parquet.spooled(path, spool) if path.endswith(".parquet") else path


def samples(path: str) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """(name, {extension: (offset, size)}) of a tar's samples, in order. Raises DataError, naming the shard."""
    try:
        with fsspec.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            name, members = "", dict[str, tuple[int, int]]()
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                stem = f"{folder}/{stem}" if folder else stem
                if stem != name and members:
                    yield name, members
                    members = {}
                name = stem
                members[extension.lower()] = (member.offset_data, member.size)
            if members:
                yield name, members
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{path}: the shard cannot be read: {error}") from error


def joined(indexes: Sequence[Index]) -> Index:
    """Several indexes as one: the samples of the first, then those of the next."""
    if len(indexes) == 1:
        return indexes[0]
    before = np.cumsum([0, *(len(each.tars) for each in indexes)])
    return Index(
        tuple(tar for each in indexes for tar in each.tars),
        tuple(uid for each in indexes for uid in each.uids),
        np.concatenate([each.tar + np.int32(start) for each, start in zip(indexes, before, strict=False)]),
        np.concatenate([each.image for each in indexes]),
        np.concatenate([each.text for each in indexes]),
        np.concatenate([each.meta for each in indexes]),
    )


def identity(shards: Index) -> str:
    """Hex sha256 of where the samples are and in which state their files: what is computed of them is kept under it."""
    digest = hashlib.sha256("\0".join(shards.uids).encode())
    for path in shards.tars:
        fs, inside = _filesystem(path)
        digest.update(f"{path}\0{fs.size(inside)}\0{fs.ukey(inside)}\0".encode())
    for places in (shards.tar, shards.image, shards.text, shards.meta):
        digest.update(np.ascontiguousarray(places).data)
    return digest.hexdigest()


def taken(shards: Index, places: np.ndarray) -> Index:
    """The samples at `places` alone."""
    return Index(
        shards.tars,
        tuple(shards.uids[place] for place in places),
        *(getattr(shards, name)[places] for name in ("tar", "image", "text", "meta")),
    )


def chosen(whole: Index, copies: Mapping[str, int]) -> Index:
    """The samples of an index that are named: uid -> how often each stands in the result, in the order of the index.

    Nothing is copied, since a sample is read by its place. Raises InputError for a uid that the index has not.
    """
    missing = copies.keys() - set(whole.uids)
    if missing:
        raise InputError(f"{len(missing)} of the chosen samples are not in the shards, the first {min(missing)}")
    places = np.repeat(np.arange(len(whole)), [copies.get(uid, 0) for uid in whole.uids])
    return replace(taken(whole, places), of=(whole, places))


def ahead(work: Callable[[int], T], numbers: range, workers: int) -> Iterator[T]:
    """work(number) for each number, in order, with `workers` threads at work ahead of the reader (0: none).

    Threads and not processes: decoding leaves Python's lock, and nothing has to be started, forked or sent.
    """
    if not workers:
        yield from map(work, numbers)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for number in numbers:
                waiting.append(pool.submit(work, number))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@cache
def _filesystem(url: str) -> tuple[Any, str]:
    return fsspec.core.url_to_fs(url)


def read(path: str, offset: int, size: int) -> bytes:
    """`size` bytes of a shard at `offset`. Raises DataError, naming the shard, where there are fewer."""
    fs, inside = _filesystem(path)
    if "file" in fs.protocol:
        with open(inside, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
    else:
        data = fs.cat_file(inside, offset, offset + size)
    if len(data) != size:
        raise DataError(f"{path}: shorter than its own headers say; make the shard again")
    return data


def caption(shards: Index, position: int) -> str:
    """The .txt of a sample."""
    offset, size = shards.text[position]
    return read(shards.tars[shards.tar[position]], int(offset), int(size)).decode("utf-8", "replace")


def meta(shards: Index, position: int) -> dict[str, Any]:
    """The .json of a sample; empty where there is none, and, with a warning that names it, where it is no object."""
    offset, size = shards.meta[position]
    if offset < 0:
        return {}
    path = shards.tars[shards.tar[position]]
    try:
        values = json.loads(read(path, int(offset), int(size)))
    except (ValueError, RecursionError) as error:
        values = first_line(error)
    if not isinstance(values, dict):
        _warn_once(f"{path}: {shards.uids[position]}.json is no JSON object and is skipped")
        return {}
    return values


@lru_cache(maxsize=100_000)
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def image(shards: Index, position: int, shorter: int = 0) -> np.ndarray | None:
    """The picture of a sample, uint8 RGB [height, width, 3]; None where its bytes are no such picture.

    A JPEG may come at reduced scale, its shorter side no less than `shorter` pixels (0: at full scale).
    """
    offset, size = shards.image[position]
    return decoded(read(shards.tars[shards.tar[position]], int(offset), int(size)), shorter)


def decoded(data: bytes, shorter: int = 0) -> np.ndarray | None:
    """A picture's bytes as `image` gives them: of any kind that the download decodes, upright, on white."""
    try:
        if data[:2] == b"\xff\xd8":
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            if height * width > MAX_PIXELS:
                return None
            if colours not in ("CMYK", "YCCK"):
                scale = shorter / min(height, width) if shorter else 1.0
                least = {"min_height": round(height * scale), "min_width": round(width * scale)} if scale < 1 else {}
                pixels = simplejpeg.decode_jpeg(data, "RGB", **least)
                return np.ascontiguousarray(upright(pixels, jpeg_exif(data)[0] or 1))
        return np.ascontiguousarray(to_rgb(data, MAX_PIXELS))
    except (ValueError, KeyError, ImageError):  # KeyError: a kind of subsampling that TurboJPEG does not know
        return None


def decodable(shards: Index, position: int, shorter: int, broken: set[str]) -> tuple[int, np.ndarray]:
    """The picture of a sample, or of the next one that can be decoded: its place, and uint8 RGB [height, width, 3].

    Every process then has as many samples as it asked for, and none waits for another for ever. Those that are passed
    over are added to `broken`, with a warning for each new one. Raises DataError where 100 in a row cannot be decoded.
    """
    for step in range(min(100, len(shards))):
        place = (position + step) % len(shards)
        picture = image(shards, place, shorter)
        if picture is not None:
            return place, picture
        tell_broken(shards, place, broken)
    raise DataError(f"{shards.tars[shards.tar[position]]}: no image from {shards.uids[position]} on can be decoded")


def tell_broken(shards: Index, position: int, broken: set[str]) -> None:
    """Note a sample whose picture cannot be decoded in `broken`, with a warning where it is a new one."""
    uid = shards.uids[position]
    if uid not in broken:
        broken.add(uid)
        tar = shards.tars[shards.tar[position]]
        log.warning("%s: %s cannot be decoded and is skipped (%d so far)", tar, uid, len(broken))


def whole(shards: Index, shorter: int, broken: set[str]) -> np.ndarray:
    """The places whose picture can be decoded, int64 [n]: what is measured, since no other sample may stand in for one
    there and count twice. The others are noted in `broken`. Raises DataError where none can be."""
    places = []
    for place in range(len(shards)):
        if image(shards, place, shorter) is None:
            tell_broken(shards, place, broken)
        else:
            places.append(place)
    if not places:
        raise DataError(f"{shards.tars[0]}: no picture of {len(shards)} samples to be measured can be decoded")
    return np.array(places, np.int64)


def pictures(
    shards: Index, places: Sequence[int] | np.ndarray, size: int, what: str, shorter: int = 0
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """The pictures at `places`, `size` of them at once, with their places; those that cannot be decoded are left out,
    with a warning each. For what is computed once of all samples: `what` is named in the progress."""
    for start in range(0, len(places), size):
        chosen = [int(place) for place in places[start : start + size]]
        found = {place: image(shards, place, shorter) for place in chosen}
        for place in [place for place in chosen if found[place] is None]:
            log.warning("%s: %s cannot be decoded and is skipped", shards.tars[shards.tar[place]], shards.uids[place])
        good = {place: picture for place, picture in found.items() if picture is not None}
        if good:
            yield list(good), list(good.values())
        done = start + len(chosen)
        progress.info("%s %d/%d", what, done, len(places), extra={"stage": what, "done": done, "total": len(places)})


def square(picture: np.ndarray, size: int, draw: np.ndarray | None = None, least: float = 1.0) -> np.ndarray:
    """Cut a square out and resize it: uint8 RGB [size, size, 3].

    Without `draw` the square is the largest one, in the centre; three numbers in [0, 1) choose its side from [least, 1]
    of the shorter side and its place from all that are possible.
    """
    height, width = picture.shape[:2]
    side, y, x = min(height, width), 0.5, 0.5
    if draw is not None:
        part, y, x = draw
        side = max(1, round(side * (least + (1 - least) * part)))
    top, left = round((height - side) * y), round((width - side) * x)
    cut = picture[top : top + side, left : left + side]
    return cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
