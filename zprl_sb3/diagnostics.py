"""How a steered policy does, and how far steering moves it, in the latent and in the context."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import PolicyPredictor

from zprl_sb3.evaluation import evaluate
from zprl_sb3.policy import SteerablePolicy
from zprl_sb3.smoothness import SMOOTHNESS
from zprl_sb3.wrappers import LatentSteering, Steering, VecSteering

Array = NDArray[np.float32]
STEERING_COLUMNS = ("rms_z", "rms_step", "rms_ratio", "context_distance", "displacement")


class Recorder:
    """A predictor that passes on another one's answers and keeps (c, z, Δz) of the episodes that count.

    Environments that have run their share of an evaluation's episodes go on until the last one has; these steps are
    left out.

    :param model: The predictor
    :param episodes: Of the evaluation, over all environments
    """

    def __init__(self, model: PolicyPredictor, episodes: int) -> None:
        self.model, self.episodes = model, episodes
        self._started: NDArray[np.int64] | int = 0
        self.contexts: list[Array] = []
        self.latents: list[Array] = []
        self.deltas: list[Array] = []

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[NDArray[Any], ...] | None]:
        """Return the model's Δz (n, d); ``episode_start`` (n,) tells the episodes apart."""
        assert isinstance(observation, dict)
        assert episode_start is not None
        delta, state = self.model.predict(observation, state, episode_start, deterministic)
        self._started = self._started + episode_start
        counts = self._started <= self.episodes // len(episode_start)
        self.contexts.append(observation["c"][counts])
        self.latents.append(observation["z"][counts])
        self.deltas.append(delta[counts])
        return delta, state

    def diagnose(self, steering: Steering) -> dict[str, float]:
        """Return :func:`steering_diagnostics` of all that was recorded."""
        parts = (self.contexts, self.latents, self.deltas)
        c, z, delta = (np.concatenate(part) for part in parts)
        return steering_diagnostics(steering, {"c": c, "z": z}, delta)


def steering_diagnostics(steering: Steering, observation: Mapping[str, Array], delta: Array) -> dict[str, float]:
    """Return how far Δz moves the policy.

    ``rms_ratio`` is RMS(λΔz) / RMS(z); the paper advises 0.1 to 0.2. Where z is 0, as that of noise is, there is none.
    For latent steering also, as means of L2 norms with c̃ = g(z + λΔz): ``context_distance`` ‖c̃ - c‖ and
    ``displacement`` ‖c̃ - g(z)‖ (advised: below about 0.8).

    :param steering: What is steered
    :param observation: {"c": (N, C), "z": (N, d)}
    :param delta: Δz (N, d)
    """
    z, step = observation["z"], steering.step(delta)
    rms_z, rms_step = (float(np.sqrt(np.mean(np.square(x)))) for x in (z, step))
    result = {"rms_z": rms_z, "rms_step": rms_step} | ({"rms_ratio": rms_step / rms_z} if rms_z else {})
    if isinstance(steering, LatentSteering):
        result |= context_moves(steering.policy, observation["c"], z, step)
    return result


@th.no_grad()
def context_moves(policy: SteerablePolicy, context: Array, z: Array, step: Array) -> dict[str, float]:
    """Return the mean L2 norms ``context_distance`` ‖g(z + λΔz) - c‖ and ``displacement`` ‖g(z + λΔz) - g(z)‖.

    :param policy: A policy with a bottleneck
    :param context: c (N, C)
    :param z: Latents (N, d)
    :param step: λΔz (N, d)
    """
    assert policy.bottleneck is not None
    steered, plain = (
        policy.bottleneck.decode(th.as_tensor(x, device=policy.device)).cpu().numpy()
        for x in (z + step.astype(np.float32), z)
    )
    return {
        "context_distance": float(np.linalg.norm(steered - context, axis=1).mean()),
        "displacement": float(np.linalg.norm(steered - plain, axis=1).mean()),
    }


def evaluation_row(model: PolicyPredictor, env: VecSteering, seed: int, episodes: int) -> dict[str, Any]:
    """Return what one evaluation says about a model, as one row of a table.

    ``success_rate`` with its 95 % interval ``ci_low``, ``ci_high``, ``mean_length`` in env steps, ``mean_return``,
    smoothness where the environment tells it, and :func:`steering_diagnostics`.

    :param model: An SB3 algorithm or policy
    :param env: Steered environments made with ``seeded_episodes=True``
    :param seed: First seed
    :param episodes: Episodes, a multiple of the environments
    """
    recorder = Recorder(model, episodes)
    summary = evaluate(recorder, env, seed, episodes).summary()
    low, high = summary["ci95"]
    return (
        {
            "success_rate": summary["success_rate"],
            "ci_low": low,
            "ci_high": high,
            "mean_length": summary["mean_length"],
            "mean_return": summary["mean_return"],
        }
        | {name: _number(summary[name]) for name in SMOOTHNESS if name in summary}
        | recorder.diagnose(env.steering)
    )


def in_words(row: Mapping[str, Any], episodes: int) -> str:
    """Return the line that people read of an evaluation.

    :param row: From :func:`evaluation_row`, with ``env_steps``
    :param episodes: It was of so many
    """
    return (
        f"{row['env_steps']:>8} env steps: success {row['success_rate']:.2f} "
        f"[{row['ci_low']:.2f}, {row['ci_high']:.2f}] on {episodes} episodes"
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
