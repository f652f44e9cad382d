"""What stands between a robot's driver and whatever commands it: the loop that keeps the limits.

One thread owns the driver. At a fixed rate it moves the set point towards the last command (``set_points.py``), so that
a late, wrong or missing command, or a dead caller, leaves a robot that brakes and holds.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress

import numpy as np

from zprl_sb3.robot_envs.real.following import HOLD, Follower, Order
from zprl_sb3.robot_envs.real.motion import Moving
from zprl_sb3.robot_envs.real.rate import Rate, Timing
from zprl_sb3.robot_envs.real.robots import STALE, Arm, Robot, RobotError, Stopped, Values
from zprl_sb3.robot_envs.real.safety import RATE, WATCHDOG, Limits, check_limits, checked, described
from zprl_sb3.robot_envs.real.set_points import clamped, left_range, start

SPREAD = 0.1  # seconds over which a command is spread at most, however rarely they come
WINDOW = 10.0  # seconds over which the loop's own timing is told
HOME_TIME = 60.0  # seconds to get home
END = 1.0  # seconds to brake before disconnecting
PATIENCE = 5.0  # seconds for the driver to come back from its last call
RECOVERY = 30.0  # seconds for a driver that failed to be connected anew
HANGS = "The robot's driver does not return: it could not be told to hold. Use its emergency stop"


class Guard:
    """A robot that keeps limits; itself a :class:`~zprl_sb3.robot_envs.real.robots.Robot`, callable from any thread.

    :param robot: The driver. From :meth:`connect` on only this object's thread calls it
    :param limits: Of each arm
    :param rate: Set points per second
    :param watchdog: Seconds without a command after which the robot brakes and holds
    :param home: Where :meth:`home` goes, as a command has it, within the limits. None: the driver's own ``home()``,
        which neither keeps these limits nor ends when the robot is stopped
    :raises ValueError: If limits or home do not fit the robot
    """

    def __init__(
        self,
        robot: Robot,
        limits: Mapping[str, Limits],
        *,
        rate: float = RATE,
        watchdog: float = WATCHDOG,
        home: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        check_limits(robot.arms, limits)
        if not 0 < watchdog < np.inf:
            raise ValueError(f"The watchdog must be above 0 s, not {watchdog}")
        self._robot, self._limits = robot, dict(limits)
        self._home = None if home is None else self._checked_home(home)
        self._rate = Rate(rate, time.monotonic)
        self.watchdog = watchdog
        self.enforced = described(limits, rate, watchdog, home)
        """Limits, rate, watchdog and home, by name."""
        self._timing: Timing | None = None
        self._window = 0.0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._limited: Counter[str] = Counter()
        self._reason: str | None = None  # of a stop; only clear() forgets it, no new connection does
        self._forget()

    def _forget(self) -> None:
        self._failure: str | None = None  # why there is no observation
        self._failed = False  # the driver, since it was connected
        self._recovers = False
        self._latest: tuple[Values, float] | None = None
        self._order, self._homing_failed = HOLD, ""
        # Only the thread's.
        self._follower = Follower(self.arms, self._limits, self.watchdog)
        self._halted = self._outside = False

    @property
    def arms(self) -> Mapping[str, Arm]:
        return self._robot.arms

    @property
    def stopped(self) -> str | None:
        """Why the robot is stopped, or None."""
        return self._reason

    @property
    def homing(self) -> bool:
        """Whether it is on the way home."""
        return self._order.home

    @property
    def home_failure(self) -> str:
        """Why it did not get home the last time; empty if it did."""
        return self._homing_failed

    @property
    def limited(self) -> Mapping[str, int]:
        """How often which limit was in the way since the guard was made: ``left/workspace``, ``watchdog``, ....

        Of workspace, cone, joints and step in commands and in ticks, of speed and acceleration in ticks.
        """
        with self._changed:
            return dict(self._limited)

    @property
    def timing(self) -> Timing:
        """How well the loop kept its rate, in ten seconds."""
        return self._timing or self._rate.timing()

    def connect(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            if self._closing.is_set():  # a second thread would command the robot beside the one that comes back
                raise RobotError(HANGS)
            return
        self._closing.clear()
        self._forget()
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="zprl-guard", daemon=True)
        self._thread.start()
        atexit.register(self.disconnect)
        try:
            ready.result()
        except BaseException:
            self.disconnect()
            raise

    def disconnect(self) -> None:
        """Brake, hold, and let go of the driver.

        :raises RobotError: If the driver hangs in a call
        """
        thread = self._thread
        if thread is None:
            return
        atexit.unregister(self.disconnect)
        with self._changed:
            self._closing.set()
            self._end_homing("it was disconnected")
        thread.join(END + PATIENCE)
        if thread.is_alive():
            raise RobotError(HANGS)
        self._thread = None

    def get_observation(self) -> Values:
        """Return where the arms are, at most some periods ago.

        :raises RobotError: If the driver failed or hangs
        """
        return self.observe()[0]

    def observe(self) -> tuple[Values, float]:
        """Return where the arms are, and how many seconds ago that was measured; else as :meth:`get_observation`."""
        with self._changed:
            self._check_connected()
            if self._failure is not None or self._latest is None:
                raise RobotError(self._failure or "The robot has told nothing yet")
            values, when = self._latest
        brought = self._order.home and self._home is None  # by the driver, which tells nothing meanwhile
        if (age := time.monotonic() - when) > STALE and not brought:
            raise RobotError(f"The robot has told nothing for {age:.1f} s: its driver hangs")
        return {name: value.copy() for name, value in values.items()}, age

    def send_action(self, action: Values) -> None:
        """Tell the arms where to be next; they go there under the limits.

        :raises Stopped: If the robot was stopped
        :raises RobotError: For a command that is none, and while it goes home
        """
        self._command(action, slow=False)

    def approach(self, action: Values) -> None:
        """Tell the arms where to be next, as :meth:`send_action` does, but at half of the limits' speeds."""
        self._command(action, slow=True)

    def _command(self, action: Values, slow: bool) -> None:
        command = checked(action, self.arms)
        now = time.monotonic()
        with self._changed:
            self._check_ready()
            if self._order.home:
                raise RobotError("The robot is on its way home: wait until it is there, or hold it")
            spread = min(now - self._order.received, SPREAD)
            self._order = Order(command, now, spread, slow=slow)

    def hold(self) -> None:
        """Brake under the limits, and stay."""
        with self._changed:
            self._check_connected()
            self._end_homing("it was told to hold")

    def home(self) -> None:
        """Go home under the limits, at half of their speeds; returns when the arms are there.

        :raises Stopped: If it is stopped
        :raises RobotError: If they do not get there
        """
        self.start_home()
        self.await_home()

    def start_home(self) -> None:
        """Set out for home; :attr:`homing` tells when that is over, :meth:`await_home` how."""
        with self._changed:
            self._check_ready()
            self._homing_failed = ""
            self._order = Order(self._home, time.monotonic(), home=True)

    def await_home(self) -> None:
        """Return when it is no longer on the way home.

        :raises Stopped: If it was stopped
        :raises RobotError: If it did not get there
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._order.home)
            if self._reason is not None:
                raise Stopped(self._reason)
            if self._homing_failed:
                raise RobotError(self._homing_failed)

    def stop(self, reason: str) -> None:
        """Stop at once, until :meth:`clear`: within a period the driver holds.

        :param reason: Told to whoever commands; the first one stays
        """
        with self._changed:
            if self._recovers:  # said after what was to clear it
                self._reason, self._recovers = None, False
            self._latch(reason or "stopped")

    def clear(self) -> None:
        """Let the robot move again, a driver that failed once it is connected anew. Only for a person who has looked.

        :raises Stopped: If that driver fails again, or the robot was stopped meanwhile
        :raises RobotError: If the driver hangs
        """
        self.start_clear()
        with self._changed:
            if not self._changed.wait_for(lambda: not self._recovers, RECOVERY):
                raise RobotError(HANGS)
            if self._reason is not None:
                raise Stopped(self._reason)

    def start_clear(self) -> None:
        """Begin to let the robot move again; :attr:`recovers` tells when that is over, :attr:`stopped` how."""
        with self._changed:
            if self._failed and self._thread is not None and self._thread.is_alive():
                self._recovers = True
            else:
                self._reason = None

    @property
    def recovers(self) -> bool:
        """Whether a driver that failed is connected anew now."""
        return self._recovers

    def _latch(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._end_homing("it was stopped")

    def _check_connected(self) -> None:
        if self._thread is None or not self._thread.is_alive() or self._closing.is_set():
            raise RobotError("The robot is not connected")

    def _check_ready(self) -> None:
        self._check_connected()
        if self._reason is not None:
            raise Stopped(self._reason)

    def _end_homing(self, failure: str) -> None:
        if self._order.home:
            self._homing_failed = f"The robot did not get home: {failure}"
        self._order = HOLD
        self._changed.notify_all()

    def _checked_home(self, home: Mapping[str, Sequence[float]]) -> Values:
        try:
            target = checked({name: np.array(value) for name, value in home.items()}, self.arms)
        except RobotError as error:
            raise ValueError(f"Home is no place for this robot: {error}") from error
        still = {name: Moving(value, np.zeros_like(value)) for name, value in target.items()}
        if hits := clamped(target, still, self._limits)[1]:
            raise ValueError(f"Home is outside the limits: {', '.join(sorted(hits))}")
        return target

    # The rest runs in the thread that owns the driver.

    def _run(self, ready: Future[None]) -> None:
        try:
            self._robot.connect()
            self._publish(self._robot.get_observation())
            start(self._observed, self.arms)
        except BaseException as error:
            self._let_go()
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            self._loop()
        finally:
            self._let_go()
            with self._changed:
                self._end_homing("its loop has ended")

    def _let_go(self) -> None:
        with suppress(Exception):
            self._robot.hold()
        with suppress(Exception):
            self._robot.disconnect()

    def _loop(self) -> None:
        self._rate.start()
        self._window = time.monotonic()
        end = np.inf
        while not self._closing.is_set() or (self._follower.is_moving and time.monotonic() < end):
            if self._closing.is_set():
                end = min(end, time.monotonic() + END)
            self._rate.begin()
            try:
                self._tick()
            except Exception as error:  # whatever a driver raises
                self._fail(error)
            self._rate.wait()
            self._measure()

    def _tick(self) -> None:
        if self._recovers:
            self._recover()
        if (stopped := self._reason is not None) and not self._halted:
            self._follower.forget()
            self._robot.hold()  # if it fails, the next tick tries again
        self._halted = stopped
        self._publish(self._robot.get_observation())
        if not stopped:
            self._move()

    def _recover(self) -> None:
        """Connect anew to a driver that failed: what ends its error, only it knows."""
        failure = None
        try:
            self._robot.connect()
            self._robot.hold()
            self._publish(self._robot.get_observation())
        except Exception as error:  # whatever a driver raises
            failure = _failure(error)
        with self._changed:
            self._failed = failure is not None
            if self._recovers:
                self._reason, self._recovers = failure, False
            self._changed.notify_all()

    def _publish(self, values: Values) -> None:
        found = left_range(values, self.arms, self._limits)
        with self._changed:
            self._latest, self._failure = (values, time.monotonic()), None
        if found and not self._outside:  # who clears this may move it back
            self.stop("; ".join(found))
        self._outside = bool(found)

    @property
    def _observed(self) -> Values:
        assert self._latest is not None
        return self._latest[0]

    def _move(self) -> None:
        now, order = time.monotonic(), self._order
        if self._follower.stalls(now):
            self._count(["stall"])
            self._robot.hold()
        elif order.home and self._home is None:
            self._robot.home()
            self._follower.forget()
            self._arrived()
        elif order.target is not None or self._follower.is_set:
            point, hits = self._follower.follow(order, self._observed)
            self._count(hits)
            self._robot.send_action(point)
            if order.home:
                self._check_home(order, now)

    def _check_home(self, order: Order, now: float) -> None:
        assert order.target is not None
        if self._follower.has_arrived(order.target, self._observed):
            self._arrived()
        elif now - order.received > HOME_TIME:
            with self._changed:
                self._end_homing(f"it was not there after {HOME_TIME:.0f} s")

    def _arrived(self) -> None:
        with self._changed:
            self._order = HOLD if self._order.home else self._order
            self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        with self._changed:
            self._failure, self._failed = _failure(error), True
            self._latch(self._failure)

    def _count(self, names: Iterable[str]) -> None:
        with self._changed:
            self._limited.update(names)

    def _measure(self) -> None:
        now = time.monotonic()
        if now - self._window > WINDOW:
            self._window = now
            self._timing = self._rate.timing()
            self._rate.start()


def _failure(error: Exception) -> str:
    return f"The robot's driver failed: {str(error) or type(error).__name__}"
