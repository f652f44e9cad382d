"""Where a policy is at home: the latents of its demonstrations, and how far another latent is from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray

from zprl_sb3.offline import BATCH, policy_demonstrations
from zprl_sb3.policy import SteerablePolicy, image_keys
from zprl_sb3.pretrain.demonstrations import Demonstrations

VECTORS, IMAGES = 10_000, 500
"""At most so many observations are embedded, of policies that see vectors only and of those that see images.

An image of ResNet-18 takes 16 ms on a busy core, so that 500 observations by four cameras take half a minute.
"""

Array = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class OfflineLatents:
    """Embedded observations of demonstrations, ordered by episode and env step.

    :param c: Contexts (N, C)
    :param mean: Of the posterior (N, d)
    :param std: Of the posterior (N, d)
    :param z: A sample of each posterior (N, d)
    :param episodes: Index of each one's episode (N,), in the order of the file (of the mask, where there is one)
    :param steps: Env step in its episode (N,)
    """

    c: Array
    mean: Array
    std: Array
    z: Array
    episodes: Rows
    steps: Rows

    def __len__(self) -> int:
        return len(self.z)


def offline_latents(
    demonstrations: str | Path,
    policy: SteerablePolicy,
    mask: str | None = None,
    count: int | None = None,
    seed: int = 0,
) -> OfflineLatents:
    """Embed observations of demonstrations, drawn without repetition from all of their env steps.

    Only what is drawn is read: an image policy's file may be larger than the memory.

    :param demonstrations: The file
    :param policy: A policy with a bottleneck
    :param mask: Only the episodes of this mask of the file
    :param count: At most so many; None: 10,000 (as in the paper), or 500 where the policy sees images
    :param seed: Of the draws
    :raises DemonstrationError: If the file cannot be used, or lacks what the policy sees
    :raises ValueError: If it is of another task, or the policy has no bottleneck
    """
    if policy.bottleneck is None:
        raise ValueError("This policy has no bottleneck, so demonstrations have no latents: pretrain it with one")
    demos = policy_demonstrations(demonstrations, policy, mask)
    count = count or (IMAGES if image_keys(policy.observation_shapes) else VECTORS)
    rng = np.random.default_rng(seed)
    episodes, steps = _drawn([len(actions) for actions in demos.actions], count, rng)
    batches = [slice(start, start + BATCH) for start in range(0, len(steps), BATCH)]
    c = np.concatenate([_embedded(demos, policy, episodes[rows], steps[rows]) for rows in batches])
    with th.no_grad():
        encoded = policy.bottleneck.encode(th.as_tensor(c, device=policy.device))
    mean, std = (values.cpu().numpy() for values in encoded)
    return OfflineLatents(c, mean, std, mean + std * rng.standard_normal(mean.shape, np.float32), episodes, steps)


def _drawn(lengths: list[int], count: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Return episodes and env steps of up to so many of all observations, in their order."""
    total = sum(lengths)
    rows = np.sort(rng.permutation(total)[:count])
    episodes = np.repeat(np.arange(len(lengths)), lengths)
    steps = np.arange(total) - np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    return episodes[rows], steps[rows]


def _embedded(demos: Demonstrations, policy: SteerablePolicy, episodes: Rows, steps: Rows) -> Array:
    """Return the contexts (B, C) of some observations, ordered by episode."""
    obs = {
        key: np.concatenate(
            [_frames(demos.observations[key][k], steps[episodes == k], policy.obs_steps) for k in np.unique(episodes)]
        )
        for key in policy.observation_shapes
    }
    context: Array = policy.embed({key: th.as_tensor(x, device=policy.device) for key, x in obs.items()}).cpu().numpy()
    return context


def _frames(episode: Any, steps: Rows, obs_steps: int) -> NDArray[Any]:
    """Return the observations (B, ...) at some env steps, or (B, n, ...) with a history of n > 1."""
    frames = np.clip(steps[:, None] + np.arange(1 - obs_steps, 1), 0, None)
    rows, places = np.unique(frames, return_inverse=True)
    values: NDArray[Any] = episode[rows][places.reshape(frames.shape)]
    return values if obs_steps > 1 else values[:, 0]


def rms(values: NDArray[Any]) -> float:
    """Return the root mean square of all values, summed in float64."""
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


class LatentGaussian:
    """A Gaussian on latents, with the covariance of Ledoit and Wolf.

    The paper measures with one of 10,000 offline z how far steering leads from what the policy knows.

    :param z: Latents (N, d), N >= 2
    """

    def __init__(self, z: Array) -> None:
        from sklearn.covariance import LedoitWolf

        fitted = LedoitWolf().fit(z.astype(np.float64))
        self.center: NDArray[np.float64] = fitted.location_
        self._whitening: NDArray[np.float64] = np.linalg.cholesky(fitted.precision_)

    def distance(self, z: Array) -> NDArray[np.float64]:
        """Return the Mahalanobis distances (N,) of latents (N, d); of the Gaussian's own about √d."""
        return np.asarray(np.linalg.norm((z - self.center) @ self._whitening, axis=1))
