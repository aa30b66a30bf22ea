"""The survivor of each duplicate group: of its members that pass so far, the first by the recipe's order."""

import duckdb

from vlmdata.select.choice import Choice


def reject(connection: duckdb.DuckDBPyConnection, choice: Choice) -> None:
    """Give all but the survivor of each group the reason `duplicate: <method>`, method after method; ties by uid.

    connection: has the table `verdict` (see `settle`) with the survivor's terms term_0, …, and `duplicates`.
    """
    terms = [f"term_{place}" for place in range(len(choice.survivor))]
    order = "".join(f"{term} {by.direction} NULLS LAST, " for term, by in zip(terms, choice.survivor, strict=True))
    for method in choice.methods:
        connection.execute(
            f"""
            UPDATE verdict SET reason = 'duplicate: ' || $method WHERE uid IN (
                SELECT uid FROM (
                    SELECT v.uid, row_number() OVER (PARTITION BY d.dup_group ORDER BY {order} v.uid) AS rank
                    FROM verdict v JOIN duplicates d ON d.uid = v.uid
                    WHERE d.dup_method = $method AND v.reason IS NULL
                ) WHERE rank > 1
            )""",
            {"method": method},
        )
