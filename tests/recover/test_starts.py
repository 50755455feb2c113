"""When the next replacement may start: a pause that doubles, a limit, and both forgotten after a while of calm."""

import pytest

from samestep.recover.protocol import Terms
from samestep.recover.starts import Starts


def starts(**terms: float) -> Starts:
    return Starts(Terms(2, 8, **({"backoff": 1.0, "restarts": 3, "calm": 100.0} | terms)))  # type: ignore[arg-type]


def lost(tried: Starts, *times: float) -> list[float]:
    """When those lost at these times are replaced, looking each half second for 50 s after each loss."""
    started = []
    for at in times:
        tried.owe("lost", at)
        for half in range(100):
            started += [at + half / 2 for _ in tried.due(at + half / 2)]
    return started


def test_the_pause_doubles_up_to_the_limit() -> None:
    assert lost(starts(restarts=4, calm=1e9), 0.0, 0.5, 0.6, 0.7, 0.8) == [0.0, 1.0, 3.1, 7.2]


def test_a_loss_now_and_then_is_replaced_at_once_for_ever() -> None:
    times = [1000.0 * week for week in range(50)]
    assert lost(starts(), *times) == times


def test_what_follows_within_the_calm_is_counted_on() -> None:
    assert lost(starts(), 0.0, 99.0, 198.0, 297.0) == [0.0, 99.0, 198.0]  # the fourth is one too many
    assert lost(starts(), 0.0, 99.0, 198.0, 298.0) == [0.0, 99.0, 198.0, 298.0]


def test_the_calm_is_counted_from_the_last_start_too() -> None:
    tried = starts(restarts=1)
    tried.room = 0
    assert lost(tried, 0.0) == []
    tried.room = 1
    assert len(tried.due(500.0)) == 1  # there was no room before
    assert lost(tried, 510.0) == []


@pytest.mark.parametrize("calm", [10.0, 100.0])
def test_a_pause_that_still_runs_ends_with_the_calm(calm: float) -> None:
    tried = starts(backoff=1e6, calm=calm)
    assert lost(tried, 0.0, calm) == [0.0, calm]
