"""Pairs from live web pages: follows links within the hosts of `start` and takes the images that have captions."""

import contextlib
import hashlib
import ipaddress
import itertools
import json
import logging
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from vlmdata.errors import DataError, InputError, MachineError
from vlmdata.recipe import CrawlSource
from vlmdata.sources import BATCH_ROWS, ROWS
from vlmdata.sources.frontier import Frontier
from vlmdata.sources.urls import host_and_port, strip_signature, strip_urls, web_url

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")

VERSION = 3


def check(source: CrawlSource) -> None:
    """Refuse start URLs that no request can be made for. No request is made. Raises InputError."""
    for url in source.start:
        if web_url(url) is None:
            raise InputError(f"sources.{source.name}.start: {strip_signature(url)[0]!r} is not an http(s) URL to fetch")


def read(source: CrawlSource, scratch: str, chosen: Mapping[str, str | None] | None = None) -> Iterator[pa.RecordBatch]:
    """Crawl to the end, then yield the rows found, in no order. The crawl runs in `vlmdata.sources.spider`.

    robots.txt is obeyed, crawl-delay included, and so is a page's `nofollow`; requests stay within the hosts and
    ports of `start`. A crawl that was cut off goes on where `scratch` holds its frontier: pages that were read are
    not asked for again. chosen: what `visited` gave after an earlier crawl: its pages are asked whether they have
    changed, and those that have not yield nothing.
    A start page that cannot be read is warned of. Raises DataError when none can, MachineError when the crawler fails
    or a host cannot be reached for now.
    """
    if source.contact is None and not all(is_loopback(url) for url in source.start):
        log.warning("sources.%s: no `contact`: nobody there can tell you of a problem with this crawl", source.name)
    options, path = Path(scratch) / f"{source.name}.json", Path(scratch) / f"{source.name}.frontier"
    again = [] if chosen is None else [hashlib.sha256(json.dumps(sorted(chosen.items())).encode()).hexdigest()]
    crawl = json.dumps([VERSION, source.keyed(), *again])
    if chosen:
        with Frontier(path, crawl) as frontier:
            frontier.revisit(chosen)
    options.write_text(json.dumps({"source": source.model_dump(mode="json"), "crawl": crawl}))
    if path.exists() and not chosen:
        log.info("%s: a crawl that was cut off goes on", source.name)
    _report(source, _crawl(source, options, path))
    with Frontier(path, crawl) as frontier:
        rows = (shared | image for shared, images in frontier.content() for image in images)
        while batch := list(itertools.islice(rows, BATCH_ROWS)):
            yield pa.RecordBatch.from_pylist(batch, ROWS)


def visited(source: CrawlSource, scratch: str) -> dict[str, str]:
    """After `read`, the pages with what a later crawl needs to ask whether they have changed."""
    path = Path(scratch) / f"{source.name}.frontier"
    db = sqlite3.connect(path)
    with contextlib.closing(db):
        (crawl,) = db.execute("SELECT crawl FROM about").fetchone()
    with Frontier(path, crawl) as frontier:
        return frontier.visited()


def private_hosts(source: CrawlSource, first: list[str]) -> list[str]:
    """The `host:port` that may be at a private address: where `start` names the address itself, and `allow_hosts`."""
    return [*(place for place in map(host_and_port, first) if _is_address(place)), *source.allow_hosts]


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine itself."""
    name = urlsplit(url).hostname or ""
    return name == "localhost" or (_is_address(host_and_port(url)) and ipaddress.ip_address(name).is_loopback)


def _is_address(place: str) -> bool:
    name = place.rpartition(":")[0].strip("[]")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return True


def _crawl(source: CrawlSource, options: Path, path: Path) -> dict[str, Any]:
    """Run the crawler and return the last of its lines. Its standard input, once closed, ends it."""
    errors = options.with_suffix(".log")
    outcome: dict[str, Any] = {}
    with open(errors, "wb") as log_file:
        child = subprocess.Popen(  # noqa: S603 - our own module, arguments as a list
            [sys.executable, "-m", "vlmdata.sources.spider", str(options), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            start_new_session=True,  # Ctrl-C is for us to pass on
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                outcome = json.loads(line)
                message = f"{source.name}: {outcome['pages']:,} pages, {outcome['pairs']:,} captioned images"
                progress.info(message, extra={"stage": "ingest", "done": outcome["pages"], "total": None})
            code = child.wait()
        finally:
            child.kill()
            child.wait()
            child.stdout.close()
            assert child.stdin is not None
            child.stdin.close()
    if code or "failed" not in outcome:
        lines = strip_urls(errors.read_text("utf-8", "replace")).strip().splitlines()[-5:]
        raise MachineError(
            f"sources.{source.name}: the crawler ended with code {code}: {' | '.join(lines) or 'no word'}"
        )
    for told in strip_urls(errors.read_text("utf-8", "replace")).splitlines():
        log.debug("%s: %s", source.name, told)
    return outcome


def _report(source: CrawlSource, outcome: dict[str, Any]) -> None:
    pages = outcome["pages"]
    failed = "; ".join(f"{strip_signature(url)[0]}: {reason}" for url, reason in sorted(outcome["failed"].items()))
    if outcome["left"]:
        reasons = "; ".join(f"{host}: {reason}" for host, reason in sorted(outcome["left"].items()))
        raise MachineError(
            f"sources.{source.name}: {reasons}. Run it again later: {pages:,} pages are kept, "
            f"{outcome['waiting']:,} wait; a host that is still away after a day is left out"
        )
    if not pages and not outcome["unchanged"]:
        reasons = failed or ", ".join(strip_signature(url)[0] for url in source.start)
        raise DataError(f"sources.{source.name}: no start page could be read: {reasons}")
    for host, reason in sorted(outcome["given_up"].items()):
        log.warning(
            "sources.%s: %s could not be reached for a day, its further pages are left out: %s",
            source.name,
            host,
            reason,
        )
    if failed:
        log.warning("sources.%s: a start page could not be read, and is left out: %s", source.name, failed)
    for reason, count in sorted(outcome["failures"].items()):
        log.info("%s: %d pages not read: %s", source.name, count, reason)
    if outcome["unchanged"]:
        log.info("%s: %d pages are as they were", source.name, outcome["unchanged"])
    if outcome["copies"]:
        log.info("%s: %d pages are copies of others by their own word", source.name, outcome["copies"])
    if outcome["left_out"]:
        log.warning("%s: %d images left out: more than 5,000 on a page", source.name, outcome["left_out"])
    if pages and not outcome["pairs"]:
        log.warning("%s: none of the %d pages has an image with a caption", source.name, pages)
