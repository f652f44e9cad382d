"""Other projects' checkpoints as policies that can be steered.

An adapter is a function ``load(path, **options) -> AdaptedPolicy`` in a module of this folder. None of them imports the
project that the checkpoint is from, unless its docstring says so.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from zprl_sb3.adapters.base import AdaptedPolicy, AdapterError, FrozenPolicy

__all__ = ["ADAPTERS", "AdaptedPolicy", "AdapterError", "FrozenPolicy", "adapter_of", "open_policy"]

ADAPTERS = {
    "zprl": "this package's own, of `zprl pretrain`",
    "diffusion_policy": "Diffusion Policy's .ckpt, and those of ZPRL's authors",
    "lerobot": "LeRobot's folders of DiffusionPolicy and ACTPolicy",
    "robomimic": "robomimic's .pth of BC policies",
    "sb3": "Stable-Baselines3's .zip",
    "module": "a function of your own that makes the policy, package.module:function",
}
"""Names of the adapters, each a module here, and what they read."""
CODE = ("module",)
"""Adapters that run code of the checkpoint's."""
FILES = ("normalize",)
"""Options that name a file; a relative path is from where the checkpoint's own is."""
SUFFIXES = {".ckpt": "diffusion_policy", ".pth": "robomimic", ".zip": "sb3"}


def adapter_of(path: str | Path) -> str:
    """Return the adapter that a checkpoint looks made for.

    :param path: The checkpoint
    :raises AdapterError: If it looks like none of them
    """
    if Path(path).suffix in SUFFIXES:
        return SUFFIXES[Path(path).suffix]
    if ":" in Path(path).name:
        return "module"
    config = Path(path) / "config.json"
    if config.is_file():
        return "zprl" if str(_read(config).get("format", "")).startswith("zprl_sb3.") else "lerobot"
    what = "there is no such file or folder" if not Path(path).exists() else "it looks like none of them"
    raise AdapterError(f"{path}: {what}. Policies that can be read (adapter=NAME chooses): {_known()}")


def _read(config: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(config.read_text()))
    except (TypeError, ValueError) as error:
        raise AdapterError(f"{config} is damaged: no table in JSON ({error})") from error


def _known() -> str:
    return "; ".join(f"{name}: {what}" for name, what in ADAPTERS.items())


def open_policy(path: str | Path, adapter: str, **options: Any) -> FrozenPolicy:
    """Return a policy without a bottleneck, frozen.

    :param path: Its checkpoint
    :param adapter: One of :data:`ADAPTERS`
    :param options: Of that adapter, documented at its ``load``
    :raises AdapterError: If the checkpoint cannot be read, or is of another kind
    :raises ValueError: If there is no such adapter or option
    """
    if adapter not in ADAPTERS:
        raise ValueError(f"There is no adapter {adapter!r}. There are: {_known()}")
    module = import_module(f"{__name__}.{adapter}")
    try:
        policy: FrozenPolicy = module.load(path, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"The adapter {adapter!r} has no such option: {error}") from error
    return policy.freeze()
