"""Diffusion Policy's workspace checkpoints: settings, weights and normalisers.

``{"cfg": settings, "state_dicts": {"model": ..., "ema_model": ..., "optimizer": ...}, "pickles": {...}}``, written by
``torch.save``, with dill in the place of pickle. What is pickled in ``pickles`` is not opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zprl_sb3.adapters.base import AdapterError
from zprl_sb3.adapters.torch_files import read_torch_file

NORMALIZER = "normalizer.params_dict."
COMPUTED = "${computed_by_a_function}"  # no key: an error that names what refers to it
CALLS = re.compile(r"\$\{.*:", re.DOTALL)
WEIGHTS = {"ema": "ema_model", "model": "model"}
"""Names in the file, by those of the option."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds of a policy.

    :param path: The file
    :param settings: Arguments of the policy's class, ``_target_`` is its name
    :param tensors: Weights by name, without normalisers
    :param normalizers: Scale and offset by what they normalise: x is given to the networks as x * scale + offset
    """

    path: Path
    settings: Mapping[str, Any]
    tensors: Mapping[str, th.Tensor]
    normalizers: Mapping[str, tuple[th.Tensor, th.Tensor]]

    def normalizer(self, name: str, size: int) -> tuple[th.Tensor, th.Tensor]:
        """Return scale and offset.

        :param name: Of an input, or ``"action"``
        :param size: How many numbers each of them has
        :raises AdapterError: If there are none, or they are of another size
        """
        if name not in self.normalizers:
            raise AdapterError(f"{self.path} has no normaliser of {name!r}, only of {sorted(self.normalizers)}")
        scale, offset = self.normalizers[name]
        if scale.shape != (size,) or offset.shape != (size,):
            raise AdapterError(f"{self.path}: the normaliser of {name!r} is of {tuple(scale.shape)}, not of ({size},)")
        return scale, offset

    def part(self, prefix: str) -> dict[str, th.Tensor]:
        """Return the weights whose names begin so, by the rest of their names."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def read_checkpoint(path: str | Path, weights: str | None = None) -> Checkpoint:
    """Return what a file holds.

    :param path: The ``.ckpt``
    :param weights: ``"ema"`` or ``"model"``; None: the averaged ones where there are any
    :raises AdapterError: If there is something else in it, or no such weights
    :raises ValueError: If it is damaged, or asks for code to be run
    """
    path = Path(path)
    if not path.is_file():
        raise AdapterError(f"{path}: there is no such file")
    payload = read_torch_file(path)
    states = payload.get("state_dicts") if isinstance(payload, dict) else None
    if not isinstance(states, dict) or not isinstance(payload.get("cfg"), dict):
        raise AdapterError(f"{path} is no checkpoint of a workspace of Diffusion Policy: it lacks cfg or state_dicts")
    tensors = _tensors(path, states, weights)
    return Checkpoint(path, _policy_settings(path, payload["cfg"]), _weights(tensors), _normalizers(tensors))


def _tensors(path: Path, states: Mapping[str, Any], weights: str | None) -> Mapping[str, th.Tensor]:
    if weights is None:
        weights = "ema" if WEIGHTS["ema"] in states else "model"
    if weights not in WEIGHTS:
        raise AdapterError(f"weights is one of {', '.join(WEIGHTS)}, not {weights!r}")
    if WEIGHTS[weights] not in states:
        raise AdapterError(f"{path} holds no weights {WEIGHTS[weights]!r}, only {sorted(states)}")
    tensors = states[WEIGHTS[weights]]
    if strange := [name for name, value in tensors.items() if not isinstance(value, th.Tensor)]:
        raise AdapterError(f"{path}: {strange[0]!r} is no tensor")
    return dict(tensors)


def _policy_settings(path: Path, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        config = OmegaConf.create(_without_resolvers(dict(settings)), flags={"allow_objects": True})
        policy = OmegaConf.to_container(config.policy, resolve=True)
    except OmegaConfBaseException as error:
        raise AdapterError(f"{path}: the policy's settings cannot be resolved: {error}") from error
    if not isinstance(policy, dict):
        raise AdapterError(f"{path} does not say what its policy is: cfg.policy is {policy!r}")
    return {str(name): value for name, value in policy.items()}


def _without_resolvers(value: Any) -> Any:
    """Return settings in which what a function shall compute, ``${eval:...}``, is missing: some run code."""
    if isinstance(value, dict):
        return {key: _without_resolvers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_resolvers(part) for part in value]
    return COMPUTED if isinstance(value, str) and CALLS.search(value) else value


def _weights(tensors: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
    """Leave out normalisers, and the empty parameters by which its modules know their device."""
    return {
        name: value
        for name, value in tensors.items()
        if not name.startswith("normalizer.") and name.rpartition(".")[2] != "_dummy_variable"
    }


def _normalizers(tensors: Mapping[str, th.Tensor]) -> dict[str, tuple[th.Tensor, th.Tensor]]:
    scales = [name for name in tensors if name.startswith(NORMALIZER) and name.endswith(".scale")]
    names = [name.removeprefix(NORMALIZER).removesuffix(".scale") for name in scales]
    return {
        name: (tensors[f"{NORMALIZER}{name}.scale"], tensors[f"{NORMALIZER}{name}.offset"])
        for name in names
        if f"{NORMALIZER}{name}.offset" in tensors
    }
