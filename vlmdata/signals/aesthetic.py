"""How pleasing an image is, by a linear or MLP head over embeddings of another signal, from a local file.

The two forms that LAION published (https://laion.ai/blog/laion-aesthetics/): one linear layer, and the five of
improved-aesthetic-predictor (768, 1024, 128, 64, 16, 1), which has no activation between them. Both were trained on
CLIP embeddings of unit length, so unit length is what a head gets here.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlmdata import recipe
from vlmdata.errors import InputError, first_line
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import file_sha256, in_batches, loaded_once
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = False

_Layer = tuple[np.ndarray, np.ndarray]  # weight [out, in] and bias [out], float32


def schemas(options: recipe.AestheticSignal) -> dict[str, pa.Schema]:
    """The table that `measure` gives."""
    name = recipe.signal_name(options)
    return {name: table_schema("aesthetic", recipe.signal_suffix(options))}


def reads(options: recipe.AestheticSignal) -> list[str]:
    """The table of the embeddings."""
    return [f"embeddings_{options.embeddings}"]


def identity(options: recipe.AestheticSignal) -> dict[str, str]:
    """sha256 of the head's file. Raises InputError where there is none, or what it holds is no head."""
    _head(options)
    return {"head": file_sha256(options.head)}


def absolute(options: recipe.AestheticSignal) -> recipe.AestheticSignal:
    """The same head, with a path that a worker finds from another working folder."""
    return options.model_copy(update={"head": str(Path(options.head).resolve())})


def measure(rows: pa.Table, images: Pictures | None, options: recipe.AestheticSignal) -> dict[str, pa.Table]:
    """The `aesthetic` table of some rows; reads uid and the embeddings' vectors, none null.

    aesthetic_score: the head's one output, float32, in the units of its training data.
    Raises InputError where the head wants vectors of another length.
    """
    layers = _head(options)
    (table,) = reads(options)
    vectors = pa.chunked_array(rows[table]).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    values = vectors.astype(np.float32).reshape(len(rows), -1 if len(rows) else layers[0][0].shape[1])
    if values.shape[1] != layers[0][0].shape[1]:
        raise InputError(
            f"signals.aesthetic: the head {options.head} reads vectors of length {layers[0][0].shape[1]}, those of "
            f"{table} have length {values.shape[1]}: take the head that was trained on this model's embeddings"
        )
    scores = in_batches(lambda block: _scores(np.stack(block), layers, options), values, 256) if len(rows) else values
    ((name, schema),) = schemas(options).items()
    return {name: conform(pa.table({"uid": rows["uid"], schema.names[1]: scores[:, 0]}), schema)}


def _scores(vectors: np.ndarray, layers: list[_Layer], options: recipe.AestheticSignal) -> np.ndarray:
    """float32 [n, 1] of vectors of any length, float32 [n, d]."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)  # with more, the last bits of a score would depend on the machine
    values = F.normalize(torch.from_numpy(vectors), dim=-1)
    for number, (weight, bias) in enumerate(layers):
        if number and options.activation == "relu":
            values = values.relu()
        values = F.linear(values, torch.from_numpy(weight), torch.from_numpy(bias))
    return values.numpy()


def _head(options: recipe.AestheticSignal) -> list[_Layer]:
    path = Path(options.head)
    if not path.is_file():
        raise InputError(f"signals.aesthetic.head: there is no file {options.head}")
    return _layers(str(path), file_sha256(path))


@loaded_once
def _layers(path: str, _sha256: str) -> list[_Layer]:
    """The layers of a state dict in their order: 2-d weights, each with the bias of the same name or none."""
    try:
        state = _state(path)
    except Exception as error:  # the three formats' readers raise many kinds, and none of them means anything else
        raise InputError(f"signals.aesthetic.head: {path} cannot be read: {first_line(error)}") from error
    layers: list[_Layer] = []
    for name in sorted((n for n in state if n.endswith("weight")), key=_place):
        weight = np.asarray(state.pop(name), np.float32)
        bias = state.pop(name.removesuffix("weight") + "bias", None)
        if weight.ndim != 2 or (bias is not None and np.shape(bias) != weight.shape[:1]):
            raise InputError(f"signals.aesthetic.head: {path}: {name} of shape {weight.shape} is no linear layer's")
        layers.append((weight, np.zeros(len(weight), np.float32) if bias is None else np.asarray(bias, np.float32)))
    widths = [weight.shape[::-1] for weight, _ in layers]
    fits = all(one[1] == next_[0] for one, next_ in pairwise(widths))
    if state or not layers or not fits or widths[-1][1] != 1:
        raise InputError(
            f"signals.aesthetic.head: {path} is no sequence of linear layers that ends in one number: its layers are "
            f"{', '.join(f'{i} to {o}' for i, o in widths) or 'none'}"
            + (f", and it also holds {', '.join(sorted(state))}" if state else "")
        )
    return layers


def _state(path: str) -> dict[str, Any]:
    """Name -> array. No format runs code: pickled objects are refused in all of them."""
    if path.endswith(".safetensors"):
        from safetensors.numpy import load_file

        return dict(load_file(path))
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    if path.endswith((".pth", ".pt", ".bin")):
        import torch

        loaded = torch.load(path, weights_only=True, map_location="cpu")
        loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
        if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
            raise TypeError("it holds no state dict: a name and a tensor for each weight")
        return {name: value.float().numpy() for name, value in loaded.items()}
    raise ValueError("its name ends in none of .safetensors, .npz, .pth, .pt and .bin")


def _place(name: str) -> list[tuple[bool, int, str]]:
    """`layers.10.weight` comes behind `layers.2.weight`."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]
