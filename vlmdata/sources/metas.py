"""What a page's metas say besides its consent: the language, the image of its previews."""

from collections.abc import Mapping, Sequence

from vlmdata.sources.found import Values
from vlmdata.sources.urls import LONGEST_CAPTION, clean_text, shorten, strip_signature, web_url

_LONGEST_CONTEXT = 300


def page_language(metas: Sequence[tuple[str, str]], headers: Mapping[str, Sequence[str]]) -> str | None:
    """The language that Content-Language names, as a header or as a meta, where it is one."""
    values = [*headers.get("content-language", ()), *(content for name, content in metas if name == "content-language")]
    return next((lang for value in values if (lang := clean_text(value)) and len(lang) <= 35 and "," not in lang), None)


def open_graph(metas: Sequence[tuple[str, str]], title: str, base: str) -> Values | None:
    """The image that a page names for its previews, as the values of an Image; None without one, or without words.

    title: the page's, for a page that has neither og:image:alt nor og:title. https://ogp.me/
    """
    said: dict[str, str] = {}
    for name, content in metas:
        if name.startswith(("og:", "twitter:")):
            said.setdefault(name, content)
    links = (said.get(name) for name in ("og:image", "og:image:url", "og:image:secure_url", "twitter:image"))
    url = next((url for link in links if link and link.strip() for url in [web_url(link, base)] if url), None)
    if url is None:
        return None
    words = [(name, said.get(name, "")) for name in ("og:image:alt", "og:title", "twitter:title")]
    for caption_from, text in (*words, ("page title", title)):
        if caption := shorten(clean_text(text), LONGEST_CAPTION):
            context = shorten(clean_text(said.get("og:description", "")), _LONGEST_CONTEXT) or None
            return (*strip_signature(url), caption, caption_from, context)
    return None
