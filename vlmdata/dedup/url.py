"""Duplicates by URL: links that name one file, whatever was written around it.

Two URLs of the web are one when they are the same after RFC 3986's normalisation (section 6.2: letter case of scheme
and host, default port, percent-encodings) and without what does not choose a file, as a rule of thumb:
http or https, `www.`, the fragment, parameters that only track the visitor, and a slash at the path's end.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.dedup import exact
from vlmdata.dedup.components import Compared, since
from vlmdata.sources.urls import one_spelling, web_url

# Parameters by which advertisers and mailing services follow a visitor; no server chooses an image by them.
_TRACKING = (
    r"utm_[^=&]*|gclid|gclsrc|dclid|gbraid|wbraid|fbclid|msclkid|yclid|twclid|ttclid|igshid|li_fat_id|mc_cid|mc_eid"
    r"|_ga|_gl|_hsenc|_hsmi|mkt_tok|oly_anon_id|oly_enc_id|vero_id|wickedid|ref_src"
)
# What regular expressions do not bring into RFC 3986's form, which `web_url` does.
_UNUSUAL = r"^(?:[a-z]*[A-Z][A-Za-z]*://|https?://[^/?#]*[^a-z0-9._:/?#-])|[%\\<>^`{}\"]|[^!-~]"
_STEPS = (
    (r"#.*$", ""),
    (r"^(http://[^/?]*):80([/?]|$)", r"\1\2"),
    (r"^(https://[^/?]*):443([/?]|$)", r"\1\2"),
    (r"^https?://(?:www\.)?", "//"),
    (r"\?", "?&"),
    (rf"(?i)&(?:{_TRACKING})=[^&]*", ""),
    (r"\?&", "?"),
    (r"\?$", ""),
    (r"^([^?]*?)/+(\?|$)", r"\1\2"),
)


def reads(options: recipe.UrlDedup) -> tuple[str, list[str]]:
    """The table and the columns of it that the method compares."""
    return "pairs", ["url"]


def compared(found: pa.Table) -> pa.Table:
    """A part's columns as the method compares them: instead of the URL 32 hex digits, as equal as `normalised` is."""
    column = found["url"].combine_chunks().dictionary_encode()
    plain = normalised(column.dictionary).to_pylist()
    digests = pa.array([hashlib.blake2b(url.encode(), digest_size=16).hexdigest() for url in plain], pa.string())
    return found.set_column(found.column_names.index("url"), "url", digests.take(column.indices))


def compare(
    options: recipe.UrlDedup, values: Mapping[str, np.ndarray | pa.Array], earlier: int = 0, known: object = None
) -> Compared:
    """The edges between rows of the same URL, of which one is not among the `earlier` first."""
    return Compared((since(edges, earlier) for edges in exact.pairs(values["url"])), {})


def normalised(urls: pa.Array) -> pa.Array:
    """string [n]: `//host/path?query`, equal for URLs that name one file. Local ones (`photos:/a.jpg`) and what is no
    URL of the web stay as they are.

    All by Arrow's regular expressions, but for the few URLs that are not in RFC 3986's form yet.
    """
    place = pc.indices_nonzero(pc.match_substring_regex(urls, _UNUSUAL))
    if len(place):
        mended = [one_spelling(web_url(url) or "") or url for url in urls.take(place).to_pylist()]
        mask = np.zeros(len(urls), np.bool_)
        mask[place.to_numpy()] = True
        urls = pc.replace_with_mask(urls, pa.array(mask), pa.array(mended, pa.string()))
    of_web = pc.match_substring_regex(urls, "^https?://[^/?#\\[]")
    plain = urls
    for pattern, replacement in _STEPS:
        plain = pc.replace_substring_regex(plain, pattern, replacement)
    return pc.if_else(of_web, plain, urls)
