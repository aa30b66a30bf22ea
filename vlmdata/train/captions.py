"""Captions' features by a frozen language model, computed once for each distinct caption and kept beside the run."""

import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vlmdata.signals.models import in_batches, torch_device
from vlmdata.train import checkpoint, data, language_models

progress = logging.getLogger("vlmdata.progress")

BATCH = 16  # captions at once, always as many, so that none's features depend on the others
BLOCK = 1024  # captions between two lines of progress


class Captions(NamedTuple):
    """The captions of some shards."""

    features: np.ndarray  # float16 [distinct captions, words, width], read from a file where it is needed
    which: np.ndarray  # int64 [samples], into `features`
    blank: np.ndarray  # float32 [words, width]: of no text


class Encoder:
    """The hidden states of a causal language model's last layer, for the first `words` tokens."""

    def __init__(self, name: str, words: int) -> None:
        causal, self.tokenizer = language_models.load(name)
        self.model: Any = causal.base_model.eval().requires_grad_(False).to(torch_device()[0])
        self.identity, self.words = checkpoint.frozen_identity(self.model), words
        self.width: int = causal.config.hidden_size

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 [n, words, width]; 0 behind a text's end. An empty text is one token, that which ends texts."""

        place = self.model.device

        def run(batch: list[str]) -> np.ndarray:
            end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
            tokens = [
                self.tokenizer(text, add_special_tokens=False)["input_ids"][: self.words] or [end] for text in batch
            ]
            mask = torch.zeros((len(batch), self.words), dtype=torch.int64)
            ids = torch.full_like(mask, pad)
            for row, each in enumerate(tokens):
                ids[row, : len(each)], mask[row, : len(each)] = torch.tensor(each), 1
            hidden = self.model(input_ids=ids.to(place), attention_mask=mask.to(place), use_cache=False)[0]
            return (hidden.float().cpu() * mask[..., None]).numpy()

        return in_batches(run, texts, BATCH)

    def cached(self, shards: data.Index, folder: Path) -> Captions:
        """Those of all samples, from the file that an earlier attempt finished, if it did."""
        texts = [data.caption(shards, place) for place in range(len(shards))]
        distinct = sorted(set(texts))
        numbers = {text: number for number, text in enumerate(distinct)}
        which = np.array([numbers[text] for text in texts], np.int64)
        key = hashlib.sha256("\0".join([self.identity, str(self.words), *distinct]).encode()).hexdigest()[:16]
        path = folder / f"captions-{key}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            shape = (max(1, len(distinct)), self.words, self.width)
            made = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
            for start in range(0, len(distinct), BLOCK):
                stop = min(start + BLOCK, len(distinct))
                made[start:stop] = self.encode(distinct[start:stop])
                about = {"stage": "captions", "done": stop, "total": len(distinct)}
                progress.info("captions %d/%d", stop, len(distinct), extra=about)
            made.flush()
            partial.replace(path)
        features = np.load(path, mmap_mode="r", allow_pickle=False)
        return Captions(features, which, self.encode([""])[0])
