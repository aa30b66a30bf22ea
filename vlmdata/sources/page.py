"""What one HTML page holds: images with their captions, links, and what the page says about its use."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from selectolax.lexbor import LexborHTMLParser, LexborNode

from vlmdata.sources.metas import open_graph, page_language
from vlmdata.sources.urls import LONGEST_CAPTION, clean_text, linked_url, shorten, strip_signature, web_url

_MOST_IMAGES = 5_000
_AROUND = 150
_WINDOW = 2 * _AROUND  # characters beside an image, of which some are the marks of other images
_HERE = "\ufdd0"  # where an image stands: a noncharacter, which has no other use in a text
_DEEPEST = 1_000
_FEW_TAGS = 20_000
_MOST_METAS = 500

# Where scripts that load images late keep the real address: lazysizes, lozad, jQuery's Lazy Load, WordPress's plugins,
# Slick, Squarespace.
_LAZY = ("data-src", "data-original", "data-lazy-src", "data-lazy", "data-lazyload", "data-image")
_SETS = ("data-srcset", "data-lazy-srcset", "srcset")
_NOT_SRC = frozenset({*_LAZY, *_SETS})
# Of a picture's sources those that the download can decode: no SVG, no JPEG XL.
_DECODED = frozenset({"", "image/jpeg", "image/jpg", "image/png", "image/webp", "image/gif", "image/avif"})
_LICENSES = (
    'a[rel~="license"][href],link[rel~="license"][href],meta[name="dcterms.license" i][content],'
    'meta[name="DC.rights.license" i][content]'
)
# The tags that need no end, so that they do not say how deep a page goes.
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
)
_UNCLOSED = _VOID | {"p", "li", "dt", "dd", "td", "th", "tr", "thead", "tbody", "option", "rt", "rp"}
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)[^>]*?(/?)>")
_NUMBERING = re.compile(
    r"(?:figure|fig\.?|abbildung|abb\.?|bild|figura|figur|afbeelding|ilustración|illustration|рисунок|rysunek|图|図|그림)"
    r"\s*\d+(?:[.-]\d+)*\s*[.:)]?\s*",
    re.IGNORECASE,
)
_AGENT = re.compile(r"[a-z0-9_.*-]+")
# Directives with a value of their own, which must not be read as `agent: directive`.
_VALUED = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


class Image(NamedTuple):
    """An image with a caption. `url` is without signatures; `fetch_url` is the signed form or None."""

    url: str
    fetch_url: str | None
    caption: str
    caption_from: str
    context: str | None


@dataclass(frozen=True)
class Page:
    """A page that was read. `consent` has `deny`, `allow` or None for robots, noai, tdm and noml; robots.txt, which is
    no part of a page, is for the caller to add. `canonical` is the address that the page says it has itself (RFC 6596),
    or None.
    """

    images: list[Image]
    links: list[str]
    lang: str | None
    license: str | None
    consent: dict[str, str | None]
    left_out: int
    canonical: str | None = None


def read_page(html: str, url: str, headers: Mapping[str, Sequence[str]], agent: str, with_links: bool = True) -> Page:
    """Images with captions, links and consent signals of a page at `url`.

    headers: the response's, names in lower case. agent: our name, which directives may address.
    A caption is the figure's (HTML's figcaption; DocBook's title of the figure and caption of the media object,
    without the numbering), else the image's alt, else its title; images without any of them are left aside.
    `left_out` counts the images beyond the first 5,000 of a page, which are not read.
    The image that a page names for its previews (Open Graph's og:image) is one more, with og:image:alt, og:title or the
    page's title as its caption and og:description as its context.
    Raises ValueError for a page that is nested more than 1,000 tags deep: parsing one takes quadratic time.
    """
    _check_depth(html)
    tree = LexborHTMLParser(html.replace("\0", "").replace(_HERE, " "))
    head = tree.head
    first = head.css_first("base[href]") if head is not None else None
    base = (web_url(first.attributes.get("href") or "", url) if first is not None else None) or url
    metas = _metas(tree)
    directives, consent = page_says(metas, headers, agent)
    links = list(_links(tree, base)) if with_links and not directives & {"nofollow", "none"} else []
    canonical = head.css_first('link[rel~="canonical" i][href]') if head is not None else None
    images = tree.css("img")
    found = list(_captioned(images[:_MOST_IMAGES], base))
    contexts = _contexts(tree, [node for node, *_ in found])
    root = tree.css_first("html")
    lang = (root.attributes.get("lang") or root.attributes.get("xml:lang") or "").strip() if root is not None else ""
    title = head.css_first("title") if head is not None else None
    preview = open_graph(metas, title.text() if title is not None else "", base)
    license_node = tree.css_first(_LICENSES) if "license" in html else None
    stated = license_node.attributes if license_node is not None else {}
    license_url = web_url(stated.get("href") or stated.get("content") or "", base) if stated else None
    return Page(
        [
            Image(*strip_signature(source), caption, caption_from, context)
            for (_, source, caption, caption_from), context in zip(found, contexts, strict=True)
        ]
        + ([Image(*preview)] if preview else []),
        links,
        clean_text(lang)[:35] or page_language(metas, headers),
        strip_signature(license_url)[0] if license_url else None,
        consent,
        max(0, len(images) - _MOST_IMAGES),
        web_url(canonical.attributes.get("href") or "", base) if canonical is not None else None,
    )


def product(agent: str) -> str:
    """The name in a user agent that robots.txt, headers and metas address: `vlmdata` of `vlmdata/0.1 (+…)`."""
    return agent.partition("/")[0].strip().lower()


def robots_directives(values: Iterable[str], agent: str) -> set[str]:
    """The directives for `agent` in values of X-Robots-Tag, in lower case.

    A value is a list at commas; `name: directive` addresses that agent alone (`*` all), and so does what follows it.
    https://developers.google.com/search/docs/crawling-indexing/robots-meta-tag
    """
    found, names = set(), (product(agent), "*")
    for value in values:
        ours = True
        for piece in value.lower().split(","):
            name, colon, rest = piece.partition(":")
            name = name.strip()
            # A date, too, has colons (unavailable_after); a name has no spaces.
            if colon and name not in _VALUED and _AGENT.fullmatch(name):
                ours, piece = name in names, rest
            if ours:
                found.update(piece.split())
    return found


def page_says(
    metas: Sequence[tuple[str, str]], headers: Mapping[str, Sequence[str]], agent: str
) -> tuple[set[str], dict[str, str | None]]:
    """What a page's metas and the response's headers say: robots directives for `agent`, and Page's `consent`.

    metas: (name in lower case, content). What a meta says on TDM Reservation comes before what a header says.
    """
    values = list(headers.get("x-robots-tag", ()))
    values += [content for name, content in metas if name in ("robots", product(agent))]
    directives = robots_directives(values, agent)
    inside = [content for name, content in metas if name == "tdm-reservation"]
    return directives, {
        "robots": "deny" if directives & {"noindex", "noimageindex", "none"} else None,
        "noai": "deny" if directives & {"noai", "noimageai"} else None,
        "tdm": reservation(inside) or reservation(headers.get("tdm-reservation", ())),
        "noml": "deny" if "noml" in directives else None,
    }


def reservation(values: Iterable[str]) -> str | None:
    """What values of `tdm-reservation` say: 1 reserves the rights, 0 does not, anything else says nothing.

    https://www.w3.org/community/reports/tdmrep/CG-FINAL-tdmrep-20240510/
    """
    said = {value.strip() for value in values}
    return "deny" if "1" in said else "allow" if "0" in said else None


def _metas(tree: LexborHTMLParser) -> list[tuple[str, str]]:
    """(name or property or http-equiv in lower case, content) of a page's metas."""
    metas = []
    for node in tree.css("meta[content]")[:_MOST_METAS]:
        attributes = node.attributes
        name = attributes.get("property") or attributes.get("name") or attributes.get("http-equiv") or ""
        metas.append((name.strip().lower(), attributes["content"] or ""))
    return metas


def _check_depth(html: str) -> None:
    if len(html) < 3 * _FEW_TAGS or html.count("<") <= _FEW_TAGS:
        return
    depth = 0
    for match in _TAG.finditer(html):
        end, name, closed = match.groups()
        if name.lower() not in _UNCLOSED and not closed:
            depth += -1 if end else 1
            if depth > _DEEPEST:
                raise ValueError(f"nested more than {_DEEPEST} tags deep")


def _links(tree: LexborHTMLParser, base: str) -> Iterator[str]:
    for node in tree.css("a[href],area[href]"):
        link = node.attributes.get("href")
        absolute = linked_url(link.partition("#")[0], base) if link and link[0] != "#" else None
        if absolute:
            yield absolute


def _captioned(images: list[LexborNode], base: str) -> Iterator[tuple[LexborNode, str, str, str]]:
    """Each image that has a URL and a caption: (node, url with its signature, caption, caption_from)."""
    captions: dict[int, str] = {}
    known: dict[int, str] = {}
    for node in images:
        attributes = node.attributes
        source = _best_source(node, attributes, base)
        if source is None:
            continue
        for caption_from, text in (
            ("figcaption", _figure_caption(node, captions, known)),
            ("alt", attributes.get("alt") or ""),
            ("title", attributes.get("title") or ""),
        ):
            caption = shorten(clean_text(text), LONGEST_CAPTION)
            if caption:
                yield node, source, caption, caption_from
                break


def _best_source(node: LexborNode, attributes: dict[str, str | None], base: str) -> str | None:
    """The largest candidate of srcset and of the picture's sources, else a lazily loaded image's URL, else src."""
    parent = node.parent
    if attributes.keys().isdisjoint(_NOT_SRC) and (parent is None or parent.tag != "picture"):
        source = attributes.get("src")
        return linked_url(source, base) if source and source.strip() else None
    own = _largest(next((value for name in _SETS if (value := attributes.get(name))), ""))
    best = max(own, *_picture_sources(node), key=lambda candidate: candidate[1])  # the first of equal ones
    links = [best[0]] if best[1] > 1 else [own[0]]
    links += [attributes.get(name) or "" for name in (*_LAZY, "src")]
    links.append(best[0])
    return next((url for link in links if link.strip() for url in [linked_url(link, base)] if url), None)


def _picture_sources(image: LexborNode) -> list[tuple[str, float]]:
    """The best candidates (URL, size) of the `source` elements beside an image in a picture."""
    picture = image.parent
    candidates = [("", 0.0)]
    if picture is not None and picture.tag == "picture":
        for place, child in enumerate(picture.iter()):
            if place > 20:
                break
            if child.tag == "source":
                said = child.attributes
                if (said.get("type") or "").strip().lower() in _DECODED:
                    candidates.append(_largest(next((value for name in _SETS if (value := said.get(name))), "")))
    return candidates


def _largest(srcset: str) -> tuple[str, float]:
    """The URL with the largest width or density, and that; URLs may hold commas, but neither begin nor end with one.

    https://html.spec.whatwg.org/multipage/images.html#parsing-a-srcset-attribute
    """
    best, best_size, url = "", 0.0, ""
    for token in srcset.split():
        size = 0.0
        if not url:
            url = token.lstrip(",")
            done = url.endswith(",")
            url, size = url.rstrip(","), 1.0
        else:
            descriptor = token.rstrip(",")
            done = True
            if re.fullmatch(r"\d{1,6}(\.\d{1,6})?[wx]", descriptor):
                size = float(descriptor[:-1])
        if url and size > best_size:
            best, best_size = url, size
        if done:
            url = ""
    return best, best_size


def _figure_caption(image: LexborNode, captions: dict[int, str], known: dict[int, str]) -> str:
    """The caption of the figure around an image.

    captions, known: the captions of figures, and what is found from an element upwards; both are filled here.
    """
    own, node, way = "", image.parent, []
    for _ in range(12):  # a figure is near its image; a page may be nested without end
        if node is None or node.tag == "body":
            break
        key = node.mem_id
        if not own and key in known:
            own = known[key]
            break
        said = node.attrs.get("class")
        classes = said.split() if said else ()
        if "mediaobject" in classes or "informalfigure" in classes:
            own = own or _child_text(node, captions)
        elif node.tag == "figure" or "figure" in classes:
            title = _child_text(node, captions)
            if numbering := _NUMBERING.match(title):
                title = title[numbering.end() :]
            own = f"{title}: {own}" if title and own and own not in title else title or own
            break
        if not own:
            way.append(key)
        node = node.parent
    else:
        way = []  # of an element nearer to the figure it would not be true
    known.update(dict.fromkeys(way, own))
    return own


def _child_text(figure: LexborNode, captions: dict[int, str]) -> str:
    """The text of the first of a figure's children that is its caption, or nothing."""
    key = figure.mem_id
    if key not in captions:
        captions[key] = ""
        for place, child in enumerate(figure.iter()):
            tag, said = child.tag, child.attrs.get("class") or ""
            classes = said.split()
            if tag == "figcaption" or "caption" in classes or (tag in ("p", "div") and "title" in classes):
                captions[key] = shorten(clean_text(child.text()), LONGEST_CAPTION)
                break
            if place > 200:
                break
    return captions[key]


def _contexts(tree: LexborHTMLParser, nodes: list[LexborNode]) -> list[str | None]:
    """The text before and after each image, about 150 characters of each. Changes the tree."""
    if not nodes or tree.body is None:
        return [None] * len(nodes)
    tree.body.strip_tags(["script", "style", "template"], recursive=True)
    for node in nodes:
        node.replace_with(_HERE)
    text = tree.body.text(separator=" ").replace(_HERE, f" {_HERE} ")
    # No space is left before a sign that ends an element's word.
    text = " ".join(text.split()).replace(" .", ".").replace(" ,", ",").replace(" )", ")")
    if text.count(_HERE) != len(nodes):  # an image outside the body, in a template or a script: no place is known
        return [None] * len(nodes)
    contexts: list[str | None] = []
    place = -1
    for _ in nodes:
        place = text.index(_HERE, place + 1)
        before = _without_marks(text[max(0, place - _WINDOW) : place])
        if len(before) > _AROUND:
            before = before[-_AROUND:].partition(" ")[2] or before[-_AROUND:]
        after = shorten(_without_marks(text[place + 1 : place + 1 + _WINDOW]), _AROUND)
        contexts.append(f"{before} {after}".strip() or None)
    return contexts


def _without_marks(text: str) -> str:
    """Text without the marks of other images."""
    return text.replace(f"{_HERE} ", "").replace(_HERE, "").strip() if _HERE in text else text.strip()
