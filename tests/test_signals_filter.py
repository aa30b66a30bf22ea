"""A filter network: trained on one source's drawings, it tells right captions from wrong ones in another source."""

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import made_dataset
import numpy as np
import pytest

from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.signals import filter as filter_signal
from vlmdata.train import loop

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 40), "blue": (30, 50, 220), "yellow": (240, 220, 40)}
SHAPES = ("circle", "square", "ring", "bar")
SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
STEPS = 40


def drawing(rng: np.random.Generator) -> tuple[bytes, str]:
    """A shape somewhere on a grey ground, and its caption."""
    colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
    canvas = np.full((64, 64, 3), int(rng.integers(90, 255)), np.uint8)
    (x, y), r, paint = map(int, rng.integers(20, 44, 2)), int(rng.integers(9, 18)), COLOURS[colour][::-1]
    if shape in ("circle", "ring"):
        cv2.circle(canvas, (x, y), r, paint, -1 if shape == "circle" else 3)
    else:
        wide = r if shape == "square" else 3
        cv2.rectangle(canvas, (x - r, y - wide), (x + r, y + wide), paint, -1)
    return made_dataset.picture_of(canvas), f"a {colour} {shape}"


def drawings() -> list[dict[str, Any]]:
    """300 clean pairs of the source `catalogue`; 120 of `web`, every other one with the caption of another."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(420):
        image, caption = drawing(rng)
        wrong = number >= 300 and number % 2
        if wrong:
            told, caption = caption, drawing(rng)[1]
            while caption == told:
                caption = drawing(rng)[1]
        source = "catalogue" if number < 300 else "web"
        made.append(made_dataset.pair(caption, image, source=source, license="wrong" if wrong else "right"))
    made.append(made_dataset.pair("a red circle of few words", drawing(rng)[0], source="catalogue"))
    made.append(made_dataset.pair("a red one that is gone", None, source="catalogue", download_status="4xx"))
    return made


def publish(folder: Path, **signal: Any) -> tuple[Dataset, dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    (folder / "small.json").write_text(json.dumps(SMALL))
    options = {"model": str(folder / "small.json"), "steps": STEPS, "batch": 60, "lr": 0.002, "weight_decay": 0.01}
    sources = [{"kind": "table", "name": name, "path": str(folder / "list.csv")} for name in ("catalogue", "web")]
    changes = {
        "sources": sources,
        "signals": [{"kind": "filter", "trusted": ["catalogue"], "after": ["short"], **options, **signal}, "text"],
        "dedup": [],
        "select": {"rules": {"short": "words <= 3", "fits": "source = 'catalogue' or filter_score > 0"}},
    }
    return made_dataset.publish(folder, drawings(), changes, part_rows=150)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, dict[str, Any]]:
    return publish(tmp_path_factory.mktemp("filter"))


def model_of(dataset: Dataset) -> tuple[str, dict[str, Any]]:
    """The folder of the dataset's one trained filter, and its manifest."""
    (folder,) = Path(dataset.path("models")).iterdir()
    return str(folder), json.loads((folder / "manifest.json").read_text())


def test_it_tells_right_captions_from_wrong_ones_that_it_never_saw(published: Any) -> None:
    dataset, manifest = published
    rows = [row for part in manifest["samples"] for row in dataset.read_part(part["path"]).to_pylist()]
    scores = {
        word: np.array([r["filter_score"] for r in rows if r["source"] == "web" and r["license"] == word])
        for word in ("right", "wrong")
    }
    assert len(scores["right"]) == len(scores["wrong"]) == 60
    auc = np.mean(scores["right"][:, None] > scores["wrong"][None])
    assert auc > 0.75, f"{auc:.2f}; 0.5 is chance"
    unmeasured = {row["caption"] for row in rows if row["filter_score"] is None}
    assert unmeasured == {"a red circle of few words", "a red one that is gone"}


def test_it_was_trained_on_the_trusted_pairs_that_passed_the_rules(published: Any) -> None:
    dataset, _ = published
    folder, manifest = model_of(dataset)
    assert manifest["pairs"] == 300
    assert manifest["trusted"] == ["catalogue"]
    assert list(manifest["after"]) == ["short"]
    for file in manifest["files"]:
        assert hashlib.sha256(Path(dataset.path(file["path"])).read_bytes()).hexdigest() == file["sha256"]
    assert not Path(dataset.path("training")).exists()
    about = dataset.tables_named("filter")[0].about
    assert about["devices"] == ["cpu fp32"]
    assert folder.endswith(dataset.tables_named("filter")[0].key)


def test_a_killed_training_goes_on_and_ends_with_the_same_model(
    tmp_path: Path, published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    step = loop._step

    def dies(job: Any, number: int, *others: Any) -> Any:
        if number == 30 and 30 not in steps:
            steps.append(number)
            raise KeyboardInterrupt
        steps.append(number)
        return step(job, number, *others)

    monkeypatch.setattr(loop, "_step", dies)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path)
    dataset, manifest = publish(tmp_path)
    assert steps[-12:] == list(range(28, 40)), "from the checkpoint of step 28"
    assert [file["sha256"] for file in model_of(dataset)[1]["files"]] == [
        file["sha256"] for file in model_of(published[0])[1]["files"]
    ]
    ours, theirs = (found["tables"]["filter"]["parts"] for found in (manifest, published[1]))
    assert [part["rows"] for part in ours] == [part["rows"] for part in theirs]
    scores = [d.read_part(p[0]["path"])["filter_score"] for d, p in ((dataset, ours), (published[0], theirs))]
    assert scores[0].equals(scores[1])


def test_a_filter_of_another_dataset_scores_without_training(tmp_path: Path, published: Any) -> None:
    folder, _ = model_of(published[0])
    dataset, manifest = publish(tmp_path, trusted=[], checkpoint=folder)
    assert not Path(dataset.path("models")).exists()
    scores = [
        d.read_part(m["tables"]["filter"]["parts"][0]["path"])["filter_score"]
        for d, m in (published, (dataset, manifest))
    ]
    assert scores[0].equals(scores[1])
    assert "open_clip_model.safetensors" in dataset.tables_named("filter")[0].about["model"]


def test_what_it_cannot_be_trained_on_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no source is called 'katalog'; did you mean 'catalogue'"):
        publish(tmp_path, trusted=["katalog"])
    with pytest.raises(ValueError, match="either `trusted`"):
        publish(tmp_path, trusted=[])
    with pytest.raises(InputError, match=r"300 pairs of catalogue .* a batch is 301"):
        publish(tmp_path, batch=301)
    with pytest.raises(InputError, match="no folder with a trained filter"):
        publish(tmp_path, trusted=[], checkpoint=str(tmp_path))


def test_other_training_is_another_key(tmp_path: Path) -> None:
    from vlmdata.recipe import FilterSignal

    options = FilterSignal(kind="filter", trusted=["a"])
    assert filter_signal.identity(options) != filter_signal.identity(options.model_copy(update={"model": "lite"}))
    changed = FilterSignal(kind="filter", trusted=["a"], seed=1)
    assert options.keyed("after") != changed.keyed("after")
