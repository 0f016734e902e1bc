"""Addresses of Sentinels."""

from __future__ import annotations

import pytest

from shared.errors import ConfigurationError
from shared.sentinel import Login, SentinelAddress, is_sentinel, parse
from shared.settings import Settings, read_settings


def test_an_address_names_sentinels_the_master_and_its_database() -> None:
    assert parse("redis+sentinel://one:1,two/mymaster/3") == SentinelAddress(
        (("one", 1), ("two", 26_379)), "mymaster", 3, Login(), Login()
    )


def test_the_login_is_the_servers_and_the_sentinels_have_their_own() -> None:
    url = "redis+sentinel://me:p%40ss@[::1]:7/m?sentinel_username=them&sentinel_password=theirs"
    found = parse(url)
    assert found.sentinels == (("::1", 7),)
    assert found.db == 0
    assert found.login == Login("me", "p@ss")
    assert found.login.command == [("AUTH", "me", "p@ss")]
    assert found.sentinel_login.command == [("AUTH", "them", "theirs")]
    assert Login("", "old").command == [("AUTH", "old")]
    assert Login().command == []


@pytest.mark.parametrize("rest", ["", "host:1", "host:1/", "/name", "host:port/name", "host:1/name/x"])
def test_an_address_that_lacks_something_says_what_is_wanted(rest: str) -> None:
    with pytest.raises(ConfigurationError, match="<master name>"):
        parse(f"redis+sentinel://{rest}")


def test_a_process_says_so_when_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_REDIS_URL", "redis+sentinel://host:1")
    with pytest.raises(ConfigurationError, match="--redis-url"):
        read_settings(Settings, [], "program")


def test_other_addresses_are_left_alone() -> None:
    assert not is_sentinel("redis://h:1/0")
    assert not is_sentinel("unix:///tmp/redis.sock")
