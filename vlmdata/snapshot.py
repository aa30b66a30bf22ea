"""Publishing: a snapshot's manifest with every file's hash, and what `verify` holds against it."""

import datetime
import hashlib
import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import jsonschema

from vlmdata import schemas
from vlmdata.dataset import FORMAT_VERSION, Dataset
from vlmdata.errors import DataError
from vlmdata.forget import proof
from vlmdata.parts import Table, snapshot_folder, table_folder
from vlmdata.plan import Plan, snapshot_keys
from vlmdata.sources.urls import strip_signature, strip_urls
from vlmdata.tags import TAGS

# What a selection leaves beside the samples, and a manifest takes over.
_SELECTED = ("base", "settled", "balance", "grouped")


def next_number(dataset: Dataset) -> int:
    """The number of the snapshot that the next run publishes."""
    latest = dataset.latest()
    return latest["number"] + 1 if latest else 1


def manifest(
    plan: Plan,
    number: int,
    tables: dict[str, Table],
    samples: Table,
    shards: list[dict[str, Any]],
    documents: list[dict[str, Any]],
) -> dict[str, Any]:
    """A snapshot's manifest; it is checked against `schemas/manifest.schema.json`.

    documents: croissant.json and README.md (path, bytes, sha256). Only `created` holds a time.
    """
    content = {
        "format_version": FORMAT_VERSION,
        "number": number,
        "revision": 1,
        "parent": number - 1 if number > 1 else None,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        # The runner, the place of the dataset and the gates change no value.
        "recipe": without_secrets(plan.recipe.model_dump(mode="json", exclude={"dataset", "runner", "gates"})),
        "limit": plan.limit,
        "keys": snapshot_keys(plan),
        "tables": {name: _entry(table) for name, table in tables.items()},
        "samples": _entry(samples)["parts"],
        "shards": shards,
        "documents": documents,
        "funnel": samples.about["funnel"],
        "splits": samples.about["splits"],
        **{name: file for name, file in samples.about.items() if name in _SELECTED},
        "columns": {field.name: str(field.type) for field in plan.columns},
    }
    _validate(content)
    return content


# Tables of the dataset that belong to no snapshot alone.
APART = ("observations", "found", "jobs", "metrics")


def expected_files(dataset: Dataset, content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Every file that a snapshot relies on: (path from the dataset, sha256)."""
    for table in content["tables"].values():
        for part in table["parts"]:
            for file in part["also"]:
                yield file["path"], file["sha256"]
            yield part["path"], part["sha256"]
    for part in content["samples"]:
        yield part["path"], part["sha256"]
    for file in own_files(content):
        yield file["path"], file["sha256"]
    for name, table in content["tables"].items():
        if _trained(dataset, name, table["key"]):
            path = f"models/{table['key']}/manifest.json"
            model = (
                dataset.read_json(path) if dataset.exists(path) else {"files": [{"path": path, "sha256": "a model"}]}
            )
            for file in model["files"]:
                yield file["path"], file["sha256"]
    for name in APART:
        for key in dataset.keys_of(name):
            if _state(dataset, name, key) is None:
                table = dataset.read_table(name, key)
                assert table is not None
                for part in table.parts:
                    yield part.path, part.sha256


def own_files(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What a snapshot has beside its tables: shards, documents, the entries of a balancing, where duplicates stand."""
    files = [content[name] for name in ("balance", "grouped") if name in content]
    return [*content["shards"], *content["documents"], *files]


def missing_file(dataset: Dataset, content: dict[str, Any]) -> str | None:
    """The first of a snapshot's `own_files` that is not there, or None. Nothing is read."""
    return next((file["path"] for file in own_files(content) if not dataset.exists(file["path"])), None)


def page_note(manifest: str, page: bytes) -> bytes:
    """The last line of a report, by which `verify` knows it: SHA-256 of the snapshot's manifest, times and all, and of
    the page before it."""
    return f"<!-- manifest {manifest} page {hashlib.sha256(page).hexdigest()} -->\n".encode()


def verify(dataset: Dataset) -> Iterator[tuple[str, str, str]]:
    """Hash every file of every snapshot, and look for what was forgotten; yield (path, expected, found) for each
    difference, each file once."""
    yield from _hashed(dataset)
    yield from proof.left(dataset)


def _hashed(dataset: Dataset) -> Iterator[tuple[str, str, str]]:
    seen: set[str] = set()
    damaged = [
        name
        for name in ("latest.json", "removed.json", TAGS)
        if (name == "latest.json" or dataset.exists(name)) and not _sealed(dataset, name)
    ]
    yield from ((name, "its checksum", "damaged") for name in damaged)
    whole = not {"latest.json", "removed.json"} & set(damaged)
    for name in APART:
        for key in dataset.keys_of(name):
            if _state(dataset, name, key) == "damaged":  # where it is missing the stage has not ended
                yield f"{table_folder(name, key)}/manifest.json", "a manifest", "damaged"
    for number in dataset.numbers() if whole else _folders(dataset):
        try:
            content = dataset.snapshot(number)
            _validate(content)
            path = f"{snapshot_folder(number)}/manifest.json"
            if not _sealed(dataset, path):
                yield path, "its checksum", "damaged"
            yield from _page(dataset, number)
        except (FileNotFoundError, DataError, jsonschema.ValidationError) as error:
            found = "missing" if isinstance(error, FileNotFoundError) else "damaged"
            yield f"{snapshot_folder(number)}/manifest.json", "a manifest", found
            continue
        named = {**content["tables"], "samples": {"key": str(number)}}
        for name, table in named.items():
            path = f"{table_folder(name, table['key'])}/manifest.json"
            if path not in seen and (state := _state(dataset, name, table["key"])):
                yield path, "a manifest", state
            seen.add(path)
        for path, expected in expected_files(dataset, content):
            if path in seen:
                continue
            seen.add(path)
            found = dataset.sha256(path)[0] if dataset.exists(path) else "missing"
            if found != expected:
                yield path, expected, found


def without_secrets(options: Any) -> Any:
    """A recipe's options, or a part of them, with every URL free of signatures, tokens and passwords."""
    if isinstance(options, dict):
        return {key: without_secrets(value) for key, value in options.items()}
    if isinstance(options, list):
        return [without_secrets(value) for value in options]
    if not isinstance(options, str):
        return options
    # As a whole and link by link of a chain first, since a URL may have spaces in it.
    links = re.split("(?<=::)", strip_signature(options)[0])
    return strip_urls("".join(strip_signature(link)[0] for link in links))


def remove_leftovers(dataset: Dataset, content: dict[str, Any]) -> None:
    """Remove shards of an unpublished attempt under the same number that this manifest does not name."""
    folder = f"{snapshot_folder(content['number'])}/shards"
    named = {shard["path"] for shard in content["shards"]}
    for path in dataset.files(folder):
        if path not in named:
            dataset.remove(path)


def _state(dataset: Dataset, table: str, key: str) -> str | None:
    """None for a table's manifest that can be read, else `missing` or `damaged`."""
    try:
        if dataset.read_table(table, key) is None:
            return "missing"
        return None if _sealed(dataset, f"{table_folder(table, key)}/manifest.json") else "damaged"
    except DataError:
        return "damaged"


def _sealed(dataset: Dataset, path: str) -> bool:
    try:
        return dataset.is_sealed(path)
    except (DataError, AttributeError):  # no JSON, or no object
        return False


def _page(dataset: Dataset, number: int) -> Iterator[tuple[str, str, str]]:
    """Whether a report is as it was written, and the manifest as it was then. Older ones do not say it."""
    path, described = (f"{snapshot_folder(number)}/{name}" for name in ("report.html", "manifest.json"))
    if not dataset.exists(path):
        return
    whole = dataset.read_bytes(path)
    page, _, note = whole.removesuffix(b"\n").rpartition(b"\n")
    page += b"\n"
    match = re.fullmatch(rb"<!-- manifest ([0-9a-f]{64}|-) page [0-9a-f]{64} -->", note)
    if match is None and not re.search(rb"[0-9a-f]{32}", note):
        return
    if match is None or whole != page + page_note(match[1].decode(), page):
        yield path, "its last line", "damaged"
    elif match[1] != b"-" and match[1].decode() != (found := dataset.sha256(described)[0]):
        yield described, match[1].decode(), found


def _trained(dataset: Dataset, table: str, key: str) -> bool:
    """Whether a table was measured by a model that was trained for it on the dataset itself."""
    if _state(dataset, table, key):
        return False
    about = dataset.read_table(table, key).about  # type: ignore[union-attr]  # its state says that it is there
    return about.get("signal", {}).get("checkpoint", "") is None


def _entry(table: Table) -> dict[str, Any]:
    return {"key": table.key, "rows": table.rows, "parts": [asdict(part) for part in table.parts]}


def _validate(content: dict[str, Any]) -> None:
    jsonschema.validate(_plain(content), schemas.json_schema("manifest"))


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON will have them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _folders(dataset: Dataset) -> list[int]:
    """The numbers of the snapshots that have a manifest, where `latest.json` does not say which there are."""
    paths = [path.split("/") for path in dataset.files("snapshots")]
    return sorted(int(path[1]) for path in paths if len(path) == 3 and path[2] == "manifest.json")
