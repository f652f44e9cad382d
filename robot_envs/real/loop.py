"""The loop that owns a robot's driver: at a fixed rate it moves the set point towards what is ordered."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress

import numpy as np

from zprl_sb3.robot_envs.real.following import Follower, Order
from zprl_sb3.robot_envs.real.orders import Orders
from zprl_sb3.robot_envs.real.rate import Rate, Timing
from zprl_sb3.robot_envs.real.robots import Robot, Values
from zprl_sb3.robot_envs.real.safety import Limits
from zprl_sb3.robot_envs.real.set_points import left_range, start

WINDOW = 10.0  # seconds over which the loop's own timing is told
HOME_TIME = 60.0  # seconds to get home
END = 1.0  # seconds to brake before disconnecting


class Loop:
    """For one connection, in one thread; :class:`~zprl_sb3.robot_envs.real.guard.Guard` has the parameters.

    :param robot: The driver
    :param limits: Of each arm
    :param orders: What to do, and where to tell what came of it
    :param rate: Set points per second
    :param watchdog: Seconds without a command after which it brakes
    """

    def __init__(
        self, robot: Robot, limits: Mapping[str, Limits], orders: Orders, rate: float, watchdog: float
    ) -> None:
        self._robot, self._limits, self._orders = robot, limits, orders
        self._rate = Rate(rate, time.monotonic)
        self._follower = Follower(robot.arms, limits, watchdog)
        self.closing = threading.Event()
        """Set it, and it ends."""
        self._timing: Timing | None = None
        self._window = 0.0
        self._halted = self._outside = False

    @property
    def timing(self) -> Timing:
        """How well it kept its rate, in ten seconds. From any thread."""
        return self._timing or self._rate.timing()

    def run(self, ready: Future[None]) -> None:
        """Connect to the driver, do what is ordered until :attr:`closing` is set, brake, hold, and let go of it.

        :param ready: Told when it is connected, or why it is not
        """
        try:
            self._robot.connect()
            self._publish(self._robot.get_observation())
            start(self._orders.observed, self._robot.arms)
        except BaseException as error:
            self._let_go()
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            self._tick_until_closed()
        finally:
            self._let_go()
            self._orders.close("its loop has ended")

    def _let_go(self) -> None:
        with suppress(Exception):
            self._robot.hold()
        with suppress(Exception):
            self._robot.disconnect()

    def _tick_until_closed(self) -> None:
        self._rate.start()
        self._window = time.monotonic()
        end = np.inf
        while not self.closing.is_set() or (self._follower.is_moving and time.monotonic() < end):
            if self.closing.is_set():
                end = min(end, time.monotonic() + END)
            self._rate.begin()
            try:
                self._tick()
            except Exception as error:  # whatever a driver raises
                self._orders.fail(error)
            self._rate.wait()
            self._measure()

    def _tick(self) -> None:
        if self._orders.recovers:
            self._recover()
        if (stopped := self._orders.stopped is not None) and not self._halted:
            self._follower.forget()
            self._robot.hold()  # if it fails, the next tick tries again
        self._halted = stopped
        self._publish(self._robot.get_observation())
        if not stopped:
            self._move()

    def _recover(self) -> None:
        """Connect anew to a driver that failed: what ends its error, only it knows."""
        try:
            self._robot.connect()
            self._robot.hold()
            self._publish(self._robot.get_observation())
        except Exception as error:  # whatever a driver raises
            self._orders.recovered(error)
        else:
            self._orders.recovered(None)

    def _publish(self, values: Values) -> None:
        found = left_range(values, self._robot.arms, self._limits)
        self._orders.tell(values)
        if found and not self._outside:  # who clears this may move it back
            self._orders.stop("; ".join(found))
        self._outside = bool(found)

    def _move(self) -> None:
        now, order = time.monotonic(), self._orders.order
        if self._follower.stalls(now):
            self._orders.count(["stall"])
            self._robot.hold()
        elif order.home and order.target is None:
            self._robot.home()
            self._follower.forget()
            self._orders.arrived()
        elif order.target is not None or self._follower.is_set:
            point, hits = self._follower.follow(order, self._orders.observed)
            self._orders.count(hits)
            self._robot.send_action(point)
            if order.home:
                self._check_home(order, now)

    def _check_home(self, order: Order, now: float) -> None:
        assert order.target is not None
        if self._follower.has_arrived(order.target, self._orders.observed):
            self._orders.arrived()
        elif now - order.received > HOME_TIME:
            self._orders.lost(f"it was not there after {HOME_TIME:.0f} s")

    def _measure(self) -> None:
        now = time.monotonic()
        if now - self._window > WINDOW:
            self._window = now
            self._timing = self._rate.timing()
            self._rate.start()
