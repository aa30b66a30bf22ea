"""The samples of masked training: pairs, mismatched pairs, images alone and texts alone, mixed in each batch."""

import json
from functools import cached_property
from typing import Any

import fsspec
import numpy as np
import torch
from torch import Tensor

from vlmdata.errors import DataError, InputError
from vlmdata.recipe import MaskedJob
from vlmdata.train import data, order
from vlmdata.train.masking import IGNORED, masked_patches, masked_tokens

_TRIES = 50  # at a caption that differs
_TOKENS = ("text", "masked", "labels", "other")  # what names of rows of tokens end with


class Pictures:
    """The pictures of some shards with the codes of their patches."""

    def __init__(self, shards: data.Index, size: int, codes: np.ndarray | None, broken: set[str]) -> None:
        self.shards, self.size, self.codes, self.broken = shards, size, codes, broken

    @cached_property
    def whole(self) -> np.ndarray:
        """The places of what can be decoded, int64: as the codes were found, else as `data.whole`."""
        if self.codes is None:
            return data.whole(self.shards, round(1.5 * self.size), self.broken)
        good = [place for place, uid in enumerate(self.shards.uids) if uid not in self.broken]
        return np.array(good, np.int64)

    def at(self, place: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The picture at a place or, if it cannot be decoded, at one after it: its place, uint8 RGB [size, size, 3],
        and its patches' codes, int32 [patches] (empty where there are none)."""
        found, picture = data.decodable(self.shards, place, round(1.5 * self.size), self.broken)
        codes = np.zeros(0, np.int32) if self.codes is None else self.codes[found]
        return found, data.square(picture, self.size), codes


def texts_of(path: str) -> list[str]:
    """The texts of a file (any fsspec URL): a line each, or `text` of a line's JSON object (.jsonl); blank ones are
    left out. Raises InputError, naming the line, for a file that is no such."""
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"texts: {path} cannot be read: {error}") from error
    if path.endswith(".jsonl"):
        lines = [_text(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(f"texts: {path} holds no text")
    return texts


def _text(line: str, path: str, number: int) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'texts: {path}, line {number}: not an object such as {{"text": "…"}}') from error
    if not isinstance(text, str):
        raise InputError(f"texts: {path}, line {number}: `text` is no string")
    return text


class Mixed:
    """See `vlmdata.train.loop.Samples`. A batch's row i is of kind i of the mixture, which repeats; because a batch
    holds the mixture a whole number of times, two processes' batches are those of one with twice the batch."""

    def __init__(
        self,
        job: MaskedJob,
        tokenizer: Any,
        grid: int,
        pictures: Pictures,
        images: Pictures | None,
        texts: list[str] | None,
    ) -> None:
        self.job, self.tokenizer, self.grid, self.pictures, self.images, self.texts = (
            job,
            tokenizer,
            grid,
            pictures,
            images,
            texts,
        )
        self.shards, self.uids = pictures.shards, pictures.shards.uids
        self.first, self.broken = np.arange(len(self.uids)), pictures.broken
        self.kinds = [kind for kind, count in job.mixture.model_dump().items() for _ in range(count)]
        self.special = np.array(tokenizer.all_special_ids)

    def ids(self, text: str) -> np.ndarray:
        """The tokens of a text, int64 [tokens], at most `job.tokens`."""
        return np.array(self.tokenizer.backend_tokenizer.encode(text).ids, np.int64)

    def padded(self, rows: list[np.ndarray], value: int) -> Tensor:
        """Rows of tokens as int64 [b, longest], the length a multiple of 8."""
        longest = -(-max((len(row) for row in rows), default=1) // 8) * 8
        filled = np.full((len(rows), longest), value, np.int64)
        for row, ids in zip(filled, rows, strict=True):
            row[: len(ids)] = ids
        return torch.from_numpy(filled)

    def other_caption(self, rng: np.random.Generator, own: str) -> str:
        """Another sample's caption, one that reads otherwise. Raises DataError where nearly all read the same."""
        for _ in range(_TRIES):
            caption = data.caption(self.shards, int(rng.integers(len(self.uids))))
            if caption != own:
                return caption
        raise DataError(
            f"no caption that differs from {own[:80]!r} was found for a mismatched pair; set mixture.mismatched: 0"
        )

    def whole(self, places: list[int], seed: int, number: int) -> dict[str, Tensor]:
        """Pairs to be measured: image, codes, hidden and text as in a batch; `masked`, in which every hidden token is
        the mask, with their `labels`; and `other`, another sample's caption."""
        rows: dict[str, list[np.ndarray]] = {}
        for place in places:
            rng = np.random.default_rng([seed, number, place])
            _, picture, codes = self.pictures.at(place)
            caption = data.caption(self.shards, place)
            ids = self.ids(caption)
            labels = self.masked(rng, ids)[1]
            values = {"image": picture, "codes": codes.astype(np.int64), "hidden": self.hidden(rng), "text": ids}
            values |= {"masked": np.where(labels == IGNORED, ids, self.tokenizer.mask_token_id), "labels": labels}
            values["other"] = self.ids(self.other_caption(rng, caption))
            for name, value in values.items():
                rows.setdefault(name, []).append(value)
        return self.stacked(rows)

    def stacked(self, rows: dict[str, list[np.ndarray]]) -> dict[str, Tensor]:
        """Samples' values as tensors: rows of tokens padded, all others of one shape."""
        batch = {}
        for name, values in rows.items():
            if name.endswith(_TOKENS):
                batch[name] = self.padded(values, IGNORED if "labels" in name else self.tokenizer.pad_token_id)
            else:
                batch[name] = torch.from_numpy(np.stack(values))
        return batch

    def masked(self, rng: np.random.Generator, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens with some hidden, and their labels; see `masked_tokens`."""
        ordinary = ~np.isin(ids, self.special)
        mask, words = self.tokenizer.mask_token_id, len(self.tokenizer)
        return masked_tokens(rng, ids, ordinary, self.job.text_share, mask, words)

    def hidden(self, rng: np.random.Generator) -> np.ndarray:
        """The patches of a picture to hide, bool [patches]; see `masked_patches`."""
        return masked_patches(rng, self.grid, self.job.image_share, self.job.image_masking == "blocks")

    def batch(self, places: np.ndarray, seeds: np.ndarray | None) -> dict[str, Tensor]:
        """A mixed batch; a mismatched pair's `match` is 0.

        pair_image, image: uint8 RGB [n, size, size, 3]; pair_hidden, hidden: bool [n, patches]; pair_codes, codes:
        int64 [n, patches]; pair_text (whole), pair_masked, text (masked), and labels pair_text_labels, text_labels:
        int64 [n, tokens]; match: int64 [n].
        """
        drawn = order.seeds(0, 0, range(len(places))) if seeds is None else seeds
        rows: dict[str, list[np.ndarray]] = {}
        for row, (wanted, seed) in enumerate(zip(places, drawn, strict=True)):
            rng = np.random.default_rng(int(seed))
            for name, value in self._sample(self.kinds[row % len(self.kinds)], int(wanted), rng).items():
                rows.setdefault(name, []).append(value)
        return self.stacked(rows)

    def _sample(self, kind: str, wanted: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if kind == "texts":
            text = self.texts[rng.integers(len(self.texts))] if self.texts else data.caption(self.shards, wanted)
            ids, labels = self.masked(rng, self.ids(text))
            return {"text": ids, "text_labels": labels}
        if kind == "images":
            source = self.images or self.pictures
            _, picture, codes = source.at(int(rng.integers(len(source.shards))) if self.images else wanted)
            return {"image": picture, "codes": codes.astype(np.int64), "hidden": self.hidden(rng)}
        place, picture, codes = self.pictures.at(wanted)
        text = data.caption(self.shards, place)
        if kind == "mismatched":
            text = self.other_caption(rng, text)
        whole = self.ids(text)
        ids, labels = self.masked(rng, whole)
        made = {"image": picture, "codes": codes.astype(np.int64), "hidden": self.hidden(rng)}
        made |= {"text": whole, "masked": ids, "text_labels": labels}
        return {f"pair_{name}": value for name, value in made.items()} | {"match": np.array(kind == "pairs", np.int64)}
