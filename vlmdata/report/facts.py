"""Counts for the report, each by one SQL query over the snapshot."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import duckdb

from vlmdata import schemas
from vlmdata.select import CONSENT_STATUSES

LANGUAGES, SOURCES, FILES = 12, 20, 40
_THERE = "reason IS DISTINCT FROM 'forgotten'"  # of tombstones there is nothing to tell


@dataclass(frozen=True)
class Bar:
    """A named count split into kept and rejected pairs."""

    name: str
    kept: int
    rejected: int
    note: str = ""

    @property
    def count(self) -> int:
        return self.kept + self.rejected


@dataclass(frozen=True)
class Step:
    """A step of the funnel. rule: the SQL of the rule that the reason names, else ''; is_rule: the reason is just its
    name. anchor: of the section that shows what it rejected."""

    reason: str
    rule: str
    is_rule: bool
    rejected: int
    left: int
    share_left: float
    share_rejected: float
    anchor: str


@dataclass(frozen=True)
class Signal:
    """What one consent signal said: pairs whose page or host said `allow` or `deny`, and pairs refused for it."""

    word: str
    respected: bool
    page_deny: int
    page_allow: int
    host_deny: int
    host_allow: int
    refused: int


@dataclass(frozen=True)
class Balance:
    """A balancing: head entries have more than `limit` matches, the others are the tail. head_before, head_after: their
    share of all matches. mass, largest: matches of kept and of rejected pairs."""

    limit: int
    entries: int
    unmatched: int
    unmatched_kept: bool
    head_before: float
    head_after: float
    mass: list[Bar]
    largest: list[Bar]


def column_meanings(manifest: dict[str, Any]) -> dict[str, str]:
    """What the columns of a snapshot's samples mean, as `schemas/tables.yaml` has it.

    A second model's columns (`name: b` in the recipe) have its name behind them: clip_score_b.
    """
    meanings: dict[str, str] = {}
    tables = [(table, "") for table in ("pairs", "images")]
    tables += [("known", "")] if "known" in manifest["tables"] else []
    for signal in manifest["recipe"]["signals"]:
        suffix = f"_{signal['name']}" if signal.get("name") else ""
        if signal["kind"] + suffix in manifest["tables"]:  # a family may have embeddings alone
            tables.append((signal["kind"], suffix))
    for table, suffix in [*tables, ("verdict", "")]:
        for name, column in schemas.columns(table).items():
            meanings.setdefault(name + (suffix if column.get("suffix") else ""), column["meaning"])
    for name in manifest["columns"]:
        own = "as the source gives it" if name.startswith("source_") else "as the recipe's own Python file gives it"
        meanings.setdefault(name, own)
    return meanings


def funnel(manifest: dict[str, Any]) -> list[Step]:
    """The steps that reject, in the order of verdicts (a manifest's JSON sorts the rules); shares are of all pairs."""
    rules = manifest["recipe"]["select"]["rules"]
    total = max(1, manifest["funnel"][0]["left"])
    return [
        Step(
            step["reason"],
            rules.get(step["reason"].removesuffix(": not measured"), ""),
            step["reason"] in rules,
            step["rejected"],
            step["left"],
            step["left"] / total,
            step["rejected"] / total,
            f"not-kept-{place}" if step["rejected"] else "",
        )
        for place, step in enumerate(manifest["funnel"][1:])
    ]


def languages(connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]) -> list[Bar]:
    """The commonest languages of the captions; the others together come last."""
    if "lang" not in manifest["columns"]:
        return []
    rows = connection.execute(
        "SELECT coalesce(lang, '') AS lang, count(*) FILTER (kept), count(*) FILTER (NOT kept) FROM samples "
        f"WHERE {_THERE} GROUP BY 1 ORDER BY count(*) DESC, 1"
    ).fetchall()
    bars = [Bar(lang or "no text", kept, rejected) for lang, kept, rejected in rows]
    return _first(bars, LANGUAGES, "languages")


def balance(manifest: dict[str, Any]) -> Balance | None:
    """What a balancing came to, or None where the recipe asks for none."""
    if "balance" not in manifest:
        return None
    mass, options = manifest["balance"]["mass"], manifest["recipe"]["select"]["balance"]
    before, after = mass["head_before"] + mass["tail_before"], mass["head_after"] + mass["tail_after"]
    head = Bar(
        "head", mass["head_after"], mass["head_before"] - mass["head_after"], f"{mass['head_entries']:,} entries"
    )
    rest = f"{mass['matched'] - mass['head_entries']:,} entries"
    tail = Bar("tail", mass["tail_after"], mass["tail_before"] - mass["tail_after"], rest)
    largest = [Bar(one["entry"], one["kept"], one["matches"] - one["kept"]) for one in mass["largest"]]
    return Balance(
        options["limit"],
        mass["entries"],
        mass["unmatched"],
        options["unmatched"] == "keep",
        mass["head_before"] / max(before, 1),
        mass["head_after"] / max(after, 1),
        [head, tail],
        largest,
    )


def sources(connection: duckdb.DuckDBPyConnection) -> list[Bar]:
    """Pairs by source and by where the caption stood."""
    rows = connection.execute(
        "SELECT source, caption_from, count(*) FILTER (kept), count(*) FILTER (NOT kept) FROM samples "
        f"WHERE {_THERE} GROUP BY 1, 2 ORDER BY count(*) DESC, 1, 2"
    ).fetchall()
    bars = [Bar(source or "", kept, rejected, note or "") for source, note, kept, rejected in rows]
    return _first(bars, SOURCES, "kinds")


def booleans(connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]) -> list[tuple[str, Bar]]:
    """For every signal that is true or false: (column, the pairs for which it is true)."""
    names = [name for name, kind in manifest["columns"].items() if kind == "bool"]
    if not names:
        return []
    counts = ", ".join(
        f'count(*) FILTER ("{name}" AND kept), count(*) FILTER ("{name}" AND NOT kept)' for name in names
    )
    row = connection.execute(f"SELECT {counts} FROM samples").fetchall()[0]
    return [(name, Bar("true", row[2 * place], row[2 * place + 1])) for place, name in enumerate(names)]


def consent(connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]) -> list[Signal]:
    """What pages and hosts said, word by word, as they said it; refused is what the selection rejected for it."""
    words = ("robots", "noai", "tdm", "noml")
    said: dict[str, dict[str, tuple[int, int]]] = {}
    for table, column in (("pairs", "page_consent"), ("images", "consent")):
        counts = ", ".join(
            f"count(*) FILTER ({column}.{word} = 'deny'), count(*) FILTER ({column}.{word} = 'allow')" for word in words
        )
        row = connection.execute(f"SELECT {counts} FROM {table}").fetchall()[0]
        said[table] = {word: (row[2 * place], row[2 * place + 1]) for place, word in enumerate(words)}
    refused = {step["reason"]: step["rejected"] for step in manifest["funnel"]}
    respected = manifest["recipe"]["consent"]["respect"]
    signals = []
    for word in CONSENT_STATUSES:
        page, host = said["pairs"].get(word, (0, 0)), said["images"].get(word, (0, 0))
        count = refused.get(f"consent: {word}", 0)
        if word in words or count:
            signals.append(Signal(word, word in respected or word == "optout", *page, *host, count))
    return signals


def downloads(connection: duckdb.DuckDBPyConnection) -> list[Bar]:
    """Pairs by download status, with one error in its own words; success comes first."""
    rows = connection.execute(
        "SELECT download_status, count(*) FILTER (kept), count(*) FILTER (NOT kept), min(error) FROM samples "
        f"WHERE {_THERE} GROUP BY 1 ORDER BY download_status = 'success' DESC, count(*) DESC, 1"
    ).fetchall()
    return [Bar(status or "", kept, rejected, note or "") for status, kept, rejected, note in rows]


def stage_seconds(connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]) -> list[tuple[str, float]]:
    """Wall-clock seconds of each stage and job of the snapshot, in their order.

    A stage that a later run found done took no time then; the run that did the work counts.
    """
    return connection.execute(
        "SELECT job, max(seconds) FROM jobs WHERE snapshot = $number AND seconds IS NOT NULL "
        "GROUP BY job, kind ORDER BY min(started_at), job",
        {"number": manifest["number"]},
    ).fetchall()


def totals(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Bytes received, images stored."""
    row = connection.execute(
        "SELECT coalesce(sum(received_bytes), 0)::BIGINT, count(*) FILTER (length > 0) FROM samples"
    ).fetchall()[0]
    return {"received": row[0], "stored": row[1]}


def _first(bars: list[Bar], most: int, what: str) -> list[Bar]:
    """The first `most` bars, the rest as one."""
    if len(bars) <= most:
        return bars
    return [*bars[: most - 1], _sum(f"{len(bars) - most + 1} other {what}", bars[most - 1 :])]


def _sum(name: str, bars: Iterable[Bar]) -> Bar:
    bars = list(bars)
    return Bar(name, sum(bar.kept for bar in bars), sum(bar.rejected for bar in bars))
