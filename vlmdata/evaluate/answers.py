"""Answers to questions about pictures: normalised exact match, as in VQA (Antol 2015, arXiv:1505.00468)."""

import re
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vlmdata.errors import InputError
from vlmdata.evaluate import bootstrap
from vlmdata.evaluate.material import Material, clips, seen
from vlmdata.evaluate.pictures import batches
from vlmdata.train import data

if TYPE_CHECKING:
    from vlmdata.evaluate.model import Model

_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_AGREEING = 3  # people who gave an answer, from which on it counts in full


class Question(NamedTuple):
    place: int  # of the picture
    text: str
    answers: list[str]  # normalised, one for each who was asked


def refused(model: "Model", material: Material) -> str | None:
    """Why this cannot be measured, if it cannot."""
    if model.answer is None:
        return f"{model.name} answers no questions"
    if material.no_pairs():
        return material.no_pairs()
    asked = any(questions(material.pairs, place) for place in range(min(100, len(material.pairs))))
    return (
        None if asked else f"the JSON of the samples of {material.url} has neither conversations nor question, answer"
    )


def measure(model: "Model", material: Material) -> dict[str, Any]:
    """The share of questions whose answer is, normalised, one of those given; `majority` beside it is what the most
    frequent answer of these very questions would reach everywhere.

    Where at least three answers are given to every question, `agreement` is VQA's accuracy: an answer counts by how
    many gave it, in full from three on. The intervals are over pictures. Raises InputError where none can be decoded.
    """
    assert model.answer is not None
    pairs, options = material.pairs, material.options
    shown = clips(pairs, model.frames)
    asked = [(clip, found) for clip in shown if (found := questions(pairs, int(clip[0])))]
    said, of = list[str](), list[list[Question]]()
    for numbers, pictures in batches(
        lambda number: seen(pairs, asked[number][0], model.frames, 0, material.broken),
        [pairs.uids[clip[0]] for clip, _ in asked],
        options,
        material.broken,
        "answers",
    ):
        for number, clip in zip(numbers, pictures, strict=True):
            given = clip if model.frames > 1 else clip[0]
            said += [normalised(model.answer(given, question.text)) for question in asked[number][1]]
            of.append(asked[number][1])
    if not of:
        raise InputError(f"{material.url}: there is no picture with a question that can be decoded")
    every = [question for found in of for question in found]
    sizes = np.array([len(found) for found in of])
    starts = np.cumsum(sizes) - sizes
    most = Counter(answer for question in every for answer in set(question.answers)).most_common(1)[0][0]
    result: dict[str, Any] = {"n": len(every), "pictures": len(of), "majority_answer": most}
    measures = {"accuracy": lambda answer, question: float(answer in question.answers)}
    if min(len(question.answers) for question in every) >= _AGREEING:
        measures["agreement"] = lambda answer, question: min(1.0, question.answers.count(answer) / _AGREEING)
    for name, points in measures.items():
        right = np.array([points(answer, question) for answer, question in zip(said, every, strict=True)])
        statistic = bootstrap.ratio(np.add.reduceat(right, starts), sizes)
        baseline = float(np.mean([points(most, question) for question in every]))
        result |= bootstrap.measured(name, statistic, len(of), options, majority=baseline)
    return result


def questions(pairs: data.Index, place: int) -> list[Question]:
    """What a sample's JSON asks: LLaVA's `conversations` (turns `from` human and gpt with a `value`; each question is
    asked by itself), or `question` with `answer` or `answers` (texts, or VQA's objects with an `answer`)."""
    about = data.meta(pairs, place)
    found = []
    turns = about.get("conversations")
    for turn, reply in pairwise(turns) if isinstance(turns, list) else ():
        if not isinstance(turn, dict) or not isinstance(reply, dict):
            continue
        if turn.get("from") in ("human", "user") and reply.get("from") in ("gpt", "assistant"):
            found.append((str(turn.get("value", "")).replace("<image>", "").strip(), [reply.get("value")]))
    if about.get("question"):
        given = about.get("answers") or about.get("answer")
        found.append((str(about["question"]), given if isinstance(given, list) else [given]))
    result = []
    for asked, given in found:
        texts = [one.get("answer") if isinstance(one, dict) else one for one in given]
        answers = [text for one in texts if one is not None and (text := normalised(str(one)))]
        if asked and answers:
            result.append(Question(place, asked, answers))
    return result


def normalised(answer: str) -> str:
    """Lower case, without punctuation but for that inside numbers, number words to ten as digits, without articles
    unless there is nothing else."""
    text = re.sub(r"(?<=\d),(?=\d{3})|['’]", "", answer.lower())
    words = re.sub(r"(?<!\d)[.:]|[.:](?!\d)|[^\w\s.:]|_", " ", text).split()
    kept = [word for word in words if word not in _ARTICLES]
    return " ".join(_NUMBERS.get(word, word) for word in kept or words)
