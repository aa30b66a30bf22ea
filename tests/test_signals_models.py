"""Loading models once, and batches of one size."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vlmdata.errors import MachineError
from vlmdata.signals.models import file_sha256, in_batches, loaded_once, package_file


def test_threads_that_ask_together_load_once() -> None:
    loads = []

    @loaded_once
    def load(name: str) -> object:
        time.sleep(0.05)
        loads.append(name)
        return object()

    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(load("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["a"]
    assert len(set(map(id, found))) == 1
    load("b")
    assert loads == ["a", "b"]


@pytest.mark.parametrize("n", [1, 7, 8, 9, 25])
def test_every_batch_has_the_same_size_and_every_item_its_row(n: int) -> None:
    sizes = []

    def run(items: list[int]) -> np.ndarray:
        sizes.append(len(items))
        return np.array(items)[:, None] * 2

    assert in_batches(run, range(n), 8).ravel().tolist() == [2 * item for item in range(n)]
    assert set(sizes) == {8}


def test_a_file_that_changed_has_another_hash(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = file_sha256(path)
    path.write_bytes(b"other")
    assert file_sha256(path) != first


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(MachineError, match="no_such_package"):
        package_file("no_such_package", "model")
    with pytest.raises(MachineError, match="no_such_file"):
        package_file("numpy", "no_such_file")
