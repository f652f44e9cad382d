"""Another project's weights, put into the architecture that was rebuilt here: all of them, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch as th
from torch import nn

from zprl_sb3.adapters.base import AdapterError

Module = TypeVar("Module", bound=nn.Module)
SHOWN = 5  # names in a message


def rebuilt(make: Callable[[], Module], tensors: Mapping[str, th.Tensor], file: Path, expected: str) -> Module:
    """Return an architecture with weights, which are loaded by name.

    Shapes are compared before there is any memory for them: a checkpoint may claim any size of a layer.

    :param make: Builds it; called twice
    :param tensors: Its parameters and buffers, by the names that they have in the module
    :param file: Where they are from, for messages
    :param expected: What is rebuilt, in words
    :raises AdapterError: If one is missing, left over, or of another shape
    """
    with th.device("meta"):
        _compare(make().state_dict(), tensors, file, expected)
    module = make()
    module.load_state_dict(dict(tensors))
    return module


def _compare(own: Mapping[str, th.Tensor], tensors: Mapping[str, th.Tensor], file: Path, expected: str) -> None:
    differences = {
        "missing": sorted(own.keys() - tensors.keys()),
        "not part of it": sorted(tensors.keys() - own.keys()),
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
            for name in sorted(own.keys() & tensors.keys())
            if tensors[name].shape != own[name].shape
        ],
    }
    if found := [f"{what}: {_first(names)}" for what, names in differences.items() if names]:
        raise AdapterError(f"{file} does not hold the weights of {expected}. {'; '.join(found)}")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
