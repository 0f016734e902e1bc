"""What an engine sets in the environment of this process ends with the test that made it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """An engine that is created and never started leaves its defaults behind; later tests start processes."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
