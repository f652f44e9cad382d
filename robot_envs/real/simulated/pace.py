"""Real time: something advances tick by tick in a thread, as fast as the clock on the wall and never ahead of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MOST_BEHIND = 0.25
"""Seconds that it catches up with; what is beyond is lost, as it would race otherwise."""


class Pace:
    """Calls a function every so many seconds.

    :param tick: Seconds between two calls
    :param advance: The function
    :param lock: Held while it is called, and while it is counted: who holds it sees all of a tick or nothing
    :ivar lost: Seconds that it has given up to catch up with
    """

    def __init__(self, tick: float, advance: Callable[[], None], lock: threading.RLock) -> None:
        self._tick, self._advance, self._lock = tick, advance, lock
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._reached = 0.0
        self.lost = 0.0

    @property
    def lag(self) -> float:
        """How many seconds it is behind the clock on the wall; none while it stands still."""
        return 0.0 if self._thread is None else max(0.0, time.monotonic() - self._reached)

    def start(self) -> None:
        """Begin to call; time goes on from now."""
        self._reached, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._ended,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Call no more. Not to be called while the lock is held."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None

    def _run(self, ended: threading.Event) -> None:
        while not ended.is_set():
            with self._lock:
                early = self._follow_clock()
            if early > 0.0:
                ended.wait(early)
            else:
                time.sleep(0.0)  # Who waits for the lock gets it, also while it catches up.

    def _follow_clock(self) -> float:
        """Advance by a tick if one is due; otherwise return in how many seconds it will be."""
        now = time.monotonic()
        if now - self._reached > MOST_BEHIND:
            self.lost += now - self._reached - MOST_BEHIND
            self._reached = now - MOST_BEHIND
        if now < self._reached + self._tick:
            return self._reached + self._tick - now
        self._advance()
        self._reached += self._tick
        return 0.0
