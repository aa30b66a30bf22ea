"""img2dataset's Downloader at work on one part: our fetch, our resizer and our writer in its seams.

`Downloader.download_shard` looks its thread pool up in its module. It runs here as a copy whose globals have our pool
instead, so that nothing is changed for anybody else and parts in several threads do not meet.
"""

import asyncio
import hashlib
import io
import os
import queue
import types
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import IO, Any

import fsspec
import pyarrow as pa

from vlmdata.download import decode, network
from vlmdata.download.errand import Answer
from vlmdata.download.forgotten import FORGOTTEN
from vlmdata.download.frontier import Frontier, Outcome
from vlmdata.download.header import Facts, ImageError, sniff
from vlmdata.download.hosts import CONNECTION
from vlmdata.download.known import KNOWN
from vlmdata.download.local import local_path, read_local, read_stored
from vlmdata.download.optout import LISTED
from vlmdata.download.stored import Stored
from vlmdata.download.terms import Terms
from vlmdata.download.video import Frames, frame_of
from vlmdata.download.watch import Watch
from vlmdata.errors import MachineError

NO_HASH = ""
_LOOK = 0.5  # seconds after which a part that waits looks whether it waits in vain
MISMATCH = "the bytes are not those of which the source has the hash"


@dataclass
class Job:
    """One URL and what became of it.

    expected: the hashes of its rows, `sha256:<hex>` each, NO_HASH for a row without one.
    local: whether a file of the rows' own source may be read for it.
    stored: what the source holds of it already, at `fetch_url`.
    as_received: whether the bytes are those that were received once, and not what a source made of them.
    facts: what the received file tells.
    place, length: where the JPEG stands in the spool, and its bytes.
    """

    url: str
    fetch_url: str
    key: str
    local: bool = False
    stored: Stored | None = None
    expected: set[str] = field(default_factory=set)
    answer: Answer | None = None
    received: int | None = None
    digests: dict[str, str] = field(default_factory=dict)
    mime: str | None = None
    status: str = ""
    error: str | None = None
    size: tuple[int, int] | None = None
    original: tuple[int, int] | None = None
    as_received: bool = True
    facts: Facts = field(default_factory=Facts)
    place: int = 0
    length: int = 0

    def fits(self, expected: str) -> bool:
        """Whether the bytes received have this hash."""
        kind, _, digest = expected.partition(":")
        return expected == NO_HASH or self.digests[kind] == digest


def run(
    jobs: list[Job],
    spool: IO[bytes],
    terms: Terms,
    told: Callable[[str, str, str | None], None] | None = None,
) -> None:
    """Fetch, decode and spool every job's image, and note in each job what became of it; `told` may raise to stop.

    Raises MachineError when img2dataset has lost a row or has changed inside.
    """
    downloader, names = img2dataset_parts()
    # Numbers, not URLs: what a signature gives access to stays out of other hands.
    shard = f"memory://vlmdata-{uuid.uuid4().hex}.arrow"
    rows = pa.table({"url": [str(number) for number in range(len(jobs))]})
    with fsspec.open(shard, "wb") as file, pa.ipc.new_file(file, rows.schema) as batches:
        batches.write_table(rows)
    part = downloader(
        sample_writer_class=lambda *_: _Writer(jobs, spool, told),
        resizer=partial(_resize, terms=terms),
        thread_count=max(1, len(jobs)),  # it starts no thread; our frontier decides how many URLs are on their way
        save_caption=False,
        extract_exif=False,
        output_folder="",
        column_list=["url"],
        timeout=terms.options.timeout,
        number_sample_per_shard=max(10, len(jobs)),
        oom_shard_count=1,
        compute_hash=None,
        verify_hash_type=None,
        encode_format="jpg",
        retries=terms.options.retries,
        user_agent_token=None,
        disallowed_header_directives=None,
    )
    pool = _Pool(jobs, terms)
    copy = types.FunctionType(downloader.download_shard.__code__, {**names, "ThreadPool": lambda _: pool})
    copy(part, (0, shard))
    lost = [job.key for job in jobs if not job.status]
    if lost:
        raise MachineError(f"img2dataset lost {len(lost)} of {len(jobs)} rows, the first for uid {lost[0]}")


@cache
def img2dataset_parts() -> tuple[Any, dict[str, Any]]:
    """img2dataset's Downloader, and the globals for a copy of its `download_shard`.

    With them it writes no statistics, prints nothing, and what it would print and pass over is raised.
    Raises MachineError when the function does not use these names any more.
    """
    # Its imports look for newer versions and send statistics home otherwise.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from img2dataset import downloader

    ours = {
        "write_stats": lambda *_: None,
        "traceback": types.SimpleNamespace(print_exc=_raise_again),
        "print": lambda *_: None,
    }
    original = downloader.Downloader.download_shard
    missing = {"ThreadPool", *ours} - set(original.__code__.co_names)
    if missing or original.__code__.co_freevars:
        raise MachineError(
            f"img2dataset: download_shard is not as expected (no {', '.join(sorted(missing)) or 'plain function'}); "
            "install img2dataset==1.47.0"
        )
    return downloader.Downloader, {**original.__globals__, **ours}


def _raise_again() -> None:
    raise  # what the except clause that calls this has caught


class _Stream(io.BytesIO):
    """The bytes of an image, with the job that they are for."""

    def __init__(self, job: Job, body: bytes) -> None:
        super().__init__(body)
        self.job = job


class _Pool:
    """Stands where img2dataset has a pool of threads: answers come as they are done, from the network's event loop."""

    def __init__(self, jobs: list[Job], terms: Terms) -> None:
        self._jobs, self._terms = jobs, terms
        self._frames = Frames(terms.options.max_pixels)
        self._network = network.NETWORK
        self._entered = self._network.client(terms)
        self._done: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()

    def __enter__(self) -> "_Pool":
        client = self._entered.__enter__()
        self._frontier = Frontier(client, lambda number, outcome: self._done.put((number, outcome)), self._terms.optout)
        return self

    def __exit__(self, *error: Any) -> None:
        self._frames.close()
        try:
            self._network.wait(self._frontier.close())
            while not self._done.empty():
                self._give_back(self._done.get()[1])
        finally:
            self._entered.__exit__(*error)

    def imap_unordered(
        self, _: Callable, items: Iterable[tuple[int, str]]
    ) -> Iterator[tuple[int, _Stream | None, str | None]]:
        """(number, stream, None) or (number, None, `class: words`) for each of img2dataset's (number, url)."""
        local: deque[tuple[int, Callable[[], Answer]]] = deque()
        remote: list[tuple[int, str]] = []
        for number, _url in items:
            job = self._jobs[number]
            here = self._here(job)
            if here is None:
                remote.append((number, job.fetch_url))
            else:
                local.append((number, here))
        waiting = {number for number, _url in remote}
        watch = Watch(len(waiting), self._terms.options.deadline)
        adding = asyncio.run_coroutine_threadsafe(self._frontier.add(remote), self._network.loop)
        while waiting or local:
            try:
                number, outcome = self._done.get(timeout=_LOOK) if not local else self._done.get_nowait()
            except queue.Empty:
                if local:
                    number, read = local.popleft()
                    yield self._deliver(number, read())
                    watch.used()
                    continue
                if adding.done():
                    adding.result()
            else:
                waiting.discard(number)
                if isinstance(outcome, Exception):
                    raise outcome
                try:
                    yield self._deliver(number, outcome)
                finally:
                    self._give_back(outcome)
                if outcome.status not in CONNECTION:
                    watch.used()
            verdict = watch.verdict(len(waiting), self._frontier.heard, self._frontier.opens) if waiting else None
            if verdict is not None:
                for number in sorted(waiting):
                    yield self._deliver(number, Answer("timeout", verdict))
                return

    def _here(self, job: Job) -> Callable[[], Answer] | None:
        """What reads an image that is on the disk already."""
        roots, limit = self._terms.roots, self._terms.options.max_bytes
        if job.stored is not None:
            return partial(read_stored, job.fetch_url, job.stored, roots, limit)
        frame = frame_of(job.url)
        local = local_path(frame[0] if frame else job.url, roots) if job.local else None
        if local is None:
            return None
        return partial(self._frames.read, *local, frame[1]) if frame else partial(read_local, *local, limit)

    def _give_back(self, outcome: Outcome) -> None:
        """A body is not needed any more."""
        if isinstance(outcome, Answer) and outcome.body is not None:
            self._network.budget.give_back(len(outcome.body))
            if self._frontier.used():
                self._network.loop.call_soon_threadsafe(self._frontier.go_on)

    def _deliver(self, number: int, answer: Answer) -> tuple[int, _Stream | None, str | None]:
        job, body, known = self._jobs[number], answer.body, self._terms.known
        # Without the body, so that it goes as soon as it is decoded.
        job.answer = Answer(answer.status, answer.error, None, answer.consent, answer.fetched_at)
        if body is None:
            return number, None, f"{answer.status}: {answer.error}"
        job.received, job.mime = len(body), sniff(body)
        for kind in {"sha256", *known.digests, *(text.partition(":")[0] for text in job.expected if text)}:
            job.digests[kind] = hashlib.new(kind, body, usedforsecurity=False).hexdigest()
        here = job.digests["sha256"]
        if job.stored is not None:
            its = job.stored
            job.as_received = its.sha256 == here if its.sha256 else its.original is None
        if job.stored is not None and job.stored.sha256:
            job.digests["sha256"] = job.stored.sha256  # what was received once may have been encoded anew since
        if any(self._terms.forgotten.has("sha256", sha256) for sha256 in {here, job.digests["sha256"]}):
            return number, None, FORGOTTEN
        if known.has(job.digests) or known.has({"sha256": here}):
            return number, None, f"optout: {KNOWN}"
        if any(self._terms.optout.refuses_bytes(sha256) for sha256 in {here, job.digests["sha256"]}):
            return number, None, f"optout: {LISTED}"
        if not any(job.fits(text) for text in job.expected):
            return number, None, f"hash_mismatch: {MISMATCH}"
        return number, _Stream(job, body), None

    def terminate(self) -> None:
        """The end of img2dataset's with statement does it."""

    def join(self) -> None:
        """The end of img2dataset's with statement does it."""


def _resize(stream: _Stream, _: object, terms: Terms) -> tuple:
    """img2dataset's resizer: (jpeg, width, height, original width, original height, error)."""
    options = terms.options
    try:
        picture = decode.as_it_is(stream.getvalue(), options.size, options.max_pixels) if stream.job.stored else None
        picture = picture or decode.to_jpeg(stream.getvalue(), options.size, options.quality, options.max_pixels)
    except ImageError as error:
        stream.job.original = error.size
        return None, None, None, None, None, f"{error.status}: {error}"
    if terms.forgotten.shows(picture.jpeg):
        return None, None, None, None, None, FORGOTTEN
    if terms.known.shows(picture.jpeg):
        return None, None, None, None, None, f"optout: {KNOWN}"
    job = stream.job
    if job.as_received:
        job.facts = picture.facts
    elif job.stored:
        job.facts = Facts(None, None, job.stored.exif_orientation, job.stored.exif_date)
    return picture.jpeg, picture.width, picture.height, *picture.original, None


class _Writer:
    """img2dataset's sample writer: spools the images, which come as they are done, and notes the rest in the jobs."""

    def __init__(
        self, jobs: list[Job], spool: IO[bytes], told: Callable[[str, str, str | None], None] | None = None
    ) -> None:
        self._jobs, self._spool, self._told = jobs, spool, told

    def write(self, jpeg: bytes | None, key: str, _: object, meta: dict[str, Any]) -> None:
        job = self._jobs[int(key)]
        self._note(job, jpeg, meta)
        if self._told:
            self._told(job.url, job.status, job.error)

    def _note(self, job: Job, jpeg: bytes | None, meta: dict[str, Any]) -> None:
        if jpeg is None:
            status, _, words = meta["error_message"].partition(": ")
            job.status, job.error = status, words
            return
        job.place, job.length = self._spool.tell(), len(jpeg)
        self._spool.write(jpeg)
        job.status = meta["status"]
        job.size = meta["width"], meta["height"]
        job.original = (job.stored and job.stored.original) or (meta["original_width"], meta["original_height"])

    def close(self) -> None:
        """The spool is closed by who has opened it."""
