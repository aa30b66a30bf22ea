"""How well `lite` scores, beside ConSE: on the pairs of recipes/lite.yaml's dataset, and on folders of other packages.

    python recipes/lite_measure.py runs/lite [--heads DIR] [NAME=FOLDER …]

Of a dataset both halves are measured: the pairs that the heads learnt from, and those that the rule `even_half` held
back, less the captions that stand in both. A folder holds images with a .json or .txt file of the same name, whose
title or first line is the caption. Every caption and every image counts once; at most 500 pairs of a set, chosen by
the uid's order. AUC: how often a right pair scores higher than a wrong one, over all pairings of the set.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch

from vlmdata import lite, towers
from vlmdata.catalog import connect
from vlmdata.dataset import Dataset
from vlmdata.evaluate.retrieval import retrieval

PAIRS = 500
MAX_PIXELS = 50_000_000
Pair = tuple[np.ndarray, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("folders", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--heads", help="a folder with heads.safetensors and config.json; default: the package's")
    arguments = parser.parse_args()
    model = lite.load(arguments.heads)
    print("| pairs | n | AUC, ConSE | AUC, lite | recall at 10, ConSE | recall at 10, lite |")
    print("|---|---|---|---|---|---|")
    sets = halves(Dataset(arguments.dataset))
    for entry in arguments.folders:
        name, _, folder = entry.partition("=")
        sets[name] = in_folder(Path(folder))
    for name, pairs in sets.items():
        measured = measure(model, pairs)
        print(f"| {name} | {len(pairs)} | " + " | ".join(f"{value:.3f}" for value in measured) + " |", flush=True)


def measure(model: lite.Lite, pairs: list[Pair]) -> tuple[float, float, float, float]:
    """(AUC of ConSE, of lite, recall at 10 of ConSE, of lite), recall being the mean of both directions."""
    pictures, captions = zip(*pairs, strict=True)
    features = torch.from_numpy(lite.image_features(list(pictures)))
    texts = towers.sentences().embed(list(captions))
    with torch.inference_mode():
        images, ours = model.heads.encode_images(features).numpy(), model.encode_texts(list(captions))
        baseline = lite.conse(features, model.heads).numpy()
    # ConSE's captions are centred on the set's own mean: measured, that is the better one for it.
    centred = texts - texts.mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    return auc(baseline, centred), auc(images, ours), recall(baseline, centred), recall(images, ours)


def auc(images: np.ndarray, texts: np.ndarray) -> float:
    """The probability that a right pair scores higher than a wrong one (ties count half)."""
    scores = images @ texts.T
    right, wrong = np.diag(scores), np.sort(scores[~np.eye(len(scores), dtype=bool)])
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.mean() / 2 / len(wrong))


def recall(images: np.ndarray, texts: np.ndarray) -> float:
    found = retrieval(images, texts, ks=(10,))
    return (found["retrieval/image_to_text/R@10"] + found["retrieval/text_to_image/R@10"]) / 2


def halves(dataset: Dataset) -> dict[str, list[Pair]]:
    """The learnt and the held-back pairs of every source."""
    rows = (
        connect(dataset)
        .sql(
            "SELECT source, coalesce(reason, 'learnt') AS half, caption, sha256, stored_tar, \"offset\", length "
            "FROM samples WHERE reason IS NULL OR reason = 'even_half' ORDER BY uid"
        )
        .fetchall()
    )
    learnt = {caption for _, half, caption, *_ in rows if half == "learnt"}
    sets: dict[str, list[Pair]] = {}
    seen: set[tuple[str, str, str]] = set()
    for source, half, caption, sha256, tar, offset, length in rows:
        name = f"{source}, {'learnt' if half == 'learnt' else 'held back'}"
        taken = {(name, "caption", caption), (name, "image", sha256)}
        if taken & seen or (half != "learnt" and caption in learnt) or len(sets.get(name, [])) == PAIRS:
            continue
        seen |= taken
        with dataset.open(tar) as file:
            file.seek(offset)
            picture = decode(file.read(length))
        if picture is not None:
            sets.setdefault(name, []).append((picture, caption))
    for half in ("held back", "learnt"):  # of all sources by turns, so that a picture's style says something
        mine = [pairs for name, pairs in sorted(sets.items()) if name.endswith(half)]
        sets[f"mixed, {half}"] = [pair for turn in zip(*mine, strict=False) for pair in turn][:PAIRS]
    return dict(sorted(sets.items()))


def in_folder(folder: Path) -> list[Pair]:
    """Pairs of a folder, in the order of their paths; of more than PAIRS captions so many, evenly spread."""
    captions: dict[str, Path] = {}
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".png", ".jpg")):
        if path.with_suffix(".json").exists():
            caption = json.loads(path.with_suffix(".json").read_text("utf-8"))["title"]
        elif path.with_suffix(".txt").exists():
            caption = path.with_suffix(".txt").read_text("utf-8", "replace").partition("\n")[0].strip()
        else:
            continue
        captions.setdefault(caption, path)
    chosen = [list(captions.items())[place] for place in spread(len(captions))]
    pairs = [(decode(path.read_bytes()), caption) for caption, path in chosen]
    return [(picture, caption) for picture, caption in pairs if picture is not None]


def spread(n: int) -> list[int]:
    """At most PAIRS of n places, evenly spread."""
    return np.linspace(0, n - 1, min(n, PAIRS)).astype(int).tolist()


def decode(content: bytes) -> np.ndarray | None:
    """RGB with transparency on white, the shorter side at most 256, as the download stores images."""
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.shape[0] * picture.shape[1] > MAX_PIXELS:
        return None
    if picture.dtype == np.uint16:
        picture = (picture >> 8).astype(np.uint8)
    if picture.ndim == 2:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    if picture.shape[2] == 4:
        alpha = picture[..., 3:] / np.float32(255)
        picture = (picture[..., :3] * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
    scale = 256 / min(picture.shape[:2])
    if scale < 1:
        size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(picture[..., ::-1])


if __name__ == "__main__":
    main()
