"""keys: names, and the hash tag that keeps a shard together."""

from __future__ import annotations

import inspect
import re

import pytest
from redis.crc import key_slot

from shared.keys import DEFAULT_PREFIX, GlobalKeys, Keys

KEYS = Keys("llama-3.1", 7, prefix="mine")


def every_key(keys: Keys) -> dict[str, str]:
    """All names that `Keys` can spell, by attribute."""
    names = {}
    for name, member in inspect.getmembers(Keys):
        if isinstance(member, property):
            names[name] = getattr(keys, name)
        elif inspect.isfunction(member) and not name.startswith("_"):
            names[name] = getattr(keys, name)("x")
    return names


def test_all_keys_of_a_shard_live_in_one_slot() -> None:
    names = every_key(KEYS)
    assert len(names) > 15
    assert all(re.fullmatch(r"mine:\{llama-3\.1\.7\}:.+", name) for name in names.values())
    assert len({key_slot(name.encode()) for name in names.values()}) == 1


def test_no_two_keys_have_one_name() -> None:
    names = every_key(KEYS)
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("other", [Keys("llama-3.1", 8), Keys("llama-3.1", 7, prefix="p"), Keys("llama", 7)])
def test_other_shards_pools_and_prefixes_share_no_key(other: Keys) -> None:
    assert not set(every_key(KEYS).values()) & set(every_key(other).values())


def test_the_name_of_a_key_is_stable() -> None:
    assert Keys("m").queue("standard") == "ps:{m.0}:q:standard"
    assert Keys("m", 3).record("req_1") == "ps:{m.3}:r:req_1"
    assert GlobalKeys().pools == "ps:pools"
    assert DEFAULT_PREFIX == "ps"
