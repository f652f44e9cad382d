"""What is steered: the anchor z of an observation, and the chunk that a steered anchor leads to."""

from __future__ import annotations

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
from zprl_sb3.policy import SteerablePolicy, image_keys, missing_members
from zprl_sb3.wrappers.chunking import by_key
from zprl_sb3.wrappers.spec import Scale, SteeringSpec

Array = NDArray[np.float32]
NoiseKind = Literal["normal", "zero"]
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
        return nothing()

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

    def warm_up(self, space: spaces.Space[Any], count: int) -> None:
        """Make a chunk for so many environments that nobody executes, so that no robot waits for what comes but once.

        What a policy compiles or arranges at its first call takes longer than a call. It sees zeros, or what is next to
        them within the bounds. Torch's seed is not touched.

        :param space: Of one environment's raw observations
        :param count: How many environments there will be
        """
        boxes = by_key(space)
        zeros = {
            key: np.zeros_like(boxes[key].low).clip(boxes[key].low, boxes[key].high)
            for key in self.policy.observation_shapes
        }
        rngs = [np.random.default_rng(0)] * count
        with th.random.fork_rng([self.policy.device] if self.policy.device.type == "cuda" else []):
            shown = self.observe({key: np.stack([values] * count) for key, values in zeros.items()}, rngs)
            self.act(shown, np.zeros((count, self.anchor_dim), np.float32), rngs)

    def step(self, delta: Array) -> Array:
        """Return λΔz (B, d)."""
        return np.asarray(self.scale, np.float32) * delta


def nothing() -> Array:
    """Return no random numbers."""
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


def normalizer_of(policy: SteerablePolicy) -> Normalizer | None:
    """Return the normaliser of the policy's actions, if it has one."""
    return getattr(policy, "action_normalizer", None)


def normalized(policy: SteerablePolicy, actions: th.Tensor) -> th.Tensor:
    """Return actions (..., A) in the policy's normalised units, as they are where it has none."""
    normalizer = normalizer_of(policy)
    return actions if normalizer is None else normalizer(actions)


def episode_rng(seed: int) -> Generator:
    """Return the generator of one episode's latent and flow noise."""
    return np.random.default_rng((seed, NOISE_STREAM))
