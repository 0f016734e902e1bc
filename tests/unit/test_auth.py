"""Tenants: under which name a request queues, and who may see it."""

from __future__ import annotations

import re

import pytest

from api.auth import ANONYMOUS, may_see, sharing_tenant


def test_with_a_key_the_tenant_is_the_key_whatever_user_the_body_names() -> None:
    assert sharing_tenant("key-0123", "alice") == "key-0123"


def test_without_keys_the_user_is_the_tenant_and_nobody_is_anonymous() -> None:
    assert sharing_tenant(ANONYMOUS, "alice@example.com") == "user-alice@example.com"
    assert sharing_tenant(ANONYMOUS, "") == ANONYMOUS


@pytest.mark.parametrize("user", ["x" * 65, "x" * 5_000_000, "a b", "a\nb", "a\0b", "\x7f", "zoë", "\ud800", "\u202e"])
def test_a_name_that_is_long_or_not_plain_stands_as_its_hash(user: str) -> None:
    assert re.fullmatch(r"user-[0-9a-f]{16}", sharing_tenant(ANONYMOUS, user))
    assert sharing_tenant(ANONYMOUS, user) == sharing_tenant(ANONYMOUS, user) != sharing_tenant(ANONYMOUS, user + "!")


def test_a_user_cannot_take_the_name_of_a_key_or_of_the_anonymous() -> None:
    assert sharing_tenant(ANONYMOUS, "key-0123") == "user-key-0123"
    assert sharing_tenant(ANONYMOUS, ANONYMOUS) != ANONYMOUS


def test_who_has_a_key_sees_what_is_its_own_and_who_has_none_what_came_without() -> None:
    assert may_see("key-a", "key-a")
    assert not may_see("key-a", "key-b")
    assert not may_see("key-a", "user-x")
    assert not may_see("key-a", ANONYMOUS)
    assert may_see(ANONYMOUS, "user-x")
    assert may_see(ANONYMOUS, ANONYMOUS)
    assert not may_see(ANONYMOUS, "key-a")
