"""The recipe's selection, checked against the columns that there are: the way from its text to a `Choice`."""

from dataclasses import dataclass

import pyarrow as pa

from vlmdata.errors import InputError
from vlmdata.recipe import DecontaminateDedup, Recipe, Select
from vlmdata.rules import Expression, Order, check_number, check_order, check_rule
from vlmdata.schemas import table_schema
from vlmdata.select import presets, sample
from vlmdata.select.choice import SURVIVORS, Choice


@dataclass(frozen=True)
class Checked:
    """The selection's expressions, checked against the columns of `samples`.

    rules: those of presets first; of those in `ranked` (rule -> fraction of all pairs) it is the number that is ranked.
    """

    rules: dict[str, Expression]
    ranked: dict[str, float]
    survivor: tuple[Order, ...]
    top_by: Expression | None
    weight: Expression | None


def check_select(recipe: Recipe, columns: pa.Schema) -> Checked:
    """The recipe's selection over these columns. Raises InputError for what cannot be evaluated there."""
    preset, asked = presets.rules(recipe), recipe.select
    rules = {name: check_preset(name, rule, columns) for name, rule in preset.items()}
    rules |= {name: check_rule(name, text, columns) for name, text in asked.rules.items()}
    checked = Checked(
        rules,
        {name: rule.fraction for name, rule in preset.items() if rule.fraction is not None},
        tuple(check_order("select.survivor", _survivor(recipe, columns), columns)),
        check_number("select.top.by", asked.top.by, columns) if asked.top else None,
        check_number("select.sample.weights", sample.weight_sql(asked.sample), columns) if asked.sample else None,
    )
    if recipe.download.skip:
        _check_without_images(checked, columns)
    return checked


def _check_without_images(checked: Checked, columns: pa.Schema) -> None:
    """Raise InputError where something reads what only the download measures: all of it would be null."""
    read = {f"select.rules.{name}": rule for name, rule in checked.rules.items()}
    read |= {f"select.survivor, term {n}": order.expression for n, order in enumerate(checked.survivor, 1)}
    read |= {"select.top.by": checked.top_by} if checked.top_by else {}
    read |= {"select.sample.weights": checked.weight} if checked.weight else {}
    measured = set(table_schema("images").names) - {"uid"}
    for what, expression in read.items():
        for column in expression.columns:
            if column in measured:
                stated = [name for name in (f"source_{column}",) if name in columns.names]
                instead = f"; the source's is {stated[0]!r}" if stated else ""
                raise InputError(f"{what}: {column!r} is null for every pair, since download.skip is set{instead}")


def check_preset(name: str, rule: presets.Rule, columns: pa.Schema) -> Expression:
    """A preset's rule, checked; what is ranked is a number. Raises InputError that says what to add."""
    try:
        if rule.fraction is not None:
            return check_number(f"select.preset: {name}", rule.sql, columns)
        return check_rule(name, rule.sql, columns)
    except InputError as error:
        reason = str(error).removeprefix(f"select.rules.{name}: ").removeprefix(f"select.preset: {name}: ")
        raise InputError(f"select.preset: {name} needs {rule.add}: {reason}") from error


def choice(recipe: Recipe, checked: Checked, unmeasured: frozenset[str]) -> Choice:
    """The selection without its tables. unmeasured: the columns that an `after` may have left out."""
    asked = recipe.select
    methods = [m for m in recipe.dedup if asked.dedup is None or m.kind in (*asked.dedup, "decontaminate")]
    return Choice(
        checked.rules,
        unmeasured,
        # first what has no survivor, so that it neither stands for others nor gives them its captions
        tuple(sorted((method.kind for method in methods), key=lambda kind: kind != "decontaminate")),
        checked.survivor,
        asked.balance is not None,
        asked.sample,
        checked.weight,
        asked.top,
        checked.top_by,
        asked.survivor if asked.survivor in SURVIVORS else None,
        frozenset(m.kind for m in methods if not isinstance(m, DecontaminateDedup) and m.merge),
    )


def _survivor(recipe: Recipe, columns: pa.Schema) -> str:
    """The survivor's order in SQL; behind a named one it is the default's, for ties and methods without centroids.
    Where no image is fetched the default is by the sizes that the source states, if it does, and the caption."""
    named = recipe.select.survivor
    if named in ("hard", "easy") and not any(method.kind == "semantic" for method in recipe.dedup):
        raise InputError(f"select.survivor: {named} is told by embeddings: `dedup` must name the kind semantic")
    default: str = Select.model_fields["survivor"].default
    order = default if named in SURVIVORS else named
    if recipe.download.skip and order == default:
        sizes = [name for name in ("source_original_width", "source_original_height") if name in columns.names]
        return f"{' * '.join(sizes)} desc, length(caption) desc" if len(sizes) == 2 else "length(caption) desc"
    return order
