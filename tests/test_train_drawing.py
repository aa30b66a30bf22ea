"""The drawing objective: a picture of the right colour comes of a word, in pixels and in latents; what is refused."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import here
from diffusers import AutoencoderKL, SD3Transformer2DModel
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vlmdata.errors import InputError
from vlmdata.recipe import DrawingJob
from vlmdata.train import checkpoint, data
from vlmdata.train.captions import Encoder
from vlmdata.train.drawing import build
from vlmdata.train.loop import train

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny causal language model of random weights, and a tokenizer of whole words."""
    folder = tmp_path_factory.mktemp("language")
    words = ["</s>", "[UNK]", "a", "picture", *COLOURS]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Two pictures of each colour, and one that cannot be decoded."""
    path = tmp_path_factory.mktemp("shards") / "train-0.tar"
    with tarfile.open(path, "w") as out:
        for number in range(9):
            word, colour = list(COLOURS.items())[number % 4]
            content = cv2.imencode(".png", np.full((24, 30, 3), colour[::-1], np.uint8))[1].tobytes()
            content = content if number < 8 else content[:40]
            for extension, member in (("png", content), ("txt", f"a {word} picture".encode())):
                info = tarfile.TarInfo(f"{number}.{extension}")
                info.size = len(member)
                out.addfile(info, io.BytesIO(member))
    return {"train": [str(path)], "test": [str(path)]}


def job(language: str, **options: Any) -> DrawingJob:
    small = {"size": 8, "patch": 2, "layers": 2, "heads": 2, "head_width": 32, "words": 4, "steps": 4, "batch": 8}
    return DrawingJob.model_validate(
        {"kind": "train", "objective": "drawing", "language_model": language, "lr": 3e-3, **small, **options}
    )


def test_a_word_gives_a_picture_of_its_colour(tmp_path: Path, language: str, shards: dict[str, list[str]]) -> None:
    final = train(job(language, steps=250, ema=0.98), shards, str(tmp_path / "out"))
    assert final["drawing/loss"] < 0.2 * final["drawing/loss/zero"]
    assert final["drawing/loss"] < 0.5 * final["drawing/loss/shuffled"]
    assert final["train/broken"] == final["test/broken"] == 1
    assert final["drawing/n"] == final["train/samples"] - 1
    loaded = checkpoint.load(tmp_path / "out")
    drawn = loaded.draw([f"a {word} picture" for word in COLOURS], seed=3, steps=10, guidance=1.5)
    assert drawn.shape == (4, 8, 8, 3)
    means = drawn.reshape(4, -1, 3).mean(1)
    wanted = np.array(list(COLOURS.values()))
    assert (np.linalg.norm(means[:, None] - wanted, axis=-1).argmin(1) == np.arange(4)).all()
    assert (loaded.draw(["a red picture"], seed=3, steps=10) == loaded.draw(["a red picture"], seed=3, steps=10)).all()
    exported = SD3Transformer2DModel.from_pretrained(tmp_path / "out" / "model" / "transformer")
    for name, value in exported.state_dict().items():
        assert (value == loaded.model.transformer.state_dict()[name]).all()
    command = [sys.executable, "-m", "vlmdata.cli", "draw", str(tmp_path / "out"), "a blue picture"]
    done = subprocess.run([*command, str(tmp_path / "blue.png")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    blue, green, red = cv2.imread(str(tmp_path / "blue.png")).reshape(-1, 3).mean(0)
    assert blue > max(red, green) + 50
    refused = here(tmp_path, *command[3:], str(tmp_path / "blue.exe"))
    assert refused.returncode == 2
    assert "blue.exe" in refused.stderr


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, language: str, shards: dict[str, list[str]]) -> None:
    whole = train(job(language, save_every=2), shards, str(tmp_path / "whole"))

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job(language, save_every=2), shards, str(tmp_path / "killed"), on_step=kill)
    assert train(job(language, save_every=2), shards, str(tmp_path / "killed"), resume=True) == whole
    for name in ("model", "optimizer"):
        one, other = (tmp_path / run / "checkpoints" / "4" / f"{name}.safetensors" for run in ("whole", "killed"))
        assert one.read_bytes() == other.read_bytes()


def test_latents_of_a_vae_are_drawn_where_there_is_one(
    tmp_path: Path, language: str, shards: dict[str, list[str]]
) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    final = train(job(language, size=16, vae=str(tmp_path / "vae")), shards, str(tmp_path / "out"))
    assert np.isfinite(final["drawing/loss"])
    loaded = checkpoint.load(tmp_path / "out")
    assert loaded.shape == (4, 8, 8)
    assert loaded.draw(["a red picture"], steps=2).shape == (1, 16, 16, 3)
    assert not any(name.startswith("vae") for name, p in loaded.model.named_parameters() if p.requires_grad)
    with pytest.raises(InputError, match="size: 10 is no multiple of the VAE's 2 times `patch` 2"):
        build(job(language, size=10, vae=str(tmp_path / "vae")))
    with pytest.raises(InputError, match=r"vae: .*nothing cannot be loaded"):
        build(job(language, vae=str(tmp_path / "nothing")))


def test_captions_are_encoded_once_and_a_blank_one_too(
    tmp_path: Path, language: str, shards: dict[str, list[str]]
) -> None:
    encoder, index = Encoder(language, 4), data.index(shards["train"], tmp_path)
    found = encoder.cached(index, tmp_path)
    assert found.features.shape == (4, 4, 32), "of each distinct caption once"
    expected = encoder.encode([data.caption(index, place) for place in range(9)])
    np.testing.assert_allclose(found.features[found.which], expected, atol=2e-3)
    assert (expected[:, 3] == 0).all(), "nothing behind three words"
    assert np.abs(found.blank[0]).max() > 0
    (file,) = tmp_path.glob("captions-*.npy")
    before = file.stat().st_mtime_ns
    encoder.cached(index, tmp_path)
    assert file.stat().st_mtime_ns == before


def test_pictures_that_patches_do_not_fill_are_refused(language: str) -> None:
    with pytest.raises(ValidationError, match="no multiple"):
        job(language, size=9)
