"""Every file that a forgetting changes, made anew aside: parts with their footers, tars, shards, manifests."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmdata.dataset import Dataset, File, snapshot_folder
from vlmdata.download import forgotten as refused
from vlmdata.download.forgotten import FORGOTTEN
from vlmdata.errors import MachineError
from vlmdata.forget import tombstones
from vlmdata.forget.find import metadata_of, note_of, parquet_files
from vlmdata.forget.journal import FOLDER, Staged

_SAMPLES = re.compile(r"snapshots/(\d{6})/samples/[^/]+\.parquet")
_SHARD = re.compile(r"(snapshots/(\d{6})/shards/[^/]+?)(?:\.r\d+)?\.(tar|parquet)")


@dataclass
class Gone:
    """What goes of each snapshot: verdicts (null for kept) and samples of each split."""

    reasons: dict[int, Counter[str | None]] = field(default_factory=dict)
    splits: dict[int, Counter[str]] = field(default_factory=dict)
    trimmed: set[str] = field(default_factory=set)  # uids that stay, with fewer captions


def stage(dataset: Dataset, journal: dict[str, Any]) -> Staged:
    """Make all files of a forgetting. The new manifests of snapshots lie in FOLDER, without their documents."""
    staged, gone = Staged(dataset), Gone()
    forgotten = refused.load(dataset)
    entries = {(kind, digits, distance) for kind, digits, distance in journal["refused"]}
    staged.put_bytes(refused.content(refused.Forgotten(forgotten.key, forgotten.entries | entries)), refused.LIST)
    drop = set(journal["captions"])

    def captions(texts: list[str]) -> list[str]:
        return texts[:1] + [text for text in texts[1:] if forgotten.keyed("caption", text) not in drop]

    uids = pa.array(journal["uids"], pa.string())
    _parts(staged, uids, captions if drop else None, gone)
    latest = dataset.latest()
    manifests = {number: dataset.snapshot(number) for number in range(1, (latest["number"] if latest else 0) + 1)}
    revisions = {number: manifest["revision"] + 1 for number, manifest in manifests.items()}
    shards = _shards(staged, manifests.values(), revisions, uids, captions, gone.trimmed)
    _tables(staged, gone)
    for number, manifest in manifests.items():
        followed = follow(staged, manifest)
        followed["shards"] = [again for shard in manifest["shards"] if (again := shards.get(shard["path"], shard))]
        if followed == manifest:
            continue
        followed["revision"] = revisions[number]
        followed["funnel"] = funnel(manifest["funnel"], gone.reasons.get(number, Counter()))
        followed["splits"] = _less(manifest["splits"], gone.splits.get(number, Counter()))
        dataset.write_json(f"{FOLDER}/{snapshot_folder(number)}/manifest.json", followed)
    return staged


def _parts(staged: Staged, uids: pa.Array, captions: tombstones.Captions | None, gone: Gone) -> None:
    """Parts, each behind those that it was made from, so that its footer can name what they are now."""
    dataset = staged.dataset
    found = parquet_files(dataset, ("tables", "images", "snapshots"))
    paths = [path for path in found if "/shards/" not in path and not path.endswith(".near.parquet")]
    metadata = {path: metadata_of(dataset, path) for path in paths}
    notes = {path: note_of(each) for path, each in metadata.items()}
    has_uid = {path for path, each in metadata.items() if "uid" in each.schema.to_arrow_schema().names}
    made_from = {path: [p for p in (note or {"inputs": {}})["inputs"] if p in notes] for path, note in notes.items()}
    known_tars = set()
    for path in TopologicalSorter(made_from).static_order():
        note = notes[path]
        old = dataset.sha256(path)[0] if note else None
        mask = np.zeros(metadata[path].num_rows, bool)
        if path in has_uid:
            mask = pc.is_in(dataset.read_part(path, ["uid"])["uid"], uids).to_numpy()
        tar = f"{path.removesuffix('.parquet')}.tar"
        if path.startswith("images/") and mask.any() and dataset.exists(tar):
            known_tars.add(tar)
            _tar(staged, tar, _members(dataset, path, mask))
        followed = _followed_note(staged, note) if note else None
        trims = _trim(dataset, path, mask, captions, gone) if _SAMPLES.fullmatch(path) else False
        if mask.any() or trims or followed != note:
            _part(staged, path, uids, followed, captions if trims else None, old)
    for tar in (path for path in dataset.files("images") if path.endswith(".tar") and path not in known_tars):
        if f"{tar.removesuffix('.tar')}.parquet" in notes:
            continue
        wanted = set(uids.to_pylist())  # its table was not written: a killed download's
        _tar(
            staged,
            tar,
            [(u, o, n) for u, end, o, n in tombstones.members(dataset, tar) if u in wanted and end == "jpg"],
        )


def _part(
    staged: Staged,
    path: str,
    uids: pa.Array,
    note: dict[str, Any] | None,
    captions: tombstones.Captions | None,
    old: str | None,
) -> None:
    def edit(rows: pa.Table) -> pa.Table:
        if "uid" not in rows.column_names:
            return rows
        rows = tombstones.bury(rows, pc.is_in(rows["uid"], uids).to_numpy())
        return tombstones.with_captions(rows, captions)[0] if captions else rows

    with staged.dataset.spool() as folder:
        tombstones.rewrite_part(staged.dataset, path, folder / "part", edit, note)
        staged.put(folder / "part", path, old)


def _followed_note(staged: Staged, note: dict[str, Any]) -> dict[str, Any]:
    """A part's note with what its inputs and its other files are now, where it was made from what they were."""
    inputs = {
        path: staged.files[path][1].sha256 if staged.files.get(path, (None,))[0] == sha256 else sha256
        for path, sha256 in note["inputs"].items()
    }
    also = [asdict(staged.files[file["path"]][1]) if file["path"] in staged.files else file for file in note["also"]]
    return {**note, "inputs": inputs, "also": also}


def _members(dataset: Dataset, path: str, mask: np.ndarray) -> list[tuple[str, int, int]]:
    """The stored images that belong to these rows of a part of `images` alone."""
    rows = dataset.read_part(path, ["stored_key", "offset", "length"])
    chosen = rows.filter(pa.array(mask) if len(mask) else pa.array([], pa.bool_()))
    chosen = chosen.filter(chosen["offset"].is_valid())
    others = set(rows.filter(pa.array(~mask))["offset"].to_pylist())
    found = {(row["stored_key"], row["offset"], row["length"]) for row in chosen.to_pylist()}
    if any(offset in others for _, offset, _ in found):
        raise MachineError(f"{path}: a pair that is not to be forgotten has the same stored image (a bug)")
    return sorted(found, key=lambda member: member[1])


def _tar(staged: Staged, path: str, members: list[tuple[str, int, int]]) -> None:
    if not members:
        return
    with staged.dataset.spool() as folder:
        tombstones.blank(staged.dataset, path, folder / "tar", members)
        staged.put(folder / "tar", path)


def _trim(dataset: Dataset, path: str, mask: np.ndarray, captions: tombstones.Captions | None, gone: Gone) -> bool:
    """Count what goes of a part of samples; whether captions of others go, too."""
    match = _SAMPLES.fullmatch(path)
    assert match is not None
    number = int(match[1])
    if mask.any():
        rows = dataset.read_part(path, ["reason", "split", "copies"]).filter(pa.array(mask)).to_pylist()
        reasons, splits = (of.setdefault(number, Counter()) for of in (gone.reasons, gone.splits))
        for row in rows:
            if row["reason"] != FORGOTTEN:
                reasons[row["reason"]] += 1
                splits[row["split"]] += row["copies"] or 0
    if captions is None:
        return False
    rows = dataset.read_part(path, ["uid", "captions"])
    changed = tombstones.with_captions(rows, captions)[1] & ~mask
    gone.trimmed |= set(rows["uid"].filter(pa.array(changed)).to_pylist())
    return bool(changed.any())


def _shards(
    staged: Staged,
    manifests: Iterable[dict[str, Any]],
    revisions: dict[int, int],
    uids: pa.Array,
    captions: tombstones.Captions,
    trimmed: set[str],
) -> dict[str, dict[str, Any] | None]:
    """Path -> its entry in manifests under its new name, None where nothing is left, of the shards that change."""
    dataset = staged.dataset
    wanted = set(uids.to_pylist())
    entries = {shard["path"]: shard for manifest in manifests for shard in manifest["shards"]}
    affected: dict[str, bool] = {}  # by name without ending: a tar and its Parquet twin hold the same samples
    again: dict[str, dict[str, Any] | None] = {}
    for path in sorted(entries):  # .parquet before .tar, which is slower to look through
        stem = path.rpartition(".")[0]
        if stem not in affected:
            affected[stem] = any(uid in wanted or uid in trimmed for uid in _uids(dataset, path))
        if not affected[stem]:
            continue
        match = _SHARD.fullmatch(path)
        assert match is not None, path
        new = f"{match[1]}.r{revisions[int(match[2])]}.{match[3]}"
        with dataset.spool() as folder:
            aside = folder / "shard"
            if match[3] == "tar":
                left = tombstones.rewrite_tar_shard(dataset, path, aside, wanted, trimmed, captions)
            else:
                left = tombstones.rewrite_parquet_shard(dataset, path, aside, uids, trimmed, captions)
            file = staged.put(aside, new) if left else None
        again[path] = {**entries[path], **asdict(file), "rows": left} if file else None
        staged.removes.append(path)
    return again


def _uids(dataset: Dataset, path: str) -> Iterable[str]:
    if path.endswith(".parquet"):
        with dataset.open(path) as handle, pq.ParquetFile(handle) as file:  # without the images beside
            return file.read(["uid"], use_threads=False)["uid"].to_pylist()
    return (uid for uid, *_ in tombstones.members(dataset, path))


def _tables(staged: Staged, gone: Gone) -> None:
    """The tables' manifests: their parts, and the tables that they note as made from."""
    dataset = staged.dataset
    folders = [*dataset.files("tables"), *dataset.files("images"), *dataset.files("snapshots")]
    paths = [
        p
        for p in folders
        if re.fullmatch(r"(tables/[^/]+/[^/]+|images/[^/]+|snapshots/\d{6}/samples)/manifest\.json", p)
    ]
    before = {path: dataset.read_json(path) for path in paths}
    after = {path: follow(staged, content) for path, content in before.items()}
    became = {(f"{old['table']}/{old['key']}", _sha256(old)): _sha256(after[path]) for path, old in before.items()}
    for path, content in after.items():
        content["inputs"] = {name: became.get((name, sha256), sha256) for name, sha256 in content["inputs"].items()}
        about = content["about"]
        about.pop("returned", None)
        if content["table"] == "samples" and int(content["key"]) in gone.reasons:
            about["funnel"] = funnel(about["funnel"], gone.reasons[int(content["key"])])
            about["splits"] = _less(about["splits"], gone.splits[int(content["key"])])
        if content != before[path]:
            staged.put_sealed(path, {name: value for name, value in content.items() if name != "checksum"})


def follow(staged: Staged, value: Any) -> Any:
    """A manifest, or a part of one, with every file as it will be."""
    if isinstance(value, list):
        return [follow(staged, item) for item in value]
    if not isinstance(value, dict):
        return value
    followed = {key: follow(staged, item) for key, item in value.items()}
    if isinstance(value.get("path"), str) and "sha256" in value and value["path"] in staged.files:
        file: File = staged.files[value["path"]][1]
        followed |= {"bytes": file.bytes, "sha256": file.sha256}
    return followed


def funnel(steps: list[dict[str, Any]], gone: Counter[str | None]) -> list[dict[str, Any]]:
    """A funnel with so many pairs of each reason (null: kept) forgotten."""
    earlier = sum(step["rejected"] for step in steps[1:] if step["reason"] == FORGOTTEN)
    count = earlier + gone.total()
    if not count:
        return steps
    left = steps[0]["left"] - count
    again = [steps[0], {"reason": FORGOTTEN, "rejected": count, "left": left}]
    for step in steps[1:]:
        if step["reason"] != FORGOTTEN:
            rejected = step["rejected"] - gone[step["reason"]]
            left -= rejected
            again.append({"reason": step["reason"], "rejected": rejected, "left": left})
    return again


def _less(splits: dict[str, int], gone: Counter[str]) -> dict[str, int]:
    return {name: count - gone[name] for name, count in splits.items()}


def _sha256(table: dict[str, Any]) -> str:
    """As `Table.sha256`."""
    return hashlib.sha256("".join(part["sha256"] for part in table["parts"]).encode()).hexdigest()
