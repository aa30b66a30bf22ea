"""The stage `dedup`: groups of duplicates over all parts, one part of `duplicates` a method.

Only hashes and vectors travel here, never images.
"""

import pyarrow as pa

from vlmdata import dedup
from vlmdata.dataset import Dataset, Table, part_name
from vlmdata.plan import Plan
from vlmdata.schemas import table_schema


def run(plan: Plan, dataset: Dataset, tables: dict[str, Table]) -> Table:
    """Group the pairs by every method of the recipe and write the table's manifest."""
    parts = []
    for number, method in enumerate(plan.recipe.dedup):
        columns = dedup.reads(method)
        rows = pa.concat_tables([_read(dataset, tables, columns, place) for place in range(len(tables["pairs"].parts))])
        groups = dedup.groups(rows, method)
        schema = table_schema("duplicates")
        parts.append(
            dataset.write_part("duplicates", plan.tables["duplicates"], part_name(number), groups.cast(schema), {})
        )
    inputs = {f"{name}/{table.key}": table.sha256 for name, table in tables.items()}
    table = Table("duplicates", plan.tables["duplicates"], tuple(parts), inputs)
    dataset.write_table(table)
    return table


def _read(dataset: Dataset, tables: dict[str, Table], columns: dict[str, list[str]], place: int) -> pa.Table:
    """One part's uid and the columns that a method reads (table -> columns), side by side."""
    rows = dataset.read_part(tables["pairs"].parts[place], ["uid"])
    for table, names in columns.items():
        part = dataset.read_part(tables[table].parts[place], names)
        for name in names:
            rows = rows.append_column(name, part[name])
    return rows
