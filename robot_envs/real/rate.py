"""A fixed rate that stays in phase, never hurries to catch up, and measures how well it is kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

KEPT = 0.5  # of a period: who is later than that leaves periods out, so that none is shorter than this


@dataclass(frozen=True)
class Timing:
    """How well a rate was kept.

    :param periods: Periods that followed one without a pause
    :param jitter_p50: Median of how far the time between two ends was from the period, in seconds
    :param jitter_p99: Its 99th percentile
    :param jitter_max: Its maximum
    :param missed: Periods whose work took longer than the period
    :param pauses: How often the work of a period began late by more than :data:`KEPT` of it
    """

    periods: int
    jitter_p50: float
    jitter_p99: float
    jitter_max: float
    missed: int
    pauses: int


class Rate:
    """Periods of equal length. The work of one lies between :meth:`begin` and :meth:`wait`.

    The ends of periods lie on one grid from :meth:`start` on: lateness does not accumulate, and a pause does not shift
    them. Who pauses, or takes longer than one and a half periods, goes on at the grid's nearest point: whole periods
    are left out and not made up for, and the next one takes half a period at least, one and a half at most.

    :param rate: Periods per second
    :param clock: Seconds, which only grow
    :param sleep: Waits for some seconds
    :raises ValueError: If the rate is not positive
    """

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not 0 < rate < float("inf"):
            raise ValueError(f"A rate is a positive number of periods per second, not {rate!r}")
        self.period = 1.0 / rate
        self._clock, self._sleep = clock, sleep
        self.start()

    def start(self) -> None:
        """Begin a new grid now, and to measure anew."""
        self._boundary = self._clock()
        self._last_end: float | None = None
        self._jitter: list[float] = []
        self._missed = self._pauses = 0

    @property
    def jitter(self) -> float:
        """Seconds between the last two ends, less the period; 0 after a pause."""
        return self._jitter[-1] if self._jitter and self._last_end is not None else 0.0

    @property
    def missed(self) -> int:
        """Periods since :meth:`start` whose work took longer than the period."""
        return self._missed

    def begin(self) -> None:
        """Begin the work of a period; after a pause not the one that was due, but the nearest."""
        boundary = self._nearest(self._boundary, self._clock())
        if boundary != self._boundary:
            self._boundary, self._last_end = boundary, None
            self._pauses += 1

    def wait(self) -> None:
        """Wait for the end of the period; returns at once where it has passed."""
        end, now = self._boundary + self.period, self._clock()
        if now < end:
            self._sleep(end - now)
            now = self._clock()
        else:
            self._missed += 1
        if self._last_end is not None:
            self._jitter.append(now - self._last_end - self.period)
        self._boundary, self._last_end = self._nearest(end, now), now

    def _nearest(self, boundary: float, now: float) -> float:
        """Return a point of the grid, or a later one that is nearest to the present."""
        return boundary + max(0, math.ceil((now - boundary) / self.period - KEPT)) * self.period

    def timing(self) -> Timing:
        """Return how well the rate was kept since :meth:`start`."""
        size = np.abs(self._jitter) if self._jitter else np.zeros(1)
        p50, p99 = np.percentile(size, (50, 99))
        return Timing(len(self._jitter), float(p50), float(p99), float(size.max()), self._missed, self._pauses)
