"""What is new in files becomes a layer of pairs, also after a kill between two of its steps."""

import csv
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vlmdata import ingest, refresh
from vlmdata.dataset import Dataset
from vlmdata.plan import make_plan
from vlmdata.recipe import Recipe
from vlmdata.sources import files, states, table


def write(path, *captions):
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["url", "caption"])
        rows.writerows([f"http://h.example/{caption.replace(' ', '-')}.jpg", caption] for caption in captions)


@pytest.fixture
def made(tmp_path):
    """(folder of the lists, dataset, plan, pairs, what was found), with one list read."""
    (tmp_path / "lists").mkdir()
    write(tmp_path / "lists/a.csv", "one thing", "two things")
    recipe = Recipe.model_validate({
        "dataset": str(tmp_path / "it"),
        "sources": [{"kind": "table", "name": "lists", "path": str(tmp_path / "lists/*.csv")}],
        "parts": {"rows": 2},
    })  # fmt: skip
    dataset, plan = Dataset(recipe.dataset), make_plan(recipe)
    found = ingest.read_source(dataset, recipe.sources[0], plan.found["lists"])
    pairs = ingest.unite(dataset, [found], plan.pairs, 2, None)
    return tmp_path / "lists", dataset, plan, pairs, found


def again(dataset, plan):
    return refresh.read_again(
        dataset, plan.recipe.sources[0], plan.found["lists"], dataset.read_table("found", plan.found["lists"])
    )


def captions(dataset, parts):
    return sorted(caption for part in parts for caption in dataset.read_part(part)["caption"].to_pylist())


def test_only_new_and_changed_files_are_read_and_only_new_pairs_become_a_layer(made, monkeypatch):
    folder, dataset, plan, pairs, found = made
    assert again(dataset, plan) == found
    write(folder / "b.csv", "three things", "one thing")
    write(folder / "c.csv", "four things", "five things")
    read = []
    batches = table.READERS["csv"][1]
    monkeypatch.setitem(
        table.READERS,
        "csv",
        (table.READERS["csv"][0], lambda file, names: (read.append(file), batches(file, names))[1]),
    )
    grown = again(dataset, plan)
    assert sorted(os.path.basename(file.path) for file in read) == ["b.csv", "c.csv"]
    (layer,) = refresh.add_layer(dataset, plan, pairs, None, [grown])
    assert layer.parts[: len(pairs.parts)] == pairs.parts
    added = layer.parts[len(pairs.parts) :]
    assert [part.name for part in added] == ["000002-0000000", "000002-0000001"]
    assert captions(dataset, added) == ["five things", "four things", "three things"]
    assert again(dataset, plan) == grown
    assert refresh.pending(layer, grown) == []
    assert refresh.add_layer(dataset, plan, layer, None, [grown]) == []

    write(folder / "a.csv", "one thing", "two things", "six things")
    (third,) = refresh.add_layer(dataset, plan, layer, None, [again(dataset, plan)])
    assert third.layer == 3
    assert captions(dataset, third.parts[-1:]) == ["six things"]


def test_what_was_found_before_a_kill_is_not_lost(made):
    folder, dataset, plan, pairs, _ = made
    write(folder / "b.csv", "three things")
    again(dataset, plan)  # killed here: found has it, pairs has not
    found = dataset.read_table("found", plan.found["lists"])
    assert len(refresh.pending(pairs, found)) == 1
    (layer,) = refresh.add_layer(dataset, plan, pairs, None, [found])
    assert captions(dataset, layer.parts[-1:]) == ["three things"]


def test_a_layer_that_is_dropped_is_read_again(made):
    folder, dataset, plan, pairs, _ = made
    write(folder / "b.csv", "three things")
    (layer,) = refresh.add_layer(dataset, plan, pairs, None, [again(dataset, plan)])
    latest = {"tables": {"pairs": {"parts": [{"name": part.name} for part in pairs.parts]}}}
    (back,) = refresh.discard(dataset, layer, None, latest)
    assert back.parts == pairs.parts
    write(folder / "b.csv", "three other things")
    (layer,) = refresh.add_layer(dataset, plan, back, None, [again(dataset, plan)])
    assert captions(dataset, layer.parts[-1:]) == ["three other things"]


def test_a_file_on_the_web_is_told_by_its_validators_and_read_each_time_without():
    said = {}

    class Web(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            for name, value in {"Content-Length": "5", **said}.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/list.csv"
        ((filesystem, path),) = files.find(url, "here")
        assert files.version(filesystem, path, "here") is None
        said |= {"ETag": '"a"'}
        first = files.version(filesystem, path, "here")
        assert first == files.version(filesystem, path, "here")
        said |= {"ETag": '"b"'}
        assert files.version(filesystem, path, "here") not in (None, first)
        server.shutdown()
    assert refresh.changed({"x": None, "y": "1"}, {"x": None, "y": "1", "z": "1"}) == ["x", "z"]


@pytest.mark.parametrize("change", ["image", "caption", "new"])
def test_a_folder_tells_what_changed_beside_an_image(tmp_path, change):
    for name in ("a.jpg", "a.txt", "b.jpg", "b.json"):
        (tmp_path / name).write_text('{"caption": "words"}')
    (source,) = Recipe.model_validate({
        "dataset": "x", "sources": [{"kind": "folder", "path": str(tmp_path)}]
    }).sources  # fmt: skip
    before = states(source)
    assert states(source) == before
    path = {"image": "b.jpg", "caption": "a.txt", "new": "c.jpg"}[change]
    (tmp_path / path).write_text("something longer than what was there")
    expected = {"image": "b.jpg", "caption": "a.jpg", "new": "c.jpg"}[change]
    assert refresh.changed(before, states(source)) == [expected]
