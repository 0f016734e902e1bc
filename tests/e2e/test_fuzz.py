"""The service keeps to its OpenAPI document, whatever is sent. The short form of `make fuzz`."""

from __future__ import annotations

import pytest

from tests.fuzz.fuzzing import SHORT, findings


@pytest.mark.timeout(400)  # half a minute where nothing else runs
def test_schemathesis_finds_no_5xx_and_nothing_undocumented() -> None:
    found, summary = findings(SHORT)
    assert not found, "\n".join(found)
    assert "generated" in summary
