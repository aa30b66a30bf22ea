"""Each preset selects exactly what its published definition does, restated here as plain loops over real pairs."""

import functools
import hashlib
import json
import struct
from pathlib import Path

import lxml.html
import made_wordnet
import numpy as np
import pyarrow as pa
import pytest

from vlmdata import recipe, wordnet
from vlmdata.errors import InputError
from vlmdata.plan import make_plan
from vlmdata.recipe import Recipe
from vlmdata.select import Choice, judge_part, top
from vlmdata.signals import language, text
from vlmdata.signals import wordnet as imagenet

DEMO = Path(__file__).resolve().parent.parent / ".cache" / "demo"
needs_demo = pytest.mark.skipif(not (DEMO / "emoji").is_dir(), reason="python recipes/demo_data.py fetch --all")


@functools.cache
def png_size(path: Path) -> tuple[int, int]:
    with path.open("rb") as file:
        return struct.unpack(">II", file.read(24)[16:])


def real_pairs():
    """(path, caption, width, height) of the manuals' figures in two languages, the drawings and the emoji."""
    for page in sorted((DEMO / "site").rglob("*.html")):
        for image in lxml.html.fromstring(page.read_bytes()).iter("img"):
            path = page.parent / image.get("src", "")
            if image.get("alt") and path.suffix == ".png" and path.is_file():
                yield path.resolve(), image.get("alt"), *png_size(path)
    for folder in ("openclipart-all", "emoji/google", "emoji/twitter"):
        for path in sorted((DEMO / folder).rglob("*.json")):
            about, image = json.loads(path.read_text()), path.with_suffix(".png")
            captions = [about.get("title"), about.get("description"), about.get("label")]
            captions += [about["caption"]] if isinstance(about.get("caption"), str) else []
            for caption in filter(None, captions):
                yield image, caption, *png_size(image)


@functools.cache
def pool(folder: str) -> pa.Table:
    """All columns that presets read; the CLIP scores are drawn, with ties, and some are not there."""
    paths, captions, widths, heights = zip(*dict.fromkeys(real_pairs()), strict=True)
    assert len(set(paths)) > 14_000
    uids = [hashlib.blake2b(f"{n} {c}".encode(), digest_size=16).hexdigest() for n, c in enumerate(captions)]
    rows = pa.table({"uid": uids, "caption": captions})
    draw = np.random.default_rng(0)
    scores = np.round(draw.normal(0.25, 0.08, len(uids)), 3).astype(np.float32)
    scores[draw.random(len(uids)) < 0.01] = np.nan
    more = {
        "source": pa.array(["web"] * len(uids)),
        "original_width": pa.array(widths, pa.int32()),
        "original_height": pa.array(heights, pa.int32()),
        "download_status": pa.array(["success"] * len(uids)),
        "sha256": pa.array(uids),
        "source_clip_l14_similarity_score": pa.array(scores),
        "source_aesthetic": pa.array(draw.uniform(3, 8, len(uids))),
        "source_near": pa.array(draw.random(len(uids)) < 0.5),
    }
    for name, column in more.items():
        rows = rows.append_column(name, column)
    by_cld3 = recipe.LanguageSignal(kind="language", name="cld3", model="cld3")
    tables = [
        text.measure(rows, None, recipe.TextSignal(kind="text"))["text"],
        language.measure(rows, None, recipe.LanguageSignal(kind="language"))["language"],
        language.measure(rows, None, by_cld3)["language_cld3"],
        imagenet.measure(rows, None, recipe.WordnetSignal(kind="wordnet", path=folder))["wordnet"],
    ]
    for table in tables:
        for name in table.column_names[1:]:
            rows = rows.append_column(name, table[name])
    return rows


SIGNALS = ["text", "language", {"kind": "language", "model": "cld3", "name": "cld3"}]
SCORE = "source_clip_l14_similarity_score"


def selected(folder, rows, *presets, only=""):
    """The uids that pass the presets' rules as the recipe's plan has them, in three parts."""
    listed = folder / "list.csv"
    listed.write_text("url,caption,clip_l14_similarity_score,aesthetic,near\nhttp://h.example/a,a,0.5,1.5,true\n")
    keep = {"clip_l14_similarity_score": "float64", "aesthetic": "float64", "near": "bool"}
    source = {"kind": "table", "name": "web", "path": str(listed), "keep": keep}
    about = {
        "dataset": str(folder / "data"),
        "sources": [source],
        "signals": [*SIGNALS, {"kind": "wordnet", "path": made_wordnet.write(folder / "wordnet")}],
        "select": {"preset": list(presets)},
    }
    plan = make_plan(Recipe.model_validate(about))
    rules = {name: rule for name, rule in plan.rules.items() if name.endswith(only)}
    cuts = [rows.slice(start, len(rows) // 3 + 1) for start in range(0, len(rows), len(rows) // 3 + 1)]
    for name, fraction in plan.checked.ranked.items():
        found = [top.keys(rows[rules[name].columns[0]]) for rows in cuts]

        def count(prefix, known, found=found):
            return sum(top.count_keys(keys, prefix, known) for keys in found)

        place = top.datacomp_place(fraction, len(rows))
        found = top.threshold(count, place)
        rules[name] = top.at_least(rules[name], top.value(found[0]) if found else None)
    choice = Choice(rules, frozenset(), (), ())
    kept = set()
    for cut in cuts:
        judged = judge_part(cut, choice)
        kept |= set(judged.filter(judged["reason"].is_null())["uid"].to_pylist())
        reasons = set(judged["reason"].to_pylist()) - {None}
        assert reasons <= set(plan.rules)
    return kept


def english(row):
    return row["lang"] == "en"


def basic(row):
    smaller, larger = sorted((row["original_width"], row["original_height"]))
    words = len(row["caption"].split()) > 2 and len(row["caption"]) > 5
    return english(row) and words and smaller >= 200 and larger / smaller <= 3.0


def laion2b(row):
    return row["lang_cld3"] == "en" and np.float32(row[SCORE]) >= np.float32(0.28)


def obelics(row):
    sides = row["original_width"], row["original_height"]
    return all(150 <= side <= 20_000 for side in sides) and 1 / 2 <= sides[0] / sides[1] <= 2


def fasttext_tokens(caption):
    """Bytes up to white space; the end of a line is a token of its own."""
    tokens, word = [], b""
    for place in range(len(caption.encode())):
        byte = caption.encode()[place : place + 1]
        if byte in b" \n\r\t\v\f\0":
            tokens += [word] if word else []
            tokens += ["</s>"] if byte == b"\n" else []
            word = b""
        else:
            word += byte
    return tokens + ([word] if word else [])


def image_based(row):
    tokens = len(fasttext_tokens(row["caption"])) > 1
    return english(row) and tokens and len(row["caption"]) > 5 and row["source_near"]


@needs_demo
@pytest.mark.parametrize(
    ("presets", "reference"),
    [
        (["datacomp-basic"], basic),
        ([{"kind": "datacomp-laion2b", "score": SCORE}], laion2b),
        (["obelics-image"], obelics),
        (["obelics-image", "datacomp-basic"], lambda row: obelics(row) and basic(row)),
        ([{"kind": "laion-aesthetics", "score": "source_aesthetic"}], lambda row: row["source_aesthetic"] >= 5),
        (
            [{"kind": "datacomp-clip", "score": SCORE, "threshold": 0.3}],
            lambda row: np.float32(row[SCORE]) >= np.float32(0.3),
        ),
        ([{"kind": "datacomp-image-based", "near_target": "source_near"}], image_based),
        (["datacomp-text-based"], lambda row: english(row) and row["imagenet_words"]),
    ],
)
def test_a_preset_is_its_published_definition(tmp_path, presets, reference, folder):
    rows = pool(folder)
    expected = {row["uid"] for row in rows.to_pylist() if reference(row)}
    assert 50 < len(expected) < rows.num_rows
    assert selected(tmp_path, rows, *presets) == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small database in which the demo's captions have some words, their offsets those of classes."""
    classes = sorted(wordnet.imagenet21k())
    path = tmp_path_factory.mktemp("net") / "wordnet"
    made_wordnet.write(path)
    words = ["dialog", "layer", "tree", "face", "fenster", "menu", "man", "flag", "car", "cat", "star"]
    index = "".join(f"{w} n 1 1 @ 1 0 {c:08d}\n" for w, c in zip(words, classes, strict=False))
    more = "".join(f"filler_{n} n 1 1 @ 1 0 {c:08d}\n" for n, c in enumerate(classes))
    (path / "index.noun").write_text(index + "dogs n 1 1 @ 1 0 00000001\n" + more)
    return str(path)


@needs_demo
def test_tokens_are_fasttexts(tmp_path, folder):
    hostile = [
        "",
        " ",
        "a",
        "a b",
        "\n",
        "a\n",
        "\na",
        "\n\n",
        "a\0b",
        "a\vb",
        "a\u00a0b",
        "a\u3000b",
        "ä\tö",
        "a\r\nb",
        "\0",
    ]
    rows = pool(folder).slice(0, len(hostile))
    near = pa.array([True] * len(hostile))
    rows = rows.set_column(rows.schema.get_field_index("source_near"), "source_near", near)
    rows = rows.set_column(rows.schema.get_field_index("caption"), "caption", pa.array(hostile))
    kept = selected(tmp_path, rows, {"kind": "datacomp-image-based", "near_target": "source_near"}, only="tokens")
    expected = {u for u, c in zip(rows["uid"].to_pylist(), hostile, strict=True) if len(fasttext_tokens(c)) > 1}
    assert kept == expected


@needs_demo
@pytest.mark.parametrize("fraction", [0.3, 0.0001, 0.77])
def test_a_fraction_is_datacomps_rank_rule(tmp_path, folder, fraction):
    rows = pool(folder)
    scores = np.array(rows[SCORE].to_numpy())
    threshold = -np.sort(-scores)[int(len(scores) * fraction)]  # NaN sorts last
    expected = {uid for uid, score in zip(rows["uid"].to_pylist(), scores, strict=True) if score >= threshold}
    assert len(expected) > int(len(scores) * fraction)
    assert selected(tmp_path, rows, {"kind": "datacomp-clip", "score": SCORE, "fraction": fraction}) == expected
    (tmp_path / "both").mkdir()
    clip = {"kind": "datacomp-clip", "score": SCORE, "fraction": fraction}
    both = selected(tmp_path / "both", rows, "datacomp-basic", clip)
    assert both == expected & {row["uid"] for row in rows.to_pylist() if basic(row)}, "the rank is over the whole pool"


@needs_demo
def test_a_caption_speaks_of_imagenet_by_the_first_sense_of_a_word(folder):
    rows, senses = pool(folder), made_wordnet.senses(folder)
    classes = wordnet.imagenet21k()
    expected = [
        any(found[0] in classes for found in map(senses, caption.split()) if found)
        for caption in rows["caption"].to_pylist()
    ]
    assert rows["imagenet_words"].to_pylist() == expected
    assert 100 < sum(expected) < len(expected)


def test_another_wordnet_is_refused(tmp_path):
    rows = pa.table({"uid": ["a" * 32], "caption": ["a dog"]})
    with pytest.raises(InputError, match=r"not WordNet 3\.0"):
        imagenet.measure(
            rows, None, recipe.WordnetSignal(kind="wordnet", path=made_wordnet.write(tmp_path / "wordnet"))
        )


@pytest.mark.parametrize(
    ("preset", "signals", "message"),
    [
        ("datacomp-basic", ["text"], r"datacomp-basic needs the language by fasttext: add `- language`"),
        ("datacomp-basic", ["language"], r"datacomp-basic/words needs the signal `text`"),
        ("datacomp-clip", [], r"datacomp-clip/score needs a signal with the column clip_score"),
        ("datacomp-laion2b", ["language"], r"add `- \{kind: language, model: cld3, name: cld3\}` to `signals`"),
        ("datacomp-text-based", ["language"], r"datacomp-text-based/imagenet needs the signal `wordnet`"),
        ("laion-aesthetics", [], r"laion-aesthetics/score needs a signal with the column aesthetic_score"),
    ],
)
def test_what_a_preset_lacks_is_named(tmp_path, preset, signals, message):
    (tmp_path / "list.csv").write_text("url,caption\nhttp://h.example/a,a\n")
    source = {"kind": "table", "path": str(tmp_path / "list.csv")}
    about = {"dataset": "d", "sources": [source], "signals": signals, "select": {"preset": preset}}
    with pytest.raises(InputError, match=message):
        make_plan(Recipe.model_validate(about))
