"""Fluency: good captions cost a language model less than junk, and junk less than shuffled words.

The embedded model is converted once into .cache/models (half a minute) and loaded once.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vlmdata import recipe
from vlmdata.errors import InputError
from vlmdata.schemas import table_schema
from vlmdata.signals import fluency
from vlmdata.signals.models import package_file

OPTIONS = recipe.FluencySignal(kind="fluency", tokens=128)
CACHE = Path(__file__).parent.parent / ".cache"
GOOD = [
    "A brown dog is running through the green grass in the park.",
    "Two people are sitting on a bench near the lake.",
    "A red bus stops at the corner of a busy street.",
]
JUNK = ["IMG 2034 jpg thumb 300x200 v2", "sku-99812 xl blk/wht 4pk oem hdr", "div class nav item prev next 1 2 3"]
SHUFFLED = [
    "grass the running dog green A park is through in brown the.",
    "lake the on bench Two near sitting people a are.",
    "busy a red stops corner street the A of at bus.",
]


def measured(captions: list[str | None], options: recipe.FluencySignal = OPTIONS) -> list[float | None]:
    rows = pa.table({"uid": [f"{n:032x}" for n in range(len(captions))], "caption": pa.array(captions, pa.string())})
    (table,) = fluency.measure(rows, None, options).values()
    assert table["uid"].to_pylist() == rows["uid"].to_pylist()
    return table.column(1).to_pylist()


def test_the_embedded_model_tells_good_captions_junk_and_shuffled_words_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMDATA_CACHE", str(CACHE))
    captions = [*GOOD, *JUNK, *SHUFFLED, "", None, " \n", "dog", "a " * 500, "a " * 300]
    found = measured(captions)
    assert np.mean(found[:3]) + 0.5 < np.mean(found[3:6])
    assert np.mean(found[3:6]) + 1 < np.mean(found[6:9])
    assert all(good < shuffled - 2 for good, shuffled in zip(found[:3], found[6:9], strict=True))
    assert found[9:12] == [None] * 3
    assert found[12] is not None
    assert found[13] == found[14], "only the first 128 tokens count"
    alone = [measured([captions[place]])[0] for place in (0, 8, 12)]
    assert alone == pytest.approx([found[place] for place in (0, 8, 12)], abs=1e-5)


def test_a_loss_is_that_of_the_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMDATA_CACHE", str(CACHE))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fluency.converted(package_file(*fluency._GGUF))
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer(GOOD[0], add_special_tokens=False)["input_ids"]]])
    with torch.inference_mode():
        expected = model(tokens, labels=tokens).loss.item()
    assert measured(GOOD[:1]) == [pytest.approx(expected, abs=1e-3)]  # padding rounds otherwise


def test_columns_and_names_follow_the_recipe_and_nothing_is_loaded_for_no_caption() -> None:
    options = recipe.FluencySignal(kind="fluency", name="b", model="no/such-model")
    assert fluency.schemas(options) == {"fluency_b": table_schema("fluency", "_b")}
    assert measured(["", None], options) == [None, None]


def test_the_identity_is_the_files(tmp_path: Path) -> None:
    embedded = fluency.identity(OPTIONS)
    assert len(embedded[fluency._GGUF[-1]]) == 64
    assert "transformers" in embedded
    (tmp_path / "config.json").write_text("{}")
    local = recipe.FluencySignal(kind="fluency", model=str(tmp_path))
    before = fluency.identity(local)
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert fluency.identity(local) != before


def test_a_model_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"signals\.fluency\.model.*cannot be loaded"):
        measured(["a dog"], recipe.FluencySignal(kind="fluency", model=str(tmp_path)))
