"""What a snapshot says of the recipe that it was made from."""

from typing import Any

import pytest

from vlmdata.recipe import Recipe
from vlmdata.snapshot import without_secrets

SIGNED = "https://h.example/a b.tar?page=1&X-Amz-Signature=LEAK"
USER = "https://user:LEAK@h.example/"
SOURCES: list[dict[str, Any]] = [
    {"kind": "commoncrawl", "format": "wat", "paths": [SIGNED, f"simplecache::{SIGNED}"], "base": USER},
    {"kind": "crawl", "start": [USER, SIGNED]},
    {"kind": "folder", "path": SIGNED, "annotations": SIGNED},
    {"kind": "table", "path": f"zip://*.csv::{USER}?sig=LEAK", "captions": SIGNED},
    {"kind": "table", "name": "hub", "hf": USER},
    {"kind": "video", "path": SIGNED},
    {"kind": "webdataset", "path": SIGNED},
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.get("name", source["kind"]))
def test_no_secret_of_a_recipe_is_told(source: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(
        {
            "dataset": "d",
            "sources": [source],
            "consent": {"optout": SIGNED, "known": [USER]},
            "download": {"contact": USER},
            "signals": [{"kind": "clip", "model": "x", "pretrained": SIGNED}],
            "select": {"rules": {"far": f"url <> '{USER}x?token=LEAK' and length(caption) > 3"}},
            "jobs": [{"kind": "train", "model": {"text": {"url": SIGNED}}, "pretrained": USER}],
        }
    )
    told = without_secrets(recipe.model_dump(mode="json"))
    assert "LEAK" not in repr(told)
    assert told["select"]["rules"] == {"far": "url <> 'https://h.example/x' and length(caption) > 3"}
    assert told["consent"]["optout"] == ["https://h.example/a b.tar?page=1"]
    assert Recipe.model_validate(told).sources[0].kind == source["kind"]


def test_what_is_no_secret_is_told_as_it_is() -> None:
    recipe = Recipe.model_validate(
        {
            "dataset": "d",
            "sources": [{"kind": "commoncrawl", "format": "wat", "paths": ["s3://b/wat.paths.gz", "a/*#?.warc"]}],
            "download": {"contact": "bot@example.org"},
            "select": {"rules": {"a": "caption not like '%?token=%' and url like 'https://x.example/%'"}},
        }
    ).model_dump(mode="json")
    assert without_secrets(recipe) == recipe
