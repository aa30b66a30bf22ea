"""What manifests say of a dataset from which something was forgotten: files, tables made from others, the funnel."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vlmdata.download.forgotten import FORGOTTEN
from vlmdata.forget.journal import Staged
from vlmdata.parts import File


@dataclass
class Gone:
    """What goes of each part of samples (its path): verdicts (null for kept) and samples of each split."""

    reasons: dict[str, Counter[str | None]] = field(default_factory=dict)
    splits: dict[str, Counter[str]] = field(default_factory=dict)
    trimmed: set[str] = field(default_factory=set)  # uids that stay, with fewer captions

    def of(self, parts: list[dict[str, Any]]) -> tuple[Counter[str | None], Counter[str]]:
        """The reasons and splits of all parts that a manifest lists; later snapshots list their parents' too."""
        reasons: Counter[str | None] = Counter()
        splits: Counter[str] = Counter()
        for part in parts:
            reasons += self.reasons.get(part["path"], Counter())
            splits += self.splits.get(part["path"], Counter())
        return reasons, splits


def tables(staged: Staged, gone: Gone) -> None:
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
    became = {
        (f"{old['table']}/{old['key']}", was): now
        for path, old in before.items()
        for was, now in zip(_sha256s(old), _sha256s(after[path]), strict=True)
    }
    for path, content in after.items():
        content["inputs"] = {name: became.get((name, sha256), sha256) for name, sha256 in content["inputs"].items()}
        about = content["about"]
        about.pop("returned", None)
        if content["table"] == "samples":
            reasons, splits = gone.of(content["parts"])
            about["funnel"] = funnel(about["funnel"], reasons)
            about["splits"] = less(about["splits"], splits)
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
        if value["path"] in staged.rows:
            followed["rows"] = staged.rows[value["path"]]
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


def less(splits: dict[str, int], gone: Counter[str]) -> dict[str, int]:
    return {name: count - gone[name] for name, count in splits.items()}


def _sha256s(table: dict[str, Any]) -> list[str]:
    """`Table.sha256` of its first part, of its first two and so on: what was made before a layer came notes fewer."""
    digest, found = hashlib.sha256(), []
    for part in table["parts"]:
        digest.update(part["sha256"].encode())
        found.append(digest.hexdigest())
    return found
