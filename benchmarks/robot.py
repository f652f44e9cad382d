"""How regularly a robot at 30 Hz is commanded while a learner updates: deviation from the period, deadlines, phase.

As in real training: the simulated robot (MuJoCo in real time) behind its limits in ``zprl robot-server``, a process of
its own; the environment, which keeps the rate, in another one; and here SteeringSAC with the settings of
``hyperparams/zprl.yml`` for real robots, on an untrained policy of states that keeps the arm near home. From the first
chunks on it updates while the robot moves. In the middle nobody commands for two seconds, as with slow inference.

- period: how far the time between two steps was from 33.3 ms, by the environment's own measure; without the pauses in
  which periods are left out, because a step began late by more than half of one
- missed: share of the periods whose work took longer than they last
- phase: by how much the steps after the two seconds are off the grid of those before, medians over 50 steps each
- guard: 99th percentile of the same deviation of the server's loop at 100 Hz, in its last ten seconds

Figures of a busy machine tell of that machine.
"""

from __future__ import annotations

import argparse
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
import yaml
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

import zprl_sb3  # noqa: F401  # registers the environment
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.pretrain.configuration import by_task, compose
from zprl_sb3.robot_envs import REAL_ROBOT
from zprl_sb3.robot_envs.real.keys import make_keys
from zprl_sb3.robot_envs.real.rate import Timing
from zprl_sb3.robot_envs.real.tasks import Task, load_task, task_settings
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.scripts.pretrain import build_policy
from zprl_sb3.settings import load_settings
from zprl_sb3.wrappers import LatentSteering, VecSteering, make_vec_steering

SECONDS, QUICK = 300.0, 12.0  # for which the robot is commanded
PAUSE = 2.0  # seconds
CALM = 0.02  # how far actions reach, in metres for instance
SIDE = 50  # steps on each side of the pause whose phases are compared
WARM_UP = 4  # chunks


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="12 seconds of commands: less than 50 in all")
    seconds = QUICK if parser.parse_args(argv).quick else SECONDS
    th.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        task = write_task(Path(folder))
        with served(task, Path(folder)) as lines:
            timing, times, rate = train(task, seconds)
            guard = guard_p99(lines)
    period = 1.0 / task.rate
    figures = {"p50": timing.jitter_p50, "p99": timing.jitter_p99, "max": timing.jitter_max}
    figures |= {"phase": phase_shift(times, period)}
    results = []
    for name, value in figures.items():
        results.append(f"RESULT robot_period_{name} {1000 * value:.2f} ms")
        results.append(f"RESULT robot_period_{name}_of_30_hz {100 * value / period:.2f} %")
    results.append(f"RESULT robot_missed {100 * timing.missed / len(times):.2f} %")
    results.append(f"RESULT robot_pauses {timing.pauses:.1f} pauses")
    results.append(f"RESULT robot_guard_p99 {guard:.2f} ms")
    results.append(f"RESULT robot_updates {rate:.1f} updates/s")
    print("\n".join(results))
    return 0


def write_task(folder: Path) -> Task:
    """Write the simulated task with keys, free ports and one endless episode, and return it."""
    content = yaml.safe_load(load_task("simulated_orange").path.read_text())
    key, ports = make_keys(folder, "robot"), [free_port(), free_port()]
    content["robot"] |= {"address": f"tcp://127.0.0.1:{ports[0]}", "key": str(key)}
    content["drivers"]["robot"]["channel"] = ports[1]
    content["supervisor"]["address"] = f"tcp://127.0.0.1:{ports[1]}"
    content["max_episode_steps"] = 10**9
    del content["train"]["algorithm"]["utd"]  # that of zprl.yml for real robots
    (folder / "task.yml").write_text(yaml.safe_dump(content))
    return load_task(folder / "task.yml")


def free_port() -> int:
    """Return a port that nobody listens to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def served(task: Task, keys: Path) -> Iterator[list[str]]:
    """Serve the robot in a process of its own, and yield the lines that it prints."""
    command = ["robot-server", "--task", str(task.path), "--keys", str(keys), "--bind", task.robot["address"]]
    program = [sys.executable, "-m", "zprl_sb3.scripts.cli", *command]
    process = subprocess.Popen(program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    try:
        while "Clients reach it" not in (line := process.stdout.readline()):
            if not line:
                raise RuntimeError("The robot server has ended; its own error stands above")
        threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True).start()
        yield lines
    finally:
        process.terminate()
        process.wait()


class Timed(gym.Wrapper[Any, Any, Any, Any]):
    """Notes when steps end."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.times: list[float] = []

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self.times.append(time.perf_counter())
        return result


class Pause(BaseCallback):
    """Has nobody command for a while, once.

    :param chunk: After which
    """

    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.chunk = chunk

    def _on_step(self) -> bool:
        if self.num_timesteps == self.chunk:
            time.sleep(PAUSE)
        return True


def train(task: Task, seconds: float) -> tuple[Timing, NDArray[np.float64], float]:
    """Train, and return how the rate was kept, when steps ended (n,) in seconds, and the updates per second."""
    policy = make_policy(task)
    kwargs = {"task": str(task.path)}
    settings = load_settings("zprl.yml", REAL_ROBOT, (), "state", task_settings(REAL_ROBOT, kwargs, "train"))
    algorithm = settings["algorithm"] | {"learning_starts": WARM_UP}
    chunks = WARM_UP + round(seconds * task.rate / policy.chunk)
    env = make_env(policy, settings, kwargs)
    try:
        model = SteeringSAC("MultiInputPolicy", env, seed=0, device="cpu", **algorithm)
        model.set_logger(Logger(None, []))
        begun = time.perf_counter()
        model.learn(chunks, Pause(WARM_UP + (chunks - WARM_UP) // 2))
        took = time.perf_counter() - begun
        (timing,), (times,) = env.get_attr("timing"), env.get_attr("times")
    finally:
        env.close()
    return timing, np.array(times), model._n_updates / took


def make_env(policy: FlowPolicy, settings: dict[str, Any], kwargs: dict[str, Any]) -> VecSteering:
    """Return the environment, in a process of its own."""
    steering = LatentSteering(policy, settings["scale"], settings["sample_latent"])
    return make_vec_steering(REAL_ROBOT, steering, 1, settings["gamma"], kwargs, subprocess=True, layer=Timed)


def make_policy(task: Task) -> FlowPolicy:
    """Return an untrained policy of states, whose actions stay near the arm's home."""
    assert task.home is not None
    poses = task.poses()
    center = poses.action({name: np.array(value) for name, value in task.home.items()})
    sizes = compose(overrides=["demos=x", "output=x", "model=state"])["model"]
    th.manual_seed(0)
    sizes = by_task(sizes, REAL_ROBOT, {"task": str(task.path)})
    policy = build_policy({"proprio": (poses.proprio_size,)}, poses.action_size, sizes)
    policy.action_normalizer.half_range.fill_(CALM)
    policy.action_normalizer.center.copy_(th.as_tensor(center))
    return policy.freeze()


def phase_shift(times: NDArray[np.float64], period: float) -> float:
    """Return by how many seconds the steps after the longest gap are off the grid of those before it.

    :param times: When steps ended (n,)
    :param period: The grid's
    """
    gap = int(np.diff(times).argmax()) + 1
    before, after = times[max(0, gap - SIDE) : gap], times[gap : gap + SIDE]
    origin = before[-1]
    # Around the first one's own phase: a median of phases is none across the grid's seam.
    off = [(side - origin + period / 2) % period - period / 2 for side in (before, after)]
    shift = float(np.median(off[1]) - np.median(off[0]))
    return abs((shift + period / 2) % period - period / 2)


def guard_p99(lines: Sequence[str]) -> float:
    """Return the last deviation of the loop in ms that a robot server has printed."""
    found = [float(match[1]) for line in list(lines) if (match := re.search(r"loop: jitter ([\d.]+) ms", line))]
    if not found:
        raise RuntimeError("The robot server has not said how its loop keeps its rate")
    return found[-1]


if __name__ == "__main__":
    sys.exit(main())
