"""The networks of Stable-Baselines3's actors, built for the weights of a state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch as th
from torch import nn

from zprl_sb3.adapters.base import AdapterError

ACTIVATIONS = ("CELU", "ELU", "GELU", "Hardswish", "LeakyReLU", "Mish", "ReLU", "SELU", "SiLU", "Sigmoid", "Tanh")
"""Of torch.nn: those without weights, with their default arguments."""


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


def family_of(weights: Mapping[str, th.Tensor]) -> Family:
    """Return which algorithms' actor this is.

    :raises AdapterError: If it is none of them
    """
    if "action_net.weight" in weights:
        return ON_POLICY
    if any(name.startswith("actor.log_std") for name in weights):
        return SAC
    if "actor.mu.0.weight" in weights:
        return TD3
    names = ", ".join([*weights][:3])
    raise AdapterError(f"it is no policy of PPO, A2C, TRPO, SAC, TQC, TD3 or DDPG; its weights are {names}, ...")


def image_encoder(name: str, weights: dict[str, th.Tensor], place: str) -> NatureCnn:
    """Return the encoder of an image, and take its weights out of the others.

    :param name: Of the input
    :param weights: The policy's
    :param place: Where its features extractor is
    :raises AdapterError: If it is another network
    """
    for prefix in (place, f"{place}extractors.{name}."):
        if (last := weights.get(f"{prefix}linear.0.weight")) is not None:
            encoder = NatureCnn(last)
            encoder.load_state_dict({own: weights.pop(f"{prefix}{own}") for own in encoder.state_dict()})
            return encoder
    raise AdapterError(f"its image {name!r} is not encoded by Stable-Baselines3's NatureCNN. Use adapter=module")


def linear_layers(weights: dict[str, th.Tensor], family: Family, features: int, actions: int) -> list[nn.Linear]:
    """Return the actor's linear layers, and take their weights out of the others.

    :param weights: What is left of the policy's
    :param family: What they should be
    :param features: Inputs of the first
    :param actions: Outputs of the last
    :raises AdapterError: If there is anything else, or their sizes do not fit
    """
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


def actor_of(layers: Sequence[nn.Linear], activation: str) -> nn.Sequential:
    """Return layers with activations between them.

    :raises AdapterError: If there is no such activation
    """
    if activation not in ACTIVATIONS:
        raise AdapterError(f"its activation {activation!r} is none of {', '.join(ACTIVATIONS)}. Say activation")
    parts = [part for layer in layers for part in (layer, getattr(nn, activation)())]
    return nn.Sequential(*parts[:-1])
