"""Subtitles: what is said at a time."""

import time

import pytest

from vlmdata.sources.subtitles import Cue, at, parse

VTT = """WEBVTT - a title
Kind: captions

NOTE 00:00:00.000 --> 00:00:09.000 is a comment's line? No: a cue, as its timing says nothing else
just words

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.500 align:start position:10%
<v Ann>A <b>red</b> house &amp; a tree</v>
on a hill

00:00:02.500 --> 00:00:04.000
- and then a <00:00:03.000>boat

00:00:04.000 --> 00:00:04.000
never shown

01:00:00.000 --> 01:00:01.000

"""
SRT = """1
00:00:01,000 --> 00:00:02,000
{\\an8}<i>Hello</i> there

2
00:00:03,000 --> 00:00:05,000
Bye
""".replace("\n", "\r\n")


def test_cues_are_read_as_plain_text() -> None:
    assert parse(VTT) == [Cue(1000, 2500, "A red house & a tree on a hill"), Cue(2500, 4000, "- and then a boat")]
    assert parse(SRT) == [Cue(1000, 2000, "Hello there"), Cue(3000, 5000, "Bye")]


@pytest.mark.parametrize(
    ("moment", "text"), [(999, None), (1000, "Hello there"), (1999, "Hello there"), (2000, None), (4999, "Bye")]
)
def test_a_cue_is_shown_from_its_start_to_just_before_its_end(moment: int, text: str | None) -> None:
    assert at(parse(SRT), moment) == text


def test_of_cues_at_once_the_one_that_began_last_counts() -> None:
    cues = parse("00:00.000 --> 00:10.000\nlong\n\n00:02.000 --> 00:03.000\nshort\n")
    assert [at(cues, moment) for moment in (1000, 2000, 3000)] == ["long", "short", "long"]


@pytest.mark.parametrize(
    "junk", ["", "<" * 1_000_000, "1\n" * 300_000, " --> \n" * 100_000, "{\\" * 400_000, "\n\n" * 400_000]
)
def test_junk_is_no_cue_and_takes_no_time(junk: str) -> None:
    began = time.process_time()
    assert parse(junk) == []
    assert parse(f"00:00.000 --> 00:01.000\n{junk}") in ([], [Cue(0, 1000, " ".join(junk.split()))])
    assert time.process_time() - began < 20  # quadratic work would take hours
