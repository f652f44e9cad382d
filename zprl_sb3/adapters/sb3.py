"""Stable-Baselines3's ``.zip`` of PPO, A2C, SAC, TD3 and DDPG, and sb3-contrib's of TRPO and TQC: continuous actions.

The actor is built anew; what the file holds in pickles is not touched (:mod:`zprl_sb3.adapters.sb3_files`).

The context c is what the actor's layers see: the observation, normalised where it was, through the features extractor.
It tells the state. The hidden layers behind it have forgotten what did not matter to this policy, and what it does
wrong may be for that.

The policy acts as ``model.predict(obs, deterministic=True)`` does, and takes no noise.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th
from torch import nn

from zprl_sb3.adapters.base import AdaptedPolicy, AdapterError
from zprl_sb3.adapters.inputs import Shape, environment_keys
from zprl_sb3.adapters.sb3_files import Input, action_limits, activation_of, inputs_of, policy_settings, read_zip
from zprl_sb3.adapters.standardizer import Standardizer
from zprl_sb3.adapters.vec_normalize import read_vec_normalize
from zprl_sb3.policy import Observation
from zprl_sb3.wrappers.chunking import BOX_KEY

ACTIVATIONS = ("CELU", "ELU", "GELU", "Hardswish", "LeakyReLU", "Mish", "ReLU", "SELU", "SiLU", "Sigmoid", "Tanh")
"""Of torch.nn: those without weights, with their default arguments."""

MISTAKEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Family:
    """Algorithms whose actors are alike.

    :param name: Of the algorithms
    :param layers: Where its linear layers are in the state dict, in order
    :param extractor: Where its features extractor is
    :param unused: What else such a policy consists of
    :param activation: Between the layers, unless the checkpoint says otherwise
    :param squashed: Whether tanh limits the action, which is then scaled to the action space
    """

    name: str
    layers: tuple[str, ...]
    extractor: str
    unused: tuple[str, ...]
    activation: str
    squashed: bool


CRITICS = ("critic.", "critic_target.")
ON_POLICY = Family(
    "PPO, A2C or TRPO",
    layers=("mlp_extractor.policy_net", "action_net"),
    extractor="pi_features_extractor.",
    unused=("log_std", "mlp_extractor.value_net.", "value_net.", "features_extractor.", "vf_features_extractor."),
    activation="Tanh",
    squashed=False,
)
SAC = Family(
    "SAC or TQC",
    layers=("actor.latent_pi", "actor.mu"),
    extractor="actor.features_extractor.",
    unused=("actor.log_std", *CRITICS),
    activation="ReLU",
    squashed=True,
)
TD3 = Family(
    "TD3 or DDPG",
    layers=("actor.mu",),
    extractor="actor.features_extractor.",
    unused=("actor_target.", *CRITICS),
    activation="ReLU",
    squashed=True,
)


class NatureCnn(nn.Module):
    """SB3's features of images (B, 3, H, W) in [0, 1]: three convolutions and a linear layer (Mnih et al., 2015).

    :param last: Weights of the linear layer, (features, inputs), for their shape
    """

    def __init__(self, last: th.Tensor) -> None:
        super().__init__()
        self.features = last.shape[0]
        convolutions = nn.Conv2d(3, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1)
        self.cnn = nn.Sequential(*(part for layer in convolutions for part in (layer, nn.ReLU())), nn.Flatten())
        self.linear = nn.Sequential(nn.Linear(last.shape[1], self.features), nn.ReLU())

    def forward(self, images: th.Tensor) -> th.Tensor:
        """Return features (B, F)."""
        features: th.Tensor = self.linear(self.cnn(images))
        return features


class SB3Policy(AdaptedPolicy):
    """An actor of Stable-Baselines3.

    :param encoders: What makes the features of each input, in the policy's order
    :param groups: The environment's keys of each input
    :param shapes: Of those keys
    :param actor: From the features to the action, before that is limited
    :param limits: Lowest and highest actions (2, A)
    :param squashed: Limit the action by tanh and scale it, instead of clipping it
    :param chunk: 1
    """

    def __init__(
        self,
        encoders: Sequence[Standardizer | NatureCnn],
        groups: Mapping[str, Sequence[str]],
        shapes: Mapping[str, Shape],
        actor: nn.Sequential,
        limits: th.Tensor,
        squashed: bool,
        chunk: int = 1,
    ) -> None:
        features = sum(encoder.features for encoder in encoders)
        super().__init__(shapes, limits.shape[1], features, horizon=1, chunk=chunk)
        self.encoders, self.actor = nn.ModuleList(encoders), actor
        self.groups, self.squashed = groups, squashed
        self.limits: th.Tensor
        self.register_buffer("limits", limits)

    def context(self, obs: Observation) -> th.Tensor:
        """Return the features (B, C)."""
        inputs = zip(self.encoders, self.groups.values(), strict=True)
        return th.cat([encoder(self._input(obs, keys, encoder)) for encoder, keys in inputs], dim=1)

    def _input(self, obs: Observation, keys: Sequence[str], encoder: nn.Module) -> th.Tensor:
        if isinstance(encoder, NatureCnn):
            return self.images(obs, keys[0])[:, 0]
        return th.cat([obs[key].double().flatten(start_dim=1) for key in keys], dim=1)

    def generate(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """Return actions (B, 1, A) of features (B, C). Where clipping limits an action, its gradient is zero."""
        low, high = self.limits
        action: th.Tensor = self.actor(context)
        action = low + 0.5 * (action.tanh() + 1.0) * (high - low) if self.squashed else action.clamp(low, high)
        return action[:, None]

    def settings(self) -> dict[str, object]:
        """Return what, beside the weights, decides what the policy does."""
        return super().settings() | {"actor": repr(self.actor), "groups": self.groups, "squashed": self.squashed}


def load(
    path: str | Path,
    keys: Mapping[str, Sequence[str]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    chunk: int | None = None,
    activation: str | None = None,
    action_low: float | Sequence[float] | None = None,
    action_high: float | Sequence[float] | None = None,
    normalize: str | None = None,
) -> SB3Policy:
    """Return the actor of a ``.zip`` of Stable-Baselines3.

    :param path: What ``model.save`` wrote
    :param keys: For each input of the policy (a key of its dictionary, or ``"state"``), the environment's keys that it
        is made of, side by side; default: the same names
    :param shapes: Of those keys, where an input is made of several
    :param chunk: 1: such a policy predicts one action
    :param activation: Between the actor's layers, by its name in torch.nn. Default: that of the checkpoint's
        ``policy_kwargs``, or else SB3's: Tanh for PPO, A2C and TRPO, otherwise ReLU
    :param action_low: Lowest action, one number or A. Default: the checkpoint's, with as many digits as NumPy printed
    :param action_high: Highest action
    :param normalize: File of ``VecNormalize``'s statistics, if the policy was trained with that: the ``.zip`` does not
        tell, and without them such a policy does not do what it has learned
    :raises AdapterError: If a file is missing or damaged, or the policy is of another kind
    :raises ValueError: If the chunk is not 1
    """
    data, weights = read_zip(Path(path))
    try:
        family, settings = _family(weights), policy_settings(data)
        inputs = inputs_of(data["observation_space"])
        encoders = _encoders(inputs, weights, family.extractor, settings, normalize)
        groups, env_shapes = environment_keys({name: given.shape for name, given in inputs.items()}, keys, shapes)
        limits = action_limits(data["action_space"], action_low, action_high)
        squashed = _is_squashed(family, settings, limits)
        layers = _layers(weights, family, sum(encoder.features for encoder in encoders), limits.shape[1])
        actor = _actor(layers, activation or activation_of(settings) or family.activation)
        if family is SAC and data["use_sde"]:
            actor.extend(_limited_mean(settings))
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from error
    except MISTAKEN as error:
        raise AdapterError(f"{path} lacks or mistakes an entry that SB3 writes: {error!r}") from error
    return SB3Policy(encoders, groups, env_shapes, actor, limits, squashed, 1 if chunk is None else chunk)


def _is_squashed(family: Family, settings: Mapping[str, Any], limits: th.Tensor) -> bool:
    squashed = family.squashed or bool(settings.get("squash_output"))
    if squashed and not limits.isfinite().all():
        raise AdapterError(f"its actions are to be scaled to limits that are not finite, {limits.tolist()}")
    return squashed


def _limited_mean(settings: Mapping[str, Any]) -> list[nn.Module]:
    """Return what SAC's mean goes through before tanh where the noise depends on the state (gSDE)."""
    limit = float(settings.get("clip_mean", 2.0))
    return [nn.Hardtanh(-limit, limit)] if limit > 0 else []


def _family(weights: Mapping[str, th.Tensor]) -> Family:
    if "action_net.weight" in weights:
        return ON_POLICY
    if any(name.startswith("actor.log_std") for name in weights):
        return SAC
    if "actor.mu.0.weight" in weights:
        return TD3
    names = ", ".join([*weights][:3])
    raise AdapterError(f"it is no policy of PPO, A2C, TRPO, SAC, TQC, TD3 or DDPG; its weights are {names}, ...")


def _encoders(
    inputs: Mapping[str, Input],
    weights: dict[str, th.Tensor],
    place: str,
    settings: Mapping[str, Any],
    normalize: str | None,
) -> list[Standardizer | NatureCnn]:
    """Return what makes the features of each input. Weights of images are taken out of the others."""
    statistics = {} if normalize is None else read_vec_normalize(normalize, list(inputs), BOX_KEY)
    encoders: list[Standardizer | NatureCnn] = []
    for name, given in inputs.items():
        if not given.is_image:
            encoders.append(Standardizer(math.prod(given.shape), statistics.get(name)))
        elif name in statistics or settings.get("normalize_images") is False:
            raise AdapterError(f"its image {name!r} is not just divided by 255. Use --adapter module")
        else:
            encoders.append(_image_encoder(name, weights, place))
    return encoders


def _image_encoder(name: str, weights: dict[str, th.Tensor], place: str) -> NatureCnn:
    for prefix in (place, f"{place}extractors.{name}."):
        if (last := weights.get(f"{prefix}linear.0.weight")) is not None:
            encoder = NatureCnn(last)
            encoder.load_state_dict({own: weights.pop(f"{prefix}{own}") for own in encoder.state_dict()})
            return encoder
    raise AdapterError(f"its image {name!r} is not encoded by Stable-Baselines3's NatureCNN. Use --adapter module")


def _layers(weights: dict[str, th.Tensor], family: Family, features: int, actions: int) -> list[nn.Linear]:
    """Return the actor's linear layers."""
    names = [name for place in family.layers for name in _names(weights, place)]
    taken = [[weights.pop(f"{name}.{part}") for part in ("weight", "bias")] for name in names]
    if unknown := [name for name in weights if not name.startswith(family.unused)]:
        raise AdapterError(f"a policy of {family.name} has linear layers only, this one also {', '.join(unknown[:3])}")
    sizes = [features, *(len(bias) for _, bias in taken)]
    for name, (weight, _), inputs, outputs in zip(names, taken, sizes, sizes[1:], strict=False):
        if weight.shape != (outputs, inputs):
            raise AdapterError(f"{name} is {tuple(weight.shape)}, not the linear layer {(outputs, inputs)}")
    if sizes[-1] != actions:
        raise AdapterError(f"its action space has {actions} dimensions, its network {sizes[-1]}")
    return [_linear(*parts) for parts in taken]


def _names(weights: Mapping[str, th.Tensor], place: str) -> list[str]:
    """Return a layer's name, or those of a sequence in which every second part is an activation."""
    if f"{place}.weight" in weights:
        return [place]
    found = [re.fullmatch(rf"{re.escape(place)}\.(\d+)\.weight", name) for name in weights]
    places = sorted(int(name[1]) for name in found if name)
    if places != list(range(0, 2 * len(places), 2)):
        raise AdapterError(f"{place} is not linear layers with activations between them: it has weights at {places}")
    return [f"{place}.{k}" for k in places]


def _linear(weight: th.Tensor, bias: th.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _actor(layers: Sequence[nn.Linear], activation: str) -> nn.Sequential:
    if activation not in ACTIVATIONS:
        raise AdapterError(f"its activation {activation!r} is none of {', '.join(ACTIVATIONS)}. Say activation")
    parts = [part for layer in layers for part in (layer, getattr(nn, activation)())]
    return nn.Sequential(*parts[:-1])
