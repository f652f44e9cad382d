"""What the methods that ZPRL is compared with steer: the context, the chunk, the flow noise, the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.random import Generator

from zprl_sb3.policy import FlowPolicy, SteerablePolicy, image_keys
from zprl_sb3.wrappers.spec import Scale
from zprl_sb3.wrappers.steering import (
    RAW,
    Array,
    LatentSteering,
    NoiseKind,
    Steering,
    normalized,
    normalizer_of,
    nothing,
)

CENTRE = 0.4999  # of places to crop at: that of an odd margin, which has no middle, is the one before it


class EmbeddingSteering(Steering):
    """The anchor is the context itself, a ~ flow(c + λΔc). With Δc = 0 it is the base policy without a bottleneck."""

    kind = "embedding"

    @property
    def anchor_dim(self) -> int:
        """C, size of the context."""
        return self.policy.context_dim

    def _anchor(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        return context

    def _generate(self, context: th.Tensor, steered: th.Tensor, noise: th.Tensor) -> th.Tensor:
        return self.policy.act(steered, noise)


class ActionSteering(Steering):
    """Policy Decorator: the anchor is the base policy's chunk, a + λΔa in the policy's normalised actions.

    The base policy acts through its bottleneck where it has one, as in ZPRL, so that both start from the same one. The
    chunk of the next observation is drawn once: the one that is shown is the one that is executed.

    :param policy: A policy; its ``action_normalizer`` gives the units of λ, without one they are the environment's
    """

    kind = "action"

    @property
    def anchor_dim(self) -> int:
        """Size of a chunk, h * A."""
        return self.policy.chunk * self.policy.action_dim

    def _draw_anchor(self, rng: Generator) -> Array:
        return self._flow_noise(rng)

    def _draw_noise(self, rng: Generator) -> Array:
        return nothing()

    def _anchor(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        chunk = self.policy.act(self._condition(context), noise)[:, : self.policy.chunk]
        return normalized(self.policy, chunk).flatten(1)

    def _generate(self, context: th.Tensor, steered: th.Tensor, noise: th.Tensor) -> th.Tensor:
        chunk, normalizer = steered.view(len(steered), -1, self.policy.action_dim), normalizer_of(self.policy)
        return chunk if normalizer is None else normalizer.inverse(chunk)


class NoiseSteering(Steering):
    """DSRL: the flow noise itself is w = bΔ, a ~ flow(g(z), w), with b in the place of λ. The anchor is 0.

    A schedule of few sampling steps nearly forgets its noise, and steering it then changes little: give the policy
    eight or more (``load_policy(..., sampling_steps=8)``). The base policy is not at Δ = 0 but at w ~ N(0, I).

    :raises ValueError: For ``noise="zero"`` and a policy without noise, and as in :class:`Steering`
    """

    kind = "noise"

    def _check_noise(self, noise: str) -> None:
        super()._check_noise(noise)
        if noise == "zero":
            raise ValueError("noise='zero' leaves nothing to steer: the noise is what is steered")

    @property
    def anchor_dim(self) -> int:
        """Size of the flow noise, T * A.

        :raises ValueError: If the policy takes no noise
        """
        size = math.prod(self.policy.noise_shape)
        if not size:
            raise ValueError("The actions of this policy follow from its context alone: it has no noise to steer")
        return size

    def _draw_noise(self, rng: Generator) -> Array:
        return nothing()

    def _anchor(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        return context.new_zeros(len(context), self.anchor_dim)

    def _generate(self, context: th.Tensor, steered: th.Tensor, noise: th.Tensor) -> th.Tensor:
        return self.policy.act(self._condition(context), steered.view(len(steered), *self.policy.noise_shape))

    @th.no_grad()
    def chunk(self, context: th.Tensor, delta: th.Tensor) -> th.Tensor:
        """Return the executed actions (B, h * A) that Δ (B, T * A) leads to, normalised where the policy can."""
        steered = th.as_tensor(self.scale, dtype=delta.dtype, device=delta.device) * delta
        return normalized(self.policy, self._generate(context, steered, steered)[:, : self.policy.chunk]).flatten(1)


class WeightSteering(ActionSteering):
    """ReinFlow, DPPO: nothing is moved from outside, the weights are. Whoever learns sees what the policy sees.

    Beside the frozen policy's context c and chunk z (normalised, through c, not through the bottleneck) the observation
    holds the policy's own observations ``obs/KEY``, with their frames (n, ...) first, the flow noise ``noise`` (T, A)
    that z was made from, and, where there are images, ``where`` they are cropped (K, 2). What is executed is z + Δ: how
    far a chunk of other weights is from the frozen policy's, for the same noise. Δ = 0 is the base policy.

    :param policy: A :class:`~zprl_sb3.policy.FlowPolicy`, or the path of its checkpoint
    :param scale: 1: nothing scales Δ
    :raises TypeError: For another project's policy, whose networks are not trained here
    :raises ValueError: For another scale, and as in :class:`Steering`
    """

    kind = "weights"
    limit = 1000.0  # SB3 wants bounds. What clips actions is the environment, as it does the frozen policy's.

    def __init__(
        self,
        policy: SteerablePolicy | str | Path,
        scale: Scale = 1.0,
        noise: NoiseKind = "normal",
        random_crop: bool = False,
    ) -> None:
        super().__init__(policy, scale, noise, random_crop)
        if not isinstance(self.policy, FlowPolicy):
            raise TypeError(f"Only policies of `zprl pretrain` can be fine-tuned, not a {type(self.policy).__name__}")
        if self.scale != 1.0:
            raise ValueError(f"scale (λ) is 1 where the weights are tuned, not {scale!r}")
        self._images = len(image_keys(self.policy.observation_shapes))

    @property
    def observation_space(self) -> spaces.Dict:
        """{"c", "z", "noise", "obs/KEY" ...} and, with images, "where"."""
        policy = self.policy
        parts: dict[str, spaces.Space[Any]] = dict(super().observation_space.spaces)
        parts["noise"] = spaces.Box(-np.inf, np.inf, policy.noise_shape, np.float32)
        for key, shape in policy.observation_shapes.items():
            # The leading axis also keeps SB3 from taking images for ones that it should transpose.
            shape, vector = (policy.obs_steps, *shape), len(shape) == 1
            parts[RAW + key] = (
                spaces.Box(-np.inf, np.inf, shape, np.float32) if vector else spaces.Box(0, 255, shape, np.uint8)
            )
        if self._images:
            parts["where"] = spaces.Box(0, 1, (self._images, 2), np.float32)
        return spaces.Dict(parts)

    def _condition(self, context: th.Tensor) -> th.Tensor:
        return context

    def _raw(self, obs: Mapping[str, th.Tensor], where: th.Tensor, noise: th.Tensor) -> dict[str, th.Tensor]:
        shown = {"noise": noise}
        for key, shape in self.policy.observation_shapes.items():
            values = obs[key].view(len(noise), self.policy.obs_steps, *shape)
            shown[RAW + key] = values.float() if len(shape) == 1 else values
        if self._images:
            shown["where"] = where if self._crops else where.new_full((len(noise), self._images, 2), CENTRE)
        return shown


STEERINGS: dict[str, type[Steering]] = {
    steering.kind: steering
    for steering in (LatentSteering, ActionSteering, NoiseSteering, EmbeddingSteering, WeightSteering)
}
"""What can be steered, by the name that a saved model knows it by."""


def training_steering(kind: str, policy: SteerablePolicy, scale: Scale, sample_latent: bool) -> Steering:
    """Return the steering of environments to train in; one to evaluate in is made without further arguments.

    As in pretraining, images are cropped at random places while it learns, and at the centre when it is judged.

    :param kind: One of :data:`STEERINGS`
    :param policy: The frozen policy
    :param scale: λ
    :param sample_latent: Draw z from the posterior, where z is a latent
    """
    sampled: dict[str, Any] = {"sample_latent": sample_latent} if kind == LatentSteering.kind else {}
    return STEERINGS[kind](policy, scale, random_crop=True, **sampled)
