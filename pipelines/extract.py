"""Sources of many large files: one element a file, whose rows are a part that the next run finds."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.parquet as pq

from vlmdata import ingest
from vlmdata.dataset import Dataset
from vlmdata.download import forgotten
from vlmdata.parts import Table, footer, part_from, part_name, table_folder
from vlmdata.pipelines.runner import run_parts
from vlmdata.recipe import Runner, Source
from vlmdata.refresh import changed
from vlmdata.sources import by_file, states, strip_signature


@dataclass(frozen=True)
class _Work:
    """What a worker needs for any file."""

    dataset: str
    key: str
    source: Source

    def __call__(self, element: tuple[int, str]) -> dict[str, Any]:
        number, file = element
        dataset, module, name = Dataset(self.dataset), by_file(self.source), part_name(number)
        inputs = {strip_signature(file)[0]: module.identity(self.source, file)}
        part = dataset.current_part("extracted", self.key, name, inputs)
        if part is None:
            counts: Counter[str] = Counter()
            rows, schema = 0, ingest.raw_schema(self.source)
            refused = forgotten.load(dataset)
            with dataset.spool() as folder:
                aside = folder / "rows.parquet"
                with pq.ParquetWriter(aside, schema, compression="zstd") as writer:
                    for batch in module.read_file(self.source, file, counts):
                        writer.write_table(ingest.with_uid(batch, schema, refused))
                        rows += batch.num_rows
                    told = f"{table_folder('extracted', self.key)}/{name}.json"
                    also = (dataset.write_json(told, counts),)
                    writer.add_key_value_metadata(footer(inputs, also))
                part = dataset.commit_part(aside, "extracted", self.key, name, rows, also)
        return {"part": asdict(part), "counts": dataset.read_json(part.also[0].path)}


def run(dataset: Dataset, source: Source, key: str, runner: Runner, earlier: Table | None = None) -> Table:
    """Read the files that were not read yet, then record the source's rows as `found`, `observations` and `seen`.

    Memory is bounded by a batch of rows in each worker, time by the files that a kill left unread.
    earlier: what was found before: only files that are new or have changed since are read, see `ingest.record`.
    """
    module = by_file(source)
    now = states(source)
    files = list(enumerate(module.files(source)))
    if earlier is not None:
        new = set(changed(ingest.seen(dataset, key), now))
        files = [(number, file) for number, file in files if strip_signature(file)[0] in new]
        if not files:
            return earlier
    results = run_parts(dataset, "ingest", _Work(dataset.absolute, key, source), files, runner)
    counts: Counter[str] = Counter()
    for result in results:
        counts.update(result["counts"])
    if earlier is None:  # in some new files alone there may be no page
        module.report(source, counts)
    parts = [part_from(result["part"]) for result in results]
    table = ingest.record(dataset, source, key, parts, counts, earlier)
    ingest.note_seen(dataset, source, key, now)
    dataset.remove(table_folder("extracted", key))
    return table
