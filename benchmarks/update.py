"""Gradient updates per second of SteeringSAC and of Stable-Baselines3's own SAC, with equal networks and data.

Both learn from a full replay buffer of random numbers: a context of 521 and a latent of 16 as a dictionary, actions
of 16, batches of 256, and actor and critics with four hidden GELU layers of 256, as in the paper; with 2 and with 10
critics. One update is one step of the critics. SB3 steps actor, temperature and target every time; SteeringSAC is
measured so too (``policy_delay=1``) and as it comes (every second time), each in float32 and, on processors that
multiply it, with hidden layers in bfloat16. No environment is stepped.

All run in one process on one thread and take turns in short blocks, so that whatever else the machine does falls on
each alike. The figures are medians over the blocks; a ratio says how many times as fast as SB3's SAC the other is.

The limit of what can be reached is the roofline: the floating-point operations of an update's matrix products, which
PyTorch counts, at the rate of a plain matrix product of a layer's size in the same precision, which takes its turns in
the same run; in float32 the faster of PyTorch's own and oneDNN's. ``update_of_limit`` says which share of that rate an
update comes to, with all that is no matrix product.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from torch.utils.flop_counter import FlopCounterMode

from zprl_sb3.bfloat16 import multiplies_bfloat16
from zprl_sb3.products import product
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.wrappers import SteeringSpec

CONTEXT, LATENT, BATCH, ROWS = 521, 16, 256, 4096
NETWORKS: dict[str, Any] = {"net_arch": [256] * 4, "activation_fn": th.nn.GELU}
UPDATES = {2: 10, 10: 4}  # per block, by critics
PRODUCTS = 500  # per block
CPU = th.device("cpu")


class Shapes(gym.Env[Any, Any]):
    """Has the spaces of a steered environment and is never stepped."""

    observation_space = spaces.Dict(
        {key: spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in (("c", CONTEXT), ("z", LATENT))}
    )
    action_space = spaces.Box(-1.0, 1.0, (LATENT,), np.float32)
    steering_spec = SteeringSpec("latent", scale=0.2, chunk=4, gamma=0.99, policy="none")


def make(algorithm: type[SAC], n_critics: int, **kwargs: Any) -> SAC:
    """Return a model whose replay buffer is full of random numbers."""
    networks = NETWORKS | {"n_critics": n_critics} | ({"layer_norm": False} if algorithm is SteeringSAC else {})
    model = algorithm(
        "MultiInputPolicy", Shapes(), buffer_size=ROWS, seed=0, device="cpu", policy_kwargs=networks, **kwargs
    )
    model.set_logger(Logger(None, []))
    fill(model.replay_buffer, np.random.default_rng(0))
    return model


def fill(buffer: Any, rng: np.random.Generator) -> None:
    """Fill a replay buffer with transitions."""
    sizes = (("c", CONTEXT), ("z", LATENT))
    obs = {key: rng.standard_normal((1, size), np.float32) for key, size in sizes}
    while buffer.size() < ROWS:
        following = {key: rng.standard_normal((1, size), np.float32) for key, size in sizes}
        done = rng.random(1) < 0.02
        action = rng.uniform(-1, 1, (1, LATENT)).astype(np.float32)
        buffer.add(obs, following, action, done.astype(np.float32), done, [{}])
        obs = following


def measure(ways: dict[str, Callable[[int], Any]], counts: dict[str, int], blocks: int) -> dict[str, float]:
    """Return how often a second each way is gone: the median over blocks that take turns.

    :param ways: Functions that do something so many times
    :param counts: How many times in a block, by way
    :param blocks: Blocks, after one that warms up
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for block in range(blocks + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way(counts[name])
            if block:
                seconds[name].append(time.perf_counter() - start)
    return {name: counts[name] / statistics.median(values) for name, values in seconds.items()}


def operations(model: SAC) -> float:
    """Return the floating-point operations of the matrix products of one update, mean over two."""
    onednn = {th.ops.mkldnn._linear_pointwise: lambda x, weight, *rest, **kwargs: 2 * x[0] * x[1] * weight[0]}
    counter = FlopCounterMode(display=False, custom_mapping=onednn)
    with counter:
        model.train(2, BATCH)
    return counter.get_total_flops() / 2


def plain_products() -> tuple[dict[str, Callable[[int], None]], float]:
    """Return functions that multiply a batch with a layer's weights, and the operations of one such product."""
    width = NETWORKS["net_arch"][-1]
    ways = {"float32": (th.mm, th.float32), "float32_onednn": (product, th.float32)}
    if multiplies_bfloat16(CPU):
        ways["bfloat16"] = (th.mm, th.bfloat16)

    def repeated(multiply: Callable[..., th.Tensor], dtype: th.dtype, count: int) -> None:
        batch, weights = th.ones(BATCH, width, dtype=dtype), th.ones(width, width, dtype=dtype)
        for _ in range(count):
            multiply(batch, weights)

    return {name: partial(repeated, *way) for name, way in ways.items()}, 2.0 * BATCH * width * width


def report(n_critics: int, updates: int, blocks: int) -> list[str]:
    """Return the lines of one size of the ensemble."""
    models = {
        "sb3": make(SAC, n_critics),
        "delay1": make(SteeringSAC, n_critics, policy_delay=1),
        "default": make(SteeringSAC, n_critics),
    }
    if multiplies_bfloat16(CPU):
        models["bf16_delay1"] = make(SteeringSAC, n_critics, policy_delay=1, autocast=True)
        models["bf16"] = make(SteeringSAC, n_critics, autocast=True)
    products, operations_each = plain_products()
    work = {name: operations(model) for name, model in models.items()}
    ways = {name: partial(_train, model) for name, model in models.items()} | products
    counts = dict.fromkeys(models, updates) | dict.fromkeys(products, PRODUCTS)
    rates = measure(ways, counts, blocks)
    limits = {name: rates[name] * operations_each for name in products}
    lines = [f"RESULT updates_{n_critics}_critics_{name} {rates[name]:.2f} updates/s" for name in models]
    for name in list(models)[1:]:
        lines.append(f"RESULT update_ratio_{n_critics}_critics_{name} {rates[name] / rates['sb3']:.2f} x")
    lines += [f"RESULT product_{n_critics}_critics_{name} {limit / 1e9:.1f} GFLOP/s" for name, limit in limits.items()]
    for name in models:
        limit = limits["bfloat16"] if name.startswith("bf16") else max(limits["float32"], limits["float32_onednn"])
        lines += [
            f"RESULT operations_{n_critics}_critics_{name} {work[name] / 1e9:.3f} GFLOP",
            f"RESULT update_of_limit_{n_critics}_critics_{name} {rates[name] * work[name] / limit:.2f} x",
        ]
    return lines


def _train(model: SAC, updates: int) -> None:
    model.train(updates, BATCH)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer blocks: less than 50 seconds")
    blocks = 3 if parser.parse_args(argv).quick else 30
    th.set_num_threads(1)
    results = [line for n_critics, updates in UPDATES.items() for line in report(n_critics, updates, blocks)]
    print("\n".join(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
