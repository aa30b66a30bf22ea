"""Pairs from live web pages: follows links within the hosts of `start` and takes the images that have captions."""

import importlib.metadata
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmdata.errors import DataError, InputError, MachineError
from vlmdata.recipe import CrawlSource
from vlmdata.sources.urls import web_url

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")

VERSION = 2


def check(source: CrawlSource) -> None:
    """Refuse start URLs that no request can be made for. No request is made. Raises InputError."""
    for url in source.start:
        if web_url(url) is None:
            raise InputError(f"sources.{source.name}.start: {url!r} is not an http(s) URL that can be fetched")


def read(source: CrawlSource, scratch: str) -> Iterator[pa.RecordBatch]:
    """Crawl to the end, then yield the rows found, in no order. The crawl runs in `vlmdata.sources.spider`.

    robots.txt is obeyed, crawl-delay included, and so is a page's `nofollow`; requests stay within the hosts and
    ports of `start`. A crawl that was cut off is begun again.
    Raises DataError when a start URL cannot be read, MachineError when the crawler fails.
    """
    options, rows = Path(scratch) / f"{source.name}.json", Path(scratch) / f"{source.name}.arrow"
    spec = {"source": source.model_dump(mode="json"), "version": importlib.metadata.version("vlmdata")}
    options.write_text(json.dumps(spec), "utf-8")
    outcome = _crawl(source, options, rows)
    _report(source, outcome)
    with pa.memory_map(str(rows)) as file, pa.ipc.open_file(file) as batches:
        for number in range(batches.num_record_batches):
            yield batches.get_batch(number)
    rows.unlink()


def _crawl(source: CrawlSource, options: Path, rows: Path) -> dict[str, Any]:
    """Run the crawler and return the last of its lines. Its standard input, once closed, ends it."""
    errors = options.with_suffix(".log")
    outcome: dict[str, Any] = {}
    with open(errors, "wb") as log_file:
        child = subprocess.Popen(  # noqa: S603 - our own module, arguments as a list
            [sys.executable, "-m", "vlmdata.sources.spider", str(options), str(rows)],
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
        lines = errors.read_text("utf-8", "replace").strip().splitlines()[-5:]
        raise MachineError(
            f"sources.{source.name}: the crawler ended with code {code}: {' | '.join(lines) or 'no word'}"
        )
    for told in errors.read_text("utf-8", "replace").splitlines():
        log.debug("%s: %s", source.name, told)
    return outcome


def _report(source: CrawlSource, outcome: dict[str, Any]) -> None:
    if outcome["failed"]:
        reasons = "; ".join(f"{url}: {reason}" for url, reason in sorted(outcome["failed"].items()))
        raise DataError(f"sources.{source.name}: a start page could not be read: {reasons}")
    if not outcome["pages"]:
        raise DataError(f"sources.{source.name}: no page was read from {', '.join(source.start)}")
    for reason, count in sorted(outcome["failures"].items()):
        log.info("%s: %d pages not read: %s", source.name, count, reason)
    if outcome["errors"]:
        log.warning("%s: %d pages were not read because of a bug; --debug shows it", source.name, outcome["errors"])
    if outcome["left_out"]:
        log.warning("%s: %d images left out: more than 5,000 on a page", source.name, outcome["left_out"])
    if not outcome["pairs"]:
        log.warning("%s: none of the %d pages has an image with a caption", source.name, outcome["pages"])
