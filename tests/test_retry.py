"""What failed is tried again in a new layer; what came stays untouched, and each pair counts once."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from datetime import datetime

import pyarrow as pa
import pytest
import yaml
from conftest import content, here, prefect_server
from hostile import serve
from made_dataset import picture

from vlmdata import catalog, cli, ingest, layers, snapshot
from vlmdata.dataset import Dataset
from vlmdata.download.outage import Progress, Tally, struck
from vlmdata.errors import InputError, OutageError
from vlmdata.parts import Table, part_name, table_folder
from vlmdata.pipelines import download as download_stage
from vlmdata.plan import make_plan
from vlmdata.recipe import Recipe
from vlmdata.schemas import table_schema
from vlmdata.select.reconsider import reconsider

RECIPE = {
    "dataset": "runs/it",
    "sources": [{"kind": "table", "name": "list", "path": "list.csv"}],
    "signals": ["text", "image"],
    "dedup": [
        {"kind": "exact", "merge": "captions"},
        {"kind": "perceptual", "groups": "semdedup", "merge": "captions"},
    ],
    "select": {"rules": {"words": "words >= 3"}},
    "shards": {"samples": 16, "splits": {"train": 0.7, "test": 0.3}},
    "parts": {"rows": 10},
}
FAILING = {n: "5xx" if n % 4 == 1 else "connect" for n in range(40) if n % 2 == 1}


class Pictures:
    """40 pictures on loopback. While `broken`, the odd ones come with 503 or not at all; 38 is never there. 1 is 0."""

    def __init__(self):
        self.broken, self.hold = True, None
        self.reached, self.free = threading.Event(), threading.Event()

    def __call__(self, wire):
        number = int(wire.path.strip("/").removesuffix(".jpg")) if wire.path.endswith(".jpg") else 38
        if number == self.hold:
            self.reached.set()
            self.free.wait(60)
        if number == 38:
            wire.answer(b"", "404 Not Found")
        elif self.broken and FAILING.get(number) == "5xx":
            wire.answer(b"", "503 Service Unavailable")
        elif not (self.broken and number in FAILING):
            wire.answer(picture(max(number, 2) if number else 2) if number != 1 else picture(2))


def write(folder, site, **changes):
    folder.mkdir()
    rows = [f"{site.url(f'/{n}.jpg')},a photo of the thing with number {n}\n" for n in range(40)]
    rows += [f"{site.url('/5.jpg')},the very same thing told in other words\n"]
    (folder / "list.csv").write_text("url,caption\n" + "".join(rows))
    download = {"allow_hosts": [site.host], "retries": 0, "timeout": 5, "size": 64}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, "download": download, **changes}))


def run(folder, *options):
    """(stdout, stderr) of the command line."""
    said = here(folder, "run", "recipe.yaml", *options)
    assert said.returncode == 0, said.stderr
    return said.stdout, said.stderr


def sql(folder, query):
    return catalog.query(catalog.connect(Dataset(str(folder / "runs/it"))), query).fetchall()


@pytest.fixture(scope="module")
def pictures():
    made = Pictures()
    with serve({"*": made}) as site:
        made.site = site
        yield made


@pytest.fixture(scope="module")
def first(pictures, tmp_path_factory):
    """A folder with a finished run in which every second picture failed."""
    folder = tmp_path_factory.mktemp("first") / "it"
    write(folder, pictures.site)
    run(folder)
    assert Counter(dict(sql(folder, "select download_status, count(*) from samples group by 1"))) == {
        "success": 19, "5xx": 11, "connect": 10, "4xx": 1,
    }  # fmt: skip
    pictures.broken = False
    pictures.site.seen.clear()
    return folder


@pytest.fixture(scope="module")
def retried(first, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("retried") / "it"
    shutil.copytree(first, folder)
    (folder / "run.log").write_text(run(folder, "--retry", "5xx,connect")[1])
    pictures.asked = pictures.site.paths()
    return folder


def test_only_what_failed_is_asked_for_again_and_the_rest_stays_byte_for_byte(first, retried, pictures):
    assert sorted(path for path in pictures.asked if path.endswith(".jpg")) == sorted(f"/{n}.jpg" for n in FAILING)
    before, after = content(first / "runs/it"), content(retried / "runs/it")
    changed = {name for name in before if before[name] != after[name]}
    manifests = {name for name in before if name.startswith(("tables/", "images/")) and name.endswith("manifest.json")}
    assert changed <= {"latest.json", *manifests}
    added = {name.rsplit("/", 1)[1].split(".")[0] for name in set(after) - set(before) if name.startswith("images/")}
    assert added == {"000002-0000000", "000002-0000001", "000002-0000002"}


def test_each_pair_counts_once_and_by_its_newest_row(retried):
    assert sql(retried, "select download_status, count(*) from samples group by 1 order by 1") == [
        ("4xx", 1), ("success", 40),
    ]  # fmt: skip
    for table in ("samples", "pairs", "images", "text", "image"):
        assert sql(retried, f"select count(*), count(distinct uid) from {table}") == [(41, 41)], table
    assert sql(retried, "select count(*) from samples s join images i using (uid) where s.sha256 = i.sha256") == [(40,)]
    manifest = Dataset(str(retried / "runs/it")).latest()
    assert manifest["number"] == 2
    assert manifest["funnel"][0]["left"] == 41
    # 1 came late and is the same picture as 0 and 2; 5 has two captions
    (group,) = sql(retried, "select list(distinct url order by url) from samples join duplicates using (uid) "
                            "where dup_method = 'exact' group by dup_group having count(distinct url) > 1")  # fmt: skip
    assert [url.rsplit("/", 1)[1] for url in group[0]] == ["0.jpg", "1.jpg", "2.jpg"]
    kept = {uid for (uid,) in sql(retried, "select uid from samples where kept")}
    shards = [retried / "runs/it" / shard["path"] for shard in manifest["shards"] if shard["format"] == "parquet"]
    inside = [uid for path in shards for uid in pa.parquet.read_table(path)["uid"].to_pylist()]
    assert sorted(inside) == sorted(kept)


def test_captions_are_merged_over_layers_and_the_funnel_is_that_of_all(retried):
    (captions,) = sql(retried, "select captions from samples where kept and url like '%/5.jpg'")
    assert sorted(captions[0]) == ["a photo of the thing with number 5", "the very same thing told in other words"]
    dataset = Dataset(str(retried / "runs/it"))
    published, steps, left_out = reconsider(dataset, [])
    assert published == steps == dataset.latest()["funnel"]
    assert not left_out
    assert [step["left"] for step in steps] == [41, 40, 40, 37, 37]
    assert reconsider(dataset, ["select.survivor=length(caption) asc"])[1] == steps
    assert list(snapshot.verify(dataset)) == []


def test_what_the_retry_came_to_is_said(retried):
    told = (retried / "run.log").read_text()
    assert "tried again: 21 pairs; 21 came (5xx 11 of 11, connect 10 of 10)" in told
    page = (retried / "runs/it/snapshots/000002/report.html").read_text()
    assert "Layer 2 tried 11 pairs again that had ended as 5xx; 11 came." in page
    with contextlib.chdir(retried):
        assert cli.guarded(lambda: cli.app(["verify", "runs/it"], standalone_mode=False)) == 0


def test_with_nothing_to_try_again_it_says_so_and_does_nothing(retried):
    before = content(retried / "runs/it")
    out, err = run(retried, "--retry", "dns,5xx")
    assert "nothing to try again: the downloads ended as 4xx 1, success 40" in err
    assert "nothing to do" in err
    assert out.strip().endswith("snapshots/000002")
    assert content(retried / "runs/it") == before


@pytest.mark.parametrize("options", [(), ("--retry", "5xx,connect")])
def test_a_retry_killed_in_its_download_goes_on_and_ends_with_the_same_bytes(killed, retried, tmp_path, options):
    folder = tmp_path / "it"
    shutil.copytree(killed, folder)
    run(folder, *options)
    assert content(folder / "runs/it") == content(retried / "runs/it")


@pytest.fixture(scope="module")
def killed(first, pictures, tmp_path_factory):
    """A folder in which a retry was killed while a picture of one of its parts was under way."""
    folder = tmp_path_factory.mktemp("killed") / "it"
    shutil.copytree(first, folder)
    layer = layers_of(folder)
    pictures.hold = 39
    command = [sys.executable, "-m", "vlmdata.cli", "run", "recipe.yaml", "--retry", "5xx,connect"]
    environment = {**os.environ, "PREFECT_API_URL": prefect_server()}
    null = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=null, stdout=null) as process:
        assert pictures.reached.wait(120)
        process.send_signal(signal.SIGKILL)
        process.wait()
    pictures.hold = None
    pictures.free.set()
    assert process.returncode == -signal.SIGKILL
    assert layers_of(folder) == {*layer, 2}
    assert Dataset(str(folder / "runs/it")).latest()["number"] == 1
    return folder


def layers_of(folder):
    (path,) = (folder / "runs/it/tables/pairs").glob("*/manifest.json")
    return {int(part["name"].split("-")[0]) for part in json.loads(path.read_text())["parts"]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--retry", "5xxx"), "--retry: there is no error class '5xxx'; did you mean '5xx'?"),
        (("--retry", "success"), "there is no error class 'success'"),
        (("--retry", "dns", "--stages", "select"), "--stages leaves the download out"),
    ],
)
def test_a_wrong_class_is_refused(tmp_path, capfd, options, message):
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a/b.jpg,c\n")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    with contextlib.chdir(tmp_path):
        code = cli.guarded(lambda: cli.app(["run", "recipe.yaml", *options], standalone_mode=False))
    assert code == InputError.exit_code
    assert message in capfd.readouterr().err


# Layers by themselves


def tables(dataset, *statuses, rows=2):
    """`pairs`, `images` and a table beside: layer 1 with a pair for each status."""
    uids = [f"{n:032x}" for n in range(len(statuses))]
    made = {"pairs": [], "images": [], "beside": []}
    for number, start in enumerate(range(0, len(uids), rows)):
        names = {"uid": uids[start : start + rows]}
        ended = {**names, "download_status": list(statuses[start : start + rows])}
        url = {**names, "url": [f"http://a/{uid}" for uid in names["uid"]], "caption": names["uid"]}
        for table, columns in (("pairs", url), ("images", ended), ("beside", {**names, "score": names["uid"]})):
            content = pa.table(columns)
            if table != "beside":
                schema = table_schema(table)
                content = pa.table(
                    [columns.get(f.name, pa.nulls(len(names["uid"]), f.type)) for f in schema], schema=schema
                )
            made[table].append(dataset.write_part(table, "k", part_name(number), content, {}))
    return [Table(name, "k", tuple(parts)) for name, parts in made.items()]


def follow(dataset, pairs, images, status):
    """Let `images` follow into the newest layer, all with one status."""
    parts = list(images.parts)
    for part in pairs.parts[len(parts) :]:
        uids = dataset.read_part(part, ["uid"])["uid"]
        schema = table_schema("images")
        columns = {"uid": uids, "download_status": [status] * len(uids)}
        rows = pa.table([columns.get(f.name, pa.nulls(len(uids), f.type)) for f in schema], schema=schema)
        parts.append(dataset.write_part("images", "k", part.name, rows, {}))
    return Table("images", "k", tuple(parts))


def test_a_layer_has_copies_in_order_and_the_newest_row_is_in_force(tmp_path):
    dataset = Dataset(str(tmp_path))
    pairs, images, beside = tables(dataset, "dns", "success", "dns", "5xx", "dns", "success", "timeout")
    assert layers.in_force(dataset, pairs) == {}
    assert layers.retry(dataset, [pairs, beside], images, ["tls"], 2) == []
    grown, also = layers.retry(dataset, [pairs, beside], images, ["dns", "5xx"], 3)
    assert [part.name for part in grown.parts[4:]] == ["000002-0000000", "000002-0000001"]
    assert [part.rows for part in grown.parts[4:]] == [3, 1]
    copies = pa.concat_tables([dataset.read_part(part) for part in grown.parts[4:]])
    assert {int(uid, 16) for uid in copies["uid"].to_pylist()} == {0, 2, 3, 4}
    by_hash = ingest.connect(tmp_path).execute(
        "select * from (select unnest($1) u) order by md5(u)", [copies["url"].to_pylist()]
    )
    assert [url for (url,) in by_hash.fetchall()] == copies["url"].to_pylist()
    assert dataset.read_table("beside", "k") == also
    assert [dataset.read_part(part)["uid"].to_pylist() for part in also.parts[4:]] == [
        dataset.read_part(part)["uid"].to_pylist() for part in grown.parts[4:]
    ]
    assert {name: mask.to_pylist() for name, mask in layers.in_force(dataset, grown).items()} == {
        "000001-0000000": [False, True], "000001-0000001": [False, False], "000001-0000002": [False, True],
    }  # fmt: skip
    assert dataset.read_table("pairs", "k") == grown
    # a third layer out of the second and the first
    images = follow(dataset, grown, images, "5xx")
    assert layers.statuses(dataset, grown, images) == {"5xx": 4, "success": 2, "timeout": 1}
    assert layers.cut(dataset, also, pairs) == beside  # as after a kill between the two manifests
    assert dataset.read_table("beside", "k") == beside
    third, _ = layers.retry(dataset, [grown, also], images, ["5xx", "timeout"], 9)
    masks = layers.in_force(dataset, third)
    kept = [
        mask
        for part in third.parts
        for mask in (masks[part.name].to_pylist() if part.name in masks else [True] * part.rows)
    ]
    assert sum(kept) == 7
    assert [part.name for part in third.parts[6:]] == ["000003-0000000"]
    assert third.parts[6].rows == 5
    images = follow(dataset, third, images, "success")
    manifest = {"tables": {"images": {"parts": [vars(part) for part in images.parts]}}}
    assert layers.outcomes(dataset, manifest) == [
        {"layer": 2, "before": "5xx", "tried": 1, "came": 0},
        {"layer": 2, "before": "dns", "tried": 3, "came": 0},
        {"layer": 3, "before": "5xx", "tried": 4, "came": 4},
        {"layer": 3, "before": "timeout", "tried": 1, "came": 1},
    ]


# When nearly everything fails in one way


@pytest.mark.parametrize(
    ("outcomes", "expected", "open_", "absurd"),
    [
        ({"dns": 200}, (), 0, True),
        ({"dns": 199}, (), 0, False),  # too few to say
        ({"dns": 195, "success": 5}, (), 0, True),
        ({"dns": 190, "success": 10}, (), 0, False),
        ({"dns": 200}, (), 64, False),  # those under way might come
        ({"dns": 1300}, (), 64, True),
        ({"dns": 200, "robots": 1000}, (), 0, True),  # the refused were not tried
        ({"dns": 1000}, ("dns",), 0, False),  # chosen for it
        ({"4xx": 1000}, (), 0, False),  # an old list
    ],
)
def test_only_an_absurd_share_stops_the_download(outcomes, expected, open_, absurd):
    tally = Tally(0.95, expected)
    for status, count in outcomes.items():
        for _ in range(count):
            tally.add(status, "words")
    with pytest.raises(OutageError, match=r"200 of 200|195 of 200|1,300") if absurd else contextlib.nullcontext():
        tally.check(open_)


def test_slow_hosts_are_not_counted_out_before_they_answer():
    dead = [f"http://dead{n}.example/x.jpg" for n in range(3000)]
    slow = [f"http://slow.example/{n}.jpg" for n in range(1000)]
    part = Progress(0.95, (), [*dead, *slow], at_once=64)
    for url in slow[:10]:
        part.told(url, "success", None)
    for url in dead:
        part.told(url, "dns", "no address")
    alone = Progress(0.95, (), dead, at_once=64)
    for url in dead[:1399]:
        alone.told(url, "dns", "no address")
    with pytest.raises(OutageError, match=r"1,400 of 1,400 pairs ended as 'dns' \(no address\)"):
        alone.told(dead[1399], "dns", "no address")


def downloading(folder, urls, rows, **options):
    folder.mkdir(exist_ok=True)
    (folder / "list.csv").write_text("url,caption\n" + "".join(f"{url},a caption\n" for url in urls))
    recipe = Recipe.model_validate(
        {
            "dataset": str(folder / "data"),
            "sources": [{"kind": "table", "name": "list", "path": str(folder / "list.csv")}],
            "download": {"retries": 0, "concurrency": 2, **options},
            "parts": {"rows": rows},
            "runner": {"workers": 1},
        }
    )
    plan, dataset = make_plan(recipe), Dataset(recipe.dataset)
    found = ingest.read_source(dataset, recipe.sources[0], plan.found["list"])
    return plan, dataset, ingest.unite(dataset, [found], plan.pairs, rows, None)


def test_an_outage_that_begins_amid_a_small_part_takes_that_part_too(tmp_path):
    """Parts of 40 rows; after 60 answers there is a login page. Of the second part 20 images came, all others failed:
    not nearly all, and yet none of it is to stay."""
    answers, away = itertools.count(), threading.Event()
    away.set()

    def answer(wire):
        wire.answer(b"<html>please log in</html>" if next(answers) >= 60 and away.is_set() else picture(1))

    with serve({"*": answer}) as site:
        urls = [site.url(f"/{n}.jpg") for n in range(600)]
        plan, dataset, pairs = downloading(tmp_path, urls, 40, allow_hosts=[site.host])
        with pytest.raises(OutageError):
            download_stage.run(plan, dataset, pairs)
        folder = table_folder("images", plan.images)
        kept = [part.name for part in pairs.parts if dataset.exists(f"{folder}/{part.name}.parquet")]
        assert kept == [pairs.parts[0].name]
        away.clear()
        images = download_stage.run(plan, dataset, pairs)
    assert layers.statuses(dataset, pairs, images) == {"success": 600}


def test_an_outage_strikes_what_nothing_was_answered_behind_asked_for_or_not():
    def part(*rows):
        statuses, seconds = zip(*rows, strict=True)
        times = [None if second is None else datetime(2026, 1, 1, 0, 0, second) for second in seconds]
        columns = {"download_status": statuses, "error": statuses, "fetched_at": pa.array(times, pa.timestamp("us"))}
        return pa.table(columns)

    parts = {
        "well": part(("success", 1), ("connect", 2), ("404", 9), ("dns", None)),
        "its own": part(("success", 10), ("connect", 11), ("success", 20)),
        "struck": part(*[("success", 20)] * 20, *[("connect", 21)] * 20),
        "no robots.txt": part(*[("success", 22)] * 20, *[("connect", None)] * 20),
        "refused": part(("success", 21), ("robots", 23)),
    }
    ended = [(name, rows, ()) for name, rows in parts.items()]
    assert struck(ended, 0.95, deadline=3) == ["no robots.txt", "struck"]
    assert struck([("retried", parts["struck"], ["connect"])], 0.95, deadline=3) == []


@pytest.mark.parametrize("rows", [40, 1000])
def test_an_outage_stops_the_download_early_and_leaves_nothing_recorded(tmp_path, rows):
    state = {"body": b"<html>please log in</html>"}
    with serve({"*": lambda wire: wire.answer(state["body"])}) as site:
        urls = [site.url(f"/{n}.jpg") for n in range(600)]
        plan, dataset, pairs = downloading(tmp_path, urls, rows, allow_hosts=[site.host])
        with pytest.raises(OutageError, match=r"of (200|400) pairs ended as '(decode|type)'") as stopped:
            download_stage.run(plan, dataset, pairs)
        assert len(site.seen) < 500
        assert site.host not in str(stopped.value)
        assert not list((tmp_path / "data/images").rglob("*.parquet"))
        assert not list((tmp_path / "data/tables/observations").rglob(f"{plan.images}/*"))
        assert not (tmp_path / "data/work").exists()
        state["body"] = picture(1)
        images = download_stage.run(plan, dataset, pairs)
    assert layers.statuses(dataset, pairs, images) == {"success": 600}
