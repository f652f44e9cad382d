"""A simulated robot's world in time: as fast as the clock on the wall, or step by step."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from zprl_sb3.robot_envs.real.robots import RobotError, Values
from zprl_sb3.robot_envs.real.simulated.channel import Channel
from zprl_sb3.robot_envs.real.simulated.faults import Faults
from zprl_sb3.robot_envs.real.simulated.pace import Pace
from zprl_sb3.robot_envs.real.simulated.world import STEPS_PER_TICK, World

HOMING = 20.0
"""Seconds of the simulation after which arms that have not come home never will."""


class Simulation:
    """What a simulated robot, its cameras, the person beside it and the leader arm share.

    While somebody uses it, its physics follow the clock on the wall in a thread, never ahead of it, and its side
    channel answers. In lock-step time stands still but for the ``1 / lock_step`` seconds of each command.

    :param task: ``"orange"`` or ``"tray"``
    :param speedup: Seconds of the simulation per second on the wall
    :param lock_step: Commands per second of the simulation, or None for real time
    :param channel: Port of the side channel on loopback; 0 takes a free one
    :param faults: What goes wrong from the beginning, see :class:`~.faults.Faults`
    :param seed: Of the first scene
    :raises ValueError: If an argument is wrong
    """

    def __init__(
        self,
        task: str,
        speedup: float = 1.0,
        lock_step: float | None = None,
        channel: int = 0,
        faults: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if not 0.0 < speedup < float("inf") or (lock_step is not None and not 1.0 <= lock_step <= 500.0):
            raise ValueError(f"speedup={speedup} must be positive, and lock_step={lock_step} from 1 to 500 Hz, or null")
        self.task, self.speedup, self.lock_step = task, speedup, lock_step
        self.world = World(task)
        self.faults = Faults().changed(faults or {})
        self._channel = Channel(channel, self._answer)
        self._lock = threading.RLock()
        self._pace = Pace(STEPS_PER_TICK * self.world.timestep / speedup, self._tick, self._lock)
        self._users = 0
        self._broken: RobotError | None = None
        self._steps = self._scenes = 0
        self.reset(seed)

    # Life

    def acquire(self) -> None:
        """Begin to use it; time goes on from where it stood.

        :raises RobotError: If the side channel's port is taken
        """
        with self._lock:
            if self._users == 0:
                self._channel.open()
                if self.lock_step is None:
                    self._pace.start()
            self._users += 1

    def release(self) -> None:
        """Use it no more; without users time stands still."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        self._pace.stop()
        self._channel.close()

    @property
    def in_use(self) -> bool:
        """Whether time goes on."""
        return self._users > 0

    @property
    def address(self) -> str:
        """Where the side channel listens, while the simulation is used: ``tcp://127.0.0.1:PORT``."""
        return self._channel.address

    # Time

    @property
    def time(self) -> float:
        """Seconds of the simulation since it began."""
        return self._steps * self.world.timestep

    @property
    def moment(self) -> tuple[int, int]:
        """Number of the scene, and of the physics steps; in lock-step of those since its beginning."""
        return self._scenes, self._steps - (self._anchor if self.lock_step else 0)

    def clock(self) -> float:
        """Return the time that frames are dated by: in lock-step the simulation's, else that on the wall."""
        return self.time if self.lock_step else time.monotonic()

    def _tick(self) -> None:
        self._advance(STEPS_PER_TICK)

    def _advance(self, steps: int) -> None:
        while self._waiting and self._waiting[0][0] <= self._steps:
            self._tell(self._waiting.popleft()[1])
        try:
            self.world.advance(steps)
        except RobotError as error:
            self._broken = error
        self._steps += steps

    # What the robot does

    def observe(self) -> Values:
        """Return what arms and sensors tell."""
        with self._working():
            values = self.world.observe()
            nan = self.faults.nan
        return {name: value * np.nan if nan and name.startswith(nan) else value for name, value in values.items()}

    def command(self, action: Values) -> None:
        """Take a command for all arms; in lock-step, let it act."""
        with self._working():
            if self._luck.random() >= self.faults.drop:
                due = self._steps + round(self.faults.delay / self.world.timestep)
                self._waiting.append((due, {name: np.array(value, dtype=np.float64) for name, value in action.items()}))
            if self.lock_step is not None:
                # Counted from the beginning: a period need not be a whole number of physics steps.
                self._commands += 1
                steps = round(self._commands / (self.lock_step * self.world.timestep))
                self._advance(self._anchor + steps - self._steps)

    def _tell(self, action: Values) -> None:
        for arm in self.world.arms.values():
            arm.tell(action)

    def _start_counting(self) -> None:
        self._anchor, self._commands = self._steps, 0

    def hold(self) -> None:
        """Have all arms stay where they are, whatever was still on its way."""
        with self._lock:
            self._waiting.clear()
            for arm in self.world.arms.values():
                arm.hold()

    def home(self) -> None:
        """Bring all arms home.

        :raises RobotError: If they do not come
        """
        with self._working():
            self._waiting.clear()
            for arm in self.world.arms.values():
                arm.go_home()
            latest = self.time + HOMING
        while not all(arm.is_home() for arm in self.world.arms.values()):
            if self.time > latest or not self.in_use:
                raise RobotError("The arms did not come home; look whether something is in their way")
            with self._working():
                if self.lock_step is not None:
                    self._advance(STEPS_PER_TICK)
            if self.lock_step is None:
                time.sleep(0.01)
        self._start_counting()

    @contextmanager
    def _working(self) -> Iterator[None]:
        if self.faults.slow:
            time.sleep(self.faults.slow)
        if self.faults.error:
            raise RobotError(self.faults.error)
        with self._lock:
            if not self._users:
                raise RobotError("The simulated robot is not connected")
            if self._broken is not None:
                raise self._broken
            yield

    def snapshot(self, data: Any) -> tuple[int, int]:
        """Copy all positions into another state of the model, to draw them; return their moment."""
        with self._lock:
            mine = self.world.data
            data.qpos[:], data.mocap_pos[:], data.mocap_quat[:] = mine.qpos, mine.mocap_pos, mine.mocap_quat
            return self.moment

    # The side channel: what a person in the room sees and does, and what only a test can do

    def state(self) -> dict[str, Any]:
        """Return the truth as plain numbers: where arms and things are, and how it stands.

        ``lag``: seconds on the wall that the physics is behind; ``lost``: those that it has given up to catch up with.
        """
        with self._lock:
            values = self.world.scene.sensors()
            for arm in self.world.arms.values():
                values |= arm.observe()
            return {
                "task": self.task,
                "time": self.time,
                "scene": self._scenes,
                "seed": self._seed,
                "success": self.world.scene.is_success(),
                "failure": self.world.scene.is_failure(),
                "lock_step": self.lock_step is not None,
                "speedup": self.speedup,
                "lag": self._pace.lag,
                "lost": self._pace.lost,
                "values": {name: value.tolist() for name, value in values.items()},
            }

    def reset(self, seed: int) -> None:
        """Set the scene of a seed, as a person does; in lock-step, or after it became unstable, all begins anew."""
        with self._lock:
            anew = self.lock_step is not None or self._broken is not None
            (self.world.restart if anew else self.world.place)(seed)
            self._seed, self._scenes = seed, self._scenes + 1
            self._waiting: deque[tuple[int, Values]] = deque()
            self._luck = np.random.default_rng([seed, 1])
            self._broken = None
            self._start_counting()

    def set_faults(self, **changes: Any) -> None:
        """Let something go wrong from now on, or go right again.

        :param changes: Of :class:`~.faults.Faults`
        :raises ValueError: If there is no such fault
        """
        self.faults = self.faults.changed(changes)

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        arguments = dict(request)
        match arguments.pop("do", None):
            case "state" if not arguments:
                return self.state()
            case "reset" if set(arguments) == {"seed"} and type(arguments["seed"]) is int and arguments["seed"] >= 0:
                self.reset(arguments["seed"])
                return self.state()
            case "faults":
                self.set_faults(**arguments)
                return self.state()
        raise ValueError('ask {"do": "state"}, {"do": "reset", "seed": 3} or {"do": "faults", "delay": 0.2}')
