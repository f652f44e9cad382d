"""Env steps per second of whole training, updates after the rollouts or beside them, against what would be ideal.

Three tasks with the settings of ``hyperparams/zprl.yml`` and small networks with random weights, two environments in
processes of their own; can with one, too, which leaves one of two cores to the updates. Ways that take turns in blocks:

- simulator: the environments alone, with random chunks near the pose in which they start
- sequential: training, each burst of updates after its rollout
- overlapped: training, the updates while the environments step (``overlap: true``)

The ideal is the slower of simulator alone and updates alone, as if neither ever waited for the other, on as many cores
as both want. Where there are fewer, all of them at work all the time is the limit: ``loop_of_cores``. Rates are medians
over the blocks, in env steps of all environments per second of the clock.

``--openvino float32`` lets OpenVINO compute the frozen policy, which takes its share of both ways.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from scipy.spatial.transform import Rotation
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

import zprl_sb3  # noqa: F401  # registers the environments
from zprl_sb3.openvino import PRECISIONS, with_openvino
from zprl_sb3.policy import FlowPolicy, SteerablePolicy
from zprl_sb3.pretrain.configuration import by_task, compose
from zprl_sb3.robot_envs.rotations import rotation_6d
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.scripts.pretrain import build_policy
from zprl_sb3.settings import load_settings
from zprl_sb3.wrappers import LatentSteering, VecSteering, make_vec_steering

CASES = (
    ("can", "zprl/Can-v0", "state", 2),
    ("can_one_env", "zprl/Can-v0", "state", 1),
    ("box_close", "zprl/BoxClose-v0", "state", 2),
    ("door", "zprl/AdroitDoor-v0", "image", 2),
)
CHUNK = 4
CALM = 0.05  # how far random actions reach, as a share of an untrained policy's
BURST = 20  # chunks of each environment between two bursts of updates


def make_policy(env_id: str, observation: str) -> FlowPolicy:
    """Return an untrained policy of the small size, whose actions stay near the pose in which the robot starts."""
    env = gym.make(env_id, observation=observation)
    first, _ = env.reset(seed=0)
    shapes = {key: space.shape for key, space in env.observation_space.spaces.items()}  # type: ignore[attr-defined]
    th.manual_seed(0)
    model = f"model={'state' if observation == 'state' else 'small_image'}"
    sizes = compose(overrides=["demos=x", "output=x", model, f"model.chunk={CHUNK}"])["model"]
    policy = build_policy(shapes, env.action_space.shape[0], by_task(sizes, env_id))  # type: ignore[index]
    policy.action_normalizer.half_range.fill_(CALM)
    policy.action_normalizer.center.copy_(th.as_tensor(still(env, first)))
    env.close()
    return policy.freeze()


def still(env: gym.Env[Any, Any], first: dict[str, Any]) -> Any:
    """Return the action that keeps a robot where it is: robosuite's are poses, all others start at zero."""
    (size,) = env.action_space.shape or (0,)
    if size != 10:
        return np.zeros(size, np.float32)
    pose = first["proprio"]
    return np.array([*pose[:3], *rotation_6d(Rotation.from_quat(pose[3:7]).as_matrix()), -1], np.float32)


class Clock(BaseCallback):
    """Notes the time and the env steps at which rollouts start."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: list[tuple[float, int]] = []

    def _on_rollout_start(self) -> None:
        self.marks.append((time.perf_counter(), self.model.env_steps))  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True


class Way:
    """One way to spend a block of time.

    :param policy: The steered policy
    :param env_id: Gymnasium id
    :param observation: ``"state"`` or ``"image"``
    :param n_envs: Environments
    :param overlap: Updates beside the rollouts
    """

    def __init__(self, policy: SteerablePolicy, env_id: str, observation: str, n_envs: int, overlap: bool) -> None:
        settings = load_settings("zprl.yml", env_id, (), observation)
        steering = LatentSteering(policy, settings["scale"], settings["sample_latent"], random_crop=True)
        self.env = make(env_id, observation, n_envs, steering)
        self.chunks = BURST * n_envs  # between two bursts of updates
        self.updates = self.chunks * settings["algorithm"]["utd"]
        algorithm = settings["algorithm"] | {
            "buffer_size": 100_000,
            "learning_starts": 0,
            "train_freq": BURST,
            "overlap": overlap,
        }
        self.model = SteeringSAC("MultiInputPolicy", self.env, seed=0, device="cpu", **algorithm)
        self.model.set_logger(Logger(None, []))

    def train(self, bursts: int) -> float:
        """Train, and return env steps per second between the second and the last start of a rollout.

        The first rollout has no updates to overlap with, and nothing overlaps with the last updates.
        """
        clock = Clock()
        self.model.learn((bursts + 2) * self.chunks, clock, reset_num_timesteps=False)
        (start, before), (end, after) = clock.marks[1], clock.marks[-1]
        return (after - before) / (end - start)

    def update(self, bursts: int) -> float:
        """Make the updates of as many bursts and nothing else, and return the env steps per second that this allows."""
        start = time.perf_counter()
        self.model._update(bursts * self.updates, self.model.batch_size)
        return bursts * self.chunks * CHUNK / (time.perf_counter() - start)


def make(env_id: str, observation: str, n_envs: int, steering: LatentSteering) -> VecSteering:
    """Return environments in processes of their own."""
    return make_vec_steering(env_id, steering, n_envs, 0.99, {"observation": observation}, subprocess=True)


def simulate(env: VecSteering, bursts: int) -> float:
    """Step the environments below the steering with calm random chunks, and return env steps per second."""
    env.venv.reset()
    policy, rng = env.steering.policy, np.random.default_rng(0)
    center = policy.action_normalizer.center.numpy()  # type: ignore[attr-defined]
    shape = (env.num_envs, CHUNK, len(center))
    steps, start = 0, time.perf_counter()
    for _ in range(bursts * BURST):
        chunks = (center + CALM * rng.standard_normal(shape)).astype(np.float32)
        steps += sum(info["env_steps"] for info in env.venv.step(chunks)[-1])
    return steps / (time.perf_counter() - start)


def report(
    name: str, env_id: str, observation: str, n_envs: int, blocks: int, bursts: int, precision: str | None = None
) -> list[str]:
    """Return the lines of one task."""
    policy: SteerablePolicy = make_policy(env_id, observation)
    policy = policy if precision is None else with_openvino(policy, precision)
    ways = {overlap: Way(policy, env_id, observation, n_envs, overlap) for overlap in (False, True)}
    alone = make(env_id, observation, n_envs, LatentSteering(policy, 1.0))
    rates: dict[str, list[float]] = {way: [] for way in ("simulator", "updates", "sequential", "overlapped")}
    try:
        for way in ways.values():  # fills the buffers, and builds what is built at the first call
            way.train(1)
        for _ in range(blocks):
            rates["simulator"].append(simulate(alone, bursts))
            rates["updates"].append(ways[False].update(bursts))
            rates["sequential"].append(ways[False].train(bursts))
            rates["overlapped"].append(ways[True].train(bursts))
    finally:
        for env in (alone, *(way.env for way in ways.values())):
            env.close()
    found = {way: statistics.median(values) for way, values in rates.items()}
    ideal = min(found["simulator"], found["updates"])
    limit = min(ideal, limit_of_cores(found["simulator"], found["updates"], n_envs, len(os.sched_getaffinity(0))))
    case = f"{name}_{observation}"
    return [
        *(f"RESULT loop_{case}_{way} {rate:.1f} steps/s" for way, rate in found.items()),
        f"RESULT loop_ratio_{case}_overlapped {found['overlapped'] / found['sequential']:.2f} x",
        *(f"RESULT loop_of_ideal_{case}_{way} {found[way] / ideal:.2f} x" for way in ("sequential", "overlapped")),
        f"RESULT loop_of_cores_{case}_overlapped {found['overlapped'] / limit:.2f} x",
    ]


def limit_of_cores(simulator: float, updates: float, n_envs: int, cores: int) -> float:
    """Return env steps per second with every core at work: each step takes the simulator's share and the update's.

    :param simulator: Rate of the environments alone, one core for each as far as there are cores
    :param updates: Rate that updates alone, on one core, allow
    :param n_envs: Environments
    :param cores: Cores
    """
    return cores / (min(n_envs, cores) / simulator + 1 / updates)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first task, one block of one burst: about a minute")
    parser.add_argument("--openvino", choices=PRECISIONS, help="who computes the policy; default: PyTorch")
    args = parser.parse_args(argv)
    th.set_num_threads(1)
    results = []
    for name, env_id, observation, n_envs in CASES[: 1 if args.quick else None]:
        print(f"{name}, {observation} ...", flush=True)
        blocks, bursts = (1, 1) if args.quick else (5, 4)
        results += report(name, env_id, observation, n_envs, blocks, bursts, args.openvino)
    print("\n".join(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
