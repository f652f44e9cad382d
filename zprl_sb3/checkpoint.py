"""Policy checkpoints: a folder of safetensors and JSON that holds no code."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch as th
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
from zprl_sb3.files import atomic_path, recovered, sha256, write_json
from zprl_sb3.flow import time_grid
from zprl_sb3.policy import FlowPolicy, FlowPolicyConfig, check_chunk

FORMAT = "zprl_sb3.policy"
FORMAT_VERSION = 2
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
REQUIRED = ("format_version", "env_id", "policy", "bottleneck", "weights_sha256")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or not one of ours. The message names the file and what to do."""


def save_policy(policy: FlowPolicy, path: str | Path, **metadata: Any) -> Path:
    """Write a policy as a folder: ``weights.safetensors`` (normalisers included) and ``config.json``.

    :param policy: The policy, with its EMA weights where it has any
    :param path: The folder; replaced as a whole if it exists
    :param metadata: JSON-able facts to keep, e.g. ``dataset_sha256``, ``env_kwargs``
    :return: The folder
    """
    with atomic_path(path) as folder:
        folder.mkdir()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
        save_file(tensors, folder / WEIGHTS)
        write_json(folder / CONFIG, _describe(policy, sha256(folder / WEIGHTS)) | metadata)
    return Path(path)


def _describe(policy: FlowPolicy, weights_sha256: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "env_id": policy.env_id,
        "policy": asdict(policy.config),
        "bottleneck": asdict(policy.bottleneck.config) if policy.bottleneck else None,
        "weights_sha256": weights_sha256,
        "versions": {name: version(name) for name in ("zprl-sb3", "torch", "numpy", "gymnasium")},
    }


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
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CheckpointError(f"{file} is not a zprl_sb3 policy checkpoint (its 'format' is not {FORMAT!r})")
    _check_version(config.get("format_version", 0), file)
    if missing := [key for key in REQUIRED if key not in config]:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}. Write the checkpoint again")
    return config


def _check_version(found: Any, file: Path) -> None:
    if not isinstance(found, int):
        raise CheckpointError(f"{file}: format_version is a whole number, not {found!r}. Write the checkpoint again")
    if found > FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {found}, this zprl_sb3 reads up to {FORMAT_VERSION}: upgrade it"
        )


def load_policy(
    path: str | Path,
    chunk: int | None = None,
    device: th.device | str = "cpu",
    sampling_steps: int | None = None,
) -> FlowPolicy:
    """Load a frozen policy from a checkpoint folder.

    :param path: The folder
    :param chunk: h, executed actions, from 1 to the horizon; the checkpoint's own where None
    :param device: Where to put the weights
    :param sampling_steps: Steps of the sampler, at least 1; the checkpoint's own where None
    :raises CheckpointError: If a file is missing, truncated, changed or of another project; the message names it
    :raises ValueError: If the chunk is longer than the horizon, or the sampler has no step
    """
    config = read_config(path)
    policy = _build(config, Path(path) / CONFIG)
    if sampling_steps is not None:
        time_grid(sampling_steps)
        policy.config = replace(policy.config, sampling_steps=sampling_steps)
    if chunk is not None:
        check_chunk(chunk, policy.horizon)
        policy.chunk = chunk
    tensors = _read_weights(Path(path) / WEIGHTS, config["weights_sha256"])
    try:
        policy.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{Path(path) / WEIGHTS} does not fit {CONFIG} beside it: {error}") from error
    policy.env_id = config["env_id"]
    policy.render_quality = (config.get("env_kwargs") or {}).get("render_quality")
    return policy.to(device).freeze()


def _build(config: dict[str, Any], file: Path) -> FlowPolicy:
    try:
        policy = FlowPolicy(FlowPolicyConfig(**_settings(config["policy"])))
        if config["bottleneck"] is not None:
            policy.bottleneck = Bottleneck(policy.context_dim, BottleneckConfig(**config["bottleneck"]))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} lacks or mistakes a setting: {error}. Write the checkpoint again") from error
    return policy


def _settings(policy: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    settings |= {key: tuple(value) if isinstance(value, list) else value for key, value in policy.items()}
    if "observation_dims" in settings:  # format 1, which knew no images
        settings["observation_shapes"] = {key: [size] for key, size in settings.pop("observation_dims").items()}
    settings["observation_shapes"] = {key: tuple(shape) for key, shape in settings["observation_shapes"].items()}
    return settings


def _read_weights(file: Path, expected_sha256: str) -> dict[str, th.Tensor]:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: the checkpoint is incomplete, copy the whole folder again")
    if sha256(file) != expected_sha256:
        raise CheckpointError(f"{file} is truncated or changed: its SHA-256 is not the one in {CONFIG}. Copy it again")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error
