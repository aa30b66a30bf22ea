"""Texts as a language model reads them beside a picture, with labels on the answers alone; LLaVA's JSON of turns."""

import hashlib
import io
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from vlmdata.errors import DataError, InputError
from vlmdata.train.language_models import IMAGE
from vlmdata.train.masking import IGNORED

log = logging.getLogger(__name__)

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_ENDINGS = {".jpg": "jpg", ".jpeg": "jpg", ".png": "png", ".webp": "webp"}

Turn = tuple[str, str]  # `user` or `assistant`, and what it says


class Tokens(NamedTuple):
    """ids with the picture's tokens in their place, and labels, which are the answers' ids and -100 elsewhere."""

    ids: list[int]
    labels: list[int]


class Prompts:
    """Makes tokens of captions and conversations.

    A text's own `<image>` or `<|im_end|>` is read as letters, never as a token: whoever wrote a caption cannot end the
    turn or add a picture.
    """

    def __init__(self, tokenizer: Any, visual: int) -> None:
        """visual: tokens of a picture."""
        self.tokenizer, self.visual = tokenizer, visual
        self.image = tokenizer.convert_tokens_to_ids(IMAGE)
        self.start, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        plain, special = (Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()) for _ in range(2))
        for each in (plain, special):
            each.no_padding()
            each.no_truncation()
        plain.encode_special_tokens = True
        # half a surrogate pair, which JSON can hold, is no text for the tokenizer
        self.text = lambda text: plain.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).ids
        self.form = lru_cache(1024)(lambda text: special.encode(text, add_special_tokens=False).ids)
        self.rendered = lru_cache(64)(self._render)

    def caption(self, text: str | None) -> Tokens:
        """Stage 1: the picture and its caption, as LLaVA-1.5 begins; None: the picture alone, to be gone on from."""
        ids = [*([] if self.start is None else [self.start]), *[self.image] * self.visual]
        answer = self._answer(text or "", [self.end])
        return Tokens(ids + answer, [IGNORED] * len(ids) + answer)

    def conversation(self, turns: list[Turn]) -> Tokens:
        """Turns in the form of the language model's chat template, the picture before the first question.

        Learnt are the answers, each with the token that ends it; where the last turn is a question, an answer is to
        follow.
        """
        forms = self.rendered(tuple(role for role, _ in turns))
        ids = list(self.form(forms[0]))
        labels = [IGNORED] * len(ids)
        for number, ((role, text), form) in enumerate(zip(turns, forms[1:], strict=True)):
            after = list(self.form(form))
            if role == "assistant":
                ended = after.index(self.end) + 1 if self.end in after else 0
                answer = self._answer(text, after[:ended]) or after[:ended]
                ids += answer
                labels += answer if text.strip() else [IGNORED] * len(answer)
                after = after[ended:]
            else:
                said = [*([self.image] * self.visual + self.text("\n") if not number else []), *self.text(text.strip())]
                ids += said
                labels += [IGNORED] * len(said)
            ids += after
            labels += [IGNORED] * len(after)
        return Tokens(ids, labels)

    def _answer(self, text: str, end: list[int]) -> list[int]:
        """An answer's ids; none for a blank one, of which only silence would be learnt."""
        return [*self.text(text.strip()), *end] if text.strip() else []

    def _render(self, roles: tuple[str, ...]) -> list[str]:
        """What the chat template writes before, between and after turns of these roles."""
        messages = [{"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(roles)]
        written = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=roles[-1] == "user"
        )
        parts = re.split("\ue000([0-9]+)\ue001", written)
        if parts[1::2] != [str(number) for number in range(len(roles))]:
            raise InputError("language_model: its chat template leaves turns out or moves them; use another model")
        return parts[::2]


def turns(conversations: Any) -> list[Turn]:
    """LLaVA's `conversations`: [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": …}, …].

    A list, or its JSON. `<image>` is taken out, since the picture always stands first; answers before the first
    question are dropped. Raises ValueError, saying what is wrong, for turns that do not alternate or have other keys.
    """
    try:
        given = json.loads(conversations) if isinstance(conversations, str) else conversations
    except RecursionError:
        raise ValueError("conversations is nested too deep") from None
    if not isinstance(given, list):
        raise ValueError("conversations is no list")
    found: list[Turn] = []
    for turn in given:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise ValueError("a turn has no text as its `value`")
        role = _ROLES.get(str(turn.get("from")))
        if role is None:
            raise ValueError(f"a turn is from {str(turn.get('from'))[:40]!r}, neither human nor gpt")
        if not found and role == "assistant":
            continue
        if role == (found[-1][0] if found else "assistant"):
            raise ValueError(f"two turns of {role} follow each other")
        found.append((role, turn["value"].replace(IMAGE, "").strip() if role == "user" else turn["value"].strip()))
    if len(found) < 2:
        raise ValueError("there is no question with an answer")
    return found[: len(found) // 2 * 2]


def spooled(path: str, images: str | None, spool: Path) -> str:
    """A tar of the pictures and turns of LLaVA's JSON, in the folder `spool`: the form of our shards.

    images: the folder that pictures are named in, by default that of the JSON. Entries without a picture in it, those
    whose name leads out of it, and those whose turns are no conversation are left out, with a warning that counts
    them and names the first. Raises InputError for a file that cannot be read, DataError where nothing is left.
    """
    file = Path(path)
    root = Path(images) if images else file.parent
    try:
        state = file.stat()
        entries = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"conversations: {path} cannot be read: {error}") from error
    if not isinstance(entries, list):
        raise InputError(f"conversations: {path} is no list of objects with `image` and `conversations`")
    identity = json.dumps([str(file.resolve()), str(root.resolve()), state.st_size, state.st_mtime_ns])
    made = spool / "spool" / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}-conversations.tar"
    if made.exists():
        return str(made)
    made.parent.mkdir(parents=True, exist_ok=True)
    partial = made.with_suffix(".partial")
    left_out: list[str] = []
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in _members(entries, root, path, left_out):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if left_out:
        log.warning("%d of %d conversations are left out, the first %s", len(left_out), len(entries), left_out[0])
    if len(left_out) == len(entries):
        raise DataError(f"conversations: {path} holds nothing to train on: the first {(left_out or ['empty'])[0]}")
    os.replace(partial, made)
    return str(made)


def _members(entries: list[Any], root: Path, path: str, left_out: list[str]) -> Iterator[tuple[str, bytes]]:
    """The files of the tar, three an entry, named by its number; what is wrong with others goes into `left_out`."""
    inside = root.resolve()
    for number, entry in enumerate(entries):
        try:
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                raise ValueError("names no picture")
            said = turns(entry.get("conversations"))
            picture = (root / entry["image"]).resolve()
            if not picture.is_relative_to(inside):
                raise ValueError("names a picture outside the folder")
            ending = _ENDINGS.get(picture.suffix.lower())
            if ending is None:
                raise ValueError("names no jpg, png or webp")
            if not picture.is_file():
                raise ValueError("its picture is not there")
            data = picture.read_bytes()
        except (ValueError, OSError) as error:
            left_out.append(f"{path}: entry {number}: {getattr(error, 'strerror', None) or error}")
            continue
        yield f"{number:09d}.{ending}", data
        yield f"{number:09d}.txt", said[1][1].encode("utf-8", "replace")
        kept = [{"from": role, "value": text} for role, text in said]
        yield f"{number:09d}.json", json.dumps({"conversations": kept}).encode()
