"""Pairs from videos: frames that are chosen here and decoded by the download, each with its video's words."""

import hashlib
import logging
import os
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vlmdata.download.stored import local_url
from vlmdata.errors import DataError, InputError
from vlmdata.local_files import Refused, open_below
from vlmdata.recipe import VideoSource, nearest
from vlmdata.sources import BATCH_ROWS, ROWS
from vlmdata.sources.columns import as_text
from vlmdata.sources.files import literal, named, stamps
from vlmdata.sources.folder import (
    CONTEXT,
    caption_beside,
    context_and_license,
    files,
    read_small,
    tell_unread,
)
from vlmdata.sources.formats import table_files
from vlmdata.sources.scenes import SIZE, Scenes, every, thin
from vlmdata.sources.subtitles import EXTENSIONS as SUBTITLES
from vlmdata.sources.subtitles import Cue, at, parse
from vlmdata.sources.table import READERS
from vlmdata.sources.urls import clean_text, shorten

if TYPE_CHECKING:
    from vlmdata.frames import Video

log = logging.getLogger(__name__)

VERSION = 1
# What `vlmdata.frames.FORMATS` opens.
EXTENSIONS = (".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".ogv", ".wmv", ".asf")
SIGNALS = pa.schema([("source_video", pa.string()), ("source_time", pa.float64())])
_MOST_FRAMES = 1_000  # a second: more is no film, but an attack on the time of those who decode it
_AHEAD = 4  # videos that are looked at or waiting for a worker, for each worker

# What goes with a video: captions with their origins, cues, and the columns context and license.
_Words = tuple[list[tuple[str, str]], list[Cue], dict[str, str | None]]


class _NoFrames(Exception):
    """Why a video gives no frame."""


def root(path: str) -> str:
    """The folder that the videos' paths begin from, for the source's `path`."""
    return path if os.path.isdir(path) else os.path.dirname(path) or "."


def check(source: VideoSource) -> None:
    """Refuse what is neither a folder of videos with captions nor a list with the two columns. Raises InputError."""
    if os.path.isdir(source.path):
        number = 0
        for path in files(source, EXTENSIONS):
            number += 1
            captions, cues, _ = _beside(source.path, path, Counter())
            if captions or cues:
                return
        if not number:
            raise InputError(f"sources.{source.name}: {source.path!r} holds no video ({' '.join(EXTENSIONS)})")
        raise InputError(
            f"sources.{source.name}: none of the {number} videos in {source.path!r} has words: a .txt, .json, "
            f"{' or '.join(SUBTITLES)} file of the same name beside it"
        )
    if not os.path.isfile(source.path):
        raise InputError(f"sources.{source.name}.path: there is no folder or list {source.path!r} on this machine")
    next(_list(source), None)


def signals(source: VideoSource) -> pa.Schema:
    """source_video: the video's path from the source's root; source_time: seconds from its start."""
    return SIGNALS


def states(source: VideoSource) -> dict[str, str | None]:
    """Size and time of each video and of what stands beside it; in a list also its captions."""
    folder = root(source.path)
    if os.path.isdir(source.path):
        beside = (".txt", ".json", *SUBTITLES)
        stems = ((path, os.path.splitext(path)[0]) for path in files(source, EXTENSIONS))
        return {named(path): stamps(folder, [path, *(stem + end for end in beside)]) for path, stem in stems}
    found: dict[str, str | None] = {}
    for path, (captions, _, _) in _videos(source, Counter()):
        said = hashlib.sha256("\0".join(text for text, _ in captions).encode()).hexdigest()
        found[named(path)] = f"{stamps(folder, [path])} {said}"
    return found


def read(source: VideoSource, scratch: str, chosen: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
    """One row for each chosen frame and caption; several videos are looked at beside each other, in bounded memory.

    The url is `<source name>:/<path>#t=<seconds>`, three decimals; source_id is the video's path. In a folder a
    frame's caption is the subtitle at its time (caption_from `subtitle`, and the video's caption becomes the context),
    else the video's caption (as of an image, see `vlmdata.sources.folder`); a list gives its captions alone.
    Videos without words are counted, and those that give no frame are named with the reason, counted, and left out.
    Raises InputError as `check` does, DataError where not one video gives a frame.
    """
    rows: list[dict[str, Any]] = []
    counts = dict.fromkeys(("videos", "silent", "failed", "frames"), 0)
    schema = pa.schema([*ROWS, *SIGNALS])
    unread = Counter[str]()
    for path, words, times in _looked_at(source, unread, chosen):
        counts["videos"] += 1
        if not words[0] and not words[1]:
            counts["silent"] += 1
        elif isinstance(times, _NoFrames):
            counts["failed"] += 1
            log.warning("%s: %r gives no frame: %s", source.name, _text(path), times)
        else:
            counts["frames"] += len(times)
            for row in _rows(source, path, words, times):
                rows.append(row)
                if len(rows) == BATCH_ROWS:
                    yield pa.RecordBatch.from_pylist(rows, schema)
                    rows = []
    log.info("%s: %d frames of %d videos", source.name, counts["frames"], counts["videos"])
    if counts["silent"]:
        log.info("%s: %d videos have no words beside them and are left aside", source.name, counts["silent"])
    tell_unread(source.name, unread)
    if counts["failed"]:
        log.warning("%s: %d of %d videos give no frame", source.name, counts["failed"], counts["videos"])
        if not counts["frames"] and chosen is None:
            raise DataError(f"sources.{source.name}: none of the videos gives a frame; the log names the reasons")
    yield pa.RecordBatch.from_pylist(rows, schema)


def _looked_at(
    source: VideoSource, unread: Counter[str], chosen: Collection[str] | None
) -> Iterator[tuple[str, _Words, Sequence[int] | _NoFrames]]:
    """(path, words, times in milliseconds) of every video, in the order of the source."""
    waiting: deque[tuple[str, _Words, Future[Sequence[int] | _NoFrames] | None]] = deque()
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers, "vlmdata-video") as pool:
        try:
            for path, words in _videos(source, unread):
                if chosen is not None and named(path) not in chosen:
                    continue
                wanted = bool(words[0] or words[1])
                waiting.append((path, words, pool.submit(_times, source, path) if wanted else None))
                if len(waiting) >= _AHEAD * workers:
                    first, its, times = waiting.popleft()
                    yield first, its, times.result() if times else []
            for path, words, times in waiting:
                yield path, words, times.result() if times else []
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _videos(source: VideoSource, unread: Counter[str]) -> Iterator[tuple[str, _Words]]:
    if os.path.isdir(source.path):
        for path in files(source, EXTENSIONS):
            yield path, _beside(source.path, path, unread)
        return
    for path, captions in groupby(_list(source), itemgetter(0)):
        texts = dict.fromkeys(filter(None, (clean_text(caption) for _, caption in captions)))
        if path:
            yield path, ([(text, source.caption) for text in texts], [], {})


def _list(source: VideoSource) -> Iterator[tuple[str, str]]:
    """(path, caption) of each row of the list, '' for null. Raises InputError for a list without the columns."""
    (file,) = table_files(source.name, "path", literal(source.path))
    columns, batches = READERS[file.form]
    known = columns(file).names
    for option, name in (("column", source.column), ("caption", source.caption)):
        if name not in known:
            raise InputError(
                f"sources.{source.name}.{option}: {source.path} has no column {name!r}{nearest(name, known)}"
            )
    for batch in batches(file, [source.column, source.caption]):
        texts = (as_text(batch.column(name)).to_pylist() for name in (source.column, source.caption))
        for path, caption in zip(*texts, strict=True):
            yield path or "", caption or ""


def _beside(root: str, video: str, unread: Counter[str]) -> _Words:
    found = caption_beside(root, video, unread)
    stem = os.path.splitext(video)[0]
    subtitles = next(filter(None, (read_small(root, stem + extension, unread) for extension in SUBTITLES)), b"")
    cues = parse(subtitles.decode("utf-8-sig", "replace"))
    return ([found[:2]] if found else []), cues, context_and_license(found[2] if found else {})


def _rows(source: VideoSource, path: str, words: _Words, times: Sequence[int]) -> Iterator[dict[str, Any]]:
    captions, cues, about = words
    said_of_it = shorten(captions[0][0], CONTEXT) if captions else None
    common = dict.fromkeys(ROWS.names) | about | {"source": source.name, "source_id": _text(path)}
    for time in times:
        frame = {
            "url": f"{local_url(source.name, path)}#t={time // 1000}.{time % 1000:03d}",
            "source_video": _text(path),
            "source_time": time / 1000,
        }
        if cue := at(cues, time):
            context = said_of_it or about.get("context")
            yield common | frame | {"caption": cue, "caption_from": "subtitle", "context": context}
            continue
        for caption, origin in captions:
            yield common | frame | {"caption": caption, "caption_from": origin}


def _times(source: VideoSource, path: str) -> Sequence[int] | _NoFrames:
    """The chosen frames of one video. Returns what is wrong, where there are none."""
    from vlmdata.download.header import ImageError
    from vlmdata.frames import Video

    try:
        with open_below(root(source.path), path) as file:
            if os.fstat(file.fileno()).st_size > source.max_bytes:
                raise _NoFrames(f"more than {source.max_bytes} bytes")
            with Video(file, source.max_pixels) as video:
                chosen = _chosen(source, video)
                damage = video.damage
    except _NoFrames as reason:
        return reason
    except (ImageError, Refused, OSError, ValueError) as error:
        return _NoFrames(error.strerror if isinstance(error, OSError) else str(error))
    if damage:
        log.warning("%s: %r is damaged in %d places, which give no frames", source.name, _text(path), damage)
    return thin(chosen, source.max_frames) or _NoFrames("nothing in it can be decoded")


def _chosen(source: VideoSource, video: "Video") -> Sequence[int]:
    from vlmdata.frames import small_grey

    if video.seconds and video.seconds > source.max_seconds:
        raise _NoFrames(f"longer than {source.max_seconds:g} s")
    if source.frames == "every":
        return every((_within(source, *found) for found in enumerate(video.times())), source.seconds)
    scenes = Scenes(source.threshold)
    for number, (time, frame) in enumerate(video.frames()):
        scenes.show(_within(source, number, time), small_grey(frame, *SIZE))
    return scenes.chosen()


def _within(source: VideoSource, number: int, time: int) -> int:
    """The time of the frame of that number, both within the limits: what a file says of itself may be untrue."""
    if time > source.max_seconds * 1000 or number > source.max_seconds * _MOST_FRAMES:
        raise _NoFrames(f"longer than {source.max_seconds:g} s, or more than {_MOST_FRAMES} frames a second")
    return time


def _text(path: str) -> str:
    return path.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
