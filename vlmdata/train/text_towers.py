"""Tokenizers and text towers of transformers in open_clip's configurations: `hf_tokenizer_name`, `hf_model_name`.

Both are folders or names on the hub. No code of theirs is run, and weights are read from safetensors alone.
"""

from pathlib import Path
from typing import Any

import torch

from vlmdata.errors import InputError, first_line

_KINDS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError)


def tokenizer(text: dict[str, Any]) -> Any:
    """open_clip's wrapper of the tokenizer that `text`, a text_cfg, names. Raises InputError for none, and for one that
    needs code of its own."""
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer

    name = text["hf_tokenizer_name"]
    options = {**(text.get("tokenizer_kwargs") or {}), "trust_remote_code": False}
    length = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    try:
        made = HFTokenizer(name, context_length=length, tokenizer_mode=text.get("tokenizer_mode"), **options)
        # Length and padding are set now: the tokenizer is then only read, by several threads.
        made([""])
    except _KINDS as error:
        raise InputError(
            f"jobs.train.model: hf_tokenizer_name: {name} holds no tokenizer: {first_line(error)}. Give a folder with "
            "tokenizer.json and tokenizer_config.json, or a name on the hub"
        ) from error
    return made


def write_config(name: str, folder: Path) -> None:
    """Write the config.json of a text tower, without what would point to code of its own, into `folder`."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except _KINDS as error:
        raise InputError(
            f"jobs.train.model: hf_model_name: {name} holds no configuration of transformers: {first_line(error)}. "
            "Give a folder with config.json, or a name on the hub"
        ) from error
    if hasattr(config, "auto_map"):
        del config.auto_map
    config.save_pretrained(folder)


def begin(clip: Any, text: dict[str, Any]) -> None:
    """Give a text tower its pretrained weights, unless `hf_model_pretrained` is false or its folder holds none."""
    from transformers import AutoModel

    name = text["hf_model_name"]
    here = not Path(name).is_dir() or any(Path(name).glob("*.safetensors"))
    if not text.get("hf_model_pretrained", here):
        return
    try:
        whole: Any = AutoModel.from_pretrained(name, use_safetensors=True, trust_remote_code=False, dtype=torch.float32)
        known = getattr(whole, "encoder", whole) if whole.config.is_encoder_decoder else whole
        wanted = clip.text.transformer.state_dict().keys()  # without a pooler where open_clip has its own
        weights = {key: value for key, value in known.state_dict().items() if key in wanted}
        clip.text.transformer.load_state_dict(weights)
    except _KINDS as error:
        raise InputError(
            f"jobs.train.model: hf_model_name: {name} holds no weights of this tower: {first_line(error)}. Give a "
            "folder with safetensors, or `hf_model_pretrained: false` to begin at random"
        ) from error


def check(clip: Any, made: Any) -> None:
    """Raise InputError where a text tower cannot read all tokens of a tokenizer, or texts of its full length."""
    try:
        with torch.inference_mode():
            clip.encode_text(made(["", "a " * made.context_length]))
    except (IndexError, RuntimeError) as error:
        raise InputError(
            "jobs.train.model: the text tower cannot read what its tokenizer gives: vocab_size or context_length is "
            f"too small: {first_line(error)}"
        ) from error


def save(clip: Any, made: Any, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write tokenizer and text tower's configuration into an exported model's folder, where they are such; the model's
    configuration as it is to stand there. Names on the hub stay; what came from a folder is then in this one.

    open_clip looks for the tokenizer in the model's own folder, but for the tower's config.json by its name: that is
    the folder's absolute path.
    """
    model = config["model_cfg"]
    text = dict(model.get("text_cfg") or {})
    if text.get("hf_tokenizer_name"):
        made.tokenizer.save_pretrained(folder)
        if Path(text["hf_tokenizer_name"]).is_absolute():
            text["hf_tokenizer_name"] = "."
    if text.get("hf_model_name"):
        clip.text.config.save_pretrained(folder)
        if Path(text["hf_model_name"]).is_absolute():
            text["hf_model_name"] = str(folder.absolute())
    return config | {"model_cfg": model | {"text_cfg": text}}
