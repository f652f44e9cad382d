"""Statistics of Stable-Baselines3's ``VecNormalize``, from its pickle, none of whose code is run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zprl_sb3.adapters.base import AdapterError
from zprl_sb3.adapters.standardizer import Statistics
from zprl_sb3.foreign_pickles import KNOWN, STAND_INS, Stub, Unpickler, named

MENTIONED = STAND_INS | {"stable_baselines3", "gymnasium", "numpy"}
"""Whose classes such a pickle mentions: its own, spaces with their random generators. None of it is called."""


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
    return Statistics(mean, np.sqrt(variance + float(state["epsilon"])), float(state["clip_obs"]))
