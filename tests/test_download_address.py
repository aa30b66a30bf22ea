"""Which addresses `vlmdata.download.address` lets a request go to."""

import asyncio
import socket

import pytest

from vlmdata.download.address import Blocked, Gate, Names, Resolver, is_public


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::808:808"]
)
def test_public_addresses_may_be_asked(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"),
        *("224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "203.0.113.9"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::127.0.0.1"),
        *("2002:7f00:1::", "2002:a9fe:a9fe::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1"),
        *("2001:0:7f00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe"),
    ],
)
def test_all_other_addresses_may_not(address: str) -> None:
    assert not is_public(address)


def test_an_allowed_host_is_meant_with_its_port() -> None:
    gate = Gate(["127.0.0.1:8080", "Intra.Example", "[::1]:9000", "::1", "other.example:80"])
    gate.check("127.0.0.1", 8080)
    gate.check("::1", 1)
    assert gate.names("intra.example", 5)
    assert gate.names("INTRA.example.", 443)
    assert gate.names("other.example", 80)
    assert not gate.names("other.example", 81)
    for host, port in (("127.0.0.1", 8081), ("127.0.0.2", 8080), ("10.0.0.1", 80)):
        with pytest.raises(Blocked):
            gate.check(host, port)


def test_the_last_gate_looks_at_the_address_itself() -> None:
    gate = Gate(["127.0.0.1:8080"])
    gate.check("127.0.0.1", 8080)
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 8080))
    gate.socket(entry).close()
    for address in (("127.0.0.1", 8081), ("169.254.169.254", 80)):
        with pytest.raises(Blocked):
            gate.socket((*entry[:4], address))


def _resolve(gate: Gate, answers: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def getaddrinfo(host: str, port: int, *_: object) -> list:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def ask() -> list[str]:
        names = Names()
        try:
            return [found["host"] for found in await Resolver(gate, names, 5).resolve("name.example", 80)]
        finally:
            names.close()

    return asyncio.run(ask())


def test_a_name_gives_only_its_public_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _resolve(Gate([]), ["10.0.0.1", "8.8.8.8"], monkeypatch) == ["8.8.8.8"]
    with pytest.raises(Blocked):
        _resolve(Gate([]), ["10.0.0.1", "127.0.0.1"], monkeypatch)
    assert _resolve(Gate(["name.example:80"]), ["10.0.0.1"], monkeypatch) == ["10.0.0.1"]
