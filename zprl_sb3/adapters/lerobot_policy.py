"""What the policies of LeRobot share: normalised inputs by LeRobot's names, and actions in environment units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch as th
from torch import nn

from zprl_sb3.adapters.base import AdaptedPolicy, AdapterError
from zprl_sb3.adapters.inputs import environment_keys
from zprl_sb3.adapters.lerobot_folder import ACTION, ENVIRONMENT, STATE, Folder
from zprl_sb3.normalizer import MIN_RANGE
from zprl_sb3.policy import Observation


@dataclass(frozen=True)
class Inputs:
    """What a policy sees.

    :param vectors: Sizes of robot state and state of the environment, those of the two that there are, in this order
    :param images: Shapes (H, W, 3) by name
    :param keys: The environment's keys that each is made of
    :param shapes: Of those keys
    """

    vectors: dict[str, int]
    images: dict[str, tuple[int, ...]]
    keys: dict[str, list[str]]
    shapes: dict[str, tuple[int, ...]]


def read_inputs(
    folder: Folder, keys: Mapping[str, Sequence[str]] | None, shapes: Mapping[str, Sequence[int]] | None
) -> Inputs:
    """Return the inputs that a configuration tells.

    :param folder: With the configuration
    :param keys: As :func:`zprl_sb3.adapters.lerobot.load` takes them
    :param shapes: As there
    :raises AdapterError: If they do not fit, and if there is nothing to see or an image is not of three channels
    """
    states = folder.features("input_features", ["STATE", "ENV"])
    vectors = {name: states[name][0] for name in (STATE, ENVIRONMENT) if name in states}
    images: dict[str, tuple[int, ...]] = {}
    for name, (channels, height, width) in folder.features("input_features", ["VISUAL"]).items():
        if channels != 3:
            raise AdapterError(f"{folder.path}: {name!r} has {channels} channels; only images of 3 are supported")
        own = list((keys or {}).get(name, [name]))
        images[name] = tuple((shapes or {}).get(own[0], (height, width, 3)))
        if len(own) != 1 or len(images[name]) != 3 or images[name][2] != 3:
            raise AdapterError(f"{name!r} is one image of a shape (H, W, 3), not {own} of {images[name]}")
    if not images and ENVIRONMENT not in vectors:
        raise AdapterError(
            f"{folder.path}: the policy sees neither an image nor {ENVIRONMENT!r}, which LeRobot refuses"
        )
    wanted = {name: (size,) for name, size in vectors.items()} | images
    return Inputs(vectors, images, *environment_keys(wanted, keys, shapes))


class LeRobotPolicy(AdaptedPolicy):
    """A policy of LeRobot.

    :param folder: Where it is from
    :param inputs: What it sees
    :param context_dim: C
    :param horizon: T, from the present step on
    :param chunk: h; None: the policy's own
    :param obs_steps: n
    :param noise_shape: Of one prediction
    :param target_steps: As in :class:`~zprl_sb3.adapters.base.AdaptedPolicy`
    """

    architecture: tuple[str, ...]
    """Names of LeRobot's settings that, beside the weights, decide what the networks compute."""

    def __init__(
        self,
        folder: Folder,
        inputs: Inputs,
        context_dim: int,
        horizon: int,
        chunk: int | None,
        obs_steps: int = 1,
        noise_shape: tuple[int, ...] = (0,),
        target_steps: range | None = None,
    ) -> None:
        chunk = folder.config["n_action_steps"] if chunk is None else chunk
        action_dim = action_size(folder)
        super().__init__(inputs.shapes, action_dim, context_dim, horizon, chunk, obs_steps, noise_shape, target_steps)
        self.inputs, self.config = inputs, folder.config
        kinds = {name: "STATE" if name == STATE else "ENV" for name in inputs.vectors}
        scalings = {name: folder.inputs.scaling(name, kinds[name], size) for name, size in inputs.vectors.items()}
        scalings |= {name: folder.inputs.scaling(name, "VISUAL", 3, rank=3) for name in inputs.images}
        self.scalings = nn.ModuleDict({_module_name(name): scaling for name, scaling in scalings.items()})
        self.action_scaling = folder.outputs.scaling(ACTION, "ACTION", action_dim)
        self._fit_action_normalizer()

    def _fit_action_normalizer(self) -> None:
        low, scale, bias = self.action_scaling.low, self.action_scaling.scale, self.action_scaling.bias
        # What was constant in the demonstrations is shifted, never stretched, as our own normalisers have it.
        scale = th.where(scale < MIN_RANGE / 2, 1.0, scale)
        self.action_normalizer.center.copy_(low - bias * scale)
        self.action_normalizer.half_range.copy_(scale)

    def vector(self, obs: Observation, name: str) -> th.Tensor:
        """Return a normalised state (B, n, D) by LeRobot's name."""
        scaled: th.Tensor = self.scalings[_module_name(name)](self.frames(obs, self.inputs.keys[name]))
        return scaled

    def image(self, obs: Observation, name: str) -> th.Tensor:
        """Return a normalised image (B, n, 3, H, W) by LeRobot's name."""
        scaled: th.Tensor = self.scalings[_module_name(name)](self.images(obs, self.inputs.keys[name][0]))
        return scaled

    def settings(self) -> dict[str, object]:
        architecture = {name: self.config.get(name) for name in self.architecture}
        return super().settings() | {"keys": self.inputs.keys, "architecture": architecture}


def action_size(folder: Folder) -> int:
    """Return A, as a configuration tells it."""
    (size,) = folder.features("output_features", ["ACTION"])[ACTION]
    return size


def _module_name(feature: str) -> str:
    return feature.replace(".", "_")  # torch has dots for other things
