"""64 pairs of real pictures: the corners of scikit-image's photos, each with a caption that says which it is."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from photos import photo

PHOTOS = {
    "astronaut": "an astronaut",
    "brick": "a wall of bricks",
    "camera": "a man with a camera",
    "cell": "a cell under the microscope",
    "chelsea": "a cat called chelsea",
    "coffee": "a cup of coffee",
    "coins": "old coins on a table",
    "grass": "some grass",
    "gravel": "a road of gravel",
    "horse": "the outline of a horse",
    "ihc": "stained tissue",
    "moon": "the surface of the moon",
    "motorcycle_left": "a motorcycle in a garage",
    "page": "a printed page",
    "phantom": "a phantom of a head",
    "text": "some written formulas",
}
CORNERS = ("upper left", "upper right", "lower left", "lower right")


def pairs() -> Iterator[tuple[str, np.ndarray, str]]:
    """uid, uint8 RGB picture, caption."""
    for name, what in PHOTOS.items():
        whole = photo(name)
        height, width = whole.shape[0] // 2, whole.shape[1] // 2
        for number, corner in enumerate(CORNERS):
            top, left = height * (number // 2), width * (number % 2)
            picture = cv2.resize(
                whole[top : top + height, left : left + width], (160, 160), interpolation=cv2.INTER_AREA
            )
            yield f"{name}{number}", picture, f"{corner} of {what}"


def shard(path: Path, n: int = 64, broken: str = "") -> str:
    """The first n pairs as a tar, four of one photo in a row; the picture of the uid `broken` is cut off."""
    with tarfile.open(path, "w") as out:
        for uid, picture, caption in list(pairs())[:n]:
            content = cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes()
            for extension, member in (("jpg", content[:100] if uid == broken else content), ("txt", caption.encode())):
                info = tarfile.TarInfo(f"{uid}.{extension}")
                info.size = len(member)
                out.addfile(info, io.BytesIO(member))
    return str(path)


def tokenizer(folder: Path) -> str:
    """A tokenizer of BERT's kind that knows the captions' words alone, saved as transformers does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word for _, _, caption in pairs() for word in caption.split()}
    vocabulary = {word: number for number, word in enumerate([*special, *sorted(words)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    return str(folder)
