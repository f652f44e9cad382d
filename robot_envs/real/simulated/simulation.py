"""A simulated robot's world in time: as fast as the clock on the wall, or step by step."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from zprl_sb3.robot_envs.real.robots import RobotError, Values
from zprl_sb3.robot_envs.real.simulated.channel import Channel
from zprl_sb3.robot_envs.real.simulated.faults import Faults
from zprl_sb3.robot_envs.real.simulated.world import STEPS_PER_TICK, World

MOST_BEHIND = 0.25
"""Seconds on the wall that the physics catches up with; what is beyond is lost, as it would race otherwise."""
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
    :ivar lost: Seconds on the wall that the physics has given up to catch up with
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
        self.lost = 0.0
        self._channel = Channel(channel, self._answer)
        self._lock = threading.RLock()
        self._users = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
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
                self._ended = threading.Event()
                self._reached = time.monotonic()
                if self.lock_step is None:
                    self._thread = threading.Thread(target=self._run, args=(self._ended,), daemon=True)
                    self._thread.start()
            self._users += 1

    def release(self) -> None:
        """Use it no more; without users time stands still."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
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

    @property
    def lag(self) -> float:
        """How many seconds the physics is behind the clock on the wall; none in lock-step."""
        return 0.0 if self._thread is None else max(0.0, time.monotonic() - self._reached)

    def clock(self) -> float:
        """Return the time that frames are dated by: in lock-step the simulation's, else that on the wall."""
        return self.time if self.lock_step else time.monotonic()

    def _run(self, ended: threading.Event) -> None:
        while not ended.is_set():
            with self._lock:
                early = self._follow_clock()
            if early > 0.0:
                ended.wait(early)
            else:
                time.sleep(0.0)  # Who waits for the lock gets it, also while the physics catches up.

    def _follow_clock(self) -> float:
        """Advance by a tick if it is over; otherwise return in how many seconds it will be."""
        tick = STEPS_PER_TICK * self.world.timestep / self.speedup
        now = time.monotonic()
        if now - self._reached > MOST_BEHIND:
            self.lost += now - self._reached - MOST_BEHIND
            self._reached = now - MOST_BEHIND
        if now < self._reached + tick:
            return self._reached + tick - now
        self._advance(STEPS_PER_TICK)
        self._reached += tick
        return 0.0

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
        """Return the truth as plain numbers: what arms and things are at, and how it stands."""
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
                "lag": self.lag,
                "lost": self.lost,
                "values": {name: value.tolist() for name, value in values.items()},
            }

    def reset(self, seed: int) -> None:
        """Set the scene of a seed, as a person does; in lock-step the arms are at home then too, at once."""
        with self._lock:
            (self.world.place if self.lock_step is None else self.world.restart)(seed)
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


_BY_NAME: weakref.WeakValueDictionary[str, Simulation] = weakref.WeakValueDictionary()


def begin(name: str, **arguments: Any) -> Simulation:
    """Make a simulation that cameras of this process find by its name.

    :param name: Of the simulation
    :param arguments: Of :class:`Simulation`
    :raises ValueError: If one of this name is in use
    """
    if name in _BY_NAME and _BY_NAME[name].in_use:
        raise ValueError(f"There is a simulation {name!r} in this process already: give this one another name")
    _BY_NAME[name] = simulation = Simulation(**arguments)
    return simulation


def find(name: str) -> Simulation:
    """Return the simulation of a robot of this process.

    :raises RobotError: If there is none
    """
    if name not in _BY_NAME:
        raise RobotError(
            f"There is no simulation {name!r} in this process: a simulated camera belongs to a simulated robot, which "
            "is made with the same `simulation`"
        )
    return _BY_NAME[name]
