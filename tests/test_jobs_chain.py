"""Trainings that go on from another one: a recipe's later job from its earlier one, a run from another folder."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_train_projector
from made_dataset import pair, picture, publish
from pydantic import ValidationError
from safetensors.numpy import load_file

from vlmdata.dataset import Dataset
from vlmdata.errors import InputError, JobError
from vlmdata.jobs import Attempt, by_hand, job_key, missing, run_job
from vlmdata.jobs.chain import linked, started
from vlmdata.recipe import Recipe
from vlmdata.train import checkpoint
from vlmdata.train.places import absolute

tiny = test_train_projector.models  # the fixture
CHANGES = {
    "signals": ["text"], "dedup": [], "select": {}, "jobs": [],
    "shards": {"samples": 6, "splits": {"train": 0.7, "test": 0.3}},
}  # fmt: skip


def recipe(models: dict[str, str], start: Any = "one", **of_one: Any) -> Recipe:
    options = {"kind": "train", "objective": "projector", "batch": 4, "steps": 1, "workers": 0}
    options |= {"vision": models["clip"], "language_model": models["language"]}
    jobs = [options | {"name": "one"} | of_one, options | {"name": "two", "stage": 2, "start": {"job": start}}]
    return Recipe.model_validate({"dataset": "d", "sources": [{"kind": "folder", "path": "p"}], "jobs": jobs})


def test_a_job_goes_on_from_the_output_of_an_earlier_one(tiny: dict[str, str], tmp_path: Path) -> None:
    dataset, manifest = publish(tmp_path, [pair(f"a house number {n}", picture(n)) for n in range(12)], CHANGES)
    one, two = missing(recipe(tiny), dataset, 1)
    with pytest.raises(JobError, match="the job 'one' has no finished output on snapshot 1"):
        run_job(two, dataset, manifest)
    run_job(one, dataset, manifest)
    run_job(two, dataset, manifest)
    assert missing(recipe(tiny), dataset, 1) == []
    first, second = (Attempt(job, dataset, manifest).folder for job in (one, two))
    assert json.loads((second / "config.json").read_text())["start"] == str(first)
    frozen = "projector.linear_1.weight"
    kept = [load_file(folder / "checkpoints" / "1" / "model.safetensors")[frozen] for folder in (first, second)]
    assert 0 < np.abs(kept[0] - kept[1]).max() < 0.01  # one step away from stage 1's

    changed = missing(recipe(tiny, lr=0.5), dataset, 1)  # of stage 1 alone, and still stage 2 is another job
    assert [job.name for job in changed] == ["one", "two"]
    assert not {job_key(job) for job in changed} & {job_key(one), job_key(two)}
    with pytest.raises(JobError, match="the job 'one' has no finished output"):
        run_job(changed[1], dataset, manifest)
    renamed = recipe(tiny).model_dump(mode="json")
    for job in renamed["jobs"]:
        job["name"] = f"other_{job['name']}"
    renamed["jobs"][1]["start"]["job"] = "other_one"
    assert missing(Recipe.model_validate(renamed), dataset, 1) == [], "names are no part of what was done"
    other = linked(Recipe.model_validate(renamed).jobs)[1]
    assert started(other, dataset, 1).start == str(first)

    by_name = by_hand.from_options("projector", None, ["stage=2", "steps=1", "batch=4", "start={job: one}",
        f"vision={tiny['clip']}", f"language_model={tiny['language']}", "workers=0"])  # fmt: skip
    by_hand.train(by_name, dataset.root, tmp_path / "mine", resume=False)
    assert json.loads((tmp_path / "mine" / "config.json").read_text())["start"] == str(first)
    with pytest.raises(InputError, match="'one' is of a dataset's snapshot"):
        by_hand.train(by_name, f"{dataset.root}/snapshots/000001/shards", tmp_path / "other", resume=False)
    (first / "checkpoints").rename(first / "gone")
    with pytest.raises(InputError, match="is not on this machine any more"):
        by_hand.train(by_name, dataset.root, tmp_path / "third", resume=False)
    assert isinstance(dataset, Dataset)


def test_a_job_that_names_none_before_it_is_refused(tiny: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"jobs.two.start: no projector training before it is called 'onne'"):
        recipe(tiny, start="onne")
    with pytest.raises(ValidationError, match=r"called 'two'"):
        recipe(tiny, start="two")


def test_a_run_is_loaded_from_another_working_folder(
    tiny: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    test_train_projector.shard(Path("a.tar"))
    os.symlink(tiny["clip"], "clip")
    options = ["steps=1", "batch=8", "vision=clip", f"language_model={tiny['language']}", "workers=0"]
    by_hand.train(by_hand.from_options("projector", None, options), "a.tar", Path("one"), resume=False)
    two = by_hand.from_options("projector", None, [*options, "stage=2", "start=one"])
    by_hand.train(two, "a.tar", Path("two"), resume=False)
    by_hand.train(two, "a.tar", Path("two"), resume=True)  # the same job
    monkeypatch.chdir(tmp_path)
    assert checkpoint.load("here/two").job.start == str(tmp_path / "here" / "one")
    assert "one" not in (p.name for p in tmp_path.iterdir())


def test_local_paths_become_absolute_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "ViT-B-32", "folder", "clip.json", "weights.pt"):
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).touch()
    here = str(tmp_path)
    given = {
        "objective": "contrastive",
        "model": "clip.json",
        "pretrained": "weights.pt",
        "mix": [{"data": "other/train-*.tar", "weight": 1.0}, {"data": "s3://a/b", "weight": 1.0}],
        "steps": 3,
    }
    mix = [{"data": f"{here}/other/train-*.tar", "weight": 1.0}, {"data": "s3://a/b", "weight": 1.0}]
    wanted = {**given, "model": f"{here}/clip.json", "pretrained": f"{here}/weights.pt", "mix": mix}
    assert absolute(given) == wanted == absolute(wanted)
    for kept in ("tiny", "ViT-B-32", "coca_ViT-B-32"):
        assert absolute({"objective": "contrastive", "model": kept, "mix": []})["model"] == kept
    assert absolute({"model": "local-dir:folder", "mix": []})["model"] == f"local-dir:{here}/folder"
    content = {"embed_dim": 8, "text_cfg": {"hf_tokenizer_name": "folder", "hf_model_name": "roberta-base"}}
    found = absolute({"objective": "contrastive", "model": content, "mix": []})["model"]
    assert found["text_cfg"] == {"hf_tokenizer_name": f"{here}/folder", "hf_model_name": "roberta-base"}
    masked = absolute({"objective": "masked", "model": "folder", "images": "d@2", "texts": None, "mix": []})
    assert masked == {
        "objective": "masked",
        "model": f"{here}/folder",
        "images": f"{here}/d@2",
        "texts": None,
        "mix": [],
    }
    towers = {"vision": "open_clip:ViT-B-32/weights.pt", "language_model": "org/name", "start": {"job": "one"}}
    assert absolute(towers)["vision"] == f"open_clip:ViT-B-32/{here}/weights.pt"
    assert absolute(towers)["language_model"] == "org/name"
    assert absolute(towers)["start"] == {"job": "one"}
