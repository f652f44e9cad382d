"""What several programs share: devices, and run folders that hold one run each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as th
import yaml

from zprl_sb3.files import atomic_path


def device_of(name: str) -> th.device:
    """Return the device of a name; ``auto`` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if th.cuda.is_available() else "cpu"
    return th.device(name)


def refuse_other_run(file: Path, settings: dict[str, Any], ignore: Sequence[str] = ()) -> None:
    """Write the settings of a run, or check that the run already there has the same.

    :param file: The YAML file in the run's folder
    :param settings: All that determines the run
    :param ignore: Keys that may differ
    :raises ValueError: If another run is there, naming the settings that differ
    """
    if not file.is_file():
        with atomic_path(file) as temporary:
            temporary.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        return
    there, here = (_flat({k: v for k, v in x.items() if k not in ignore}) for x in (read_yaml(file), settings))
    different = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    if different:
        changes = ", ".join(f"{key} ({there.get(key)} there, {here.get(key)} now)" for key in different)
        raise ValueError(f"{file.parent} holds a run with other settings: {changes}. Choose another output folder")


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML mapping."""
    return dict(yaml.safe_load(file.read_text()))


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
