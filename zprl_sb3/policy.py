"""What can be steered: the protocol every frozen policy meets, and our flow-matching policy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch as th
from torch import nn

from zprl_sb3.bottleneck import Bottleneck
from zprl_sb3.flow import sample
from zprl_sb3.networks import ConditionalUnet1d, mlp
from zprl_sb3.normalizer import Normalizer

Observation = Mapping[str, th.Tensor]
"""One tensor per key: (B, D), or (B, n, D) with a history of n frames."""


class PolicyInterface(Protocol):
    """What an environment must know of a policy to be chunked for it; it can travel without the weights."""

    @property
    def observation_dims(self) -> Mapping[str, int]:
        """Size D of each observation key."""
        ...

    @property
    def action_dim(self) -> int:
        """A, size of one action."""
        ...

    @property
    def obs_steps(self) -> int:
        """Frames of observation history that the policy expects."""
        ...

    @property
    def chunk(self) -> int:
        """h, executed actions."""
        ...

    @property
    def env_id(self) -> str | None:
        """Gymnasium id of the environment the policy was trained for; None where that does not matter."""
        ...


class SteerablePolicy(PolicyInterface, Protocol):
    """What any checkpoint must offer to be steered. Batched, without gradients, actions in environment units."""

    @property
    def horizon(self) -> int:
        """T >= h, predicted actions."""
        ...

    @property
    def context_dim(self) -> int:
        """C, size of the context."""
        ...

    @property
    def bottleneck(self) -> Bottleneck | None:
        """The latent space for steering; None before one is attached."""
        ...

    @property
    def device(self) -> th.device:
        """Where the weights are."""
        ...

    def embed(self, obs: Observation) -> th.Tensor:
        """Return the context c (B, C)."""
        ...

    def act(
        self, condition: th.Tensor, noise: th.Tensor | None = None, generator: th.Generator | None = None
    ) -> th.Tensor:
        """Return the action chunk (B, T, A) for a condition (B, C) and noise (B, T, A), drawn where it is None."""
        ...

    def fingerprint(self) -> str:
        """Return a hash that changes with all that decides what the policy does, but for the chunk."""
        ...


def missing_members(policy: object) -> list[str]:
    """Return the members of :class:`SteerablePolicy` that an object lacks."""
    members = [name for cls in reversed(SteerablePolicy.__mro__) for name in vars(cls) if not name.startswith("_")]
    return [name for name in members if not hasattr(policy, name)]


@dataclass(frozen=True)
class FlowPolicyConfig:
    """Architecture of :class:`FlowPolicy`.

    :param observation_dims: Size of each observation key
    :param action_dim: A
    :param obs_steps: Frames of history in one observation (paper: 1 in simulation)
    :param horizon: T, predicted actions; a multiple of ``2 ** (len(unet_widths) - 1)``
    :param chunk: h, executed actions unless chosen otherwise at load time
    :param unet_widths: Channels of the U-Net (paper: 128-256-512; smaller ones serve state tasks)
    :param time_dim: Size of the time embedding
    :param encoder_sizes: Layers of an MLP on the normalised observation; empty: the context is that observation itself
    :param sampling_steps: Steps of the sampler; 2 gives the paper's 1 -> 0.01 -> 0
    :raises ValueError: If the horizon does not fit the U-Net or the chunk does not fit the horizon
    """

    observation_dims: dict[str, int]
    action_dim: int
    obs_steps: int = 1
    horizon: int = 16
    chunk: int = 4
    unet_widths: tuple[int, ...] = (128, 256, 512)
    time_dim: int = 128
    encoder_sizes: tuple[int, ...] = field(default=())
    sampling_steps: int = 2

    def __post_init__(self) -> None:
        multiple = 2 ** (len(self.unet_widths) - 1)
        if self.horizon % multiple:
            raise ValueError(
                f"horizon {self.horizon} must be a multiple of {multiple} for a U-Net of {len(self.unet_widths)} levels"
            )
        check_chunk(self.chunk, self.horizon)


def check_chunk(chunk: int, horizon: int) -> None:
    """Raise a ValueError unless 1 <= chunk <= horizon."""
    if not 1 <= chunk <= horizon:
        raise ValueError(
            f"A chunk of {chunk} actions cannot be executed: the policy predicts {horizon} (choose 1 to {horizon})"
        )


class FlowPolicy(nn.Module):
    """Flow-matching policy over action chunks, optionally with a bottleneck.

    :param config: Architecture
    :param bottleneck: The VIB on this policy's context, or None
    """

    def __init__(self, config: FlowPolicyConfig, bottleneck: Bottleneck | None = None) -> None:
        super().__init__()
        self.config = config
        self.observation_dims = dict(config.observation_dims)
        self.keys = sorted(config.observation_dims)
        self.action_dim, self.horizon, self.chunk = config.action_dim, config.horizon, config.chunk
        self.obs_steps = config.obs_steps
        frame_dim = sum(config.observation_dims.values())
        self.obs_normalizer = Normalizer(frame_dim)
        self.action_normalizer = Normalizer(config.action_dim)
        sizes = [frame_dim, *config.encoder_sizes]
        self.encoder: nn.Module = mlp(sizes) if config.encoder_sizes else nn.Identity()
        self.context_dim = sizes[-1] * config.obs_steps
        self.unet = ConditionalUnet1d(config.action_dim, self.context_dim, config.unet_widths, config.time_dim)
        self.bottleneck = bottleneck
        self.env_id: str | None = None

    @property
    def device(self) -> th.device:
        """Where the weights are."""
        return self.obs_normalizer.center.device

    def context(self, obs: Observation) -> th.Tensor:
        """Return c (B, C) **with** gradients: the normalised, encoded frames, oldest first."""
        frames = th.cat([obs[key].float() for key in self.keys], dim=-1)
        context: th.Tensor = self.encoder(self.obs_normalizer(frames)).flatten(start_dim=1)
        return context

    @th.no_grad()
    def embed(self, obs: Observation) -> th.Tensor:
        """Return c (B, C)."""
        return self.context(obs)

    @th.no_grad()
    def act(
        self, condition: th.Tensor, noise: th.Tensor | None = None, generator: th.Generator | None = None
    ) -> th.Tensor:
        """Return the action chunk (B, T, A) in environment units.

        :param condition: c or a decoded latent g(z), (B, C)
        :param noise: w (B, T, A); drawn from a standard normal where None
        :param generator: For that draw
        """
        if noise is None:
            shape = (len(condition), self.horizon, self.action_dim)
            noise = th.randn(shape, generator=generator, device=condition.device)
        return self.action_normalizer.inverse(sample(self.unet, noise, condition, self.config.sampling_steps))

    def fingerprint(self) -> str:
        """Return the SHA-256 of architecture, weights and normalisers, bottleneck included.

        The chunk h is left out: it is chosen at load time.
        """
        config = asdict(self.config)
        del config["chunk"]
        # In JSON a tuple is a list, so a policy that was loaded again has the same hash.
        return fingerprint(self.state_dict(), json.dumps(config, sort_keys=True))

    def freeze(self) -> FlowPolicy:
        """Put the policy in evaluation mode and switch all gradients off."""
        return self.eval().requires_grad_(False)


def fingerprint(tensors: Mapping[str, Any], text: str) -> str:
    """Return the SHA-256 of a text and named tensors."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
