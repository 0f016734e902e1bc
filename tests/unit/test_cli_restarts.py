"""The supervisor's decisions."""

import pytest

from cli.restarts import LONGEST_DELAY_S, MOST_FAILED_STARTS, Again, GiveUp, Restarts, describe


def test_wrong_settings_are_not_tried_again() -> None:
    assert Restarts().after(2, was_ready=False, lived_s=1) == GiveUp("was given a wrong setting")


def test_status_2_of_a_process_that_had_worked_is_a_death_like_any_other() -> None:
    assert isinstance(Restarts().after(2, was_ready=True, lived_s=1), Again)


def test_a_process_that_dies_again_and_again_while_starting_is_given_up() -> None:
    restarts = Restarts()
    for _ in range(MOST_FAILED_STARTS - 1):
        assert isinstance(restarts.after(1, was_ready=False, lived_s=5), Again)
    verdict = restarts.after(-9, was_ready=False, lived_s=5)
    assert isinstance(verdict, GiveUp)
    assert "SIGKILL" in verdict.why


def test_a_process_that_was_ready_in_between_is_never_given_up() -> None:
    restarts = Restarts()
    for index in range(20):
        assert isinstance(restarts.after(-9, was_ready=index % 2 == 0, lived_s=1), Again)


def test_the_delay_doubles_and_stays_below_its_bound() -> None:
    restarts = Restarts()
    delays_s = [restarts.after(-9, was_ready=True, lived_s=1).delay_s for _ in range(12)]
    assert delays_s[0] < 1
    assert delays_s[3] > 3
    assert max(delays_s) <= LONGEST_DELAY_S * 1.2
    assert delays_s[-1] > LONGEST_DELAY_S * 0.7


def test_a_long_life_forgets_the_delay() -> None:
    restarts = Restarts()
    for _ in range(8):
        restarts.after(-9, was_ready=True, lived_s=1)
    assert restarts.after(-9, was_ready=True, lived_s=3600).delay_s < 1


@pytest.mark.parametrize(
    ("status", "words"), [(0, "exit status 0"), (-9, "SIGKILL"), (-15, "SIGTERM"), (-99, "signal 99")]
)
def test_an_exit_status_is_described_in_words(status: int, words: str) -> None:
    assert describe(status) == words
