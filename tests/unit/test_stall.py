"""When a worker that runs is as good as dead."""

from __future__ import annotations

from worker.stall import Progress, Stall

STALL_S = 60.0


class Watched:
    """A worker that a test moves: each second a sign of life, and the engine as it is told."""

    def __init__(self) -> None:
        self.progress = Progress(0, 0)
        self.stall = Stall(STALL_S, lambda: self.progress)

    def seconds(self, count: int, *, loop_turns: bool = True) -> str | None:
        for _ in range(count):
            if loop_turns:
                self.stall.sign_of_life()
            if why := self.stall.after(1.0):
                return why
        return None


def test_an_idle_worker_never_stalls() -> None:
    assert Watched().seconds(10_000) is None


def test_a_loop_that_stands_still_is_found_after_the_stall_time_and_not_before() -> None:
    worker = Watched()
    assert worker.seconds(60, loop_turns=False) is None
    assert "event loop" in (worker.seconds(1, loop_turns=False) or "")


def test_an_engine_that_makes_no_token_is_found_though_the_loop_turns() -> None:
    worker = Watched()
    worker.progress = Progress(3, 107)
    assert worker.seconds(61) is None  # the first look was the last progress
    assert "the engine has made no token" in (worker.seconds(1) or "")


def test_any_token_of_any_request_is_progress() -> None:
    worker = Watched()
    for token in range(40):
        worker.progress = Progress(200, token)
        assert worker.seconds(50) is None


def test_a_long_generation_is_no_stall_and_neither_is_what_came_after_a_pause() -> None:
    worker = Watched()
    worker.progress = Progress(1, 5)
    assert worker.seconds(50) is None
    worker.progress = Progress(0, 6)
    assert worker.seconds(1) is None
    worker.progress = Progress(1, 6)
    assert worker.seconds(60) is None


def test_a_long_prompt_gets_time_before_its_first_token_but_not_for_ever() -> None:
    worker = Watched()
    worker.progress = Progress(1, 0, longest_prompt_bytes=300_000)
    assert worker.seconds(300) is None
    endless = Watched()
    endless.progress = Progress(1, 0, longest_prompt_bytes=10**9)
    assert endless.seconds(599) is None
    assert endless.seconds(5) is not None
