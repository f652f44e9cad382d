"""Reads demonstrations from HDF5 in robomimic's layout, and names every fault that it finds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import DTypeLike, NDArray

from zprl_sb3.files import sha256

ROBOSUITE = 1  # robomimic's number for environments of robosuite
OBJECT = "object"  # the key of what a policy with cameras does not see

Array = NDArray[Any]


class DemonstrationError(ValueError):
    """A demonstration file cannot be used; the message names the file, the demonstration and the key."""


@dataclass(frozen=True)
class StoredImages:
    """Images of an episode that are read when they are sliced, so that a large file needs no memory before that.

    :param path: The file
    :param name: Of the array in it
    :param shape: (T, H, W, 3)
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype = np.dtype(np.uint8)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Memory that they take once they are read."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> Array:
        """Read some of them, by a slice or by increasing numbers.

        :raises DemonstrationError: If the file turns out to be damaged
        """
        with opened(self.path) as file:
            images: Array = file[self.name][rows]
            return images


@dataclass(frozen=True)
class Demonstrations:
    """What a demonstration file holds, by episode: index k of every sequence is the same episode, of length T_k.

    :param path: The file
    :param sha256: Hash of the file's content
    :param env_id: Gymnasium id (robomimic's environment name in robomimic's own files)
    :param env_kwargs: What the environment was made with, for ``gym.make(env_id, **env_kwargs)``
    :param env_version: Version of its simulator; ``""`` where the file does not say
    :param names: Name in the file, ``"demo_0"`` …
    :param observations: For each key a list of (T_k, …); numbers float32, images uint8
    :param actions: (T_k, A) float32, in environment units
    :param successes: Whether the episode succeeded
    :param qualities: ``"better"``, ``"okay"``, ``"worse"``, or ``""`` where the file does not say
    :param masks: For each name in the file's ``mask/`` the indices of its episodes
    """

    path: Path
    sha256: str
    env_id: str
    env_kwargs: dict[str, Any]
    env_version: str
    names: list[str]
    observations: dict[str, list[Array | StoredImages]]
    actions: list[NDArray[np.float32]]
    successes: list[bool]
    qualities: list[str]
    masks: dict[str, list[int]]

    def __len__(self) -> int:
        return len(self.actions)

    def select(self, mask: str) -> Demonstrations:
        """Return only the episodes of one of the file's masks, e.g. ``"train"``.

        :raises DemonstrationError: If the file has no such mask
        """
        if mask not in self.masks:
            raise DemonstrationError(f"{self.path}: no mask {mask!r}; it has {', '.join(self.masks) or 'none'}")
        chosen = self.masks[mask]
        return replace(
            self,
            names=[self.names[k] for k in chosen],
            observations={key: [episodes[k] for k in chosen] for key, episodes in self.observations.items()},
            actions=[self.actions[k] for k in chosen],
            successes=[self.successes[k] for k in chosen],
            qualities=[self.qualities[k] for k in chosen],
            masks={name: [chosen.index(k) for k in members if k in chosen] for name, members in self.masks.items()},
        )


def load_demonstrations(path: str | Path, observation: str | None = None) -> Demonstrations:
    """Read a demonstration file in robomimic's layout, ours or robomimic's own, and check all that is used.

    :param path: An HDF5 file
    :param observation: ``"state"`` or ``"image"``, of a file that holds both; None: what it was collected for
    :raises DemonstrationError: If the file is missing, damaged, empty or inconsistent, holds NaN or infinite values, or
        does not hold such observations
    """
    path = Path(path)
    if not path.is_file():
        raise DemonstrationError(f"{path}: no such file; make one with: zprl collect --env <id> --output {path}")
    with opened(path) as file:
        return _read(path, file, observation)


def read_rewards(demos: Demonstrations) -> list[NDArray[np.float32]]:
    """Return the rewards (T_k,) of each episode, per env step.

    :raises DemonstrationError: If the file does not hold them, or one is NaN or infinite
    """
    with opened(demos.path) as file:
        episodes = [member(demos.path, file["data"], name) for name in demos.names]
        rewards = [np.asarray(member(demos.path, demo, "rewards")[()], np.float32) for demo in episodes]
    for name, values in zip(demos.names, rewards, strict=True):
        if not np.isfinite(values).all():
            raise DemonstrationError(f"{demos.path}, {name}, rewards: NaN or infinite")
    return rewards


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file to read it.

    :raises DemonstrationError: If it is none, or turns out to be damaged
    """
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise DemonstrationError(f"{path}: not an HDF5 file, or a damaged one ({error})") from error


def _read(path: Path, file: h5py.File, observation: str | None) -> Demonstrations:
    data = member(path, file, "data")
    names = demo_names(path, data)
    env_args = read_env_args(path, data)
    if env_args.get("type") == ROBOSUITE:
        raise DemonstrationError(
            f"{path}: recorded in robosuite's own {env_args['env_name']}, whose observations and actions are others. "
            f"Convert it with: zprl convert {path} --output <file>.hdf5"
        )
    demos = [member(path, data, name) for name in names]
    if observation == "state" and OBJECT not in demos[0]["obs"]:
        raise DemonstrationError(
            f"{path}: it does not hold the state, whose key is {OBJECT!r}: collect or convert again"
        )
    observation = observation or env_args["env_kwargs"].get("observation")
    if observation is not None:
        env_args["env_kwargs"]["observation"] = observation
    keys = _observed(path, member(path, demos[0], "obs"), observation)
    actions = [read_array(path, demo, "actions") for demo in demos]
    observations = {key: [_read_observation(path, demo, f"obs/{key}") for demo in demos] for key in keys}
    for demo, steps in zip(demos, map(len, actions), strict=True):
        _check_lengths(path, demo, steps)
    _check_shapes(path, names, "actions", actions)
    for key, arrays in observations.items():
        _check_shapes(path, names, key, arrays)
    return Demonstrations(
        path=path,
        sha256=sha256(path),
        env_id=env_args["env_name"],
        env_kwargs=env_args["env_kwargs"],
        env_version=str(env_args.get("env_version") or ""),
        names=names,
        observations=observations,
        actions=actions,
        successes=[_success(path, demo) for demo in demos],
        qualities=[str(demo.attrs.get("quality", "")) for demo in demos],
        masks=read_masks(path, file, names),
    )


def _observed(path: Path, obs: h5py.Group, observation: str | None) -> list[str]:
    """Return the keys of what a policy sees."""
    images = [key for key in obs if obs[key].ndim == 4]
    for key in images:
        if obs[key].dtype != np.uint8:
            raise DemonstrationError(f"{path}, obs/{key}: images are uint8 from 0 to 255, not {obs[key].dtype}")
    if observation == "image" and not images:
        raise DemonstrationError(
            f"{path}: it holds no images. Collect with --set observation=image, or convert with --observation image"
        )
    hidden = {"image": [OBJECT], "state": images, None: []}[observation]
    keys = [key for key in obs if key not in hidden]
    if not keys:
        raise DemonstrationError(f"{path}, {obs.name}: no observation key")
    return keys


def _where(path: Path, member: h5py.Group | h5py.Dataset) -> str:
    return ", ".join([str(path), *member.name.strip("/").removeprefix("data").strip("/").split("/", 1)])


def demo_names(path: Path, data: h5py.Group) -> list[str]:
    """Return the names of the demonstrations, ``"demo_2"`` before ``"demo_10"``.

    :raises DemonstrationError: If there is none
    """
    names = sorted((name for name in data if re.fullmatch(r"demo_\d+", name)), key=lambda name: int(name[5:]))
    if not names:
        raise DemonstrationError(f"{path}: it holds no demonstration (data/demo_0, …)")
    return names


def member(path: Path, group: h5py.Group, key: str) -> h5py.Group:
    """Return what a group holds under a key.

    :raises DemonstrationError: If it holds nothing there
    """
    if key not in group:
        raise DemonstrationError(f"{_where(path, group)}: the key {key!r} is missing")
    return group[key]


def read_env_args(path: Path, data: h5py.Group) -> dict[str, Any]:
    """Return the attribute ``env_args`` with ``env_name`` (text), ``env_kwargs`` (a dictionary) and whatever else.

    :raises DemonstrationError: If it is missing or something else
    """
    try:
        env_args = dict(json.loads(data.attrs["env_args"]))
        return {**env_args, "env_name": str(env_args["env_name"]), "env_kwargs": dict(env_args["env_kwargs"])}
    except (KeyError, TypeError, ValueError) as error:
        raise DemonstrationError(
            f"{path}, data: the attribute 'env_args' must be JSON with env_name and env_kwargs ({error!r})"
        ) from error


def read_array(path: Path, demo: h5py.Group, key: str, dtype: DTypeLike = np.float32) -> Array:
    """Return an array of numbers (steps, …): bytes as they are, all else as ``dtype``.

    :raises DemonstrationError: If it is missing, empty, something else, or holds NaN or infinite values
    """
    dataset = member(path, demo, key)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub":
        raise DemonstrationError(f"{_where(path, dataset)}: not an array of numbers")
    array: Array = dataset[()] if dataset.dtype == np.uint8 else dataset[()].astype(dtype)
    if array.ndim < 2 or len(array) == 0:
        raise DemonstrationError(f"{_where(path, dataset)}: the shape must be (steps, …), not {array.shape}")
    if not np.isfinite(array).all():
        step = int(np.argwhere(~np.isfinite(array))[0][0])
        raise DemonstrationError(f"{_where(path, dataset)}: NaN or infinite at step {step}")
    return array


def _read_observation(path: Path, demo: h5py.Group, key: str) -> Array | StoredImages:
    dataset = member(path, demo, key)
    if isinstance(dataset, h5py.Dataset) and dataset.ndim == 4 and len(dataset):
        return StoredImages(path, dataset.name, dataset.shape)
    return read_array(path, demo, key)


def _check_lengths(path: Path, demo: h5py.Group, steps: int) -> None:
    lengths = {key: demo[key].shape[0] for key in ("states", "rewards", "dones") if key in demo}
    for kind in ("obs", "next_obs"):
        lengths.update({f"{kind}/{key}": values.shape[0] for key, values in demo.get(kind, {}).items()})
    lengths["attribute num_samples"] = int(demo.attrs.get("num_samples", steps))
    for key, length in lengths.items():
        if length != steps:
            raise DemonstrationError(f"{_where(path, demo)}, {key}: {length} steps, but there are {steps} actions")


def _check_shapes(path: Path, names: Sequence[str], key: str, arrays: Sequence[Array | StoredImages]) -> None:
    for name, array in zip(names, arrays, strict=True):
        if array.shape[1:] != arrays[0].shape[1:]:
            raise DemonstrationError(
                f"{path}, {name}, {key}: shape {array.shape[1:]} a step, but {arrays[0].shape[1:]} in {names[0]}"
            )


def _success(path: Path, demo: h5py.Group) -> bool:
    # robomimic's own files have no such attribute; their sparse reward says it.
    if "success" in demo.attrs:
        return bool(demo.attrs["success"])
    return bool(np.max(member(path, demo, "rewards")[()]) > 0)


def read_masks(path: Path, file: h5py.File, names: Sequence[str]) -> dict[str, list[int]]:
    """Return for each of the file's masks the indices of its episodes in ``names``.

    :raises DemonstrationError: If a mask names something else
    """
    index = {name: k for k, name in enumerate(names)}
    try:
        return {mask: [index[name.decode()] for name in members[()]] for mask, members in file.get("mask", {}).items()}
    except KeyError as error:
        raise DemonstrationError(f"{path}, mask: it names {error}, which is not in data/") from error
