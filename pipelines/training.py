"""Which pairs a signal's own model may be trained on."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from vlmdata import layers
from vlmdata.catalog import has_scalars, wide_part
from vlmdata.dataset import Dataset
from vlmdata.parts import Part, Table
from vlmdata.plan import SignalPlan
from vlmdata.rules import passing


def trained_on(
    dataset: Dataset, tables: dict[str, Table], signal: SignalPlan
) -> Iterator[tuple[list[Part], pa.Table, np.ndarray]]:
    """Of each part of `pairs`: the same part of all tables with scalar columns, these columns, and bool [n]: the rows
    that are in force and pass the signal's `after` rules."""
    in_force = layers.in_force(dataset, tables["pairs"])
    scalar = [table for name, table in tables.items() if has_scalars(name)]
    for parts in zip(*(table.parts for table in scalar), strict=True):
        rows = wide_part(dataset, list(parts))
        chosen = passing(rows, signal.measurement.after)
        if parts[0].name in in_force:
            chosen &= in_force[parts[0].name].to_numpy(zero_copy_only=False)
        yield list(parts), rows, chosen
