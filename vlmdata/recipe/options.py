"""What all options have in common, and the types of their values."""

import difflib
import re
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


def _bytes(value: object) -> object:
    """`50MB` as a number of bytes (decimal units)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(k|M|G)?B", value) if isinstance(value, str) else None
    return int(float(match[1]) * {None: 1, "k": 10**3, "M": 10**6, "G": 10**9}[match[2]]) if match else value


def kind_alone(value: object) -> object:
    """`- text` as `- {kind: text}`."""
    return {"kind": value} if isinstance(value, str) else value


Paths = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]


class Options(BaseModel):
    """Options that refuse what they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    unkeyed: ClassVar[frozenset[str]] = frozenset()  # options that are no part of the key

    def keyed(self, *apart: str) -> dict[str, Any]:
        """What of these options goes into a table's key: all but `unkeyed` and `apart`, as JSON has it.

        What is at its default is left out, so that a later version's new option leaves the tables of those who do not
        use it as they are, and a default that is written down is the same as one that is not. A default that CHANGES
        therefore keeps its old key: whoever changes one raises the VERSION of the module whose tables it changes
        (tests/test_plan.py notices). What has no default always stays, the kind with it. A key knows no order of a
        mapping's entries: where it matters, the caller adds it.
        """
        return self.model_dump(mode="json", exclude_defaults=True, exclude={*self.unkeyed, *apart})


def nearest(word: str, choices: Any) -> str:
    """`; did you mean 'size'?` for the most similar of `choices`, or nothing."""
    close = difflib.get_close_matches(word, [str(c) for c in choices], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
