"""Benchmarks that call inner functions run on something small, so that a changed signature is noticed."""

import sys
from pathlib import Path

import pytest
from made_warc import pack, response, wat, write

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench_balance
import bench_extract


@pytest.mark.parametrize("form", ["warc", "wat"])
def test_extraction(tmp_path: Path, form: str) -> None:
    pages = [response(f"https://h.example/{n}", f"<img src={n}.png alt='image {n}'>") for n in range(3)]
    path = write(tmp_path / "x.gz", pack(pages if form == "warc" else wat(b"".join(pages))))
    assert bench_extract.ours(str(path), form) == 3


@pytest.mark.parametrize("library", ["ahocorasick_rs, bytes", "ahocorasick_rs, text", "vlmdata: match"])
def test_balance(library: str) -> None:
    row = bench_balance.measure(library, [200, 50, 6], bench_balance.PEERS)
    assert row["matches"] >= 50
