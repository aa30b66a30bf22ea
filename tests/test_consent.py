"""Whoever says no is obeyed: every kind of opt-out against real servers, and what was said is written down."""

import gzip
import hashlib
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hostile import redirect, send, serve
from PIL import Image
from test_download import GOOD, HEADERS, fetch, make_pairs, picture, statuses

from vlmdata.dataset import Dataset
from vlmdata.download import Terms, download_part, known, lists, optout
from vlmdata.download.tdmrep import Reservations
from vlmdata.errors import InputError
from vlmdata.recipe import Consent, Download
from vlmdata.signals.image import perceptual_hash

NOTHING = {"robots": "allow", "noai": None, "tdm": None, "noml": None}
RULES = [
    {"location": "/free/", "tdm-reservation": 0},
    {"location": "/free/", "tdm-reservation": 1},
    {"location": "/*/drawings/*.jpg$", "tdm-reservation": 1, "tdm-policy": "https://example.org/policy.json"},
    {"location": "/header/", "tdm-reservation": 1},
    {"location": "/odd/", "tdm-reservation": 2},
]


@pytest.mark.parametrize(
    ("location", "path", "meant"),
    [
        ("/", "/anything?x=1", True),
        ("/a/", "/a", False),
        ("/a", "/ab", True),
        ("/a$", "/ab", False),
        ("/a$", "/a", True),
        ("*.jpg$", "/x/y.jpg", True),
        ("*.jpg$", "/x/y.jpg?z", False),
        ("/*/b*c$", "/a/b/c", True),
        ("/*/b*c$", "/a/b/cd", False),
        ("/x*y*y$", "/xy", False),
        ("images/", "/images/a.png", True),
        ("/A", "/a", False),
        ("/foo-%24", "/foo-$", True),
        ("/%7ejo%c3%a9/", "/~jo%C3%A9/a", True),
        ("/joé/", "/jo%C3%A9/a", True),
    ],
)
def test_a_location_means_what_it_would_mean_in_robots_txt(location: str, path: str, meant: bool) -> None:
    rules = Reservations(json.dumps([{"location": location, "tdm-reservation": 1}]).encode())
    assert rules.says(f"https://example.org{path}") == ("deny" if meant else None)


def test_the_first_rule_counts_and_what_is_no_rule_says_nothing() -> None:
    rules = Reservations(b"\xef\xbb\xbf" + json.dumps([None, {"location": 3}, *RULES]).encode())
    said = [rules.says(f"http://h/{path}") for path in ("free/a", "x/drawings/a.jpg", "odd/a", "other")]
    assert said == ["allow", "deny", None, None]
    for body in (
        b"",
        b"no",
        b"{}",
        b'{"location": "/", "tdm-reservation": 1}',
        b"[" * 100_000,
        b"\xff",
        b"[1]",
        b"1" * 9999,
    ):
        assert Reservations(body).says("http://h/a") is None
    value = json.dumps([{"location": "/", "tdm-reservation": True}, {"location": "/", "tdm-reservation": 1}]).encode()
    assert Reservations(value).says("http://h/a") is None
    hostile = Reservations(json.dumps([{"location": "/" + "*a" * 5000 + "$", "tdm-reservation": 1}]).encode())
    assert hostile.says("http://h/" + "a" * 4000) is None


def test_tdmrep_json_is_asked_once_and_obeyed_where_no_header_says_otherwise(tmp_path: Path) -> None:
    routes = {
        "/.well-known/tdmrep.json": send(json.dumps(RULES).encode(), Content_Type="application/json"),
        "/header/free.jpg": send(GOOD, tdm_reservation="0"),
        "/free/not.jpg": send(GOOD, tdm_reservation="1"),
        "/header/on": redirect("/other.jpg"),
        "*": send(GOOD),
    }
    paths = {
        "/free/a.jpg": ("success", "allow"),
        "/x/drawings/a.jpg": ("tdm", "deny"),
        "/odd/a.jpg": ("success", None),
        "/other.jpg": ("success", None),
        "/header/a.jpg": ("tdm", "deny"),
        "/header/free.jpg": ("success", "allow"),
        "/free/not.jpg": ("tdm", "deny"),
        "/header/on": ("tdm", "deny"),
    }
    with serve(routes) as site:
        urls = [site.url(path) for path in paths]
        found, _ = fetch(tmp_path, urls, site)
        assert [(row["download_status"], row["consent"]["tdm"]) for row in found] == list(paths.values())
        assert site.paths().count("/.well-known/tdmrep.json") == 1
        found, _ = fetch(tmp_path, urls, site, consent=Consent(respect=[]))
        assert statuses(found) == ["success"] * len(paths)
        assert [row["consent"]["tdm"] for row in found] == [said for _, said in paths.values()]


@pytest.mark.parametrize(
    "route", [send(b"", "404 Not Found"), send(b"", "500 Oops"), send(b"<html>"), redirect("/.well-known/tdmrep.json"),
              lambda wire: None, send(b"[" * 2_000_000)],
)  # fmt: skip
def test_a_tdmrep_json_that_does_not_come_says_nothing(tmp_path: Path, route: object) -> None:
    with serve({"/.well-known/tdmrep.json": route, "/a.jpg": send(GOOD)}) as site:  # type: ignore[dict-item]
        found, _ = fetch(tmp_path, [site.url("/a.jpg")], site)
    assert [(row["download_status"], row["consent"]) for row in found] == [("success", NOTHING)]


def test_what_nobody_respects_is_fetched_and_still_written_down(tmp_path: Path) -> None:
    routes = {path: send(GOOD, **headers) for path, (headers, _) in HEADERS.items()}
    routes |= {"/shut/a.jpg": send(GOOD), "/robots.txt": send(b"User-agent: *\nDisallow: /shut/\n")}
    with serve(routes) as site:
        found, _ = fetch(
            tmp_path, [site.url(path) for path in [*HEADERS, "/shut/a.jpg"]], site, consent=Consent(respect=[])
        )
    assert statuses(found) == ["success"] * (len(HEADERS) + 1)
    said = [said for _, said in HEADERS.values()]
    assert [row["consent"] for row in found] == [NOTHING | words for words in [*said, {"robots": "deny"}]]


# Lists


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    return Dataset(str(tmp_path / "data"))


def opted_out(data: Dataset, *texts: str | bytes, name: str = "list.txt") -> optout.OptOut:
    return optout.OptOut(compiled(data, "optout", optout.parse, texts, name))


def listed(data: Dataset, *texts: str | bytes, name: str = "list.txt", distance: int = 4) -> known.Known:
    return known.Known(compiled(data, "known", known.parse, texts, name), distance)


def compiled(data: Dataset, what: str, parse: lists.Parse, texts: tuple, name: str) -> lists.Lists:
    folder = Path(data.root).parent / what
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number}{name}").write_bytes(text.encode() if isinstance(text, str) else text)
    files = lists.find([f"{folder}/*"], f"consent.{what}")
    place = lists.prepare(data, what, files, parse, lists.digest(files))
    return lists.load(data.url, place)


def get(tmp_path: Path, rows: list, site: object, out: optout.OptOut | None = None, no: known.Known | None = None):
    options = Download(size=64, retries=0, allow_hosts=[site.host])  # type: ignore[attr-defined]
    terms = Terms(options, Consent(), {}, out or optout.OptOut(), no or known.Known())
    tar = tmp_path / "part.tar"
    images, _ = download_part(make_pairs(rows), tar, "images/k/part.tar", terms)
    return images.to_pylist(), tar.read_bytes()


def test_a_listed_url_domain_or_page_is_never_asked_for(tmp_path: Path, data: Dataset) -> None:
    with serve({"*": send(GOOD)}) as site, serve({"*": send(GOOD)}) as other:
        site.routes["/to-listed"] = redirect(f"http://localhost:{other.port}/a.jpg")
        out = opted_out(
            data,
            f"# asked for by mail\n{site.url('/no.jpg')}?a=1#part\r\n\nlocalhost\n",
            f"who,url,domain\nme,HTTPS://{site.host}/%7ejo.jpg,\n,,*.pages.example\n",
            name="list.csv",
        )
        rows = [
            site.url("/no.jpg?a=1"),
            {"url": site.url("/no.jpg?a=1&"), "caption": "another query"},
            site.url("/~jo.jpg"),
            {"url": site.url("/yes.jpg"), "page_url": "https://www.pages.example/x.html"},
            {"url": site.url("/yes.jpg"), "caption": "2", "page_url": "https://otherpages.example/x.html"},
            f"http://localhost:{other.port}/b.jpg",
            site.url("/to-listed"),
        ]
        found, _ = get(tmp_path, rows, site, out)
        assert statuses(found) == ["optout", "success", "optout", "optout", "success", "optout", "optout"]
        assert {row["error"] for row in found if row["download_status"] == "optout"} == {optout.LISTED}
        assert sorted(site.paths()) == sorted(
            ["/robots.txt", "/.well-known/tdmrep.json", "/no.jpg?a=1&", "/yes.jpg", "/to-listed"]
        )
        assert other.seen == []


def test_listed_bytes_are_not_stored(tmp_path: Path, data: Dataset) -> None:
    digest = hashlib.sha256(GOOD).hexdigest()
    out = opted_out(data, gzip.compress(f"note,SHA256\nmine,{digest.upper()}\n".encode()), name="a.csv.gz")
    with serve({"/a.jpg": send(GOOD), "*": send(picture(1))}) as site:
        rows = [
            site.url("/a.jpg"),
            site.url("/b.jpg"),
            {"url": site.url("/c.jpg"), "expected_hash": f"sha256:{digest}"},
        ]
        found, tar = get(tmp_path, rows, site, out)
        assert statuses(found) == ["optout", "success", "optout"]
        assert "/c.jpg" not in site.paths()  # its hash was known before
    assert found[0]["sha256"] == digest
    assert found[0]["stored_key"] is found[0]["width"] is None
    assert tar.count(b"ustar") == 1


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("example.org\nnot a domain\n", "a.txt", "line 2"),
        ("d41d8cd98f00b204e9800998ecf8427e\n", "a.txt", "line 1"),  # an MD5 in the wrong list
        ("who,what\na,b\n", "a.csv", "line 1"),
        ("sha256\n1234\n", "a.csv", "line 2"),
        (b"\xff\xfe", "a.txt", "UTF-8"),
        (gzip.compress(b"example.org\n" * 999, mtime=0)[:40], "a.txt.gz", "a.txt.gz"),
        (b"example.org\n", "a.txt.gz", "a.txt.gz"),
        ("x" * 20_000, "a.txt", "line 1"),
        ("https://x.example/a.jpg,takedown 2024\n", "a.csv", "line 1: 2 values.*name the columns"),
        ('# ours\n\n"https://x.example/a.jpg","takedown, 2024"\n', "a.csv", "line 3: 2 values"),
        ("https://x.example/a.jpg\ttakedown\n", "a.tsv", "line 1: 2 values"),
        ("https://x.example/a.jpg\ttakedown\n", "a.TSV.gz", "line 1: 2 values"),
        ("image/url,reason\nhttps://x.example/a.jpg,takedown\n", "a.csv", "line 1: 2 values"),
        ("x.example\ny.example,me\n", "a.csv", "line 2: 2 values"),
        ("url,why\nhttps://x.example/a,b.jpg,me\n", "a.csv", "line 2: 3 values.*quote"),
        ("why,url\nme\n", "a.csv", "line 2: nothing stands in the columns url"),
        (
            'url,why\n"https://x.example/a.jpg,me\nhttps://x.example/b.jpg,me\n',
            "a.csv",
            "after line 1: .*unexpected end",
        ),
        ('url,why\n"https://x.example/a.jpg\nhttps://x.example/b.jpg",me\n', "a.csv", "line 3: .*white space"),
        ("https://x.example/a.jpg takedown 2024\n", "a.txt", "line 1: .*white space"),
        ('"https://x.example/a.jpg"\n', "a.txt", "line 1: no URL"),
        ("url\nhttps://[x/a.jpg\n", "a.csv", "line 2: no URL"),
    ],
)
def test_a_line_that_is_no_entry_stops_the_run_and_is_named(
    data: Dataset, text: str | bytes, name: str, words: str
) -> None:
    if name.endswith(".gz") and isinstance(text, str):
        text = gzip.compress(text.encode())
    with pytest.raises(InputError, match=words):
        opted_out(data, text, name=name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://x.example/a,b.jpg\n", "a.txt"),
        ('"https://x.example/a,b.jpg"\n', "a.csv"),
        ("https://x.example/a,b.jpg\n", "a.tsv"),
        ('# asked for, by mail\n\nwhy,URL ,x\n"me, too","https://x.example/a,b.jpg"\n#,no,entry\n,,\n', "a.csv"),
        ('why\tUrl\n"me"\thttps://x.example/a,b.jpg\t\t\n', "a.tsv.gz"),
        ('# a list\nurl,why\n"https://x.example/a,b.jpg",me\n', "a.txt"),
        ('\ufeffURL\r\n"http://x.example/a,b.jpg"\r\n', "a.csv"),
    ],
)
def test_a_list_is_obeyed_in_every_form_that_it_may_have(data: Dataset, text: str, name: str) -> None:
    out = opted_out(data, gzip.compress(text.encode()) if name.endswith(".gz") else text, name=name)
    assert out.refuses("https://x.example/a,b.jpg")
    assert not out.refuses("https://x.example/a")


def test_a_list_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"consent\.optout: .* matches no file"):
        lists.find([str(tmp_path / "none/*.csv")], "consent.optout")


def test_the_digest_is_of_what_the_lists_hold(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x.example\n")
    (tmp_path / "b").write_text("y.example\n")
    both, swapped = (lists.find([str(tmp_path / name) for name in order], "x") for order in ("ab", "ba"))
    assert lists.digest(both) == lists.digest(swapped) != lists.digest(both[:1])
    assert lists.digest([]) == ""


def test_urls_are_compared_without_what_does_not_change_the_image() -> None:
    same = ["http://Example.org/a.jpg", "https://example.org:443/a.jpg#x", "//example.org/a.jpg", "example.org/%61.jpg",
            "https://me:pw@example.org/a.jpg?X-Amz-Signature=00&token=1"]  # fmt: skip
    assert {optout.url_form(url) for url in same} == {"example.org/a.jpg"}
    other = ["http://example.org/A.jpg", "http://example.org/a.jpg?v=1", "http://www.example.org/a.jpg"]
    assert len({optout.url_form(url) for url in [*same, *other]}) == 4
    assert optout.url_form("photos:/a b.jpg") == "photos:/a b.jpg"
    domains = {"*.Example.org": "example.org", ".uk": "uk", "bücher.example": "xn--bcher-kva.example",
               "https://a.example:8/x": "a.example", "127.0.0.1:80": "127.0.0.1", "[::1]": "[::1]",
               "word": None}  # fmt: skip
    assert {text: optout.domain_form(text) for text in domains} == domains


def blurred(seed: int, kind: str = "PNG", size: int = 300, **options: int) -> bytes:
    """A picture with shapes, as a file of some kind."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 255, (9, 9, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC).save(out, kind, **options)
    return out.getvalue()


def pdq(content: bytes) -> str:
    import pdqhash

    bits, quality = pdqhash.compute(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    assert quality >= 50
    return np.packbits(bits.astype(np.uint8)).tobytes().hex()


def phash(content: bytes) -> str:
    return f"{perceptual_hash(np.asarray(Image.open(io.BytesIO(content)).convert('RGB'))):016x}"


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256", "pdq", "phash", "pdq and others", "column"])
def test_a_known_image_is_refused_by_each_kind_of_hash_and_leaves_nothing(
    tmp_path: Path, data: Dataset, kind: str
) -> None:
    original = blurred(1)
    again = blurred(1, "JPEG", 240, quality=60)  # other bytes, another size, another codec
    others = {f"/{seed}.png": blurred(seed) for seed in range(2, 6)}
    looks = kind in ("pdq", "phash", "pdq and others", "column")
    if kind == "pdq":
        text = f"pdq:{pdq(original)}\n"
    elif kind == "phash":
        text = f"{phash(original)}\n"
    elif kind == "pdq and others":
        text = f"{'0' * 32}\n{pdq(original)}\n" + "\n".join(hashlib.md5(bytes([n])).hexdigest() for n in range(200))
    elif kind == "column":
        text = f"pdq,quality\n{pdq(original).upper()},100\n"
    else:
        text = f"{hashlib.new(kind, original).hexdigest()}\n"
    no = listed(data, text)
    assert no.looks == (looks or kind == "sha256")  # 64 digits alone may be either
    with serve({"/1.png": send(original), "/again.jpg": send(again)} | {p: send(b) for p, b in others.items()}) as site:
        found, tar = get(tmp_path, [site.url(path) for path in ["/1.png", "/again.jpg", *others]], site, no=no)
    assert statuses(found) == ["optout", "optout" if looks else "success", *["success"] * len(others)]
    for row in found:
        if row["download_status"] == "optout":
            assert row["error"] == known.KNOWN
            assert row["stored_key"] is row["offset"] is row["width"] is row["original_width"] is None
            assert row["sha256"]
    assert tar.count(b"ustar") == statuses(found).count("success")


def test_a_known_hash_that_the_source_states_is_not_asked_for(tmp_path: Path, data: Dataset) -> None:
    digest = hashlib.md5(GOOD).hexdigest()
    no = listed(data, f"md5:{digest}\n")
    with serve({"*": send(GOOD)}) as site:
        found, _ = get(tmp_path, [{"url": site.url("/a.jpg"), "expected_hash": f"md5:{digest}"}], site, no=no)
        assert statuses(found) == ["optout"]
        assert site.seen == []


def test_a_flat_picture_is_not_taken_for_a_known_flat_picture(data: Dataset) -> None:
    grey = simplejpeg.encode_jpeg(np.full((64, 64, 3), 99, np.uint8))
    assert not listed(data, f"{'0' * 16}\npdq:{'0' * 64}\n").shows(grey)
    near = int(phash(blurred(1)), 16)
    turned = f"{near ^ 0b1111:016x}\n"
    jpeg = blurred(1, "JPEG", quality=95)
    assert listed(data, turned).shows(jpeg)
    assert not listed(data, turned, distance=2).shows(jpeg)


def test_ten_thousand_rows_are_found_in_lists_of_many_lines(data: Dataset) -> None:
    text = "".join(f"site{n}.example\nhttps://host{n}.example/image/{n}.jpg\n" for n in range(50_000))
    out = opted_out(data, text)
    urls = [
        f"http://cdn.site{n}.example/a.jpg" if n % 2 else f"http://host{n}.example/image/{n}.jpg" for n in range(10_000)
    ]
    urls[4] = "http://host4.example/image/5.jpg"
    mask = out.rows(urls, [None] * 10_000, [None] * 10_000)
    assert np.flatnonzero(~mask).tolist() == [4]
    kinds = {path.name for path in Path(data.root).glob("work_lists/optout/*/*.bin")}
    assert kinds == {"url.bin", "domain.bin"}
    assert (
        b"site1" not in subprocess.run(["cat", *Path(data.root).rglob("*.bin")], capture_output=True, check=True).stdout
    )
