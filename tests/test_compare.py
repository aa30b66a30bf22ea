"""Selections of one pool are compared on the same training: only what they keep is trained on, and nothing twice."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import here

from vlmdata import lite, recipe_file
from vlmdata.compare import measures, selections, trial
from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.plan import make_plan
from vlmdata.recipe import ContrastiveJob
from vlmdata.report import comparison
from vlmdata.train import data
from vlmdata.train.loop import train

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "grey": (128, 128, 128)}
PLACES = ("top left", "top right", "bottom left", "bottom right")
KINDS = [(colour, place) for colour in COLOURS for place in PLACES]


def picture(kind: int, seed: int) -> bytes:
    """A square of a colour in a corner, on noise that no other seed has."""
    colour, place = KINDS[kind % len(KINDS)]
    drawn = np.random.default_rng([kind, seed]).integers(200, 256, (48, 48, 3), np.uint8)
    top, left = 24 * place.startswith("bottom"), 24 * place.endswith("right")
    drawn[top : top + 24, left : left + 24] = COLOURS[colour]
    return cv2.imencode(".jpg", drawn[..., ::-1])[1].tobytes()


def caption(kind: int) -> str:
    return " ".join(KINDS[kind % len(KINDS)])


def tar(path: Path, samples: list[tuple[str, str, bytes]]) -> str:
    with tarfile.open(path, "w") as out:
        for name, text, image in samples:
            for ending, content in (("jpg", image), ("txt", text.encode())):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                out.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose pool has 48 right pairs, 96 with another's caption, and the 16 pairs of the test among the right
    ones; a selection beside it."""
    folder = tmp_path_factory.mktemp("compare")
    tests = [picture(kind, 1000) for kind in range(len(KINDS))]
    tar(folder / "test.tar", [(f"{kind:02d}", caption(kind), image) for kind, image in enumerate(tests)])
    for source, shift, count in (("right", 0, 48), ("wrong", 5, 96)):
        (folder / source).mkdir()
        rows = [(picture(number, number + 100 * shift), caption(number + shift)) for number in range(count)]
        rows += [(image, caption(kind)) for kind, image in enumerate(tests)] if source == "right" else []
        for number, (image, text) in enumerate(rows):
            (folder / source / f"{number:02d}.jpg").write_bytes(image)
            (folder / source / f"{number:02d}.txt").write_text(text)
    write_recipe(folder)
    (folder / "clean.yaml").write_text("select: {rules: {right: source = 'right'}}\n")
    return folder


def write_recipe(folder: Path, **changes: Any) -> Path:
    options: dict[str, Any] = {
        "dataset": "runs/pool",
        "sources": [{"kind": "folder", "name": name, "path": name} for name in ("right", "wrong")],
        "signals": ["image"],
        "dedup": ["exact", {"kind": "decontaminate", "against": "test.tar", "distance": None}],
        "shards": {"splits": {"train": 0.5, "test": 0.5}},
        "compare": {"test": "test.tar"},
        "jobs": [{"kind": "train", "model": MODEL, "steps": 50, "batch": 32, "lr": 3e-3, "save_every": 1000}],
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**options, **changes}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def runs(made: Path) -> list[dict[str, Any]]:
    """A compare with one seed, then one with two: what each said, and the trainings that are kept then."""
    commands = [
        ["compare", "recipe.yaml", "--select", "raw", "clean.yaml", "--seeds", "1"],
        ["compare", "recipe.yaml", "--select", "raw", "--select", "clean.yaml", "--seeds", "2"],
    ]
    found = []
    for command in commands:
        told = here(made, *command)
        assert told.returncode == 0, told.stderr
        trials = {path.name: path.stat().st_mtime_ns for path in (made / "runs/pool/compare/trials").glob("*")}
        found.append({"err": told.stderr, "trials": trials, "result": json.loads(told.stdout)})
    return found


def test_what_drops_the_shuffled_pairs_beats_raw(made: Path, runs: list[dict[str, Any]]) -> None:
    result = runs[0]["result"]
    clean, raw = (result["metrics"][name]["mean"] for name in ("clean", "raw"))
    assert clean["value"] > 0.7 > 0.6 > raw["value"]
    assert result["candidate"] == "clean"
    assert result["better_than"] == ["raw"]
    assert "clean - raw: +" in runs[0]["err"]
    assert result["samples_seen"] == 50 * 32
    assert result["queries"] == 16


def test_every_selection_is_of_the_pool_without_the_tests_images(made: Path, runs: list[dict[str, Any]]) -> None:
    kept = {name: runs[0]["result"]["selections"][name]["pairs"] for name in ("raw", "clean")}
    assert kept == {"raw": 144, "clean": 48}  # the test's own 16 pictures stand in `right`, and go
    manifest = json.loads((made / "runs/pool/snapshots/000001/manifest.json").read_text())
    assert manifest["splits"] == {"train": 144}


def test_more_seeds_train_only_what_is_missing_and_publish_nothing_again(
    made: Path, runs: list[dict[str, Any]]
) -> None:
    before, after = (one["trials"] for one in runs)
    assert len(before) == 2
    assert len(after) == 4
    assert before.items() <= after.items()
    assert [path.name for path in sorted((made / "runs/pool/snapshots").iterdir())] == ["000001"]
    assert not list((made / "runs/pool/compare/running").glob("*"))
    mean = runs[1]["result"]["metrics"]["clean"]["mean"]
    assert mean["by_seed"][0] == runs[0]["result"]["metrics"]["clean"]["mean"]["by_seed"][0]
    report = (made / "runs/pool/snapshots/000001/report.html").read_text()
    assert 'id="comparison"' in report


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("nothing.yaml", None, "nothing.yaml: cannot be read"),
        ("key.yaml", "rule: {}", "key.yaml: select.rule: extra inputs"),
        ("column.yaml", "rules: {x: clip_score > 0}", "column: select.rules.x"),
        ("method.yaml", "dedup: [semantic]", "select.dedup: `dedup` has no 'semantic'"),
        ("two words.yaml", "rules: {}", "rename the file"),
    ],
)
def test_a_selection_that_is_none_is_told_with_its_file(
    made: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str | None, told: str
) -> None:
    monkeypatch.chdir(made)
    if content is not None:
        Path(name).write_text(content)
    parsed = recipe_file.load("recipe.yaml")
    with pytest.raises(InputError, match=told.replace("`", ".")):
        selections.plans(make_plan(parsed), selections.read(parsed, [name]))


def test_two_selections_of_one_name_and_a_pool_that_holds_the_test_are_refused(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made)
    parsed = recipe_file.load("recipe.yaml")
    with pytest.raises(InputError, match="two selections are called 'raw'"):
        selections.read(parsed, ["raw", "raw"])
    selections.check_clean(parsed, [str(made / "test.tar")])
    with pytest.raises(InputError, match="dedup must have"):
        selections.check_clean(parsed, [str(made / "another.tar")])


def test_no_other_sample_is_ever_drawn_not_even_for_one_that_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [(f"s{number:02d}", caption(number), picture(number, 0)) for number in range(16)]
    samples[4] = ("s04", caption(4), b"\xff\xd8 no picture")
    shards = [tar(tmp_path / "train.tar", samples)]
    drawn: list[str] = []
    real = data.decodable

    def recorded(index: data.Index, place: int, *more: Any) -> Any:
        found = real(index, place, *more)
        drawn.append(index.uids[found[0]])
        return found

    monkeypatch.setattr(data, "decodable", recorded)
    job = ContrastiveJob(kind="train", model=MODEL, steps=6, batch=4, workers=0, save_every=1000)
    only = {"s02": 1, "s04": 1, "s07": 2, "s11": 1}
    train(job, {"train": shards}, str(tmp_path / "out"), only=only)
    assert len(drawn) == 6 * 4  # as many samples as on any other selection
    assert set(drawn) == {"s02", "s07", "s11"}
    with pytest.raises(InputError, match="1 of the chosen samples are not in the shards, the first s99"):
        train(job, {"train": shards}, str(tmp_path / "other"), only={"s99": 1})


def test_features_of_locked_towers_are_computed_once_for_all_selections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []

    def features(pictures: list[np.ndarray]) -> np.ndarray:
        counted.append(len(pictures))
        return np.stack([np.resize(p.astype(np.float32), lite.POOLED + lite.CLASSES) for p in pictures])

    monkeypatch.setattr(lite, "image_features", features)
    monkeypatch.setattr(lite, "class_vectors", lambda: np.eye(1000, 384, dtype=np.float32))
    samples = [(f"s{number:02d}", f"{caption(number)} {number}", picture(number, 0)) for number in range(12)]
    shards = {"train": [tar(tmp_path / "train.tar", samples)], "test": [tar(tmp_path / "test.tar", samples[:3])]}
    job = ContrastiveJob(kind="train", model="lite", steps=2, batch=4, save_every=1000)
    for name, only in (("a", {f"s{n:02d}": 1 for n in range(6)}), ("b", {f"s{n:02d}": 1 for n in range(4, 12)})):
        metrics = train(job, shards, str(tmp_path / name), only=only, cache=str(tmp_path / "cache"))
        assert metrics["train/samples"] == len(only)
    assert sum(counted) == 12 + 3


def test_a_trial_is_told_from_others_by_all_that_decides_it() -> None:
    job = ContrastiveJob(kind="train")
    rows = pa.table({"uid": ["a", "b"], "copies": pa.array([1, 1], pa.int32())})
    twice = pa.table({"uid": ["a", "b"], "copies": pa.array([1, 2], pa.int32())})
    pool, other = ({"shards": [{"sha256": each}]} for each in "xy")
    keys = {
        trial.trial_key(job, rows, pool, "t"),
        trial.trial_key(job.model_copy(update={"seed": 1}), rows, pool, "t"),
        trial.trial_key(job, twice, pool, "t"),
        trial.trial_key(job, rows, other, "t"),
        trial.trial_key(job, rows, pool, "u"),
    }
    assert len(keys) == 5
    assert trial.trial_key(job.model_copy(update={"name": "b"}), rows, pool, "t") in keys


def test_a_trial_that_was_killed_before_its_outcome_was_kept_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {"train": [tar(tmp_path / "a.tar", [(f"s{n:02d}", caption(n), picture(n, 0)) for n in range(8)])]}
    shards["test"] = shards["train"]
    dataset, only = Dataset(str(tmp_path / "set")), {f"s{n:02d}": 1 for n in range(8)}
    job = ContrastiveJob(kind="train", model=MODEL, steps=4, batch=4, save_every=2)
    whole = trial.run(dataset, job, shards, only, "whole")
    with monkeypatch.context() as patch:
        patch.setattr(trial, "ranks", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trial.run(dataset, job, shards, only, "cut")
    steps: list[int] = []
    monkeypatch.setattr(trial, "train", lambda *a, **k: train(*a, on_step=lambda step, _: steps.append(step), **k))
    resumed = trial.run(dataset, job, shards, only, "cut")
    assert resumed == whole
    assert steps == []  # all were done, only the measuring was not
    assert trial.run(dataset, job, shards, {}, "cut") == resumed  # found, not trained


def test_intervals_are_those_that_the_method_names() -> None:
    random = np.random.default_rng(0)
    ranks = [{way: random.integers(1, 30, 400).astype(float).tolist() for way in measures.DIRECTIONS} for _ in range(3)]
    values = measures.hits(ranks)
    assert values.shape == (3, 7, 400)
    found = dict(zip(measures.METRICS, measures.intervals(values), strict=True))
    at10 = found["image_to_text/R@10"]
    every = [np.mean(np.array(seed["image_to_text"]) <= 10) for seed in ranks]
    assert at10.by_seed == pytest.approx(every)
    assert at10.value == pytest.approx(np.mean(every))
    assert at10.seeds_half == pytest.approx(4.3027 * np.std(every, ddof=1) / np.sqrt(3), rel=1e-4)
    of_pairs = values[:, 4 - 1].mean(0)
    assert at10.pairs_half == pytest.approx(1.96 * of_pairs.std() / 20, rel=0.06)
    assert at10.high - at10.value == pytest.approx(np.hypot(at10.seeds_half, at10.pairs_half))
    assert measures.intervals(values[:1])[0].seeds_half == 0


def test_a_difference_is_told_only_outside_its_interval_and_never_from_itself() -> None:
    random = np.random.default_rng(1)
    near, far = (
        measures.hits([{way: random.integers(1, top, 300).astype(float) for way in measures.DIRECTIONS} for _ in "ab"])
        for top in (12, 60)
    )
    result = measures.compared({"far": far, "same": near, "near": near})
    assert result["better_than"] == ["far"]
    assert result["best_other"] == "same"
    same = result["differences"]["same"]["mean"]
    assert same["low"] == same["value"] == same["high"] == 0


def test_the_page_escapes_what_a_selection_says_and_has_no_script(tmp_path: Path) -> None:
    hits = measures.hits([{way: [1.0, 3.0, 20.0] for way in measures.DIRECTIONS}])
    hostile = "<script>alert(1)</script>"
    result = {
        "snapshot": 1, "samples_seen": 100, "seeds": 1, "queries": 3, "test": "t",
        "selections": {name: {"select": {"rules": {"x": hostile}}, "pairs": 5, "distinct": 4} for name in "ab"},
        **measures.compared({"a": hits, "b": hits}),
    }  # fmt: skip
    page = comparison.page(Dataset(str(tmp_path / hostile.replace("/", ""))), result)
    assert "<script" not in page
    assert page.count("<svg") == 2
    assert any("a" in line and "0.556" in line for line in measures.table(result))
