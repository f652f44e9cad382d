"""Robot environments under ``zprl/…``: importing this registers them, a simulator is loaded by ``gym.make`` only."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

# Not "import gymnasium": as a plugin this module is loaded while gymnasium itself is still being imported.
from gymnasium.envs.registration import load_env_creator, register, registry

METAWORLD_TASKS: tuple[str, ...] = (
    "assembly-v3",
    "basketball-v3",
    "bin-picking-v3",
    "box-close-v3",
    "button-press-topdown-v3",
    "button-press-topdown-wall-v3",
    "button-press-v3",
    "button-press-wall-v3",
    "coffee-button-v3",
    "coffee-pull-v3",
    "coffee-push-v3",
    "dial-turn-v3",
    "disassemble-v3",
    "door-close-v3",
    "door-lock-v3",
    "door-open-v3",
    "door-unlock-v3",
    "drawer-close-v3",
    "drawer-open-v3",
    "faucet-close-v3",
    "faucet-open-v3",
    "hammer-v3",
    "hand-insert-v3",
    "handle-press-side-v3",
    "handle-press-v3",
    "handle-pull-side-v3",
    "handle-pull-v3",
    "lever-pull-v3",
    "peg-insert-side-v3",
    "peg-unplug-side-v3",
    "pick-out-of-hole-v3",
    "pick-place-v3",
    "pick-place-wall-v3",
    "plate-slide-back-side-v3",
    "plate-slide-back-v3",
    "plate-slide-side-v3",
    "plate-slide-v3",
    "push-back-v3",
    "push-v3",
    "push-wall-v3",
    "reach-v3",
    "reach-wall-v3",
    "shelf-place-v3",
    "soccer-v3",
    "stick-pull-v3",
    "stick-push-v3",
    "sweep-into-v3",
    "sweep-v3",
    "window-close-v3",
    "window-open-v3",
)
"""Meta-World's own names, written down so that registering them does not import the simulator."""

MAX_EPISODE_STEPS = 200
"""Limit at registration, in environment steps; ``gym.make(..., max_episode_steps=…)`` changes it."""

ROBOSUITE_TASKS: dict[str, int] = {"lift": 200, "can": 400, "square": 400, "transport": 700}
"""Tasks of robosuite and their limits at registration, in environment steps."""

ADROIT_TASKS: dict[str, int] = {"door": 100, "hammer": 100, "pen": 75, "relocate": 100}
"""Tasks of the Adroit hand and their limits at registration, in environment steps of two simulator steps each."""


REAL_ROBOT = "zprl/RealRobot-v0"
"""The environment of a real robot, of which there is only one; its argument ``task`` says what it does."""

OF_ANY = ("max_episode_steps", "disable_env_checker")
"""What ``gym.make`` takes for any environment."""


class UnstableSimulationError(FloatingPointError):
    """The physics diverged, so that whatever came after it would not be the task any more."""


def env_id(task: str) -> str:
    """Return the Gymnasium id of a Meta-World task: ``"pick-place-v3"`` is ``"zprl/PickPlace-v0"``."""
    words = task.removesuffix("-v3").split("-")
    return f"zprl/{''.join(word.capitalize() for word in words)}-v0"


def robosuite_id(task: str) -> str:
    """Return the Gymnasium id of a robosuite task: ``"can"`` is ``"zprl/Can-v0"``."""
    return f"zprl/{task.capitalize()}-v0"


def adroit_id(task: str) -> str:
    """Return the Gymnasium id of a task of the Adroit hand: ``"door"`` is ``"zprl/AdroitDoor-v0"``."""
    return f"zprl/Adroit{task.capitalize()}-v0"


def register_envs() -> None:
    """Register all environments of this package; calling it again changes nothing."""
    for entry_point, name, limits in (
        ("metaworld:MetaWorldEnv", env_id, dict.fromkeys(METAWORLD_TASKS, MAX_EPISODE_STEPS)),
        ("robosuite:RobosuiteEnv", robosuite_id, ROBOSUITE_TASKS),
        ("adroit:AdroitEnv", adroit_id, ADROIT_TASKS),
    ):
        for task, limit in limits.items():
            if name(task) not in registry:
                register(
                    id=name(task),
                    entry_point=f"zprl_sb3.robot_envs.{entry_point}",
                    max_episode_steps=limit,
                    kwargs={"task": task},
                )
    if REAL_ROBOT not in registry:
        # Its time limit is its own: a person is asked for a verdict before the last step returns.
        register(id=REAL_ROBOT, entry_point="zprl_sb3.robot_envs.real.env:RealRobotEnv", nondeterministic=True)


def is_real(env_id: str | None) -> bool:
    """Tell whether an environment's id is the real robot's, of which there is no second one to evaluate in."""
    return env_id is not None and env_id.rpartition(":")[2] == REAL_ROBOT


def check_kwargs(env_id: str, kwargs: Mapping[str, Any]) -> None:
    """Find an argument that an environment does not take, before ``gym.make(env_id, **kwargs)`` raises a TypeError.

    :param env_id: Gymnasium id of any environment; an unknown one is left for ``gym.make`` to explain
    :param kwargs: Arguments of ``gym.make``
    :raises ValueError: Naming the argument and those that the environment takes
    :raises ImportError: If a module that the id names, or the environment's own, cannot be imported
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    known = _keywords(name)
    if known is None:
        return
    unknown = [repr(key) for key in kwargs if key not in known]
    if unknown:
        raise ValueError(f"{name} has no argument {', '.join(unknown)}; it has {', '.join(known)}")


def _keywords(env_id: str) -> list[str] | None:
    """Return the names of an environment's arguments, or None if it takes any or nothing is known of it."""
    spec = registry.get(env_id)
    if spec is None or spec.entry_point is None:
        return None
    creator = spec.entry_point if callable(spec.entry_point) else load_env_creator(spec.entry_point)
    parameters = inspect.signature(creator).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [*(parameter.name for parameter in parameters), *OF_ANY]


def import_simulator(name: str) -> ModuleType:
    """Import a simulator, or what belongs to one, that only the extra ``sim`` installs.

    :raises ImportError: If it cannot be imported; says how to install it
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'{name} cannot be imported ({error}). Install it with: pip install "zprl-sb3[sim]"'
        ) from error


register_envs()
