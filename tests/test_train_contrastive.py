"""The contrastive objective: it learns pairs, its loss is open_clip's, its export loads, and broken input is said."""

import io
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import open_clip
import photo_pairs
import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from pydantic import ValidationError
from safetensors.torch import load_file

from vlmdata import lite, recipe
from vlmdata.errors import DataError, InputError
from vlmdata.recipe import ContrastiveJob
from vlmdata.signals import openclip
from vlmdata.train import checkpoint, data, order
from vlmdata.train.contrastive import build, load
from vlmdata.train.locked import Features
from vlmdata.train.loop import train

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
CNN = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
WORDS = ["cat", "house", "river", "lamp", "stone", "cloud", "bread", "ship"]
WORDS += ["tree", "ring", "wolf", "desk", "coal", "leaf", "sand", "moon"]


def shard(path: Path, broken: bool = False) -> str:
    """Sixteen pictures of noise, each with a word of its own; `broken` cuts the first picture's bytes off."""
    with tarfile.open(path, "w") as out:
        for number, word in enumerate(WORDS):
            coarse = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
            picture = cv2.resize(coarse, (48, 48), interpolation=cv2.INTER_NEAREST)
            content = cv2.imencode(".jpg", picture)[1].tobytes()
            if broken and not number:
                content = content[:100]
            for extension, member in (("jpg", content), ("txt", f"a {word}".encode())):
                info = tarfile.TarInfo(f"{word}.{extension}")
                info.size = len(member)
                out.addfile(info, io.BytesIO(member))
    return str(path)


def job(**options: Any) -> ContrastiveJob:
    return ContrastiveJob(
        **{"kind": "train", "model": SMALL, "steps": 60, "batch": 16, "lr": 3e-3, "save_every": 1000, **options}
    )


def test_sixteen_pairs_are_learnt_by_heart(tmp_path: Path) -> None:
    shards = [shard(tmp_path / "a.tar")]
    final = train(job(), {"train": shards, "test": shards}, str(tmp_path / "out"))
    assert final["retrieval/image_to_text/R@1"] == final["retrieval/text_to_image/R@1"] == 1
    assert final["train/loss"] < 0.5 < np.log(16)


def test_64_real_pairs_are_learnt_by_heart(tmp_path: Path) -> None:
    shards = [photo_pairs.shard(tmp_path / "a.tar")]
    final = train(job(batch=64, steps=120, lr=5e-3), {"train": shards, "test": shards}, str(tmp_path / "out"))
    assert final["retrieval/n"] == 64
    assert min(final["retrieval/image_to_text/R@1"], final["retrieval/text_to_image/R@1"]) >= 0.95
    assert final["train/loss"] < 0.4 < np.log(64)


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_the_loss_is_that_of_open_clip(tmp_path: Path, loss: str) -> None:
    objective = build(job(loss=loss))
    batch = objective.samples(data.index([shard(tmp_path / "a.tar")], tmp_path), tmp_path).batch(np.arange(16), None)
    objective.model.eval()
    with torch.no_grad():
        found = objective.model(batch)["contrastive"]
        preprocess = open_clip.image_transform(32, is_train=False)
        mean, std = preprocess.transforms[-1].mean, preprocess.transforms[-1].std
        pixels = (batch["image"].permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(
            3, 1, 1
        )
        expected = {"clip": ClipLoss, "siglip": SigLipLoss}[loss]()(*objective.clip(pixels, batch["text"]))
    torch.testing.assert_close(found, expected)
    assert loss == "clip" or objective.clip.logit_bias.item() == -10


def test_siglip_learns_pairs_and_its_export_knows_the_bias(tmp_path: Path) -> None:
    shards = [shard(tmp_path / "a.tar")]
    model = SMALL | {"init_logit_bias": -2.7}  # 1 pair of 16 belongs together: log(1/15); -10 is for large batches
    options = {"model": model, "loss": "siglip", "steps": 80}
    final = train(job(**options), {"train": shards, "test": shards}, str(tmp_path / "out"))
    assert final["retrieval/image_to_text/R@1"] == final["retrieval/text_to_image/R@1"] == 1
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 'out' / 'model'}")
    trained = checkpoint.load(tmp_path / "out").clip
    assert loaded.logit_bias.item() == trained.logit_bias.item() != pytest.approx(-2.7)


@pytest.mark.parametrize("vision", [SMALL["vision_cfg"], CNN])
def test_a_locked_tower_stays_as_it_was_and_is_in_no_checkpoint(tmp_path: Path, vision: Any) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")]}
    model = SMALL | {"vision_cfg": vision}
    train(job(model=model, steps=2), shards, str(tmp_path / "first"))
    first = f"local-dir:{tmp_path / 'first' / 'model'}"
    train(job(model=first, lock=["image"], steps=3), shards, str(tmp_path / "second"))
    before, after = (load_file(tmp_path / run / "model" / "open_clip_model.safetensors") for run in ("first", "second"))
    same = {name for name in after if torch.equal(before[name], after[name])}
    assert same == {name for name in after if name.startswith("visual.")}
    kept = load_file(tmp_path / "second" / "checkpoints" / "3" / "model.safetensors")
    parameters = {f"clip.{name}" for name, _ in open_clip.create_model(first).visual.named_parameters(prefix="visual")}
    norms = {name for name in parameters if ".bn" in name or "downsample.1" in name}  # frozen, they count as statistics
    assert not kept.keys() & (parameters - norms)
    reloaded = checkpoint.load(tmp_path / "second").clip
    exported = open_clip.create_model(f"local-dir:{tmp_path / 'second' / 'model'}").eval()
    noise = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(reloaded.encode_image(noise), exported.encode_image(noise))


def test_the_last_groups_of_a_locked_tower_can_be_trained() -> None:
    clip = build(job(lock=["image", "text"], unlocked_groups=1)).clip
    trained = {name for name, p in clip.named_parameters() if p.requires_grad}
    assert trained == {"visual.proj", "text_projection", "logit_scale"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lock": ["image", "text"]}, "nothing is left to train"),
        ({"model": SMALL | {"vision_cfg": CNN}, "lock": ["image"], "unlocked_groups": 1}, "not lock this tower so"),
        ({"pretrained": "openai"}, "goes with an architecture's name"),
        ({"model": "local-dir:nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_locked_or_loaded_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(job(**options))


@pytest.mark.parametrize("option", [{"cached": True}, {"loss": "siglip"}, {"lock": ["text"]}, {"frames": 2}])
def test_heads_on_locked_towers_refuse_what_they_do_not_know(option: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="the model lite has no such option"):
        job(model="lite", **option)


def test_the_export_is_loaded_by_open_clip_with_the_same_vectors(tmp_path: Path) -> None:
    shards = [shard(tmp_path / "a.tar")]
    train(job(steps=3), {"train": shards}, str(tmp_path / "out"))
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 'out' / 'model'}").eval()
    objective = build(job())
    objective.model.load_state_dict(load_file(tmp_path / "out" / "checkpoints" / "3" / "model.safetensors"))
    text = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out' / 'model'}")(["a cat"])
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode_text(text), objective.clip.eval().encode_text(text))
    assert text.shape == (1, 8)


def test_a_picture_that_cannot_be_decoded_is_skipped_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = [shard(tmp_path / "a.tar", broken=True)]
    with caplog.at_level(logging.WARNING):
        final = train(job(steps=3), {"train": shards}, str(tmp_path / "out"))
    assert caplog.text.count("cat cannot be decoded and is skipped") == 1
    assert np.isfinite(final["train/loss"])


def test_a_picture_that_cannot_be_decoded_is_left_out_of_what_is_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")], "test": [shard(tmp_path / "b.tar", broken=True)]}
    final = train(job(steps=3, eval_every=1), shards, str(tmp_path / "out"))
    assert (final["retrieval/n"], final["test/broken"], final["train/broken"]) == (15, 1, 0)
    assert caplog.text.count("cat cannot be decoded") == 1
    trained = checkpoint.load(tmp_path / "out")
    both = {
        name: trained.vectors(trained.samples(data.index(paths, tmp_path), tmp_path), 4)
        for name, paths in shards.items()
    }
    for whole, rest in zip(both["train"], both["test"], strict=True):
        np.testing.assert_allclose(rest, whole[1:], atol=1e-6)


def test_a_split_of_which_nothing_can_be_decoded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.tar"
    with tarfile.open(path, "w") as out:
        for name in ("b.jpg", "b.txt"):
            out.addfile(tarfile.TarInfo(name))
    objective = build(job())
    with pytest.raises(DataError, match=r"b\.tar: no picture of 1 samples to be measured can be decoded"):
        objective.evaluate(objective.samples(data.index([str(path)], tmp_path), tmp_path), 4)


def test_a_configuration_comes_from_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps(SMALL))
    assert build(job(model=str(tmp_path / "mine.json"))).size == 32
    assert build(job(model="tiny")).size == 64


def test_heads_on_locked_towers_learn_and_are_loaded_as_lite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = lite.load().heads.class_vectors.numpy()
    monkeypatch.setattr(lite, "class_vectors", lambda: known)  # making them takes a minute
    shards = {"train": [shard(tmp_path / "a.tar")], "test": [shard(tmp_path / "b.tar")]}
    options = {"model": "lite", "steps": 30, "batch": 16, "heads": {"dropout": 0.1, "share": 1.0}}
    final = train(job(**options), shards, str(tmp_path / "out"))
    assert final["retrieval/image_to_text/R@1"] > 0.9
    assert 0 <= final["conse/retrieval/image_to_text/R@1"] < 0.7
    loaded = lite.load(str(tmp_path / "out" / "model"))
    index = data.index(shards["test"], tmp_path)
    pictures = [data.image(index, place) for place in range(16)]
    scores = (
        loaded.encode_images([p for p in pictures if p is not None])
        @ loaded.encode_texts([f"a {word}" for word in WORDS]).T
    )
    assert (scores.argmax(1) == np.arange(16)).mean() > 0.9


def test_a_batch_of_heads_holds_a_caption_once_and_draws_one_of_its_images(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as out:
        for number in range(6):
            picture = np.full((32, 32, 3), 40 * number, np.uint8)
            members = {"jpg": cv2.imencode(".jpg", picture)[1].tobytes(), "txt": f"caption {number // 3}".encode()}
            members["json"] = json.dumps({"context": "words beside it" if number < 3 else ""}).encode()
            for extension, member in members.items():
                info = tarfile.TarInfo(f"{number}.{extension}")
                info.size = len(member)
                out.addfile(info, io.BytesIO(member))
    samples = Features(data.index([str(path)], tmp_path), tmp_path / "features", context=0.5)
    assert samples.uids == ("0+1+2", "3+4+5")
    batches = [samples.batch(np.array([0, 1]), order.seeds(0, number, range(2))) for number in range(40)]
    assert len({batch["image"][0].numpy().tobytes() for batch in batches}) == 3
    assert len({batch["text"][0].numpy().tobytes() for batch in batches}) == 2
    assert len({batch["text"][1].numpy().tobytes() for batch in batches}) == 1
    again = samples.batch(np.array([0, 1]), order.seeds(0, 7, range(2)))
    assert (again["image"] == batches[7]["image"]).all()
    plain = samples.batch(np.array([0]), None)
    assert (plain["image"][0].numpy() == samples.images[0]).all()
    assert (plain["text"][0].numpy() == samples.texts[0]).all()


@pytest.mark.parametrize("model", ["ViT-Z-99", {"embed_dim": 32}, "missing.json"])
def test_a_model_that_open_clip_does_not_know_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match=r"ViT-Z-99|open_clip makes no model|missing.json"):
        build(job(model=model))


def test_a_model_whose_tokenizer_would_run_code_is_refused(tmp_path: Path) -> None:
    hostile = {**SMALL, "text_cfg": {**SMALL["text_cfg"], "tokenizer_kwargs": {"trust_remote_code": True}}}
    with pytest.raises(InputError, match="trust_remote_code"):
        build(job(model=hostile))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": hostile}))
    with pytest.raises(InputError, match="trust_remote_code"):
        load(tmp_path, 8)
    with pytest.raises(InputError, match="trust_remote_code"):
        openclip.config(recipe.ClipSignal(kind="clip", model=str(tmp_path)))
