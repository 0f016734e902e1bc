"""Limits by which the scripts decide. They stand in docs/protocol.md, which a test holds to them."""

from __future__ import annotations

MOST_CLAIMS = 50
"""Claims after which a request is given up: a guard against loops. What counts are kills, and a hand-back is none."""
MOST_KILLS = 3
"""Workers that may die under a request before it is set aside."""
SUSPECT_KILLS = 2
"""Workers after whose death a request waits in quarantine, where one at a time is let out."""
LEASE_MS = 5_000
"""How long a worker lives without a beat."""
DEAD_MARKER_MS = 3_600_000
"""How long the marker of a condemned worker stays; no process outlives it."""
EXPECTED_OUTPUT = 256
"""Tokens that are expected of a sequence as long as nothing is known of its tenant and its pool."""
FAIRNESS_FIELDS = 1_000
"""Fields of a lane's ledger, four to a tenant, that the index of fairness is computed from."""
DISCARDED_LOG_MS = 5_000
"""How long readers of a request that is discarded while it runs still find its end in the log."""

REDRIVEN_NOTE_MS = 30 * 86_400_000
"""How long it is known as what a dead letter was redriven, after the last one was."""
DEAD_LETTER_REASONS = frozenset({"undecodable"})
"""Reasons of an end by `done` for which the request is kept as a dead letter."""
