"""What can be steered: the protocol every frozen policy meets, and our policy, by flow matching or diffusion."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch as th
from torch import nn

from zprl_sb3.bottleneck import Bottleneck
from zprl_sb3.networks import ConditionalUnet1d, mlp
from zprl_sb3.normalizer import Normalizer
from zprl_sb3.objectives import OBJECTIVES, Denoising, FlowMatching, objective_of
from zprl_sb3.vision import ImageEncoder

Observation = Mapping[str, th.Tensor]
"""One tensor per key: vectors (B, D), images (B, H, W, 3) in uint8; (B, n, ...) with a history of n frames."""

IMAGE_SETTINGS = ("crop", "resnet_widths", "image_dim")


class PolicyInterface(Protocol):
    """What an environment must know of a policy to be chunked for it; it can travel without the weights."""

    @property
    def observation_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of each observation key in one frame: (D,) for a vector, (H, W, 3) for an image."""
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
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise that one prediction takes: (T, A) for a flow, (0,) for a policy without any."""
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

    def embed(self, obs: Observation, where: th.Tensor | None = None) -> th.Tensor:
        """Return the context c (B, C).

        :param obs: Observations
        :param where: Where to crop the images, as in :func:`zprl_sb3.vision.crop`; (B, K, 2) for K images in the order
            of their keys. None: the centre. Given only where a random crop is asked for
        """
        ...

    def act(
        self, condition: th.Tensor, noise: th.Tensor | None = None, generator: th.Generator | None = None
    ) -> th.Tensor:
        """Return actions (B, T, A) for a condition (B, C) and noise (B, *noise_shape), drawn where it is None."""
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

    :param observation_shapes: Shape of each observation key: (D,) for a vector, (H, W, 3) for a camera's image
    :param action_dim: A
    :param obs_steps: Frames of history in one observation (paper: 1 in simulation)
    :param horizon: T, predicted actions; a multiple of ``2 ** (len(unet_widths) - 1)``
    :param chunk: h, executed actions unless chosen otherwise at load time
    :param unet_widths: Channels of the U-Net (paper: 128-256-512; smaller ones serve state tasks)
    :param time_dim: Size of the time embedding
    :param encoder_sizes: Layers of an MLP on the normalised vectors; empty: they are in the context as they are
    :param sampling_steps: Steps of the sampler; 2 gives the paper's 1 -> 0.01 -> 0
    :param crop: Height and width that images are cropped to; empty: the whole image
    :param resnet_widths: Channels of each camera's ResNet (paper: ResNet-18)
    :param image_dim: Size of a camera's part of the context
    :param objective: ``"flow"``, or ``"diffusion"`` (DDPM, sampled as DDIM) as DPPO needs it
    :raises ValueError: If the horizon does not fit the U-Net, the chunk does not fit the horizon, a shape is neither
        that of a vector nor that of an image, the crop is larger than an image, or there is no such objective
    """

    observation_shapes: dict[str, tuple[int, ...]]
    action_dim: int
    obs_steps: int = 1
    horizon: int = 16
    chunk: int = 4
    unet_widths: tuple[int, ...] = (128, 256, 512)
    time_dim: int = 128
    encoder_sizes: tuple[int, ...] = field(default=())
    sampling_steps: int = 2
    crop: tuple[int, ...] = field(default=())
    resnet_widths: tuple[int, ...] = (64, 128, 256, 512)
    image_dim: int = 256
    objective: str = "flow"

    def __post_init__(self) -> None:
        multiple = 2 ** (len(self.unet_widths) - 1)
        if self.horizon % multiple:
            raise ValueError(
                f"horizon {self.horizon} must be a multiple of {multiple} for a U-Net of {len(self.unet_widths)} levels"
            )
        check_chunk(self.chunk, self.horizon)
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective is one of {', '.join(OBJECTIVES)}, not {self.objective!r}")
        for key, shape in self.observation_shapes.items():
            if len(shape) != 1 and (len(shape) != 3 or shape[2] != 3):
                raise ValueError(f"observation {key!r} is neither a vector nor an image (H, W, 3) but of shape {shape}")
        for key in image_keys(self.observation_shapes):
            height, width, _ = self.observation_shapes[key]
            if self.crop and not (len(self.crop) == 2 and 1 <= self.crop[0] <= height and 1 <= self.crop[1] <= width):
                raise ValueError(f"crop must be [height, width] within {key!r}, {height} by {width}, not {self.crop}")


def image_keys(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the keys of images, sorted."""
    return sorted(key for key, shape in shapes.items() if len(shape) == 3)


def check_chunk(chunk: int, horizon: int) -> None:
    """Raise a ValueError unless 1 <= chunk <= horizon."""
    if not 1 <= chunk <= horizon:
        raise ValueError(
            f"A chunk of {chunk} actions cannot be executed: the policy predicts {horizon} (choose 1 to {horizon})"
        )


class FlowPolicy(nn.Module):
    """Policy over action chunks, by flow matching or diffusion, perhaps with a bottleneck.

    :param config: Architecture
    :param bottleneck: The VIB on this policy's context, or None
    """

    def __init__(self, config: FlowPolicyConfig, bottleneck: Bottleneck | None = None) -> None:
        super().__init__()
        self.config = config
        self.observation_shapes = dict(config.observation_shapes)
        self.image_keys = image_keys(config.observation_shapes)
        self.vector_keys = sorted(set(config.observation_shapes) - set(self.image_keys))
        self.action_dim, self.horizon, self.chunk = config.action_dim, config.horizon, config.chunk
        self.obs_steps = config.obs_steps
        self.noise_shape = (config.horizon, config.action_dim)
        vector_dim = sum(config.observation_shapes[key][0] for key in self.vector_keys)
        self.obs_normalizer = Normalizer(vector_dim)
        self.action_normalizer = Normalizer(config.action_dim)
        sizes = [vector_dim, *config.encoder_sizes]
        self.encoder: nn.Module = mlp(sizes) if config.encoder_sizes else nn.Identity()
        self.image_encoders = nn.ModuleList(
            ImageEncoder(config.observation_shapes[key], config.crop, config.resnet_widths, config.image_dim)
            for key in self.image_keys
        )
        self.context_dim = (len(self.image_keys) * config.image_dim + sizes[-1]) * config.obs_steps
        self.unet = ConditionalUnet1d(config.action_dim, self.context_dim, config.unet_widths, config.time_dim)
        self.bottleneck = bottleneck
        self.env_id: str | None = None
        self.render_quality: str | None = None  # of the images it has learned from, as zprl's environments have it

    @property
    def device(self) -> th.device:
        """Where the weights are."""
        return self.obs_normalizer.center.device

    @property
    def objective(self) -> FlowMatching | Denoising:
        """What the U-Net predicts, and how it is sampled from."""
        return objective_of(self.config.objective, self.config.sampling_steps)

    def context(self, obs: Observation, where: th.Tensor | None = None) -> th.Tensor:
        """Return c (B, C) **with** gradients: frame by frame, oldest first, the images' features, then the vectors.

        :param obs: Observations
        :param where: As in :meth:`embed`
        """
        parts = [
            encoder(obs[key], None if where is None else where[:, camera])
            for camera, (key, encoder) in enumerate(zip(self.image_keys, self.image_encoders, strict=True))
        ]
        if self.vector_keys:
            vectors = th.cat([obs[key].float() for key in self.vector_keys], dim=-1)
            parts.append(self.encoder(self.obs_normalizer(vectors)))
        return th.cat(parts, dim=-1).flatten(start_dim=1)

    def set_sampling_steps(self, steps: int) -> None:
        """Let the sampler take so many steps.

        :raises ValueError: If there is none, or more than it was trained with
        """
        objective_of(self.config.objective, steps)
        self.config = replace(self.config, sampling_steps=steps)

    @th.no_grad()
    def embed(self, obs: Observation, where: th.Tensor | None = None) -> th.Tensor:
        """Return c (B, C).

        :param obs: Observations
        :param where: Where to crop the images, (B, K, 2); None: the centre
        """
        return self.context(obs, where)

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
            noise = th.randn((len(condition), *self.noise_shape), generator=generator, device=condition.device)
        return self.action_normalizer.inverse(self.objective.sample(self.unet, noise, self.unet.film(condition)))

    @property
    def target_steps(self) -> range:
        """The steps, counted from the present one, of the actions that :meth:`imitation_loss` compares with."""
        return range(self.horizon)

    def fit_context(self, context: th.Tensor) -> th.Tensor:
        """Return contexts (N, C) as they are: this policy's own are made of normalised observations."""
        return context

    def imitation_loss(
        self, condition: th.Tensor, context: th.Tensor, actions: th.Tensor, noise: th.Tensor, times: th.Tensor
    ) -> th.Tensor:
        """Return the objective's loss of conditions (B, C), for a frozen policy that a bottleneck is attached to.

        :param condition: c through the bottleneck
        :param context: c, not needed here
        :param actions: (B, T, A) in environment units
        :param noise: w (B, T, A)
        :param times: k (B,)
        """
        return self.objective.loss(self.unet, self.action_normalizer(actions), noise, times, condition)

    def fingerprint(self) -> str:
        """Return the SHA-256 of architecture, weights and normalisers, bottleneck included.

        The chunk h is left out: it is chosen at load time.
        """
        config = asdict(self.config)
        del config["chunk"]
        if config["objective"] == "flow":  # as before there was a choice
            del config["objective"]
        if not self.image_keys:  # as before there were images, so that what was trained on such a policy still knows it
            shapes = config.pop("observation_shapes")
            config = {name: value for name, value in config.items() if name not in IMAGE_SETTINGS}
            config["observation_dims"] = {key: size for key, (size,) in shapes.items()}
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
        values = tensors[name].detach().cpu().contiguous().reshape(-1)
        digest.update(values.view(th.uint8).numpy().tobytes())  # NumPy knows no bfloat16
    return digest.hexdigest()
