"""What a robot is told to do, who has stopped it, and what it has told: between its callers and ``guard.py``'s loop."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping

from zprl_sb3.robot_envs.real.following import HOLD, Order
from zprl_sb3.robot_envs.real.robots import STALE, RobotError, Stopped, Values

SPREAD = 0.1  # seconds over which a command is spread at most, however rarely they come
RECOVERY = 30.0  # seconds for a driver that failed to be connected anew
HANGS = "The robot's driver does not return: it could not be told to hold. Use its emergency stop"


class Orders:
    """The order that counts, the latch of stops, and the latest observation. For several threads.

    The upper methods are for callers, the lower ones for the loop that owns the driver.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limited: Counter[str] = Counter()
        self._reason: str | None = None  # of a stop; only clear() forgets it, no new connection does
        self._open = False
        self._forget()

    def _forget(self) -> None:
        self._failure: str | None = None  # why there is no observation
        self._failed = False  # the driver, since it was connected
        self._recovers = False
        self._latest: tuple[Values, float] | None = None
        self._order, self._home_failure = HOLD, ""

    @property
    def order(self) -> Order:
        """What the robot is to do."""
        return self._order

    @property
    def stopped(self) -> str | None:
        """Why the robot is stopped, or None."""
        return self._reason

    @property
    def home_failure(self) -> str:
        """Why it did not get home the last time; empty if it did."""
        return self._home_failure

    @property
    def recovers(self) -> bool:
        """Whether the loop is to connect anew to a driver that failed."""
        return self._recovers

    def limited(self) -> Mapping[str, int]:
        """Return what :meth:`count` has counted."""
        with self._changed:
            return dict(self._limited)

    def latest(self) -> tuple[Values, float]:
        """Return where the arms are, and how many seconds ago that was measured.

        :raises RobotError: If that was too long ago, or the driver failed
        """
        with self._changed:
            self._check_open()
            if self._failure is not None or self._latest is None:
                raise RobotError(self._failure or "The robot has told nothing yet")
            values, when = self._latest
            brought = self._order.home and self._order.target is None  # by the driver, which tells nothing meanwhile
        if (age := time.monotonic() - when) > STALE and not brought:
            raise RobotError(f"The robot has told nothing for {age:.1f} s: its driver hangs")
        return {name: value.copy() for name, value in values.items()}, age

    def command(self, target: Values, slow: bool) -> None:
        """Order the arms to be somewhere next.

        :raises Stopped: If the robot was stopped
        :raises RobotError: While it goes home
        """
        now = time.monotonic()
        with self._changed:
            self._check_ready()
            if self._order.home:
                raise RobotError("The robot is on its way home: wait until it is there, or hold it")
            spread = min(now - self._order.received, SPREAD)
            self._order = Order(target, now, spread, slow=slow)

    def hold(self) -> None:
        """Order it to brake and stay."""
        with self._changed:
            self._check_open()
            self._end_home("it was told to hold")

    def start_home(self, target: Values | None) -> None:
        """Order it to go home."""
        with self._changed:
            self._check_ready()
            self._home_failure = ""
            self._order = Order(target, time.monotonic(), home=True)

    def await_home(self) -> None:
        """Return when it is no longer on the way home.

        :raises Stopped: If it was stopped
        :raises RobotError: If it did not get there
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._order.home)
            if self._reason is not None:
                raise Stopped(self._reason)
            if self._home_failure:
                raise RobotError(self._home_failure)

    def stop(self, reason: str) -> None:
        """Stop it until :meth:`clear`; the first reason stays."""
        with self._changed:
            if self._recovers:  # said after what was to clear it
                self._reason, self._recovers = None, False
            self._latch(reason or "stopped")

    def start_clear(self) -> None:
        """Begin to let it move again: at once, or once a driver that failed is connected anew."""
        with self._changed:
            self._recovers = self._failed and self._open
            if not self._recovers:
                self._reason = None

    def await_clear(self) -> None:
        """Return when a driver that failed is connected anew.

        :raises Stopped: If it failed again, or the robot was stopped meanwhile
        :raises RobotError: If it hangs
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._recovers, RECOVERY):
                raise RobotError(HANGS)
            if self._reason is not None:
                raise Stopped(self._reason)

    def _check_open(self) -> None:
        if not self._open:
            raise RobotError("The robot is not connected")

    def _check_ready(self) -> None:
        self._check_open()
        if self._reason is not None:
            raise Stopped(self._reason)

    def _latch(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._end_home("it was stopped")

    def _end_home(self, failure: str) -> None:
        if self._order.home:
            self._home_failure = f"The robot did not get home: {failure}"
        self._order = HOLD
        self._changed.notify_all()

    # For the loop.

    def open(self) -> None:
        """Take orders from now on; what was ordered and told before is forgotten, a stop is not."""
        with self._changed:
            self._forget()
            self._open = True

    def close(self, why: str) -> None:
        """Take no orders any more."""
        with self._changed:
            self._open = self._recovers = False
            self._end_home(why)

    @property
    def observed(self) -> Values:
        """What was told last."""
        assert self._latest is not None
        return self._latest[0]

    def tell(self, values: Values) -> None:
        """Take over what the robot tells."""
        with self._changed:
            self._latest, self._failure = (values, time.monotonic()), None

    def count(self, names: Iterable[str]) -> None:
        """Count what was in the way."""
        with self._changed:
            self._limited.update(names)

    def arrived(self) -> None:
        """End the way home: it is there."""
        with self._changed:
            self._order = HOLD if self._order.home else self._order
            self._changed.notify_all()

    def lost(self, why: str) -> None:
        """End the way home: it is not there."""
        with self._changed:
            self._end_home(why)

    def fail(self, error: Exception) -> None:
        """Stop: the driver failed."""
        with self._changed:
            self._failure, self._failed = _words(error), True
            self._latch(self._failure)

    def recovered(self, error: Exception | None) -> None:
        """End the stop that was to be cleared, unless the driver failed again."""
        failure = None if error is None else _words(error)
        with self._changed:
            self._failed = failure is not None
            if self._recovers:
                self._reason, self._recovers = failure, False
            self._changed.notify_all()


def _words(error: Exception) -> str:
    return f"The robot's driver failed: {str(error) or type(error).__name__}"
