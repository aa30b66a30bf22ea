"""Signals whose model is a file or a folder of the user's, each with a small one of its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import made_wordnet
import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import TypeAdapter

from vlmdata import recipe, signals, wordnet
from vlmdata.errors import InputError
from vlmdata.signals.pictures import Pictures

CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def clip_folder(folder: Path, seed: int) -> None:
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(seed)
    weights = open_clip.CLIP(**CLIP).state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": {}}))


def language_model(folder: Path, seed: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"<s>": 0, "<unk>": 1, "a": 2, "dog": 3, "cat": 4}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(seed)
    GPT2LMHeadModel(GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=2, bos_token_id=0)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>").save_pretrained(folder)


def database(folder: Path, seed: int) -> None:
    """All of ImageNet's classes; the word `dog` is among them (1) or is not (2)."""
    made_wordnet.write(folder)
    classes = sorted(wordnet.imagenet21k())
    first = "dog n 1 1 @ 1 0 00000001\n" if seed == 2 else f"dog n 1 1 @ 1 0 {classes[0]:08d}\n"
    others = "".join(f"filler_{number} n 1 1 @ 1 0 {offset:08d}\n" for number, offset in enumerate(classes))
    (folder / "index.noun").write_text(first + others)


def head(path: Path, seed: int) -> None:
    np.savez(path, weight=np.full((1, 4), seed, np.float32))


def own(path: Path, seed: int) -> None:
    path.write_text(
        "import vlmdata\n\n\n@vlmdata.signal(columns={'value': 'int32'})\n"
        f"def mine(rows):\n    return {{'value': [{seed}] * len(rows)}}\n"
    )


# kind: what makes its file, the file's name, the option that names it
FAMILIES: dict[str, tuple[Callable[[Path, int], None], str, str]] = {
    "clip": (clip_folder, "model", "model"),
    "masked_clip": (clip_folder, "model", "model"),
    "filter": (clip_folder, "model", "checkpoint"),
    "fluency": (language_model, "model", "model"),
    "wordnet": (database, "model", "path"),
    "aesthetic": (head, "head.npz", "head"),
    "python": (own, "mine.py", "path"),
}


def measured(options: Any) -> list[Any]:
    """The first column of two rows."""
    rows = pa.table({"uid": ["0" * 32, "1" * 32], "caption": ["a dog", "dog"]})
    vectors = pa.array([[0.5] * 4, [0.5, 0.5, 0.5, -0.5]], pa.list_(pa.float16(), 4))
    rows = rows.append_column("embeddings_clip", vectors)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    pictures = Pictures(list(pixels), np.arange(2)) if signals.images(options) else None
    found = signals.family(options.kind).measure(rows, pictures, options)
    return next(iter(found.values())).column(1).to_pylist()


def options(kind: str, path: Path | str) -> Any:
    _, _, option = FAMILIES[kind]
    return TypeAdapter(recipe.Signal).validate_python({"kind": kind, option: str(path)})


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_file_that_changed_is_loaded_anew(kind: str, tmp_path: Path) -> None:
    make, name, _ = FAMILIES[kind]
    (tmp_path / "other").mkdir()
    make(tmp_path / name, 1)
    make(tmp_path / "other" / name, 2)
    before, other = (measured(options(kind, folder / name)) for folder in (tmp_path, tmp_path / "other"))
    assert before != other
    if (tmp_path / name).is_dir():
        shutil.rmtree(tmp_path / name)
    (tmp_path / "other" / name).rename(tmp_path / name)
    assert measured(options(kind, tmp_path / name)) == other


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_worker_in_another_folder_finds_the_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, name, _ = FAMILIES[kind]
    (tmp_path / "elsewhere").mkdir()
    make(tmp_path / name, 1)
    monkeypatch.chdir(tmp_path)
    module, here = signals.family(kind), options(kind, name)
    known, wanted, found = module.identity(here), measured(here), module.absolute(here)
    monkeypatch.chdir("elsewhere")
    assert module.identity(found) == known
    assert measured(found) == wanted


def test_bf16_is_for_hardware_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    emulates = {"is_available": lambda: True, "get_device_name": lambda: "Tesla T4"}
    emulates["is_bf16_supported"] = lambda including_emulation=True: including_emulation
    for name, answer in emulates.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    assert signals.device(options("fluency", "some_model")) == "Tesla T4 fp32"
    assert signals.device(recipe.ClipSignal(kind="clip", model="ViT-B-32", pretrained="random")) == "Tesla T4 fp32"


def test_a_filter_is_read_from_anywhere_and_its_files_tell_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip_folder(tmp_path / "model", 1)
    local, remote = (options("filter", place) for place in (tmp_path / "model", "memory://filters/one"))
    files = fsspec.filesystem("memory")
    with pytest.raises(InputError, match="memory://filters/one is no folder with a trained filter"):
        signals.family("filter").identity(remote)
    files.put(f"{tmp_path / 'model'}/", "/filters/one/", recursive=True)
    module = signals.family("filter")
    assert module.identity(remote) == module.identity(local)
    assert module.absolute(remote) == remote
    assert measured(remote) == measured(local)
    monkeypatch.setattr(module, "device_name", lambda: "NVIDIA L4")
    assert module.device(remote) == "NVIDIA L4 fp32"
    files.pipe("/filters/one/heads.safetensors", b"x")
    assert module.device(remote) == "cpu fp32"
    assert "heads.safetensors" in module.identity(remote)
