"""Env steps per second and memory of the paper's eight tasks, in state and in images, with 1 and with 2 processes.

Every environment is in a process of its own, as `zprl train` with `subprocess: true` has it, and nothing else is done:
no policy, no learning. robosuite's arms hold their first pose, the others tremble a little. With two processes the
environments wait for each other at each step. Both numbers of processes take turns in blocks, and the rates, resets
included, are medians over the blocks, in steps of all environments per second of the clock. Memory is the proportional
set size (PSS) of the environments' processes, in which what several share is divided among them.
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
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from zprl_sb3.robot_envs.rotations import rotation_6d

SECONDS = 2.0  # of each block
PROCESSES = (1, 2)
TASKS = ("Can", "Square", "Transport", "AdroitDoor", "AdroitHammer", "AdroitPen", "BoxClose", "PushWall")
QUICK = (("AdroitDoor", "state"), ("AdroitDoor", "image"), ("Can", "image"))


def make(task: str, observation: str) -> gym.Env[Any, Any]:
    """Return an environment."""
    return gym.make(f"zprl_sb3:zprl/{task}-v0", observation=observation)


def calm_actions(envs: VecEnv, proprio: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return actions (n, A) that do little.

    :param envs: n environments
    :param proprio: Their first observations of the robot
    :param rng: Source of the trembling
    """
    shape = envs.action_space.shape or ()
    if proprio.shape[1] % 9 or shape[0] % 10:  # all but robosuite
        return rng.uniform(-0.1, 0.1, (envs.num_envs, *shape)).astype(np.float32)
    arms = [
        np.concatenate([arm[:3], rotation_6d(Rotation.from_quat(arm[3:7]).as_matrix()), [-1.0]])
        for arm in proprio.reshape(-1, 9)
    ]
    return np.concatenate(arms).reshape(envs.num_envs, *shape).astype(np.float32)


class Stepper:
    """Some environments of one task, and how fast they are.

    :param task: Name in the environment's id
    :param observation: ``"state"`` or ``"image"``
    :param processes: How many
    """

    def __init__(self, task: str, observation: str, processes: int) -> None:
        self.envs = SubprocVecEnv([partial(make, task, observation)] * processes)
        self.envs.seed(0)
        first = self.envs.reset()
        assert isinstance(first, dict)
        self.actions = calm_actions(self.envs, first["proprio"], np.random.default_rng(0))
        self.rates: list[float] = []

    def run(self, seconds: float) -> None:
        """Step for some time, and note the rate."""
        start, steps = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds:
            self.envs.step(self.actions)
            steps += self.envs.num_envs
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
    steppers = [Stepper(task, observation, processes) for processes in PROCESSES]
    try:
        for _ in range(blocks):
            for stepper in steppers:
                stepper.run(SECONDS)
        rates = [statistics.median(stepper.rates) for stepper in steppers]
        name = f"{task.lower()}_{observation}"
        for processes, rate, stepper in zip(PROCESSES, rates, steppers, strict=True):
            yield f"RESULT envs_{name}_{processes} {rate:.1f} steps/s"
            yield f"RESULT envs_memory_{name}_{processes} {stepper.memory():.1f} MB"
        yield f"RESULT envs_ratio_{name} {rates[1] / rates[0]:.2f} x"
    finally:
        for stepper in steppers:
            stepper.envs.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three cases and one block: less than 50 seconds")
    quick = parser.parse_args(argv).quick
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    cases = QUICK if quick else [(task, observation) for task in TASKS for observation in ("state", "image")]
    results = []
    for task, observation in cases:
        print(f"{task}, {observation} ...", flush=True)
        results += report(task, observation, 1 if quick else 3)
    print("\n".join(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
