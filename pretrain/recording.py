"""Writes demonstrations as HDF5 in robomimic's layout, and single episodes while a collection is under way."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from zprl_sb3.files import atomic_path
from zprl_sb3.pretrain.demonstrations import DemonstrationError, Demonstrations, opened

GYM_ENVIRONMENT = 2  # robomimic's number for environments made by gym.make
VALIDATION_SHARE = 0.1
QUALITIES = ("better", "okay", "worse")

Array = NDArray[Any]


@dataclass(frozen=True)
class Episode:
    """One demonstrated episode of T environment steps.

    :param observations: For each key T observations, each before its action; images uint8 (T, H, W, 3)
    :param next_observations: For each key T observations, each after its action; any may be absent
    :param actions: (T, A), in environment units
    :param rewards: (T,)
    :param states: (T, S), the simulator's ``[time, qpos, qvel]`` before the action; (T, 0) if unknown
    :param seed: ``reset(seed=…)`` with it gives the same layout; −1 if there is none
    :param quality: ``"better"``, ``"okay"`` or ``"worse"``; ``""`` if nobody has said
    :param success: Whether the episode ended in success
    """

    observations: dict[str, Array]
    next_observations: dict[str, Array]
    actions: Array
    rewards: Array
    states: Array
    seed: int
    quality: str
    success: bool


@dataclass(frozen=True)
class Recording:
    """Another project's data set as demonstrations of one of our environments.

    :param env_id: Gymnasium id
    :param env_kwargs: What ``gym.make`` needs besides the id
    :param env_version: Version of the simulator that is installed
    :param origin: Where it comes from, in words that can be JSON
    :param masks: For each name in the data set the indices of its episodes
    :param count: How many episodes there are
    :param episodes: The episodes, made one by one
    :param notes: What a user should know of the conversion, in sentences
    """

    env_id: str
    env_kwargs: dict[str, Any]
    env_version: str
    origin: dict[str, Any]
    masks: dict[str, list[int]]
    count: int
    episodes: Iterator[Episode]
    notes: tuple[str, ...] = ()


def save_demonstrations(
    path: str | Path,
    episodes: Iterable[Episode],
    env_id: str,
    env_kwargs: Mapping[str, Any],
    env_version: str,
    collection: Mapping[str, Any],
    masks: Mapping[str, Sequence[int]] | None = None,
    in_memory: bool = False,
) -> None:
    """Write episodes as one HDF5 file in robomimic's layout; the file is whole or absent.

    :param path: Where to
    :param episodes: The episodes; they may be made one by one, only one is held at a time
    :param env_id: Gymnasium id
    :param env_kwargs: What ``gym.make`` was given besides the id
    :param env_version: Version of the simulator
    :param collection: Whatever tells how the episodes came about, kept as JSON in the attribute ``collection``
    :param masks: For each name the indices of its episodes; they come before the file's own masks of the same name
    :param in_memory: Make all of the file before any is written: where the disk is full, HDF5 may end the whole process
    :raises DemonstrationError: If there is no episode
    """
    env_args = {"env_name": env_id, "env_version": env_version, "type": GYM_ENVIRONMENT, "env_kwargs": dict(env_kwargs)}
    with atomic_path(path) as temporary:
        memory = io.BytesIO()
        with h5py.File(memory if in_memory else temporary, "w") as file:
            data = file.create_group("data")
            groups = [_write_episode(data, f"demo_{k}", episode) for k, episode in enumerate(episodes)]
            if not groups:
                raise DemonstrationError(f"{path}: there is no episode to write")
            data.attrs["total"] = sum(int(group.attrs["num_samples"]) for group in groups)
            data.attrs["env_args"] = json.dumps(env_args)
            data.attrs["collection"] = json.dumps(dict(collection))
            _write_masks(file.create_group("mask"), groups, masks or {})
        if in_memory:
            temporary.write_bytes(memory.getbuffer())


def extend_demonstrations(path: str | Path, demos: Demonstrations, episodes: Iterable[Episode]) -> None:
    """Write demonstrations and further episodes behind them as one file, without masks; it is whole or absent.

    :param path: Where to
    :param demos: The demonstrations, all of a file or those of a mask; what their file says of them is kept
    :param episodes: Of the same environment
    """
    with opened(demos.path) as old, atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        data.attrs.update(old["data"].attrs)
        for k, name in enumerate(demos.names):
            old.copy(f"data/{name}", data, f"demo_{k}")
        for k, episode in enumerate(episodes, start=len(demos)):
            _write_episode(data, f"demo_{k}", episode)
        data.attrs["total"] = sum(len(demo["actions"]) for demo in data.values())


def _write_episode(data: h5py.Group, name: str, episode: Episode) -> h5py.Group:
    group = data.create_group(name)
    steps = len(episode.actions)
    group.attrs.update(num_samples=steps, quality=episode.quality, success=episode.success)
    if episode.seed >= 0:
        group.attrs["seed"] = episode.seed
    numbers = {"actions": episode.actions.astype(np.float64), "states": episode.states}
    for key, values in numbers.items():
        if values.size:
            group.create_dataset(key, data=values, compression="gzip", shuffle=True)
    group["rewards"] = episode.rewards
    group["dones"] = (np.arange(steps) == steps - 1).astype(np.int64)
    for kind, observations in (("obs", episode.observations), ("next_obs", episode.next_observations)):
        for key, values in observations.items():
            # Images are read frame by frame: what is compressed as one is read as one.
            chunk = (1, *values.shape[1:]) if _is_image(values) else values.shape
            group.create_dataset(f"{kind}/{key}", data=values, chunks=chunk, compression="gzip", shuffle=True)
    return group


def _is_image(values: Array) -> bool:
    return values.dtype == np.uint8 and values.ndim == 4


def _write_masks(masks: h5py.Group, groups: Sequence[h5py.Group], given: Mapping[str, Sequence[int]]) -> None:
    # A fixed order: the same episodes are always split the same way.
    order = np.random.default_rng(0).permutation(len(groups))
    held_out = set(order[: int(VALIDATION_SHARE * len(groups))].tolist())
    members = {
        "train": [k not in held_out for k in range(len(groups))],
        "valid": [k in held_out for k in range(len(groups))],
        "success": [bool(group.attrs["success"]) for group in groups],
    }
    qualities = [group.attrs["quality"] for group in groups]
    for quality in dict.fromkeys((*QUALITIES, *filter(None, qualities))):
        members[quality] = [each == quality for each in qualities]
    members |= {mask: [k in chosen for k in range(len(groups))] for mask, chosen in given.items()}
    for mask, chosen in members.items():
        names = [group.name.rpartition("/")[2] for group, inside in zip(groups, chosen, strict=True) if inside]
        masks[mask] = np.array(names, dtype="S")


def read_collection(path: str | Path) -> dict[str, Any]:
    """Return what :func:`save_demonstrations` was given as ``collection``, and the number of ``episodes``.

    :param path: An HDF5 file; the result is empty where another program wrote it
    :raises DemonstrationError: If it is not an HDF5 file
    """
    try:
        with h5py.File(path, "r") as file:
            if "data" not in file or "collection" not in file["data"].attrs:
                return {}
            return {**json.loads(file["data"].attrs["collection"]), "episodes": len(file["data"])}
    except OSError as error:
        raise DemonstrationError(f"{path}: not an HDF5 file, or a damaged one ({error})") from error


def save_episode(path: str | Path, episode: Episode) -> None:
    """Write one episode as an npz file, atomically."""
    arrays = {f"obs/{key}": values for key, values in episode.observations.items()}
    arrays |= {f"next_obs/{key}": values for key, values in episode.next_observations.items()}
    arrays |= {name: np.asarray(getattr(episode, name)) for name in _PLAIN}
    save = np.savez_compressed if any(map(_is_image, arrays.values())) else np.savez
    with atomic_path(path) as temporary:
        save(temporary, **arrays)


def stored_success(path: Path) -> bool:
    """Return whether a stored episode is a success, without reading the rest of it.

    :raises DemonstrationError: If the file is damaged
    """
    with _damage_named(path), np.load(path, allow_pickle=False) as stored:
        return bool(stored["success"])


_PLAIN = ("actions", "rewards", "states", "seed", "quality", "success")


def load_episode(path: str | Path) -> Episode:
    """Read what :func:`save_episode` wrote.

    :raises DemonstrationError: If the file is damaged
    """
    with _damage_named(path):
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        return Episode(
            observations={key.removeprefix("obs/"): arrays[key] for key in arrays if key.startswith("obs/")},
            next_observations={
                key.removeprefix("next_obs/"): arrays[key] for key in arrays if key.startswith("next_obs/")
            },
            actions=arrays["actions"],
            rewards=arrays["rewards"],
            states=arrays["states"],
            seed=int(arrays["seed"]),
            quality=str(arrays["quality"]),
            success=bool(arrays["success"]),
        )


@contextmanager
def _damage_named(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise DemonstrationError(
            f"{path}: a damaged episode ({error}); delete it to have it collected again"
        ) from error
