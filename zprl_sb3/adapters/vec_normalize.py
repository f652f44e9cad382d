"""Statistics of Stable-Baselines3's ``VecNormalize``, from its pickle, none of whose code is run."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from numpy.typing import NDArray
from torch import nn

from zprl_sb3.adapters.base import AdapterError
from zprl_sb3.foreign_pickles import KNOWN, STAND_INS, Stub, Unpickler, named

MENTIONED = STAND_INS | {"stable_baselines3", "gymnasium", "numpy"}
"""Whose classes such a pickle mentions: its own, spaces with their random generators. None of it is called."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Of one input of D values.

    :param mean: (D,)
    :param deviation: √(variance + ε), (D,)
    :param limit: What is normalised is clipped to ±limit
    """

    mean: Array
    deviation: Array
    limit: float


def read_vec_normalize(path: str | Path, inputs: Sequence[str], box: str) -> dict[str, Statistics]:
    """Return the statistics of those inputs that were normalised.

    :param path: What ``VecNormalize.save`` wrote
    :param inputs: Names of the policy's inputs
    :param box: What the input is called where the observation is no dictionary
    :raises AdapterError: If there is no such file, it is damaged, holds anything else, or is of other observations
    """
    if not Path(path).is_file():
        raise AdapterError(f"there are no statistics {path}, a file that VecNormalize.save writes")
    try:
        with named(path):
            pickled = Unpickler(io.BytesIO(Path(path).read_bytes()), KNOWN, MENTIONED).load()
    except ValueError as error:
        raise AdapterError(str(error)) from error
    try:
        found = _of_state(pickled.state, box)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{path} holds no VecNormalize with statistics of observations: {error!r}") from error
    if unknown := sorted(set(found) - set(inputs)):
        raise AdapterError(f"{path} has statistics of {unknown}, the policy the inputs {sorted(inputs)}")
    return found


def _of_state(state: dict[str, Any], box: str) -> dict[str, Statistics]:
    if not state["norm_obs"]:
        return {}
    moments = state["obs_rms"]
    by_key = {box: moments} if isinstance(moments, Stub) else dict(moments)
    chosen = state["norm_obs_keys"] if state.get("norm_obs_keys") is not None else list(by_key)
    return {key: _statistics(by_key[key], state) for key in chosen}


def _statistics(moments: Stub, state: dict[str, Any]) -> Statistics:
    mean, variance = (np.asarray(moments.state[name], np.float64).reshape(-1) for name in ("mean", "var"))
    deviation = np.sqrt(variance + float(state["epsilon"]))
    if mean.shape != deviation.shape or not np.isfinite([mean, deviation]).all() or not (deviation > 0).all():
        raise ValueError("mean and variance are not those of one input")
    return Statistics(mean, deviation, float(state["clip_obs"]))


class Standardizer(nn.Module):
    """clip((x − mean)/√(variance + ε)) in double precision, as VecNormalize computes it; (B, D) -> (B, D) float32.

    :param dim: D
    :param statistics: None leaves x as it is
    :raises AdapterError: If the statistics are of another size
    """

    def __init__(self, dim: int, statistics: Statistics | None) -> None:
        super().__init__()
        if statistics is None:
            statistics = Statistics(np.zeros(dim), np.ones(dim), math.inf)
        if len(statistics.mean) != dim:
            raise AdapterError(f"the statistics are of {len(statistics.mean)} values, the policy's input has {dim}")
        self.mean: th.Tensor
        self.deviation: th.Tensor
        self.limit: th.Tensor
        for name in ("mean", "deviation", "limit"):
            self.register_buffer(name, th.tensor(getattr(statistics, name), dtype=th.float64))
        self.features = dim

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Normalise (B, D)."""
        return ((x.double() - self.mean) / self.deviation).clamp(-self.limit, self.limit).float()
