"""Identifiers: how they look and who makes them.

A request id carries the shard of its pool, so that any replica finds the request's slot from the id alone:
`req_<shard, one base-32 digit><ULID, 26 base-32 digits>`. Worker and attempt ids are random and never reused: a process
that starts again under an old id would own what its predecessor owned.
"""

from __future__ import annotations

import hashlib
import os
import time

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's alphabet, lower case
_ULID_DIGITS = 26
_TIME_DIGITS = 10
"""Of a ULID: its first digits are the time."""
MAX_SHARDS = len(_BASE32)
_PREFIX = "req_"
_FILE_PREFIX = "file-"
_FILE_DIGITS = 24


def _base32(number: int, digits: int) -> str:
    out = []
    for _ in range(digits):
        number, digit = divmod(number, 32)
        out.append(_BASE32[digit])
    return "".join(reversed(out))


def new_request_id(shard: int = 0) -> str:
    """A new request id, sortable by creation time. `shard` is 0..31."""
    ulid = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10))
    return _PREFIX + _BASE32[shard] + _base32(ulid, _ULID_DIGITS)


def row_request_id(batch: str, created_ms: int, row: int, attempt: int, shard: int = 0) -> str:
    """The id of the request for a row of a batch: always the same one, so that a row is admitted once.

    `created_ms`: of the batch, Unix ms. `attempt` counts from 0: a row whose request was lost is asked anew.
    """
    digest = hashlib.sha256(f"{batch}:{row}:{attempt}".encode()).digest()
    ulid = (created_ms << 80) | int.from_bytes(digest[:10])
    return _PREFIX + _BASE32[shard] + _base32(ulid, _ULID_DIGITS)


def new_batch_id() -> str:
    """A new batch id, sortable by creation time."""
    return "batch_" + _base32((time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10)), _ULID_DIGITS)


def batch_file_id(batch: str, created_ms: int, what: str) -> str:
    """The id of a file that a batch makes, `output` or `error`: always the same one."""
    digest = hashlib.sha256(f"{batch}:{what}".encode()).digest()
    number = (created_ms << 70) | (int.from_bytes(digest[:9]) & (1 << 70) - 1)
    return _FILE_PREFIX + _base32(number, _FILE_DIGITS)


def shard_of(rid: str) -> int:
    """The shard that a request id names. Raises ValueError when it is not a request id."""
    if not rid.startswith(_PREFIX) or len(rid) != len(_PREFIX) + 1 + _ULID_DIGITS:
        msg = f"not a request id: {rid!r}"
        raise ValueError(msg)
    return _BASE32.index(rid[len(_PREFIX)])


def created_ms(rid: str) -> int:
    """When a request id was made, in Unix milliseconds of the clock of the replica that made it."""
    milliseconds = 0
    for digit in rid[len(_PREFIX) + 1 : len(_PREFIX) + 1 + _TIME_DIGITS]:
        milliseconds = 32 * milliseconds + _BASE32.index(digit)
    return milliseconds


def new_file_id() -> str:
    """A new file id, `file-` and 24 base-32 digits, sortable by creation time."""
    number = (time.time_ns() // 1_000_000 << 70) | (int.from_bytes(os.urandom(9)) >> 2)
    return _FILE_PREFIX + _base32(number, _FILE_DIGITS)


def is_file_id(text: str) -> bool:
    """Whether this may be the id of a file: what is none becomes no part of a key or of an object's name."""
    digits = text.removeprefix(_FILE_PREFIX)
    return len(text) == len(_FILE_PREFIX) + _FILE_DIGITS == len(_FILE_PREFIX + digits) and set(digits) <= set(_BASE32)


def new_worker_id() -> str:
    """A worker id: random, one per process start."""
    return "w" + os.urandom(8).hex()


def new_attempt_id() -> str:
    """An attempt id: random, one per claim. Short, since it travels in every frame."""
    return os.urandom(6).hex()
