"""Where a tar's members are: the same as Python's tarfile says, and tars from strangers cost nothing but their rest."""

import io
import tarfile

import pytest

from vlmdata.sources.tar import BrokenTar, members


def make(names, format=tarfile.PAX_FORMAT, size=700, **more):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = size, more
            tar.addfile(member, io.BytesIO(bytes(size)))
    return file


def listed(data):
    """(members, what was wrong) of a tar's bytes."""
    got, reader = [], members(io.BytesIO(data))
    try:
        for member in reader:
            got.append(member)
    except BrokenTar as error:
        return got, str(error)
    return got, None


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_places_are_tarfiles(format):
    names = ["a.jpg", "é✓.txt", "f/" * 60 + "long.jpg", "x" * 99, "../up.jpg", "/root.jpg", "nöt/" * 20 + "y.json"]
    if format != tarfile.USTAR_FORMAT:
        names += ["z" * 400 + ".jpg"]
    file = make(names, format)
    file.seek(0)
    with tarfile.open(fileobj=file) as tar:
        theirs = [(member.name, member.offset_data, member.size) for member in tar]
    got, fault = listed(file.getvalue())
    assert [(member.name, member.offset, member.size) for member in got] == theirs
    assert fault is None


def test_what_is_no_plain_file_is_passed_over():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            member = tarfile.TarInfo(f"link{kind.decode()}.jpg")
            member.type, member.linkname, member.size = kind, "/etc/passwd", 700  # which a link has no bytes for
            tar.addfile(member)
        sparse = tarfile.TarInfo("sparse.jpg")
        sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
        tar.addfile(sparse, io.BytesIO(bytes(512)))
        pax = tarfile.TarInfo("pax-sparse.jpg")
        pax.pax_headers, pax.size = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}, 512
        tar.addfile(pax, io.BytesIO(bytes(512)))
        last = tarfile.TarInfo("last.jpg")
        last.size = 3
        tar.addfile(last, io.BytesIO(b"abc"))
    got, fault = listed(file.getvalue())
    assert [member.name for member in got] == ["last.jpg"]
    assert file.getvalue()[got[0].offset :][: got[0].size] == b"abc"
    assert fault is None


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_cut_anywhere_gives_the_members_before_the_cut(format):
    data = make([f"é{number}.jpg" for number in range(4)], format).getvalue()
    whole, _ = listed(data)
    for cut in range(0, whole[-1].offset + 1500, 173):
        got, fault = listed(data[:cut])
        assert got == [member for member in whole if member.offset + member.size <= cut]
        assert fault is not None


def patched(data, place, field):
    """A header's field changed, its checksum set right again."""
    header = bytearray(data[:512])
    header[place : place + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


@pytest.mark.parametrize(
    "field",
    [
        b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-0000000012\0", b"9999\0", b"1_0\0",
        b"\x80" + bytes(3) + b"\x7f" + bytes(7),
    ],
)  # fmt: skip
def test_sizes_beyond_the_file_and_numbers_that_are_none_end_it(field):
    data = make(["a.jpg", "b.jpg"], tarfile.USTAR_FORMAT).getvalue()
    got, fault = listed(patched(data, 124, field))
    assert got == []
    assert fault is not None


def test_extended_headers_are_bounded_and_must_make_sense():
    pax = make(["a.jpg"], more="x" * 600_000).getvalue()
    assert [member.name for member in listed(pax)[0]] == ["a.jpg"]
    assert "extended header" in str(listed(make(["a.jpg"], more="x" * 1_100_000).getvalue())[1])
    for line in (b"9 path=a\n", b"-5 path=\n", b"999999999999999 path=a\n", b"x\n", b"11 size=-5\n", b"12 size=1e3\n"):
        data = patched(make(["h", "a.jpg"], tarfile.USTAR_FORMAT, 512).getvalue(), 156, b"x")
        got, fault = listed(data[:512] + line.ljust(512, b"\0") + data[1024:])
        assert fault is not None or got[0].name == "a"
        assert all(member.offset + member.size <= len(data) for member in got)


def test_what_is_no_tar_is_said():
    for data in (b"x" * 2000, b"\x1f\x8b" + bytes(3000), b"PK\3\4" * 500):
        assert listed(data)[0] == []
        assert listed(data)[1] is not None
    assert listed(b"") == ([], "it ends at byte 0 without a mark of its end")
