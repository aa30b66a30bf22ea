"""What a page of an archive was found to hold, and pages as Arrow batches."""

import datetime
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from vlmdata.schemas import CONSENT
from vlmdata.sources import ROWS

# An image's url, fetch_url, caption, caption_from and context: an Image, or a plain tuple where there are very many.
Values = tuple[str, str | None, str, str, str | None]


class Found(NamedTuple):
    """A page with its captioned images."""

    page_url: str
    lang: str | None
    license: str | None
    consent: dict[str, str | None]
    crawled_at: datetime.datetime | None
    images: Sequence[Values]


def batch(source: str, found: list[Found]) -> pa.RecordBatch:
    """The rows of pages in the schema ROWS. A page's own values are made once, not once an image."""
    images = [image for page in found for image in page.images]
    page = pa.array([place for place, page in enumerate(found) for _ in page.images], pa.int32())
    urls, fetch_urls, captions, captions_from, contexts = zip(*images, strict=True) if images else ((),) * 5
    columns = {
        "url": pa.array(urls, pa.string()),
        "fetch_url": pa.array(fetch_urls, pa.string()),
        "caption": pa.array(captions, pa.string()),
        "caption_from": pa.array(captions_from, pa.string()),
        "context": pa.array(contexts, pa.string()),
        "source": pa.repeat(pa.scalar(source), len(images)),
        "page_url": pa.array([page.page_url for page in found], pa.string()).take(page),
        "lang_hint": pa.array([page.lang for page in found], pa.string()).take(page),
        "license": pa.array([page.license for page in found], pa.string()).take(page),
        "page_consent": pa.array([page.consent for page in found], CONSENT).take(page),
        "crawled_at": pa.array([page.crawled_at for page in found], ROWS.field("crawled_at").type).take(page),
    }
    arrays = [columns.get(field.name, pa.nulls(len(images), field.type)) for field in ROWS]
    return pa.RecordBatch.from_arrays(arrays, schema=ROWS)
