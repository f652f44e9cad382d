"""What stands between a robot's driver and whatever commands it.

Callers leave orders (``orders.py``), and one thread does them under the limits (``loop.py``), so that a late, wrong or
missing command, or a dead caller, leaves a robot that brakes and holds.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from zprl_sb3.robot_envs.real.loop import END, Loop
from zprl_sb3.robot_envs.real.motion import Moving
from zprl_sb3.robot_envs.real.orders import HANGS, Orders
from zprl_sb3.robot_envs.real.rate import Timing
from zprl_sb3.robot_envs.real.robots import Arm, Robot, RobotError, Values
from zprl_sb3.robot_envs.real.safety import RATE, WATCHDOG, Limits, check_limits, checked, described
from zprl_sb3.robot_envs.real.set_points import clamped

PATIENCE = 5.0  # seconds for the driver to come back from its last call


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
        self.rate, self.watchdog = rate, watchdog
        self.enforced = described(limits, rate, watchdog, home)
        """Limits, rate, watchdog and home, by name."""
        self._orders = Orders()
        self._loop = self._new_loop()
        self._thread: threading.Thread | None = None

    def _new_loop(self) -> Loop:
        return Loop(self._robot, self._limits, self._orders, self.rate, self.watchdog)

    @property
    def arms(self) -> Mapping[str, Arm]:
        return self._robot.arms

    @property
    def stopped(self) -> str | None:
        """Why the robot is stopped, or None."""
        return self._orders.stopped

    @property
    def homing(self) -> bool:
        """Whether it is on the way home."""
        return self._orders.order.home

    @property
    def home_failure(self) -> str:
        """Why it did not get home the last time; empty if it did."""
        return self._orders.home_failure

    @property
    def limited(self) -> Mapping[str, int]:
        """How often which limit was in the way since the guard was made: ``left/workspace``, ``watchdog``, ....

        Of workspace, cone, joints and step in commands and in ticks, of speed and acceleration in ticks.
        """
        return self._orders.limited()

    @property
    def timing(self) -> Timing:
        """How well the loop kept its rate, in ten seconds."""
        return self._loop.timing

    def connect(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            if self._loop.closing.is_set():  # a second thread would command the robot beside the one that comes back
                raise RobotError(HANGS)
            return
        self._loop = self._new_loop()
        self._orders.open()
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._loop.run, args=(ready,), name="zprl-guard", daemon=True)
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
        self._orders.close("it was disconnected")
        self._loop.closing.set()
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
        return self._orders.latest()

    def send_action(self, action: Values) -> None:
        """Tell the arms where to be next; they go there under the limits.

        :raises Stopped: If the robot was stopped
        :raises RobotError: For a command that is none, and while it goes home
        """
        self._orders.command(checked(action, self.arms), slow=False)

    def approach(self, action: Values) -> None:
        """Tell the arms where to be next, as :meth:`send_action` does, but at half of the limits' speeds."""
        self._orders.command(checked(action, self.arms), slow=True)

    def hold(self) -> None:
        """Brake under the limits, and stay."""
        self._orders.hold()

    def home(self) -> None:
        """Go home under the limits, at half of their speeds; returns when the arms are there.

        :raises Stopped: If it is stopped
        :raises RobotError: If they do not get there
        """
        self.start_home()
        self.await_home()

    def start_home(self) -> None:
        """Set out for home; :attr:`homing` tells when that is over, :meth:`await_home` how."""
        self._orders.start_home(self._home)

    def await_home(self) -> None:
        """Return when it is no longer on the way home.

        :raises Stopped: If it was stopped
        :raises RobotError: If it did not get there
        """
        self._orders.await_home()

    def stop(self, reason: str) -> None:
        """Stop at once, until :meth:`clear`: within a period the driver holds.

        :param reason: Told to whoever commands; the first one stays
        """
        self._orders.stop(reason)

    def clear(self) -> None:
        """Let the robot move again, a driver that failed once it is connected anew. Only for a person who has looked.

        :raises Stopped: If that driver fails again, or the robot was stopped meanwhile
        :raises RobotError: If the driver hangs
        """
        self._orders.start_clear()
        self._orders.await_clear()

    def start_clear(self) -> None:
        """Begin to let the robot move again; :attr:`recovers` tells when that is over, :attr:`stopped` how."""
        self._orders.start_clear()

    @property
    def recovers(self) -> bool:
        """Whether a driver that failed is connected anew now."""
        return self._orders.recovers

    def _checked_home(self, home: Mapping[str, Sequence[float]]) -> Values:
        try:
            target = checked({name: np.array(value) for name, value in home.items()}, self.arms)
        except RobotError as error:
            raise ValueError(f"Home is no place for this robot: {error}") from error
        still = {name: Moving(value, np.zeros_like(value)) for name, value in target.items()}
        if hits := clamped(target, still, self._limits)[1]:
            raise ValueError(f"Home is outside the limits: {', '.join(sorted(hits))}")
        return target
