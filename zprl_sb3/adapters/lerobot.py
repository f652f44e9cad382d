"""LeRobot's folders of ``DiffusionPolicy`` and ``ACTPolicy``, of releases 0.2 to 0.4. LeRobot is not imported.

A folder holds ``config.json``, ``model.safetensors`` and the normalisation statistics: those of releases from 0.4 on in
the files of its processors, those of earlier ones in ``model.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zprl_sb3.adapters.base import AdaptedPolicy, AdapterError
from zprl_sb3.adapters.lerobot_act import ActPolicy
from zprl_sb3.adapters.lerobot_diffusion import DiffusionPolicy
from zprl_sb3.adapters.lerobot_folder import CONFIG, Folder, read_folder
from zprl_sb3.adapters.lerobot_policy import read_inputs

TYPES = ("act", "diffusion")


def load(
    path: str | Path,
    keys: Mapping[str, Sequence[str]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    chunk: int | None = None,
    sampling_steps: int | None = None,
) -> AdaptedPolicy:
    """Return a policy of LeRobot.

    :param path: The folder that ``save_pretrained`` wrote; also that of a training's checkpoint, or of a repository in
        the cache of ``huggingface_hub``
    :param keys: For LeRobot's names of inputs, e.g. ``"observation.state"``, the keys of the environment's observation
        that are put side by side for it; an image has one. Default: the same names. Images are uint8 (H, W, 3)
    :param shapes: Of those keys, where several make one input, and of images that are not as large as those that the
        policy was trained with
    :param chunk: h, executed actions; default: the policy's ``n_action_steps``
    :param sampling_steps: Of a diffusion sampler; default: the policy's own
    :raises AdapterError: If the folder is damaged, incomplete, of another type of policy, or the options do not fit it
    """
    folder = read_folder(path)
    try:
        return _policy(folder, keys, shapes, chunk, sampling_steps)
    except (AttributeError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{folder.path / CONFIG} lacks or mistakes a setting: {type(error).__name__}: {error}"
        ) from error
    except AdapterError:
        raise
    except ValueError as error:
        raise AdapterError(f"{folder.path}: {error}") from error


def _policy(
    folder: Folder,
    keys: Mapping[str, Sequence[str]] | None,
    shapes: Mapping[str, Sequence[int]] | None,
    chunk: int | None,
    sampling_steps: int | None,
) -> AdaptedPolicy:
    kind = folder.config.get("type")
    if kind not in TYPES:
        raise AdapterError(f"{folder.path} holds a policy of type {kind!r}; supported are {' and '.join(TYPES)}")
    inputs = read_inputs(folder, keys, shapes)
    if kind == "diffusion":
        return DiffusionPolicy(folder, inputs, chunk, sampling_steps)
    if sampling_steps is not None:
        raise AdapterError(f"{folder.path} is of type act, which has no sampler: leave sampling_steps out")
    return ActPolicy(folder, inputs, chunk)
