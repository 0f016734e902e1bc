"""A response's id is its request's id under another prefix: neither has to be looked up to find the other."""

from __future__ import annotations

from shared import errors
from shared.errors import RequestError
from shared.ids import created_ms, shard_of

_RESPONSE, _REQUEST = "resp_", "req_"


def response_id(rid: str) -> str:
    """The id of the response that request `rid` makes."""
    return _RESPONSE + rid.removeprefix(_REQUEST)


def request_id(response: str) -> str:
    """The id of the request that makes a response. Raises RequestError (404) for what is no response's id."""
    rid = _REQUEST + response.removeprefix(_RESPONSE)
    try:
        shard_of(rid)
    except ValueError:
        raise not_found(response) from None
    if not response.startswith(_RESPONSE):
        raise not_found(response)
    return rid


def created_at(rid: str) -> int:
    """When a request was made, Unix seconds. It stands in the id, so every replica says the same."""
    return created_ms(rid) // 1000


def not_found(response: str) -> RequestError:
    """404: no such response, or somebody else's, or one that was not stored."""
    return errors.not_found(f"The response `{response[:64]}`")
