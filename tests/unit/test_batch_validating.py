"""What is found in a batch's input: as much of it is told as helps, whatever a client has put into a row."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from api.limits import Limits
from batch.rows import Rules
from batch.validating import MOST_FAULTS, Validated, Validation
from shared.errors import model_not_found

CHAT = "/v1/chat/completions"


class Catalog:
    """Knows one model."""

    async def pool_of(self, model: str) -> tuple[str, None]:
        if model != "known":
            raise model_not_found(model)
        return model, None


def row(name: str, model: str, **extra: Any) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], **extra}
    return json.dumps({"custom_id": name, "method": "POST", "url": CHAT, "body": body}).encode() + b"\n"


async def found_in(*rows: bytes) -> Validated:
    async def chunks() -> AsyncIterator[bytes]:
        for one in rows:
            yield one

    stand_in: Any = Catalog()
    return await Validation(Rules(CHAT, Limits(), stand_in, 1 << 25), stand_in, 1 << 25).run(chunks())


async def test_a_fault_is_short_however_long_the_name_of_the_model_is() -> None:
    found = await found_in(*(row(str(number), "m" * 200_000) for number in range(MOST_FAULTS)))
    assert len(found.faults) == MOST_FAULTS
    assert found.faults[0].message.startswith("The model `mmm")
    assert len(json.dumps([fault.shown() for fault in found.faults])) < 500 * MOST_FAULTS


async def test_a_fault_is_short_whatever_it_repeats() -> None:
    found = await found_in(
        row("a", "known"), row("b", "n" * 5_000), row("c", "known", **{"x" * 5_000: 1, "n": "n" * 5_000})
    )
    assert {fault.code for fault in found.faults} >= {"model_not_found"}
    assert all(len(fault.message) <= 300 and len(fault.param or "") <= 100 for fault in found.faults)
