"""What masked modelling hides: tokens as BERT (Devlin 2019), patches in blocks as BEiT (Bao 2021, arXiv:2106.08254)."""

import numpy as np

IGNORED = -100  # the label of a token that is not to be predicted
_SMALLEST = 16 / 196  # of a block, share of all patches, as BEiT
_ASPECT = 0.3  # of a block, from this to its inverse


def masked_tokens(
    rng: np.random.Generator, ids: np.ndarray, ordinary: np.ndarray, share: float, mask: int, words: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hide some tokens: (ids with these replaced, labels: the true ids there and IGNORED elsewhere), int64 [n].

    Of the `ordinary` ones (bool [n]; those of a text without any: the last token) each is chosen with probability
    `share`, and at least one is, so that a short caption is not for nothing. Of the chosen 80 % become `mask`, 10 %
    one of all `words`, 10 % stay what they are.
    """
    candidates = ordinary if ordinary.any() else np.arange(len(ids)) == len(ids) - 1
    chance = np.where(candidates, rng.random(len(ids)), 2.0)
    chosen = chance < share
    chosen[chance.argmin()] = True
    fate, other = rng.random(len(ids)), rng.integers(words, size=len(ids))
    replaced = np.where(fate < 0.8, mask, np.where(fate < 0.9, other, ids))
    return np.where(chosen, replaced, ids), np.where(chosen, ids, IGNORED)


def masked_patches(rng: np.random.Generator, grid: int, share: float, blocks: bool) -> np.ndarray:
    """Which patches of a grid x grid picture are hidden, bool [grid * grid]: `share` of them, to the nearest patch.

    blocks: rectangles are put down until there are enough, the last one cut off; else every patch is drawn alone.
    """
    n = grid * grid
    wanted = min(n, max(1, round(share * n)))
    hidden = np.zeros((grid, grid), bool)
    if not blocks:
        hidden.flat[rng.permutation(n)[:wanted]] = True
    while (left := wanted - int(hidden.sum())) > 0:
        area = max(rng.uniform(min(_SMALLEST * n, left), left), 1.0)
        aspect = np.exp(rng.uniform(np.log(_ASPECT), -np.log(_ASPECT)))
        height, width = (
            int(np.clip(round(side), 1, grid)) for side in (np.sqrt(area * aspect), np.sqrt(area / aspect))
        )
        top, start = rng.integers(grid - height + 1), rng.integers(grid - width + 1)
        block = np.zeros_like(hidden)
        block[top : top + height, start : start + width] = True
        hidden.flat[np.flatnonzero(block & ~hidden)[:left]] = True
    return hidden.ravel()
