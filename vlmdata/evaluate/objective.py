"""The masked accuracies of a FLAVA checkpoint: what its objective measures (see `masked`), on any shards."""

from typing import TYPE_CHECKING, Any

from vlmdata.errors import InputError
from vlmdata.evaluate.material import Material

if TYPE_CHECKING:
    from vlmdata.evaluate.model import Model


def refused(model: "Model", material: Material) -> str | None:
    """Why this cannot be measured, if it cannot."""
    return material.no_pairs() if model.masked else f"{model.name} was not trained by the objective masked"


def measure(model: "Model", material: Material) -> dict[str, Any]:
    """The objective's metrics, nested by their names' parts. There is one number for many tokens, which are no samples
    drawn by themselves, so there are no intervals."""
    samples = model.masked.samples(material.pairs, material.spool)
    if not samples.uids:
        raise InputError(f"{material.url}: there is no sample to measure on")
    metrics = model.masked.evaluate(samples, min(material.options.batch, len(samples.uids)))
    material.broken |= samples.broken
    return {"n": len(set(samples.uids) - samples.broken), **nested(metrics)}


def nested(metrics: dict[str, float]) -> dict[str, Any]:
    """Flat names to a tree without `masked/` in front: `a/b` is {"a": {"b": …}}, and `a/b/chance` stands beside b."""
    result: dict[str, Any] = {}
    for name, value in metrics.items():
        path, _, key = name.rpartition("/")
        if path in metrics:
            path, _, metric = path.rpartition("/")
            key = f"{metric}/{key}"
        inside = result
        for part in path.split("/"):
            inside = inside.setdefault(part, {}) if part not in ("", "masked") else inside
        inside[key] = value
    return result
