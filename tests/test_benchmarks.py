"""Benchmarks that call inner functions run on something small, so that a changed signature is noticed."""

import sys
from pathlib import Path

import pytest
from made_warc import pack, response, wat, write

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_balance
import bench_extract
import bench_forget

from vlmdata.dataset import Dataset


@pytest.mark.parametrize("form", ["warc", "wat"])
def test_extraction(tmp_path: Path, form: str) -> None:
    pages = [response(f"https://h.example/{n}", f"<img src={n}.png alt='image {n}'>") for n in range(3)]
    path = write(tmp_path / "x.gz", pack(pages if form == "warc" else wat(b"".join(pages))))
    assert bench_extract.ours(str(path), form) == 3


@pytest.mark.parametrize("library", ["ahocorasick_rs, bytes", "ahocorasick_rs, text", "vlmdata: match"])
def test_balance(library: str) -> None:
    row = bench_balance.measure(library, [200, 50, 6], bench_balance.PEERS)
    assert row["matches"] >= 50


def test_forgetting(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path))
    bench_forget.make(dataset, 200)
    found = bench_forget.measure(dataset, bench_forget.uid_of(100))["found"]
    assert found == {
        bench_forget.uid_of(100): "uid", bench_forget.uid_of(101): "the same URL",
        bench_forget.uid_of(150): "the same bytes", bench_forget.uid_of(151): "the same URL",
    }  # fmt: skip
