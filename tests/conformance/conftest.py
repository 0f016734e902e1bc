"""What an engine sets in the environment of this process ends with the test that made it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


def _restored() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """An engine that is created and never started leaves its defaults behind; later tests start processes."""
    yield from _restored()


@pytest.fixture(autouse=True, scope="module")
def environment_of_the_module() -> Iterator[None]:
    """The same for engines that a module's tests share: other modules run in this process, too."""
    yield from _restored()
