"""Answers: VQA's normalisation, every form of questions, the majority baseline."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coloured import BROKEN, COLOURS, MODEL, encode_images, encode_texts, jpg, tar

from vlmdata.evaluate import answers, material
from vlmdata.evaluate.answers import normalised
from vlmdata.recipe import Evaluation


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A cat.", "cat"),
        ("The  Red\tCar!", "red car"),
        ("two", "2"),
        ("None", "0"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("10:30.", "10:30"),
        ("t-shirt", "t shirt"),
        ("don’t", "dont"),
        ("yes, it is", "yes it is"),
        ("snow_board", "snow board"),
        ("A", "a"),
        ("?!", ""),
    ],
)
def test_answers_are_normalised_as_vqa_does(one: str, other: str) -> None:
    assert normalised(one) == normalised(other) == other


def sees(picture: np.ndarray, question: str) -> str:
    if "colour" in question:
        return f"The {list(COLOURS)[int((encode_images([picture]) @ encode_texts(list(COLOURS)).T).argmax())]}."
    return "Two!" if "many" in question else ""


def measured(tmp_path: Path, samples: dict[str, dict[str, Any]], **options: Any) -> dict[str, Any]:
    found = material.find(tar(tmp_path / "a.tar", samples), Evaluation(resamples=40, **options), tmp_path)
    model = replace(MODEL, answer=sees)
    assert answers.refused(model, found) is None
    return {**answers.measure(model, found), "broken": found.broken}


def asked(colour: str, about: dict[str, Any]) -> dict[str, Any]:
    return {"jpg": jpg(COLOURS[colour]), "txt": "a caption", "json": about}


def test_conversations_and_question_keys(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "<image>\nWhat colour is it?"},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "How many are there?"},
        {"from": "gpt", "value": "2"},
    ]
    samples = {
        "a": asked("red", {"conversations": turns}),
        "b": asked("green", {"question": "What colour?", "answer": "green"}),
        "c": asked("blue", {"question": "What colour?", "answers": [{"answer": "red"}, {"answer": "Blue"}]}),
        "d": asked("blue", {"question": "Why?", "answers": ["?", ""]}),  # no answer is left
        "e": asked("blue", {"question": "Why?", "answers": "no reason"}),
        "f": {"jpg": BROKEN, "txt": "x", "json": {"question": "What colour?", "answer": "red"}},
        "g": asked("red", {}),
        "h": asked("red", {"conversations": ["?", {"from": "gpt", "value": "red"}], "question": ""}),
    }
    found = measured(tmp_path, samples)
    assert found["broken"] == {"f"}
    assert (found["n"], found["pictures"]) == (5, 4)
    assert found["accuracy"] == 4 / 5
    assert (found["majority_answer"], found["accuracy/majority"]) == ("red", 2 / 5)
    assert found["accuracy/interval"][0] < 4 / 5 < found["accuracy/interval"][1] <= 1
    assert "agreement" not in found
    assert found == measured(tmp_path, samples, batch=1, workers=0)


def test_with_several_people_asked_an_answer_counts_by_how_many_gave_it(tmp_path: Path) -> None:
    samples = {
        "a": asked("red", {"question": "What colour?", "answers": ["red"] * 9 + ["blue"]}),
        "b": asked("red", {"question": "What colour?", "answers": ["red", "pink", "Red", "rose"]}),
        "c": asked("red", {"question": "How many?", "answers": ["three", "3", "4"]}),
    }
    found = measured(tmp_path, samples)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["agreement"] == pytest.approx((1 + 2 / 3) / 3)
    assert found["agreement/majority"] == pytest.approx((1 + 2 / 3) / 3)


def test_data_without_questions_and_models_without_answers_are_refused(tmp_path: Path) -> None:
    found = material.find(tar(tmp_path / "a.tar", {"a": asked("red", {})}), Evaluation(), tmp_path)
    assert "neither conversations nor question" in str(answers.refused(replace(MODEL, answer=sees), found))
    assert answers.refused(MODEL, found) == "colours answers no questions"
