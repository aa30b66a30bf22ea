"""Captions, URLs and consent signals of single pages."""

import time

import pytest

from vlmdata.sources.page import Image, Page, read_page, robots_directives

URL = "https://example.org/docs/page.html?x=1"


def page(html: str, url: str = URL, **headers: list[str]) -> Page:
    return read_page(html, url, {name.replace("_", "-"): values for name, values in headers.items()}, "vlmdata")


def image(html: str) -> Image:
    [only] = page(html).images
    return only


@pytest.mark.parametrize(
    ("html", "caption", "caption_from"),
    [
        ("<figure><img src=a alt=b><figcaption>A <b>red</b>\n box</figcaption></figure>", "A red box", "figcaption"),
        ("<figure><a><img src=a alt=b></a></figure>", "b", "alt"),
        ("<img src=a alt='  ' title='The title'>", "The title", "title"),
        ("<figure><img src=a alt=b><figcaption>Fig. 3</figcaption></figure>", "b", "alt"),
        (
            '<div class="figure"><p class="title"><strong>Figure 14.125. The Move tool</strong></p>'
            '<div class="figure-contents"><div class="mediaobject"><img src=a alt=b /></div></div></div>',
            "The Move tool",
            "figcaption",
        ),
        (
            '<div class="figure"><p class="title">Abbildung 3.1. Filter „Neon“</p><div class="mediaobject">'
            '<img src=a><div class="caption"><p>Original</p></div></div></div>',
            "Filter „Neon“: Original",
            "figcaption",
        ),
        (
            '<div class="informalfigure"><div class="mediaobject"><img src=a><div class="caption">Alone</div></div>',
            "Alone",
            "figcaption",
        ),
        ("<figure><img src=a><figcaption>Figures of speech</figcaption></figure>", "Figures of speech", "figcaption"),
    ],
)
def test_the_caption_is_the_figures_else_alt_else_title(html: str, caption: str, caption_from: str) -> None:
    found = image(html)
    assert (found.caption, found.caption_from) == (caption, caption_from)


def test_the_innermost_figure_is_an_images_own() -> None:
    html = (
        "<figure><img src=a><figure><img src=b><figcaption>inner</figcaption></figure>"
        "<figcaption>outer</figcaption></figure>"
    )
    assert [found.caption for found in page(html).images] == ["outer", "inner"]


def test_images_without_a_caption_or_a_web_address_are_no_pairs() -> None:
    html = "<img src=a><img alt=b><img src='' alt=b><img src='data:,x' alt=b><img src='file:///etc/passwd' alt=b>"
    assert page(html).images == []


@pytest.mark.parametrize(
    ("attributes", "url"),
    [
        ('src="images/a b.png"', "https://example.org/docs/images/a%20b.png"),
        ('src="/a.png#x"', "https://example.org/a.png"),
        ('src="?b"', "https://example.org/docs/page.html?b"),
        ('src="//cdn.example.net/a"', "https://cdn.example.net/a"),
        ('src="s" srcset="a 1x, b.png 2.5x, c 2x"', "https://example.org/docs/b.png"),
        ('src="s" srcset="a,b 100w, c,d 2000w,"', "https://example.org/docs/c,d"),
        ('src="s" srcset=", ,"', "https://example.org/docs/s"),
        ('src="data:image/gif;base64,R0" data-src="real.jpg"', "https://example.org/docs/real.jpg"),
        ('src="low" data-srcset="x 320w, y 640w"', "https://example.org/docs/y"),
    ],
)
def test_the_best_candidate_of_an_image_is_taken(attributes: str, url: str) -> None:
    assert image(f"<img alt=text {attributes}>").url == url


def test_base_is_honoured_and_signatures_go_to_fetch_url() -> None:
    found = image('<base href="https://cdn.example.net/x/"><img src="a.png?token=5ecret&w=1" alt=b>')
    assert found.url == "https://cdn.example.net/x/a.png?w=1"
    assert found.fetch_url == "https://cdn.example.net/x/a.png?token=5ecret&w=1"


def test_context_is_the_text_on_both_sides_without_scripts() -> None:
    words = " ".join(f"w{number}" for number in range(100))
    html = f"<p>{words}</p><script>var hidden</script><p>before</p><img src=a alt=b><p>after</p><p>{words}</p>"
    context = image(html).context
    assert context is not None
    assert "w99 before after w0" in context
    assert "hidden" not in context
    assert 200 < len(context) <= 301
    assert all(word in {*words.split(), "before", "after"} for word in context.split()), "words are cut nowhere"


@pytest.mark.parametrize(
    ("html", "context"),
    [
        ("<p>A <b>big</b> <i>one</i>, <u>word</u>. <em>(so</em>)<div>x<br>y<img src=a alt=b>z<li>o<li>p",
         "A big one, word. (so) x y z o p"),
        ("<p>" + "漢" * 300 + "<img src=a alt=b>" + "字" * 300, "漢" * 150 + " " + "字" * 150),
        ("one<img src=x><img src=a alt=b><img src=y>two", "one two"),
        ("<img src=a alt=b>", None),
    ],
)  # fmt: skip
def test_context_is_plain_text(html: str, context: str | None) -> None:
    assert image(html).context == context


def test_language_and_license_are_the_pages_own_words() -> None:
    found = page('<html lang=" de-AT "><body><a rel="license nofollow" href="/l?sig=1">x</a></html>')
    assert (found.lang, found.license) == ("de-AT", "https://example.org/l")
    assert (page("<p>x</p>").lang, page("<p>x</p>").license) == (None, None)
    terms = "https://creativecommons.org/licenses/by/4.0/"
    assert page(f"<meta name=DCTERMS.license content='{terms}'>").license == terms


def test_links_are_absolute_and_stay_out_where_the_page_says_nofollow() -> None:
    html = '<a href="a.html#top">x</a><a href="#x">x</a><a href="mailto:a@b">x</a><area href="/m"><a href="?p=2">x</a>'
    assert page(html).links == [
        "https://example.org/docs/a.html",
        "https://example.org/m",
        "https://example.org/docs/page.html?p=2",
    ]
    assert page(html + "<meta name=robots content='noindex, nofollow'>").links == []
    assert page(html, x_robots_tag=["none"]).links == []


@pytest.mark.parametrize(
    ("head", "headers", "denied"),
    [
        ("", {}, set()),
        ("<meta name=robots content=noindex>", {"x_robots_tag": ["noindex, noarchive"]}, {"robots"}),
        ("<meta name=robots content='noarchive, nofollow'>", {}, set()),
        ("<meta name=ROBOTS content='NoAI, noimageai'>", {}, {"noai"}),
        ("<meta name=vlmdata content=noimageai>", {}, {"noai"}),
        ("<meta name=otherbot content=noai>", {}, set()),
        ("<meta name=robots content=noml>", {}, {"noml"}),
        ("", {"x_robots_tag": ["noimageindex", "noai"]}, {"robots", "noai"}),
        ("", {"x_robots_tag": ["otherbot: noai", "unavailable_after: 1 Jan 2030 00:00:00 GMT"]}, set()),
        ("", {"x_robots_tag": ["otherbot: noindex, vlmdata: noai"]}, {"noai"}),
        ("", {"x_robots_tag": ["unavailable_after: Wednesday, 25-Jun-30 15:00:00 PST, noai"]}, {"noai"}),
        ("", {"x_robots_tag": ["otherbot: none, *: noml"]}, {"noml"}),
        ("", {"tdm_reservation": ["1"]}, {"tdm"}),
        ("<meta name=tdm-reservation content=0>", {"tdm_reservation": ["1"]}, set()),
        ("<meta name=tdm-reservation content=yes>", {"tdm_reservation": ["1"]}, {"tdm"}),
        ("<meta name=tdm-reservation content='1'>", {}, {"tdm"}),
    ],
)
def test_what_a_page_says_about_its_use(head: str, headers: dict[str, list[str]], denied: set[str]) -> None:
    consent = page(head, **headers).consent
    assert {word for word, said in consent.items() if said == "deny"} == denied


def test_a_page_that_reserves_nothing_says_allow_and_one_that_is_silent_says_nothing() -> None:
    silent = dict.fromkeys(("robots", "noai", "tdm", "noml"))
    assert page("<meta name=tdm-reservation content=0>").consent == silent | {"tdm": "allow"}
    assert page("").consent == silent


def test_directives_for_all_come_before_those_for_one() -> None:
    assert robots_directives(["noarchive, otherbot: noai, noml", "vlmdata: noimageai"], "VLMdata") == {
        "noarchive",
        "noimageai",
    }


def test_hostile_pages_end_soon_and_stay_small() -> None:
    start = time.perf_counter()
    caption = "long " * 100_000
    found = page(f"<figure><figcaption>{caption}</figcaption>" + "<img src=a>" * 20_000)
    assert len(found.images) == 5_000
    assert found.left_out == 15_000
    assert all(len(image.caption) <= 2_000 for image in found.images)
    for opened in ("<div>", "<figure>", "<a href=x><b>", "<table><tr><td>"):
        with pytest.raises(ValueError, match="nested more than"):
            page(opened * 200_000 + "<img src=a alt=b>")
    for html in (
        "<b>" * 19_000,
        "<div>" * 900 + "<li>x" * 50_000,
        "\x00\ufdd0<img src=a alt='\ufdd0\x00'>",
        "<" * 500_000,
    ):
        page(html)
    assert time.perf_counter() - start < 20, "seconds, where an unguarded parser takes minutes"
