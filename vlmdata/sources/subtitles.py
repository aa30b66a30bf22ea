"""Subtitles beside a video, WebVTT (https://www.w3.org/TR/webvtt1/) or SubRip: what is said at a time."""

import html
import re
from bisect import bisect_right
from dataclasses import dataclass

from vlmdata.sources.urls import clean_text

EXTENSIONS = (".vtt", ".srt")
_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[.,](\d{3})"
_TIMING = re.compile(rf"\s*{_TIME}\s+-->\s+{_TIME}(?:\s.*)?")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")  # tags of both, and override codes that SubRip files borrow from ASS


@dataclass(frozen=True)
class Cue:
    """start, end: milliseconds; shown from start to just before end."""

    start: int
    end: int
    text: str


def parse(content: str) -> list[Cue]:
    """The cues with text, in the order of their starts. What is no cue (headers, notes, styles) is passed over."""
    cues = []
    for block in re.split(r"\n[ \t]*\n", content.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.split("\n")
        for place, line in enumerate(lines[:3]):  # behind an empty line or a name
            if timing := _TIMING.fullmatch(line):
                text = clean_text(html.unescape(_MARKUP.sub("", " ".join(lines[place + 1 :]))))
                start, end = _milliseconds(*timing.groups()[:4]), _milliseconds(*timing.groups()[4:])
                if text and end > start:
                    cues.append(Cue(start, end, text))
                break
    return sorted(cues, key=lambda cue: (cue.start, cue.end, cue.text))


def at(cues: list[Cue], time: int) -> str | None:
    """The text of the cue that began last of those shown at `time` (milliseconds); None where there is none.

    cues: in the order of their starts. Where several are shown at once, a cue more than 20 places back is not seen.
    """
    place = bisect_right(cues, time, key=lambda cue: cue.start)
    return next((cue.text for cue in reversed(cues[max(0, place - 20) : place]) if time < cue.end), None)


def _milliseconds(hours: str | None, minutes: str, seconds: str, thousandths: str) -> int:
    return ((int(hours or 0) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(thousandths)
