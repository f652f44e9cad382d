"""Time from an observation to the chunk of actions to execute, for one robot on one core, at the paper's sizes.

The whole of what a steered policy computes between two chunks: the context c of the observation (two cameras through a
ResNet-18 each, or the state), the latent z, the actor's Δz, the decoder, and two steps through the U-Net of 128, 256
and 512 channels, with robosuite's actions of 10 and a horizon of 16. Weights and observations are random. The frozen
policy is computed by PyTorch, and by OpenVINO in float32 and, on processors that multiply it, in bfloat16; these take
turns, ten calls each. Figures are the median and the 99th percentile of single calls, in milliseconds and as a share of
the 33 ms that a controller at 30 Hz has; a chunk lasts several of these. A busy machine shows in the percentile.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray

from zprl_sb3.openvino import precisions, with_openvino
from zprl_sb3.policy import SteerablePolicy
from zprl_sb3.pretrain.configuration import by_task, compose
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.scripts.pretrain import build_policy
from zprl_sb3.wrappers import LatentSteeringWrapper

TASK, ACTION_DIM = "zprl/Square-v0", 10
PERIOD = 1000 / 30  # ms
CASES: dict[str, dict[str, tuple[int, ...]]] = {
    "state": {"object": (14,), "proprio": (9,)},
    "image": {"agentview_image": (84, 84, 3), "robot0_eye_in_hand_image": (84, 84, 3), "proprio": (9,)},
}
# Who computes the policy, and OpenVINO's precision.
WAYS: dict[str, str | None] = {"pytorch": None, "openvino": "float32", "openvino_bf16": "bfloat16"}
TURN = 10  # calls


class Robot(gym.Env[Any, Any]):
    """Has the spaces of a robot and is never stepped.

    :param shapes: Of its observations, by key
    """

    action_space = spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.observation_space = spaces.Dict(
            {
                key: spaces.Box(0, 255, shape, np.uint8)
                if len(shape) == 3
                else spaces.Box(-1.0, 1.0, shape, np.float32)
                for key, shape in shapes.items()
            }
        )


def make(shapes: dict[str, tuple[int, ...]], precision: str | None) -> Callable[[], NDArray[np.float32]]:
    """Return a function that turns a new observation into a chunk (1, h, A).

    :param shapes: Of the observations, by key
    :param precision: OpenVINO's; None: PyTorch
    """
    th.manual_seed(0)
    settings = by_task(compose(overrides=["demos=x", "output=x"])["model"], TASK)
    robot = Robot(shapes)
    policy: SteerablePolicy = build_policy(shapes, ACTION_DIM, settings).freeze()
    wrapped = LatentSteeringWrapper(robot, policy if precision is None else with_openvino(policy, precision), scale=0.2)
    steering = wrapped.steering
    model = SteeringSAC("MultiInputPolicy", wrapped, buffer_size=1, device="cpu", seed=0)
    rngs = [np.random.default_rng(0)]
    robot.observation_space.seed(0)
    next_observation = {key: value[None] for key, value in robot.observation_space.sample().items()}

    def call() -> NDArray[np.float32]:
        observation = steering.observe(next_observation, rngs)
        delta, _ = model.predict(observation, deterministic=True)
        chunk: NDArray[np.float32] = steering.act(observation, delta, rngs)
        return chunk

    return call


def measure(calls: dict[str, Callable[[], object]], count: int) -> dict[str, NDArray[np.float64]]:
    """Return the milliseconds of single calls, the first turn left out.

    :param calls: What takes turns
    :param count: How many calls of each, at least
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(1 + math.ceil(count / TURN)):
        for name, call in calls.items():
            taken = [timed(call) for _ in range(TURN)]
            times[name] += taken if turn else []
    return {name: np.array(taken) for name, taken in times.items()}


def timed(call: Callable[[], object]) -> float:
    """Return the milliseconds of a call."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def report(case: str, count: int) -> list[str]:
    """Return the lines of one of :data:`CASES`."""
    possible = (None, *precisions())
    here = {way: precision for way, precision in WAYS.items() if precision in possible}
    times = measure({way: make(CASES[case], precision) for way, precision in here.items()}, count)
    results = []
    for way, taken in times.items():
        for figure, value in (("median", np.median(taken)), ("p99", np.percentile(taken, 99))):
            name = f"latency_{case}_{way}_{figure}"
            results += [f"RESULT {name} {value:.2f} ms", f"RESULT {name}_of_30_hz {100 * value / PERIOD:.1f} %"]
        ratio = np.median(times["pytorch"]) / np.median(taken)
        results += [] if way == "pytorch" else [f"RESULT latency_ratio_{case}_{way} {ratio:.2f} x"]
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calls: less than 50 seconds")
    count = 200 if parser.parse_args(argv).quick else 2000
    th.set_num_threads(1)
    print("\n".join(line for case in CASES for line in report(case, count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
