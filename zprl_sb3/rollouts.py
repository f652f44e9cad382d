"""Episodes of a policy that acts by itself, recorded as demonstrations are."""

from __future__ import annotations

import shutil
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from zprl_sb3.evaluation import NoSteering, evaluate, parallel_envs
from zprl_sb3.policy import SteerablePolicy
from zprl_sb3.pretrain.recording import load_episode, save_demonstrations
from zprl_sb3.robot_envs.collection import simulator_version
from zprl_sb3.wrappers import EmbeddingSteering, make_vec_steering
from zprl_sb3.wrappers.episode_recording import EpisodeRecorder

FIRST_SEED = 50_000
"""Apart from those of evaluations, which begin at 100,000."""


def record_rollouts(
    policy: SteerablePolicy, env_id: str, env_kwargs: dict[str, Any], episodes: int, path: Path
) -> None:
    """Let a policy act through its context c, and write successes and failures as a demonstration file.

    :param policy: The policy
    :param env_id: Gymnasium id
    :param env_kwargs: Further arguments of ``gymnasium.make``
    :param episodes: How many
    :param path: The file
    :raises ValueError: If the environment does not fit the policy, or tells no success
    """
    folder = path.parent / "episodes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    layer = partial(EpisodeRecorder, folder=folder, failures=True)
    steering = EmbeddingSteering(policy, 1.0)
    n_envs = parallel_envs(episodes)
    with closing(
        make_vec_steering(env_id, steering, n_envs, 1.0, env_kwargs, seeded_episodes=True, layer=layer)
    ) as env:
        success = evaluate(NoSteering(), env, FIRST_SEED, episodes).success_rate
    # Environments that had run their share went on until the last one had.
    files = [folder / f"episode_{seed}.npz" for seed in range(FIRST_SEED, FIRST_SEED + episodes)]
    collection = {"rollouts": episodes, "first_seed": FIRST_SEED, "success_rate": success}
    version = simulator_version(env_id)
    save_demonstrations(path, map(load_episode, files), env_id, env_kwargs, version, collection)
    shutil.rmtree(folder)
