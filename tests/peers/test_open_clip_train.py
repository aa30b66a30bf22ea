"""open_clip_train, in an environment of its own, trains on our shards through the ready recipe's command job."""

import json
from pathlib import Path

from made_dataset import pair, picture, publish

from vlmdata import catalog, recipe_file
from vlmdata.jobs import Attempt, run_job

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def test_open_clip_train_takes_two_steps_an_epoch_on_our_shards_and_resumes(tmp_path):
    folder = tmp_path / "with spaces; & signs"
    (folder / "model").mkdir(parents=True)
    (folder / "model/open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    changes = {
        "signals": ["text"], "dedup": [], "select": {}, "jobs": [],
        "shards": {"samples": 8, "splits": {"train": 0.8, "test": 0.2}},
    }  # fmt: skip
    dataset, manifest = publish(folder, [pair(f"a photo of house number {n}", picture(n)) for n in range(40)], changes)
    (ready,) = recipe_file.load("recipes/open_clip.yaml").jobs
    samples = manifest["splits"]["train"]
    given = {"--model": f"local-dir:{folder / 'model'}", "--batch-size": str(-(-samples // 2)), "--epochs": "1"}
    job = ready.model_copy(update={"run": changed(ready.run, given)})
    attempt = Attempt(job, dataset, manifest)
    run_job(job, dataset, manifest)
    log = attempt.log.read_text()
    assert log.count("Train Epoch: 0 [") == 2
    assert "(100%)" in log
    assert "Eval Epoch: 1" in log
    run = attempt.folder / "run"
    measured = json.loads((run / "checkpoints/results.jsonl").read_text().splitlines()[0])
    assert measured["num_samples"] == manifest["splits"]["test"]
    assert (run / "checkpoints/epoch_1.pt").exists()
    states = catalog.query(catalog.connect(dataset), "select state from jobs where seconds is not null").fetchall()
    assert states == [("done",)]

    run_job(job, dataset, manifest)  # as after a failure: the same command, in the same folder
    assert "resuming checkpoint" in Path(attempt.log).read_text()


def changed(run, values):
    """The arguments with other values behind some options."""
    return [values.get(before, argument) for before, argument in zip(["", *run], run, strict=False)]
