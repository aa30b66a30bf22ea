"""Lists of hashes of known illegal images: by them a picture is refused before it is stored, and never shown.

Of the bytes received: MD5, SHA-1, SHA-256. Of what is seen: PDQ (https://github.com/facebook/ThreatExchange, folder
pdq), whose authors take 31 differing bits of 256 for a match and leave hashes of a quality below 50 aside; and the
perceptual hash of `signals/image.py`. Both are measured on the stored size, so that pictures that are stored already
can be held against a list that came later.
"""

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg

from vlmdata.download.lists import Lists, hex_entry
from vlmdata.errors import DataError
from vlmdata.schemas import table_schema

VERSION = 1
KNOWN = "on a list of known images"
OF_BYTES = ("md5", "sha1", "sha256")
_PDQ_DISTANCE, _PDQ_QUALITY = 31, 50
_LONGEST = 512  # pixels a side of what PDQ hashes: its authors' own tool makes images that small first


class Known:
    """The lists in force. distance: differing bits of 64 at which two perceptual hashes are one picture's."""

    def __init__(self, lists: Lists | None = None, distance: int = 4) -> None:
        self._lists, self._distance = lists or Lists(), distance

    @property
    def digests(self) -> list[str]:
        """The kinds of hash that the bytes received must be held against."""
        return [kind for kind in OF_BYTES if kind in self._lists.kinds]

    @property
    def looks(self) -> bool:
        """Whether a list has perceptual hashes."""
        return bool(self._lists.kinds & {"pdq", "phash"})

    def has(self, digests: Mapping[str, str]) -> bool:
        """Whether a list has one of these hashes: kind -> hex digits."""
        return any(
            bool(self._lists.hold(kind, [int(digests[kind][:16], 16)])[0]) for kind in self.digests if kind in digests
        )

    def shows(self, jpeg: bytes) -> bool:
        """Whether a stored picture looks like one on a list."""
        if not self.looks:
            return False
        return self._looks_known(simplejpeg.decode_jpeg(jpeg, "RGB"))

    def _looks_known(self, pixels: np.ndarray) -> bool:
        if "phash" in self._lists.kinds:
            # These take a second to import, and most lists have no such hash.
            from vlmdata.dedup.perceptual import MIN_BITS
            from vlmdata.signals.image import perceptual_hash

            own = perceptual_hash(pixels)
            # Flat images' hashes are alike whatever they show.
            if own.bit_count() >= MIN_BITS:
                differing = np.bitwise_count(self._lists.all("phash") ^ np.uint64(own))
                if bool((differing <= self._distance).any()):
                    return True
        if "pdq" not in self._lists.kinds:
            return False
        import cv2
        import pdqhash

        height, width = (min(side, _LONGEST) for side in pixels.shape[:2])
        bits, quality = pdqhash.compute(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))
        if quality < _PDQ_QUALITY:
            return False
        own_pdq = np.packbits(bits.astype(np.uint8)).view(">u8").astype(np.uint64)
        differing = np.bitwise_count(self._lists.all("pdq") ^ own_pdq).sum(axis=1, dtype=np.int64)
        return bool((differing <= _PDQ_DISTANCE).any())


def parse(kind: str, text: str) -> list[tuple[str, bytes]]:
    """An entry of a list of known images as (kind, hash). kind: the column's name, or nothing for a line of its own,
    `pdq:…` or the digits alone. 64 of them may be a SHA-256 or a PDQ hash, and count as both.

    Raises ValueError, which shows nothing of the text.
    """
    if kind in ("url", "domain"):
        raise ValueError(f"the column {kind} belongs into a list of consent.optout")
    prefix, sign, digits = text.lower().rpartition(":")
    if sign and prefix in (kind or prefix, ""):
        kind = prefix or kind
    kinds = [kind] if kind else [*OF_BYTES, "pdq", "phash"]
    found = [
        (name, entry) for name in kinds if name in (*OF_BYTES, "pdq", "phash") and (entry := hex_entry(name, digits))
    ]
    if not found:
        raise ValueError("no MD5, SHA-1, SHA-256, PDQ (64 hex digits) or perceptual hash (16 hex digits)")
    return found


def recheck(images: pa.Table, read_image: Callable[[int, int], bytes], known: Known) -> pa.Table:
    """The table `known` of one part: which stored pictures are on a list, by SHA-256 and by what they show.

    images: the part's rows. read_image(offset, length): a stored image's bytes; each distinct one is read once.
    """
    by_hash = known.digests
    found: dict[int, bool] = {}
    answers: list[bool | None] = []
    columns = (images[name].to_pylist() for name in ("sha256", "offset", "length"))
    for sha256, offset, length in zip(*columns, strict=True):
        if length is None:
            answers.append(None)
            continue
        if offset not in found:
            listed = "sha256" in by_hash and known.has({"sha256": sha256})
            try:
                found[offset] = listed or known.shows(read_image(offset, length))
            except ValueError as error:
                raise DataError(f"the stored image at {offset} is broken: {error}; see `vlmdata verify`") from error
        answers.append(found[offset])
    return pa.table([images["uid"].combine_chunks(), pa.array(answers, pa.bool_())], table_schema("known"))


def fresh(images: pa.Table) -> pa.Table:
    """The table `known` of a part that was downloaded under the lists in force: what is stored is on none of them."""
    stored = pc.if_else(images["length"].is_valid(), False, None).cast(pa.bool_())
    return pa.table([images["uid"], stored], table_schema("known"))
