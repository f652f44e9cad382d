"""What the adapters share: another project's frozen policy as a :class:`~zprl_sb3.policy.SteerablePolicy`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch as th
from torch import nn
from torch.nn import functional as F

from zprl_sb3.bottleneck import Bottleneck
from zprl_sb3.normalizer import Normalizer
from zprl_sb3.policy import FlowPolicy, Observation, check_chunk, fingerprint

MAX_CONTEXT = 20_000
"""Size of a context up to which replay buffer, critics and bottleneck, which all hold or read it, are practicable."""


class AdapterError(ValueError):
    """A checkpoint that an adapter cannot read. The message names the file, what is wrong with it and what to do."""


def check_context(size: int) -> None:
    """Raise an AdapterError if a context is too large to be steered."""
    if size > MAX_CONTEXT:
        raise AdapterError(f"the context would have {size} dimensions; what is steered may have at most {MAX_CONTEXT}")


class AdaptedPolicy(nn.Module, ABC):
    """A policy of another project. An adapter says how it embeds (:meth:`context`) and acts (:meth:`generate`).

    Its own weights and normalisers are its own. What is shown outside as the context c is scaled to [-1, 1] once a
    bottleneck was attached (``context_normalizer``; before, it is the identity): a foreign embedding may have any
    scale, and bottleneck, SAC and the guideline for λ are made for contexts of about 1.

    :param observation_shapes: Shape of each key of the **environment's** observation that the policy needs, in one
        frame: (D,) for a vector, (H, W, 3) for a uint8 image
    :param action_dim: A
    :param context_dim: C
    :param horizon: T, the actions of one prediction from the present step on
    :param chunk: h, executed of them; the policy's own where it has one
    :param obs_steps: n, frames of observation history
    :param noise_shape: Of the noise that one prediction takes; (0,) for a policy without any
    :param target_steps: The steps, counted from the present one, of the actions that :meth:`imitation_loss` compares
        with; a generator that predicts past actions too begins before 0. Default: 0 to T
    :raises AdapterError: If the context has more than :data:`MAX_CONTEXT` dimensions
    :raises ValueError: If the chunk does not fit the horizon
    """

    def __init__(
        self,
        observation_shapes: Mapping[str, tuple[int, ...]],
        action_dim: int,
        context_dim: int,
        horizon: int,
        chunk: int,
        obs_steps: int = 1,
        noise_shape: tuple[int, ...] = (0,),
        target_steps: range | None = None,
    ) -> None:
        super().__init__()
        check_chunk(chunk, horizon)
        check_context(context_dim)
        self.observation_shapes = dict(observation_shapes)
        self.action_dim, self.context_dim = action_dim, context_dim
        self.horizon, self.chunk, self.obs_steps = horizon, chunk, obs_steps
        self.noise_shape = noise_shape
        self.target_steps = target_steps or range(horizon)
        self.context_normalizer = Normalizer(context_dim)
        self.action_normalizer = Normalizer(action_dim)
        self.bottleneck: Bottleneck | None = None
        self.env_id: str | None = None
        self.render_quality: str | None = None

    @abstractmethod
    def context(self, obs: Observation) -> th.Tensor:
        """Return the policy's own embedding (B, C) of observations (B, D), (B, H, W, 3), or (B, n, ...) each."""

    @abstractmethod
    def generate(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """Return actions (B, T, A) in environment units, with gradients to the context (B, C).

        :param context: As :meth:`context` returns it
        :param noise: (B, *noise_shape), from a standard normal
        """

    @property
    def device(self) -> th.device:
        """Where the weights are."""
        return self.context_normalizer.center.device

    @th.no_grad()
    def embed(self, obs: Observation, where: th.Tensor | None = None) -> th.Tensor:
        """Return c (B, C). Images are cropped at the centre, if the policy crops: ``where`` is not used."""
        normalized: th.Tensor = self.context_normalizer(self.context(obs))
        return normalized

    @th.no_grad()
    def act(
        self, condition: th.Tensor, noise: th.Tensor | None = None, generator: th.Generator | None = None
    ) -> th.Tensor:
        """Return the action chunk (B, T, A) in environment units.

        :param condition: c or a decoded latent, (B, C)
        :param noise: (B, *noise_shape); drawn from a standard normal where None
        :param generator: For that draw
        """
        if noise is None:
            noise = th.randn((len(condition), *self.noise_shape), generator=generator, device=condition.device)
        return self.generate(self.context_normalizer.inverse(condition), noise)

    def fit_context(self, context: th.Tensor) -> th.Tensor:
        """Scale what :meth:`embed` returns so that contexts (N, C) lie in [-1, 1], and return these in it."""
        own = self.context_normalizer.inverse(context)
        normalized: th.Tensor = self.context_normalizer.fit(own)(own)
        return normalized

    def imitation_loss(
        self, condition: th.Tensor, context: th.Tensor, actions: th.Tensor, noise: th.Tensor, times: th.Tensor
    ) -> th.Tensor:
        """Return the loss that a bottleneck is attached by: here the distance to the policy's own actions.

        A generator that was trained by denoising overrides it by its own loss. Gradients go to the condition only.

        :param condition: c through the bottleneck, (B, C)
        :param context: c, (B, C)
        :param actions: Those of the demonstrations, (B, len(target_steps), A), in environment units
        :param noise: (B, *noise_shape)
        :param times: (B,), in (0, 1], for a loss at one level of noise
        """
        own, through = (
            self.action_normalizer(self.generate(self.context_normalizer.inverse(c), noise))
            for c in (context, condition)
        )
        return F.mse_loss(through, own.detach())

    def fingerprint(self) -> str:
        """Return the SHA-256 of weights, normalisers and bottleneck, and of what else decides what the policy does."""
        return fingerprint(self.state_dict(), repr(self.settings()))

    def settings(self) -> dict[str, object]:
        """Return what, beside the weights, decides what the policy does; an adapter adds its own, e.g. the sampler."""
        return {
            "adapter": type(self).__name__,
            "obs_steps": self.obs_steps,
            "shapes": self.observation_shapes,
            "horizon": self.horizon,
            "noise": self.noise_shape,
            "targets": self.target_steps,
        }

    def set_sampling_steps(self, steps: int) -> None:
        """Let the sampler take so many steps; overridden where there is one.

        :raises ValueError: If this policy does not sample
        """
        raise ValueError(f"{type(self).__name__} does not sample in steps: leave sampling_steps={steps} out")

    def freeze(self) -> AdaptedPolicy:
        """Put the policy in evaluation mode and switch all gradients off."""
        return self.eval().requires_grad_(False)

    def frames(self, obs: Observation, keys: Sequence[str]) -> th.Tensor:
        """Return vectors of some keys side by side, (B, n, sum of their sizes), also where n = 1."""
        parts = [obs[key].float().reshape(len(obs[key]), self.obs_steps, -1) for key in keys]
        return th.cat(parts, dim=-1)

    def images(self, obs: Observation, key: str) -> th.Tensor:
        """Return images as networks take them, (B, n, 3, H, W), in [0, 1]."""
        images = obs[key].reshape(len(obs[key]), self.obs_steps, *self.observation_shapes[key])
        return images.movedim(-1, -3).float() / 255.0


FrozenPolicy = FlowPolicy | AdaptedPolicy
"""What a bottleneck can be attached to."""
