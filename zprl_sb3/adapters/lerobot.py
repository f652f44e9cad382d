"""LeRobot's folders of ``DiffusionPolicy`` and ``ACTPolicy``, as LeRobot 0.3.3 and 0.4.4 write them, without LeRobot.

A folder holds ``config.json``, ``model.safetensors`` and the normalisation statistics: those of releases from 0.4 on in
the files of its processors, those of earlier ones in ``model.safetensors``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zprl_sb3.adapters.base import AdaptedPolicy, AdapterError
from zprl_sb3.adapters.lerobot_act import ActPolicy
from zprl_sb3.adapters.lerobot_diffusion import DiffusionPolicy
from zprl_sb3.adapters.lerobot_folder import CONFIG, read_folder
from zprl_sb3.adapters.lerobot_policy import read_inputs

POLICIES: dict[str, type[ActPolicy] | type[DiffusionPolicy]] = {"act": ActPolicy, "diffusion": DiffusionPolicy}
"""By LeRobot's name of their type."""


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
    kind = folder.config.get("type")
    if kind not in POLICIES:
        raise AdapterError(f"{folder.path} holds a policy of type {kind!r}; supported are {' and '.join(POLICIES)}")
    try:
        policy = POLICIES[kind](folder, read_inputs(folder, keys, shapes), chunk)
        if sampling_steps is not None:
            policy.set_sampling_steps(sampling_steps)
    except AdapterError:
        raise
    except ValueError as error:
        raise AdapterError(f"{folder.path}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise AdapterError(f"{folder.path / CONFIG} lacks or mistakes a setting: {reason}") from error
    return policy
