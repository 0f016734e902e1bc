"""api/reach.py: to which addresses the fetching of images may connect."""

from __future__ import annotations

import pytest

from api.reach import CheckedNetwork, Hosts, UnreachableError, hosts_of, is_allowed, networks_of

REFUSED = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",  # Alibaba's metadata
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # Azure's
    "169.254.169.254",  # AWS's, Google's, Azure's
    "169.254.170.2",
    "172.16.0.1",
    "192.0.0.192",  # Oracle's
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "203.0.113.9",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::8.8.8.8",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "fc00::1",
    "fd00:ec2::254",  # AWS's metadata
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.215.14", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_allowed(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_allowed(address)


def test_an_operator_opens_networks_one_by_one() -> None:
    opened = networks_of("10.1.0.0/16, fd00:1::/64")
    allowed = ["10.1.2.3", "::ffff:10.1.2.3", "fd00:1::7", "8.8.8.8"]
    refused = ["10.2.0.1", "127.0.0.1", "fd00:2::7", "2002:a02:1::", "169.254.169.254"]
    assert all(is_allowed(address, opened) for address in allowed)
    assert not any(is_allowed(address, opened) for address in refused)


def test_hosts_are_off_any_or_named() -> None:
    assert hosts_of("off") is None
    assert hosts_of(" Any ") == Hosts(anywhere=True)
    hosts = hosts_of("images.example.com, *.cdn.example.org, minio:9000, [fd00::1]:8080, 10.0.0.7")
    assert hosts is not None
    allowed = [("images.example.com", 443), ("images.example.com.", 80), ("a.cdn.example.org", 443)]
    allowed += [("a.b.cdn.example.org", 80), ("minio", 9000), ("fd00::1", 8080), ("10.0.0.7", 80)]
    refused = [("images.example.com", 6379), ("cdn.example.org", 443), ("evil-cdn.example.org", 443), ("minio", 80)]
    refused += [("images.example.com.evil.net", 443), ("example.com", 443), ("fd00::1", 80), ("", 80), ("com", 80)]
    assert [pair for pair in allowed if not hosts.allows(*pair)] == []
    assert [pair for pair in refused if hosts.allows(*pair)] == []


def test_any_host_means_the_ports_of_the_web() -> None:
    hosts = Hosts(anywhere=True)
    assert hosts.allows("example.com", 443)
    assert not hosts.allows("example.com", 6379)


@pytest.mark.parametrize("text", ["", ",", "off, any", "*", "http://example.com", "a b", "a/b", "fd00::1", "h:x"])
def test_what_is_no_list_of_hosts_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host|off, any"):
        hosts_of(text)


@pytest.mark.parametrize("addresses", [[], ["127.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["::1", "8.8.8.8"], ["what"]])
async def test_one_refused_address_of_a_host_is_enough(addresses: list[str]) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        del host, port
        return addresses

    with pytest.raises(UnreachableError):
        await CheckedNetwork(resolve, ()).connect_tcp("images.example.com", 80)
