"""Stable-Baselines3's ``.zip`` of PPO, A2C, SAC, TD3 and DDPG, and sb3-contrib's of TRPO and TQC: continuous actions.

The actor is built anew; what the file holds in pickles is not touched (:mod:`zprl_sb3.adapters.sb3_files`).

The context c is what the actor's layers see: the observation, normalised where it was, through the features extractor.
It tells the state. The hidden layers behind it have forgotten what did not matter to this policy, and what it does
wrong may be for that.

The policy acts as ``model.predict(obs, deterministic=True)`` does, and takes no noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch as th
from torch import nn

from zprl_sb3.adapters.base import AdaptedPolicy, AdapterError
from zprl_sb3.adapters.inputs import Shape, environment_keys
from zprl_sb3.adapters.sb3_files import Input, action_limits, activation_of, inputs_of, policy_settings, read_zip
from zprl_sb3.adapters.sb3_networks import SAC, Family, NatureCnn, actor_of, family_of, image_encoder, linear_layers
from zprl_sb3.adapters.standardizer import Standardizer
from zprl_sb3.adapters.vec_normalize import read_vec_normalize
from zprl_sb3.policy import Observation
from zprl_sb3.wrappers.chunking import BOX_KEY

MISTAKEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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
        family, settings = family_of(weights), policy_settings(data)
        inputs = inputs_of(data["observation_space"])
        encoders = _encoders(inputs, weights, family.extractor, settings, normalize)
        groups, env_shapes = environment_keys({name: given.shape for name, given in inputs.items()}, keys, shapes)
        limits = action_limits(data["action_space"], action_low, action_high)
        squashed = _is_squashed(family, settings, limits)
        layers = linear_layers(weights, family, sum(encoder.features for encoder in encoders), limits.shape[1])
        actor = actor_of(layers, activation or activation_of(settings) or family.activation)
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
            raise AdapterError(f"its image {name!r} is not just divided by 255. Use adapter=module")
        else:
            encoders.append(image_encoder(name, weights, place))
    return encoders
