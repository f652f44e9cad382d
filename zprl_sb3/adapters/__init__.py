"""Other projects' checkpoints as policies that can be steered.

An adapter is a function ``load(path, **options) -> AdaptedPolicy`` in a module of this folder. None of them imports the
project that the checkpoint is from, unless its docstring says so.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
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
TABLES = {"keys": "{INPUT: [KEY, KEY]}", "shapes": "{KEY: [9], CAMERA: [84, 84, 3]}"}
NUMBERS = ("chunk", "sampling_steps")
"""Options that all adapters have alike, of these types."""
LEROBOT = ("pretrained_model", "snapshots")
"""In the folders of a training's checkpoint and of a repository in the cache of ``huggingface_hub``."""
SUFFIXES = {".ckpt": "diffusion_policy", ".pth": "robomimic", ".zip": "sb3"}


def adapter_of(path: str | Path) -> str:
    """Return the adapter that a checkpoint looks made for.

    :param path: The checkpoint
    :raises AdapterError: If it looks like none of them
    """
    path = Path(path)
    if path.suffix in SUFFIXES:
        return SUFFIXES[path.suffix]
    if ":" in path.name:
        return "module"
    if (path / "config.json").is_file():
        return "zprl" if str(_read(path / "config.json").get("format", "")).startswith("zprl_sb3.") else "lerobot"
    if any((path / name).is_dir() for name in LEROBOT):
        return "lerobot"
    what = "its name does not tell what it is, adapter=NAME does"
    if path.is_dir():
        what = "the folder has no config.json, as a policy's of LeRobot and of zprl pretrain has"
    raise AdapterError(
        f"{path}: {what if path.exists() else 'there is no such file or folder'}. Policies that can be read: {_known()}"
    )


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
    :raises ValueError: If there is no such adapter or option, or an option is of another type
    """
    if adapter not in ADAPTERS:
        raise ValueError(f"There is no adapter {adapter!r}. There are: {_known()}")
    load: Callable[..., FrozenPolicy] = import_module(f"{__name__}.{adapter}").load
    _check_options(adapter, load, options)
    return load(path, **options).freeze()


def _check_options(adapter: str, load: Callable[..., Any], options: Mapping[str, Any]) -> None:
    _, *known = inspect.signature(load).parameters
    if adapter not in CODE and (unknown := [name for name in options if name not in known]):
        raise ValueError(f"The adapter {adapter!r} has no such option: {unknown[0]!r}. It has {', '.join(known)}")
    for name in TABLES if adapter not in CODE else ():
        table = options.get(name) or {}
        if not isinstance(table, Mapping) or not all(isinstance(each, (list, tuple)) for each in table.values()):
            raise ValueError(f"The option {name} gives each name a list, {TABLES[name]}, and is not {table}")
    for name in NUMBERS:
        if not (isinstance(options.get(name, 1), int) or options[name] is None):
            raise ValueError(f"The option {name} is a whole number, not {options[name]!r}")
