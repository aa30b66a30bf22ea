"""docs/signals.md has what the recipe and the schemas have."""

import re
from pathlib import Path
from typing import get_args

import pytest

from vlmdata import recipe
from vlmdata.schemas import table_schema

DOCS = (Path(__file__).parents[1] / "docs" / "signals.md").read_text()
KINDS = {kind.model_fields["kind"].annotation.__args__[0]: kind for kind in get_args(get_args(recipe.Signal)[0])}


@pytest.mark.parametrize("kind", KINDS)
def test_the_documentation_names_every_option_and_column(kind: str) -> None:
    section = re.split(r"^## ", DOCS.partition(f"\n## {kind}\n")[2], maxsplit=1, flags=re.M)[0]
    assert section.strip(), f"docs/signals.md has no section {kind}"
    special = {"kind", "after", "name"} | (set(KINDS["clip"].model_fields) if kind == "masked_clip" else set())
    special |= set(recipe.ContrastiveJob.model_fields) if kind == "filter" else set()  # "those of the job `train`"
    options = set(KINDS[kind].model_fields) - special
    names = {"clip": ["clip", "embeddings"], "python": [], "sscd": ["embeddings"]}.get(kind, [kind])
    columns = {name for table in names for name in table_schema(table, dim=1).names} - {"uid"}
    missing = [name for name in sorted(options | columns) if not re.search(rf"\b{name}\b", section)]
    assert not missing
