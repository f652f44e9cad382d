"""λ before any rollout: how far each λ would move a policy, measured on its demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from zprl_sb3.checkpoint import load_policy
from zprl_sb3.diagnostics import context_moves
from zprl_sb3.guideline import DISPLACEMENT, RMS_RATIO
from zprl_sb3.latents import Array, LatentGaussian, OfflineLatents, offline_latents, rms
from zprl_sb3.policy import SteerablePolicy
from zprl_sb3.wrappers.spec import Scale
from zprl_sb3.wrappers.steering import normalized

# Δz is assumed to be uniform in [-1, 1]^d, whose RMS is 1/√3 = 0.577. That is what trained actors come to: the last
# evaluations of the 48 ZPRL runs in docs/results (λ 0.25 to 0.75, six tasks) have an RMS(Δz), which is their rms_step
# divided by λ, of 0.39 to 0.64, and 0.58 in the median.
RMS_DELTA = 3**-0.5
RATIOS = (*(step / 20 for step in range(11)), 0.6, 0.7, 0.8, 0.9, 1.0)  # RMS(λΔz) / RMS(z) at the λ of the curves
# Observations whose contexts are decoded, and whose chunks are generated, for each λ of the curves. The paper's U-Net
# takes 12 ms for a chunk on a busy core.
DECODED, ACTED = 2_000, 64


@dataclass(frozen=True)
class Calibration:
    """What λ does to a policy, and the λ to start from.

    :param scale: The λ to start from; with one λ for each dimension their mean. It is the upper end of the range: all
        runs in docs/results that gained came to ratios of 0.15 and more
    :param scale_range: λ from where RMS(λΔz)/RMS(z) is 0.1 to where it is 0.2, or the displacement 0.8 if that is
        sooner
    :param limited_by: ``"rms_ratio"`` or ``"displacement"``: which of the two ends the range
    :param weights: By which λ is multiplied in each dimension of z (d,), on average 1
    :param by_spread: Whether these follow the spread of z; otherwise they are all 1
    :param observations: How many were embedded
    :param rms_z: RMS of z where the policy is at home
    :param dimensions: For each dimension (d,): ``rms`` of z, ``spread`` (its standard deviation over the
        demonstrations), ``posterior_std`` (mean deviation of the posterior)
    :param curves: For K values of ``scale`` (K,): ``rms_ratio``; means of ``displacement`` ‖g(z + λΔz) - g(z)‖,
        ``context_distance`` ‖g(z + λΔz) - c‖ and ``mahalanobis`` distance of z + λΔz to the demonstrations' z; and
        ``action_change``, the RMS by which executed actions change, in the policy's normalised units
    :param mahalanobis_offline: Distance that half, and that 95 %, of the demonstrations' own z do not exceed
    :param noise_change: RMS by which other flow noise changes the actions at λ = 0
    """

    scale: float
    scale_range: tuple[float, float]
    limited_by: str
    weights: tuple[float, ...]
    by_spread: bool
    observations: int
    rms_z: float
    dimensions: dict[str, NDArray[np.float64]]
    curves: dict[str, NDArray[np.float64]]
    mahalanobis_offline: tuple[float, float]
    noise_change: float

    @property
    def steering_scale(self) -> Scale:
        """What a steering takes as ``scale``: λ, or one of each dimension where they follow the spread."""
        return tuple(self.scale * weight for weight in self.weights) if self.by_spread else self.scale

    def at(self, curve: str, scale: float) -> float:
        """Return the value of a curve at some λ."""
        return float(np.interp(scale, self.curves["scale"], self.curves[curve]))

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain numbers, for JSON."""
        plain = {
            name: {key: values.tolist() for key, values in table.items()} if isinstance(table, dict) else table
            for name, table in vars(self).items()
        }
        return plain | {"steering_scale": self.steering_scale, "rms_delta": RMS_DELTA}


def calibrate(
    policy: SteerablePolicy | str | Path,
    demonstrations: str | Path,
    by_spread: bool = False,
    mask: str | None = None,
    seed: int = 0,
) -> Calibration:
    """Measure on demonstrations what λ does to a policy, and recommend one, for Δz as trained actors' are.

    :param policy: A policy with a bottleneck, or the path of its checkpoint
    :param demonstrations: The file that it was pretrained on
    :param by_spread: Give each dimension of z its own λ, in proportion to the spread of z there
    :param mask: Only the episodes of this mask of the file
    :param seed: Of the draws of observations, z, Δz and flow noise
    :raises DemonstrationError: If the file cannot be used, or lacks what the policy sees
    :raises ValueError: If it is of another task, or the policy has no bottleneck
    """
    policy = load_policy(policy) if isinstance(policy, (str, Path)) else policy
    offline = offline_latents(demonstrations, policy, mask, seed=seed)
    dimensions = _dimensions(offline)
    weights = spread_weights(offline) if by_spread else np.ones(len(dimensions["rms"]))
    rms_z = rms(dimensions["rms"])
    slope = RMS_DELTA * rms(weights) / rms_z  # of the ratio in λ
    probe = _Probe(policy, offline, weights, np.random.default_rng(seed))
    rows = [{"scale": ratio / slope, "rms_ratio": ratio} | probe.moved(ratio / slope) for ratio in RATIOS]
    curves = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    least, most = (ratio / slope for ratio in RMS_RATIO)
    limit = _where(curves["displacement"], curves["scale"], DISPLACEMENT)
    upper = min(most, limit)
    return Calibration(
        scale=_rounded(upper),
        scale_range=(_rounded(min(least, upper / 2)), _rounded(upper)),
        limited_by="displacement" if limit < most else "rms_ratio",
        weights=tuple(weights.tolist()),
        by_spread=by_spread,
        observations=len(offline),
        rms_z=rms_z,
        dimensions=dimensions,
        curves=curves,
        mahalanobis_offline=probe.mahalanobis_offline(),
        noise_change=probe.noise_change(),
    )


def scale_by_spread(
    demonstrations: str | Path, policy: SteerablePolicy, scale: float, mask: str | None = None
) -> tuple[float, ...]:
    """Return a λ for each dimension of z, in proportion to its standard deviation over demonstrations, λ on average.

    :param demonstrations: Demonstrations of the policy's task
    :param policy: A policy with a bottleneck
    :param scale: λ
    :param mask: Only the episodes of this mask of the file
    :raises DemonstrationError: If the file cannot be used
    :raises ValueError: If it is of another task, or the policy has no bottleneck
    """
    return tuple((scale * spread_weights(offline_latents(demonstrations, policy, mask))).tolist())


def spread_weights(offline: OfflineLatents) -> NDArray[np.float64]:
    """Return the standard deviation of z in each dimension (d,), on average 1."""
    spread = offline.z.std(axis=0, dtype=np.float64)
    return np.asarray(spread / spread.mean())


class _Probe:
    """Moves the latents of demonstrations by λΔz, for every λ with the same Δz and flow noise.

    :param policy: The policy
    :param offline: Its latents
    :param weights: By which λ is multiplied in each dimension (d,)
    :param rng: Draws Δz and flow noise
    """

    def __init__(
        self, policy: SteerablePolicy, offline: OfflineLatents, weights: NDArray[np.float64], rng: np.random.Generator
    ) -> None:
        self.policy, self.gaussian = policy, LatentGaussian(offline.z)
        rows = rng.permutation(len(offline))[:DECODED]
        self.c, self.z = offline.c[rows], offline.z[rows]
        self.delta = (weights * rng.uniform(-1, 1, self.z.shape)).astype(np.float32)
        shape = (min(len(rows), ACTED), *policy.noise_shape)
        self.noise, self.other_noise = (rng.standard_normal(shape, np.float32) for _ in range(2))
        self.actions = self._actions(self.z, self.noise)

    def moved(self, scale: float) -> dict[str, float]:
        """Return how far some λ moves contexts, latents and actions."""
        step = (scale * self.delta).astype(np.float32)
        steered = self.z + step
        return context_moves(self.policy, self.c, self.z, step) | {
            "mahalanobis": float(self.gaussian.distance(steered).mean()),
            "action_change": rms(self._actions(steered, self.noise) - self.actions),
        }

    def noise_change(self) -> float:
        """Return by how much other flow noise changes the actions."""
        return rms(self._actions(self.z, self.other_noise) - self.actions)

    def mahalanobis_offline(self) -> tuple[float, float]:
        """Return the median and the 95th percentile of the distances of the latents themselves."""
        median, most = np.quantile(self.gaussian.distance(self.z), [0.5, 0.95]).tolist()
        return median, most

    @th.no_grad()
    def _actions(self, z: Array, noise: Array) -> Array:
        """Return the executed actions (M, h, A), normalised, that the first of the latents (N, d) lead to."""
        assert self.policy.bottleneck is not None
        latent, noise_ = (th.as_tensor(x, device=self.policy.device) for x in (z[: len(noise)], noise))
        actions = self.policy.act(self.policy.bottleneck.decode(latent), noise_)[:, : self.policy.chunk]
        chunks: Array = normalized(self.policy, actions).cpu().numpy()
        return chunks


def _dimensions(offline: OfflineLatents) -> dict[str, NDArray[np.float64]]:
    return {
        "rms": np.sqrt(np.square(offline.z, dtype=np.float64).mean(axis=0)),
        "spread": offline.z.std(axis=0, dtype=np.float64),
        "posterior_std": offline.std.mean(axis=0, dtype=np.float64),
    }


def _where(curve: NDArray[np.float64], scales: NDArray[np.float64], limit: float) -> float:
    """Return the least λ at which a curve that begins below a limit reaches it; infinity where it never does."""
    beyond = np.flatnonzero(curve >= limit)
    if not len(beyond):
        return np.inf
    last, first = beyond[0] - 1, beyond[0]
    return float(np.interp(limit, curve[[last, first]], scales[[last, first]]))


def _rounded(scale: float) -> float:
    return float(f"{scale:.2g}")
