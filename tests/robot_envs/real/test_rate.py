"""The rate keeps its phase, does not hurry, and tells how well it was kept."""

from __future__ import annotations

import time

import pytest

from zprl_sb3.robot_envs.real.rate import Rate


class Clock:
    """A clock that only sleeping and working move."""

    def __init__(self, overshoot: float = 0.0) -> None:
        self.now, self.overshoot = 100.0, overshoot

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + self.overshoot


def ends(rate: Rate, clock: Clock, works: list[float], pauses: dict[int, float] | None = None) -> list[float]:
    """Return when periods end, in which some seconds of work are done."""
    result = []
    for k, work in enumerate(works):
        clock.now += (pauses or {}).get(k, 0.0)
        rate.begin()
        clock.now += work
        rate.wait()
        result.append(clock.now - 100.0)
    return result


def test_periods_end_in_phase_whatever_the_work_takes() -> None:
    clock = Clock()
    assert ends(Rate(10, clock, clock.sleep), clock, [0.01, 0.09, 0.0]) == pytest.approx([0.1, 0.2, 0.3])


def test_sleeping_too_long_does_not_accumulate() -> None:
    clock = Clock(overshoot=0.004)
    rate = Rate(10, clock, clock.sleep)
    assert ends(rate, clock, [0.0] * 50)[-1] == pytest.approx(5.004)
    timing = rate.timing()
    assert timing.jitter_max == pytest.approx(0.0, abs=1e-9)
    assert (timing.periods, timing.missed, timing.pauses) == (49, 0, 0)


def test_a_little_lateness_is_made_up_for_in_phase() -> None:
    clock = Clock()
    rate = Rate(10, clock, clock.sleep)
    assert ends(rate, clock, [0.0, 0.13, 0.0]) == pytest.approx([0.1, 0.23, 0.3])
    assert rate.timing().missed == 1
    assert rate.timing().jitter_max == pytest.approx(0.03)


@pytest.mark.parametrize(("pause", "after"), [(2.0, 2.3), (2.04, 2.3), (2.06, 2.4), (0.06, 0.4), (0.04, 0.3)])
def test_a_pause_shifts_no_phase_and_nothing_is_caught_up_with(pause: float, after: float) -> None:
    clock = Clock()
    rate = Rate(10, clock, clock.sleep)
    found = ends(rate, clock, [0.0] * 5, {2: pause})
    assert found == pytest.approx([0.1, 0.2, after, after + 0.1, after + 0.2])
    assert after - (0.2 + pause) >= 0.05  # half a period of work at least
    assert rate.timing().pauses == (pause > 0.05)
    assert rate.timing().missed == 0
    assert rate.timing().jitter_max == pytest.approx(0.0, abs=1e-9)  # a pause is no jitter


def test_slow_inference_between_periods_leaves_whole_ones() -> None:
    clock = Clock()
    rate = Rate(10, clock, clock.sleep)
    result = ends(rate, clock, [0.0] * 6, dict.fromkeys(range(1, 6), 0.08))
    assert [b - a for a, b in zip(result, result[1:], strict=False)] == pytest.approx([0.2] * 5)


def test_work_that_takes_periods_is_missed_and_not_caught_up() -> None:
    clock = Clock()
    rate = Rate(10, clock, clock.sleep)
    assert ends(rate, clock, [0.0, 0.34, 0.0, 0.0]) == pytest.approx([0.1, 0.44, 0.5, 0.6])
    assert rate.timing().missed == 1
    assert rate.timing().jitter_max == pytest.approx(0.24)


def test_start_measures_anew() -> None:
    clock = Clock()
    rate = Rate(10, clock, clock.sleep)
    ends(rate, clock, [0.13, 0.13])
    rate.start()
    assert (rate.timing().periods, rate.timing().missed) == (0, 0)


def test_real_time_is_kept() -> None:
    rate = Rate(100)
    began = time.perf_counter()
    for _ in range(30):
        rate.begin()
        rate.wait()
    assert time.perf_counter() - began == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_rate_is_positive(rate: float) -> None:
    with pytest.raises(ValueError, match="positive number of periods"):
        Rate(rate)
