"""The documents of a snapshot: `croissant.json`, and `README.md`, its data card for people and for `load_dataset`.

Both are made from the manifest and the tables alone: no time, no host, no place of the dataset, so that equal runs give
equal bytes. The card's front matter is that of the Hugging Face Hub (https://huggingface.co/docs/hub/datasets-cards).
"""

import os.path
from dataclasses import asdict
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from vlmdata import catalog
from vlmdata.croissant import copies, croissant
from vlmdata.dataset import Dataset
from vlmdata.parts import snapshot_folder
from vlmdata.report import facts

_LICENCES, _LANGUAGES = 20, 20
# The Hub's classes of size, by the number of samples.
_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"),
          (1e8, "10M<n<100M"), (1e9, "100M<n<1B"))  # fmt: skip


def write_documents(dataset: Dataset, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Write `croissant.json` and `README.md` into the snapshot's folder; the shards must be there already.

    manifest: of the snapshot that is about to be published; its `documents` are not read.
    Returns `{"path", "bytes", "sha256"}` of each, the path from the dataset, in the order of paths.
    """
    folder = snapshot_folder(manifest["number"])
    connection = catalog.connect(dataset, manifest)
    try:
        licences = _commonest(connection, manifest, "license")
        languages = _commonest(connection, manifest, "lang")
        signals = facts.consent(connection, manifest)
        sources = facts.sources(connection)
    finally:
        connection.close()
    name = f"{'-'.join(source['name'] for source in manifest['recipe']['sources'])}-{manifest['number']:06d}"
    described = croissant(
        dataset,
        manifest,
        name,
        summary(manifest),
        [licence for licence, _ in licences if licence][:_LICENCES],
        [lang for lang, _ in languages if lang][:_LANGUAGES],
    )
    card = "\n".join(
        [
            "---",
            yaml.safe_dump(_front_matter(dataset, manifest, languages), sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            "",
            f"# {name}",
            "",
            summary(manifest),
            "",
            *_reading(manifest),
            *_origin(manifest, sources),
            *_funnel(manifest),
            *_consent(signals),
            *_counts("Languages", "language of the caption", languages, _LANGUAGES),
            *_counts("Licences", "as the page or the source states it, unchecked", licences, _LICENCES),
            *_limits(manifest),
        ]
    )
    return [
        asdict(dataset.write_bytes(f"{folder}/README.md", card.encode())),
        asdict(dataset.write_json(f"{folder}/croissant.json", described)),
    ]


def summary(manifest: dict[str, Any]) -> str:
    """One sentence: how many pairs there were, and how many are kept."""
    pairs, kept = manifest["funnel"][0]["left"], manifest["funnel"][-1]["left"]
    drawn = f" in {sum(manifest['splits'].values()):,} samples" if copies(manifest) else ""
    return (
        f"{kept:,} image-text pairs{drawn}, selected by {len(manifest['recipe']['select']['rules'])} rules and "
        f"{len(manifest['recipe']['dedup'])} kinds of deduplication from {pairs:,} pairs, by vlmdata."
    )


def _commonest(connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any], column: str) -> list[tuple[str, int]]:
    """A column's values over the kept pairs with their counts; '' for none."""
    if column not in manifest["columns"]:
        return []
    return connection.execute(
        f"SELECT coalesce({column}, ''), count(*) FROM samples WHERE kept GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()


def _front_matter(dataset: Dataset, manifest: dict[str, Any], languages: list[tuple[str, int]]) -> dict[str, Any]:
    """`datasets` reads one format a folder: Parquet where there is any, since its columns have types."""
    samples = sum(manifest["splits"].values())
    front: dict[str, Any] = {
        "license": "other",
        "license_name": "as-each-source-states",
        "language": [lang for lang, _ in languages if lang][:_LANGUAGES],
        "task_categories": ["image-to-text", "text-to-image"],
        "size_categories": [next((name for most, name in _SIZES if samples < most), "n>1B")],
    }
    kind = "parquet" if any(shard["format"] == "parquet" for shard in manifest["shards"]) else "webdataset"
    shards = [shard for shard in manifest["shards"] if shard["format"] == kind]
    if shards:
        front["configs"] = [{"config_name": "default", "data_files": _data_files(shards, manifest)}]
    if shards and kind == "parquet":
        with dataset.open(shards[0]["path"]) as handle:
            front["dataset_info"] = {"features": [_feature(column) for column in pq.read_schema(handle)]}
    return {key: value for key, value in front.items() if value}


def _data_files(shards: list[dict[str, Any]], manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """A pattern for each folder that has shards of a split; a `-` never stands in a split's name."""
    splits: dict[str, list[str]] = {}
    for shard in shards:
        place = _relative(shard["path"].rpartition("/")[0], manifest)
        ending = shard["path"].rpartition(".")[2]
        patterns = splits.setdefault(shard["split"], [])
        if (pattern := f"{place}/{shard['split']}-*.{ending}") not in patterns:
            patterns.append(pattern)
    return [
        {"split": split, "path": patterns[0] if len(patterns) == 1 else patterns} for split, patterns in splits.items()
    ]


def _relative(path: str, manifest: dict[str, Any]) -> str:
    """A path of the dataset from the snapshot's folder on; a parent's shards lie in another one."""
    return os.path.relpath(path, snapshot_folder(manifest["number"])).replace(os.sep, "/")


def _feature(column: pa.Field) -> dict[str, Any]:
    """A column of the Parquet shards as `datasets` names it; the image's bytes are decoded when read."""
    if column.name == "jpg":
        return {"name": "jpg", "dtype": "image"}
    if pa.types.is_list(column.type):
        return {"name": column.name, "list": dtype(column.type.value_type)}
    return {"name": column.name, "dtype": dtype(column.type)}


def dtype(kind: pa.DataType) -> str:
    """An Arrow type as `datasets` names it."""
    return {"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(kind), str(kind))


def _reading(manifest: dict[str, Any]) -> list[str]:
    lines = ["## Reading it", ""]
    if not manifest["shards"]:
        why = "No image was fetched" if manifest["recipe"]["download"].get("skip") else "Nothing was kept"
        return [*lines, f"{why}, so there are no shards.", ""]
    for split, count in manifest["splits"].items():
        size = sum(shard["bytes"] for shard in manifest["shards"] if shard["split"] == split)
        lines.append(f"- `{split}`: {count:,} samples, {size:,} bytes in all formats")
    lines += ["", "```python"]
    formats = {shard["format"] for shard in manifest["shards"]}
    split = next(name for name in manifest["splits"] if any(s["split"] == name for s in manifest["shards"]))
    if "parquet" in formats:
        lines.append(f'datasets.load_dataset("PATH/TO/THIS/FOLDER", split="{split}")')
    if "webdataset" in formats:
        path = next(s["path"] for s in manifest["shards"] if s["format"] == "webdataset" and s["split"] == split)
        path = _relative(path, manifest)
        lines.append(f'webdataset.WebDataset("PATH/TO/THIS/FOLDER/{path}", shardshuffle=False)')
    about = (
        "A sample's members are `jpg`, `txt` (the caption) and `json` (uid, url, source, license, captions, and the "
        "values that rules used)."
    )
    return [*lines, "```", "", about, ""]


def _origin(manifest: dict[str, Any], sources: list[facts.Bar]) -> list[str]:
    recipe = manifest["recipe"]
    kinds = {source["name"]: source["kind"] for source in recipe["sources"]}
    lines = ["## Where it comes from", "", "| source | kind | caption from | pairs | kept |", "|---|---|---|---:|---:|"]
    lines += [
        f"| {code(bar.name)} | {kinds.get(bar.name, '')} | {code(bar.note)} | {bar.count:,} | {bar.kept:,} |"
        for bar in sources
    ]
    download = recipe["download"]
    lines += ["", f"Images are stored as JPEG (quality {download['quality']}) with a shorter side of at most "
              f"{download['size']} pixels; transparency is on white.", ""]  # fmt: skip
    if recipe["shards"].get("blur_faces"):
        lines += ["Faces that a detector found are blurred, and images with any are encoded again: `faces_blurred` of "
                  "a sample says how many. A detector misses some.", ""]  # fmt: skip
    return lines


def _funnel(manifest: dict[str, Any]) -> list[str]:
    """What was done, as the recipe's rules in order with what each turned away."""
    recipe = manifest["recipe"]
    lines = ["## What was kept", "", "The first thing that turned a pair away is its reason.", "",
             "| step | rule | turned away | left |", "|---|---|---:|---:|",
             f"| all pairs | | | {manifest['funnel'][0]['left']:,} |"]  # fmt: skip
    for step in manifest["funnel"][1:]:
        rule = recipe["select"]["rules"].get(step["reason"])
        lines.append(f"| {step['reason']} | {code(rule) if rule else ''} | {step['rejected']:,} | {step['left']:,} |")
    lines.append("")
    for method in recipe["dedup"]:
        options = ", ".join(f"{key} {value}" for key, value in method.items() if key != "kind")
        lines.append(f"- {method['kind']} duplicates{f' ({options})' if options else ''}")
    asked = recipe["select"]
    if balanced := asked.get("balance"):
        lines.append(
            f"- balanced: of an entry (a word or phrase) with more than {balanced['limit']:,} matching captions about "
            "so many pairs are drawn, of any other all"
        )
    if drawn := asked.get("sample"):
        how = "with" if drawn["replacement"] else "without"
        weights = drawn["weights"]
        by = weights if isinstance(weights, str) else ", ".join(f"{name} {weight}" for name, weight in weights.items())
        lines.append(f"- {drawn['count']:,} samples drawn {how} replacement, by weight: {code(by or 'all the same')}")
    if recipe["dedup"]:
        lines += ["", f"Of a group of duplicates the first by {code(recipe['select']['survivor'])} stays.", ""]
    models = [f"{signal['kind']}: {code(str(signal['model']))}" for signal in recipe["signals"] if signal.get("model")]
    if models:
        lines += [f"Models: {', '.join(models)}.", ""]
    return lines


def _consent(signals: list[facts.Signal]) -> list[str]:
    lines = ["## Consent", "", "What pages and image hosts said about use for training, in pairs.", "",
             "| signal | in this recipe | pages deny | hosts deny | refused |", "|---|---|---:|---:|---:|"]  # fmt: skip
    lines += [
        f"| {signal.word} | {'respected' if signal.respected else 'recorded only'} | {signal.page_deny:,} | "
        f"{signal.host_deny:,} | {signal.refused:,} |"
        for signal in signals
    ]
    return [*lines, ""]


def _counts(title: str, what: str, values: list[tuple[str, int]], most: int) -> list[str]:
    if not values:
        return []
    lines = [f"## {title}", "", f"Of kept pairs: {what}.", "", "| | pairs |", "|---|---:|"]
    lines += [f"| {code(value) if value else 'not stated'} | {count:,} |" for value, count in values[:most]]
    if len(values) > most:
        lines.append(f"| {len(values) - most:,} others | {sum(count for _, count in values[most:]):,} |")
    return [*lines, ""]


def _limits(manifest: dict[str, Any]) -> list[str]:
    kinds = {signal["kind"] for signal in manifest["recipe"]["signals"]}
    limits = ["Captions are as their authors wrote them; nobody has read them all. Some say little about the image.",
              "Licences are what a page or a source states about itself, and were not checked.",
              "Consent is what could be read by a machine when the pages and images were fetched."]  # fmt: skip
    if kinds & {"nsfw", "text", "language", "clip"}:
        limits.append("Scores are estimates of small or large models, with their errors and leanings; a threshold on "
                      "one of them prefers what its training data had.")  # fmt: skip
    if "nsfw" not in kinds:
        limits.append("Images were not checked for what is unsafe to show.")
    limits.append("People in images were not looked for, and personal data in captions were not removed.")
    return ["## Known limits", "", *[f"- {limit}" for limit in limits], ""]


def code(text: str) -> str:
    """A text of others as a Markdown code span that stays in one table cell, whatever it holds; at most 200 characters.

    The fence is longer than any run of backticks in the text (CommonMark 0.31, section 6.1).
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not text:
        return ""
    text = text if len(text) <= 200 else text[:199] + "…"
    runs = "".join(c if c == "`" else " " for c in text).split()
    fence = "`" * (max((len(run) for run in runs), default=0) + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text.replace('|', chr(92) + '|')}{space}{fence}"
