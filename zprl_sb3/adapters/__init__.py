"""Other projects' checkpoints as policies that can be steered.

An adapter is a function ``load(path, **options) -> AdaptedPolicy`` in a module of this folder. None of them imports the
project that the checkpoint is from, unless its docstring says so.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from zprl_sb3.adapters.base import AdaptedPolicy, AdapterError

__all__ = ["ADAPTERS", "AdaptedPolicy", "AdapterError", "open_policy"]

ADAPTERS = {
    "diffusion_policy": "Diffusion Policy's .ckpt, and those of ZPRL's authors",
    "lerobot": "LeRobot's folders of DiffusionPolicy and ACTPolicy",
    "robomimic": "robomimic's .pth of BC policies",
    "sb3": "Stable-Baselines3's .zip",
    "module": "a function of your own that makes the policy, package.module:function",
}
"""Names of the adapters, each a module here, and what they read."""


def open_policy(path: str | Path, adapter: str, **options: Any) -> AdaptedPolicy:
    """Return another project's policy, frozen.

    :param path: Its checkpoint
    :param adapter: One of :data:`ADAPTERS`
    :param options: Of that adapter, documented at its ``load``
    :raises AdapterError: If the checkpoint cannot be read, or is of another kind
    :raises ValueError: If there is no such adapter or option
    """
    if adapter not in ADAPTERS:
        raise ValueError(f"There is no adapter {adapter!r}, only {', '.join(ADAPTERS)}")
    module = import_module(f"{__name__}.{adapter}")
    try:
        policy: AdaptedPolicy = module.load(path, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"The adapter {adapter!r} has no such option: {error}") from error
    return policy.freeze()
