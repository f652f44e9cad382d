"""The person beside the robot, as the environment asks: again and again, while the robot holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import parent_process
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.real.journal import ENDINGS
from zprl_sb3.robot_envs.real.robots import Signal, Status, Stopped, Supervisor

if TYPE_CHECKING:
    from zprl_sb3.robot_envs.real.stage import Stage

SUCCESS, FAILURE, TIMEOUT, ABORTED = ENDINGS[:4]
OUTCOMES = {Signal.SUCCESS: SUCCESS, Signal.FAILURE: FAILURE, Signal.ABORT: ABORTED}
REMIND = 20.0  # seconds after which a person is told how long the robot has been waiting
RETRY = 1.0  # seconds between two tries of what does not work


class Person:
    """Asks a supervisor, and counts what becomes of episodes.

    :param supervisor: The person's side
    :param task: Name of the task, to be shown
    :param period: Seconds between two questions
    """

    def __init__(self, supervisor: Supervisor, task: str, period: float) -> None:
        self._supervisor, self._task, self._period = supervisor, task, period
        self._began: float | None = None
        self.quit = False
        """Whether no further episode is wanted."""
        self.ended = 0
        """Episodes that are over, whatever became of them."""
        self.episodes = self.successes = 0
        self.reason = ""
        """Why the latest episode was stopped, where that is known."""

    def stops(self, stop: Callable[[], None]) -> None:
        """Have a stop done at once where the supervisor can, also while the environment is busy."""
        if hasattr(self._supervisor, "on_stop"):
            self._supervisor.on_stop = stop

    def show(self, phase: str, message: str, frames: Mapping[str, NDArray[np.uint8]]) -> None:
        """Show how it stands."""
        seconds = 0.0 if self._began is None else time.monotonic() - self._began
        status = Status(self._task, phase, message, self.ended + 1, self.episodes, self.successes, seconds)
        self._supervisor.show(status, frames)

    def sets_scene(self, stage: Stage) -> bool:
        """Wait until the scene is set, and return whether it is; not if no further episode is wanted.

        :raises Stopped: If the robot was stopped meanwhile
        """
        for _ in self._waits(stage, "reset", "Set the scene, then start"):
            _refuse_stopped(stage)
            if self.quit:
                return False
            if self._supervisor.ready():
                break
        # What was pressed once more for the episode before does not end this one.
        while (signal := self._heard(stage)) is not None and signal is not Signal.STOP:
            pass
        _refuse_stopped(stage)
        self._began, self.reason = time.monotonic(), ""
        return not self.quit

    def watches(self, stage: Stage, step: Callable[[], str]) -> bool:
        """Repeat a step once a period until it has nothing left to say, and return whether it has not.

        :param step: Moves the robot a little; returns what is shown
        :return: Whether it is done; not if no further episode is wanted
        :raises Stopped: If the robot was stopped meanwhile
        """
        while message := step():
            self.show("preparing", message, stage.look())
            self._heard(stage)
            _refuse_stopped(stage)
            _refuse_orphan()
            if self.quit:
                return False
            time.sleep(self._period)
        return True

    def refuse_stop(self, stage: Stage) -> None:
        """Obey a stop that was said and not asked for yet.

        :raises Stopped: If the robot is stopped
        """
        self._heard(stage)
        _refuse_stopped(stage)

    def clears(self, stage: Stage) -> bool:
        """Wait until a stop is cleared, and return whether it is; not if no further episode is wanted."""
        message = f"{stage.stopped}. The robot stays where it is until it is cleared"
        for _ in self._waits(stage, "stopped", message):
            if self._supervisor.cleared():
                return True
            if self.quit:
                return False
        raise AssertionError("unreachable")

    def told(self, stage: Stage, message: str) -> None:
        """Show what is wrong for a while."""
        end = time.monotonic() + RETRY
        for _ in self._waits(stage, "preparing", message):
            if self.quit or time.monotonic() > end:
                return

    def listen(self, stage: Stage) -> str | None:
        """Return how the episode ended, if the person has said so; waits while it is paused."""
        self.show("running", "", stage.frames)
        signal = self._heard(stage)
        if stage.stopped is not None:
            return self._stopped(stage)
        return self._pause(stage) if signal is Signal.PAUSE else OUTCOMES.get(signal) if signal else None

    def judge(self, stage: Stage) -> str:
        """Hold, and return what the person says of an episode that ran out of time."""
        stage.hold()
        for signal in self._waits(stage, "judging", "Time is over: was it a success?"):
            if stage.stopped is not None:
                return self._stopped(stage)
            if signal in (Signal.SUCCESS, Signal.ABORT):
                return OUTCOMES[signal]
            verdict = False if signal is Signal.FAILURE else self._supervisor.verdict()
            if verdict is not None:
                return SUCCESS if verdict else TIMEOUT
        raise AssertionError("unreachable")

    def note(self, ending: str) -> None:
        """Count an episode that is over."""
        self._began = None
        self.ended += 1
        self.episodes += ending in (SUCCESS, FAILURE, TIMEOUT)
        self.successes += ending == SUCCESS

    def close(self) -> None:
        """Let go of the supervisor."""
        self._supervisor.close()

    def _pause(self, stage: Stage) -> str | None:
        stage.hold()
        for signal in self._waits(stage, "paused", "Paused: the robot holds"):
            if stage.stopped is not None:
                return self._stopped(stage)
            if signal is Signal.RESUME:
                return None
            if signal in OUTCOMES:
                return OUTCOMES[signal]
        raise AssertionError("unreachable")

    def _stopped(self, stage: Stage) -> str:
        self.reason = stage.stopped or ""
        return ABORTED

    def _heard(self, stage: Stage) -> Signal | None:
        signal = self._supervisor.poll()
        if signal is Signal.STOP:
            stage.stop()
        self.quit = self.quit or signal is Signal.QUIT
        return signal

    def _waits(self, stage: Stage, phase: str, message: str) -> Iterator[Signal | None]:
        """Return what is said, once a period, for ever; shows what is waited for, and after a while for how long."""
        began = time.monotonic()
        while True:
            waited = time.monotonic() - began
            self.show(phase, f"{message} (waiting for {waited:.0f} s)" if waited > REMIND else message, stage.look())
            yield self._heard(stage)
            _refuse_orphan()
            time.sleep(self._period)


def _refuse_stopped(stage: Stage) -> None:
    if stage.stopped is not None:
        raise Stopped(stage.stopped)


def _refuse_orphan() -> None:
    parent = parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit("The program that this robot was used by has ended")
