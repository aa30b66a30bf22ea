"""`vlmdata.download.download_part` against a server that misbehaves in every way, and with local files."""

import datetime
import gzip
import hashlib
import inspect
import io
import json
import os
import socket
import ssl
import struct
import tarfile
import threading
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg
from hostile import Site, Wire, drip, endless, redirect, send, serve, silent
from PIL import Image

from vlmdata.download import Terms, download_part
from vlmdata.download.seams import img2dataset_parts
from vlmdata.errors import DataError, MachineError
from vlmdata.recipe import Consent, Download
from vlmdata.schemas import table_schema

EVERYTHING = Consent(respect=["robots", "noai", "tdm", "noml"])


def picture(seed: int = 0, width: int = 90, height: int = 60, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    colours = np.random.default_rng(seed).integers(0, 255, (4, 6, 3), np.uint8)
    Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC).save(out, kind)
    return out.getvalue()


GOOD = picture()


def make_pairs(rows: Iterable[dict | str]) -> pa.Table:
    """A part of `pairs` from URLs, or from columns with a URL in them."""
    full = []
    for given in rows:
        row = {"url": given} if isinstance(given, str) else given
        caption = row.get("caption", "a caption")
        uid = hashlib.blake2b(f"{row['url']}\0{caption}".encode(), digest_size=16).hexdigest()
        full.append({"uid": uid, "caption": caption, "captions": [caption], "source": "web", "occurrences": 1, **row})
    return pa.Table.from_pylist(full, schema=table_schema("pairs"))


def fetch(
    tmp_path: Path,
    rows: Iterable[dict | str] | pa.Table,
    *sites: Site,
    consent: Consent = EVERYTHING,
    roots: dict[str, str] | None = None,
    **options: object,
) -> tuple[list[dict], pa.Table]:
    """The rows of `images`, after a check of what holds for every part, and the table of observations."""
    settings = {"size": 64, "timeout": 5, "deadline": 20, "retries": 0, "allow_hosts": [site.host for site in sites]}
    pairs = rows if isinstance(rows, pa.Table) else make_pairs(rows)
    tar = tmp_path / "part.tar"
    images, observed = download_part(
        pairs, str(tar), "images/k/part.tar", Terms(Download(**settings | options), consent, roots or {})
    )
    assert images.schema == table_schema("images")
    assert observed.schema == table_schema("observations")
    assert images["uid"].to_pylist() == observed["uid"].to_pylist() == pairs["uid"].to_pylist()
    found = images.to_pylist()
    blob = tar.read_bytes()
    for row in found:
        if row["download_status"] == "success":
            jpeg = blob[row["offset"] : row["offset"] + row["length"]]
            assert simplejpeg.decode_jpeg(jpeg).shape == (row["height"], row["width"], 3)
        else:
            assert row["error"]
            assert "\n" not in row["error"]
            assert row["stored_key"] is row["offset"] is row["width"] is None
    return found, observed


def statuses(found: list[dict]) -> list[str]:
    return [row["download_status"] for row in found]


def test_an_image_comes_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    with serve({"/a.jpg": send(GOOD, Content_Type="text/html")}) as site:
        found, observed = fetch(tmp_path, [site.url("/a.jpg")], site, size=30)
    row = found[0]
    assert (row["download_status"], row["error"], row["mime"]) == ("success", None, "image/jpeg")
    assert (row["width"], row["height"], row["original_width"], row["original_height"]) == (45, 30, 90, 60)
    assert row["sha256"] == hashlib.sha256(GOOD).hexdigest()
    assert row["received_bytes"] == len(GOOD)
    assert (row["stored_tar"], row["stored_key"]) == ("images/k/part.tar", row["uid"])
    assert row["consent"] == {"robots": "allow", "noai": None, "tdm": None, "noml": None}
    when = observed["fetched_at"][0].as_py()
    assert abs((datetime.datetime.now(datetime.UTC) - when).total_seconds()) < 60
    assert observed["crawled_at"][0].as_py() is None
    asked = dict(site.seen)["/a.jpg"]
    assert asked["user-agent"].startswith("vlmdata/")
    assert asked["accept-encoding"] == "identity"
    assert "cookie" not in asked


def test_the_user_agent_names_the_contact(tmp_path: Path) -> None:
    with serve({"*": send(GOOD)}) as site:
        fetch(tmp_path, [site.url("/a.jpg")], site, agent="birdbot", contact="https://example.org/bot")
    assert {headers["user-agent"].partition("/")[0] for _, headers in site.seen} == {"birdbot"}
    assert all(headers["user-agent"].endswith("(+https://example.org/bot)") for _, headers in site.seen)


def reset(wire: Wire) -> None:
    """Half an answer, then a reset."""
    wire.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + GOOD[:100])
    wire.wfile.flush()
    wire.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.connection.close()


def nonsense(wire: Wire) -> None:
    wire.wfile.write(b"220 mail.example ESMTP\r\n\r\n")


def hang_up(wire: Wire) -> None:
    """Nothing, and gone."""


def test_each_misbehaviour_ends_in_its_class_and_none_holds_up_the_others(tmp_path: Path) -> None:
    bomb = gzip.compress(GOOD + b"\0" * 3_000_000)
    routes = {
        "/missing": (send(b"no", "404 Not Found"), "4xx"),
        "/forbidden": (send(b"no", "403 Forbidden", X_Robots_Tag="noindex"), "4xx"),
        "/down": (send(b"", "503 Service Unavailable"), "5xx"),
        "/drip": (drip, "timeout"),
        "/silent": (silent, "timeout"),
        "/endless": (endless, "too_large"),
        "/declared": (send(b"x", length=10_000_000), "too_large"),
        "/reset": (reset, "connect"),
        "/short": (send(GOOD[:300], length=len(GOOD)), "connect"),
        "/hang-up": (hang_up, "connect"),
        "/nonsense": (nonsense, "connect"),
        "/gzip": (send(gzip.compress(GOOD), Content_Encoding="gzip"), "success"),
        "/bomb": (send(bomb, Content_Encoding="gzip"), "too_large"),
        "/cut-gzip": (send(gzip.compress(GOOD)[:-40], Content_Encoding="gzip"), "decode"),
        "/brotli": (send(GOOD, Content_Encoding="br"), "type"),
        "/page.jpg": (send(b"<!doctype html><html>", Content_Type="image/jpeg"), "type"),
        "/drawing.png": (send(b"<svg xmlns='http://www.w3.org/2000/svg'/>", Content_Type="image/png"), "type"),
        "/empty": (send(b""), "type"),
        "/cut.jpg": (send(GOOD[: len(GOOD) // 2]), "decode"),
        "/huge.png": (send(picture(0, 1100, 1000, "PNG")), "pixels"),
        "/loop": (redirect("/loop"), "blocked"),
        "/nowhere": (send(b"", "302 Found"), "4xx"),
        "/to-loopback": (redirect("http://127.0.0.1:9/x.jpg"), "blocked"),
        "/to-metadata": (redirect("http://169.254.169.254/latest/meta-data/", "307 Temporary Redirect"), "blocked"),
        "/to-mapped": (redirect("http://[::ffff:169.254.169.254]/"), "blocked"),
        "/to-decimal": (redirect("http://2130706433/"), "blocked"),
        "/to-short": (redirect("http://127.1/"), "blocked"),
        "/to-file": (redirect("file:///etc/passwd"), "blocked"),
        "/to-rubbish": (redirect("http://[oops"), "blocked"),
        "/to-good": (redirect("/good.jpg#part"), "success"),
        "/good.jpg": (send(GOOD), "success"),
    }
    with serve({path: route for path, (route, _) in routes.items()}) as site:
        found, _ = fetch(
            tmp_path, map(site.url, routes), site, max_bytes=1_000_000, max_pixels=1_000_000, timeout=1, deadline=1
        )
    assert dict(zip(routes, statuses(found), strict=True)) == {path: status for path, (_, status) in routes.items()}
    by_path = dict(zip(routes, found, strict=True))
    assert by_path["/gzip"]["sha256"] == hashlib.sha256(GOOD).hexdigest()
    assert by_path["/down"]["error"] == "HTTP 503"
    assert by_path["/huge.png"]["original_width"] == 1100
    # What is written of a failure does not change from run to run: no ports, no objects, no times.
    assert not any(str(site.port) in (row["error"] or "") or "0x" in (row["error"] or "") for row in found)


def test_private_hosts_are_never_asked_whatever_they_are_called(tmp_path: Path) -> None:
    with serve({"*": send(GOOD)}) as allowed, serve({"*": send(GOOD)}) as inside:
        allowed.routes["/to-inside"] = redirect(inside.url("/secret.jpg"))
        allowed.routes["/to-name"] = redirect(f"http://localhost:{inside.port}/secret.jpg")
        urls = [
            *(inside.url("/a.jpg"), f"http://localhost:{inside.port}/a.jpg", f"http://127.1:{inside.port}/a.jpg"),
            *(
                f"http://2130706433:{inside.port}/a.jpg",
                f"http://0x7f.1:{inside.port}/",
                f"http://[::1]:{inside.port}/",
            ),
            *(f"http://[::ffff:127.0.0.1]:{inside.port}/", f"http://0.0.0.0:{inside.port}/"),
            *(allowed.url("/to-inside"), allowed.url("/to-name"), f"http://localhost:{allowed.port}/a.jpg"),
            *("ftp://example.org/a.jpg", "file:///etc/passwd", "data:image/png;base64,AAAA", "http://", "nonsense"),
            *("http://example.org:99999/a.jpg", "http://user:word@127.0.0.1/a.jpg"),
        ]
        found, _ = fetch(tmp_path, urls, allowed)
        assert statuses(found) == ["blocked"] * len(urls)
        assert inside.seen == []
        found, _ = fetch(tmp_path, [f"http://localhost:{inside.port}/a.jpg"], allow_hosts=[f"localhost:{inside.port}"])
        assert statuses(found) == ["success"]


def test_a_name_without_an_address_is_dns_and_a_shut_port_is_connect(tmp_path: Path) -> None:
    with socket.socket() as shut:
        shut.bind(("127.0.0.1", 0))  # bound and not listening
        port = shut.getsockname()[1]
        urls = ["http://no-such-host.invalid/a.jpg", f"http://127.0.0.1:{port}/a.jpg"]
        found, _ = fetch(tmp_path, urls, allow_hosts=[f"127.0.0.1:{port}"])
    assert statuses(found) == ["dns", "connect"]
    assert found[1]["consent"]["robots"] is None


def test_a_certificate_that_nobody_vouches_for_is_tls(tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    day = datetime.timedelta(1)
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - day).not_valid_after(now + day)
    pem = made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    kinds = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "pem").write_bytes(pem + key.private_bytes(*kinds))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    with serve({"*": send(GOOD)}, context) as site:
        found, _ = fetch(tmp_path, [f"https://{site.host}/a.jpg"], site)
    assert statuses(found) == ["tls"]
    assert "self-signed" in found[0]["error"]
    assert site.seen == []


def test_what_passes_is_tried_again_and_what_stays_is_not(tmp_path: Path) -> None:
    turns = {"/shaky": iter(["503 No", "429 No", "200 OK"]), "/gone": iter(["404 No"] * 5)}
    routes = {path: (lambda wire, left=left: wire.answer(GOOD, next(left))) for path, left in turns.items()}
    with serve(routes) as site:
        found, _ = fetch(tmp_path, map(site.url, routes), site, retries=2)
    assert statuses(found) == ["success", "4xx"]
    assert (site.paths().count("/shaky"), site.paths().count("/gone")) == (3, 1)


def test_robots_txt_is_obeyed_or_written_down_as_the_recipe_says(tmp_path: Path) -> None:
    rules = b"User-agent: *\nDisallow: /private/\n\nUser-agent: birdbot\nDisallow: /birds/\n"
    routes = {"/robots.txt": send(rules), "/on": redirect("/private/b.jpg"), "*": send(GOOD)}
    with serve(routes) as site:
        urls = [site.url(path) for path in ("/a.jpg", "/private/a.jpg", "/on", "/birds/a.jpg")]
        found, observed = fetch(tmp_path, urls, site)
        assert statuses(found) == ["success", "robots", "robots", "success"]
        assert [row["consent"]["robots"] for row in found] == ["allow", "deny", "deny", "allow"]
        assert "/private/a.jpg" not in site.paths()
        assert site.paths().count("/robots.txt") == 1
        assert observed["fetched_at"].is_null().to_pylist() == [False, True, False, False]
        found, _ = fetch(tmp_path, urls, site, agent="birdbot")
        assert statuses(found) == ["success", "success", "success", "robots"]
        found, _ = fetch(tmp_path, urls, site, consent=Consent(respect=[]))
        assert statuses(found) == ["success"] * 4
        assert [row["consent"]["robots"] for row in found] == ["allow", "deny", "deny", "allow"]


@pytest.mark.parametrize(
    ("route", "status"),
    [
        (send(b"", "404 Not Found"), "success"),
        (send(b"", "403 Forbidden"), "success"),
        (send(b"", "500 Oops"), "robots"),
        (send(b"", "429 Too Many"), "robots"),
        (redirect("/robots.txt"), "success"),
        (silent, "timeout"),
        (hang_up, "connect"),
        (send(b"User-agent: *\nDisallow: /\n" + b"#" * 600_000), "robots"),
        (send(b"\xff\xfe\x00 not text"), "success"),
    ],
)
def test_robots_txt_that_does_not_come_counts_as_rfc_9309_says(tmp_path: Path, route: object, status: str) -> None:
    with serve({"/robots.txt": route, "*": send(GOOD)}) as site:  # type: ignore[dict-item]
        found, _ = fetch(tmp_path, [site.url("/a.jpg")], site, timeout=0.5 if route is silent else 5)
        assert statuses(found) == [status]
        assert ("/a.jpg" in site.paths()) == (status == "success")


HEADERS = {
    "/noai": ({"X_Robots_Tag": "noai, noimageai"}, {"noai": "deny"}),
    "/ours": ({"X_Robots_Tag": "vlmdata: noai"}, {"noai": "deny"}),
    "/theirs": ({"X_Robots_Tag": "otherbot: noai, noindex"}, {}),
    "/noml": ({"X_Robots_Tag": "noml"}, {"noml": "deny"}),
    "/noindex": ({"X_Robots_Tag": "unavailable_after: 25 Jun 2010 15:00:00 PST, NoImageIndex"}, {"robots": "deny"}),
    "/tdm": ({"tdm_reservation": "1"}, {"tdm": "deny"}),
    "/tdm-free": ({"tdm_reservation": "0"}, {"tdm": "allow"}),
}


def test_headers_are_obeyed_or_written_down_as_the_recipe_says(tmp_path: Path) -> None:
    with serve({path: send(GOOD, **headers) for path, (headers, _) in HEADERS.items()}) as site:
        urls = list(map(site.url, HEADERS))
        found, _ = fetch(tmp_path, urls, site)
        assert statuses(found) == ["noai", "noai", "success", "noml", "robots", "tdm", "success"]
        lax, _ = fetch(tmp_path, urls, site, consent=Consent(respect=["tdm"]))
        assert statuses(lax) == ["success"] * 5 + ["tdm", "success"]
    for rows in (found, lax):
        for row, (_, said) in zip(rows, HEADERS.values(), strict=True):
            assert row["consent"] == {"robots": "allow", "noai": None, "tdm": None, "noml": None} | said
    assert all(row["sha256"] is None for row in found if row["download_status"] != "success")


def test_a_page_that_says_no_speaks_for_its_pair_and_nothing_is_asked(tmp_path: Path) -> None:
    no = {"robots": None, "noai": "deny", "tdm": None, "noml": "deny"}
    with serve({"*": send(GOOD)}) as site:
        rows = [
            {"url": site.url("/a.jpg"), "caption": "from a page that says no", "page_consent": no},
            {"url": site.url("/a.jpg"), "caption": "from a page that does not"},
            {"url": site.url("/b.jpg"), "page_consent": no},
        ]
        found, observed = fetch(tmp_path, rows, site)
        assert statuses(found) == ["noai", "success", "noai"]
        assert found[1]["stored_key"] == found[1]["uid"]
        assert found[2]["consent"] is None
        assert observed["fetched_at"].is_null().to_pylist() == [True, False, True]
        assert "/b.jpg" not in site.paths()
        assert statuses(fetch(tmp_path, rows, site, consent=Consent(respect=["tdm"]))[0]) == ["success"] * 3


def test_a_urls_captions_share_one_request_and_one_image(tmp_path: Path) -> None:
    with serve({"/a.jpg": send(GOOD), "/b.jpg": send(picture(1))}) as site:
        rows = [{"url": site.url(f"/{name}.jpg"), "caption": str(n)} for name in "ab" for n in range(3)]
        found, _ = fetch(tmp_path, rows, site)
    assert statuses(found) == ["success"] * 6
    assert sorted(site.paths()) == ["/.well-known/tdmrep.json", "/a.jpg", "/b.jpg", "/robots.txt"]
    assert [row["stored_key"] for row in found] == [found[0]["uid"]] * 3 + [found[3]["uid"]] * 3
    with tarfile.open(tmp_path / "part.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [f"{found[0]['uid']}.jpg", f"{found[3]['uid']}.jpg"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_the_signed_url_is_fetched_and_never_told(tmp_path: Path) -> None:
    signed = "/a%7Eb.jpg?X-Amz-Signature=s3cret%2Fword+plus"
    with serve({signed: send(GOOD)}) as site:
        missing = {"url": site.url("/c.jpg"), "fetch_url": site.url("/c.jpg?sig=s3cret")}
        found, _ = fetch(tmp_path, [{"url": site.url("/a~b.jpg"), "fetch_url": site.url(signed)}, missing], site)
        assert statuses(found) == ["success", "4xx"]
    assert "s3cret" not in json.dumps(found)


def test_a_hash_that_does_not_match_rejects_the_rows_that_expect_it(tmp_path: Path) -> None:
    right = {kind: f"{kind}:{hashlib.new(kind, GOOD).hexdigest()}" for kind in ("sha256", "md5")}
    with serve({"*": send(GOOD)}) as site:
        rows = [
            {"url": site.url("/a.jpg"), "caption": "1", "expected_hash": right["sha256"].upper().replace("SHA", "sha")},
            {"url": site.url("/a.jpg"), "caption": "2", "expected_hash": "md5:" + "0" * 32},
            {"url": site.url("/b.jpg"), "expected_hash": right["md5"]},
            {"url": site.url("/c.jpg"), "expected_hash": "sha256:" + "0" * 64},
        ]
        found, _ = fetch(tmp_path, rows, site)
        assert statuses(found) == ["success", "hash_mismatch", "success", "hash_mismatch"]
        assert found[3]["sha256"] == hashlib.sha256(GOOD).hexdigest()
        for wrong in ("crc32:00000000", "sha256:12", "0" * 64):
            with pytest.raises(DataError, match="expected_hash"):
                fetch(tmp_path, [{"url": site.url("/a.jpg"), "expected_hash": wrong}], site)


def test_local_files_are_read_from_their_root_and_from_nowhere_else(tmp_path: Path) -> None:
    root = tmp_path / "photos & more"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "ä 1.jpg").write_bytes(GOOD)
    (root / "big.jpg").write_bytes(GOOD + b"\0" * 50_000)
    (tmp_path / "secret.jpg").write_bytes(GOOD)
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "inner.jpg").symlink_to(root / "sub" / "ä 1.jpg")
    os.mkfifo(root / "pipe.jpg")
    wanted = {
        "photos:/sub/%C3%A4%201.jpg": "success",
        "photos:/inner.jpg": "success",
        "photos:/big.jpg": "too_large",
        "photos:/missing.jpg": "4xx",
        "photos:/sub": "blocked",
        "photos:/link.jpg": "blocked",
        "photos:/pipe.jpg": "blocked",
        "photos:/../secret.jpg": "blocked",
        "photos:/sub/%2E%2E/%2E%2E/secret.jpg": "blocked",
        f"photos:/{str(tmp_path / 'secret.jpg').replace('/', '%2F')}": "blocked",
        "photos:/a%00b.jpg": "blocked",
        f"photos:/{'x' * 300}.jpg": "blocked",
        "other:/a.jpg": "blocked",
    }
    rows = [{"url": url, "source": "photos"} for url in wanted]
    found, observed = fetch(tmp_path, rows, roots={"photos": str(root)}, max_bytes=40_000)
    assert dict(zip(wanted, statuses(found), strict=True)) == wanted
    assert found[0]["sha256"] == hashlib.sha256(GOOD).hexdigest()
    assert found[0]["consent"] == dict.fromkeys(("robots", "noai", "tdm", "noml"))
    assert observed["fetched_at"][0].as_py() is not None


def _many(site: Site) -> list[dict]:
    return [{"url": site.url(f"/{n}.jpg"), "caption": str(c)} for n in range(60) for c in range(1 + n % 2)]


def _some_bad(wire: Wire) -> None:
    number = int(wire.path[1:].partition(".")[0]) if wire.path[1:2].isdigit() else 7
    wire.sleep(number * 7919 % 10 / 1000)  # the answers do not come in order
    wire.answer(*((b"", "404 Not Found") if number % 7 == 0 else (picture(number),)))


def test_two_runs_give_the_same_bytes_whatever_order_the_answers_come_in(tmp_path: Path) -> None:
    with serve({"*": _some_bad}) as site:
        outcomes = [(fetch(tmp_path, _many(site), site)[0], (tmp_path / "part.tar").read_bytes()) for _ in range(2)]
    assert outcomes[0] == outcomes[1]
    assert 0 < statuses(outcomes[0][0]).count("4xx") < 20


def test_two_threads_work_at_once_and_give_what_each_gives_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with serve({"*": _some_bad}) as site:
        alone, _ = fetch(tmp_path, _many(site), site)
        tar = (tmp_path / "part.tar").read_bytes()
        outcomes: dict[int, list[dict]] = {}

        def work(number: int) -> None:
            folder = tmp_path / str(number)
            folder.mkdir()
            outcomes[number], _ = fetch(folder, _many(site), site)

        capfd.readouterr()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [outcomes[number] for number in range(3)] == [alone] * 3
    assert {(tmp_path / str(number) / "part.tar").read_bytes() for number in range(3)} == {tar}
    assert capfd.readouterr() == ("", "")
    assert not [thread for thread in threading.enumerate() if thread.name == "vlmdata-fetch"]


def test_an_empty_part_and_a_part_of_refusals_give_an_empty_tar(tmp_path: Path) -> None:
    assert fetch(tmp_path, make_pairs([]))[0] == []
    found, _ = fetch(tmp_path, ["http://127.0.0.1:1/a.jpg"])
    assert statuses(found) == ["blocked"]
    with tarfile.open(tmp_path / "part.tar") as tar:
        assert tar.getmembers() == []


def test_a_fault_of_ours_is_raised_and_no_row_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with serve({"*": send(GOOD)}) as site:
        monkeypatch.setattr("vlmdata.download.decode.to_jpeg", broken)
        with pytest.raises(RuntimeError, match="a bug"):
            fetch(tmp_path, [site.url("/a.jpg")], site)
        monkeypatch.undo()
        monkeypatch.setattr("vlmdata.download.seams._Writer.write", lambda *_: None)
        with pytest.raises(MachineError, match="lost 1 of 1 rows"):
            fetch(tmp_path, [site.url("/a.jpg")], site)
    assert not [thread for thread in threading.enumerate() if thread.name == "vlmdata-fetch"]


def test_memory_is_bounded_by_the_window_and_not_by_the_part(tmp_path: Path) -> None:
    body = picture() + b"\0" * 500_000
    with serve({"*": send(body)}) as site:
        fetch(tmp_path, [site.url("/warm.jpg")], site)
        peaks = []
        for count in (40, 160):
            tracemalloc.start()
            fetch(tmp_path, [site.url(f"/{n}.jpg") for n in range(count)], site, concurrency=4)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 5_000_000


def test_img2dataset_still_has_the_inner_names_that_are_relied_on() -> None:
    downloader, names = img2dataset_parts()
    code = downloader.download_shard.__code__
    assert {"ThreadPool", "write_stats", "traceback", "print", "sample_writer_class", "resizer"} <= set(code.co_names)
    assert {"imap_unordered", "print_exc", "status", "error_message"} <= {*code.co_names, *map(str, code.co_consts)}
    assert {"ThreadPool", "CappedCounter", "compute_key", "Semaphore"} <= set(names)
    assert list(inspect.signature(downloader.download_shard).parameters) == ["self", "row"]
    wanted = ["sample_writer_class", "resizer", "thread_count", "save_caption", "extract_exif", "output_folder"]
    wanted += ["column_list", "timeout", "number_sample_per_shard", "oom_shard_count", "compute_hash"]
    wanted += ["verify_hash_type", "encode_format", "retries", "user_agent_token", "disallowed_header_directives"]
    assert list(inspect.signature(downloader.__init__).parameters)[1:-1] == wanted
