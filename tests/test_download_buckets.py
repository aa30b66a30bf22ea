"""Where several processes download, one of them asks a host; the parts are the same as one process makes them.

`test_runner_dask.py` has the test with two real ones.
"""

import itertools
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import content
from hostile import Counting, Site, Wire, send, serve
from test_download import picture
from test_download_polite import names_answered

from vlmdata import ingest
from vlmdata.dataset import Dataset
from vlmdata.download import network
from vlmdata.download.buckets import buckets
from vlmdata.errors import OutageError
from vlmdata.parts import Table
from vlmdata.pipelines import download, fetch
from vlmdata.pipelines.runner import _attempt
from vlmdata.plan import Plan, make_plan
from vlmdata.recipe import Consent, Recipe, Runner

HOSTS, EACH = 5, 8
AT_ONCE = 2


def answer(wire: Wire) -> None:
    wire.answer(picture(len(wire.path)) if "gone" not in wire.path else b"")


def fastest(route: Counting, count: int) -> float:
    """The fewest seconds in which so many requests came one after the other."""
    times = sorted(route.times)
    return min(last - first for first, last in zip(times, times[count:], strict=False))


@pytest.fixture
def sites() -> Iterator[list[Site]]:
    with several_sites() as sites:
        yield sites


@contextmanager
def several_sites(count: int = HOSTS) -> Iterator[list[Site]]:
    with ExitStack() as stack:
        yield [stack.enter_context(serve({"*": Counting(answer)})) for _ in range(count)]


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The process has met no host, and afterwards is back in its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(network, "NETWORK", network.Network())


def ingested(
    folder: Path, sites: list[Site], rows: int, runner: dict[str, Any], rate: float = 1e6, each: int = EACH
) -> tuple[Plan, Dataset, Table]:
    folder.mkdir()
    os.chdir(folder)  # one recipe, and so one key, in every folder
    urls = [site.url(f"/{n}{'x' * (n % 3)}.jpg") for site in sites for n in range(each)]
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
                raise getattr(download, outcome["error"], RuntimeError)(outcome["message"])
            results.append(outcome["result"])
        dataset.remove("work")
        return results

    monkeypatch.setattr(download, "engine", nullcontext)
    monkeypatch.setattr(download, "run_parts", run_parts)
    monkeypatch.setattr(download, "processes", lambda _: workers)
    monkeypatch.setattr(download, "at_once", lambda _: 1)


class Kill:
    """A process that dies at the `at`th commit or removal of its dataset, and in its first removal of `WORK`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at, self.removed = -1, False
        commit, remove = Dataset.commit, Dataset.remove

        def committed(dataset: Dataset, aside: Path, relative: str) -> Any:
            self.die()
            return commit(dataset, aside, relative)

        def half_removed(dataset: Dataset, relative: str) -> None:
            self.die()
            if relative == fetch.WORK and dataset.exists(relative) and self.at > 0 and not self.removed:
                self.removed = True
                for path in Path(dataset.path(fetch.FETCHED)).iterdir():
                    path.unlink()
                raise KeyboardInterrupt
            remove(dataset, relative)

        monkeypatch.setattr(Dataset, "commit", committed)
        monkeypatch.setattr(Dataset, "remove", half_removed)

    def die(self) -> None:
        self.at -= 1
        if self.at == 0:
            raise KeyboardInterrupt


def test_a_kill_anywhere_costs_what_is_in_flight_whoever_goes_on(
    tmp_path: Path, sites: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, dataset, pairs = ingested(tmp_path / "it", sites, 10, {"kind": "dask"})
    rows = pa.concat_tables(dataset.read_part(part) for part in pairs.parts)
    url_of = dict(zip(rows["uid"].to_pylist(), rows["url"].to_pylist(), strict=True))
    settled: dict[str, int] = {}  # URL -> times that it had been asked for when its outcome was committed

    def asked() -> Counter[str]:
        return Counter(site.url(path) for site in sites for path in site.paths())

    kill = Kill(monkeypatch)
    for number in itertools.count(1):
        kill.at = number
        # Who has one process goes on with a group, too.
        in_turn(monkeypatch, 1 if number % 3 == 0 and dataset.exists(f"{fetch.WORK}/group.json") else 2)
        try:
            download.run(plan, dataset, pairs)
            break
        except KeyboardInterrupt:
            for path in Path(dataset.path(fetch.FETCHED)).glob("*.arrow"):
                uids = pa.ipc.open_file(path).read_all()["uid"].to_pylist()
                settled = {url_of[uid]: asked()[url_of[uid]] for uid in uids} | settled
    kill.at = -1
    assert kill.removed
    assert number > 5
    assert len(settled) > HOSTS * EACH // 2
    assert {url: asked()[url] for url in settled} == settled
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


def made(folder: Path, urls: list[str], **options: Any) -> tuple[Plan, Dataset, Table]:
    folder.mkdir(exist_ok=True)
    (folder / "list.csv").write_text("url,caption\n" + "".join(f"{url},a caption\n" for url in urls))
    recipe = Recipe.model_validate(
        {
            "dataset": str(folder / "data"),
            "sources": [{"kind": "table", "name": "list", "path": str(folder / "list.csv")}],
            "download": {"size": 32, "retries": 0, "stop_share": 0.95, **options},
            "parts": {"rows": 1000},
            "runner": {"kind": "dask"},
        }
    )
    plan, dataset = make_plan(recipe), Dataset(recipe.dataset)
    found = ingest.read_source(dataset, recipe.sources[0], plan.found["list"])
    return plan, dataset, ingest.unite(dataset, [found], plan.pairs, 1000, None)


def ended(dataset: Dataset, images: Table) -> Counter[str]:
    return Counter(row for part in images.parts for row in dataset.read_part(part)["download_status"].to_pylist())


QUIET = {"/robots.txt": send(b"", "404 Not Found")}


def test_a_large_host_that_is_down_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_turn(monkeypatch)
    with serve({"*": send(b"<html>log in</html>"), **QUIET}) as down, serve({"*": send(picture()), **QUIET}) as well:
        urls = [down.url(f"/{n}.jpg") for n in range(260)] + [well.url(f"/{n}.jpg") for n in range(40)]
        plan, dataset, pairs = made(tmp_path, urls, allow_hosts=[down.host, well.host], concurrency=2)
        assert ended(dataset, download.run(plan, dataset, pairs)) == {"type": 260, "success": 40}
    assert not dataset.exists(fetch.WORK)


def test_a_network_that_is_down_costs_the_buckets_that_it_has_struck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three buckets the first is well, the second too small to tell, and in the third it is seen."""
    in_turn(monkeypatch, 3)

    def answer(name: str) -> list[str]:
        if name.startswith("nobody"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return ["127.0.0.1"]

    def named(kind: str, bucket: int, count: int) -> list[str]:
        urls = [f"http://{kind}{n}.example:{well.port}/a.jpg" for n in range(9 * count + 50)]
        return [url for url, its in zip(urls, buckets(pa.chunked_array([urls]), 3), strict=True) if its == bucket][
            :count
        ]

    with serve({"*": send(picture()), **QUIET}) as well, names_answered(monkeypatch, answer) as asked:
        (good,) = named("good", 0, 1)
        urls = [f"{good}?{n}" for n in range(30)] + named("nobody", 1, 20) + named("nobody", 2, 250)
        options = {"allow_hosts": [good.split("/")[2]]}
        plan, dataset, pairs = made(tmp_path, urls, **options)
        with pytest.raises(OutageError, match="250 of 250 pairs ended as 'dns'"):
            download.run(plan, dataset, pairs)
        seen = len(well.seen)
        assert seen >= 30
        assert [path.name for path in Path(dataset.path(fetch.FETCHED)).glob("*.arrow")] == ["0-0.arrow"]
        monkeypatch.setattr(network, "NETWORK", network.Network())
        asked.clear()
        truly = make_plan(
            plan.recipe.model_copy(update={"download": plan.recipe.download.model_copy(update={"stop_share": 1})})
        )
        assert ended(dataset, download.run(truly, dataset, pairs)) == {"success": 30, "dns": 270}
        assert len(set(asked)) == 270
        assert len(well.seen) == seen
    assert not dataset.exists(fetch.WORK)
