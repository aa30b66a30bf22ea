"""What will not fit is refused before it is begun."""

from collections import namedtuple

import pytest

from vlmdata import disk
from vlmdata.dataset import Dataset
from vlmdata.errors import MachineError
from vlmdata.parts import File, Part, Table
from vlmdata.recipe import Download

Usage = namedtuple("Usage", "total used free")


def part(name, rows, *sizes):
    return Part(name, f"{name}.parquet", rows, 10, "", tuple(File(f"{name}.tar", size, "") for size in sizes))


def test_the_estimate_follows_what_has_come(tmp_path):
    earlier = Table("images", "key", (part("000001-0000000", 100, 2_000_000), part("000001-0000001", 100, 0)))
    missing = [part("000002-0000000", 50), part("000002-0000001", 50)]
    assert disk.images(earlier, missing, Download()) == 1_000_000
    assert disk.images(earlier, [], Download()) == 0
    assert 0 < disk.images(None, missing, Download(size=256)) < disk.images(None, missing, Download(size=512))


def test_more_than_is_free_is_refused_with_both_numbers(tmp_path, monkeypatch):
    dataset = Dataset(str(tmp_path))
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(10**12, 0, 3 * 10**9))
    disk.check(dataset, 3 * 10**9, "the download", 0)
    with pytest.raises(MachineError, match=r"the download will take about 4\.2 GB, .* has 3\.0 GB free"):
        disk.check(dataset, 4.2e9, "the download", 0)


def test_of_a_remote_dataset_what_lies_here_before_it_is_uploaded_must_fit(monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: Usage(10**12, 0, 3 * 10**9))
    disk.check(Dataset("memory://it"), 1e18, "the download", 2.9e9)
    with pytest.raises(MachineError, match=r"about 3\.1 GB, .*uploaded, or set XDG_CACHE_HOME"):
        disk.check(Dataset("memory://it"), 1e18, "the download", 3.1e9)
    disk.check(Dataset("memory://it"), 1e9, "the download", 3.1e9)
