"""A leader arm with a simulated person at it, who sees the true state, more or less well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zprl_sb3.robot_envs.demonstrators import sample_operator
from zprl_sb3.robot_envs.real.robots import Arm, RobotError, Values
from zprl_sb3.robot_envs.real.simulated.arm import JOINTS
from zprl_sb3.robot_envs.real.simulated.channel import Room
from zprl_sb3.robot_envs.real.simulated.demonstrations import PLANS, Hand, Operator
from zprl_sb3.robot_envs.real.simulated.scenes import SCENES

PERFECT = {
    "better": {"share": 1, "speed": 0.25, "tremor": 0, "turn": 0, "pause": 0, "offset": 0, "miss": 0},
}


class SimulatedTeleoperator:
    """One leader per arm; what it observes is the pose that the arm should have next.

    Between episodes it is where the arm is.

    :param task: ``"orange"`` or ``"tray"``
    :param address: Of the simulation's side channel
    :param operators: Who demonstrates, a mixture as in ``hyperparams/collect.yml`` of
        :class:`~.demonstrations.Operator`; None: somebody without faults
    :param seed: Of all that the person does by chance, with the scene's
    :raises ValueError: If there is no such task, or the mixture is wrong
    """

    def __init__(
        self, task: str, address: str, operators: Mapping[str, Mapping[str, Any]] | None = None, seed: int = 0
    ) -> None:
        if task not in SCENES:
            raise ValueError(f"There is no simulated task {task!r}; there are {', '.join(SCENES)}")
        self._operators = PERFECT if operators is None else operators
        sample_operator(self._operators, np.random.default_rng(0), Operator)  # a wrong one is refused now
        self._task, self._seed, self._room = task, seed, Room(address)
        self._arms = {name: Arm("pose", JOINTS) for name in SCENES[task].arms}
        self._scene: int | None = None
        self._hands: dict[str, Hand] = {}

    @property
    def arms(self) -> Mapping[str, Arm]:
        """The leaders, named as the arms that follow them."""
        return self._arms

    def connect(self) -> None:
        """Do nothing: the simulation, which may begin only with the first episode, is asked when the person looks."""

    def get_observation(self) -> Values:
        """Return where the person holds the leaders now, as a command to the arms.

        :raises RobotError: If the simulation does not answer, or is one of another task
        """
        state = self._room.ask("state")
        if state["task"] != self._task:
            raise RobotError(f"This leader demonstrates {self._task!r}, but the simulation is {state['task']!r}")
        if state["scene"] != self._scene:
            self._begin(state)
        for hand in self._hands.values():
            hand.see(state)
        next(self._plan, None)
        values: Values = {}
        for name, hand in self._hands.items():
            values |= {f"{name}/{part}": value for part, value in hand.held().items()}
        return values

    def send_action(self, action: Values) -> None:
        """Do nothing: these leaders have no motors."""

    def hold(self) -> None:
        """Do nothing: the person does."""

    def home(self) -> None:
        """Have the person begin anew from where the arms are."""
        self._scene = None

    def disconnect(self) -> None:
        """Let go of the simulation."""
        self._room.close()

    def _begin(self, state: dict[str, Any]) -> None:
        rng = np.random.default_rng([self._seed, state["seed"]])
        operator = sample_operator(self._operators, rng, Operator)
        self._scene = state["scene"]
        self._hands = {name: Hand(name, operator, rng, state) for name in self._arms}
        self._plan = PLANS[self._task](self._hands, rng)
