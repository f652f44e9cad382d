"""What steering does to a policy: how far z̃ and c̃ go with λ, maps of them, and where the hands are sent to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np
import pandas as pd
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import PolicyPredictor

from zprl_sb3.evaluation import Evaluation
from zprl_sb3.latents import LatentGaussian, OfflineLatents
from zprl_sb3.offline import BATCH
from zprl_sb3.wrappers import LatentSteering
from zprl_sb3.wrappers.steering import normalized

POINTS = 2800  # of a map: seconds (up to 4096 UMAP compares all pairs, and compiles no search for neighbours)
EPOCHS, NEIGHBOURS = 200, 50  # of UMAP: more neighbours than its 15 leave fewer islands
BAND = (5, 95)  # percentiles
TRAINED, UNIFORM = "trained actor", "uniform Δz"
MEASURES = ("mahalanobis", "context_distance", "displacement")
"""Mahalanobis distance of z̃ to the offline z, ‖c̃ − c‖₂ and ‖c̃ − g(z)‖₂."""

Array = NDArray[np.float32]


def check_umap() -> None:
    """Raise an ImportError that says what to do unless UMAP is there; importing it takes many seconds."""
    if find_spec("umap") is None:
        raise ImportError("UMAP is not installed: pip install 'zprl-sb3[analysis]'")


def deltas(model: PolicyPredictor, latents: OfflineLatents, seed: int) -> dict[str, Array]:
    """Return the actor's Δz (N, d) on demonstrations, and uniform ones to compare with.

    :param model: The steered policy
    :param latents: What it sees
    :param seed: Of the uniform ones
    """
    trained, _ = model.predict({"c": latents.c, "z": latents.z}, deterministic=True)
    uniform = np.random.default_rng(seed).uniform(-1, 1, latents.z.shape).astype(np.float32)
    return {TRAINED: trained, UNIFORM: uniform}


def steer(steering: LatentSteering, z: Array, delta: Array, scale: float) -> Array:
    """Return z̃ (N, d) at another λ; where each dimension has its own, they stay in proportion.

    :param z: Latents (N, d)
    :param delta: Δz (N, d)
    :param scale: λ, on average; 0 for none
    """
    return z + np.float32(scale / steering.mean_scale) * steering.step(delta)


def shift_curves(
    steering: LatentSteering, latents: OfflineLatents, moves: Mapping[str, Array], scales: Sequence[float]
) -> pd.DataFrame:
    """Return how far steering leads from the demonstrations, by λ: the paper's Figure 11.

    A row for each λ and way: the mean of each of :data:`MEASURES` over the observations, with ``_low`` and ``_high``,
    its percentiles of :data:`BAND`.

    :param moves: Δz (N, d) by way, of :func:`deltas`
    :param scales: λ
    """
    gaussian, plain = LatentGaussian(latents.z), decode(steering, latents.z)
    rows: list[dict[str, float | str]] = []
    for way, delta in moves.items():
        for scale in scales:
            z = steer(steering, latents.z, delta, scale)
            c = decode(steering, z)
            lengths = gaussian.distance(z), *(np.linalg.norm(c - other, axis=1) for other in (latents.c, plain))
            row: dict[str, float | str] = {"delta": way, "scale": scale}
            for name, values in zip(MEASURES, lengths, strict=True):
                low, high = np.percentile(values, BAND)
                row |= {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
            rows.append(row)
    return pd.DataFrame(rows)


def maps(
    steering: LatentSteering, latents: OfflineLatents, delta: Array, scales: Sequence[float], seed: int
) -> pd.DataFrame:
    """Return UMAPs of c̃ and of chunks of actions, before (λ = 0) and after steering: the paper's Figure 11.

    All λ share a map for c̃ and one for actions; with the same flow noise, only steering tells two chunks apart.

    :param delta: Δz (N, d)
    :param scales: λ
    :param seed: Of the choice of observations, so many that a map has up to :data:`POINTS`, the flow noise and UMAP
    :return: A row for each point: ``space`` (context or actions), ``scale``, ``x``, ``y``
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(latents))[: POINTS // (1 + len(scales))])
    noise = rng.standard_normal((len(rows), *steering.policy.noise_shape), np.float32)
    contexts = [decode(steering, steer(steering, latents.z[rows], delta[rows], scale)) for scale in (0.0, *scales)]
    spaces = {"context": contexts, "actions": [executed(steering, c, noise) for c in contexts]}
    tables: list[pd.DataFrame] = []
    for space, sets in spaces.items():
        places = _umap(np.concatenate(sets), seed).reshape(len(sets), len(rows), 2)
        for scale, points in zip((0.0, *scales), places, strict=True):
            tables.append(pd.DataFrame({"space": space, "scale": scale, "x": points[:, 0], "y": points[:, 1]}))
    return pd.concat(tables, ignore_index=True)


def _umap(points: Array, seed: int) -> Array:
    threads = th.get_num_threads()
    try:
        from umap import UMAP  # 17 s

        places: Array = UMAP(
            n_neighbors=min(NEIGHBOURS, len(points) - 1), n_epochs=EPOCHS, random_state=seed, n_jobs=1
        ).fit_transform(points)
        return places
    finally:
        th.set_num_threads(threads)  # Numba gives the threads of all OpenMP in the process their number anew.


@th.no_grad()
def decode(steering: LatentSteering, z: Array) -> Array:
    """Return g(z) (N, C)."""
    device = steering.policy.device
    parts = [steering.bottleneck.decode(th.as_tensor(z[rows], device=device)).cpu() for rows in _batches(len(z))]
    return th.cat(parts).numpy()


@th.no_grad()
def executed(steering: LatentSteering, conditions: Array, noise: Array) -> Array:
    """Return the executed chunks (N, h * A) in the policy's normalised actions.

    :param conditions: (N, C)
    :param noise: w (N, T, A)
    """
    policy = steering.policy
    parts: list[th.Tensor] = []
    for rows in _batches(len(conditions)):
        condition, part = (th.as_tensor(values[rows], device=policy.device) for values in (conditions, noise))
        actions = policy.act(condition, part)[:, : policy.chunk]
        parts.append(normalized(policy, actions).flatten(start_dim=1).cpu())
    return th.cat(parts).numpy()


def _batches(count: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]


def traces(evaluations: Mapping[str, Evaluation]) -> pd.DataFrame:
    """Return where the hands were told to be, env step by env step; empty where environments do not tell.

    ``seconds``, ``x``, ``y`` and ``z`` in metres, by ``policy``, ``seed`` of the layout, ``success`` and ``hand``.

    :param evaluations: By policy, of the same seeds
    """
    tables: list[pd.DataFrame] = []
    for policy, result in evaluations.items():
        for seed, success, places in zip(result.seeds, result.successes, result.commanded, strict=True):
            if places is None:
                continue
            for hand in range(places.shape[1]):
                about = {"policy": policy, "seed": seed, "success": success, "hand": hand}
                seconds = result.dt * np.arange(1, len(places) + 1)
                table = pd.DataFrame({"seconds": seconds} | dict(zip("xyz", places[:, hand].T, strict=True)))
                tables.append(table.assign(**about)[[*about, *table]])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
