"""Cameras of a simulation, each with a thread that draws at its own pace."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs import import_simulator
from zprl_sb3.robot_envs.real.robots import Frame, RobotError
from zprl_sb3.robot_envs.real.simulated.registry import find
from zprl_sb3.robot_envs.real.simulated.simulation import Simulation
from zprl_sb3.robot_envs.rendering import Cameras, check_quality

PATIENCE = 30.0
"""Seconds that a renderer may take to start, or for a frame in lock-step."""
SPARE = 8191
"""Noise begins anywhere among so many values more than a frame has, so that two frames are never the same."""


class _Shot(NamedTuple):
    due: float
    taken: float
    number: int
    image: NDArray[np.uint8]


class SimulatedCamera:
    """What a camera of the model sees, with a sensor's noise.

    In lock-step it draws when it is asked, and a frame is as old as the simulation says.

    :param simulation: Name of the simulation, whose robot is connected before
    :param view: Camera of the model: ``"front"``, or ``"<arm>/wrist"``
    :param size: Height and width in pixels
    :param rate: Frames per second of the simulation
    :param noise: Standard deviation of a sensor's noise, of 255
    :param quality: ``"fast"`` or ``"full"``, see :data:`~zprl_sb3.robot_envs.rendering.QUALITIES`
    :raises ValueError: If an argument is wrong
    """

    def __init__(
        self,
        simulation: str,
        view: str = "front",
        size: tuple[int, int] = (110, 280),
        rate: float = 30.0,
        noise: float = 3.0,
        quality: str = "fast",
    ) -> None:
        check_quality(quality)
        if len(size) != 2 or min(size) < 1 or rate <= 0.0:
            raise ValueError(f"A camera has a size of two positive numbers and a positive rate, not {size} and {rate}")
        self._name, self._view, self._size, self._rate, self._quality = simulation, view, tuple(size), rate, quality
        pixels = 3 * self._size[0] * self._size[1]
        self._noise = np.random.default_rng(0).normal(0.0, noise, pixels + SPARE).round().astype(np.int16)
        self._simulation: Simulation | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._shots: deque[_Shot] = deque()
        self._number = self._wanted = self._drawn = 0
        self._error: Exception | None = None

    def connect(self) -> None:
        """Start to draw, and wait for the first frame.

        :raises RobotError: If there is no such simulation or no frame
        """
        if self._simulation is not None:
            return
        simulation = find(self._name)
        simulation.acquire()
        self._simulation, self._error = simulation, None
        self._thread = threading.Thread(target=self._run, args=(simulation,), daemon=True)
        self._thread.start()
        try:
            self._wait_for_frame()
        except RobotError:
            self.disconnect()
            raise

    def read(self) -> Frame:
        """Return the latest frame that has come.

        :raises RobotError: If it is not connected, or drawing has failed
        """
        simulation = self._simulation
        if simulation is None:
            raise RobotError(f"The simulated camera {self._view!r} is not connected")
        if simulation.lock_step is not None or self._error is not None:
            self._wait_for_frame()
        with self._changed:
            now = simulation.clock()
            self._forget(now)
            shot = self._shots[0]
        return Frame(shot.image, shot.number, now - shot.taken)

    def disconnect(self) -> None:
        """Stop to draw."""
        simulation, self._simulation = self._simulation, None
        if simulation is None or self._thread is None:
            return
        with self._changed:
            self._changed.notify_all()
        self._thread.join()
        self._shots.clear()
        simulation.release()

    def _forget(self, now: float) -> None:
        while len(self._shots) > 1 and self._shots[1].due <= now:
            self._shots.popleft()

    def _wait_for_frame(self) -> None:
        with self._changed:
            self._wanted = wanted = self._drawn + 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._drawn >= wanted or self._error is not None, PATIENCE)
            if self._error is not None or self._drawn < wanted:
                error = self._error or f"no frame in {PATIENCE:.0f} s"
                raise RobotError(f"The simulated camera {self._view!r} sees nothing: {error}") from self._error

    # In the thread, to which the renderer belongs

    def _run(self, simulation: Simulation) -> None:
        model = copy.copy(simulation.world.model)  # Making a renderer writes the size of its pictures into it.
        cameras = Cameras(model, self._quality)
        try:
            cameras.check([self._view])
            data = import_simulator("mujoco").MjData(model)
            last = (0, 0)
            while self._is_time(simulation):
                last = self._draw(simulation, cameras, data, last)
        except Exception as error:  # Whatever it is, who reads must know.
            with self._changed:
                self._error = error
                self._changed.notify_all()
        finally:
            cameras.close()

    def _is_time(self, simulation: Simulation) -> bool:
        period = 1.0 / (self._rate * simulation.speedup)
        with self._changed:
            pause = None if simulation.lock_step is not None else period - time.monotonic() % period
            self._changed.wait_for(lambda: self._wanted > self._drawn or self._simulation is None, pause)
        return self._simulation is not None

    def _draw(self, simulation: Simulation, cameras: Cameras, data: Any, last: tuple[int, int]) -> tuple[int, int]:
        faults, taken = simulation.faults, simulation.clock()
        moment = simulation.snapshot(data)
        image = None
        if not self._shots or not (faults.freeze or moment == last):
            if faults.stuck and self._shots:
                image = self._shots[-1].image
            else:
                image = self._noisy(cameras.frame(data, self._view, *self._size), moment)
        with self._changed:
            if image is not None:
                self._number += 1
                late = faults.late / (1.0 if simulation.lock_step is not None else simulation.speedup)
                self._shots.append(_Shot(taken + late, taken, self._number, image))
                self._forget(taken)
            self._drawn += 1
            self._changed.notify_all()
        return moment

    def _noisy(self, image: NDArray[np.uint8], moment: tuple[int, int]) -> NDArray[np.uint8]:
        start = moment[1] * 7919 % SPARE
        noise = self._noise[start : start + image.size].reshape(image.shape)
        noisy: NDArray[np.uint8] = np.clip(image + noise, 0, 255).astype(np.uint8)
        noisy.setflags(write=False)
        return noisy
