"""Policy checkpoints: a folder of safetensors and JSON that holds no code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch as th
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
from zprl_sb3.files import atomic_path, recovered, sha256, write_json
from zprl_sb3.policy import FlowPolicy, FlowPolicyConfig, check_chunk

if TYPE_CHECKING:
    from zprl_sb3.adapters import AdaptedPolicy

FORMAT, ATTACHED = "zprl_sb3.policy", "zprl_sb3.attached"
VERSIONS = {FORMAT: 2, ATTACHED: 1}
"""The newest version of each format: a policy of ours, and a bottleneck attached to some other checkpoint."""
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
REQUIRED = ("format_version", "env_id", "bottleneck", "weights_sha256")
OWN = {FORMAT: "policy", ATTACHED: "base"}  # what only this format needs


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or not one of ours. The message names the file and what to do."""


def save_policy(policy: FlowPolicy, path: str | Path, **metadata: Any) -> Path:
    """Write a policy as a folder: ``weights.safetensors`` (normalisers included) and ``config.json``.

    :param policy: The policy, with its EMA weights where it has any
    :param path: The folder; replaced as a whole if it exists
    :param metadata: JSON-able facts to keep, e.g. ``dataset_sha256``, ``env_kwargs``
    :return: The folder
    """
    about = {
        "format": FORMAT,
        "env_id": policy.env_id,
        "policy": asdict(policy.config),
        "bottleneck": asdict(policy.bottleneck.config) if policy.bottleneck else None,
    }
    return write_checkpoint(path, policy.state_dict(), about | metadata)


def write_checkpoint(path: str | Path, tensors: Mapping[str, th.Tensor], about: Mapping[str, Any]) -> Path:
    """Write tensors and what is to be known of them as a folder that is there whole or not at all.

    :param path: The folder; replaced as a whole if it exists
    :param tensors: By name
    :param about: JSON-able facts, with ``format``; hash, versions and the version of the format are added
    :return: The folder
    """
    with atomic_path(path) as folder:
        folder.mkdir()
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(stored, folder / WEIGHTS)
        checks = {"format_version": VERSIONS[about["format"]], "weights_sha256": sha256(folder / WEIGHTS)}
        versions = {name: version(name) for name in ("zprl-sb3", "torch", "numpy", "gymnasium")}
        write_json(folder / CONFIG, {**about, **checks, "versions": versions})
    return Path(path)


def copy_policy(checkpoint: str | Path, folder: str | Path) -> None:
    """Copy a checkpoint into a run's folder, whole, unless it is there."""
    if not recovered(folder).is_dir():
        with atomic_path(folder) as temporary:
            shutil.copytree(checkpoint, temporary)


def read_config(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint's ``config.json``.

    :raises CheckpointError: If the folder or the file is missing, unreadable, foreign or of a newer format
    """
    file = recovered(path) / CONFIG
    if not file.is_file():
        raise CheckpointError(f"No policy checkpoint at {path}: {file} does not exist (make one with `zprl pretrain`)")
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: {error}. Write the checkpoint again") from error
    if not isinstance(config, dict) or config.get("format") not in VERSIONS:
        raise CheckpointError(f"{file} is not a zprl_sb3 policy checkpoint (its 'format' is not {FORMAT!r})")
    _check_version(config.get("format_version", 0), VERSIONS[config["format"]], file)
    if missing := [key for key in (*REQUIRED, OWN[config["format"]]) if key not in config]:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}. Write the checkpoint again")
    return config


def _check_version(found: Any, newest: int, file: Path) -> None:
    if not isinstance(found, int):
        raise CheckpointError(f"{file}: format_version is a whole number, not {found!r}. Write the checkpoint again")
    if found > newest:
        raise CheckpointError(f"{file} has format version {found}, this zprl_sb3 reads up to {newest}: upgrade it")


def load_policy(
    path: str | Path,
    chunk: int | None = None,
    device: th.device | str = "cpu",
    sampling_steps: int | None = None,
) -> FlowPolicy | AdaptedPolicy:
    """Load a frozen policy from a checkpoint folder.

    :param path: The folder: a policy of ours, or a bottleneck attached to another checkpoint, which is loaded too
    :param chunk: h, executed actions, from 1 to the horizon; the checkpoint's own where None
    :param device: Where to put the weights
    :param sampling_steps: Steps of the sampler, at least 1; the checkpoint's own where None
    :raises CheckpointError: If a file is missing, truncated, changed or of another project; the message names it
    :raises ValueError: If the chunk is longer than the horizon, or the sampler has no step
    """
    config = read_config(path)
    policy = _load_attached(Path(path), config) if config["format"] == ATTACHED else _load_own(Path(path), config)
    if sampling_steps is not None:
        policy.set_sampling_steps(sampling_steps)
    if chunk is not None:
        check_chunk(chunk, policy.horizon)
        policy.chunk = chunk
    policy.env_id = config["env_id"]
    policy.render_quality = (config.get("env_kwargs") or {}).get("render_quality")
    return policy.to(device).freeze()


def _load_attached(path: Path, config: dict[str, Any]) -> FlowPolicy | AdaptedPolicy:
    from zprl_sb3.attached import load_attached  # which loads checkpoints itself

    return load_attached(path, config)


def _load_own(path: Path, config: dict[str, Any]) -> FlowPolicy:
    policy = _build(config, path / CONFIG)
    try:
        policy.load_state_dict(read_weights(path, config))
    except RuntimeError as error:
        raise CheckpointError(f"{path / WEIGHTS} does not fit {CONFIG} beside it: {error}") from error
    return policy


def _build(config: dict[str, Any], file: Path) -> FlowPolicy:
    try:
        policy = FlowPolicy(policy_config(config["policy"]))
        if config["bottleneck"] is not None:
            policy.bottleneck = Bottleneck(policy.context_dim, BottleneckConfig(**config["bottleneck"]))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} lacks or mistakes a setting: {error}. Write the checkpoint again") from error
    return policy


def policy_config(policy: Mapping[str, Any]) -> FlowPolicyConfig:
    """Return an architecture that went through JSON, where tuples become lists."""
    settings: dict[str, Any] = {}
    settings |= {key: tuple(value) if isinstance(value, list) else value for key, value in policy.items()}
    if "observation_dims" in settings:  # format 1, which knew no images
        settings["observation_shapes"] = {key: [size] for key, size in settings.pop("observation_dims").items()}
    settings["observation_shapes"] = {key: tuple(shape) for key, shape in settings["observation_shapes"].items()}
    return FlowPolicyConfig(**settings)


def read_weights(path: Path, config: Mapping[str, Any]) -> dict[str, th.Tensor]:
    """Return the tensors of a checkpoint.

    :param path: The folder
    :param config: Its ``config.json``
    :raises CheckpointError: If they are missing, truncated or changed
    """
    file = path / WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: the checkpoint is incomplete, copy the whole folder again")
    if sha256(file) != config["weights_sha256"]:
        raise CheckpointError(f"{file} is truncated or changed: its SHA-256 is not the one in {CONFIG}. Copy it again")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
