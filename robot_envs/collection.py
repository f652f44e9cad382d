"""Records demonstrated episodes, in one process or several, each from its own seed; images are rendered afterwards."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

# The worker processes import this module: nothing here may import torch, which would cost each of them 150 MB.
from zprl_sb3.pretrain.demonstrations import DemonstrationError
from zprl_sb3.pretrain.recording import Episode, save_episode
from zprl_sb3.robot_envs import (
    UnstableSimulationError,
    check_kwargs,
    dapg,
    demonstrators,
    robosuite_executor,
    robosuite_experts,
)
from zprl_sb3.robot_envs.base import SimulatedEnv
from zprl_sb3.robot_envs.demonstrators import Demonstrator, Graded, sample_operator

MAX_ATTEMPTS = 100
"""Tries for one episode: with ``keep_failures: false`` more mean that the demonstrators cannot do the task."""


@dataclass(frozen=True)
class Family:
    """The demonstrators of one simulator's tasks.

    :param simulator: The package that is installed, whose version is recorded
    :param operator: Class of its operators
    :param demonstrator: Makes the demonstrator of an episode from environment, operator and source of randomness
    :param options: Settings that it takes besides
    """

    simulator: str
    operator: type[Graded]
    demonstrator: Callable[..., Demonstrator]
    options: tuple[str, ...] = ()

    def configured(self, settings: Mapping[str, Any]) -> Family:
        """Return this with the demonstrators' options as the settings have them."""
        options = {name: settings[name] for name in self.options}
        return replace(self, demonstrator=functools.partial(self.demonstrator, **options), options=())


FAMILIES: dict[str, Family] = {
    "metaworld": Family("metaworld", demonstrators.Operator, demonstrators.ScriptedDemonstrator),
    "robosuite": Family("robosuite", robosuite_executor.Operator, robosuite_experts.ScriptedDemonstrator),
    "adroit": Family("gymnasium-robotics", dapg.Operator, dapg.ExpertDemonstrator, ("expert",)),
}
"""By the module of ``zprl_sb3.robot_envs`` that the environments are in."""


_ARGUMENTS = ("max_episode_steps", "observation")  # of gymnasium.make, each a setting of its own


def family_of(env_id: str) -> Family:
    """Return the demonstrators of an environment.

    :raises ValueError: If nobody demonstrates it
    :raises gymnasium.error.Error: If there is no such environment
    """
    entry_point = str(gym.spec(env_id).entry_point)  # It raises for an unknown id, and suggests similar ones.
    package, _, module = entry_point.partition(":")[0].rpartition(".")
    if package != "zprl_sb3.robot_envs" or module not in FAMILIES:
        raise ValueError(f"There is no scripted demonstrator for {env_id}, only for tasks of {', '.join(FAMILIES)}")
    return FAMILIES[module]


def simulator_version(env_id: str) -> str:
    """Return the installed release of an environment's simulator, ``""`` where it is none of ours.

    :param env_id: Gymnasium id
    """
    try:
        return version(family_of(env_id).simulator)
    except (ValueError, gym.error.Error, PackageNotFoundError):
        return ""


def check_version(env_id: str, recorded: str) -> None:
    """Refuse demonstrations of another release of the simulator, whose physics may be another.

    :param env_id: Gymnasium id; only our own environments are checked
    :param recorded: Version that the demonstrations name, or ``""``
    :raises ValueError: If major or minor version differ from what is installed
    """
    installed = simulator_version(env_id)
    if recorded and installed and recorded.split(".")[:2] != installed.split(".")[:2]:
        simulator = family_of(env_id).simulator
        raise ValueError(
            f"The demonstrations of {env_id} were recorded with {simulator} {recorded}, installed is {installed}: "
            f'collect them again, or install what they were made with: pip install "{simulator}=={recorded}"'
        )


def env_kwargs(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``gym.make`` needs besides the id, from settings as ``hyperparams/collect.yml`` has them."""
    kwargs: dict[str, Any] = {key: settings[key] for key in _ARGUMENTS}
    if settings["observation"] == "image":
        kwargs["render_quality"] = "fast"  # Recorded, because a policy works with the pixels that it has learned from.
    return {**kwargs, **settings.get("env_kwargs", {})}


def check_settings(env_id: str, settings: Mapping[str, Any]) -> None:
    """Find what is wrong with a collection before any process is started or any file written.

    :raises ValueError: If a setting has a wrong type, an operator is incomplete or no demonstrator knows the task
    :raises ImportError: If the simulator is not installed
    :raises gymnasium.error.Error: If there is no such environment
    """
    steps, operators = settings["max_episode_steps"], settings["operators"]
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"max_episode_steps must be a positive whole number, not {steps!r}")
    if not isinstance(settings["keep_failures"], bool):
        raise ValueError(f"keep_failures must be true or false, not {settings['keep_failures']!r}")
    if given := set(_ARGUMENTS).intersection(settings.get("env_kwargs", {})):
        names = " and ".join(sorted(given))
        raise ValueError(f"{names}: a setting of its own, not one of env_kwargs; write --set {min(given)}=…")
    if not isinstance(operators, dict) or not all(isinstance(entry, dict) for entry in operators.values()):
        raise ValueError(f"operators must be a table of tables, as in hyperparams/collect.yml, not {operators!r}")
    family = family_of(env_id).configured(settings)
    rng = np.random.default_rng(0)
    for quality, entry in operators.items():
        sample_operator({quality: {**entry, "share": 1}}, rng, family.operator)
    operator = sample_operator(operators, rng, family.operator)
    kwargs = env_kwargs(settings)
    check_kwargs(env_id, kwargs)
    env = _environment(env_id, json.dumps(kwargs))
    env.reset(seed=0)  # With images it shows whether this machine can render.
    family.demonstrator(env, operator, rng)


def record_episodes(
    paths: Mapping[int, Path], env_id: str, seed: int, settings: Mapping[str, Any], jobs: int
) -> Generator[bool]:
    """Record episodes and yield the success of each when it is stored, in any order.

    :param paths: Where to store episode k, which depends on ``seed`` and k only
    :param env_id: Gymnasium id
    :param seed: Seed of the whole collection
    :param settings: As ``hyperparams/collect.yml`` has them
    :param jobs: Processes
    :raises DemonstrationError: If only successes count and none comes
    :raises ChildProcessError: If a process was killed
    """
    if jobs == 1 or len(paths) < 2:
        for k, path in paths.items():
            yield _record(k, path, env_id, seed, settings)
        return
    # Not forked: a copy of a process that has a simulator or threads is not safe to run.
    with ProcessPoolExecutor(min(jobs, len(paths)), get_context("spawn"), initializer=_start_worker) as executor:
        futures = [executor.submit(_record, k, path, env_id, seed, settings) for k, path in paths.items()]
        try:
            for future in as_completed(futures):
                yield future.result()
        except (KeyboardInterrupt, GeneratorExit):
            print("\nInterrupted: the episodes under way are finished first; Ctrl-C again drops them", file=sys.stderr)
            raise
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "A process that collects was ended from outside, probably for lack of memory: use fewer --jobs. The "
                "same command goes on"
            ) from error
        finally:
            executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches every process of the terminal: the parent decides, a worker finishes its episode.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        # A killed parent cannot tell its workers, which would wait for work for ever.
        connection.wait([parent.sentinel])
        os._exit(1)


@functools.lru_cache(maxsize=1)
def _environment(env_id: str, kwargs: str) -> gym.Env[Any, Any]:
    return gym.make(env_id, **json.loads(kwargs))


def _record(k: int, path: Path, env_id: str, seed: int, settings: Mapping[str, Any]) -> bool:
    family = family_of(env_id).configured(settings)
    # Images of all attempts and of all steps on the way would take most of the time.
    env = _environment(env_id, json.dumps(env_kwargs(settings) | {"observation": "state"}))
    for source in np.random.SeedSequence([seed, k]).spawn(MAX_ATTEMPTS):
        try:
            episode = demonstrate(env, settings["operators"], np.random.default_rng(source), family)
        except UnstableSimulationError as error:
            warnings.warn(f"Episode {k} is tried again with another layout: {error}", stacklevel=1)
            continue
        if episode.success or settings["keep_failures"]:
            save_episode(path, with_images(env, episode) if settings["observation"] == "image" else episode)
            return episode.success
    raise DemonstrationError(f"{env_id}, episode {k}: no success in {MAX_ATTEMPTS} attempts; make the operators better")


def demonstrate(
    env: gym.Env[Any, Any], operators: Mapping[str, Any], rng: np.random.Generator, family: Family
) -> Episode:
    """Let an operator drawn from the mixture act for one episode with a layout drawn from ``rng``.

    :param env: A task of the family, with a time limit
    :param operators: The mixture, see :func:`~zprl_sb3.robot_envs.demonstrators.sample_operator`
    :param rng: Source of all randomness
    :param family: Who can demonstrate it
    """
    operator = sample_operator(operators, rng, family.operator)
    seed = int(rng.integers(2**31))
    observation, info = env.reset(seed=seed)
    demonstrator = family.demonstrator(env, operator, rng)
    state_of = env.get_wrapper_attr("get_state")
    observations, states, actions, rewards = [observation], [], [], []
    over = False
    while not over:
        states.append(state_of())
        actions.append(demonstrator.act())
        observation, reward, terminated, truncated, info = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
        over = terminated or truncated
    return Episode(
        observations={key: np.stack([each[key] for each in observations[:-1]]) for key in observation},
        next_observations={key: np.stack([each[key] for each in observations[1:]]) for key in observation},
        actions=np.stack(actions),
        rewards=np.array(rewards),
        states=np.stack(states),
        seed=seed,
        quality=operator.quality,
        success=bool(info["is_success"]),
    )


def with_images(env: gym.Env[Any, Any], episode: Episode) -> Episode:
    """Return an episode with what each camera saw besides.

    Images are not repeated among the next observations, where only the last would be new.

    :param env: The environment that the episode was recorded in, not reset since
    :param episode: What was recorded
    """
    simulated = env.unwrapped
    assert isinstance(simulated, SimulatedEnv)
    frames = []
    for state in episode.states:
        simulated.set_state(state)
        frames.append(simulated.images())
    images = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    return replace(episode, observations={**episode.observations, **images})
