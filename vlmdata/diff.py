"""What differs between two snapshots of a dataset: pairs that came, went, or changed their verdict."""

import tempfile
from pathlib import Path
from typing import Any

import duckdb

from vlmdata.catalog import parquet_sql
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError, first_line
from vlmdata.ingest import connect

EXAMPLES = 3
# what -> which rows of the two samples side by side (a, b) it means
_CHANGES = {
    "new": "a.uid IS NULL",
    "gone": "b.uid IS NULL",
    "kept now": "NOT a.kept AND b.kept",
    "no longer kept": "a.kept AND NOT b.kept",
    "other reason": "NOT a.kept AND NOT b.kept AND a.reason IS DISTINCT FROM b.reason",
}


def diff(dataset: Dataset, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The two snapshots (manifests) compared, as JSON has it.

    `before` and `after`: number, pairs, kept. `changes`: for each of new, gone, kept now, no longer kept and other
    reason its `pairs`, `verdicts` (from and to as `reason`, null for kept, `absent` where there is no such pair; pairs)
    and up to three `examples` (uid, caption, from, to), the first by uid. `shards`: how many came, went and stayed.
    """
    result: dict[str, Any] = {
        name: {"number": each["number"], "pairs": each["funnel"][0]["left"], "kept": each["funnel"][-1]["left"]}
        for name, each in (("before", before), ("after", after))
    }
    with tempfile.TemporaryDirectory() as spill:
        connection = connect(Path(spill))
        if not dataset.local:
            connection.register_filesystem(dataset.fs)
        try:
            result["changes"] = _changes(connection, dataset, before, after)
        except duckdb.Error as error:
            raise DataError(f"{dataset.url}: {first_line(error)}; `vlmdata verify` lists what is damaged") from error
        finally:
            connection.close()
    old, new = ({shard["sha256"] for shard in each["shards"]} for each in (before, after))
    result["shards"] = {"came": len(new - old), "went": len(old - new), "stayed": len(old & new)}
    return result


def _changes(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    # Parts that both have hold the same rows: a refresh takes over its parent's.
    shared = {part["sha256"] for part in before["samples"]} & {part["sha256"] for part in after["samples"]}
    for name, each in (("a", before), ("b", after)):
        paths = [part["path"] for part in each["samples"] if part["sha256"] not in shared]
        rows = parquet_sql(dataset, paths) if paths else f"{parquet_sql(dataset, [each['samples'][0]['path']])} LIMIT 0"
        connection.execute(f"CREATE VIEW {name} AS SELECT uid, kept, reason, caption FROM {rows}")
    connection.execute(
        "CREATE TEMP TABLE changed AS SELECT coalesce(a.uid, b.uid) AS uid, coalesce(b.caption, a.caption) AS caption, "
        "CASE WHEN a.uid IS NULL THEN 'absent' ELSE a.reason END AS was, "
        "CASE WHEN b.uid IS NULL THEN 'absent' ELSE b.reason END AS now, "
        f"CASE {' '.join(f'''WHEN {sql} THEN '{name}' ''' for name, sql in _CHANGES.items())}END AS change "
        "FROM a FULL JOIN b ON a.uid = b.uid"
    )
    found: dict[str, Any] = {}
    for name in _CHANGES:
        verdicts = connection.execute(
            "SELECT was, now, count(*) FROM changed WHERE change = $name GROUP BY ALL ORDER BY 3 DESC, was, now",
            {"name": name},
        ).fetchall()
        examples = connection.execute(
            "SELECT uid, caption, was, now FROM changed WHERE change = $name ORDER BY uid LIMIT $most",
            {"name": name, "most": EXAMPLES},
        ).fetchall()
        found[name] = {
            "pairs": sum(count for *_, count in verdicts),
            "verdicts": [{"from": was, "to": now, "pairs": count} for was, now, count in verdicts],
            "examples": [{"uid": u, "caption": c, "from": was, "to": now} for u, c, was, now in examples],
        }
    return found


def lines(result: dict[str, Any]) -> list[str]:
    """The comparison for people. Captions are as they are stored."""
    told = [
        f"snapshot {each['number']}: {each['kept']:,} kept of {each['pairs']:,} pairs"
        for each in (result["before"], result["after"])
    ]
    shards = result["shards"]
    told.append(f"shards: {shards['came']} came, {shards['went']} went, {shards['stayed']} stayed")
    for name, change in result["changes"].items():
        told.append(f"{name}: {change['pairs']:,} pairs")
        for verdict in change["verdicts"]:
            told.append(f"  {_words(verdict):<44}{verdict['pairs']:>10,}")
        for example in change["examples"]:
            told.append(f"  {example['uid']}  {_words(example)}: {' '.join(example['caption'].split())[:60]}")
    return told


def _words(verdict: dict[str, Any]) -> str:
    was, now = (verdict[name] or "kept" for name in ("from", "to"))
    if "absent" in (was, now):
        return now if was == "absent" else was
    return f"{was} -> {now}"
