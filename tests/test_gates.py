"""What a refresh brings is held against limits before it is published."""

import pytest
from made_snapshots import publish
from pydantic import ValidationError

from vlmdata import gates
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError, InputError, RefusedError
from vlmdata.parts import part_from
from vlmdata.recipe import Gates

EARLIER = [
    *[(f"a{n}", None, "en", n / 100) for n in range(80)],
    *[(f"b{n}", "words", "de", n / 100) for n in range(20)],
]


@pytest.fixture
def dataset(tmp_path):
    return Dataset(str(tmp_path / "it"))


def check(dataset, rows, **limits):
    parent = publish(dataset, EARLIER)
    new = publish(dataset, rows, parent=parent)["samples"][len(parent["samples"]) :]
    gates.check(dataset, Gates.model_validate(limits), tuple(part_from(part) for part in new), parent)


def refused(dataset, rows, **limits):
    with pytest.raises(RefusedError) as found:
        check(dataset, rows, **limits)
    return str(found.value)


def test_the_share_that_is_kept_has_two_limits(dataset):
    rows = [("x", None), ("y", "words"), ("z", "words"), ("w", "words")]
    check(dataset, rows, kept_share=[0.25, 0.25])
    assert "1 of 4 new pairs are kept (0.250), allowed are 0.3 to 1" in refused(dataset, rows, kept_share=[0.3, 1])
    assert "allowed are 0 to 0.2" in refused(dataset, rows, kept_share=[0, 0.2])


def test_errors_of_the_download_count_and_consents_refusals_do_not(dataset):
    rows = [("x", None), ("y", "download: 5xx"), ("z", "download: dns"), ("w", "consent: robots")]
    check(dataset, rows, error_share=0.5)
    told = refused(dataset, rows, error_share=0.49)
    assert "gates.error_share: the downloads of 2 of 4 new pairs ended in an error (0.500), allowed is 0.49" in told


def test_a_score_that_moved_is_told_by_the_largest_difference_of_cumulative_shares(dataset):
    same = [(f"x{n}", None, "en", n / 100) for n in range(80)]
    check(dataset, same, score={"clip_score": 0.16})
    # of the earlier 100 (0 to 0.79, and 0 to 0.19 again) 60 are below 0.4
    higher = [(f"x{n}", None, "en", 0.4 + n / 1000) for n in range(10)]
    told = refused(dataset, higher, score={"clip_score": 0.59})
    assert "gates.score.clip_score: its distribution has moved by 0.600 (Kolmogorov-Smirnov), allowed is 0.59" in told
    check(dataset, higher, score={"clip_score": 0.61})
    check(dataset, [("x", None, "en", None), ("y", None, "en", float("nan"))], score={"clip_score": 0.0})


def test_a_mix_of_languages_that_moved_is_told(dataset):
    rows = [("x", None, "en", 0.5), ("y", None, "fr", 0.5), ("z", None, None, 0.5)]
    told = refused(dataset, rows, languages=0.49)  # en 0.8 -> 0.5, de 0.2 -> 0, fr 0 -> 0.5
    assert "gates.languages: the mix of languages has moved by 0.500 (total variation), allowed is 0.49" in told
    check(dataset, rows, languages=0.51)


def test_every_gate_that_is_shut_is_named_and_few_pairs_are_not_judged(dataset):
    rows = [("x", "download: 4xx", "fr", 0.9)]
    told = refused(dataset, rows, kept_share=[0.5, 1], error_share=0.5, score={"clip_score": 0.5}, languages=0.5)
    assert all(f"gates.{name}:" in told for name in ("kept_share", "error_share", "languages"))
    assert "snapshot 1 stays in force" in told
    check(dataset, rows, kept_share=[0.5, 1], error_share=0.5, min_pairs=2)
    check(dataset, rows)


def test_what_cannot_be_judged_is_refused_as_input(dataset):
    with pytest.raises(InputError, match=r"gates\.score\.clip_scor: there is no column 'clip_scor'.*'clip_score'"):
        check(dataset, [("x", None)], score={"clip_scor": 0.5})
    with pytest.raises(InputError, match="'caption' holds VARCHAR, not numbers"):
        check(dataset, [("x", None)], score={"caption": 0.5})
    for wrong in ({"kept_share": [0.8, 0.2]}, {"error_share": 1.5}, {"score": {"clip_score": -1}}, {"kept": 1}):
        with pytest.raises(ValidationError):
            Gates.model_validate(wrong)


def test_what_is_forgotten_is_not_judged_and_damaged_parts_are_told(dataset):
    check(dataset, [("x", None), ("y", "words"), ("z", "forgotten"), ("w", "forgotten")], kept_share=[0.5, 0.5])
    parent = publish(dataset, EARLIER)
    dataset.write_bytes(parent["samples"][0]["path"], b"PAR1 and no more PAR1")
    new = tuple(part_from(part) for part in parent["samples"])
    with pytest.raises(DataError, match="vlmdata verify"):
        gates.check(dataset, Gates(kept_share=(0, 1)), new, parent)
    dataset.remove(parent["samples"][0]["path"])
    with pytest.raises(DataError, match="vlmdata verify"):
        gates.check(dataset, Gates(kept_share=(0, 1)), new, parent)
