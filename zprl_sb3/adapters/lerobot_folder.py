"""LeRobot's folders: configuration, weights, and normalisation statistics, where its releases put them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from zprl_sb3.adapters.base import AdapterError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
ACTION, STATE, ENVIRONMENT = "action", "observation.state", "observation.environment_state"
IN_WEIGHTS = ("normalize_inputs.", "normalize_targets.", "unnormalize_outputs.")
"""What names in the weights begin with that are statistics, of releases before 0.4."""
HARMLESS = ("rename_observations_processor", "to_batch_processor", "device_processor")
"""Steps of processors that change neither observations nor actions."""
LIMITS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
"""Statistics that are mapped to -1 and 1, by the mode of normalisation."""
EPSILON = 1e-8


@dataclass(frozen=True)
class Normalization:
    """How inputs, or actions, are normalised.

    :param statistics: By feature and name of the statistic
    :param modes: By type of feature: MEAN_STD, one of :data:`LIMITS`, or IDENTITY, which is also what others have
    :param source: The file, for messages
    :param epsilon: What a standard deviation is increased by, and a range of 0 is taken for
    :param only: The features that are normalised; None: all
    """

    statistics: Mapping[str, Mapping[str, th.Tensor]]
    modes: Mapping[str, str]
    source: str
    epsilon: float = EPSILON
    only: Sequence[str] | None = None

    def scaling(self, feature: str, kind: str, size: int, rank: int = 1) -> Scaling:
        """Return the normalisation of one feature.

        :param feature: Its name
        :param kind: Its type
        :param size: Of a vector; number of an image's channels
        :param rank: Of what is normalised: 1 for vectors, 3 for images (3, H, W)
        :raises AdapterError: If statistics are missing, unknown or of another size
        """
        mode = self.modes.get(kind, "IDENTITY")
        if mode == "IDENTITY" or (self.only is not None and feature not in self.only):
            return Scaling(th.zeros(size), th.ones(size), 0.0, rank)
        if mode == "MEAN_STD":
            mean, deviation = self._of(feature, ("mean", "std"), mode, size)
            return Scaling(mean, deviation + self.epsilon, 0.0, rank)
        if mode not in LIMITS:
            modes = ", ".join(["IDENTITY", "MEAN_STD", *LIMITS])
            raise AdapterError(f"{self.source}: normalisation {mode!r} of {feature!r} is none of {modes}")
        low, high = self._of(feature, LIMITS[mode], mode, size)
        width = th.where(high == low, self.epsilon, high - low)
        return Scaling(low, width / 2, -1.0, rank)

    def _of(self, feature: str, names: Sequence[str], mode: str, size: int) -> list[th.Tensor]:
        found = self.statistics.get(feature, {})
        values = [found[name].double().flatten() for name in names if name in found]
        # Statistics that were never set are infinite.
        if len(values) < len(names) or not all(value.isfinite().all() for value in values):
            raise AdapterError(f"{self.source} lacks the {' and '.join(names)} of {feature!r}, which {mode} needs")
        if wrong := [len(value) for value in values if len(value) != size]:
            raise AdapterError(f"{self.source}: the statistics of {feature!r} are of size {wrong[0]}, it is of {size}")
        return values


class Scaling(nn.Module):
    """x -> (x - low) / scale + bias, along the last dimension of vectors or the channels of images.

    :param low: (D,)
    :param scale: (D,)
    :param bias: What ``low`` becomes
    :param rank: 1 for vectors (..., D), 3 for images (..., D, H, W)
    """

    def __init__(self, low: th.Tensor, scale: th.Tensor, bias: float, rank: int = 1) -> None:
        super().__init__()
        self.low: th.Tensor
        self.scale: th.Tensor
        self.bias: th.Tensor
        shape = (-1,) + (1,) * (rank - 1)
        self.register_buffer("low", low.float().reshape(shape))
        self.register_buffer("scale", scale.float().reshape(shape))
        self.register_buffer("bias", th.tensor(bias))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return (x - self.low) / self.scale + self.bias

    def inverse(self, x: th.Tensor) -> th.Tensor:
        """Undo it."""
        return (x - self.bias) * self.scale + self.low


@dataclass(frozen=True)
class Folder:
    """What is in a folder of LeRobot.

    :param path: Where it is
    :param config: Its ``config.json``
    :param weights: Of the networks, by LeRobot's names
    :param inputs: How observations are normalised
    :param outputs: How actions are
    """

    path: Path
    config: dict[str, Any]
    weights: dict[str, th.Tensor]
    inputs: Normalization
    outputs: Normalization

    @property
    def file(self) -> Path:
        """The file of the weights."""
        return self.path / WEIGHTS

    def features(self, group: str, kinds: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of ``"input_features"`` or ``"output_features"`` of some types."""
        return {
            name: tuple(feature["shape"])
            for name, feature in (self.config.get(group) or {}).items()
            if feature["type"] in kinds
        }


def read_folder(path: str | Path) -> Folder:
    """Read a folder that LeRobot's ``save_pretrained`` wrote.

    :param path: The folder; also that of a training's checkpoint, which has it as ``pretrained_model``, or of a
        repository in the cache of ``huggingface_hub`` (``models--owner--name``)
    :raises AdapterError: If a file is missing, damaged, or says what is not supported
    """
    path = _located(Path(path))
    config = _json(path / CONFIG)
    tensors = _tensors(path / WEIGHTS)
    # Compiled modules have a name between.
    weights = {name.replace("._orig_mod", ""): value for name, value in tensors.items()}
    own = {name: value for name, value in weights.items() if not name.startswith(IN_WEIGHTS)}
    return Folder(path, config, own, *_normalizations(path, config, weights))


def _located(path: Path) -> Path:
    if (path / CONFIG).is_file():
        return path
    if (path / "pretrained_model" / CONFIG).is_file():
        return path / "pretrained_model"
    main = path / "refs" / "main"
    revision = main.read_text().strip() if main.is_file() else None
    snapshots = [item for item in sorted(path.glob("snapshots/*")) if revision in (None, item.name)]
    if len(snapshots) == 1 and (snapshots[0] / CONFIG).is_file():
        return snapshots[0]
    what = f"{path} is no folder" if not path.is_dir() else f"{path} has no {CONFIG}"
    raise AdapterError(
        f"{what}: name the folder that LeRobot's save_pretrained or train wrote, with {CONFIG} and {WEIGHTS} in it"
    )


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise AdapterError(f"{file} is damaged: {error}. Copy it again") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{file} holds no settings by name: it is not LeRobot's")
    return content


def _tensors(file: Path) -> dict[str, th.Tensor]:
    if not file.is_file():
        raise AdapterError(f"{file} is missing: copy the whole folder again (weights in pickles are not read)")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise AdapterError(f"{file} is truncated or no safetensors file: {error}. Copy it again") from error


def _normalizations(
    path: Path, config: Mapping[str, Any], weights: Mapping[str, th.Tensor]
) -> tuple[Normalization, Normalization]:
    if (path / PREPROCESSOR).is_file() and (path / POSTPROCESSOR).is_file():
        return _step(path / PREPROCESSOR, "normalizer_processor"), _step(path / POSTPROCESSOR, "unnormalizer_processor")
    modes = config.get("normalization_mapping") or {}
    features = [*(config.get("input_features") or {}), *(config.get("output_features") or {})]
    inputs, outputs = (_in_weights(weights, part, features) for part in ("normalize_inputs", "unnormalize_outputs"))
    if not inputs and not outputs and set(modes.values()) - {"IDENTITY"}:
        raise AdapterError(
            f"{path} has no normalisation statistics, neither in {PREPROCESSOR} and {POSTPROCESSOR} (LeRobot 0.4 and "
            f"later) nor as normalize_inputs.* and unnormalize_outputs.* in {WEIGHTS} (before). Copy the whole folder, "
            "or have LeRobot save the policy's processors beside it"
        )
    source = str(path / WEIGHTS)
    return Normalization(inputs, modes, source), Normalization(outputs, modes, source)


def _step(file: Path, name: str) -> Normalization:
    """Return what a processor's file says of normalisation."""
    steps = {step.get("registry_name") or step.get("class", ""): step for step in _json(file).get("steps", [])}
    if unknown := [step for step in steps if step not in (name, *HARMLESS)]:
        raise AdapterError(f"{file} has the step {unknown[0]!r}, which is not supported here")
    if name not in steps:
        raise AdapterError(f"{file} has no step {name!r}: the policy's normalisation is unknown. Copy it again")
    config = steps[name].get("config", {})
    state = steps[name].get("state_file")
    if state and Path(state).name != state:
        raise AdapterError(f"{file} names {state!r}, which is not in the same folder")
    statistics: dict[str, dict[str, th.Tensor]] = {}
    for key, value in (_tensors(file.parent / state) if state else {}).items():
        feature, _, statistic = key.rpartition(".")
        statistics.setdefault(feature, {})[statistic] = value
    source = str(file.parent / state if state else file)
    return Normalization(
        statistics, config["norm_map"], source, config["eps"], config.get("normalize_observation_keys")
    )


def _in_weights(
    weights: Mapping[str, th.Tensor], part: str, features: Sequence[str]
) -> dict[str, dict[str, th.Tensor]]:
    """Return the statistics that releases before 0.4 have among the weights."""
    found: dict[str, dict[str, th.Tensor]] = {}
    for feature in features:
        prefix = f"{part}.buffer_{feature.replace('.', '_')}."
        values = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if "max" in values:  # those releases add epsilon to every range
            values["max"] = values["max"].double() + EPSILON
        if values:
            found[feature] = values
    return found
