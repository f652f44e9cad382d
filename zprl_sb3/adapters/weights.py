"""Another project's weights, put into the architecture that was rebuilt here: all of them, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch as th
from torch import nn

from zprl_sb3.adapters.base import AdapterError

SHOWN = 5  # names in a message


def load_strictly(module: nn.Module, tensors: Mapping[str, th.Tensor], file: Path, expected: str) -> None:
    """Load weights by name.

    :param module: What was rebuilt
    :param tensors: Its parameters and buffers, by the names that they have in the module
    :param file: Where they are from, for messages
    :param expected: What was rebuilt, in words
    :raises AdapterError: If one is missing, left over, or of another shape
    """
    own = module.state_dict()
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
    module.load_state_dict(dict(tensors))


def _first(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
