"""Caption scores are sacrebleu's own, against all captions of an image, with intervals and the shuffled baseline."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from coloured import BROKEN, COLOURS, MODEL, encode_images, encode_texts, jpg, tar

from vlmdata.evaluate import captions, material
from vlmdata.recipe import Evaluation

WRITTEN = ["A dog runs over the green grass.", "two men on a boat", "a cat sleeps on the sofa at home", "snow"]
REFERENCES = [
    ["a dog is running over green grass", "the dog runs over the grass", "brown dog on a lawn"],
    ["two men are sitting on a boat"],
    ["a cat sleeps on the sofa at home", "cat on a sofa"],
    ["a mountain covered with snow", "deep snow on a mountain"],
]


def test_scores_are_those_of_sacrebleu_with_any_number_of_references() -> None:
    from sacrebleu.metrics import BLEU, CHRF

    found = captions.scores(WRITTEN, REFERENCES, Evaluation())
    streams = [[texts[k] if k < len(texts) else None for texts in REFERENCES] for k in range(3)]
    assert found["BLEU-4"] == pytest.approx(BLEU(lowercase=True).corpus_score(WRITTEN, streams).score)
    assert found["chrF"] == pytest.approx(CHRF().corpus_score(WRITTEN, streams).score)
    for name in ("BLEU-4", "chrF"):
        low, high = found[f"{name}/interval"]
        assert 0 <= low < found[name] < high <= 100
        assert found[f"{name}/shuffled"] < found[name]


def test_a_resample_is_scored_as_the_corpus_that_it_is() -> None:
    from sacrebleu.metrics import CHRF

    drawn = np.array([[2, 2, 0, 1]])
    statistic = captions._corpus(CHRF(), WRITTEN, REFERENCES)
    streams = [[texts[k] if k < len(texts) else None for texts in REFERENCES] for k in range(3)]
    corpus = [[stream[i] for i in drawn[0]] for stream in streams]
    assert statistic(drawn)[0] == pytest.approx(CHRF().corpus_score([WRITTEN[i] for i in drawn[0]], corpus).score)


def test_a_model_that_sees_its_pictures_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    texts = {name: f"a wide field that is {name} from end to end" for name in COLOURS}
    samples = {name: {"jpg": jpg(colour), "txt": texts[name]} for name, colour in COLOURS.items()}
    samples["green"] |= {"txt": "something else altogether", "json": {"captions": [texts["green"]]}}
    shard = tar(tmp_path / "a.tar", samples | {"broken": {"jpg": BROKEN, "txt": "nothing"}})

    def seeing(pictures: list[np.ndarray]) -> list[str]:
        scores = encode_images(pictures) @ encode_texts(list(COLOURS)).T
        return [texts[list(COLOURS)[place]] for place in scores.argmax(1)]

    def blind(pictures: list[np.ndarray]) -> list[str]:
        return [texts["red"]] * len(pictures)

    results = {}
    for name, write in (("seeing", seeing), ("blind", blind)):
        for batch in (1, 2):
            found = material.find(shard, Evaluation(resamples=20, batch=batch), tmp_path)
            model = replace(MODEL, caption=write)
            assert captions.refused(model, found) is None
            results[name, batch] = captions.measure(model, found)
            assert found.broken == {"broken"}
    assert results["seeing", 1] == results["seeing", 2]
    assert results["seeing", 1]["n"] == 3
    assert results["seeing", 1]["BLEU-4"] == pytest.approx(100)
    assert results["seeing", 1]["chrF/shuffled"] < 90
    assert results["blind", 1]["chrF"] == results["blind", 1]["chrF/shuffled"]
    assert captions.refused(MODEL, found) == "colours writes no captions"
