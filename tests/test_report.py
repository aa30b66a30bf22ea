"""The report opens without a network, says what the tables say, and shows what others wrote as text."""

import base64
import io
import shutil
import unicodedata
from pathlib import Path

import pytest
from chromium import visit
from made_dataset import pair, pairs, picture, publish, record_training
from PIL import Image
from selectolax.lexbor import LexborHTMLParser as HTMLParser

from vlmdata import catalog
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError
from vlmdata.report import duration, percent, size, write_report
from vlmdata.report.charts import number
from vlmdata.report.facts import consent
from vlmdata.report.histograms import histograms, limit
from vlmdata.report.sheets import clean, thumbnail
from vlmdata.report.thresholds import Threshold, columns_read, thresholds
from vlmdata.report.training import smoothed, thin

pytestmark = pytest.mark.xdist_group("report")

HOSTILE = [
    "<script>document.title = 'taken over'</script>",
    "</style><style>body { display: none }</style>",
    '" onload="document.title=\'taken over\'" x="',
    "' onerror='document.title=1' <img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; &amp; ]]> -->",
    "a dog 🐕‍🦺 and a family 👨‍👩‍👧‍👦 in the snow ☃️",
    "كلب في الثلج وقطة على السرير",
    "before \u202e reversed \x00 \x1b[31m and \x07 after",
    "",
]
LOOK = """({
    pictures: document.images.length,
    broken: [...document.images].filter(image => !(image.naturalWidth > 0)).length,
    unnamed: [...document.images].filter(image => !image.alt).length,
    width: document.documentElement.scrollWidth,
    scripts: document.querySelectorAll('script, iframe, object, embed, form, link:not([rel=icon])').length,
    title: document.title,
    links: [...document.links].map(link => [link.protocol, link.rel, link.getAttribute('href')]),
    captions: [...document.querySelectorAll('.caption')].map(caption => caption.textContent),
    shown: getComputedStyle(document.body).display,
})"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    dataset, manifest = publish(tmp_path_factory.mktemp("report"), pairs())
    record_training(dataset, [4 - 0.1 * n for n in range(20)])
    write_report(dataset, manifest)
    return dataset, manifest


@pytest.fixture(scope="module")
def page(published):
    return HTMLParser(published[0].read_bytes("snapshots/000001/report.html").decode())


def rows(page, selector):
    return [node.text(separator=" ").split() for node in page.css(selector)]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_it_opens_in_a_browser_with_every_picture_and_without_a_word(published, tmp_path, width, dark):
    seen, told = visit(published[0].path("snapshots/000001/report.html"), tmp_path, LOOK, width, dark=dark)
    assert told == []
    assert seen["pictures"] > 20
    assert seen["broken"] == seen["unnamed"] == seen["scripts"] == 0
    assert seen["width"] <= width


def test_captions_urls_and_errors_of_others_are_text(tmp_path):
    made = [pair(text, picture(n)) for n, text in enumerate(HOSTILE)]
    made += [
        pair("word " * 2000, picture(20)),
        pair("a link that is none", picture(21), url="javascript:alert(1)//.jpg"),
        pair("a link that ends early", picture(22), url="http://example.org/'\"><script>alert(1)</script>.jpg"),
        pair("an error", download_status="4xx", error="<script>alert(1)</script>", url="data:text/html,<b>x</b>"),
        pair("a source id", picture(23), caption_from="<i>alt</i>", license="<script>alert(1)</script>"),
    ]
    changes = {"signals": ["text"], "dedup": [], "select": {"rules": {}}, "shards": {}, "jobs": []}
    dataset, manifest = publish(tmp_path, made, changes)
    write_report(dataset, manifest)
    seen, told = visit(dataset.path("snapshots/000001/report.html"), tmp_path / "browser", LOOK)
    assert told == []
    assert seen["title"] == "data, snapshot 1: vlmdata report"
    assert seen["shown"] == "block"
    assert seen["scripts"] == seen["broken"] == 0
    for text in HOSTILE[:7]:
        assert " ".join(text.split()) in seen["captions"]
    (odd,) = [caption for caption in seen["captions"] if caption.startswith("before")]
    assert not [c for c in odd if unicodedata.category(c) == "Cc" or c == "\u202e"]
    assert max(len(caption) for caption in seen["captions"]) <= 280
    outside = [link for link in seen["links"] if not link[2].startswith("#")]
    assert {link[0] for link in outside} <= {"http:", "https:"}
    assert {link[1] for link in outside} == {"noreferrer noopener nofollow"}
    assert any(link[2].startswith("http://example.org/'\"><script>") for link in outside)


def test_it_is_one_file_with_a_strict_policy(published, page):
    policy = page.css_first("meta[http-equiv=Content-Security-Policy]").attributes["content"]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert all(image.attributes["src"].startswith("data:image/") for image in page.css("img"))
    assert len(published[0].read_bytes("snapshots/000001/report.html")) < 3_000_000


def test_the_funnel_is_that_of_the_manifest(published, page):
    _, manifest = published
    shown = rows(page, ".funnel li")
    steps = manifest["funnel"][1:]
    assert len(shown) == len(steps) + 2
    for row, step in zip(shown[1:-1], steps, strict=True):
        assert " ".join(row).startswith(step["reason"])
        assert row[-1] == f"{step['left']}"
        assert (f"−{step['rejected']}" in row) == bool(step["rejected"])
    assert "least(original_width," in shown[1 + [s["reason"] for s in steps].index("size")]
    rejected = {step["reason"] for step in steps if step["rejected"]}
    assert len(page.css(".reason")) == len(rejected)


def test_charts_keep_their_order_when_the_manifest_comes_from_its_file(published):
    dataset, manifest = published
    with catalog.connect(dataset) as connection:
        from_file = histograms(connection, dataset.latest())
        given = histograms(connection, manifest)
    assert [chart.name for chart in from_file] == [chart.name for chart in given]
    assert [c.name for c in given if c.thresholds][:3] == ["least(original_width, original_height)", "words", "chars"]


def test_histograms_count_every_pair_once_and_on_the_right_side_of_each_first_threshold(published):
    dataset, manifest = published
    total = manifest["funnel"][0]["left"]
    with catalog.connect(dataset) as connection:
        charts = histograms(connection, manifest)
        assert {"entropy", "words", "chars", "lang_score", "sharpness", "aspect_ratio"} <= {c.name for c in charts}
        for chart in charts:
            assert sum(chart.kept) + sum(chart.rejected) + chart.missing == total
            kept = connection.execute(f"SELECT count({chart.name}) FROM samples WHERE kept").fetchone()[0]
            assert sum(chart.kept) == kept
        for chart in [c for c in charts if c.thresholds]:
            first = chart.thresholds[0]
            sign = {"≥": ">=", ">": ">", "≤": "<=", "<": "<"}[first.sign]
            query = f"SELECT count(*) FROM samples WHERE NOT ({chart.name} {sign} {first.value})"
            away = connection.execute(query).fetchone()[0]
            edge = min(chart.edges, key=lambda edge: abs(edge - first.value))
            lower = [n for n, stop in enumerate(chart.edges[1:]) if stop <= edge + 1e-9]
            below = sum(chart.kept[n] + chart.rejected[n] for n in lower)
            counted = below if first.sign in ("≥", ">") else total - chart.missing - below
            assert counted == away, chart.name


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("a >= 0.28", [("a", "≥", 0.28)]),
        ("5 < b and (c between -1 and 2 * 8)", [("b", ">", 5), ("c", "≥", -1), ("c", "≤", 16)]),
        ("least(a, b) > 64", [("least(a, b)", ">", 64)]),
        ("\"index\" <= 3", [("index", "≤", 3)]),
        ("a >= 1 or b >= 2", []),
        ("not a >= 1", []),
        ("lang = 'en' and caption > 'b'", []),
        ("a > b", []),
        ("a > 1e400", []),
    ],
)  # fmt: skip
def test_thresholds_are_what_a_rule_needs(rule, found):
    assert [(t.expression, t.sign, t.value) for t in thresholds("r", rule)] == found


@pytest.mark.parametrize(("sign", "place"), [("≥", 4), (">", 5), ("≤", 5), ("<", 4)])
def test_a_threshold_on_whole_numbers_stands_between_those_that_pass_and_the_others(sign, place):
    assert limit(Threshold("r", "words", sign, 4.0), True) == place
    assert limit(Threshold("r", "score", sign, 0.28), False) == 0.28


def test_columns_are_read_in_the_order_of_the_rule():
    assert columns_read("b > 1 and least(a, b) < 3 or not c") == ["b", "a", "c"]


def test_consent_counts_what_was_said_and_what_was_refused(published):
    with catalog.connect(published[0]) as connection:
        said = {signal.word: signal for signal in consent(connection, published[1])}
    assert (said["noai"].page_deny, said["noai"].refused, said["noai"].respected) == (1, 1, True)
    assert (said["tdm"].host_deny, said["tdm"].refused) == (1, 1)
    assert (said["robots"].page_allow, said["noml"].respected) == (1, False)


def test_duplicates_show_one_survivor_a_group(page):
    groups = page.css(".group")
    assert len(groups) == 2  # the same three pictures, by both methods
    for group in groups:
        assert len(group.css(".pair")) == 3
        assert len(group.css(".is-kept")) == 1


def test_training_is_shown_beside_chance(page):
    section = page.css_first("#training")
    assert "40 %" in section.text().replace("\N{NO-BREAK SPACE}", " ")
    assert "× 4.0" in section.text()
    assert len(section.css("svg")) == 2  # the loss, and recall over steps
    assert ["signals", "1", "min", "15", "s"] in rows(page, "#time li")


def test_a_snapshot_with_nothing_kept_has_a_report(tmp_path):
    made = [pair("a few words", picture(1)), pair("a thing", download_status="dns")]
    changes = {"signals": ["text"], "dedup": [], "select": {"rules": {"long": "words > 1000"}}, "jobs": []}
    dataset, manifest = publish(tmp_path, made, changes)
    page = HTMLParser(Path(write_report(dataset, manifest)).read_text("utf-8"))
    assert "No pair was kept." in page.css_first("#kept").text()
    assert page.css_first("#training") is None
    assert len(page.css(".reason")) == 2


def test_a_damaged_picture_is_a_gap_and_a_missing_tar_is_an_error(published, tmp_path):
    dataset = Dataset(str(tmp_path / "copy"))
    shutil.copytree(published[0].root, dataset.root)
    rows = [
        row for part in published[1]["tables"]["images"]["parts"] for row in dataset.read_part(part["path"]).to_pylist()
    ]
    stored = [row for row in rows if row["length"]]
    with open(dataset.path(stored[0]["stored_tar"]), "r+b") as tar:
        tar.seek(stored[0]["offset"])
        tar.write(b"no picture" * (stored[0]["length"] // 10))
    page = HTMLParser(Path(write_report(dataset, published[1])).read_text("utf-8"))
    assert any("not shown" in node.text() for node in page.css(".absent"))
    dataset.remove(stored[0]["stored_tar"])
    with pytest.raises(DataError, match="vlmdata verify"):
        write_report(dataset, published[1])


def test_a_thumbnail_is_small_and_never_enlarged():
    for given, expected in (((1000, 500), (216, 108)), ((40, 30), (40, 30)), ((10, 4000), (1, 168))):
        content = thumbnail(picture(3, *given))
        image = Image.open(io.BytesIO(base64.b64decode(content.partition(",")[2])))
        assert image.size == expected
        assert image.format == "WEBP"


def test_text_of_others_loses_what_steers_a_display():
    assert clean("a\0b\x1b[0m\u202ec\td") == "a\ufffdb\ufffd[0m\ufffdc\td"


def test_numbers_are_for_people():
    shown = [number(value) for value in (0, 3, 0.05, -0.5, 1234, 12_345, 4_500_000)]
    assert shown == ["0", "3", "0.05", "−0.5", "1,234", "12.3k", "4.5M"]
    shares = [percent(share).replace("\N{NO-BREAK SPACE}", " ") for share in (0, 0.0001, 0.012, 0.34, 0.9999, 1)]
    assert shares == ["0 %", "<0.1 %", "1.2 %", "34 %", "99.9 %", "100 %"]
    assert size(1_234_567) == "1.23\N{NO-BREAK SPACE}MB"
    assert duration(3725) == "1\N{NO-BREAK SPACE}h 2\N{NO-BREAK SPACE}min"


def test_a_curve_keeps_its_ends():
    points = [(float(n), float(n)) for n in range(1000)]
    assert thin(points)[-1] == points[-1]
    assert len(thin(points)) <= 400
    assert smoothed([(1, 5.0)]) == [(1, 5.0)]
    assert smoothed(points)[500] == (500.0, 500.0)
