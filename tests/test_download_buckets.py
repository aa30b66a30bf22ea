"""Where several processes download, one of them asks a host; the parts are the same as one process makes them.

`test_runner_dask.py` has the test with two real ones.
"""

import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import content
from hostile import Site, Wire, send, serve
from test_download import picture
from test_download_polite import names_answered

from vlmdata import ingest
from vlmdata.dataset import Dataset, Table
from vlmdata.download import network
from vlmdata.errors import OutageError
from vlmdata.pipelines import download, fetch
from vlmdata.pipelines.runner import _attempt
from vlmdata.plan import Plan, make_plan
from vlmdata.recipe import Consent, Recipe, Runner

HOSTS, EACH = 5, 8
AT_ONCE = 2


@dataclass
class Counting:
    """A route that takes its time, counts the requests that it deals with at once, and notes when they came."""

    seconds: float = 0.0
    busy: int = 0
    most: int = 0
    times: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, wire: Wire) -> None:
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
            self.times.append(time.monotonic())
        wire.sleep(self.seconds)
        with self.lock:
            self.busy -= 1
        wire.answer(picture(len(wire.path)) if "gone" not in wire.path else b"")

    def fastest(self, count: int) -> float:
        """The fewest seconds in which so many requests came one after the other."""
        times = sorted(self.times)
        return min(last - first for first, last in zip(times, times[count:], strict=False))


@pytest.fixture
def sites() -> Iterator[list[Site]]:
    with several_sites() as sites:
        yield sites


@contextmanager
def several_sites() -> Iterator[list[Site]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serve({"*": Counting()})) for _ in range(HOSTS)]


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The process has met no host, and afterwards is back in its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(network, "NETWORK", network.Network())


def ingested(
    folder: Path, sites: list[Site], rows: int, runner: dict[str, Any], rate: float = 1e6
) -> tuple[Plan, Dataset, Table]:
    folder.mkdir()
    os.chdir(folder)  # one recipe, and so one key, in every folder
    urls = [site.url(f"/{n}{'x' * (n % 3)}.jpg") for site in sites for n in range(EACH)]
    urls += [urls[0]] * 3 + [f"{urls[1]}?gone", "http://[no", "http://127.0.0.1:1/blocked.jpg"]
    captions = (f"caption {number}" for number in itertools.count())
    (folder / "list.csv").write_text("url,caption\n" + "".join(f"{url},{next(captions)}\n" for url in urls))
    options = {"size": 32, "retries": 0, "allow_hosts": [site.host for site in sites]}
    recipe = Recipe.model_validate(
        {
            "dataset": "data",
            "sources": [{"kind": "table", "name": "list", "path": "list.csv"}],
            "download": {**options, "host_rate": rate, "per_host": AT_ONCE},
            "parts": {"rows": rows},
            "runner": runner,
        }
    )
    plan, dataset = make_plan(recipe), Dataset(recipe.dataset)
    found = ingest.read_source(dataset, recipe.sources[0], plan.found["list"])
    return plan, dataset, ingest.unite(dataset, [found], plan.pairs, rows, None)


def downloaded(dataset: Dataset) -> dict[str, bytes]:
    """What a download leaves, without the tables whose manifests name the time of reading."""
    return {name: data for name, data in content(Path(dataset.root)).items() if not name.startswith("tables/found")}


def in_turn(
    monkeypatch: pytest.MonkeyPatch, workers: int = 2, told: Callable[[str, int], None] = lambda *_: None
) -> None:
    """So many processes as the stage sees them, played by this one, element by element, without an engine's start."""

    def run_parts(dataset: Dataset, stage: str, work: Callable, elements: list, runner: Runner) -> list:
        results = []
        for number, element in enumerate(elements):
            told(stage, number)
            _, outcome = _attempt((number, element), work, dataset.guard, stage)
            if "error" in outcome:
                dataset.remove("work")
                raise getattr(download, outcome["error"], RuntimeError)(outcome["message"])
            results.append(outcome["result"])
        dataset.remove("work")
        return results

    monkeypatch.setattr(download, "run_parts", run_parts)
    monkeypatch.setattr(download, "processes", lambda _: workers)
    monkeypatch.setattr(download, "at_once", lambda _: 1)


@pytest.mark.parametrize("then", [1, 2])
def test_a_kill_costs_what_is_in_flight_whoever_goes_on(
    tmp_path: Path, sites: list[Site], monkeypatch: pytest.MonkeyPatch, then: int
) -> None:
    plan, dataset, pairs = ingested(tmp_path / "it", sites, 10, {"kind": "dask"})
    asked: list[int] = []
    kills = [("download", 3), ("images", 2)]

    def killed(stage: str, number: int) -> None:
        if (stage, number) == kills[len(asked)]:
            asked.append(sum(len(site.seen) for site in sites))
            raise KeyboardInterrupt

    in_turn(monkeypatch, told=killed)
    for _ in kills:
        with pytest.raises(KeyboardInterrupt):
            download.run(plan, dataset, pairs)
        assert dataset.exists(fetch.WORK)
    assert asked[0] <= asked[1]
    assert asked[1] >= HOSTS * EACH // 2
    in_turn(monkeypatch, then)
    download.run(plan, dataset, pairs)
    for site in sites:
        images = [path for path in site.paths() if path.endswith(("jpg", "gone"))]
        assert len(images) == len(set(images))
    assert not dataset.exists(fetch.WORK)
    in_turn(monkeypatch, 1)
    one = ingested(tmp_path / "one", sites, 10, {"kind": "dask"})
    download.run(*one)
    assert downloaded(one[1]) == downloaded(dataset)


def test_what_was_fetched_before_a_list_changed_is_fetched_again(
    tmp_path: Path, sites: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, dataset, pairs = ingested(tmp_path / "it", sites, 100, {"kind": "dask"})

    def killed(stage: str, number: int) -> None:
        if stage == "images":
            raise KeyboardInterrupt

    in_turn(monkeypatch, told=killed)
    with pytest.raises(KeyboardInterrupt):
        download.run(plan, dataset, pairs)
    listed = [site.url(path) for site in sites[:1] for path in site.paths() if path.endswith(("jpg", "gone"))]
    (tmp_path / "no.txt").write_text("\n".join(listed))
    plan = make_plan(plan.recipe.model_copy(update={"consent": Consent(optout=[str(tmp_path / "no.txt")])}))
    seen = [len(site.seen) for site in sites]
    in_turn(monkeypatch)
    images = download.run(plan, dataset, pairs)
    rows = pa.concat_tables(dataset.read_part(part) for part in images.parts)["download_status"].to_pylist()
    assert rows.count("optout") == EACH + 4
    assert rows.count("success") == EACH * (HOSTS - 1)
    more = [len(site.seen) - before for site, before in zip(sites, seen, strict=True)]
    assert more[0] == 0
    assert min(more[1:]) >= EACH


def test_a_large_host_that_is_down_stops_nothing_and_a_network_that_is_down_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn(monkeypatch)

    def run(name: str, urls: list[str], *sites: Site) -> dict[str, int]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "list.csv").write_text("url,caption\n" + "".join(f"{url},a caption\n" for url in urls))
        recipe = Recipe.model_validate(
            {
                "dataset": str(tmp_path / name / "data"),
                "sources": [{"kind": "table", "name": "list", "path": str(tmp_path / name / "list.csv")}],
                "download": {"size": 32, "retries": 0, "allow_hosts": [site.host for site in sites], "concurrency": 2},
                "parts": {"rows": 1000},
                "runner": {"kind": "dask"},
            }
        )
        plan, dataset = make_plan(recipe), Dataset(recipe.dataset)
        found = ingest.read_source(dataset, recipe.sources[0], plan.found["list"])
        pairs = ingest.unite(dataset, [found], plan.pairs, 1000, None)
        try:
            images = download.run(plan, dataset, pairs)
        finally:
            assert not dataset.exists(fetch.WORK)
            assert not dataset.exists("work")
        statuses = [row for part in images.parts for row in dataset.read_part(part)["download_status"].to_pylist()]
        return {status: statuses.count(status) for status in statuses}

    quiet = {"/robots.txt": send(b"", "404 Not Found")}
    with serve({"*": send(b"<html>log in</html>"), **quiet}) as down, serve({"*": send(picture()), **quiet}) as well:
        urls = [down.url(f"/{n}.jpg") for n in range(260)] + [well.url(f"/{n}.jpg") for n in range(40)]
        assert run("host", urls, down, well) == {"type": 260, "success": 40}

    def no_answer(_: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    with names_answered(monkeypatch, no_answer) as asked, pytest.raises(OutageError, match="ended as 'dns'"):
        run("network", [f"http://nobody{n}.example/a.jpg" for n in range(3000)])
    assert len(asked) < 600  # before the first bucket is through
