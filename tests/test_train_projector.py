"""The projector objective: tiny random models of transformers' own kinds, saved to folders as real ones would be."""

import io
import json
import logging
import shutil
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file
from transformers import (
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vlmdata.cli import app, guarded
from vlmdata.console import clean
from vlmdata.errors import DataError, InputError
from vlmdata.recipe import ContrastiveJob, ProjectorJob
from vlmdata.train import checkpoint, contrastive, conversations, data, order, source, vision_towers
from vlmdata.train.loop import train
from vlmdata.train.masking import IGNORED
from vlmdata.train.projector import build

WORDS = ["cat", "house", "river", "lamp", "stone", "cloud", "bread", "ship"]
WORDS += ["tree", "ring", "wolf", "desk", "coal", "leaf", "sand", "moon"]
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}"
    "{{ '</s>\n' if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{{ '[assistant]' if add_generation_prompt }}"
)


def tokenizer_of(folder: Path, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator([f"a photo of a {word}" for word in WORDS], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders: `language`, `untied`: Llamas; `clip`, `siglip`, and `open_clip`, as our own trainer leaves one."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name in ("language", "untied"):
        tokenizer = tokenizer_of(root / name, TEMPLATE if name == "language" else None)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=name == "language",
            bos_token_id=0,
            eos_token_id=1,
            initializer_range=0.2,
        )
        LlamaForCausalLM(config).save_pretrained(root / name)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**small, image_size=32, patch_size=8, initializer_range=0.2)
    clip = CLIPConfig(text_config=CLIPTextConfig(**small, vocab_size=20).to_dict(), vision_config=vision.to_dict())
    CLIPModel(clip).save_pretrained(root / "clip")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(root / "clip")
    SiglipVisionModel(SiglipVisionConfig(**small, image_size=32, patch_size=16)).save_pretrained(root / "siglip")
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / "siglip")
    objective = contrastive.build(ContrastiveJob(kind="train", model=SMALL))
    objective.export(root / "open_clip")
    return {name: str(root / name) for name in ("language", "untied", "clip", "siglip", "open_clip")}


def picture(number: int) -> np.ndarray:
    coarse = np.random.default_rng(number).integers(0, 255, (4, 4, 3), np.uint8)
    return cv2.resize(coarse, (48, 48), interpolation=cv2.INTER_NEAREST)


def jpeg(number: int) -> bytes:
    return cv2.imencode(".jpg", picture(number)[:, :, ::-1])[1].tobytes()


def shard(path: Path, broken: int | None = None, captions: dict[int, str] | None = None, **metas: Any) -> str:
    """Sixteen pictures of noise, each with a word of its own; metas: word -> its JSON's `conversations`."""
    with tarfile.open(path, "w") as out:
        for number, word in enumerate(WORDS):
            text = (captions or {}).get(number, f"a photo of a {word}")
            members = {"jpg": jpeg(number)[: 100 if number == broken else None], "txt": text.encode()}
            if word in metas:
                members["json"] = json.dumps({"conversations": metas[word]}).encode()
            for extension, member in members.items():
                info = tarfile.TarInfo(f"{word}.{extension}")
                info.size = len(member)
                out.addfile(info, io.BytesIO(member))
    return str(path)


def job(models: dict[str, str], **options: Any) -> ProjectorJob:
    options = {"vision": models["clip"], "language_model": models["language"], "workers": 0, **options}
    return ProjectorJob(
        **{"kind": "train", "objective": "projector", "steps": 4, "batch": 8, "lr": 1e-2, "warmup": 0, **options}
    )


def weights(out: Path, step: int) -> dict[str, np.ndarray]:
    return load_file(out / "checkpoints" / str(step) / "model.safetensors")


def test_sixteen_pairs_are_learnt_by_heart_and_the_pictures_matter(models: dict[str, str], tmp_path: Path) -> None:
    shards = [shard(tmp_path / "a.tar")]
    options = job(models, stage=2, language="full", steps=80, batch=16, lr=5e-3, measure_before=True)
    final = train(options, {"train": shards, "test": shards}, str(tmp_path / "out"))
    assert final["train/loss"] < 0.05
    assert abs(final["projector/gap/before"]) < 0.1
    assert final["projector/gap"] > 1
    assert final["projector/preferred"] == 1
    assert final["projector/accuracy"] > 0.98
    assert final["projector/accuracy/chance"] < 0.5
    assert final["projector/accuracy_shuffled"] < 0.9
    trained = checkpoint.load(tmp_path / "out")
    pictures = [data.decoded(jpeg(number)) for number in range(16)]
    assert trained.caption(pictures[:10]) == [f"a photo of a {w}" for w in WORDS[:10]]
    assert trained.answer(pictures[10], options.prompt) == "a photo of a wolf"


@pytest.mark.parametrize("vision", ["clip", "siglip", "open_clip", "lite"])
def test_loss_and_export_are_those_of_transformers(models: dict[str, str], tmp_path: Path, vision: str) -> None:
    shards = [shard(tmp_path / "a.tar")]
    options = {"vision": models.get(vision, "lite"), "language_model": models["untied"]}
    if vision == "lite":
        options |= {"tokens": 9, "projector": "linear"}
    train(job(models, **options, steps=2), {"train": shards}, str(tmp_path / "out"))
    trained = checkpoint.load(tmp_path / "out")
    index = data.index(shards, tmp_path)
    batch = trained.samples(index, tmp_path / "out").batch(np.arange(4), None)
    pictures = [picture for place in range(4) if (picture := data.image(index, place)) is not None]
    llava = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out" / "model").eval()
    given = {"input_ids": batch["ids"], "attention_mask": batch["mask"], "pixel_values": trained.tower.pixels(pictures)}
    with torch.no_grad():
        theirs = llava(**given, labels=batch["labels"])
        torch.testing.assert_close(theirs.logits, trained.llava(**given).logits)
        loss = trained.model(batch)["projector"]  # of features that were kept in half precision
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-3, atol=1e-3)
    processor = AutoProcessor.from_pretrained(tmp_path / "out" / "model")
    text = processor.tokenizer.bos_token + "<image>"
    ready = processor(images=pictures[:2], text=[text] * 2, return_tensors="pt", add_special_tokens=False)
    assert ready["input_ids"].tolist() == [trained.prompts.caption(None).ids] * 2
    ids = ready["input_ids"]
    written = llava.generate(input_ids=ids, pixel_values=given["pixel_values"][:2], max_new_tokens=48, do_sample=False)
    texts = processor.batch_decode(written[:, ids.shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in texts] == trained.caption(pictures[:2])


def test_labels_cover_the_answers_only(models: dict[str, str]) -> None:
    prompts = build(job(models)).prompts
    image, text = prompts.image, prompts.text
    assert prompts.visual == 16
    ids, labels = prompts.caption("a cat")
    assert ids == [0] + [image] * 16 + text("a cat") + [1]
    assert labels == [IGNORED] * 17 + text("a cat") + [1]
    said = [("user", "What is it?"), ("assistant", "a cat"), ("user", "Sure?"), ("assistant", "yes")]
    ids, labels = prompts.conversation(said)
    parts: list[tuple[list[int], bool]] = [
        ([0, *text("[user]")], False),
        ([image] * 16 + text("\n") + text("What is it?") + text("\n[assistant]"), False),
        ([*text("a cat"), 1], True),
        (text("\n[user]") + text("Sure?") + text("\n[assistant]"), False),
        ([*text("yes"), 1], True),
        (text("\n"), False),
    ]
    assert ids == [token for part, _ in parts for token in part]
    assert labels == [token if learnt else IGNORED for part, learnt in parts for token in part]
    asked = prompts.conversation([("user", "What is it?")])
    assert asked.ids == parts[0][0] + parts[1][0]
    assert set(asked.labels) == {IGNORED}


def test_words_of_a_text_are_never_tokens_of_the_form(models: dict[str, str]) -> None:
    prompts = build(job(models)).prompts
    ids, _ = prompts.caption("<image></s><s> \ud800 <image>")
    assert ids.count(prompts.image) == 16
    assert ids.count(0) == ids.count(1) == 1
    ids, _ = prompts.conversation([("user", "<image> one </s>"), ("assistant", "</s>[user]<image>")])
    assert ids.count(prompts.image) == 16
    assert ids.count(1) == 1


def test_a_language_model_without_a_template_speaks_as_llava_did(models: dict[str, str]) -> None:
    prompts = build(job(models, language_model=models["untied"])).prompts
    ids, labels = prompts.conversation([("user", "What?"), ("assistant", "a cat")])
    decoded = prompts.tokenizer.decode([token for token in ids if token != prompts.image])
    assert decoded == "USER: \nWhat? ASSISTANT: a cat</s>"
    assert prompts.tokenizer.decode([token for token in labels if token != IGNORED]) == "a cat</s>"


def test_a_batch_without_an_answer_is_refused_by_name(models: dict[str, str], tmp_path: Path) -> None:
    blank = shard(tmp_path / "a.tar", captions=dict.fromkeys(range(16), " \n"))
    with pytest.raises(DataError, match=r"no answer to learn.*moon"):
        train(job(models, batch=16), {"train": [blank]}, str(tmp_path / "out"))
    whole = shard(tmp_path / "b.tar")
    with pytest.raises(DataError, match="no answer to learn"):
        train(job(models, length=17), {"train": [whole]}, str(tmp_path / "cut"))
    with pytest.raises(InputError, match="length: 16 is too short: a picture alone has 16 tokens"):
        build(job(models, length=16))
    with pytest.raises(DataError, match="16 samples to be measured, cat and others, hold no answer"):
        train(job(models, batch=16, steps=1), {"train": [whole], "test": [blank]}, str(tmp_path / "measured"))
    some = shard(tmp_path / "c.tar", captions=dict.fromkeys(range(8), ""))
    train(job(models, batch=16, steps=1), {"train": [some]}, str(tmp_path / "some"))


def test_two_small_batches_are_one_large_one(models: dict[str, str], tmp_path: Path) -> None:
    captions = {number: "a photo " * (number % 5 + 1) for number in range(16)}  # so that the parts' tokens differ
    shards = {"train": [shard(tmp_path / "a.tar", captions=captions)]}
    large = train(job(models, steps=2), shards, str(tmp_path / "large"))
    small = train(job(models, steps=2, batch=4, accumulate=2), shards, str(tmp_path / "small"))
    assert small["train/loss"] == pytest.approx(large["train/loss"], abs=1e-5)
    one, other = weights(tmp_path / "large", 2), weights(tmp_path / "small", 2)
    start = build(job(models)).model.state_dict()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=2e-5)
    assert any(np.abs(one[name] - start[name].numpy()).max() > 1e-3 for name in one)


@pytest.mark.parametrize("tied", ["language", "untied"])
def test_a_run_of_adapters_that_was_killed_ends_with_the_same_bits(
    models: dict[str, str], tmp_path: Path, tied: str
) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")], "test": [shard(tmp_path / "b.tar")]}
    lora = {"rank": 4, "dropout": 0.3}
    options = job(
        models,
        language_model=models[tied],
        stage=2,
        language="lora",
        lora=lora,
        steps=6,
        save_every=2,
        measure_before=True,
    )
    whole = train(options, shards, str(tmp_path / "whole"))

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, shards, str(tmp_path / "killed"), on_step=kill)
    assert train(options, shards, str(tmp_path / "killed"), resume=True) == whole
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, other = (tmp_path / run / "checkpoints" / "6" / file for run in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes(), file
    kept = weights(tmp_path / "whole", 6)
    assert {name.split(".")[0] for name in kept} == {"projector", "language_model"}
    assert all("lora_" in name or name.startswith("projector") for name in kept)
    assert any("lora_B" in name and np.abs(value).max() > 0 for name, value in kept.items())
    plain = LlavaForConditionalGeneration.from_pretrained(tmp_path / "whole" / "model").eval()
    trained = checkpoint.load(tmp_path / "whole")
    ids = torch.tensor([trained.prompts.conversation([("user", "What?")]).ids])
    pixels = trained.tower.pixels([picture(0)])
    with torch.no_grad():
        theirs, ours = (each(input_ids=ids, pixel_values=pixels).logits for each in (plain, trained.llava))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_stage_two_goes_on_from_stage_one(models: dict[str, str], tmp_path: Path) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")], "test": [shard(tmp_path / "b.tar")]}
    first = train(job(models, steps=20, batch=16), shards, str(tmp_path / "one"))
    frozen = build(job(models)).llava.state_dict()
    for name, value in checkpoint.load(tmp_path / "one").llava.state_dict().items():
        assert torch.equal(value, frozen[name]) == ("multi_modal_projector" not in name), name
    second = job(models, stage=2, language="lora", start=str(tmp_path / "one"), steps=2)
    begun = build(second)
    one = weights(tmp_path / "one", 20)
    np.testing.assert_array_equal(one["projector.linear_1.weight"], begun.model.projector.linear_1.weight.detach())
    train(second, shards, str(tmp_path / "two"))
    third = job(models, stage=2, start=str(tmp_path / "two"), steps=1)
    merged = build(third).llava.model.language_model.layers[0].mlp.up_proj.weight
    assert not torch.equal(merged, frozen["model.language_model.layers.0.mlp.up_proj.weight"])
    assert first["projector/loss"] < 5
    with pytest.raises(InputError, match=r"start: .*projector: 'mlp', this run 'linear'"):
        build(job(models, stage=2, projector="linear", start=str(tmp_path / "one")))
    with pytest.raises(InputError, match="holds no checkpoint"):
        build(job(models, stage=2, start=str(tmp_path / "missing")))


def test_options_of_another_stage_are_refused(models: dict[str, str]) -> None:
    for wrong in ({"language": "lora"}, {"conversations": "a.json"}, {"tokens": 9}, {"stage": 2, "images": "a"}):
        with pytest.raises(ValidationError):
            job(models, **wrong)


def test_conversations_in_shards_are_read_and_malformed_ones_skipped(
    models: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a feline"}]
    path = shard(tmp_path / "a.tar", cat=good, house=json.dumps(good), river=[{"from": "dog", "value": "x"}], lamp="[[")
    objective = build(job(models, stage=2))
    with caplog.at_level(logging.WARNING):
        samples = objective.samples(data.index([path], tmp_path), tmp_path)
    assert "2 conversations are skipped, the first river: a turn is from 'dog'" in caplog.text
    assert samples.broken == {"river", "lamp"}
    assert len(samples.uids) == 14
    batch = samples.batch(np.arange(3), None)
    learnt = [objective.tokenizer.decode(row[row != IGNORED]) for row in batch["labels"]]
    assert learnt == ["a feline</s>", "a feline</s>", "a photo of a stone</s>"]
    read = [objective.tokenizer.decode(row) for row in batch["ids"]]
    assert "Describe the picture." in read[2]
    assert "Describe the picture." not in read[0]


def test_a_picture_that_cannot_be_decoded_is_a_counted_skip(
    models: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [shard(tmp_path / "a.tar", broken=1)]
    with caplog.at_level(logging.WARNING):
        final = train(job(models), {"train": shards}, str(tmp_path / "out"))
    assert caplog.text.count("house cannot be decoded and is skipped") == 1
    assert final["train/broken"] == 1
    assert final["train/samples"] == 15
    monkeypatch.setattr(vision_towers, "_compute", lambda *_: pytest.fail("the features were there already"))
    again = checkpoint.load(tmp_path / "out").samples(data.index(shards, tmp_path), tmp_path / "out")
    assert again.uids == tuple(word for word in WORDS if word != "house")


def test_a_split_to_be_measured_in_which_nothing_can_be_decoded_is_an_error(
    models: dict[str, str], tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "b.tar", "w") as out:
        for name in ("x.jpg", "x.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            out.addfile(info, io.BytesIO(b"none"))
    shards = {"train": [shard(tmp_path / "a.tar")], "test": [str(tmp_path / "b.tar")]}
    with pytest.raises(DataError, match="none of the 1 samples of the split 'test' can be decoded"):
        train(job(models, steps=1), shards, str(tmp_path / "out"))


@pytest.mark.parametrize("how", [{"resize_mode": "squash", "interpolation": "bilinear"}, {"interpolation": "bilinear"}])
def test_the_exported_processor_reads_pictures_as_open_clips_tower_does(
    models: dict[str, str], tmp_path: Path, how: dict[str, str]
) -> None:
    folder = Path(shutil.copytree(models["open_clip"], tmp_path / "tower"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {**config["preprocess_cfg"], **how}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    tower = vision_towers.load(job(models, vision=str(folder)))
    wide = [picture(3)[:24]]  # an even number of pixels is cropped: of an odd one the two round otherwise
    theirs = tower.processor(images=wide, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(theirs, tower.pixels(wide), rtol=0, atol=0.05)
    assert tower.identity() != vision_towers.load(job(models, vision=models["open_clip"])).identity()
    config["preprocess_cfg"]["resize_mode"] = "longest"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="pads pictures"):
        vision_towers.load(job(models, vision=str(folder)))


HOSTILE: list[Any] = [
    {"image": "../outside.jpg"},
    {"image": "/etc/passwd.jpg"},
    {"image": "link.jpg"},
    {"image": "a\0.jpg"},
    {"image": "missing.jpg"},
    {"image": "a.gif"},
    {"image": "a.jpg", "conversations": [{"from": "human", "value": "only a question"}]},
    {"image": "a.jpg", "conversations": [{"from": "system", "value": "x"}]},
    {"image": "a.jpg", "conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]},
    {"image": "a.jpg", "conversations": [{"from": "human", "value": 7}]},
    {"image": "a.jpg", "conversations": {}},
    {"image": "a.jpg", "conversations": "[" * 100_000},
    {"image": ["a.jpg"]},
    {},
    7,
    None,
]


def test_conversations_of_a_file_are_trained_on_and_never_leave_the_folder(
    models: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    for number, name in enumerate(("a.jpg", "b.PNG", "a.gif")):
        (root / name).write_bytes(jpeg(number))
    (tmp_path / "outside.jpg").write_bytes(jpeg(9))
    (root / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    talk = [{"from": "gpt", "value": "hello"}, {"from": "human", "value": "What? <image>"}]
    talk += [{"from": "gpt", "value": "a wolf"}, {"from": "human", "value": "left over"}]
    good = [{"id": "1", "image": "a.jpg", "conversations": talk}, {"image": "b.PNG", "conversations": talk}]
    bad = [{"conversations": talk, **each} if isinstance(each, dict) else each for each in HOSTILE]
    file = tmp_path / "llava.json"
    file.write_text(json.dumps([good[0], *bad, good[1]]))
    with caplog.at_level(logging.WARNING):
        path = conversations.spooled(str(file), str(root), tmp_path / "spool")
    assert f"{len(HOSTILE)} of {len(HOSTILE) + 2} conversations are left out" in caplog.text
    assert "entry 1: names a picture outside the folder" in caplog.text
    index = data.index([path], tmp_path)
    assert index.uids == ("000000000", f"{len(HOSTILE) + 1:09d}")
    assert conversations.turns(data.meta(index, 0)["conversations"]) == [("user", "What?"), ("assistant", "a wolf")]
    assert data.caption(index, 1) == "a wolf"
    shards = {"train": [shard(tmp_path / "a.tar")]}
    options = {"stage": 2, "conversations": str(file), "images": str(root)}
    final = train(job(models, **options, steps=2, batch=18), shards, str(tmp_path / "out"))
    assert final["train/samples"] == 18
    file.rename(root / "llava.json")  # beside its pictures it is data like any other
    found = source.shards(str(root / "llava.json"))
    train(job(models, stage=2, steps=1, batch=2), found, str(tmp_path / "alone"))
    file.write_text(json.dumps(bad))
    with pytest.raises(DataError, match="holds nothing to train on"):
        conversations.spooled(str(file), str(root), tmp_path / "spool")
    for text in ("{}", "not JSON", "[" * 100_000):
        file.write_text(text)
        with pytest.raises(InputError, match=r"llava\.json"):
            conversations.spooled(str(file), str(root), tmp_path / "spool")


def test_a_wrong_picture_is_never_the_right_one() -> None:
    for n in (2, 3, 10, 100):
        other = order.derangement(n, seed=n)
        assert sorted(other) == list(range(n))
        assert (other != np.arange(n)).all()
    assert (order.derangement(50, 0) != order.derangement(50, 1)).any()


def test_models_that_cannot_be_had_are_said(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"language_model: .*cannot be loaded"):
        build(job(models, language_model=str(tmp_path)))
    with pytest.raises(InputError, match=r"vision: .*cannot be loaded"):
        build(job(models, vision=str(tmp_path)))
    with pytest.raises(InputError, match=r"vision_layer: .* has no layer -9"):
        build(job(models, vision=models["open_clip"], vision_layer=-9))
    with pytest.raises(InputError, match=r"vision: open_clip cannot load ViT-Z/none"):
        build(job(models, vision="open_clip:ViT-Z/none"))
    with pytest.raises(InputError, match=r"vision_layer: .* has 3 hidden states; -9"):
        build(job(models, vision_layer=-9))


def test_caption_and_ask_answer(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(job(models, answer=4), {"train": [shard(tmp_path / "a.tar")]}, str(tmp_path / "out"))
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    cv2.imwrite(str(tmp_path / "b.png"), picture(1))
    monkeypatch.chdir(tmp_path)

    def said(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = guarded(lambda: app(arguments, standalone_mode=False))
        return code, *capsys.readouterr()

    trained = checkpoint.load("out")
    pictures = [data.decoded(Path(name).read_bytes()) for name in ("a.jpg", "b.png")]
    expected = "".join(clean(" ".join(text.split())) + "\n" for text in trained.caption(pictures))
    assert said("caption", "out", "a.jpg", "b.png") == (0, expected, "")
    answer = trained.answer(pictures[0], "What is it?")
    assert said("ask", "out/checkpoints/4", "a.jpg", "What is it?")[1].split() == clean(answer).split()
    for arguments, why in {
        ("caption", "out", "out/config.json"): "out/config.json: is no picture",
        ("caption", "out", "c.jpg"): "c.jpg: No such file",
        ("caption", "nothing", "a.jpg"): "nothing: holds no checkpoint",
        ("ask", "out", "a.jpg", " "): "the question is blank",
    }.items():
        code, out, error = said(*arguments)
        assert (code, out, error.count("\n")) == (2, "", 1)
        assert why in error
