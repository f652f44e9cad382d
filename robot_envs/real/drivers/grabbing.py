"""What cameras share: a thread that grabs the latest frame, and opens the camera again when it fails."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.real.robots import Frame, RobotError

FIRST = 20.0  # seconds within which there is a first frame: some cameras are slow to start
AGAIN = 1.0  # seconds until a camera that failed is opened again
TURNS = {0: 0, 90: 1, 180: 2, 270: 3}  # degrees counterclockwise, and quarters for np.rot90

logger = logging.getLogger(__name__)


class GrabbingCamera(ABC):
    """A :class:`~zprl_sb3.robot_envs.real.robots.Camera` whose frames are waited for in a thread of its own.

    After a fault (a cable, a hub that starts anew) it is opened again, every second, for as long as it takes: the
    latest frame grows older meanwhile, which is how whoever reads it notices. The reason is logged once.

    :param name: For messages
    :param rotate: Degrees counterclockwise by which images are turned: 0, 90, 180 or 270
    :raises ValueError: If it is none of these
    """

    def __init__(self, name: str, rotate: int = 0) -> None:
        if rotate not in TURNS:
            raise ValueError(f"rotate is {', '.join(map(str, TURNS))}, not {rotate!r}")
        self._name, self._turns = name, TURNS[rotate]
        self._changed = threading.Condition()
        self._latest: tuple[NDArray[np.uint8], int, float] | None = None
        self._fault = "it gives no frame"
        self._refused: Exception | None = None
        self._ended = threading.Event()  # of the thread that grabs now
        self._thread: threading.Thread | None = None

    @abstractmethod
    def _open(self) -> None:
        """Open the camera with its settings.

        :raises RobotError: If that fails; tried again
        :raises ValueError: If the camera cannot have these settings; not tried again, unless it had them before
        """

    @abstractmethod
    def _grab(self) -> NDArray[np.uint8]:
        """Wait for the next frame and return it, RGB, uint8 (H, W, 3).

        :raises RobotError: If none comes
        """

    @abstractmethod
    def _release(self) -> None:
        """Let go of the camera, whatever state it is in."""

    def connect(self) -> None:
        """Open the camera, and return when there is a first frame.

        :raises RobotError: If there is none within twenty seconds, or the camera refuses a setting
        """
        if self._thread is not None:
            return
        self._latest, self._refused, self._ended = None, None, threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._ended,), name=self._name, daemon=True)
        self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self._latest is not None or self._refused is not None, FIRST)
        if self._latest is None:
            refused, fault = self._refused, self._fault
            self.disconnect()
            if refused is not None:
                raise refused
            raise RobotError(f"The {self._name} cannot be used: {fault}")

    def read(self) -> Frame:
        """Return the latest frame; its age is that since it came from the camera, without the exposure before.

        :raises RobotError: If the camera is not connected
        """
        latest = self._latest
        if latest is None or self._thread is None:
            raise RobotError(f"The {self._name} is not connected")
        image, number, taken = latest
        return Frame(image, number, time.monotonic() - taken)

    def disconnect(self) -> None:
        self._ended.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join(2.0)  # a camera that hangs is let go of by its own thread, once it answers

    def _run(self, ended: threading.Event) -> None:
        while not ended.is_set():
            try:
                self._open()
                self._grab_until(ended)
            except RobotError as error:
                self._note(str(error))
            except Exception as error:
                if self._latest is None:
                    self._refuse(error)
                    return
                self._note(str(error))  # it had these settings: what is said while a cable comes back may pass
            finally:
                self._release()
            ended.wait(AGAIN)

    def _grab_until(self, ended: threading.Event) -> None:
        number = self._latest[1] if self._latest is not None else 0
        while not ended.is_set():
            image = np.ascontiguousarray(np.rot90(self._grab(), self._turns))
            number += 1
            with self._changed:
                self._latest, self._fault = (image, number, time.monotonic()), ""
                self._changed.notify_all()

    def _refuse(self, error: Exception) -> None:
        text = f"The {self._name} cannot be used: {error}"
        logger.error("%s", text)
        with self._changed:
            self._refused = error if isinstance(error, ImportError) else RobotError(text)
            self._changed.notify_all()

    def _note(self, fault: str) -> None:
        if fault != self._fault and self._latest is not None:
            logger.warning("The %s failed and is opened again: %s", self._name, fault)
        self._fault = fault


def check_settings(asked: dict[str, float], given: dict[str, float]) -> None:
    """Compare what a camera was asked for with what it says it does.

    :raises ValueError: Naming what it refused
    """
    wrong = [f"{key} {asked[key]:g} (it has {given[key]:g})" for key in asked if abs(asked[key] - given[key]) > 0.01]
    if wrong:
        raise ValueError(f"it refused {', '.join(wrong)}: ask for what it has, or leave it out")
