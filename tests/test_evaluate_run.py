"""`vlmdata evaluate` as a command: a checkpoint trained here, JSON on stdout, what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coloured import BROKEN, MODEL, jpg, tar
from conftest import here
from test_train_loop import COLOURS, job, shard

from vlmdata.errors import InputError
from vlmdata.evaluate import material, model, objective, run
from vlmdata.recipe import Evaluation
from vlmdata.train.loop import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run of 24 steps that knows eight colours, and its final metrics."""
    folder = tmp_path_factory.mktemp("run")
    shards = {"train": [shard(folder / "train-0.tar")], "test": [shard(folder / "test-0.tar", "v")]}
    model = {**job().model, "vision_cfg": {**job().model["vision_cfg"], "patch_dropout": 0.0}}  # type: ignore[dict-item]
    final = train(
        job(steps=24, save_every=2, keep=20, lr=3e-3, crop=1.0, batch=8, model=model), shards, str(folder / "out")
    )
    return folder, final


def test_a_checkpoint_is_measured_as_its_training_measured_it(trained: tuple[Path, dict[str, float]]) -> None:
    folder, final = trained
    done = here(folder, "evaluate", "out", "--data", str(folder), "--resamples", "50")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for direction in ("image_to_text", "text_to_image"):
        told = found["retrieval"][direction]
        for k in (1, 5, 10):
            assert told[f"R@{k}"] == final[f"retrieval/{direction}/R@{k}"]
            assert told[f"R@{k}/chance"] == final[f"retrieval/{direction}/R@{k}/chance"]
            low, high = told[f"R@{k}/interval"]
            assert 0 <= low <= told[f"R@{k}"] <= high <= 1
        assert told["median_rank"] == final[f"retrieval/{direction}/median_rank"]
    assert final["retrieval/image_to_text/R@1"] > 0.5
    assert (found["n"], found["broken"], found["split"]) == (8, 0, "test")
    assert found["checkpoint"] == "out"
    assert "zeroshot" not in found  # these shards have no classes
    assert "retrieval image_to_text" in done.stderr
    assert "chance 0.125" in done.stderr


def test_an_older_checkpoint_and_the_exported_folder_are_measured_too(trained: tuple[Path, dict[str, float]]) -> None:
    folder, _ = trained
    found = {
        name: run.evaluate(str(folder / "out" / name), str(folder / "test-0.tar"), run.options(resamples=0))
        for name in ("checkpoints/2", "checkpoints/24", "model")
    }
    first, last, exported = (each["retrieval"]["image_to_text"] for each in found.values())
    assert first != last
    assert exported["R@1"] == last["R@1"]  # its preprocessing is open_clip's own
    with pytest.raises(InputError, match="7: neither a training's --out nor one of its checkpoints"):
        run.evaluate(str(folder / "out" / "checkpoints" / "7"), str(folder), run.options())
    with pytest.raises(InputError, match="holds no checkpoint"):
        run.evaluate(str(folder / "out" / "checkpoints"), str(folder), run.options())


def test_all_tasks_that_are_possible_are_done_in_one_run_and_one_is_done_alone(
    trained: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    checkpoint = str(trained[0] / "out")
    samples: dict[str, dict[str, Any]] = {
        name: {"jpg": jpg(colour, 40), "txt": name, "cls": name} for name, colour in COLOURS.items()
    }
    data = tar(tmp_path / "a.tar", samples | {"bad": {"jpg": BROKEN, "txt": "red", "cls": "red"}})
    common = {"templates": "simple", "resamples": 20}
    found = run.evaluate(checkpoint, data, run.options(**common))
    assert {"retrieval", "zeroshot"} <= found.keys()
    assert not {"captions", "answers", "masked"} & found.keys()
    assert (found["n"], found["broken"]) == (8, 1)
    assert found["zeroshot"]["top-1/chance"] == 1 / 8
    alone = run.evaluate(checkpoint, data, run.options(tasks=("zeroshot",), batch=3, workers=2, **common))
    assert alone["zeroshot"] == found["zeroshot"]
    assert "retrieval" not in alone
    lines = list(run.table(found))
    assert any(line.startswith("zeroshot") and "mean_per_class_recall" in line for line in lines)
    assert lines[-1] == "n 8, pictures that cannot be decoded 1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": ["captions"]}, r"--task captions: .* writes no captions; possible here: retrieval$"),
        ({"tasks": ["masked"]}, "not trained by the objective masked"),
        ({"tasks": ["zeroshot"]}, "no .cls; name the key"),
        ({"tasks": ["retrieva"]}, "did you mean 'retrieval'"),
        ({"captions": "some"}, "--captions"),
        ({"batch": 0}, "--batch"),
        ({"split": "tset"}, "no split 'tset'"),
    ],
)
def test_what_cannot_be_done_is_refused(
    trained: tuple[Path, dict[str, float]], options: dict[str, Any], said: str
) -> None:
    def attempt() -> None:
        run.evaluate(str(trained[0] / "out"), str(trained[0]), run.options(**options))

    with pytest.raises(InputError, match=said):
        attempt()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing", "neither a training's --out"),
        ("ViT-B-33/laion2b_s34b_b79k", r"^ViT-B-33/laion2b_s34b_b79k: .*did you mean 'ViT-B-32'"),
        ("ViT-B-32/nowhere.pt", "there is no file nowhere.pt"),
    ],
)
def test_names_of_no_model_are_refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        model.load(name, 8)


def test_models_that_need_no_training_are_loaded_by_name() -> None:
    loaded = model.load("lite", 8)
    assert loaded.encoder is not None
    assert loaded.shorter == 4 * 224
    vectors = loaded.encoder.encode_images([np.full((30, 40, 3), 200, np.uint8)])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert (loaded.masked, loaded.caption, loaded.answer) == (None, None, None)


class _Masked:
    """An objective's two methods that the task asks for."""

    class Samples:
        def __init__(self, uids: tuple[str, ...]) -> None:
            self.uids, self.broken = uids, {"b"}

    def samples(self, shards: Any, out: Path) -> "_Masked.Samples":
        return self.Samples(shards.uids)

    def evaluate(self, samples: "_Masked.Samples", batch: int) -> dict[str, float]:
        assert batch <= len(samples.uids)
        return {"masked/text/accuracy": 0.5, "masked/text/accuracy/majority": 0.25, "retrieval/n": 1.0}


def test_what_a_masked_objective_measures_is_nested_with_its_baseline_beside_it(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {uid: {"jpg": jpg((1, 2, 3)), "txt": "a"} for uid in "ab"})
    found = material.find(path, Evaluation(), tmp_path)
    measured = objective.measure(model.Model("m", masked=_Masked()), found)
    assert measured == {"n": 1, "text": {"accuracy": 0.5, "accuracy/majority": 0.25}, "retrieval": {"n": 1.0}}
    assert found.broken == {"b"}
    assert objective.refused(MODEL, found) is not None
