"""Env steps per second and memory of the paper's eight tasks, in state and in images, alone, by two, and in chunks.

Every environment is in a process of its own, as `zprl train` with `subprocess: true` has it, and nothing else is done:
no policy, no learning. robosuite's arms hold their first pose, the others tremble a little. With two processes the
environments wait for each other at each step. In chunks of 4 actions only the last observation is looked at, so only
that one is drawn. The ways take turns in blocks. Rates, resets included, are medians over the blocks, in env steps of
all environments per second of the clock; ratios compare with one process and single actions. Memory is the
proportional set size (PSS) of the environments' processes, in which what several share is divided among them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from zprl_sb3.robot_envs.rotations import rotation_6d
from zprl_sb3.wrappers import ActionChunk

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

SECONDS = 2.0  # of each block
WAYS = {"alone": (1, 1), "two": (2, 1), "chunk": (1, 4)}  # processes, and actions at once
TASKS = ("Can", "Square", "Transport", "AdroitDoor", "AdroitHammer", "AdroitPen", "BoxClose", "PushWall")
QUICK = (("AdroitDoor", "state"), ("AdroitDoor", "image"), ("Can", "image"))


def make(task: str, observation: str, chunk: int) -> gym.Env[Any, Any]:
    """Return an environment that runs chunks of actions."""
    return ActionChunk(gym.make(f"zprl_sb3:zprl/{task}-v0", observation=observation), chunk)


def calm_actions(envs: VecEnv, proprio: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return chunks of actions (n, h, A) that do little.

    :param envs: n environments
    :param proprio: Their first observations of the robot
    :param rng: Source of the trembling
    """
    steps, size = envs.action_space.shape or ()
    if proprio.shape[1] % 9 or size % 10:  # all but robosuite
        return rng.uniform(-0.1, 0.1, (envs.num_envs, steps, size)).astype(np.float32)
    arms = [
        np.concatenate([arm[:3], rotation_6d(Rotation.from_quat(arm[3:7]).as_matrix()), [-1.0]])
        for arm in proprio.reshape(-1, 9)
    ]
    return np.repeat(np.concatenate(arms).reshape(envs.num_envs, 1, size), steps, axis=1).astype(np.float32)


class Stepper:
    """Some environments of one task, and how fast they are.

    :param task: Name in the environment's id
    :param observation: ``"state"`` or ``"image"``
    :param processes: How many
    :param chunk: h, actions that run at once
    """

    def __init__(self, task: str, observation: str, processes: int, chunk: int) -> None:
        # Not above: the environments' processes import this file, and do without torch.
        from zprl_sb3.wrappers.process_vec_env import ProcessVecEnv

        self.envs = ProcessVecEnv([partial(make, task, observation, chunk)] * processes)
        self.envs.seed(0)
        first = self.envs.reset()
        assert isinstance(first, dict)
        self.actions = calm_actions(self.envs, first["proprio"], np.random.default_rng(0))
        self.rates: list[float] = []

    def run(self, seconds: float) -> None:
        """Step for some time, and note the rate."""
        start, steps = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds:
            infos = self.envs.step(self.actions)[-1]
            steps += sum(info["env_steps"] for info in infos)
        self.rates.append(steps / passed)

    def memory(self) -> float:
        """Return the megabytes of all its processes."""
        return sum(pss(process.pid) for process in self.envs.processes)


def pss(pid: int) -> float:
    """Return a process's proportional set size in megabytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("Pss:"))) / 1024


def report(task: str, observation: str, blocks: int) -> Iterator[str]:
    """Yield the lines of one task."""
    steppers = {way: Stepper(task, observation, *sizes) for way, sizes in WAYS.items()}
    try:
        for _ in range(blocks):
            for stepper in steppers.values():
                stepper.run(SECONDS)
        rates = {way: statistics.median(stepper.rates) for way, stepper in steppers.items()}
        name = f"{task.lower()}_{observation}"
        for way, stepper in steppers.items():
            yield f"RESULT envs_{name}_{way} {rates[way]:.1f} steps/s"
            yield f"RESULT envs_memory_{name}_{way} {stepper.memory():.1f} MB"
        for way in list(WAYS)[1:]:
            yield f"RESULT envs_ratio_{name}_{way} {rates[way] / rates['alone']:.2f} x"
    finally:
        for stepper in steppers.values():
            stepper.envs.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three cases and one block: less than 50 seconds")
    quick = parser.parse_args(argv).quick
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cases = QUICK if quick else [(task, observation) for task in TASKS for observation in ("state", "image")]
    results: list[str] = []
    for task, observation in cases:
        print(f"{task}, {observation} ...", flush=True)
        results += report(task, observation, 1 if quick else 3)
    print("\n".join(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
