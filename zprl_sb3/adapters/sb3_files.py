"""Reads Stable-Baselines3's ``.zip`` without running anything that it holds.

SB3 writes spaces, classes and the like as pickles, and beside each of them, for people to read, what its parts print:
that is what is read here.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th

from zprl_sb3.adapters.base import AdapterError
from zprl_sb3.adapters.inputs import Shape
from zprl_sb3.adapters.torch_files import check_stored, read_torch_bytes
from zprl_sb3.wrappers.chunking import BOX_KEY

DAMAGED = (EOFError, KeyError, OSError, RuntimeError, ValueError, zipfile.BadZipFile)
PROJECTS = ("stable_baselines3.", "sb3_contrib.")
EXTRACTORS = ("FlattenExtractor", "NatureCNN", "CombinedExtractor")


@dataclass(frozen=True)
class Input:
    """What a policy sees under one name.

    :param shape: As environments have it: an image's is (H, W, 3)
    :param is_image: Whether it is a picture of bytes
    """

    shape: Shape
    is_image: bool


def read_zip(path: Path) -> tuple[dict[str, Any], dict[str, th.Tensor]]:
    """Return the plain values of ``data``, and the policy's weights.

    :raises AdapterError: If the file is missing, damaged, or none of Stable-Baselines3
    """
    if not path.is_file():
        raise AdapterError(f"There is no {path}: it is a .zip that model.save of Stable-Baselines3 writes")
    try:
        with zipfile.ZipFile(path) as archive:
            check_stored(archive)
            data = json.loads(archive.read("data"))
            weights = read_torch_bytes(archive.read("policy.pth"), "policy.pth")
    except DAMAGED as error:
        raise AdapterError(f"{path} is damaged, or no model of Stable-Baselines3: {error}") from error
    if not isinstance(data, dict) or not isinstance(weights, dict) or not _are_named_tensors(weights):
        raise AdapterError(f"{path} is no model of Stable-Baselines3: data or policy.pth holds something else")
    return data, dict(weights)


def _are_named_tensors(weights: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, th.Tensor) for name, value in weights.items())


def policy_settings(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``policy_kwargs``, in which classes are what they print.

    :raises AdapterError: If policy or features extractor are not Stable-Baselines3's own
    """
    module = data["policy_class"]["__module__"]
    if not module.startswith(PROJECTS):
        raise AdapterError(f"its policy is a class of {module}, not of Stable-Baselines3. Use adapter=module")
    settings = dict(data["policy_kwargs"])
    extractor = settings.get("features_extractor_class")
    if extractor is not None and not str(extractor).endswith(tuple(f"torch_layers.{name}'>" for name in EXTRACTORS)):
        raise AdapterError(f"its features extractor is {extractor}, not Stable-Baselines3's. Use adapter=module")
    return settings


def activation_of(settings: Mapping[str, Any]) -> str | None:
    """Return the name in torch.nn of the activation that ``policy_kwargs`` choose, or None.

    :raises AdapterError: If it is not one of torch.nn
    """
    text = settings.get("activation_fn")
    found = re.fullmatch(r"<class 'torch\.nn\.modules\.activation\.(\w+)'>", str(text))
    if text is not None and not found:
        raise AdapterError(f"its activation is {text}. Say with the option activation which one of torch.nn it is")
    return found[1] if found else None


def inputs_of(space: Mapping[str, Any]) -> dict[str, Input]:
    """Return the inputs of an observation space, in the policy's order; of a plain box the one called ``"state"``.

    :raises AdapterError: If it is neither a box nor a dictionary of boxes, or images have not three colours
    """
    if "spaces.box.Box" in space[":type:"]:
        found = {BOX_KEY: (tuple(space["_shape"]), space["dtype"])}
    elif "spaces.dict.Dict" in space[":type:"]:
        found = _boxes(space["spaces"])
    else:
        raise AdapterError(f"its observations are neither a box nor a dictionary of boxes but {space[':type:']}")
    return {name: _input(name, shape, dtype) for name, (shape, dtype) in found.items()}


# How a dictionary of boxes prints: {'a': Box(-inf, inf, (2,), float32), ...}, formerly OrderedDict([('a', Box(...
BOX = re.compile(r"'([^']+)'(?:: |, )Box\((?:(?!Box\().)*?, \(([\d, ]*)\), (\w+)\)", re.DOTALL)


def _boxes(text: str) -> dict[str, tuple[Shape, str]]:
    if rest := re.sub(r"OrderedDict|Dict|[\[\](){},\s]", "", BOX.sub("", text)):
        raise AdapterError(f"its observations are no dictionary of boxes, there is also {rest[:60]}")
    return {key: (tuple(map(int, re.findall(r"\d+", shape))), dtype) for key, shape, dtype in BOX.findall(text)}


def _input(name: str, shape: Shape, dtype: str) -> Input:
    if len(shape) != 3 or dtype != "uint8":
        return Input(shape, is_image=False)
    if shape[0] != 3:
        raise AdapterError(f"its input {name!r} is no image of three colours (3, H, W) but of shape {shape}")
    return Input((shape[1], shape[2], 3), is_image=True)


def action_limits(
    space: Mapping[str, Any], low: float | Sequence[float] | None, high: float | Sequence[float] | None
) -> th.Tensor:
    """Return lowest and highest actions (2, A).

    :param space: The action space
    :param low: Instead of what it says
    :param high: Instead of what it says
    :raises AdapterError: If actions are not continuous or not flat, or the limits are not told
    """
    if "spaces.box.Box" not in space[":type:"]:
        raise AdapterError(f"its actions are not continuous but {space[':type:']}")
    if len(space["_shape"]) != 1:
        raise AdapterError(f"its actions are not flat but of shape {space['_shape']}")
    size = int(space["_shape"][0])
    return th.stack([_limit(space[side], given, size, side) for side, given in (("low", low), ("high", high))])


def _limit(text: str, given: float | Sequence[float] | None, size: int, side: str) -> th.Tensor:
    values = text.strip("[] \n").split() if given is None else given
    try:
        numbers = [float(value) for value in values] if isinstance(values, Sequence) else [float(values)] * size
    except ValueError as error:
        raise AdapterError(f"it does not tell the limits of its actions: {error}. Say action_{side}") from error
    if len(numbers) != size:
        raise AdapterError(f"there are {len(numbers)} limits of its {size} actions. Say action_{side}")
    return th.tensor(numbers)
