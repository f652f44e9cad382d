"""What all demonstrators are, and Meta-World's: its scripted policies, made as imperfect as people."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs import import_simulator
from zprl_sb3.robot_envs.metaworld import MetaWorldEnv

BURST_STEPS = 20
PAUSE_STEPS = 10
# Where Meta-World's observation holds the first object's position, now and one step ago, and the goal's.
OBJECT = (slice(4, 7), slice(22, 25))
GOAL = slice(36, 39)


class Demonstrator(Protocol):
    """Acts through one episode; made for an environment that has just been reset, with an operator's faults."""

    def act(self) -> NDArray[np.float32]:
        """Return the next action for the environment's present state."""


@dataclass(frozen=True)
class Graded:
    """Who demonstrates an episode; each simulator adds its own parameters, all of them numbers.

    :param quality: ``"better"``, ``"okay"`` or ``"worse"``
    """

    quality: str


GradedT = TypeVar("GradedT", bound=Graded)


def sample_operator(
    operators: Mapping[str, Mapping[str, Any]], rng: np.random.Generator, kind: type[GradedT]
) -> GradedT:
    """Draw an operator from a mixture as ``hyperparams/collect.yml`` describes it.

    :param operators: For each quality its ``share`` of the mixture and, for each parameter of ``kind``, a number or a
        range ``[low, high]`` to draw from uniformly
    :param rng: Source of all randomness
    :param kind: The operator's class
    :raises ValueError: If a parameter is missing, unknown, or neither a number nor a range, or if no share is positive
    """
    shares = np.array([_draw(quality, "share", entry, rng) for quality, entry in operators.items()])
    if (shares < 0).any() or shares.sum() <= 0:
        raise ValueError(f"The operators' shares must not be negative, and one must be positive: {shares.tolist()}")
    quality = str(rng.choice(list(operators), p=shares / shares.sum()))
    names = [field.name for field in fields(kind) if field.name != "quality"]
    unknown = set(operators[quality]) - {*names, "share"}
    if unknown:
        raise ValueError(f"Operator {quality!r} has no {min(unknown)!r}; it has share, {', '.join(names)}")
    return kind(quality, **{name: _draw(quality, name, operators[quality], rng) for name in names})


@dataclass(frozen=True)
class Operator(Graded):
    """Who demonstrates a task of Meta-World; actions are in [−1, 1], probabilities per environment step.

    :param quality: ``"better"``, ``"okay"`` or ``"worse"``
    :param noise: Standard deviation of Gaussian noise on every action
    :param gain: Factor on the movement
    :param random: Probability that an action is a uniformly random one
    :param pause: Probability that a pause of 10 steps begins
    :param burst: Probability that 20 random actions begin
    :param bias: Standard deviation, over episodes, of a constant added to the movement
    :param object_offset: Standard deviation, over episodes and along each axis, of the error in metres with which the
        object's position is seen; constant within an episode
    :param goal_offset: The same for the goal's position
    """

    noise: float
    gain: float
    random: float
    pause: float
    burst: float
    bias: float
    object_offset: float
    goal_offset: float


def _draw(quality: str, name: str, entry: Mapping[str, Any], rng: np.random.Generator) -> float:
    try:
        low, high = np.broadcast_to(np.asarray(entry[name], dtype=float), (2,))
        if not low <= high:
            raise ValueError("the range is upside down or not a number")
        return float(rng.uniform(low, high))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"Operator {quality!r} needs {name!r} as a number or a range [low, high], not {entry.get(name)!r}"
        ) from error


class ScriptedDemonstrator:
    """Meta-World's scripted policy with an operator's faults, for one episode.

    :param env: The environment to act in, wrapped or not
    :param operator: How well it acts
    :param rng: Source of all randomness of this episode
    :raises ValueError: If the environment is not one of Meta-World's
    """

    def __init__(self, env: gym.Env[Any, Any], operator: Operator, rng: np.random.Generator) -> None:
        if not isinstance(env.unwrapped, MetaWorldEnv):
            raise ValueError(f"There is a scripted demonstrator for Meta-World's tasks only, not for {env}")
        self.operator = operator
        self._env = env.unwrapped
        self._policy = import_simulator("metaworld.policies").ENV_POLICY_MAP[self._env.task]()
        self._rng = rng
        self._object_offset = rng.normal(0.0, 1.0, 3) * operator.object_offset
        self._goal_offset = rng.normal(0.0, 1.0, 3) * operator.goal_offset
        self._bias = np.append(rng.normal(0.0, 1.0, 3) * operator.bias, 0.0)
        self._gain = np.array([operator.gain] * 3 + [1.0])
        self._pause_left = 0
        self._burst_left = 0

    def act(self) -> NDArray[np.float32]:
        """Return the next action (4,) in [−1, 1] for the environment's present state."""
        intended = self._intended()
        self._pause_left = self._continue(self._pause_left, self.operator.pause, PAUSE_STEPS)
        self._burst_left = self._continue(self._burst_left, self.operator.burst, BURST_STEPS)
        if self._burst_left or self._rng.random() < self.operator.random:
            return self._rng.uniform(-1.0, 1.0, 4).astype(np.float32)
        if self._pause_left:
            return np.array([0.0, 0.0, 0.0, intended[3]], np.float32)
        noise = self._rng.normal(0.0, 1.0, 4) * self.operator.noise
        action: NDArray[np.float64] = np.clip(self._gain * intended + self._bias + noise, -1.0, 1.0)
        return action.astype(np.float32)

    def _intended(self) -> NDArray[np.float64]:
        seen = self._env.raw_observation
        for where in OBJECT:
            seen[where] += self._object_offset
        seen[GOAL] += self._goal_offset
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Its own policies ask for more than the environment's full speed.
            action: NDArray[np.float64] = np.clip(self._policy.get_action(seen), -1.0, 1.0, dtype=np.float64)
        return action

    def _continue(self, left: int, probability: float, steps: int) -> int:
        if left:
            return left - 1
        return steps if self._rng.random() < probability else 0
