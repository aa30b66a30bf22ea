"""URLs and text from outside, made fit to be kept: one form for one URL, no signatures in it, valid UTF-8."""

import re
from functools import lru_cache
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.compute as pc

_LONGEST_URL = 4096
LONGEST_CAPTION = 2_000  # characters
_CONTROL_AND_SPACE = "".join(map(chr, range(33)))
_WITH_HOST = re.compile(r"[a-z][a-z0-9+.-]{0,30}://", re.IGNORECASE)
_DEFAULT_PORTS = {"http": 80, "https": 443}
# What RFC 3986 lets stand in a path or query, and the percent sign of what is encoded already.
_KEPT = "/%:?#[]@!$&'()*+,;=~|"
_PLAIN = re.compile(r"[!#-;=?-\[\]_a-z|~]*")
# Links that need nothing but being put behind their base, or not even that: most of those that pages have.
_REST = r"[!$-9=@A-Z_a-z|~]*(?:\?[!$-;=?@A-Z_a-z|~]+)?"
_WHOLE = re.compile(rf"https?://[a-z0-9._-]+/{_REST.replace('$-9', '$-:')}")
_ROOTED = re.compile(rf"/(?!/){_REST}")
_BELOW = re.compile(rf"[A-Z0-9_a-z%]{_REST}")
_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}")
# A URL in a text ends at a space, a quote, or the next one of a chain.
_IN_TEXT = re.compile(rf"{_WITH_HOST.pattern}(?:(?!::{_WITH_HOST.pattern})[^\s'\"<>])*", re.IGNORECASE)
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")

_SESSION = r"(?:j|php|asp)?sess(?:ion)?[-_]?id"
# Parameters that give access, whatever else the query holds …
_SECRET = re.compile(
    r"(?:x-amz-|x-goog-|x-oss-|x-ms-signature).*"
    r"|signature|sig|sign|awsaccesskeyid|googleaccessid|ossaccesskeyid|key-pair-id|hdnea|hdnts|__token__|__gda__"
    r"|q-(?:signature|ak|sign-algorithm|sign-time|key-time|header-list|url-param-list)|x-cos-security-token"
    r"|token|(?:access|auth|id|refresh|session|csrf|security)[-_]?token|(?:api|auth|access)[-_]?key|jwt"
    r"|auth|authorization|pwd|password|passwd|secret|client[-_]?secret"
    rf"|{_SESSION}"
)
# Google's keys are told by their beginning, since `key` may name anything.
_GOOGLE_KEY = re.compile(r"key=AIza", re.IGNORECASE)
# A session's id behind the path: Java's servers put it there for clients without cookies.
_PATH_SESSION = re.compile(rf";{_SESSION}=[^/;]*", re.IGNORECASE)
_AZURE = frozenset(
    {"sv", "ss", "srt", "st", "se", "sp", "spr", "sip", "sr", "si", "sdd", "ses", "saoid", "suoid", "scid"}
)
_AZURE |= {"skoid", "sktid", "skt", "ske", "sks", "skv", "rscc", "rscd", "rsce", "rscl", "rsct"}
# … those that belong to a signature beside them: CloudFront's, S3's and Huawei's, Azure's SAS …
_COMPANIONS = {
    frozenset({"signature", "key-pair-id", "sign"}): frozenset({"expires", "policy", "hash-algorithm", "accesskeyid"}),
    frozenset({"sig"}): _AZURE,
    frozenset({"token", "hdnea", "hdnts", "__token__"}): frozenset({"expires", "expiry", "exp"}),
}
# … and those that are a signature only together: Facebook's CDN, Discord's.
_TOGETHER = (frozenset({"oh", "oe"}), frozenset({"ex", "is", "hm"}))


def strip_signature(url: str) -> tuple[str, str | None]:
    """A URL without what gives access to it, and the URL as it was where that differs.

    Dropped from URLs with a host: a user's name and password, the query's signature and token parameters (S3, Google
    Cloud Storage, CloudFront, Azure's shared access signatures, Akamai, OSS, Tencent's COS, Discord, Facebook, Google's
    API keys, session ids and plain tokens), a session's id in the path, and the fragment, which no request sends. The
    other parameters keep their order and spelling.
    Returns (url, None) when there was nothing to drop: the second is what belongs into `fetch_url`.
    """
    if "?" not in url and "@" not in url and "#" not in url and ";" not in url:
        return url, None
    if not _WITH_HOST.match(url):
        return url, None
    try:
        parts = urlsplit(url)
    except ValueError:  # such as an unclosed bracket; nobody can fetch it, but it must not keep a secret either
        return re.split(r"[?#;]", url.rpartition("@")[2], maxsplit=1)[0], None
    query = parts.query
    if query:
        pieces = query.split("&")
        names = [unquote(piece.partition("=")[0]).lower() for piece in pieces]
        drop = {name for name in names if _SECRET.fullmatch(name)}
        for signs, companions in _COMPANIONS.items():
            if signs & drop:
                drop |= companions
        for signs in _TOGETHER:
            if signs.issubset(names):
                drop |= signs
        if any(_GOOGLE_KEY.match(unquote(piece)) for piece in pieces):
            drop.add("key")
        if not drop.isdisjoint(names):
            query = "&".join(piece for piece, name in zip(pieces, names, strict=True) if name not in drop)
    netloc = parts.netloc.rpartition("@")[2]
    path = _PATH_SESSION.sub("", parts.path)
    if query == parts.query and netloc == parts.netloc and path == parts.path:
        return url.partition("#")[0], None
    return urlunsplit((parts.scheme, netloc, path, query, "")), url


# A host that is not ASCII, which `urlsplit` may refuse; a user's name, a fragment, a bracket, a session in the path; or
# a parameter whose name is a secret's, or may be when decoded. `oh` stands for Facebook's pair, `hm` for Discord's.
_SUSPECT = (
    rf"(?is)^{_WITH_HOST.pattern}(?:[^/?#]*[^\x00-\x7f]|.*(?:[@#\[\]]|;{_SESSION}=|[?&]key=(?:AIza|.{{0,9}}%)"
    rf"|[?&](?:[^=&]*%[^=&]*|{_SECRET.pattern}|oh|hm)(?:[=&]|$)))"
)


def may_hold_secret(urls: pa.Array) -> pa.Array:
    """False for the strings that `strip_signature` would leave as they are: most, told by one regular expression."""
    return pc.match_substring_regex(urls, _SUSPECT)


def web_url(link: str, base: str = "") -> str | None:
    """A link as an absolute http(s) URL in one form, or None where it is none.

    Scheme and host in lower case, a default port and the fragment dropped, an empty path as `/`, what a URL may not
    hold percent-encoded as UTF-8 (a host as IDNA). What is percent-encoded already stays as it is.
    """
    link = link.strip(_CONTROL_AND_SPACE)
    if len(link) > _LONGEST_URL:
        return None
    if _WHOLE.fullmatch(link):
        return link
    try:
        parts = urlsplit(urljoin(base, link))
        host, port = parts.hostname, parts.port
        # A backslash is a slash to browsers: what the host is would be a matter of taste.
        if parts.scheme not in _DEFAULT_PORTS or not host or "\\" in parts.netloc:
            return None
        if not host.isascii():
            host = host.encode("idna").decode("ascii")
        elif not re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]+", host):
            return None
    except ValueError:  # UnicodeError is one, too
        return None
    if ":" in host:
        host = f"[{host}]"
    user, sign, _ = parts.netloc.rpartition("@")
    if port is not None and port != _DEFAULT_PORTS[parts.scheme]:
        host = f"{host}:{port}"
    url = urlunsplit((parts.scheme, _encode(user) + sign + host, _encode(parts.path) or "/", _encode(parts.query), ""))
    return url if len(url) <= _LONGEST_URL else None


def linked_url(link: str, base: str) -> str | None:
    """The same as `web_url`, several times as fast for plain links. base: a URL that `web_url` has made."""
    if len(link) < 2_000 and "/." not in link:
        origin, folder = _places(base)
        if link.startswith("/"):
            if _ROOTED.fullmatch(link):
                return origin + link
        elif folder and "//" not in link and _BELOW.fullmatch(link):
            return folder + link
    return web_url(link, base)


@lru_cache(1_000)
def _places(base: str) -> tuple[str, str | None]:
    """Origin and folder of a URL; no folder where joining would change the folder's own form, or the length matters."""
    path = base.partition("?")[0]
    start = path.find("/", 8)
    folder = path[: path.rfind("/") + 1]
    plain = "//" not in folder[start:] and "/." not in folder[start:] and len(folder) < 2_000
    return base[:start], folder if plain else None


def one_spelling(text: str) -> str:
    """A URL or a part of one with its percent-encodings in one form (RFC 3986, 6.2.2): hex digits in upper case, none
    for what needs none; what may not stand in a URL is encoded as UTF-8."""
    text = _encode(text)
    return _ENCODED.sub(_respell, text) if "%" in text else text


def host_and_port(url: str) -> str:
    """`example.org:443` of an http(s) URL that `web_url` has made."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or _DEFAULT_PORTS[parts.scheme]}"


def strip_urls(text: str) -> str:
    """A text, such as an error's, whose URLs are without what gives access to them, fsspec's chains
    (`simplecache::https://…`) too."""
    return _IN_TEXT.sub(lambda found: strip_signature(found[0])[0], text)


def clean_text(text: str) -> str:
    """Text as valid UTF-8 without NUL, its runs of white space as one space, none at its ends."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = _whole(text)
    return " ".join(text.replace("\0", "").split())


def shorten(text: str, longest: int) -> str:
    """`text` cut at a space so that it has at most `longest` characters."""
    if len(text) <= longest:
        return text
    return text[: longest + 1].rpartition(" ")[0] or text[:longest]


def _encode(part: str) -> str:
    if _PLAIN.fullmatch(part):
        return part
    return quote(_whole(part), safe=_KEPT)


def _respell(encoded: re.Match[str]) -> str:
    character = chr(int(encoded[0][1:], 16))
    return character if _UNRESERVED.fullmatch(character) else encoded[0].upper()


def _whole(text: str) -> str:
    # JSON can hold half a surrogate pair, which UTF-8 has no form for.
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
