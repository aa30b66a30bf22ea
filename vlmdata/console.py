"""What the terminal shows: progress, the summary of a run, answers to queries, a pair's story."""

import csv
import datetime
import decimal
import json
import logging
import math
import os
import shlex
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.lock import RUN_VARIABLE, end_orphans, run_mark
from vlmdata.parts import part_from, snapshot_folder

if TYPE_CHECKING:
    import duckdb

_TABLE_ROWS = 100
_SHOWN_DUPLICATES = 20
PLAIN_SECONDS = 5.0


def configure_logging(debug: bool) -> None:
    """Our own lines from INFO on, other packages' errors; everything with `debug`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s" if not debug else "%(asctime)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO if debug else logging.ERROR, handlers=[handler], force=True)
    logging.getLogger("vlmdata").setLevel(logging.DEBUG if debug else logging.INFO)
    if not debug:
        # They log an exception with its traceback on its way up; `main` says it in one line.
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)


def prepare_prefect(dataset: Dataset) -> None:
    """Settings of Prefect's temporary server, and the end of one that a killed run has left behind."""
    end_orphans(dataset)
    os.environ[RUN_VARIABLE] = run_mark(dataset)
    for name, value in {
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }.items():
        os.environ.setdefault(name, value)


class _Bars(logging.Handler):
    """Records of `vlmdata.progress` as bars on a terminal; elsewhere as plain lines, one every few seconds a stage."""

    def __init__(self, bars: Progress | None) -> None:
        super().__init__()
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.told: dict[str, tuple[float, str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        stage, done, total = (getattr(record, name, None) for name in ("stage", "done", "total"))
        message = record.getMessage()
        if self.bars is None or stage is None:
            when, before = self.told.get(stage or "", (-math.inf, ""))
            due = time.monotonic() - when >= PLAIN_SECONDS or stage is None or done == total
            if due and message != before:
                print(message, file=sys.stderr, flush=True)
                self.told[stage or ""] = (time.monotonic(), message)
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total)
        self.bars.update(self.tasks[stage], completed=done, total=total)


@contextmanager
def progress() -> Iterator[None]:
    """Show progress while the block runs."""
    console = Console(stderr=True)
    bars = None
    if console.is_terminal:
        bars = Progress(
            TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(), console=console,
        )  # fmt: skip
        bars.start()
    logger = logging.getLogger("vlmdata.progress")
    handler = _Bars(bars)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        if bars is not None:
            bars.stop()


def summary(dataset: Dataset, url: str) -> list[str]:
    """The lines that end a run: what was kept, why the rest was not, where things are, what to type next."""
    manifest = dataset.latest()
    assert manifest is not None
    funnel = manifest["funnel"]
    pairs, kept = funnel[0]["left"], funnel[-1]["left"]
    lines = [f"kept {kept:,} of {pairs:,} pairs ({kept / max(pairs, 1):.0%})"]
    if "base" in manifest and manifest["parent"] in dataset.numbers():
        earlier = dataset.snapshot(manifest["parent"])["funnel"]
        new = pairs - earlier[0]["left"], kept - earlier[-1]["left"]
        lines.append(f"new:     {new[0]:,} pairs, {new[1]:,} of them kept")
    reasons = sorted(funnel[1:], key=lambda step: -step["rejected"])
    told = [f"{step['reason']} {step['rejected']:,}" for step in reasons if step["rejected"]]
    lines += [f"  not kept: {', '.join(told[start : start + 4])}" for start in range(0, min(len(told), 12), 4)]
    lines += _tried_again(dataset, manifest)
    folder = dataset.address(snapshot_folder(manifest["number"]))
    tars = [shard for shard in manifest["shards"] if shard["format"] == "webdataset"]
    splits = ", ".join(f"{name} {count:,}" for name, count in manifest["splits"].items())
    lines.append(f"shards:  {folder}/shards ({len(tars)} tars; {splits})" if manifest["shards"] else "shards:  none")
    lines += _metrics(dataset, manifest["number"])
    lines.append(f"report:  {folder}/report.html")
    place = shlex.quote(url)
    query = '"select reason, count(*) n from samples group by all order by n desc"'
    lines += [f"next:    vlmdata sql {place} {query}"]
    uid = _a_kept_uid(dataset, manifest)
    if uid:
        lines.append(f"         vlmdata show {place} {uid}")
    if manifest["shards"]:
        lines.append(f"         vlmdata train contrastive --data {place} --out my-model")
    return lines


def _tried_again(dataset: Dataset, manifest: dict[str, Any]) -> list[str]:
    """What the layers came to that this snapshot has and its parent had not."""
    from vlmdata.layers import outcomes

    tables = [
        dataset.snapshot(n)["tables"]["pairs"]
        for n in (manifest["parent"], manifest["number"])
        if n in dataset.numbers()
    ]
    newest = [part_from(table["parts"][-1]).layer for table in tables]
    if len(newest) < 2 or tables[0]["key"] != tables[1]["key"]:
        return []
    new = [row for row in outcomes(dataset, manifest) if row["layer"] > newest[0]]
    if not new:
        return []
    tried, came = sum(row["tried"] for row in new), sum(row["came"] for row in new)
    told = ", ".join(f"{row['before']} {row['came']:,} of {row['tried']:,}" for row in new)
    return [f"tried again: {tried:,} pairs; {came:,} came ({told})"]


def _metrics(dataset: Dataset, number: int) -> list[str]:
    from vlmdata.catalog import logged

    values = {row["name"]: row["value"] for row in logged(dataset, "metrics", number)}
    lines = []
    for way in ("image_to_text", "text_to_image"):
        name = f"retrieval/{way}/R@10"
        if name in values:
            chance = values.get(f"{name}/chance")
            behind = f" (chance {chance:.3f})" if chance is not None else ""
            lines.append(f"trained: {way.replace('_', ' ')} recall at 10 on the test split {values[name]:.3f}{behind}")
    return lines


def _a_kept_uid(dataset: Dataset, manifest: dict[str, Any]) -> str | None:
    for part in manifest["samples"]:
        rows = dataset.read_part(part["path"], ["uid", "kept"])
        kept = rows.filter(rows["kept"])
        if kept.num_rows:
            return kept["uid"][0].as_py()
    return None


def write_answer(relation: "duckdb.DuckDBPyRelation", form: str) -> None:
    """A query's answer on stdout: a table, CSV, or a JSON array of objects (NaN as null, times in ISO 8601)."""
    reader = relation.to_arrow_reader(10_000)
    names = reader.schema.names
    if form == "table":
        table = RichTable(box=None, pad_edge=False, header_style="bold")
        for name in names:
            table.add_column(Text(clean(name)))
        count = 0
        for batch in reader:
            for row in batch.to_pylist():
                count += 1
                if count <= _TABLE_ROWS:
                    table.add_row(*[Text(clean(_plain_text(row[name]))) for name in names])
        Console(width=None if sys.stdout.isatty() else 240).print(table)
        if count > _TABLE_ROWS:
            print(f"… {count - _TABLE_ROWS:,} rows more; --format csv writes all", file=sys.stderr)
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        for batch in reader:
            writer.writerows([_csv_value(row[name]) for name in names] for row in batch.to_pylist())
    else:
        separator = "["
        for batch in reader:
            for row in batch.to_pylist():
                sys.stdout.write(separator + json.dumps(_json_value(row), ensure_ascii=False))
                separator = ",\n"
        print("[]" if separator == "[" else "]")


def prompt(connection: "duckdb.DuckDBPyConnection", form: str) -> None:
    """Read SELECTs line by line until the end of input; a query ends with `;`."""
    from vlmdata.catalog import query

    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401 - gives input() its history and arrow keys
    held = ""
    while True:
        try:
            held += input(("vlmdata> " if not held else "    ...> ") if terminal else "") + "\n"
        except EOFError:
            if held.strip():
                write_answer(query(connection, held), form)
            return
        if held.strip() in ("", "exit", "quit", ".quit", "\\q"):
            if held.strip():
                return
            held = ""
        elif held.rstrip().endswith(";"):
            try:
                write_answer(query(connection, held), form)
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)
            held = ""


def show_pair(dataset: Dataset, uid: str) -> None:
    """One pair's story on stdout. Raises InputError where there is no such pair."""
    from vlmdata import catalog

    connection = catalog.connect(dataset)

    def rows(sql: str) -> list[dict[str, Any]]:
        return connection.sql(sql, params={"uid": uid}).to_arrow_table().to_pylist()

    sample = rows("SELECT * FROM samples WHERE uid = $uid")
    if not sample:
        raise InputError(f"{dataset.url}: no pair has the uid {clean(uid)!r}")
    manifest = dataset.latest()
    assert manifest is not None
    tables = [name for name in manifest["tables"] if catalog.has_scalars(name)]
    verdict = sample[0]
    if verdict["kept"]:
        copies = f"; {verdict['copies']} copies in all" if verdict["copies"] > 1 else ""
        print(f"kept: {verdict['split']}, shard {verdict['shard']}, sample {verdict['index']}{copies}")
    else:
        print(f"not kept: {verdict['reason']}")
    for table in tables:
        print(f"\n{table}")
        for name, value in rows(f'SELECT * FROM "{table}" WHERE uid = $uid')[0].items():
            if value is not None:
                print(f"  {name:<22}{clean(_plain_text(value))}")
    if "duplicates" not in manifest["tables"]:
        return
    groups = rows(
        """SELECT d.dup_method, d.similarity, o.uid, s.kept, s.reason, s.caption FROM duplicates d
        JOIN duplicates o ON o.dup_method = d.dup_method AND o.dup_group = d.dup_group AND o.uid <> d.uid
        JOIN samples s ON s.uid = o.uid WHERE d.uid = $uid ORDER BY d.dup_method, NOT s.kept, o.uid"""
    )
    print(f"\nduplicates ({len(groups):,})" if groups else "\nduplicates: none")
    if len(groups) > _SHOWN_DUPLICATES:
        print(f'  the first {_SHOWN_DUPLICATES}, kept ones first; all: vlmdata sql … "select * from duplicates"')
    for other in groups[:_SHOWN_DUPLICATES]:
        state = "kept" if other["kept"] else other["reason"]
        print(f"  {other['dup_method']:<11}{other['uid']}  {state}: {clean(other['caption'])[:80]}")


def clean(text: str) -> str:
    """Text of others for a terminal: control characters, which could move the cursor or colour it, are replaced."""
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cf") else c for c in text)


def _plain_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
    if isinstance(value, list):
        return " | ".join(_plain_text(item) for item in value)
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)


def _csv_value(value: Any) -> str:
    """Numbers with all their digits; nothing for null; what is nested as JSON."""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(_json_value(value), ensure_ascii=False) if isinstance(value, dict | list) else _plain_text(value)


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):  # DuckDB's sum of whole numbers is one
        return int(value) if value == value.to_integral_value() else float(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)
