"""A user's own signal, from a Python file of the recipe."""

import re
from pathlib import Path
from typing import Any

import made_dataset
import numpy as np
import pyarrow as pa
import pytest

from vlmdata import recipe
from vlmdata.errors import InputError
from vlmdata.signals import python
from vlmdata.signals.pictures import Pictures

UIDS = [f"{n:032x}" for n in range(4)]


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """Writes the body of a function into a file; gives what `measure` makes of four rows, three distinct images."""

    def measure(body: str, columns: str = '{"value": "int32"}', images: bool = False, count: int = 4) -> pa.Table:
        arguments = "rows, images" if images else "rows"
        (tmp_path / "mine.py").write_text(
            "import vlmdata\n\n\n"
            f"@vlmdata.signal(columns={columns}, images={images})\n"  # line 4
            f"def mine({arguments}):\n    {body}\n"
        )
        rows = pa.table({"uid": UIDS, "caption": ["a", "bb", "", None]}).slice(0, count)
        pixels = [np.full((2, 3, 3), n, np.uint8) for n in (10, 20, 30)]
        pictures = Pictures(pixels, np.array([0, 1, 1, 2])[:count]) if images else None
        return python.measure(rows, pictures, options(tmp_path))["python"]

    return measure


def options(folder: Path, **changes: Any) -> recipe.PythonSignal:
    return recipe.PythonSignal(kind="python", path=str(folder / "mine.py"), **changes)


def test_it_gets_rows_and_an_image_for_each_and_gives_typed_columns(own: Any, tmp_path: Path) -> None:
    columns = '{"value": "float32", "said": "string", "many": "bool"}'
    body = """return {
        "said": rows["caption"], "many": [True, None, False, True],
        "value": [image.mean() for image in images],
    }"""
    found = own(body, columns, images=True)
    assert found.to_pydict() == {
        "uid": UIDS, "value": [10, 20, 20, 30], "said": ["a", "bb", "", None], "many": [True, None, False, True]
    }  # fmt: skip
    assert found.schema.types == [pa.string(), pa.float32(), pa.string(), pa.bool_()]
    assert python.schemas(options(tmp_path, name="b"))["python_b"].names == ["uid", "value_b", "said_b", "many_b"]


@pytest.mark.parametrize(
    ("body", "line", "says"),
    [
        ('return {"value": [1 // len(text) for text in rows["caption"].to_pylist()]}', 6,
         f"ZeroDivisionError: integer division or modulo by zero (pair {UIDS[2]})"),
        ("import sys; sys.exit('enough')", 6, f"SystemExit: enough (pair {UIDS[0]})"),
        ("assert len(rows) < 3", 6,
         f"AssertionError (with the pairs {UIDS[0]} to {UIDS[3]}, but with neither half of them)"),
        ("return [1, 2, 3, 4]", 4, "must give a dict of columns, not list"),
        ('return {"valeu": [1, 2, 3, 4]}', 4, "lacks value and has valeu, which `columns` does not declare"),
        ('return {"value": [1, 2, 3]}', 4, "gives 3 values of 'value' for 4 rows"),
        ('return {"value": 7}', 4, "gives int for 'value', not a value for each row"),
        ('return {"value": [1, 2, "three", 4]}', 4, f"gives 'three' for 'value', which is no int32 (pair {UIDS[2]})"),
        ('return {"value": [1, 2.5, 3, 4]}', 4, f"gives 2.5 for 'value', which is no int32 (pair {UIDS[1]})"),
        ('import numpy; return {"value": numpy.array([1, 2, 3, 2**40])}', 4, f"(pair {UIDS[3]})"),
    ],
)  # fmt: skip
def test_an_error_names_file_line_and_row(own: Any, tmp_path: Path, body: str, line: int, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'mine.py'}, line {line}: ") + ".*" + re.escape(says)):
        own(body)


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("uint64", [2**64 - 1, None, 1, 0], [2**64 - 1, None, 1, 0]),
        ("string", pa.array(["a", "b", None, "a"], pa.large_string()), ["a", "b", None, "a"]),
        ("string", pa.array(["a", "b", None, "a"]).dictionary_encode(), ["a", "b", None, "a"]),
        ("string", pa.chunked_array([["a", "b"], [None, "a"]]).dictionary_encode(), ["a", "b", None, "a"]),
        ("float32", [1, 2.5, None, float("inf")], [1, 2.5, None, float("inf")]),
        ("float32", [None] * 4, [None] * 4),
        ("int32", np.array([1.0, 2.0, 3.0, 4.0]), [1, 2, 3, 4]),
    ],
)
def test_every_form_of_the_same_values(kind: str, values: Any, expected: list[Any]) -> None:
    found = python._typed(values, pa.type_for_alias(kind))
    assert found.type == pa.type_for_alias(kind)
    assert found.to_pylist() == expected


@pytest.mark.parametrize(
    ("kind", "values", "row"),
    [
        ("bool", "[True, 0.5, None, False]", 1),
        ("bool", "[0, 1, 1, 0]", 0),
        ("float32", "[1.5, 2, True, None]", 2),
        ("float32", "[1.5, 2, 1e300, None]", 2),
        ("int32", "__import__('numpy').array([True] * 4)", 0),
        ("uint64", "[2**64 - 1, 2, 2.5, 0]", 2),
        ("uint64", "[2**64 - 1, 2, -1, 0]", 2),
    ],
)
def test_values_of_another_kind_are_refused_with_their_row(own: Any, kind: str, values: str, row: int) -> None:
    with pytest.raises(InputError, match=rf"no \w+ \(pair {UIDS[row]}\)"):
        own(f'return {{"value": {values}}}', f'{{"value": "{kind}"}}')


def test_the_row_at_fault_is_found_by_halving(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import vlmdata\n\ncalls = []\n\n@vlmdata.signal(columns={'value': 'int32'})\ndef mine(rows):\n"
        "    calls.append(len(rows))\n    if '' in rows['caption'].to_pylist():\n"
        "        raise ValueError(f'call {len(calls)}')\n"
    )
    rows = pa.table({"uid": [f"{n:032x}" for n in range(1024)], "caption": ["a"] * 700 + [""] + ["a"] * 323})
    with pytest.raises(InputError, match=r"call (1\d|2[01]) \(pair 0{29}2bc\)"):
        python.measure(rows, None, options(tmp_path))


def test_pixels_that_others_read_too_cannot_be_changed(own: Any) -> None:
    with pytest.raises(InputError, match=f"read-only.*pair {UIDS[0]}"):
        own('images[0][:] = 0; return {"value": [0] * len(rows)}', images=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f(:\n", r"mine.py, line 1: SyntaxError"),
        ("\nimport no_such_module\n", r"mine.py, line 2: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(rows):\n    pass\n", r"has 0 functions under `@vlmdata.signal"),
        ("import vlmdata\n@vlmdata.signal(columns={'A b': 'int32'})\ndef f(rows): pass\n", r"line 2: 'A b': 'int32'"),
        ("import vlmdata\n@vlmdata.signal(columns={'a': 'int'})\ndef f(rows): pass\n", r"a type one of bool, int32"),
        ("import vlmdata\n@vlmdata.signal(columns={'file_index': 'int32'})\ndef f(rows): pass\n", r"DuckDB's name"),
        ("import vlmdata\n@vlmdata.signal(columns={})\ndef f(rows): pass\n", r"line 2: `columns` is empty"),
    ],
)
def test_a_file_that_is_no_signal_is_refused_before_anything_runs(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match="no file"):
        python.schemas(options(tmp_path))
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=says):
        python.schemas(options(tmp_path))


def documented() -> str:
    """The example of docs/signals.md."""
    text = (Path(__file__).parents[1] / "docs" / "signals.md").read_text()
    return next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "vlmdata.signal" in block)


def test_the_example_of_the_documentation_runs_and_a_changed_file_is_measured_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brightness.py").write_text(documented())
    bright, dark = (made_dataset.picture_of(np.full((64, 64, 3), v, np.uint8)) for v in (250, 20))
    made = [made_dataset.pair("a white wall", bright), made_dataset.pair("a black cat", dark),
            made_dataset.pair("nothing", None, download_status="4xx")]  # fmt: skip
    changes = {
        "signals": [{"kind": "python", "path": "brightness.py"}],
        "dedup": [],
        "select": {"rules": {"bright": "brightness > 0.5"}},
    }
    dataset, manifest = made_dataset.publish(tmp_path, made, changes)
    (samples,) = (dataset.read_part(part["path"]) for part in manifest["samples"])
    found = dict(zip(samples["caption"].to_pylist(), samples["brightness"].to_pylist(), strict=True))
    assert found == {
        "a white wall": pytest.approx(250 / 255, abs=0.01),
        "a black cat": pytest.approx(20 / 255, abs=0.01),
        "nothing": None,
    }
    before = python.identity(recipe.PythonSignal(kind="python", path="brightness.py"))
    with Path("brightness.py").open("a") as file:
        file.write("\n# another thought\n")
    assert python.identity(recipe.PythonSignal(kind="python", path="brightness.py")) != before
