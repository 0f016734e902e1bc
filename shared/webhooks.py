"""Webhooks as Standard Webhooks signs them, and as OpenAI's SDK verifies them (`client.webhooks.unwrap`).

A secret is written `whsec_` and base64. It is a key, so it stands in no log, no object of the API and no manifest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass

_PREFIX = "whsec_"
_LEAST_BYTES, _MOST_BYTES = 24, 64
_EVENT_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Event:
    """What is told. `id` is the same however often it is told: receivers know by it what they have had.

    Attributes:
        type: for instance `batch.completed`.
        created_at: when it happened, Unix s.
        subject: id of what it happened to.
    """

    id: str
    type: str
    created_at: int
    subject: str

    @property
    def body(self) -> bytes:
        """The object of OpenAI's API."""
        shown = {
            "id": self.id,
            "object": "event",
            "created_at": self.created_at,
            "type": self.type,
            "data": {"id": self.subject},
        }
        return json.dumps(shown, separators=(",", ":")).encode()


def event_of(kind: str, subject: str, created_at: int) -> Event:
    """The event of that type (`batch.completed`) about something. Its id is made of both, so it is always the same."""
    digest = hashlib.sha256(f"{kind}:{subject}".encode()).hexdigest()
    return Event(f"evt_{digest[:_EVENT_DIGITS]}", kind, created_at, subject)


def key_of(secret: str) -> bytes:
    """The key that a secret stands for. Raises ValueError, which does not repeat it."""
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True) if secret.startswith(_PREFIX) else b""
    except (binascii.Error, ValueError):
        key = b""
    if not _LEAST_BYTES <= len(key) <= _MOST_BYTES:
        raise ValueError(f"must be {_PREFIX} and {_LEAST_BYTES} to {_MOST_BYTES} random bytes in base64")
    return key


def keys_of(secrets: str) -> tuple[bytes, ...]:
    """The keys of secrets with commas between. Raises ValueError, which does not repeat them."""
    return tuple(key_of(secret.strip()) for secret in secrets.split(",") if secret.strip())


def signed(event: Event, keys: Sequence[bytes], at_s: int) -> dict[str, str]:
    """The headers of one delivery, at `at_s` (Unix s). A signature for each key: a receiver needs to know only one."""
    content = b"%b.%d.%b" % (event.id.encode(), at_s, event.body)
    digests = [base64.b64encode(hmac.digest(key, content, "sha256")).decode() for key in keys]
    return {
        "webhook-id": event.id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(f"v1,{digest}" for digest in digests),
    }
