"""What was forgotten is refused when it comes back, under another caption, URL or source; all else is as it was."""

import json

import cv2
import pyarrow as pa
import pytest
import yaml
from conftest import here
from made_dataset import np, picture

from vlmdata import ingest, snapshot
from vlmdata.catalog import connect, query
from vlmdata.dataset import Dataset
from vlmdata.download import Terms, download_part, forgotten
from vlmdata.lock import lock
from vlmdata.recipe import Consent, Download, Recipe
from vlmdata.schemas import table_schema

CAPTIONS = [f"a photo of the thing with number {number}" for number in range(6)]


def command(folder, *arguments):
    """(exit code, stdout, stderr)"""
    said = here(folder, *arguments)
    return said.returncode, said.stdout, said.stderr


def write(folder, names):
    recipe = {
        "dataset": "runs/it",
        "sources": [{"kind": "folder", "name": name, "path": name} for name in names],
        "signals": ["text", "image"],
        "dedup": ["exact"],
        "select": {"rules": {"words": "words >= 3"}},
        "parts": {"rows": 4},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def add(folder, name, content, caption):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jpg").write_bytes(content)
    (folder / f"{name}.txt").write_text(caption)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with a finished run, after 2.jpg was forgotten by its URL and what looks like 4.jpg by that."""
    folder = tmp_path_factory.mktemp("returns")
    for number, caption in enumerate(CAPTIONS):
        add(folder / "photos", str(number), picture(number), caption)
    write(folder, ["photos"])
    assert command(folder, "run", "recipe.yaml")[0] == 0
    (folder / "four.jpg").write_bytes(picture(4))
    return folder


def rows(folder, sql):
    return query(connect(Dataset(str(folder / "runs/it"))), sql).fetchall()


def test_a_forgotten_picture_stays_away_whatever_it_is_called(site):
    asked = ("forget", "runs/it", "--url", "photos:/2.jpg", "--like", "four.jpg")
    before = Dataset(str(site / "runs/it")).latest()
    code, out, err = command(site, *asked, "--dry-run")
    assert (code, len(out.split()), "2 pairs would be forgotten: 1 by url, 1 by like" in err) == (0, 2, True)
    assert Dataset(str(site / "runs/it")).latest() == before
    code, again, err = command(site, *asked)
    assert (code, again) == (0, out), err
    assert "2 pairs forgotten: 1 by url, 1 by like" in err
    code, out, err = command(site, "run", "recipe.yaml")
    assert (code, "nothing to do" in err) == (0, True)
    assert command(site, "verify", "runs/it") == (
        0,
        "",
        "every file is what its manifest says, and nothing forgotten is left\n",
    )

    # the same bytes, and a larger copy of what was forgotten by its looks, come back beside something new
    add(site / "more", "new", picture(40), "a photo of something new and good")
    add(site / "more", "two", picture(2), "nobody knows this secret text about two")
    four = cv2.resize(cv2.imdecode(np.frombuffer(picture(4), "u1"), 1), (192, 128))
    add(site / "more", "four", cv2.imencode(".jpg", four)[1].tobytes(), "nobody knows this secret text about four")
    write(site, ["photos", "more"])
    code, _, err = command(site, "run", "recipe.yaml")
    assert code == 0, err
    assert "2 pairs were forgotten again" in err
    kept = {url for (url,) in rows(site, "select url from samples where kept")}
    assert kept == {"more:/new.jpg", *(f"photos:/{number}.jpg" for number in (0, 1, 3, 5))}
    assert rows(site, "select reason, count(*), count(caption) from samples where not kept group by 1") == [
        ("forgotten", 4, 0)
    ]
    for path in (site / "runs/it").rglob("*"):
        if path.is_file():
            assert b"secret text" not in path.read_bytes(), path
    assert not any(b"secret" in text.encode() for text, *_ in rows(site, "select coalesce(caption, '') from samples"))
    assert list(snapshot.verify(Dataset(str(site / "runs/it")))) == []
    assert "nothing to do" in command(site, "run", "recipe.yaml")[2]
    lines = [json.loads(line) for line in (site / "runs/it/forgotten.jsonl").read_text().splitlines()]
    assert [line["by"] for line in lines] == [{"url": 1, "like": 1}, {"refused by the download": 2}]
    assert "photos" not in (site / "runs/it/forgotten.jsonl").read_text()
    # under another selection the tombstones are judged again, and stay what they are
    changed = command(site, "run", "recipe.yaml", "--set", "select.rules.words=words >= 4")
    assert changed[0] == 0, changed[2]
    assert rows(site, "select count(*) from samples where reason = 'forgotten'") == [(4,)]
    assert rows(site, "select count(*) from samples where kept") == [(5,)]


def test_forget_says_what_it_needs(site):
    assert command(site, "forget", "runs/it")[0] == 2
    assert command(site, "forget", "none", "--uid", "0" * 32)[0] == 2
    code, out, err = command(site, "forget", "runs/it", "--uid", "0" * 32)
    assert (code, out, "no pair matches" in err) == (0, "", True)
    with lock(Dataset(str(site / "runs/it")), "another"):
        assert command(site, "forget", "runs/it", "--url", "photos:/1.jpg")[0] == 5


def test_a_refused_url_is_a_tombstone_at_once_and_parts_are_cut_well(tmp_path):
    dataset = Dataset(str(tmp_path / "d"))
    forgotten.make_key(dataset)
    key = dataset.read_bytes("forgotten.key")
    empty = forgotten.Forgotten(key)
    entries = forgotten.url_entries(empty, "a.example/1.jpg")
    entries.add(("domain", empty.keyed("domain", "gone.example"), None))
    dataset.write_bytes("forgotten.parquet", forgotten.content(forgotten.Forgotten(key, entries)))
    urls = ["http://a.example/1.jpg", "https://a.example/1.jpg?X-Amz-Signature=5"]
    urls += [f"https://pictures.gone.example/{number}.jpg" for number in range(5)]
    urls += [f"https://b.example/{number}.jpg" for number in range(3)]
    (tmp_path / "list.csv").write_text("url,caption\n" + "".join(f"{url},a secret caption\n" for url in urls))
    recipe = Recipe.model_validate(
        {"dataset": dataset.root, "sources": [{"kind": "table", "name": "web", "path": str(tmp_path / "list.csv")}]}
    )
    found = ingest.read_source(dataset, recipe.sources[0], "k")
    assert found.rows == len(urls)
    pairs = ingest.unite(dataset, [found], "p", 3, None)
    read = [row for part in pairs.parts for row in dataset.read_part(part).to_pylist()]
    assert [row["url"] for row in read if row["url"]]
    assert len(read) == len(urls)
    gone = [row for row in read if row["url"] is None]
    assert len(gone) == 7
    assert all(set(row.values()) == {row["uid"], None} for row in gone)
    assert [part.rows for part in pairs.parts] == [3, 3, 3, 1]

    # nothing is asked for a tombstone, and a part of nothing else is fetched as well
    tombstones = pa.Table.from_pylist(gone, table_schema("pairs"))
    images, observations = download_part(tombstones, tmp_path / "x.tar", "x.tar", Terms(Download(), Consent(), {}))
    assert images.num_rows == observations.num_rows == 7
    assert all(set(row.values()) == {row["uid"], None} for row in images.to_pylist())
