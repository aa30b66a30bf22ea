"""The local folders and files that a training's options name, as absolute paths."""

import os
from pathlib import Path
from typing import Any

_PATHS = ("images", "texts", "conversations", "start")  # never a name on the hub
_NAMES = ("pretrained", "tokenizer", "codebook", "vision", "language_model", "vae")  # a path, or a name of something
_TEXT_TOWERS = ("hf_tokenizer_name", "hf_model_name")  # folders or names on the hub
_WORDS = ("tiny", "small", "base", "lite", "smollm2")
_PREFIXES = ("local-dir:", "open_clip:")


def absolute(options: dict[str, Any]) -> dict[str, Any]:
    """A train job's options, as JSON has them, such that another working folder means the same by them. URLs, names on
    the hub and words such as `tiny` stay."""
    found = {name: _path(value) if name in _PATHS else value for name, value in options.items()}
    found |= {name: _name(found[name]) for name in _NAMES if name in found}
    found["mix"] = [{**other, "data": _path(other["data"])} for other in options.get("mix") or []]
    model = options.get("model")
    if isinstance(model, dict):
        found["model"] = located(model, Path())
    elif isinstance(model, str):  # open_clip's architectures are no folders, whatever lies here
        folder = options.get("objective") == "masked" or model.endswith(".json") or model.startswith(_PREFIXES)
        found["model"] = _name(model) if folder else model
    return found


def located(model: dict[str, Any], beside: Path) -> dict[str, Any]:
    """A model's configuration in which names of folders are absolute; relative ones are looked for in `beside`."""
    text = model.get("text_cfg")
    if not isinstance(text, dict):
        return model
    folders = {name: beside / str(text[name]) for name in _TEXT_TOWERS if text.get(name)}
    return model | {"text_cfg": text | {n: str(path.absolute()) for n, path in folders.items() if path.is_dir()}}


def _path(value: Any) -> Any:
    if not isinstance(value, str) or "://" in value or "::" in value:
        return value
    return str(Path(os.path.expanduser(value)).absolute())


def _name(value: Any) -> Any:
    """A path that is there as an absolute one, also behind `local-dir:` or `open_clip:`, and `architecture/file`."""
    if not isinstance(value, str) or value in _WORDS:
        return value
    prefix = next((word for word in _PREFIXES if value.startswith(word)), "")
    name = value.removeprefix(prefix)
    architecture, _, file = name.partition("/")
    if prefix == "open_clip:" and os.path.isfile(file):
        return f"{prefix}{architecture}/{_path(file)}"
    return prefix + (_path(name) if os.path.exists(name) else name)
