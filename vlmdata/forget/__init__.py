"""Forgetting: a sample goes out of every table, tar, shard, index and page of every snapshot, and does not come back.

`request.py` reads what is asked, `find.py` finds the pairs, `tombstones.py` writes one file without them, `stage.py`
makes every file that changes, `journal.py` puts them in place so that a kill at any moment is harmless, and `proof.py`
looks for what is left. `download/forgotten.py` keeps the list of what must not come back. docs/forgetting.md says what
goes and what stays.
"""

import datetime
import json
import logging
import shutil
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.dataset import Dataset
from vlmdata.download import forgotten as refused
from vlmdata.download.forgotten import Forgotten
from vlmdata.forget import journal as journals
from vlmdata.forget.find import KINDS, find, metadata_of, parquet_files
from vlmdata.forget.journal import FOLDER, JOURNAL
from vlmdata.forget.request import Request
from vlmdata.forget.stage import stage
from vlmdata.parts import new_id, snapshot_folder

__all__ = ["JOURNAL", "Forgotten", "Request", "finish", "forget", "forget_returned", "meant"]

log = logging.getLogger(__name__)
AUDIT = "forgotten.jsonl"
# Made again by whoever needs it; the download's group first, or a kill would leave a group whose files are gone.
_LEFT = (
    "work_download/group.json",
    "work_download",
    "work",
    "work_shards",
    "work_words",
    "work_joined",
    "work_pairs",
    "tables/balance",
    "tables/joined",
    "tables/equal",
    "tables/frequent",
    "tables/judged",
    "tables/verdict",
    "tables/ranked",
)
# Local folders of trainings that were killed; what they are made from is no more, so they would not go on.
_KEPT = ("training", "compare/running", "compare/cache")  # fmt: skip


def meant(dataset: Dataset, asked: Request) -> dict[str, str]:
    """uid -> how it was found, one of `find.KINDS`. Nothing is written."""
    return find(dataset, asked, Forgotten())[0]


def forget(dataset: Dataset, asked: Request) -> dict[str, str]:
    """Forget what a request means, and refuse it from now on; uid -> how it was found.

    Only the holder of the lock may call it, and `finish` before. Raises DataError for a damaged file, before anything
    is changed.
    """
    refused.make_key(dataset)
    forgotten = refused.load(dataset)
    found, hashes = find(dataset, asked, forgotten)
    _forget(dataset, found, {*hashes, *asked.entries(forgotten)})
    return found


def forget_returned(dataset: Dataset, key: str) -> int:
    """Forget the pairs whose download brought what is refused (download_status `forgotten`); how many they were.

    key: of `images`. Their URLs are refused from now on, too.
    """
    table = dataset.read_table("images", key)
    returned: set[str] = set()
    for part in table.parts if table else ():
        rows = dataset.read_part(part, ["uid", "download_status"])
        returned |= set(rows["uid"].filter(pc.equal(rows["download_status"], refused.FORGOTTEN)).to_pylist())
    forgotten = refused.load(dataset)
    found, hashes = find(dataset, Request(uid=returned), forgotten)
    found = {uid: KINDS[-1] if uid in returned else kind for uid, kind in found.items()}
    _forget(dataset, found, set(hashes))
    return len(found)


def finish(dataset: Dataset) -> bool:
    """Go on with a forgetting that was interrupted; whether there was one. Only the lock's holder may call it."""
    journal = journals.read(dataset)
    if journal is None:
        dataset.remove(FOLDER)
        return False
    log.info("a forgetting of %d pairs was interrupted: it goes on", len(journal["uids"]))
    _execute(dataset, journal)
    return True


def _forget(dataset: Dataset, found: dict[str, str], entries: set[refused.Entry]) -> None:
    counts = Counter(found.values())
    journal = {
        "format_version": 1,
        "id": new_id(),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "by": {kind: counts[kind] for kind in KINDS if counts[kind]},
        "uids": sorted(found),
        "captions": _captions(dataset, pa.array(sorted(found), pa.string())),
        "refused": sorted(entries, key=lambda entry: entry[:2]),
    }
    journals.begin(dataset, journal)
    _execute(dataset, json.loads(json.dumps(journal)))


def _execute(dataset: Dataset, journal: dict[str, Any]) -> None:
    if "moves" not in journal:
        dataset.remove(FOLDER)
        _remove_leftovers(dataset)
        journal = journals.commit(dataset, journal, stage(dataset, journal))
    journals.apply(dataset, journal)
    for path in dataset.files(FOLDER):
        if path.endswith("manifest.json"):
            _publish(dataset, dataset.read_json(path))
    for path in journal["removes"]:
        dataset.remove(path)
    _audit(dataset, journal)
    journals.end(dataset)


def _publish(dataset: Dataset, manifest: dict[str, Any]) -> None:
    """A snapshot's documents, manifest and report, when all else is in place."""
    from vlmdata.card import write_documents
    from vlmdata.report import write_report

    folder = snapshot_folder(manifest["number"])
    if manifest["documents"]:
        manifest = {**manifest, "documents": write_documents(dataset, manifest)}
    dataset.guard()
    dataset.write_sealed(f"{folder}/manifest.json", manifest)
    if dataset.exists(f"{folder}/report.html"):
        write_report(dataset, manifest)


def _remove_leftovers(dataset: Dataset) -> None:
    """What a killed run has left: it may hold the content, and is made again."""
    for path in _LEFT:
        dataset.remove(path)
    for name in _KEPT:
        shutil.rmtree(dataset.kept_folder(name), ignore_errors=True)
    latest = dataset.latest()
    newest = latest["number"] if latest else 0
    for folder in {path.split("/")[1] for path in dataset.files("snapshots")}:
        if folder.isdigit() and int(folder) > newest:
            dataset.remove(f"snapshots/{folder}")


def _captions(dataset: Dataset, uids: pa.Array) -> list[str]:
    """Keyed hashes of the captions that others may have got from these pairs."""
    snapshots = [dataset.snapshot(number) for number in dataset.numbers()]
    if not any(method.get("merge") for snapshot in snapshots for method in snapshot["recipe"]["dedup"]):
        return []
    forgotten = refused.load(dataset)
    found: set[str] = set()
    for path in parquet_files(dataset, ("tables/pairs",)):
        if metadata_of(dataset, path).num_rows:
            rows = dataset.read_part(path, ["uid", "captions"])
            texts = rows["captions"].filter(pc.is_in(rows["uid"], uids)).to_pylist()
            found |= {forgotten.keyed("caption", text) for several in texts for text in several or ()}
    return sorted(found)


def _audit(dataset: Dataset, journal: dict[str, Any]) -> None:
    """Add the request's line, once: each has the SHA-256 of the line before."""
    lines = dataset.read_bytes(AUDIT).splitlines(keepends=True) if dataset.exists(AUDIT) else []
    if any(json.loads(line)["id"] == journal["id"] for line in lines[-1:]):
        return
    line = {name: journal[name] for name in ("id", "at", "by")}
    line |= {"pairs": len(journal["uids"]), "refused": len(journal["refused"]), "uids": journal["uids"]}
    line |= {"list": dataset.sha256(refused.LIST)[0]}
    dataset.guard()
    dataset.write_bytes(AUDIT, b"".join([*lines, audit_line(line, lines[-1] if lines else b"")]))


def audit_line(content: dict[str, Any], before: bytes) -> bytes:
    """A line of the audit: `check` is the SHA-256 of the line before and of all the rest of this one."""
    import hashlib

    check = hashlib.sha256(before + json.dumps(content).encode()).hexdigest()
    return (json.dumps(content | {"check": check}) + "\n").encode()
