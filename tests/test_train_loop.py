"""The loop: exact resume, checkpoints, what it refuses, what it reports."""

import io
import json
import logging
import math
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file

from vlmdata.errors import DataError, InputError
from vlmdata.recipe import ContrastiveJob
from vlmdata.train import checkpoint, data
from vlmdata.train.contrastive import _Paired as ContrastiveModel
from vlmdata.train.log import Log
from vlmdata.train.loop import build, learning_rate, train

# Dropped patches and random crops draw random numbers, so a wrong seed shows.
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "patch_dropout": 0.5},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255), "black": (0, 0, 0)}
POISON = int(open_clip.get_tokenizer("ViT-B-32")(["poison"])[0, 1])
COLOURS |= {"yellow": (255, 255, 0), "pink": (255, 150, 200), "grey": (128, 128, 128)}


def shard(path: Path, prefix: str = "u") -> str:
    """Eight pictures, a coloured half beside a grey one, with the colour's name."""
    with tarfile.open(path, "w") as out:
        for name, colour in COLOURS.items():
            picture = np.full((40, 40, 3), 90, np.uint8)
            picture[:, 8:32] = colour[::-1]
            for extension, content in (("jpg", cv2.imencode(".jpg", picture)[1].tobytes()), ("txt", name.encode())):
                info = tarfile.TarInfo(f"{prefix}{name}.{extension}")
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return str(path)


def job(**options: Any) -> ContrastiveJob:
    return ContrastiveJob(
        **{
            "kind": "train",
            "model": MODEL,
            "steps": 6,
            "batch": 4,
            "warmup": 2,
            "save_every": 2,
            "crop": 0.5,
            **options,
        }
    )


def weights(out: Path, step: int = 6) -> dict[str, np.ndarray]:
    return load_file(out / "checkpoints" / str(step) / "model.safetensors")


def losses(out: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def test_the_rate_stays_where_the_schedule_says_so() -> None:
    rates = [learning_rate(job(steps=20, warmup=4, lr=1.0, schedule="constant"), step) for step in range(20)]
    assert rates == [0.25, 0.5, 0.75, 1.0] + [1.0] * 16


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(job(steps=100, warmup=10, lr=1.0), step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert 0 < rates[99] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_a_run_that_was_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")], "test": [shard(tmp_path / "b.tar", "v")]}
    whole = train(job(), shards, str(tmp_path / "whole"))

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job(), shards, str(tmp_path / "killed"), on_step=kill)
    assert sorted(p.name for p in (tmp_path / "killed" / "checkpoints").iterdir()) == ["2", "4"]
    seen: list[int] = []
    resumed = train(job(), shards, str(tmp_path / "killed"), resume=True, on_step=lambda step, _: seen.append(step))
    assert seen == [5, 6]
    assert resumed == whole
    for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
        one, other = (tmp_path / run / "checkpoints" / "6" / file for run in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes(), file
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert [step for step, _ in losses(tmp_path / "killed")] == [1, 2, 3, 4, 5, 6]
    # Resuming what is done changes nothing and says the same.
    assert train(job(), shards, str(tmp_path / "killed"), resume=True) == whole


def test_a_run_with_averaged_weights_and_a_best_checkpoint_resumes_to_the_same_bits(tmp_path: Path) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")], "test": [shard(tmp_path / "b.tar", "v")]}
    options = {"ema": 0.5, "keep": 1, "eval_every": 1, "best": "-retrieval/image_to_text/median_rank"}
    whole = train(job(**options), shards, str(tmp_path / "whole"))

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job(**options), shards, str(tmp_path / "killed"), on_step=kill)
    assert train(job(**options), shards, str(tmp_path / "killed"), resume=True) == whole
    one, other = (sorted((tmp_path / run / "checkpoints").rglob("*.*")) for run in ("whole", "killed"))
    assert [path.name for path in one] == [path.name for path in other]
    for left, right in zip(one, other, strict=True):
        assert left.read_bytes() == right.read_bytes(), left
    assert (tmp_path / "whole" / "best.json").read_text() == (tmp_path / "killed" / "best.json").read_text()
    best = json.loads((tmp_path / "whole" / "best.json").read_text())["step"]
    assert {int(p.name) for p in (tmp_path / "whole" / "checkpoints").iterdir()} == {best, 6}


def test_the_average_is_that_of_the_weights_after_each_step(tmp_path: Path) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")]}
    plain = job(steps=3, save_every=1, keep=3)
    train(plain, shards, str(tmp_path / "plain"))
    train(plain.model_copy(update={"ema": 0.75}), shards, str(tmp_path / "averaged"))
    objective = build(plain)
    torch.manual_seed(plain.seed)
    average = {k: v.detach().numpy().copy() for k, v in build(plain).model.named_parameters()}
    for step in (1, 2, 3):
        after = weights(tmp_path / "plain", step)
        average = {k: 0.75 * v + 0.25 * after[k] for k, v in average.items()}
    kept = load_file(tmp_path / "averaged" / "checkpoints" / "3" / "average.safetensors")
    for name, value in average.items():
        np.testing.assert_allclose(kept[name], value, atol=1e-6)
    assert all((weights(tmp_path / "averaged", 3)[k] == v).all() for k, v in weights(tmp_path / "plain", 3).items())
    loaded = checkpoint.load(tmp_path / "averaged")
    assert all((p.detach().numpy() == kept[k]).all() for k, p in loaded.model.named_parameters())
    assert type(loaded) is type(objective)


def test_what_is_trained_on_can_be_mixed_and_parquet(tmp_path: Path) -> None:
    own, other = shard(tmp_path / "train-0.tar"), shard(tmp_path / "other.tar", "o")
    index = data.index([other], tmp_path)
    rows = [
        {"uid": f"{n:032x}", "jpg": data.read(other, *map(int, index.image[n])), "txt": data.caption(index, n)}
        for n in range(8)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "other.parquet")
    finals = {}
    for name in ("other.tar", "other.parquet"):
        mixed = job(mix=[{"data": str(tmp_path / name), "weight": 1}], steps=3)
        finals[name] = train(mixed, {"train": [own]}, str(tmp_path / f"out-{name}"))
    assert finals["other.tar"] == finals["other.parquet"]
    assert finals["other.tar"]["train/samples"] == 16
    shard(tmp_path / "test-0.tar", "t")
    with pytest.raises(InputError, match=r"test-0\.tar has no shards of the split 'train'; it has test"):
        train(job(mix=[{"data": str(tmp_path / "test-0.tar")}]), {"train": [own]}, str(tmp_path / "refused"))
    with pytest.raises(InputError, match="neither a dataset"):
        train(job(mix=[{"data": str(tmp_path / "nothing")}]), {"train": [own]}, str(tmp_path / "refused"))


def test_the_seed_matters_and_the_number_of_workers_does_not(tmp_path: Path) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")]}
    for name, options in {"one": {}, "two": {"workers": 3}, "three": {"seed": 1}}.items():
        train(job(steps=3, **options), shards, str(tmp_path / name))
    one, two, three = (weights(tmp_path / name, 3) for name in ("one", "two", "three"))
    assert all((one[key] == two[key]).all() for key in one)
    assert any((one[key] != three[key]).any() for key in one)


def test_checkpoints_hold_nothing_that_is_unpickled_and_the_last_ones_stay(tmp_path: Path) -> None:
    train(job(keep=2), {"train": [shard(tmp_path / "a.tar")]}, str(tmp_path / "out"))
    written = [p for p in (tmp_path / "out" / "checkpoints").rglob("*") if p.is_file()]
    assert {p.suffix for p in written} == {".safetensors", ".json"}
    assert sorted(p.name for p in (tmp_path / "out" / "checkpoints").iterdir()) == ["4", "6"]


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")]}
    train(job(steps=2), shards, str(tmp_path / "out"))
    with pytest.raises(InputError, match="--resume"):
        train(job(steps=2), shards, str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"lr: 0\.001"):
        train(job(steps=2, lr=0.5), shards, str(tmp_path / "out"), resume=True)
    with pytest.raises(InputError, match="other samples"):
        train(job(steps=2), {"train": [shard(tmp_path / "b.tar", "v")]}, str(tmp_path / "out"), resume=True)


def test_steps_without_a_finite_loss_are_skipped_and_named_where_that_is_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")]}
    caption = data.caption

    def poisoned(index: data.Index, place: int) -> str:
        return "poison" if index.uids[place] == "ured" else caption(index, place)

    forward = ContrastiveModel.forward

    def infinite(self: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        losses = forward(self, batch)
        bad = (batch["text"] == POISON).any()
        return {name: loss * torch.where(bad, torch.inf, 1.0) for name, loss in losses.items()}

    monkeypatch.setattr(data, "caption", poisoned)
    monkeypatch.setattr(ContrastiveModel, "forward", infinite)
    with caplog.at_level(logging.WARNING):
        final = train(job(not_finite="skip", steps=7), shards, str(tmp_path / "out"))
    skipped = [record.getMessage() for record in caplog.records if "The step is skipped" in record.getMessage()]
    assert len(skipped) in (3, 4), "half of the batches of an epoch of two"
    assert all("ured" in line for line in skipped)
    assert all(np.isfinite(value).all() for value in weights(tmp_path / "out", 7).values())
    assert final["train/samples"] == 8
    everything = job(not_finite="skip", batch=8, steps=30)
    with pytest.raises(DataError, match="10 steps in a row"):
        train(everything, shards, str(tmp_path / "none"))


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"loss of step .* is nan.*ugreen"):
        train(
            job(lr=1e30, clip_norm=1e30, warmup=0, batch=8), {"train": [shard(tmp_path / "a.tar")]}, str(tmp_path / "o")
        )


def test_a_split_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'train'; there are test"):
        train(job(), {"test": [shard(tmp_path / "a.tar")]}, str(tmp_path / "out"))


def test_progress_and_metrics_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")], "test": [shard(tmp_path / "b.tar", "v")]}
    with caplog.at_level(logging.INFO):
        final = train(job(steps=4, accumulate=2, eval_every=2), shards, str(tmp_path / "out"))
    said = [r for r in caplog.records if r.name == "vlmdata.progress"]
    assert (said[-1].stage, said[-1].done, said[-1].total) == ("train", 4, 4)  # type: ignore[attr-defined]
    assert "waiting for data" in caplog.text
    assert final["retrieval/image_to_text/R@1/chance"] == 1 / 8
    assert 0 <= final["retrieval/text_to_image/R@5"] <= 1
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "retrieval/n" in row] == [2, 4]
    assert {"loss", "lr", "grad_norm", "samples_per_second", "data_wait"} <= rows[0].keys()
    assert list((tmp_path / "out").glob("events.out.tfevents.*"))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["steps"] == 4


def test_a_step_whose_gradient_is_not_finite_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Root(torch.autograd.Function):
        """1, with an infinite gradient."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return torch.ones_like(x)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient * torch.inf

    forward = ContrastiveModel.forward

    def steep(self: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        losses = forward(self, batch)
        return {name: loss * Root.apply(self.clip.logit_scale) for name, loss in losses.items()}

    monkeypatch.setattr(ContrastiveModel, "forward", steep)
    shards = {"train": [shard(tmp_path / "a.tar")]}
    with pytest.raises(DataError, match=r"gradient's norm of step 1 is (inf|nan)\. The batch: u"):
        train(job(), shards, str(tmp_path / "stopped"))
    train(job(steps=2, not_finite="skip"), shards, str(tmp_path / "skipped"))
    torch.manual_seed(0)
    begun = build(job()).model.state_dict()
    assert all((value == begun[name].numpy()).all() for name, value in weights(tmp_path / "skipped", 2).items())


def test_a_finished_run_is_resumed_without_another_word(tmp_path: Path) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")], "test": [shard(tmp_path / "b.tar", "v")]}
    final = train(job(steps=2), shards, str(tmp_path / "out"))
    written = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    assert train(job(steps=2), shards, str(tmp_path / "out"), resume=True) == final
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == written
    *rest, last = written.splitlines(keepends=True)
    (tmp_path / "out" / "metrics.jsonl").write_bytes(b"".join(rest))  # killed before the end was written
    train(job(steps=2), shards, str(tmp_path / "out"), resume=True)
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == b"".join([*rest, last])


def test_the_last_measure_counts_for_the_best_checkpoint(tmp_path: Path) -> None:
    colours = {"train": [shard(tmp_path / "a.tar")], "test": [shard(tmp_path / "b.tar", "v")]}
    options = {"lr": 3e-3, "crop": 1.0, "batch": 8, "keep": 1, "eval_every": 1, "steps": 24}
    final = train(job(**options, best="-retrieval/image_to_text/median_rank"), colours, str(tmp_path / "out"))
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    measured = {row["step"]: row[name] for row in rows if (name := "retrieval/image_to_text/median_rank") in row}
    assert final["retrieval/image_to_text/median_rank"] == measured[24]
    best = min(measured, key=lambda step: (measured[step], step))
    noted = json.loads((tmp_path / "out" / "best.json").read_text())
    assert (noted["step"], noted["value"]) == (best, measured[best])
    assert {int(p.name) for p in (tmp_path / "out" / "checkpoints").iterdir()} == {best, 24}
    whole = train(
        job(steps=3, best="retrieval/n", keep=1), colours, str(tmp_path / "once")
    )  # measured at the end alone
    noted = json.loads((tmp_path / "once" / "best.json").read_text())
    assert (noted["step"], noted["value"]) == (3, whole["retrieval/n"])


def test_what_is_not_finite_is_never_the_best_and_null_in_the_log(tmp_path: Path) -> None:
    best = checkpoint.Best(tmp_path, "-loss", 0)
    steps = [(1, math.nan), (2, math.inf), (3, 2.0), (4, math.nan), (5, 1.0)]
    assert [step for step, value in steps if best.improved(step, {"loss": value})] == [3, 5]
    journal = Log(tmp_path, 0)
    journal.write(0, {"n": math.nan, "gap": 0.5}, 1)
    journal.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "n": None, "gap": 0.5}
    again = Log(tmp_path, 1)
    again.close()
    assert math.isnan(again.before["n"])


@pytest.mark.parametrize("eval_every", [1, 100])
def test_a_best_metric_that_does_not_exist_is_refused_before_the_training_is_done(
    tmp_path: Path, eval_every: int
) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")], "test": [shard(tmp_path / "b.tar", "v")]}
    taken: list[int] = []
    with pytest.raises(InputError, match=r"no metric 'retrieval/R@1'; there are .*retrieval/image_to_text/R@1"):
        train(
            job(best="-retrieval/R@1", eval_every=eval_every),
            shards,
            str(tmp_path / "out"),
            on_step=lambda step, metrics: taken.append(step),
        )
    assert taken == []
    with pytest.raises(InputError, match="no samples of the split 'test'"):
        train(job(best="retrieval/n"), {"train": shards["train"]}, str(tmp_path / "none"))
