"""A part's columns of text held against what is looked for, as whole columns: of millions of rows few are meant."""

from collections.abc import Callable, Collection
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.download.forgotten import PLAIN, above
from vlmdata.download.optout import domain_form, url_form

_LOCAL = r"^[a-z][a-z0-9_]*:/(?:[^/]|$)"  # `<source>:/<path>`


class Places:
    """A part's URLs, some null. Few of them are worth the work of bringing them into their form: a host is told of
    nearly all by one expression, and only those of a host that is looked for go through Python."""

    def __init__(self, urls: pa.Array) -> None:
        self.urls = urls

    @cached_property
    def hosts(self) -> pa.Array:
        """In lower case; null where that cannot be told so."""
        hosts = pc.struct_field(pc.extract_regex(self.urls, PLAIN), "host")
        return pc.ascii_trim(pc.ascii_lower(hosts), ".")

    @cached_property
    def local(self) -> np.ndarray:
        """bool [n]: a file of a source, whose URL is its own form and has no host."""
        return _true(pc.match_substring_regex(self.urls, _LOCAL))

    def forms_among(self, forms: set[str], hosts: set[str]) -> np.ndarray:
        """bool [n]: whose `url_form` is one of these. hosts: theirs."""
        if not forms:
            return np.zeros(len(self.urls), bool)
        found = self.local & among(pc.utf8_trim_whitespace(self.urls), forms)
        return found | self._by_url(among(self.hosts, hosts) | self._untold, lambda url: url_form(url) in forms)

    def below(self, domains: set[str]) -> np.ndarray:
        """bool [n]: whose host is one of these domains or below one."""
        if not domains:
            return np.zeros(len(self.urls), bool)

        def named(host: str | None) -> bool:
            return any(domain in domains for domain in above(host or ""))

        found = among(self.hosts, {host for host in self.hosts.unique().to_pylist() if named(host)})
        return found | self._by_url(self._untold, lambda url: named(domain_form(url)))

    @cached_property
    def _untold(self) -> np.ndarray:
        """bool [n]: neither a file nor of a host that was told."""
        return _true(pc.and_(self.urls.is_valid(), self.hosts.is_null())) & ~self.local

    def _by_url(self, mask: np.ndarray, holds: Callable[[str], bool]) -> np.ndarray:
        """bool [n]: the rows of `mask` whose URL holds; each is asked once."""
        distinct = self.urls.filter(pa.array(mask)).unique().to_pylist()
        return mask & among(self.urls, {url for url in distinct if holds(url)})


def text(rows: pa.Table, name: str) -> pa.Array:
    """A column of text; null where the table has none of this name."""
    if name not in rows.column_names:
        return pa.nulls(rows.num_rows, pa.string())
    return rows[name].cast(pa.string()).combine_chunks()


def among(values: pa.Array, wanted: Collection[str]) -> np.ndarray:
    """bool [n]: which are one of these; null is none."""
    if not wanted:
        return np.zeros(len(values), bool)
    return _true(pc.is_in(values, pa.array(list(wanted), pa.string())))


def _true(mask: pa.Array) -> np.ndarray:
    return mask.fill_null(False).to_numpy(zero_copy_only=False)
