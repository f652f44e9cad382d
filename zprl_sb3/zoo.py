"""rl-zoo3's plug-in: our methods under its ``--algo``, and a policy's steered environments under its ``--env``.

rl_zoo3 imports a module ``custom_envs``, where it finds one, before it reads its arguments. In the working directory a
file of that name with two lines will do::

    from zprl_sb3 import zoo
    zoo.register("runs/push/policy")

after which rl_zoo3's own commands know the task, its settings and the algorithm::

    python -m rl_zoo3.train --algo po_dec --env zprl/Push-po_dec-v0 --conf-file zprl_sb3.zoo
    python -m rl_zoo3.enjoy --algo po_dec --env zprl/Push-po_dec-v0 --folder logs --no-render

(rl_zoo3 passes over a ``custom_envs`` that cannot import something; ``python custom_envs.py`` shows what.)

rl_zoo3 builds an environment in this order: the task, ``Monitor`` (env steps), :func:`in_chunks`, the vectorised
environment, :class:`Steered`. The last two come with the settings, and so are the same for training, evaluation and
``enjoy``, which reads them from the run's ``config.yml``.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_wrapper

from zprl_sb3.checkpoint import read_config
from zprl_sb3.learners import ALGORITHMS, OURS, RETRAINS, learner
from zprl_sb3.robot_envs import check_kwargs
from zprl_sb3.scripts.common import make_arguments, run_policy
from zprl_sb3.settings import AUTO, load_settings
from zprl_sb3.wrappers import ActionChunk, SteeringSpec, VecSteering
from zprl_sb3.wrappers.baseline_steerings import STEERINGS, training_steering
from zprl_sb3.wrappers.chunking import with_history
from zprl_sb3.wrappers.spec import Scale

try:
    from rl_zoo3.utils import ALGOS
except ImportError as error:
    raise ImportError(f"rl_zoo3 cannot be imported ({error}). Install it with: pip install 'zprl-sb3[zoo]'") from error

FILES = {algo: f"{algo}.yml" for algo in ALGORITHMS if algo not in RETRAINS} | {"sac": "tqc.yml"}
"""The settings of each ``--algo``; what leaves a checkpoint is for ``zprl train``.

SB3's SAC, which ``zprl train`` does not have, shares TQC's arguments.
"""

OF_THE_ZOO = {"eval_freq", "eval_episodes", "eval_beside", "save_freq", "subprocess"}

for _algo in FILES:
    if _algo not in ALGOS:  # SB3's and sb3-contrib's are
        ALGOS[_algo] = learner(load_settings(FILES[_algo], "")["learner"])


class Settings(dict[str, dict[str, Any]]):
    """Settings by environment id. rl_zoo3 changes what it reads, so everyone gets a copy."""

    def __getitem__(self, env_id: str) -> dict[str, Any]:
        return copy.deepcopy(super().__getitem__(env_id))


hyperparams = Settings()
"""What rl_zoo3 reads of a ``--conf-file``: settings by environment id, of all that is registered."""


def register(policy: str | Path, overrides: Sequence[str] = (), algos: Collection[str] = tuple(FILES)) -> list[str]:
    """Register a policy's task for rl_zoo3, once for each algorithm, and return the ids.

    ``zprl/Push-v0`` becomes ``zprl/Push-po_dec-v0`` and so on, with the arguments of the policy's demonstrations and,
    in :data:`hyperparams`, the settings of ``hyperparams/po_dec.yml``. How often it evaluates and saves is said to
    rl_zoo3. A policy that is registered for the same task later replaces this one.

    :param policy: Path of the checkpoint
    :param overrides: Changes of the settings, as ``zprl train --set`` takes them (``"scale=0.3"``)
    :param algos: Names that rl_zoo3's ``--algo`` takes
    :raises CheckpointError: If there is no checkpoint
    :raises KeyError: If there is no such setting
    :raises ValueError: If an algorithm or an argument of the environment is unknown, the checkpoint names no task, or a
        setting has no effect here
    """
    path = Path(policy).resolve()
    config = read_config(path)
    if config["env_id"] is None:
        raise ValueError(f"{path} does not say which environment it is for")
    if unknown := [algo for algo in algos if algo not in FILES]:
        raise ValueError(f"No algorithm {', '.join(unknown)} here; there are {', '.join(FILES)}")
    if own := sorted(OF_THE_ZOO.intersection(override.partition("=")[0] for override in overrides)):
        raise ValueError(f"{', '.join(own)}: rl_zoo3 has arguments of its own for that (`--help`)")
    # All of them before the first is registered: a mistake must leave nothing behind.
    made = [_made(path, config, overrides, algo) for algo in algos]
    for task, settings in made:
        gym.registry[task.id], hyperparams[task.id] = task, settings
    return [task.id for task, _ in made]


def _made(path: Path, config: dict[str, Any], overrides: Sequence[str], algo: str) -> tuple[EnvSpec, dict[str, Any]]:
    observation = config.get("env_kwargs", {}).get("observation")
    try:
        settings = load_settings(FILES[algo], config["env_id"], overrides, observation)
    except KeyError as error:
        raise KeyError(f"{algo}: {error.args[0]} (register only those that have it: algos=[...])") from error
    ignored = [name for name in ("demonstrations", "scale_by") if settings[name] is not None]
    if ignored := [*ignored, *(["scale=auto"] if settings["scale"] == AUTO else [])]:
        raise ValueError(f"rl_zoo3 cannot follow {', '.join(ignored)}: use `zprl train`")
    return _task(path, config["env_id"], algo, settings), _hyperparams(path, config["policy"], settings)


def steered_id(env_id: str, algo: str) -> str:
    """Return the id of a task for an algorithm: ``"zprl/Push-po_dec-v0"``."""
    return re.sub(r"(-v\d+)?$", rf"-{algo}\1", env_id.rpartition(":")[2], count=1)


def _task(path: Path, env_id: str, algo: str, settings: dict[str, Any]) -> EnvSpec:
    """Return the task under its new name, with the arguments that the policy learned with."""
    kwargs = make_arguments(path, settings["env_kwargs"] | settings["train_env_kwargs"])
    check_kwargs(env_id, kwargs)
    task = copy.deepcopy(gym.spec(env_id.rpartition(":")[2]))
    limit = kwargs.pop("max_episode_steps", task.max_episode_steps)
    return replace(task, id=steered_id(env_id, algo), max_episode_steps=limit, kwargs=task.kwargs | kwargs)


def _hyperparams(path: Path, policy: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as rl_zoo3 wants them: plain values, which it writes into the run's config.yml."""
    chunk = policy["chunk"] if settings["chunk"] is None else settings["chunk"]
    steering = settings["steering"]
    spec = SteeringSpec(steering, settings["scale"], chunk, settings["gamma"], policy="")
    chunks = {"chunk": chunk, "gamma": spec.gamma, "obs_steps": policy["obs_steps"]}
    steered = {"policy": str(path)} | {name: settings[name] for name in ("sampling_steps", "openvino")}
    steered |= {"steering": steering, "scale": spec.scale, "chunk": chunk, "gamma": spec.gamma}
    result = {
        "policy": "MultiInputPolicy",
        "n_envs": settings["n_envs"],
        "n_timesteps": settings["n_timesteps"],
        "env_wrapper": {f"{__name__}.in_chunks": chunks},
        "vec_env_wrapper": {f"{__name__}.Steered": steered},
        "callback": {f"{__name__}.TrainingMode": {"sample_latent": settings["sample_latent"]}},
    }
    # SteeringSAC reads gamma from its environment; others know no chunks: one is a step of theirs.
    others = {} if settings["learner"] in OURS else {"gamma": spec.chunk_discount}
    return {**result, **settings["algorithm"], **others}


def in_chunks(env: gym.Env[Any, Any], chunk: int, gamma: float, obs_steps: int = 1) -> ActionChunk:
    """Return a task in chunks, with the history of observations that its policy needs.

    :param env: The task
    :param chunk: h
    :param gamma: Discount per env step
    :param obs_steps: Frames of history
    """
    return ActionChunk(with_history(env, obs_steps), chunk, gamma)


class Steered(VecSteering):
    """:class:`~zprl_sb3.wrappers.VecSteering` by plain values: what is steered, and the checkpoint of the policy.

    :param venv: Environments in chunks
    :param policy: Path of the checkpoint
    :param steering: A name of :data:`~zprl_sb3.wrappers.steering.STEERINGS`
    :param scale: λ
    :param gamma: Discount per env step
    :param chunk: h, None: the checkpoint's own
    :param sampling_steps: Of the flow; None: the checkpoint's own
    :param openvino: Precision in which OpenVINO computes the policy; None: PyTorch does
    :raises CheckpointError: If the policy cannot be read
    :raises ValueError: If the policy does not fit
    """

    def __init__(
        self,
        venv: VecEnv,
        policy: str,
        steering: str,
        scale: Scale,
        gamma: float,
        chunk: int | None = None,
        sampling_steps: int | None = None,
        openvino: str | None = None,
    ) -> None:
        settings = {"chunk": chunk, "sampling_steps": sampling_steps, "openvino": openvino}
        frozen: Any = run_policy(policy, settings, "auto")
        frozen.env_id = None  # the environment's id names the method, too
        super().__init__(venv, STEERINGS[steering](frozen, scale), gamma)


class TrainingMode(BaseCallback):
    """Draw z from its posterior, and crops of images at random, where the model trains; not where it is evaluated.

    :param sample_latent: Draw z instead of using its mean
    """

    def __init__(self, sample_latent: bool) -> None:
        super().__init__()
        self.sample_latent = sample_latent

    def _on_training_start(self) -> None:
        steered = unwrap_vec_wrapper(self.training_env, VecSteering)
        assert steered is not None
        old = steered.steering
        steered.steering = training_steering(old.kind, old.policy, old.scale, self.sample_latent)

    def _on_step(self) -> bool:
        return True
