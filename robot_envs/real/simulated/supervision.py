"""The person beside a simulated robot: sets scenes, sees what is true, and has a human's reaction time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.real.robots import RobotError, Signal, Status
from zprl_sb3.robot_envs.real.simulated.channel import Room

PATIENCE = 0.2
"""Seconds that a question to the simulation may take; longer only where something is wrong with it."""
SPEAKS = ("running", "paused", "judging")
"""Phases in which something can be said of an episode."""
RETRY = 1.0
"""Seconds until a simulation that did not answer is asked again."""


@dataclass(frozen=True)
class Deed:
    """Something that the person does unasked.

    :param episode: In which
    :param after: So many seconds of the simulation after it began to run
    :param say: A :class:`~zprl_sb3.robot_envs.real.robots.Signal`, by its value, or ``"silent"``
    :param seconds: How long it is silent; after ``"pause"`` or ``"stop"``, until the robot may go on
    """

    episode: int
    after: float
    say: str
    seconds: float = 2.0


class SimulatedSupervisor:
    """Judges by the true state, which it asks the simulation's side channel for.

    Times are seconds of the simulation. In lock-step, where time stands still while nobody moves the robot, what it
    does between episodes takes none.

    :param address: Of the side channel, ``tcp://127.0.0.1:5570``
    :param seed: Scene of episode n is that of ``seed + n``
    :param reaction: Seconds that success or failure must last before it is said
    :param reset_time: Seconds that it takes to set a scene
    :param script: What it does unasked, see :class:`Deed`
    :raises ValueError: If the script says what nobody can
    """

    def __init__(
        self,
        address: str,
        seed: int = 0,
        reaction: float = 0.4,
        reset_time: float = 1.0,
        script: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._room = Room(address, PATIENCE)
        self._seed, self._reaction, self._reset_time = seed, reaction, reset_time
        self._deeds = [Deed(**deed) for deed in script]
        known = {signal.value for signal in Signal} | {"silent"}
        if unknown := {deed.say for deed in self._deeds} - known:
            raise ValueError(f"A supervisor cannot say {min(unknown)!r}; it says {', '.join(sorted(known))}")
        self._phase, self._episode = "", 0
        self._to_set, self._set_at = True, 0.0
        self._began: float | None = None
        self._since: tuple[Signal, float] | None = None
        self._said: set[Signal] = set()
        self._silent_until = self._go_on_at = self._ask_again = 0.0

    def ready(self) -> bool:
        """Set the scene of this episode, once, and say whether that is done."""
        if self._to_set and (self._ask("reset", seed=self._seed + self._episode) is None):
            return False
        state = self._look()
        if state is None:
            return False
        if self._to_set:
            self._to_set, self._set_at = False, state["time"]
        return self._is_past(state, self._set_at + self._reset_time)

    def poll(self) -> Signal | None:
        """Say what the script has now, or else, once, what has been true for as long as it takes to react."""
        state = self._look() if self._phase in SPEAKS else None
        if state is None:
            return None
        if self._began is None:
            self._began = state["time"]
        for deed in self._deeds:
            if deed.episode == self._episode and state["time"] >= self._began + deed.after:
                self._deeds.remove(deed)
                return self._do(deed, state["time"])
        if self._phase == "paused":
            return Signal.RESUME if self._is_past(state, self._go_on_at) else None
        return self._once(self._react(state))

    def verdict(self) -> bool | None:
        """Say whether the task is done now."""
        state = self._look()
        return None if state is None else bool(state["success"])

    def cleared(self) -> bool:
        """Say whether the robot may move again, which is some seconds after it was stopped."""
        state = self._look()
        return state is not None and self._is_past(state, self._go_on_at)

    def show(self, status: Status, frames: Mapping[str, NDArray[np.uint8]]) -> None:
        """Learn which episode it is and what is waited for."""
        if status.phase != self._phase or status.episode != self._episode:
            if status.phase == "reset":
                self._to_set, self._began, self._since, self._said = True, None, None, set()
            self._phase, self._episode = status.phase, status.episode

    def close(self) -> None:
        """Leave the room."""
        self._room.close()

    def _react(self, state: dict[str, Any]) -> Signal | None:
        seen = Signal.SUCCESS if state["success"] else Signal.FAILURE if state["failure"] else None
        if seen is None:
            self._since = None
        elif self._since is None or self._since[0] is not seen:
            self._since = seen, state["time"]
        if self._since is None or state["time"] < self._since[1] + self._reaction:
            return None
        return self._since[0]

    def _do(self, deed: Deed, now: float) -> Signal | None:
        if deed.say == "silent":
            self._silent_until = now + deed.seconds
            return None
        self._go_on_at = now + deed.seconds
        return Signal(deed.say)

    def _once(self, signal: Signal | None) -> Signal | None:
        if signal is None or signal in self._said:
            return None
        self._said.add(signal)
        return signal

    def _is_past(self, state: dict[str, Any], moment: float) -> bool:
        # In lock-step time stands still while nobody moves the robot: nothing would ever be past.
        return bool(state["time"] >= moment or (state["lock_step"] and self._phase != "running"))

    def _look(self) -> dict[str, Any] | None:
        """Return how it stands; None while it is silent or nobody answers."""
        state = self._ask("state")
        return state if state is not None and self._is_past(state, self._silent_until) else None

    def _ask(self, do: str, **arguments: Any) -> dict[str, Any] | None:
        # Never waits long: who calls controls a robot.
        if time.monotonic() < self._ask_again:
            return None
        try:
            return self._room.ask(do, **arguments)
        except RobotError:
            self._ask_again = time.monotonic() + RETRY
            return None
