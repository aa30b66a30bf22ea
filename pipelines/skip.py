"""The stage `download` of a recipe that fetches nothing: the table `images` with uids alone, and empty tars."""

import tarfile
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from vlmdata.dataset import Dataset
from vlmdata.parts import Part, Table, noted, part_from, table_folder
from vlmdata.pipelines.runner import run_parts
from vlmdata.plan import Plan
from vlmdata.schemas import table_schema


@dataclass(frozen=True)
class _Skip:
    dataset: str
    key: str

    def __call__(self, pairs: Part) -> dict[str, Any]:
        dataset = Dataset(self.dataset)
        inputs = {pairs.path: pairs.sha256}
        part = dataset.current_part("images", self.key, pairs.name, inputs)
        if part is None:
            uids = dataset.read_part(pairs, ["uid"])["uid"]
            schema = table_schema("images")
            columns = [uids if field.name == "uid" else pa.nulls(len(uids), field.type) for field in schema]
            stored = f"{table_folder('images', self.key)}/{pairs.name}.tar"
            tar = dataset.write_bytes(stored, bytes(2 * tarfile.BLOCKSIZE))  # a tar of nothing
            rows = pa.Table.from_arrays(columns, schema=schema)
            part = dataset.write_part("images", self.key, pairs.name, rows, inputs, also=(tar,))
        return asdict(part)


def run(plan: Plan, dataset: Dataset, pairs: Table) -> Table:
    """Write what is missing of `images`, and its manifest."""
    work = _Skip(dataset.absolute, plan.images)
    results = run_parts(dataset, "download", work, list(pairs.parts), plan.recipe.runner)
    images = Table("images", plan.images, tuple(part_from(result) for result in results), noted([pairs]))
    dataset.write_table(images)
    return images
