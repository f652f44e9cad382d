"""What is steered: the anchor z of an observation, and the chunk that a steered anchor leads to."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch as th
from gymnasium import spaces
from numpy.random import Generator
from numpy.typing import NDArray

from zprl_sb3.bottleneck import Bottleneck
from zprl_sb3.checkpoint import load_policy
from zprl_sb3.normalizer import Normalizer
from zprl_sb3.policy import FlowPolicy, SteerablePolicy, image_keys, missing_members
from zprl_sb3.wrappers.spec import Scale, SteeringSpec

Array = NDArray[np.float32]
NoiseKind = Literal["normal", "zero"]
CENTRE = 0.4999  # of places to crop at: that of an odd margin, which has no middle, is the one before it
RAW = "obs/"  # before the names of the policy's own observations
NOISE_STREAM = 0x5A  # keeps an episode's flow noise apart from its layout, which has the same seed


class Steering(ABC):
    """A frozen policy whose actions move when its anchor z is moved to z + λΔz. Batched, NumPy in and out.

    Random numbers come from one generator per environment: n environments side by side see what each would see alone.

    :param policy: The frozen policy, or the path of its checkpoint
    :param scale: λ > 0, or one of each dimension of z
    :param noise: ``"normal"`` draws the flow noise w ~ N(0, I) for each chunk; ``"zero"`` sets it to 0 (a control)
    :param random_crop: Crop images at random places (as the authors do while collecting) instead of at the centre
    :raises TypeError: If the policy lacks a member of :class:`~zprl_sb3.policy.SteerablePolicy`
    :raises ValueError: If λ is not positive and finite or the noise has another name
    """

    kind: str
    limit = 1.0
    """Of what Δ can be, along each axis."""

    def __init__(
        self,
        policy: SteerablePolicy | str | Path,
        scale: Scale,
        noise: NoiseKind = "normal",
        random_crop: bool = False,
    ) -> None:
        if not all(_is_positive(value) for value in (scale if isinstance(scale, (tuple, list)) else [scale])):
            raise ValueError(f"scale (λ) must be a positive number, not {scale!r}")
        self._check_noise(noise)
        self.policy: SteerablePolicy = load_policy(policy) if isinstance(policy, (str, Path)) else policy
        if missing := missing_members(self.policy):
            raise TypeError(
                f"{type(policy).__name__} cannot be steered: it lacks {', '.join(missing)} "
                "(zprl_sb3.policy.SteerablePolicy says what each is)"
            )
        self.scale: Scale = tuple(map(float, scale)) if isinstance(scale, (tuple, list)) else float(scale)
        self.noise = noise
        self._crops = len(image_keys(self.policy.observation_shapes)) if random_crop else 0

    def _check_noise(self, noise: str) -> None:
        if noise not in ("normal", "zero"):
            raise ValueError(f"noise is 'normal' or 'zero', not {noise!r}")

    @property
    def mean_scale(self) -> float:
        """λ, on average where each dimension has its own."""
        return float(np.mean(self.scale))

    @property
    @abstractmethod
    def anchor_dim(self) -> int:
        """d, size of z and of Δz."""

    @abstractmethod
    def _anchor(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """Return z (B, d) for contexts (B, C) and what :meth:`_draw_anchor` drew."""

    def _draw_anchor(self, rng: Generator) -> Array:
        """Return the random numbers that one environment's anchor needs."""
        return _nothing()

    def _draw_noise(self, rng: Generator) -> Array:
        """Return the random numbers that one environment's next chunk needs: the flow noise w, (T, A) of a flow."""
        return self._flow_noise(rng)

    def _flow_noise(self, rng: Generator) -> Array:
        shape = self.policy.noise_shape
        return np.zeros(shape, np.float32) if self.noise == "zero" else rng.standard_normal(shape, np.float32)

    def _condition(self, context: th.Tensor) -> th.Tensor:
        """Return what the unsteered policy acts on: the context (B, C), through the bottleneck where there is one."""
        bottleneck = self.policy.bottleneck
        return context if bottleneck is None else bottleneck.decode(bottleneck.encode(context)[0])

    @abstractmethod
    def _generate(self, context: th.Tensor, steered: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """Return actions (B, T, A) for contexts (B, C), steered anchors z̃ (B, d) and what :meth:`_draw_noise` drew."""

    @property
    def observation_space(self) -> spaces.Dict:
        """{"c": (C,), "z": (d,)}, unbounded."""
        sizes = {"c": self.policy.context_dim, "z": self.anchor_dim}
        return spaces.Dict({key: spaces.Box(-np.inf, np.inf, (size,), np.float32) for key, size in sizes.items()})

    @property
    def action_space(self) -> spaces.Box:
        """Δz in [-1, 1]^d."""
        return spaces.Box(-self.limit, self.limit, (self.anchor_dim,), np.float32)

    def spec(self, gamma: float) -> SteeringSpec:
        """Return what a model trained on this steering depends on.

        :raises ValueError: If there is not one λ for each dimension of z
        """
        if isinstance(self.scale, tuple) and len(self.scale) != self.anchor_dim:
            raise ValueError(f"scale has {len(self.scale)} values of λ, but z has {self.anchor_dim} dimensions")
        return SteeringSpec(self.kind, self.scale, self.policy.chunk, gamma, self.policy.fingerprint())

    def observe(self, obs: Mapping[str, NDArray[Any]], rngs: Sequence[Generator]) -> dict[str, Array]:
        """Return {"c": (B, C), "z": (B, d)} for raw observations, one array (B, ...) per key.

        :param obs: Observations of B environments
        :param rngs: Their B generators
        """
        device = self.policy.device
        tensors = {key: th.as_tensor(obs[key], device=device) for key in self.policy.observation_shapes}
        # Row by row: a generator that is there twice, for the last observation of an episode and the first of the next,
        # draws in the order in which a single environment does.
        draws = [(rng.random((self._crops, 2), np.float32), self._draw_anchor(rng)) for rng in rngs]
        where, noise = (th.as_tensor(np.stack(numbers), device=device) for numbers in zip(*draws, strict=True))
        with th.no_grad():
            # A policy of someone else's need not know of crops.
            context = self.policy.embed(tensors, where) if self._crops else self.policy.embed(tensors)
            anchor = self._anchor(context, noise)
        shown = {"c": context, "z": anchor} | self._raw(tensors, where, noise)
        return {key: values.cpu().numpy() for key, values in shown.items()}

    def _raw(self, obs: Mapping[str, th.Tensor], where: th.Tensor, noise: th.Tensor) -> dict[str, th.Tensor]:
        """Return what is shown beside c and z."""
        return {}

    def act(self, observation: Mapping[str, Array], delta: Array, rngs: Sequence[Generator]) -> Array:
        """Return the executed chunks (B, h, A) in environment units for z̃ = z + λΔz.

        :param observation: What :meth:`observe` returned; its z is the one that is steered
        :param delta: Δz (B, d), clipped to the limit, which is 1
        :param rngs: The B generators of the flow noise
        :raises ValueError: If Δz is NaN or infinite
        """
        policy = self.policy
        steered = observation["z"] + self.step(_clipped(delta, self.limit))
        noise = th.as_tensor(np.stack([self._draw_noise(rng) for rng in rngs]), device=policy.device)
        with th.no_grad():
            context, anchor = (th.as_tensor(x, device=policy.device) for x in (observation["c"], steered))
            actions = self._generate(context, anchor, noise)
        chunk: Array = actions[:, : policy.chunk].cpu().numpy()
        return chunk

    def step(self, delta: Array) -> Array:
        """Return λΔz (B, d)."""
        return np.asarray(self.scale, np.float32) * delta


def _nothing() -> Array:
    return np.zeros(0, np.float32)


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value)) and bool(value > 0)


def _clipped(delta: Array, limit: float) -> Array:
    delta = np.asarray(delta, np.float32)
    if not np.isfinite(delta).all():
        rows = np.flatnonzero(~np.isfinite(delta).all(axis=1)).tolist()
        raise ValueError(f"Δz is not finite (NaN or infinite in environments {rows}): the agent has become unstable")
    return np.clip(delta, -limit, limit)


class LatentSteering(Steering):
    """ZPRL: the anchor is the bottleneck's latent, a ~ flow(g(z + λΔz)).

    :param policy: A policy with a bottleneck, or the path of its checkpoint
    :param scale: λ, in units of z, or one of each dimension
    :param sample_latent: Draw z from the posterior (as the authors do while collecting) instead of using its mean
    :param noise: As in :class:`Steering`
    :param random_crop: As in :class:`Steering`
    :param widening: The posterior's deviation is multiplied by it where z is drawn, for SOE's exploration
    :raises ValueError: If the policy has no bottleneck, and as in :class:`Steering`
    """

    kind = "latent"

    def __init__(
        self,
        policy: SteerablePolicy | str | Path,
        scale: Scale,
        sample_latent: bool = False,
        noise: NoiseKind = "normal",
        random_crop: bool = False,
        widening: float = 1.0,
    ) -> None:
        super().__init__(policy, scale, noise, random_crop)
        if self.policy.bottleneck is None:
            raise ValueError("This policy has no bottleneck, so there is no latent to steer: pretrain it with one")
        self.bottleneck: Bottleneck = self.policy.bottleneck
        self.sample_latent, self.widening = sample_latent, widening

    @property
    def anchor_dim(self) -> int:
        """d, size of the latent."""
        return self.bottleneck.latent_dim

    def _draw_anchor(self, rng: Generator) -> Array:
        return rng.standard_normal(self.anchor_dim if self.sample_latent else 0, np.float32)

    def _anchor(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        mean, std = self.bottleneck.encode(context)
        return mean + self.widening * std * noise if self.sample_latent else mean

    def _generate(self, context: th.Tensor, steered: th.Tensor, noise: th.Tensor) -> th.Tensor:
        return self.policy.act(self.bottleneck.decode(steered), noise)


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


def _normalizer(policy: SteerablePolicy) -> Normalizer | None:
    return getattr(policy, "action_normalizer", None)


def normalized(policy: SteerablePolicy, actions: th.Tensor) -> th.Tensor:
    """Return actions (..., A) in the policy's normalised units, as they are where it has none."""
    normalizer = _normalizer(policy)
    return actions if normalizer is None else normalizer(actions)


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
        return _nothing()

    def _anchor(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        chunk = self.policy.act(self._condition(context), noise)[:, : self.policy.chunk]
        return normalized(self.policy, chunk).flatten(1)

    def _generate(self, context: th.Tensor, steered: th.Tensor, noise: th.Tensor) -> th.Tensor:
        chunk, normalizer = steered.view(len(steered), -1, self.policy.action_dim), _normalizer(self.policy)
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
        return _nothing()

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


def episode_rng(seed: int) -> Generator:
    """Return the generator of one episode's latent and flow noise."""
    return np.random.default_rng((seed, NOISE_STREAM))
