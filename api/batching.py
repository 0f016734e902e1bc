"""A body of POST /v1/batches → the facts of a batch. What the rows say is looked at later, by a batch process."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from api.hooks import HookRules
from api.limits import METADATA_KEY_CHARS, METADATA_VALUE_CHARS, MOST_METADATA
from api.schemas import parse_object
from shared.batch_windows import hours_of, window_s
from shared.batches import ENDPOINTS
from shared.errors import RequestError, invalid_request
from shared.webhooks import key_of

_LEAST_KEPT_S, _MOST_KEPT_S = 3_600, 2_592_000
_MOST_UNIX_S = 1 << 33
_SHOWN_CHARS = 60
_FILE_CHARS = 64
"""Those of ours have fewer."""


@dataclass(frozen=True, slots=True)
class NewBatch:
    """What a client asks for. `facts` are fields of the batch's hash, `secret` signs its webhook."""

    window_s: int
    facts: dict[str, str]
    secret: str = field(default="", repr=False)


def batch_of(body: bytes, hooks: HookRules) -> NewBatch:
    """The batch that a body asks for. Raises RequestError (400)."""
    fields = parse_object(body)
    facts = {"input_file_id": _file(fields), "endpoint": _endpoint(fields)}
    facts["completion_window"] = window = _text(fields, "completion_window")
    seconds = window_s(window)
    if seconds is None:
        raise _invalid("completion_window", window, "'24h', or another whole number of hours or days from '1h' to '7d'")
    if fields.get("metadata") is not None:
        facts["metadata"] = _metadata(fields["metadata"])
    if fields.get("output_expires_after") is not None:
        facts["output_expires_s"] = str(_kept_s(fields["output_expires_after"]))
    if fields.get("start_after") is not None:
        facts["start_after"] = _start_after(fields["start_after"])
    if fields.get("start_window") is not None:
        facts["start_window"] = _start_window(fields["start_window"])
    secret = ""
    if fields.get("webhook") is not None:
        facts["webhook_url"], secret = _webhook(fields["webhook"], hooks)
    return NewBatch(seconds, facts, secret)


def _text(fields: dict[str, Any], field_name: str, *, within: str = "") -> str:
    value, name = fields.get(field_name), f"{within}.{field_name}" if within else field_name
    if value is None:
        raise invalid_request(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if not isinstance(value, str):
        raise invalid_request(f"Invalid type for '{name}': expected a string.", param=name, code="invalid_type")
    return value


def _invalid(name: str, value: object, supported: str) -> RequestError:
    message = f"Invalid value for '{name}': '{str(value)[:_SHOWN_CHARS]}'. Supported values are: {supported}."
    return invalid_request(message, param=name, code="invalid_value")


def _endpoint(fields: dict[str, Any]) -> str:
    endpoint = _text(fields, "endpoint")
    if endpoint not in ENDPOINTS:
        raise _invalid("endpoint", endpoint, ", ".join(f"'{known}'" for known in ENDPOINTS))
    return endpoint


def _file(fields: dict[str, Any]) -> str:
    name = "input_file_id"
    file = _text(fields, name)
    if len(file) > _FILE_CHARS:
        raise _invalid(name, file, "ids of files")
    return file


def _metadata(value: object) -> str:
    if not isinstance(value, dict):
        raise invalid_request("Invalid type for 'metadata': expected an object.", param="metadata", code="invalid_type")
    if len(value) > MOST_METADATA:
        message = f"Invalid 'metadata': it has {len(value)} pairs, and at most {MOST_METADATA} are allowed."
        raise invalid_request(message, param="metadata", code="invalid_value")
    for key, text in value.items():
        param = f"metadata.{key[:METADATA_KEY_CHARS]}"
        if not isinstance(text, str):
            raise invalid_request(f"Invalid type for '{param}': expected a string.", param=param, code="invalid_type")
        if len(key) > METADATA_KEY_CHARS or len(text) > METADATA_VALUE_CHARS:
            message = (
                f"Invalid '{param}': keys have {METADATA_KEY_CHARS} characters at most, values {METADATA_VALUE_CHARS}."
            )
            raise invalid_request(message, param=param, code="invalid_value")
    return json.dumps(value)


def _kept_s(value: object) -> int:
    name = "output_expires_after"
    if not isinstance(value, dict) or value.get("anchor") != "created_at":
        raise _invalid(f"{name}.anchor", value.get("anchor") if isinstance(value, dict) else value, "'created_at'")
    seconds = value.get("seconds")
    if type(seconds) is not int or not _LEAST_KEPT_S <= seconds <= _MOST_KEPT_S:
        raise _invalid(f"{name}.seconds", seconds, f"whole numbers from {_LEAST_KEPT_S} to {_MOST_KEPT_S}")
    return seconds


def _start_after(value: object) -> str:
    if type(value) is not int or not 0 <= value < _MOST_UNIX_S:
        raise _invalid("start_after", value, "moments in Unix seconds")
    return str(value)


def _start_window(value: object) -> str:
    try:
        hours_of(value)
    except ValueError as error:
        message = f"Invalid 'start_window': {error}."
        raise invalid_request(message, param="start_window", code="invalid_value") from error
    return json.dumps(value)


def _webhook(value: object, hooks: HookRules) -> tuple[str, str]:
    """URL and secret. What is wrong is told without repeating either."""
    if not isinstance(value, dict) or set(value) - {"url", "secret"}:
        message = "Invalid type for 'webhook': expected an object with 'url' and 'secret'."
        raise invalid_request(message, param="webhook", code="invalid_type")
    url, secret = (_text(value, name, within="webhook") for name in ("url", "secret"))
    try:
        hooks.target(url)
    except ValueError as error:
        raise invalid_request(f"Invalid 'webhook.url': {error}.", param="webhook.url", code="invalid_value") from error
    try:
        key_of(secret)
    except ValueError as error:
        message = f"Invalid 'webhook.secret': it {error}."
        raise invalid_request(message, param="webhook.secret", code="invalid_value") from error
    return url, secret
