"""Looks at every row of a batch before anything is run: all faults with their lines, or the order to run them in.

One piece of the file and one line are in memory, and of each row its place and two hashes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from dataclasses import dataclass, field

from api.catalog import Catalog
from batch.lines import Line, lines_of
from batch.order import OrderBuilder
from batch.rows import Fault, FaultError, Rules, digest_of, prefix_of, row_of
from shared.batches import MOST_ROWS
from shared.errors import RequestError

MOST_FAULTS = 1_000
_SHOWN_CHARS = 60
"""Of what a client has named."""
_LINE_MARGIN_BYTES = 65_536
"""What a line has besides its body."""
_AT_ONCE = 50
"""Rows that are looked at in one go, some milliseconds: the process drives others meanwhile."""


@dataclass(slots=True)
class Validated:
    """What was found. `faults` empty: the rows may be run."""

    order: OrderBuilder = field(default_factory=OrderBuilder)
    faults: list[Fault] = field(default_factory=list)
    model: str = ""


class Validation:
    """Of one batch."""

    def __init__(self, rules: Rules, catalog: Catalog, most_body_bytes: int) -> None:
        self._rules = rules
        self._catalog = catalog
        self._most_bytes = most_body_bytes + _LINE_MARGIN_BYTES
        self._ids: set[int] = set()
        self._models: dict[str, bool] = {}
        self.found = Validated()

    async def run(self, chunks: AsyncIterable[bytes]) -> Validated:
        """Reads the file. Raises BrokerUnavailableError, and what `chunks` raises."""
        found = self.found
        async for lines in lines_of(chunks, self._most_bytes):
            for number, line in enumerate(lines, 1):
                if len(found.faults) < MOST_FAULTS:
                    await self._look_at(line)
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            if len(found.faults) >= MOST_FAULTS:
                return found
            if len(found.order) > MOST_ROWS:
                found.faults.append(Fault("too_many_rows", f"A batch has at most {MOST_ROWS} rows."))
                return found
        if not found.faults and not len(found.order):
            found.faults.append(Fault("empty_file", "The input file has no rows.", "file_id"))
        return found

    async def _look_at(self, line: Line) -> None:
        prefix = 0
        try:
            if line.text is None:
                message = f"This line is longer than {self._most_bytes} bytes."
                raise FaultError("line_too_long", message)  # noqa: TRY301 - one place collects them all
            row = row_of(line.text)
            valid = self._rules.check(row)
            await self._check_model(valid.model or "")
            self._check_unique(row.custom_id)
            prefix = prefix_of(row.body)
        except FaultError as fault:
            self.found.faults.append(fault.at(line.number))
        self.found.order.add(line.offset, line.length, prefix)

    def _check_unique(self, custom_id: str) -> None:
        digest = digest_of(custom_id.encode("utf-8", "surrogatepass"))
        if digest in self._ids:
            message = f"The custom_id '{custom_id[:_SHOWN_CHARS]}' was used in a line before."
            raise FaultError("duplicate_custom_id", message, "custom_id")
        self._ids.add(digest)

    async def _check_model(self, model: str) -> None:
        if model not in self._models:
            try:
                await self._catalog.pool_of(model)
            except RequestError as error:
                raise FaultError("model_not_found", error.message, "body.model") from error
            self._models[model] = True
        self.found.model = self.found.model or model
        if model != self.found.model:
            message = f"All rows of a batch must ask for one model: this one asks for '{model[:_SHOWN_CHARS]}'."
            raise FaultError("mismatched_model", message, "body.model")
