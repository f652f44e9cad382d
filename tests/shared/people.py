"""A supervisor that a test tells what to say."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.real.robots import Signal, Status


class ScriptedPerson:
    """Sets every scene at once, says what it is told to in given steps, and remembers what it was shown.

    :param script: For each episode what is said in which env step, from 1; without an entry nothing is
    :param verdicts: Of episodes that run out of time, the last one for all others; None: it is not said
    """

    def __init__(self, script: Iterable[Mapping[int, Signal]] = (), verdicts: Iterable[bool | None] = (False,)) -> None:
        self._script = deque(script)
        self._verdicts = deque(verdicts)
        self._now: Mapping[int, Signal] = {}
        self._steps = 0
        self.shown: list[Status] = []
        self.frames: list[dict[str, NDArray[np.uint8]]] = []
        self.patience = 0
        """How often the scene is not ready yet, or a stop not cleared yet, when asked for."""
        self.said: deque[Signal] = deque()
        """Signals to be said at the next opportunity, whatever is going on."""
        self.on_stop: Callable[[], None] | None = None
        self.closed = False
        self.scenes: int | None = None
        """How many are still set; None: all that are asked for."""

    def ready(self) -> bool:
        if self.scenes == 0 or not self._patient("start"):
            return False
        self.scenes = None if self.scenes is None else self.scenes - 1
        self._now = self._script.popleft() if self._script else {}
        self._steps = 0
        return True

    def poll(self) -> Signal | None:
        if self.said:
            return self.said.popleft()
        if self._phase == "running":
            self._steps += 1
            return self._now.get(self._steps)
        return None

    def verdict(self) -> bool | None:
        return self._verdicts.popleft() if len(self._verdicts) > 1 else self._verdicts[0]

    def cleared(self) -> bool:
        return self._patient("clear")

    def show(self, status: Status, frames: Mapping[str, NDArray[np.uint8]]) -> None:
        self.shown.append(status)
        self.frames.append(dict(frames))

    def close(self) -> None:
        self.closed = True

    def phases(self) -> list[str]:
        """Return the phases in which something was shown, each change once."""
        names = [status.phase for status in self.shown]
        return [name for k, name in enumerate(names) if k == 0 or names[k - 1] != name]

    @property
    def _phase(self) -> str:
        return self.shown[-1].phase if self.shown else ""

    def _patient(self, for_what: str) -> bool:
        asked = "start" in self.shown[-1].message if for_what == "start" else True
        if not asked:
            return False
        self.patience -= 1
        return self.patience < 0
