"""robomimic's ``.pth`` of BC, BC_Gaussian and BC_GMM on vectors (robomimic 0.3; nothing in the file is executed).

The context c is what the observation encoder returns: all vectors side by side in robomimic's order (the alphabet's),
normalised where the policy was trained so. It tells the state; the hidden layers behind it keep only what this policy
made use of.

It acts as robomimic's ``RolloutPolicy`` does at evaluation: BC without noise, BC_Gaussian by its mean, or with drawn
noise if ``low_noise_eval`` is off, and BC_GMM by a mode that is drawn. Here the noise decides that; zeros lead to the
most probable mode. Not read: recurrent and transformer policies, which see more than one observation, VAEs, and images.

**Actions** are as they were trained. robomimic's data sets of robosuite hold changes of the hand's pose (7 numbers an
arm), this package's robosuite environments take absolute poses (10 numbers): such a policy needs an environment of its
own kind, registered by you around robosuite's, and demonstrations recorded in that. Where sizes differ, ``zprl attach``
and the wrappers say so; of the same size and another meaning, nobody can tell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from torch import nn

from zprl_sb3.adapters.base import AdaptedPolicy, AdapterError
from zprl_sb3.adapters.inputs import Shape, environment_keys
from zprl_sb3.adapters.robomimic_heads import Mixture, draw, make_head
from zprl_sb3.adapters.standardizer import Standardizer, Statistics
from zprl_sb3.adapters.torch_files import read_torch_file
from zprl_sb3.adapters.weights import rebuilt
from zprl_sb3.policy import Observation

VECTORS = "low_dim"
PARTS = ("model", "config", "algo_name", "shape_metadata")
MISTAKEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Network(nn.Module):
    """Hidden layers, and what makes actions of the last one.

    :param algo: ``config.algo``
    :param features: D
    :param action_dim: A
    """

    def __init__(self, algo: Mapping[str, Any], features: int, action_dim: int) -> None:
        super().__init__()
        sizes = [features, *map(int, algo["actor_layer_dims"])]
        layers = [part for pair in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(*pair), nn.ReLU())]
        self.mlp, self.decoder = nn.Sequential(*layers), make_head(algo, sizes[-1], action_dim)

    def forward(self, features: th.Tensor) -> Mixture:
        """Return the distribution of actions for features (B, D)."""
        mixture: Mixture = self.decoder(self.mlp(features))
        return mixture


class RobomimicPolicy(AdaptedPolicy):
    """A BC policy of robomimic.

    :param standardizer: Of all vectors side by side
    :param groups: The environment's keys of each input, in the policy's order
    :param shapes: Of those keys
    :param network: From these vectors to actions
    :param action_dim: A
    :param chunk: 1
    """

    def __init__(
        self,
        standardizer: Standardizer,
        groups: Mapping[str, Sequence[str]],
        shapes: Mapping[str, Shape],
        network: Network,
        action_dim: int,
        chunk: int = 1,
    ) -> None:
        noise_shape = (network.decoder.noise_dim,)
        super().__init__(shapes, action_dim, standardizer.features, horizon=1, chunk=chunk, noise_shape=noise_shape)
        self.standardizer, self.network = standardizer, network
        self.groups = groups

    def context(self, obs: Observation) -> th.Tensor:
        """Return the normalised vectors (B, C)."""
        keys = [key for group in self.groups.values() for key in group]
        vectors: th.Tensor = self.standardizer(th.cat([obs[key].double().flatten(start_dim=1) for key in keys], dim=1))
        return vectors

    def mixture(self, context: th.Tensor) -> Mixture:
        """Return the distribution of actions for vectors (B, C)."""
        mixture: Mixture = self.network(context)
        return mixture

    def generate(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """Return actions (B, 1, A)."""
        return draw(self.mixture(context), noise)[:, None]

    def imitation_loss(
        self, condition: th.Tensor, context: th.Tensor, actions: th.Tensor, noise: th.Tensor, times: th.Tensor
    ) -> th.Tensor:
        """Return the distance to the policy's own actions; of a mixture to its modes and their probabilities.

        Not to drawn actions: two draws of different modes would pull one of them to the other.
        """
        own, through = (self.mixture(self.context_normalizer.inverse(c)) for c in (context, condition))
        if own.means.shape[1] == 1:
            return super().imitation_loss(condition, context, actions, noise, times)
        log_own, log_through = (mixture.logits.log_softmax(dim=1) for mixture in (own, through))
        probabilities = log_own.exp().detach()
        target, found = (self.action_normalizer(mixture.means) for mixture in (own, through))
        distances = (found - target.detach()).square().mean(dim=2) + log_own.detach() - log_through
        loss: th.Tensor = (probabilities * distances).sum(dim=1).mean()
        return loss

    def settings(self) -> dict[str, object]:
        """Return what, beside the weights, decides what the policy does."""
        decoder = self.network.decoder
        head = {name: value for name, value in vars(decoder).items() if isinstance(value, (bool, float, str))}
        head.pop("training")
        return super().settings() | {"head": type(decoder).__name__, "groups": self.groups} | head


def load(
    path: str | Path,
    keys: Mapping[str, Sequence[str]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    chunk: int | None = None,
) -> RobomimicPolicy:
    """Return the policy of a ``.pth`` of robomimic.

    :param path: The file
    :param keys: For each input of the policy, the environment's keys that it is made of, side by side; or, under
        ``"low_dim"``, for all of them together: ``{"low_dim": ["object", "proprio"]}`` for this package's robosuite
        environments, whose ``"proprio"`` of one arm is robomimic's position, quaternion and fingers. Default: the same
        names
    :param shapes: Of those keys, where an input is made of several
    :param chunk: 1: such a policy predicts one action
    :raises AdapterError: If the file is missing or damaged, or the policy is of another kind
    :raises ValueError: If the chunk is not 1
    """
    content = _read(Path(path))
    try:
        config = json.loads(content["config"])
        _check_kind(content, config)
        inputs = _inputs(content["shape_metadata"], config)
        standardizer = _standardizer(inputs, content.get("obs_normalization_stats"), config["train"])
        asked = {VECTORS: (standardizer.features,)} if VECTORS in (keys or {}) else inputs
        groups, env_shapes = environment_keys(asked, keys, shapes)
        action_dim = int(content["shape_metadata"]["ac_dim"])
        network = rebuilt(
            lambda: Network(config["algo"], standardizer.features, action_dim),
            _weights(content["model"]),
            Path(path),
            _told(config),
        )
    except AdapterError as error:
        raise AdapterError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    except MISTAKEN as error:
        raise AdapterError(f"{path} lacks or mistakes an entry that robomimic writes: {error!r}") from error
    return RobomimicPolicy(standardizer, groups, env_shapes, network, action_dim, 1 if chunk is None else chunk)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise AdapterError(f"There is no {path}: it is a .pth that robomimic's training writes")
    try:
        content = read_torch_file(path)
    except ValueError as error:
        raise AdapterError(str(error)) from error
    if not isinstance(content, dict) or not set(PARTS) <= set(content):
        raise AdapterError(f"{path} is no checkpoint of robomimic: it does not hold {', '.join(PARTS)}")
    return content


def _check_kind(content: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raise an AdapterError unless it is a policy of one observation, of robomimic 0.3."""
    algo = config["algo"]
    if content["algo_name"] != "bc":
        raise AdapterError(f"it is of robomimic's algorithm {content['algo_name']!r}; only 'bc' is read")
    for kind in ("rnn", "transformer", "vae"):
        if algo.get(kind, {}).get("enabled"):
            raise AdapterError(f"it is a BC policy with {kind}; only BC, BC_Gaussian and BC_GMM without it are read")
    if "nets" in content["model"] or content.get("action_normalization_stats"):
        raise AdapterError("it was written by a later robomimic than 0.3, which is not known here")
    if config["train"].get("frame_stack", 1) != 1:
        raise AdapterError("it sees several frames (frame_stack); only policies of one observation are read")


def _inputs(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Shape]:
    """Return the shape of each vector, in the policy's order."""
    modalities = config["observation"]["modalities"]
    if any(modalities.get("goal", {}).values()):
        raise AdapterError("it is conditioned on goals, which environments here do not give")
    if other := [key for kind, names in modalities["obs"].items() if kind != VECTORS for key in names]:
        raise AdapterError(f"it sees more than vectors: {', '.join(other)}. Only low_dim observations are read")
    encoder = config["observation"]["encoder"].get(VECTORS, {})
    if encoder.get("core_class") or encoder.get("obs_randomizer_class"):
        raise AdapterError(f"its vectors go through a network of their own, {encoder}, which is not read")
    names = modalities["obs"][VECTORS]
    return {name: tuple(map(int, shape)) for name, shape in metadata["all_shapes"].items() if name in names}


def _standardizer(inputs: Mapping[str, Shape], statistics: Any, train: Mapping[str, Any]) -> Standardizer:
    size = sum(math.prod(shape) for shape in inputs.values())
    if not train.get("hdf5_normalize_obs"):
        return Standardizer(size, None)
    if not statistics or not set(inputs) <= set(statistics):
        raise AdapterError(f"it was trained on normalised observations, but lacks the statistics of {list(inputs)}")
    mean, deviation = (
        np.concatenate([np.asarray(statistics[name][part], np.float64).reshape(-1) for name in inputs])
        for part in ("mean", "std")
    )
    return Standardizer(size, Statistics(mean, deviation))


def _weights(model: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
    """Return the weights by their names here."""
    own = {"policy.nets.mlp._model.": "mlp.", "policy.nets.decoder.nets.": "decoder."}
    renamed = {}
    for name, tensor in model.items():
        prefix = next((prefix for prefix in own if name.startswith(prefix)), "")
        renamed[own.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return renamed


def _told(config: Mapping[str, Any]) -> str:
    return f"a BC policy with hidden layers of {config['algo']['actor_layer_dims']}, as its config says"
