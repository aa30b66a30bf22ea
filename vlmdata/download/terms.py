"""Under which terms images are asked for and kept."""

from dataclasses import dataclass, field

from vlmdata.download.buckets import Bucket
from vlmdata.download.forgotten import Forgotten
from vlmdata.download.known import Known
from vlmdata.download.optout import OptOut
from vlmdata.recipe import Consent, Download


@dataclass(frozen=True)
class Terms:
    """What holds for every URL of a part, from the part down to the single request.

    roots: source name -> folder of its local files, whose URLs are `<source name>:/<percent-encoded path>`.
    optout, known: the user's lists: what the first names is neither asked for nor stored, what the second does is not
        stored; both have the status `optout`.
    forgotten: what does not come back: it is not stored either, and has the status `forgotten`.
    bucket: the hosts that this process asks alone; of all others, to which redirects may lead, it keeps to its share.
    """

    options: Download
    consent: Consent
    roots: dict[str, str]
    optout: OptOut = field(default_factory=OptOut)
    known: Known = field(default_factory=Known)
    forgotten: Forgotten = field(default_factory=Forgotten)
    bucket: Bucket = field(default_factory=Bucket)
