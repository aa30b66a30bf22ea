"""The masked objective: its losses are transformers' own, it learns pairs by heart, its batches and masks are functions
of the seeds, a resumed run equals one without a break, and its baseline is right."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import photo_pairs
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file
from transformers import AutoTokenizer, FlavaForPreTraining, FlavaModel

from vlmdata.errors import DataError, InputError
from vlmdata.evaluate import run
from vlmdata.evaluate.masked import masked_accuracy
from vlmdata.recipe import MaskedJob
from vlmdata.train import checkpoint, codebook, data, mixture, order
from vlmdata.train.loop import build, train
from vlmdata.train.masking import IGNORED, masked_patches, masked_tokens

TOWER = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
TOWER |= {"initializer_range": 0.1}
MODEL = {f"{part}_config": TOWER for part in ("text", "image", "multimodal")}
MODEL |= {"hidden_size": 64, "projection_dim": 32, "initializer_range": 0.1}
NO_CONTRAST = {"contrastive": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all.tar with 64 pairs, some.tar with 16, and a tokenizer."""
    made = tmp_path_factory.mktemp("pairs")
    photo_pairs.shard(made / "all.tar")
    photo_pairs.shard(made / "some.tar", 16)
    photo_pairs.tokenizer(made / "tokenizer")
    return made


def job(folder: Path, **options: Any) -> MaskedJob:
    """Small, without dropout; with pixels as targets, which need no tower."""
    small = {"model": MODEL, "tokenizer": str(folder / "tokenizer"), "image_size": 28, "patch_size": 4}
    run = {"steps": 2, "batch": 8, "lr": 2e-3, "warmup": 0, "save_every": 1000, "eval_every": 1000}
    return MaskedJob(**{"kind": "train", "objective": "masked", "targets": "pixels", **small, **run, **options})


def samples_of(made: MaskedJob, shard: Path, out: Path) -> tuple[Any, mixture.Mixed]:
    objective: Any = build(made)
    return objective, objective.samples(data.index([str(shard)], out), out)


def test_64_pairs_are_learnt_by_heart(folder: Path, tmp_path: Path) -> None:
    shards = [str(folder / "all.tar")]
    options = {"targets": "kmeans", "codes": 32, "steps": 150, "batch": 16, "warmup": 20, "image_share": 0.3}
    final = train(job(folder, **options), {"train": shards, "test": shards}, str(tmp_path))
    for name in ("text", "text_given_image", "image", "image_given_text"):
        assert 0.05 < final[f"masked/{name}/accuracy/majority"] < 0.3
        assert final[f"masked/{name}/accuracy"] > final[f"masked/{name}/accuracy/majority"] + 0.15, name
    assert final["masked/text_given_image/accuracy"] > 0.5
    assert final["retrieval/text_to_image/R@10"] > 0.7 > 4 * final["retrieval/text_to_image/R@10/chance"]


def test_losses_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    made = job(
        folder, targets="kmeans", codes=16, mixture={"pairs": 5, "mismatched": 3, "images": 4, "texts": 4}, batch=16
    )
    objective, samples = samples_of(made, folder / "some.tar", tmp_path)
    batch = samples.batch(np.arange(16), order.seeds(0, 0, range(16)))
    model = objective.model.train()
    found = model(batch)
    net, ids = model.net, batch["pair_text"]
    pairs = net(
        input_ids=ids,
        input_ids_masked=batch["pair_masked"],
        attention_mask=(ids != 0).long(),
        pixel_values=model.normalised(batch["pair_image"]),
        bool_masked_pos=batch["pair_hidden"],
        mim_labels=batch["pair_codes"].clone(),
        mlm_labels=batch["pair_text_labels"].clone(),
        itm_labels=batch["match"],
    ).loss_info
    images = net(
        pixel_values=model.normalised(batch["image"]),
        bool_masked_pos=batch["hidden"],
        mim_labels=batch["codes"].clone(),
    ).loss_info
    texts = net(
        input_ids=batch["text"],
        input_ids_masked=batch["text"],
        attention_mask=(batch["text"] != 0).long(),
        mlm_labels=batch["text_labels"].clone(),
    ).loss_info
    expected = {"mlm": texts.mlm, "mim": images.mim, "mmm_text": pairs.mmm_text, "mmm_image": pairs.mmm_image}
    expected |= {"itm": pairs.itm, "contrastive": pairs.global_contrastive}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


def test_pixels_are_compared_patch_by_patch(folder: Path, tmp_path: Path) -> None:
    objective, samples = samples_of(job(folder), folder / "some.tar", tmp_path)
    image = samples.batch(np.arange(8), order.seeds(0, 0, range(8)))["image"]
    targets = objective.model.targets(image)
    patch = objective.model.normalised(image)[0, :, 4:8, 8:12].reshape(-1)  # row 1, column 2 of 7 x 7
    torch.testing.assert_close(targets[0, 7 + 2], (patch - patch.mean()) / (patch.var() + 1e-6).sqrt())


def test_a_batch_holds_every_kind_in_the_stated_share(folder: Path, tmp_path: Path) -> None:
    shares = {"pairs": 3, "mismatched": 3, "images": 1, "texts": 1}
    made = job(folder, batch=16, mixture=shares)
    objective, samples = samples_of(made, folder / "some.tar", tmp_path)
    captions = {samples.ids(caption).tobytes(): uid for uid, _, caption in photo_pairs.pairs()}
    for number in range(5):
        places = order.positions(16, 16, 0, number)
        batch = samples.batch(places, order.seeds(0, number, range(16)))
        assert batch["match"].tolist() == 2 * [1, 1, 1, 0, 0, 0]
        assert len(batch["image"]) == len(batch["text"]) == 2
        uids = [captions[ids[ids != 0].numpy().tobytes()] for ids in batch["pair_text"]]
        own = [samples.uids[place] for row, place in enumerate(places) if row % 8 < 6]
        assert [uid == mine for uid, mine in zip(uids, own, strict=True)] == batch["match"].bool().tolist()
        terms = objective.terms(batch)
        assert (terms["itm"], terms["contrastive"]) == (12, 6)
        assert terms["mim"] == 2 * 20
        assert terms["mmm_image"] == 6 * 20
        assert terms["mmm_text"] == (batch["pair_text_labels"][batch["match"].bool()] != IGNORED).sum() >= 6


def test_masks_are_functions_of_the_seeds(folder: Path, tmp_path: Path) -> None:
    _, samples = samples_of(job(folder), folder / "some.tar", tmp_path)
    places, seeds = np.arange(8), order.seeds(0, 3, range(8))
    one, again, other = (samples.batch(places, s) for s in (seeds, seeds, order.seeds(0, 4, range(8))))
    assert all((one[name] == again[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in ("pair_hidden", "hidden"))
    halves = [samples.batch(places[part], seeds[part]) for part in (slice(0, 4), slice(4, 8))]
    assert (torch.cat([half["pair_hidden"] for half in halves]) == one["pair_hidden"]).all()


@pytest.mark.parametrize("blocks", [True, False])
def test_the_stated_share_of_patches_is_hidden(blocks: bool) -> None:
    masks = np.stack([masked_patches(np.random.default_rng(seed), 7, 0.4, blocks) for seed in range(300)])
    assert (masks.sum(1) == 20).all()
    assert masks.mean(0).min() > 0.05  # every patch has its turn; blocks seldom reach the corners
    side_by_side = (masks.reshape(-1, 7, 7)[:, :, 1:] == masks.reshape(-1, 7, 7)[:, :, :-1]).mean()
    assert side_by_side > 0.6 if blocks else 0.45 < side_by_side < 0.55


def test_tokens_are_hidden_as_bert_hides_them() -> None:
    ids = np.concatenate([[2], np.full(8, 7), [3]])
    ordinary = (ids != 2) & (ids != 3)
    rows = [masked_tokens(np.random.default_rng(seed), ids, ordinary, 0.15, 4, 1000) for seed in range(4000)]
    seen, labels = (np.stack(part) for part in zip(*rows, strict=True))
    chosen = labels != IGNORED
    assert (labels[chosen] == 7).all()
    assert not chosen[:, ~ordinary].any()
    assert chosen.any(1).all()  # at least one
    assert (seen[~chosen] == np.broadcast_to(ids, seen.shape)[~chosen]).all()
    expected = (8 * 0.15 + 0.85**8) / 8  # the one that is always chosen included
    assert chosen[:, ordinary].mean() == pytest.approx(expected, abs=0.01)
    assert (seen[chosen] == 4).mean() == pytest.approx(0.8, abs=0.02)
    assert (seen[chosen] == 7).mean() == pytest.approx(0.1, abs=0.02)
    blank, of_blank = masked_tokens(np.random.default_rng(0), np.array([2, 3]), np.zeros(2, bool), 0.15, 4, 1000)
    assert of_blank.tolist() == [IGNORED, 3]
    assert blank[0] == 2


def test_the_majority_is_the_best_constant_answer() -> None:
    true, predicted = np.array([5, 5, 5, 2, 9]), np.array([5, 2, 5, 2, 2])
    assert masked_accuracy("x", predicted, true) == {"x/accuracy": 0.6, "x/accuracy/majority": 0.6, "x/n": 5}
    assert masked_accuracy("x", true[:0], true[:0]) == {}


def test_what_no_loss_reaches_is_locked_and_all_else_gets_a_gradient(folder: Path, tmp_path: Path) -> None:
    for weights in ({}, NO_CONTRAST, {"mlm": 0, "mim": 0, "contrastive": 0}, {"itm": 0, "mmm_text": 0, "mmm_image": 0}):
        objective, samples = samples_of(job(folder, weights=weights), folder / "some.tar", tmp_path)
        losses = objective.model(samples.batch(np.arange(8), order.seeds(0, 0, range(8))))
        assert losses.keys() == objective.weights.keys() == objective.terms(samples.batch(np.arange(8), None)).keys()
        sum(losses.values()).backward()
        for name, parameter in objective.model.named_parameters():
            assert parameter.requires_grad == (parameter.grad is not None), name
        assert not objective.model.net.flava.text_model.pooler.dense.weight.requires_grad


def test_small_batches_add_up_to_a_large_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = order.seeds

    def by_place(seed: int, number: int, slots: range) -> np.ndarray:
        start = number * len(slots)
        return real(seed, start // 8, range(start % 8, start % 8 + len(slots)))

    monkeypatch.setattr(order, "seeds", by_place)  # a sample has the mask that it has in the large batch
    shards, finals = {"train": [str(folder / "some.tar")]}, []
    for name, options in {"large": {"batch": 8}, "small": {"batch": 4, "accumulate": 2}}.items():
        finals.append(train(job(folder, weights=NO_CONTRAST, **options), shards, str(tmp_path / name)))
    assert finals[0]["train/loss"] == pytest.approx(finals[1]["train/loss"], rel=1e-6)
    large, small = (load_file(tmp_path / n / "checkpoints" / "2" / "model.safetensors") for n in ("large", "small"))
    for name, value in large.items():
        np.testing.assert_allclose(small[name], value, atol=1e-5, err_msg=name)


def test_a_run_that_was_killed_ends_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    tower = TOWER | {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
    model = MODEL | {f"{part}_config": tower for part in ("text", "image", "multimodal")}
    made = job(folder, model=model, targets="kmeans", codes=16, steps=4, save_every=2, batch=8)
    shards = {"train": [str(folder / "some.tar")], "test": [str(folder / "some.tar")]}
    whole = train(made, shards, str(tmp_path / "whole"))

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(made, shards, str(tmp_path / "killed"), on_step=kill)
    assert train(made, shards, str(tmp_path / "killed"), resume=True) == whole
    one, other = (tmp_path / run / "checkpoints" / "4" / "model.safetensors" for run in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
    loaded: Any = checkpoint.load(
        tmp_path / "whole"
    )  # with the codes' centres: it measures without learning them again
    measured = loaded.evaluate(loaded.samples(data.index(shards["test"], tmp_path), tmp_path / "elsewhere"), 8)
    assert measured == {name: value for name, value in whole.items() if not name.startswith(("train/", "test/"))}
    assert not list((tmp_path / "elsewhere" / "features").glob("centres*"))


def test_a_resumption_takes_the_codes_of_its_checkpoint_and_learns_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {"train": [str(folder / "some.tar")]}
    made = job(folder, targets="kmeans", codes=16, image_size=112, patch_size=16, steps=2, save_every=1)

    def kill(step: int, metrics: dict[str, float]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(made, shards, str(tmp_path / "killed"), on_step=kill)
    shutil.rmtree(tmp_path / "killed" / "features")

    def learn(*_: Any) -> np.ndarray:
        raise AssertionError("these codes are known")

    monkeypatch.setattr(codebook, "learn", learn)
    train(made, shards, str(tmp_path / "killed"), resume=True)
    one, other = (tmp_path / "killed" / "checkpoints" / step / "model.safetensors" for step in ("1", "2"))
    np.testing.assert_array_equal(load_file(one)["centres"], load_file(other)["centres"])


def test_the_export_is_loaded_by_transformers_with_the_same_states(folder: Path, tmp_path: Path) -> None:
    train(job(folder), {"train": [str(folder / "some.tar")]}, str(tmp_path))
    net, info = FlavaForPreTraining.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    loaded: Any = checkpoint.load(tmp_path)
    batch = loaded.samples(data.index([str(folder / "some.tar")], tmp_path), tmp_path).whole([0, 1], 0, 0)
    pixels = loaded.model.normalised(batch["image"])
    with torch.no_grad():
        states = loaded.model.joint_states(batch["image"], batch["text"])[0]
        flava = FlavaModel.from_pretrained(tmp_path / "model").eval()
        out = flava(input_ids=batch["text"], pixel_values=pixels, attention_mask=(batch["text"] != 0).long())
        torch.testing.assert_close(out.multimodal_embeddings, states)
        torch.testing.assert_close(net.eval().itm_head(states), loaded.model.net.itm_head(states))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("upper left of some grass")["input_ids"] == samples_ids(loaded, "upper left of some grass")


def samples_ids(objective: Any, text: str) -> list[int]:
    return list(objective.tokenizer.backend_tokenizer.encode(text).ids)


def test_a_pretrained_folder_is_gone_on_with(folder: Path, tmp_path: Path) -> None:
    train(job(folder), {"train": [str(folder / "some.tar")]}, str(tmp_path / "first"))
    before = load_file(tmp_path / "first" / "model" / "model.safetensors")
    given = {"model": str(tmp_path / "first" / "model")}
    state = dict(build(job(folder, **given)).model.net.state_dict())
    for name, value in before.items():
        np.testing.assert_array_equal(state[name].numpy(), value, err_msg=name)
    with pytest.raises(InputError, match="has 28 and 4"):
        build(job(folder, **given, image_size=112, patch_size=16))


def test_the_first_gradients_are_of_a_common_length(folder: Path, tmp_path: Path) -> None:
    train(job(folder), {"train": [str(folder / "some.tar")]}, str(tmp_path))
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["grad_norm"] < 100


@pytest.mark.parametrize("targets", ["kmeans", "pixels"])
def test_a_picture_that_cannot_be_decoded_is_skipped_and_counted(folder: Path, tmp_path: Path, targets: str) -> None:
    shards = [photo_pairs.shard(tmp_path / "a.tar", 16, broken="brick1")]
    final = train(job(folder, targets=targets, codes=16), {"train": shards, "test": shards}, str(tmp_path / "out"))
    assert final["test/broken"] == 1
    assert final["train/broken"] == 1 or targets == "pixels"  # which are not read before they are drawn
    assert final["retrieval/n"] == 15
    assert np.isfinite(final["train/loss"])


def test_texts_and_images_alone_come_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "grass"}\n\n{"text": "gravel"}\n')
    made = job(folder, texts=str(tmp_path / "texts.jsonl"), images=str(folder / "all.tar"))
    objective, samples = samples_of(made, folder / "some.tar", tmp_path)
    assert samples.texts == ["grass", "gravel"]
    assert samples.images is not None
    assert len(samples.images.shards) == 64
    seen = [samples.batch(np.arange(8), order.seeds(0, number, range(8))) for number in range(20)]
    others = data.index([str(folder / "some.tar")], tmp_path)
    measured = objective.samples(others, tmp_path)  # the second call is that of the test split
    assert measured.images is measured.texts is None
    alone = {row.numpy().tobytes() for batch in seen for row in batch["image"]}
    assert len(alone) > 16  # more than the pairs have
    assert all(batch["text"].shape == (2, 8) and (batch["text"] != 0).sum() == 2 * 3 for batch in seen)
    (tmp_path / "texts.jsonl").write_text('{"text": "grass"}\n["gravel"]\n')
    with pytest.raises(InputError, match="line 2"):
        mixture.texts_of(str(tmp_path / "texts.jsonl"))
    (tmp_path / "texts.txt").write_text("\n \n")
    with pytest.raises(InputError, match="holds no text"):
        mixture.texts_of(str(tmp_path / "texts.txt"))


def test_captions_that_are_all_the_same_are_no_mismatch(folder: Path, tmp_path: Path) -> None:
    _, samples = samples_of(job(folder), folder / "some.tar", tmp_path)
    same = next(caption for _, _, caption in photo_pairs.pairs())
    alone = mixture.Mixed(samples.job, samples.tokenizer, 7, samples.pictures, None, None)
    alone.uids = samples.uids[:1]
    with pytest.raises(DataError, match="no caption that differs"):
        alone.other_caption(np.random.default_rng(0), same)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch": 6}, "no multiple of the mixture's sum, 4"),
        ({"targets": "codebook"}, "needs the codebook's weights"),
        ({"mixture": {"mismatched": 0, "texts": 2}}, "itm has nothing to tell apart"),
        (
            {"mixture": {"pairs": 0, "mismatched": 0, "images": 4, "texts": 0}, "weights": {"mim": 0}},
            "no loss has both",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(folder: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        job(folder, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": "/missing/model"}, "makes no FLAVA"),
        ({"model": {"text_config": {"hidden_size": 30, "num_attention_heads": 4}}}, "makes no FLAVA"),
        ({"model": {"image_config": {"hidden_size": "wide"}}}, "makes no FLAVA"),
        ({"tokenizer": "/missing/tokenizer"}, "tokenizer: /missing"),
        ({"targets": "kmeans", "image_size": 32}, "8 x 8"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused(folder: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(job(folder, **options))


def test_a_checkpoint_is_measured_by_its_contrastive_heads(folder: Path, tmp_path: Path) -> None:
    shards = {"train": [str(folder / "some.tar")], "test": [str(folder / "some.tar")]}
    final = train(job(folder, steps=12), shards, str(tmp_path / "out"))
    found = run.evaluate(str(tmp_path / "out"), shards["test"][0], run.options(tasks=("retrieval",), resamples=0))
    for direction in ("image_to_text", "text_to_image"):
        for name in ("R@1", "R@5", "median_rank"):
            assert found["retrieval"][direction][name] == final[f"retrieval/{direction}/{name}"]
    encoder: Any = checkpoint.load(tmp_path / "out")
    vectors = encoder.encoder(4).encode_images([np.full((30, 40, 3), 99, np.uint8)])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert build(job(folder, weights=NO_CONTRAST)).encoder(4) is None  # type: ignore[attr-defined]
