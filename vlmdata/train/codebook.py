"""Codes of image patches, which masked image modelling predicts: learned from the locked vision tower, or FLAVA's own.

BEiT (Bao 2021, arXiv:2106.08254) and FLAVA take the codes of DALL-E's autoencoder; its random weights would give noise,
so where they are not at hand a patch's code is the nearest of some k-means centres of the features that a locked tower
has at its place (as DINO's features in BEiT v2, Peng 2022, arXiv:2208.06366).
"""

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlmdata import towers
from vlmdata.errors import InputError, first_line
from vlmdata.signals.models import torch_device
from vlmdata.train import data

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")

GRID = 7  # of the tower's cells, in each direction
WIDTH = 1280  # of a cell
_BATCH = towers.Vision.batch
_CELLS_A_CODE = 100  # k-means learns from so many, at most

Encode = Callable[[list[np.ndarray]], np.ndarray]  # pictures of any size to codes, int32 [n, patches]


def cells(pictures: list[np.ndarray]) -> np.ndarray:
    """The tower's cells over each picture's central square, of unit length: float32 [n, 49, 1280]."""
    found = towers.vision().cells([data.square(picture, towers.SIDE) for picture in pictures])
    return found / np.maximum(np.linalg.norm(found, axis=-1, keepdims=True), 1e-6)


def nearest(centres: np.ndarray) -> Encode:
    """Codes by `centres`, float32 [codes, 1280] of unit length: for each cell the one with the largest cosine."""

    def encode(pictures: list[np.ndarray]) -> np.ndarray:
        return (cells(pictures) @ centres.T).argmax(-1).astype(np.int32)

    return encode


def kmeans(vectors: np.ndarray, codes: int, seed: int) -> np.ndarray:
    """Spherical k-means by FAISS: the centres of unit vectors, float32 [codes, d].

    Raises InputError for fewer vectors than centres.
    """
    import faiss

    if len(vectors) < codes:
        raise InputError(f"codes: {codes} codes cannot be learned from {len(vectors)} patches; make it smaller")
    learner = faiss.Kmeans(
        vectors.shape[1],
        codes,
        niter=20,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=10**6,
    )
    learner.train(np.ascontiguousarray(vectors, np.float32))
    return np.array(learner.centroids, np.float32)


def learn(shards: data.Index, codes: int, seed: int, folder: Path) -> np.ndarray:
    """The centres of a training split, float32 [codes, 1280], from a file in `folder` if they are there.

    They are learned from up to 100 cells a code, those of pictures drawn by `seed`.
    """
    from safetensors.numpy import load_file, save_file

    path = folder / f"centres-{_digest(shards, f'{codes} {seed}')}.safetensors"
    if path.exists():
        return load_file(path)["centres"]
    wanted = -(-codes * _CELLS_A_CODE // GRID**2)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(shards))[:wanted])
    found = [cells(pictures) for _, pictures in data.pictures(shards, chosen, _BATCH, "patch features", towers.SIDE)]
    vectors = np.concatenate(found).reshape(-1, WIDTH) if found else np.empty((0, WIDTH), np.float32)
    centres = kmeans(vectors, codes, seed)
    _save(path, partial(save_file, {"centres": centres}))
    return centres


def coded(shards: data.Index, encode: Encode, identity: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The codes of all samples, int32 [n, patches], and which could be decoded, bool [n]; kept in `folder`.

    identity: says, with the samples, what the codes depend on.
    """
    from safetensors.numpy import load_file, save_file

    path = folder / f"codes-{_digest(shards, identity)}.safetensors"
    if path.exists():
        kept = load_file(path)
        return kept["codes"], kept["decoded"]
    codes, whole = np.zeros((len(shards), 0), np.int32), np.zeros(len(shards), bool)
    for places, pictures in data.pictures(shards, range(len(shards)), _BATCH, "patch codes", towers.SIDE):
        found = encode(pictures)
        if not codes.size:
            codes = np.zeros((len(shards), found.shape[1]), np.int32)
        codes[places], whole[places] = found, True
    _save(path, partial(save_file, {"codes": codes, "decoded": whole}))
    return codes, whole


def flava_codebook(name: str, grid: int) -> tuple[Encode, int]:
    """FLAVA's own image codebook over grid x grid patches, from a folder or the hub, and how many codes it has.

    Raises InputError where there are no weights for all of it.
    """
    from transformers import FlavaImageCodebook

    loaded: Any
    try:
        loaded = FlavaImageCodebook.from_pretrained(name, output_loading_info=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"codebook: {name} holds no image codebook of FLAVA: {first_line(error)}") from error
    model, info = loaded
    if info["missing_keys"] or info["mismatched_keys"]:
        raise InputError(f"codebook: {name} lacks weights of the image codebook, which would be random: no targets")
    device = torch.device(torch_device()[0])
    model.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def encode(pictures: list[np.ndarray]) -> np.ndarray:
        squares = np.stack([data.square(picture, 8 * grid) for picture in pictures])
        pixels = torch.from_numpy(squares).to(device).permute(0, 3, 1, 2) / 255
        # As DALL-E's encoder has it (Ramesh 2021, arXiv:2102.12092, appendix A.3): away from 0 and 1.
        return model.get_codebook_indices(0.8 * pixels + 0.1).flatten(1).cpu().numpy().astype(np.int32)

    return encode, model.config.vocab_size


def _digest(shards: data.Index, identity: str) -> str:
    what = [data.identity(shards), towers.PREPROCESSING, str(towers.weights()["efficientnet-lite0"]), identity]
    return hashlib.sha256("\0".join(what).encode()).hexdigest()[:16]


def _save(path: Path, write: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial")
    write(partial_path)
    partial_path.replace(path)
