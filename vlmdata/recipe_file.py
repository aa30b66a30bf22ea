"""The recipe as a file: YAML into a `Recipe`, `--set` applied; errors name the line and the nearest right key."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vlmdata.errors import InputError
from vlmdata.recipe import OBJECTIVES, Recipe, nearest


class _Loader(yaml.SafeLoader):
    """YAML 1.2's booleans, true and false alone: a job's key `on` is a word, and so is `no` (Norwegian)."""


_BOOL = "tag:yaml.org,2002:bool"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != _BOOL]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def load(path: str | Path, settings: list[str] | None = None) -> Recipe:
    """Read and check a recipe.

    settings: `key.path=YAML` changes, as the command line's `--set` gives them; list entries are addressed by
    their kind or name.
    Raises InputError, with the file and the line, for what cannot be read or is not a recipe.
    """
    text, data = _read(path)
    for setting in settings or []:
        apply_setting(data, setting)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = "\n".join(_explain(str(path), text, settings or [], e) for e in error.errors()[:5])
        raise InputError(lines) from error


@contextmanager
def located(path: str | Path, settings: list[str] | None = None) -> Iterator[None]:
    """Put the file and line, or the `--set`, before an InputError of the block that begins with a recipe's key, such as
    `select.rules.x: …`."""
    try:
        yield
    except InputError as error:
        key, colon, _ = str(error).partition(": ")
        if not colon or not re.fullmatch(r"[a-z_]+(\.\w+)*", key) or key.partition(".")[0] not in Recipe.model_fields:
            raise
        where = _where(str(path), _read(path)[0], settings or [], tuple(key.split(".")))[0]
        raise InputError(f"{where}: {error}") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that is a mapping. Raises InputError with the file and the place."""
    return _read(path)[1]


def _read(path: str | Path) -> tuple[str, dict[str, Any]]:
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    try:
        _refuse_twice(path, yaml.compose(text, Loader=yaml.SafeLoader))
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe one
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: a mapping (`key: value` lines) is expected")
    return text, data


def _refuse_twice(path: str | Path, node: yaml.Node | None) -> None:
    """Raise InputError for a key that stands twice in one mapping, of which YAML would take the second unseen."""
    waiting, known = [node], set()
    while waiting:
        here = waiting.pop()
        if id(here) in known:  # an alias
            continue
        known.add(id(here))
        if isinstance(here, yaml.SequenceNode):
            waiting += here.value
        elif isinstance(here, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in here.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if key.value in lines:
                        raise InputError(f"{path}:{line}: {key.value!r} stands in line {lines[key.value]} already")
                    lines[key.value] = line
                waiting.append(value)


def apply_setting(data: dict[str, Any], setting: str) -> None:
    """Apply one `key.path=YAML` to options as YAML gives them. Raises InputError."""
    key, sign, value = setting.partition("=")
    if not sign or not key:
        raise InputError(f"--set {setting}: write it as key.path=value")
    try:
        parsed = yaml.load(value, Loader=_Loader)  # noqa: S506 - a safe one
    except yaml.YAMLError as error:
        raise InputError(f"--set {setting}: the value is not YAML: {' '.join(str(error).split())}") from error
    *way, last = key.split(".")
    here: Any = data
    for step in way:
        here = _enter(here, step, setting)
    if isinstance(here, list):
        here[_index(here, last, setting)] = parsed
    elif isinstance(here, dict):
        here[last] = parsed
    else:
        raise InputError(f"--set {setting}: {way[-1]} has no parts")


def _enter(here: Any, step: str, setting: str) -> Any:
    if isinstance(here, list):
        place = _index(here, step, setting)
        if isinstance(here[place], str):
            here[place] = {"kind": here[place]}
        return here[place]
    if isinstance(here, dict):
        return here.setdefault(step, {})
    raise InputError(f"--set {setting}: there is nothing below {step}")


def _index(entries: list[Any], step: str, setting: str) -> int:
    for key in ("name", "kind"):
        for place, entry in enumerate(entries):
            if (entry.get(key) if isinstance(entry, dict) else entry) == step:
                return place
    names = [e.get("name") or e.get("kind") if isinstance(e, dict) else e for e in entries]
    raise InputError(f"--set {setting}: the list has no entry {step!r}{nearest(step, names)}")


def _explain(path: str, text: str, settings: list[str], error: Any) -> str:
    """One line for one of pydantic's errors: file, line, key, and the nearest right name."""
    place, known = _where(path, text, settings, error["loc"])
    where = ".".join(str(step) for step in known)
    if error["type"] == "extra_forbidden":
        last = str(error["loc"][-1])
        options = _options_at(error["loc"][:-1])
        return f"{place}: unknown key {where!r}{nearest(last, options)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}: {where + ': ' if where else ''}{message[0].lower() + message[1:]}"


def _where(path: str, text: str, settings: list[str], location: tuple[str | int, ...]) -> tuple[str, list[str | int]]:
    """`file:line` of the deepest node that `location` names, or the `--set` that gave it; and the steps of it that are
    the recipe's (pydantic puts the kind chosen from a union between them). List entries are named by their place, their
    name or their kind."""
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line = node.start_mark.line + 1 if node else 1
    steps: list[str | int] = []
    names: list[str] = []  # the steps as `--set` writes them
    for place, step in enumerate(location):
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == step]
            if found:
                line, node = found[0][0].start_mark.line + 1, found[0][1]
            elif place and (isinstance(location[place - 1], int) or location[place - 1] == "on" or step in OBJECTIVES):
                continue
            else:
                node = None
        elif isinstance(node, yaml.SequenceNode):
            entry = next((n for at, n in enumerate(node.value) if step == at or step in _entry_names(n)), None)
            if entry is None:
                continue
            node, line = entry, entry.start_mark.line + 1
            names.append(str(next(iter(_entry_names(entry)), step)))
            steps.append(step)
            continue
        steps.append(step)
        names.append(str(step))
    for setting in settings:
        key = setting.partition("=")[0]
        if key in (".".join(names), ".".join(map(str, steps))):
            return f"--set {key}", steps
    return f"{path}:{line}", steps


def _entry_names(node: yaml.Node) -> list[str]:
    """What a list's entry is called: its name, then its kind; a bare word is its kind."""
    if isinstance(node, yaml.ScalarNode):
        return [node.value]
    values = {key.value: value.value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
    return [values[key] for key in ("name", "kind") if key in values]


def _options_at(location: tuple[str | int, ...]) -> list[str]:
    """The names of the options that are allowed where `location` points."""
    schema: Any = Recipe.model_json_schema()
    definitions = schema.get("$defs", {})

    def resolve(here: Any) -> Any:
        return definitions[here["$ref"].rsplit("/", 1)[1]] if isinstance(here, dict) and "$ref" in here else here

    for step in location:
        schema = resolve(schema)
        if isinstance(step, int):
            schema = schema.get("items", {})
        elif step in schema.get("properties", {}):
            schema = schema["properties"][step]
        elif "discriminator" in schema:
            chosen = schema["discriminator"]["mapping"].get(step, {})
            schema = {"$ref": chosen} if isinstance(chosen, str) else chosen
    return list(resolve(schema).get("properties", {}))
