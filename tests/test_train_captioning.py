"""The captioning objective: its losses are open_clip's, pairs are learnt by heart, captions come out, exports load."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import CoCaLoss
from test_train_contrastive import SMALL as CLIP
from test_train_contrastive import WORDS, shard
from test_train_text_towers import tokenizer_in

from vlmdata.errors import InputError
from vlmdata.evaluate import run
from vlmdata.locate import looking
from vlmdata.recipe import CaptioningJob
from vlmdata.train import checkpoint, data, openclip
from vlmdata.train.captioning import build
from vlmdata.train.loop import train

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32, "layers": 1, "width": 64, "head_width": 16, "patch_size": 8,
        "attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2, "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1, "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    "custom_text": True,
}  # fmt: skip


def job(**options: Any) -> CaptioningJob:
    return CaptioningJob(
        **{"kind": "train", "objective": "captioning", "model": SMALL, "steps": 80, "batch": 16, "lr": 6e-3, **options}
    )


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, data.Index, dict[str, float]]:
    """A training on sixteen pairs, the pairs, and the final metrics."""
    folder = tmp_path_factory.mktemp("captioning")
    shards = [shard(folder / "a.tar")]
    final = train(job(), {"train": shards, "test": shards}, str(folder / "out"))
    return folder / "out", data.index(shards, folder), final


def test_sixteen_pictures_are_described_by_heart(learnt: tuple[Path, data.Index, dict[str, float]]) -> None:
    path, index, final = learnt
    pictures = [picture for place in range(16) if (picture := data.image(index, place)) is not None]
    assert checkpoint.load(path).caption(pictures) == [f"a {word}" for word in WORDS]
    assert final["caption/loss"] < 0.3
    assert final["caption/loss/shuffled"] > final["caption/loss"] + 1
    assert min(final["retrieval/image_to_text/R@1"], final["retrieval/text_to_image/R@1"]) > 0.9


def test_a_search_by_beams_finds_no_less_likely_a_text_than_one_by_single_tokens(
    learnt: tuple[Path, data.Index, dict[str, float]],
) -> None:
    objective = checkpoint.load(learnt[0])
    picture = np.full((40, 40, 3), 128, np.uint8)  # of none that it knows

    def mean(caption: str) -> float:
        """The mean log probability of a token, end included."""
        pixels = openclip.pixels(objective.clip, torch.from_numpy(data.square(picture, 32))[None])
        text = objective.tokenizer([caption])
        with torch.no_grad():
            found = objective.clip(pixels, text)
        return -float(F.cross_entropy(found["logits"][0], found["labels"][0], ignore_index=0))

    captions = []
    for beams in (1, 6):
        objective.job = job(beams=beams)
        captions += objective.caption([picture])
    assert all(captions)
    assert mean(captions[1]) >= mean(captions[0]) - 1e-5


def test_the_losses_are_those_of_open_clip(tmp_path: Path) -> None:
    objective = build(job())
    batch = objective.samples(data.index([shard(tmp_path / "a.tar")], tmp_path), tmp_path).batch(np.arange(16), None)
    with torch.no_grad():
        found = objective.model.train()(batch)
        measured = objective.model.eval()(batch)
        contrastive, caption = CoCaLoss(2.0, 1.0)(
            **objective.clip(openclip.pixels(objective.clip, batch["image"]), batch["text"])
        )
    torch.testing.assert_close(found["contrastive"], contrastive)
    torch.testing.assert_close(2 * found["caption"], caption)
    assert measured.keys() == {"caption"}, "one process measures alone and gathers nothing"
    torch.testing.assert_close(measured["caption"], found["caption"])
    assert objective.weights == {"contrastive": 1.0, "caption": 2.0}
    assert objective.terms(batch)["caption"] == 16 * 3  # a, the word, the end


def test_the_export_is_loaded_by_open_clip(learnt: tuple[Path, data.Index, dict[str, float]]) -> None:
    loaded = open_clip.create_model(f"local-dir:{learnt[0] / 'model'}").eval()
    trained = checkpoint.load(learnt[0]).clip
    noise, text = torch.randn(2, 3, 32, 32), open_clip.get_tokenizer("ViT-B-32")(["a cat", "a ship"])[:, :8]
    with torch.no_grad():
        one, other = loaded(noise, text), trained(noise, text)
    for name in ("image_features", "text_features", "logits"):
        torch.testing.assert_close(one[name], other[name])


def test_its_checkpoint_locates_too(learnt: tuple[Path, data.Index, dict[str, float]]) -> None:
    heat, score = looking(checkpoint.load(learnt[0]), "a cat")(np.zeros((30, 40, 3), np.uint8))
    assert heat.shape == (30, 40)
    assert abs(score) <= 1.0001


def test_a_new_model_is_drawn_by_the_seed() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build(job()).clip.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert 0.9 < states[0]["text_decoder.text_projection"].std() * 32**0.5 < 1.1


def test_the_default_model_is_a_coca_and_others_are_refused() -> None:
    assert build(job(model="tiny")).size == 64
    with pytest.raises(InputError, match="no decoder of captions"):
        build(job(model=CLIP))


def test_a_tokenizer_of_transformers_is_refused(tmp_path: Path) -> None:
    text = SMALL["text_cfg"] | {"hf_tokenizer_name": tokenizer_in(tmp_path)}
    with pytest.raises(InputError, match="hf_tokenizer_name: captions are learnt with open_clip's tokenizer"):
        build(job(model=SMALL | {"text_cfg": text}))


def test_what_cannot_be_decoded_is_left_out_of_what_is_measured(tmp_path: Path) -> None:
    objective = build(job())
    samples = objective.samples(data.index([shard(tmp_path / "a.tar", broken=True)], tmp_path), tmp_path)
    assert objective.evaluate(samples, 4)["retrieval/n"] == 15
    assert samples.broken == {"cat"}


def test_a_checkpoint_is_measured_by_its_contrastive_half(
    learnt: tuple[Path, data.Index, dict[str, float]], tmp_path: Path
) -> None:
    path, index, final = learnt
    found = run.evaluate(str(path), index.tars[0], run.options(tasks=("retrieval",), resamples=0, batch=5))["retrieval"]
    for direction in ("image_to_text", "text_to_image"):
        assert found[direction]["R@1"] == final[f"retrieval/{direction}/R@1"]
    encoder = checkpoint.load(path).encoder(3)
    vectors = encoder.encode_texts(["a cat", "a house"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert (vectors == np.concatenate([encoder.encode_texts([text]) for text in ("a cat", "a house")])).all()
