"""Every file that a forgetting changes, made anew aside: parts with their footers, tars, shards, manifests."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmdata import disk
from vlmdata.dataset import Dataset
from vlmdata.download import forgotten as refused
from vlmdata.download.forgotten import FORGOTTEN
from vlmdata.errors import MachineError
from vlmdata.forget import manifests as manifests_of
from vlmdata.forget import tombstones
from vlmdata.forget.find import metadata_of, named_in_seen, note_of, parquet_files
from vlmdata.forget.journal import FOLDER, Staged
from vlmdata.forget.manifests import Gone
from vlmdata.parts import snapshot_folder

_SAMPLES = re.compile(r"snapshots/\d{6}/samples/[^/]+\.parquet")
_SHARD = re.compile(r"(snapshots/\d{6}/shards/[^/]+?)(?:\.r(\d+))?\.(tar|parquet)")


def stage(dataset: Dataset, journal: dict[str, Any]) -> Staged:
    """Make all files of a forgetting. The new manifests of snapshots lie in FOLDER, without their documents."""
    staged, gone = Staged(dataset), Gone()
    forgotten = refused.load(dataset)
    entries = {(kind, digits, distance) for kind, digits, distance in journal["refused"]}
    known = refused.Forgotten(forgotten.key, forgotten.entries | entries)
    staged.put_bytes(refused.content(known), refused.LIST)
    drop = set(journal["captions"])

    def captions(texts: list[str]) -> list[str]:
        return texts[:1] + [text for text in texts[1:] if forgotten.keyed("caption", text) not in drop]

    uids = pa.array(journal["uids"], pa.string())
    manifests = {number: dataset.snapshot(number) for number in dataset.numbers()}
    sizes = _sizes(dataset, uids, manifests.values())
    disk.check(dataset, sum(sizes), "the forgetting", max(sizes, default=0))
    _parts(staged, uids, captions if drop else None, gone)
    _seen(staged, known)
    shards = _shards(staged, manifests.values(), uids, captions, gone.trimmed)
    manifests_of.tables(staged, gone)
    for number, manifest in manifests.items():
        followed = manifests_of.follow(staged, manifest)
        followed["shards"] = [again for shard in manifest["shards"] if (again := shards.get(shard["path"], shard))]
        if followed == manifest:
            continue
        followed["revision"] = manifest["revision"] + 1
        reasons, splits = gone.of(manifest["samples"])
        followed["funnel"] = manifests_of.funnel(manifest["funnel"], reasons)
        followed["splits"] = manifests_of.less(manifest["splits"], splits)
        dataset.write_json(f"{FOLDER}/{snapshot_folder(number)}/manifest.json", followed)
    return staged


def _sizes(dataset: Dataset, uids: pa.Array, manifests: Iterable[dict[str, Any]]) -> list[int]:
    """About how many bytes each file has that is made anew beside the old one: parts, tars and shards with a uid."""
    paths, names = [], set()
    for path in parquet_files(dataset, ("tables", "images", "snapshots")):
        columns = metadata_of(dataset, path).schema.to_arrow_schema().names
        if "/shards/" in path or "uid" not in columns:
            continue
        wanted = ["uid", "shard"] if _SAMPLES.fullmatch(path) and "shard" in columns else ["uid"]
        rows = dataset.read_part(path, wanted)
        rows = rows.filter(pc.is_in(rows["uid"], uids))
        if rows.num_rows:
            paths += [path, *([tar] if dataset.exists(tar := f"{path.removesuffix('.parquet')}.tar") else [])]
            names |= set(rows["shard"].to_pylist()) if "shard" in wanted else set()
    shards = {shard["path"]: shard["bytes"] for manifest in manifests for shard in manifest["shards"]}
    of_shards = [size for path, size in shards.items() if path.rpartition("/")[2].partition(".")[0] in names]
    sizes = []
    for path in paths:
        with dataset.reaching(path):
            sizes.append(dataset.fs.size(dataset.path(path)))
    return [*sizes, *of_shards]


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


def _seen(staged: Staged, known: refused.Forgotten) -> None:
    """What sources consisted of, without the files and pages that are refused: their names tell."""
    dataset = staged.dataset
    for path in parquet_files(dataset, ("tables/seen",)):
        stay = ~named_in_seen(dataset, path, known)
        if stay.all():
            continue
        staged.rows[path] = int(stay.sum())
        rows = iter(stay.tolist())

        def edit(group: pa.Table, rows: Iterator[bool] = rows) -> pa.Table:
            return group.filter(pa.array([next(rows) for _ in range(group.num_rows)], pa.bool_()))

        with dataset.spool() as folder:
            tombstones.rewrite_part(dataset, path, folder / "part", edit, None)
            staged.put(folder / "part", path)


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
    if mask.any():
        rows = dataset.read_part(path, ["reason", "split", "copies"]).filter(pa.array(mask)).to_pylist()
        reasons, splits = (of.setdefault(path, Counter()) for of in (gone.reasons, gone.splits))
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
        new = f"{match[1]}.r{int(match[2] or 1) + 1}.{match[3]}"
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
