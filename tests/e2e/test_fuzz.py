"""The service keeps to its OpenAPI document, whatever is sent. The short form of `make fuzz`."""

from __future__ import annotations

from tests.fuzz.fuzzing import SHORT, findings


def test_schemathesis_finds_no_5xx_and_nothing_undocumented() -> None:
    found, summary = findings(SHORT)
    assert not found, "\n".join(found)
    assert "generated" in summary
