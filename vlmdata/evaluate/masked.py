"""What a masked model knows of hidden tokens and patches, against always guessing the most frequent one."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from vlmdata.evaluate.retrieval import retrieval
from vlmdata.train.masking import IGNORED

if TYPE_CHECKING:
    from vlmdata.train.flava import Flava
    from vlmdata.train.mixture import Mixed

ROUNDS = 4  # masks under which each sample is measured: a caption alone has but one or two hidden tokens
_SEED = 20_220


def masked_accuracy(name: str, predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Share of hidden tokens that are predicted, under `<name>/accuracy`, and beside it `/majority`: that of the best
    constant answer, the one most frequent among these very tokens. `<name>/n` is their number; none give nothing."""
    if not len(true):
        return {}
    majority = np.unique(true, return_counts=True)[1].max() / len(true)
    accuracy = float((predicted == true).mean())
    return {f"{name}/accuracy": accuracy, f"{name}/accuracy/majority": float(majority), f"{name}/n": float(len(true))}


def patch_error(name: str, errors: np.ndarray, variances: np.ndarray) -> dict[str, float]:
    """Mean squared error of hidden patches' normalised pixels under `<name>/error`; beside it `/mean`: that of a patch
    painted in its own mean colour."""
    if not len(errors):
        return {}
    return {f"{name}/error": float(errors.mean()), f"{name}/error/mean": float(variances.mean())}


@torch.inference_mode()
def measure(model: "Flava", samples: "Mixed", batch: int) -> dict[str, float]:
    """What the losses in force trained, on all samples of a split whose pictures can be decoded.

    - masked/text, masked/text_given_image, masked/image, masked/image_given_text: accuracy on the same hidden tokens
      (all shown as [MASK]) and patches, alone and with the whole other half of the pair, as `masked_accuracy`; with
      `targets: pixels` images as `patch_error`. Masks are the same at every call.
    - matching/accuracy: of whole pairs and as many mismatched ones; chance is 0.5.
    - retrieval/…: recall by the contrastive vectors.
    """
    model.eval()
    device = next(model.parameters()).device
    found: dict[str, list[np.ndarray]] = {}

    def note(name: str, *values: Tensor) -> None:
        for number, value in enumerate(values):
            found.setdefault(f"{name} {number}", []).append(value.float().cpu().numpy())

    def patches(name: str, head: str, states: Tensor, of: dict[str, Tensor]) -> None:
        hidden = of["hidden"]
        predicted = model.net.get_submodule(head)(states[hidden])
        if model.pixels:
            true = model.targets(of["image"])[hidden]
            note(name, (predicted - true).square().mean(-1), true.square().mean(-1))
        else:
            note(name, predicted.argmax(-1), of["codes"][hidden])

    places = samples.pictures.whole.tolist()
    for start in range(0, len(places), batch):
        for number in range(ROUNDS):
            of = {n: t.to(device) for n, t in samples.whole(places[start : start + batch], _SEED, number).items()}
            image, text, labels = of["image"], of["text"], of["labels"]
            chosen = labels != IGNORED
            if "mlm" in model.losses:
                predicted = model.net.mlm_head(model.text_states(of["masked"])[chosen])
                note("masked/text", predicted.argmax(-1), labels[chosen])
            if "mmm_text" in model.losses:
                tokens = model.joint_states(image, of["masked"])[2]
                note("masked/text_given_image", model.net.mmm_text_head(tokens[chosen]).argmax(-1), labels[chosen])
            if "mim" in model.losses:
                patches("masked/image", "mim_head", model.patch_states(image, of["hidden"]), of)
            if "mmm_image" in model.losses:
                states = model.joint_states(image, text, of["hidden"])[1]
                patches("masked/image_given_text", "mmm_image_head", states, of)
            if number == 0 and "contrastive" in model.losses:
                note("vectors", *model.vectors(image, text))
            if number == 0 and "itm" in model.losses:
                for match, ids in enumerate((of["other"], text)):
                    note("matching", model.net.itm_head(model.joint_states(image, ids)[0]).argmax(-1) == match)
    return _metrics({name: np.concatenate(values) for name, values in found.items()}, model.pixels)


def _metrics(found: dict[str, np.ndarray], pixels: bool) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name in ("masked/text", "masked/text_given_image", "masked/image", "masked/image_given_text"):
        if f"{name} 0" in found:
            judge = patch_error if pixels and "/image" in name else masked_accuracy
            metrics |= judge(name, found[f"{name} 0"], found[f"{name} 1"])
    if "matching 0" in found:
        metrics |= {"matching/accuracy": float(found["matching 0"].mean()), "matching/accuracy/chance": 0.5}
    if "vectors 0" in found:
        metrics |= retrieval(found["vectors 0"], found["vectors 1"])
    return metrics
