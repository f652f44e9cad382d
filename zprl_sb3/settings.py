"""Settings by environment id from the YAML files in ``hyperparams/``, and overrides from the command line."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml


def load_settings(name: str, env_id: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the settings of one environment: ``default``, then the environment's own entry, then the overrides.

    An entry may start from another one than ``default``, which it then names: ``default: robosuite``.

    :param name: File in ``hyperparams/`` (``"zprl.yml"``) or the path of a file of the user's
    :param env_id: Gymnasium id, e.g. ``"zprl/Push-v0"``
    :param overrides: ``"key=value"``, dots for nested keys, values in YAML (``"scale=0.3"``)
    :raises FileNotFoundError: If there is no such file
    :raises KeyError: If an environment's entry or an override names a setting that the default entry lacks
    :raises ValueError: If the file is no such table, or a value is of another kind than the default
    """
    tables = _read(name)
    entry = dict(tables.get(env_id) or {})
    base = entry.pop("default", "default")
    default = tables.get(base)
    if not isinstance(default, dict):
        raise ValueError(f"{name}, {env_id}: there is no entry {base!r} to start from")
    settings = copy.deepcopy(default)
    _merge(settings, entry, default, where=f"{name}, {env_id}")
    for override in overrides:
        _merge(settings, parse_override(override), default, where=f"override {override!r}")
    return settings


def parse_override(text: str) -> dict[str, Any]:
    """Turn ``"a.b=1"`` into ``{"a": {"b": 1}}``.

    :raises ValueError: If there is no equals sign, no key, or the value is not YAML
    """
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ValueError(f"An override reads key=value (for example scale=0.3), not {text!r}")
    try:
        result: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"The value of the override {text!r} (key=value) is not YAML: {error}") from error
    for part in reversed(parts):
        result = {part: result}
    return dict(result)


def _read(name: str) -> dict[str, Any]:
    # A file of the user's comes first: an edited copy must not be passed over for the packaged one of the same name.
    path = Path(name) if Path(name).is_file() else files("zprl_sb3.hyperparams") / name
    if not path.is_file():
        raise FileNotFoundError(f"No settings file {name}: neither in the package's hyperparams/ nor at that path")
    try:
        tables = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not YAML: {error}") from error
    if not isinstance(tables, dict) or not isinstance(tables.get("default"), dict):
        raise ValueError(f"{name} needs an entry 'default' with all settings (start from a copy of the package's file)")
    return tables


def _merge(settings: dict[str, Any], changes: dict[str, Any], default: dict[str, Any], where: str) -> None:
    for key, value in changes.items():
        if key not in default:
            raise KeyError(f"{where}: unknown setting {key!r}; known are {', '.join(sorted(default))}")
        if not isinstance(default[key], dict):
            settings[key] = _like(default[key], value, f"{where}: {key!r}")
        elif not isinstance(value, dict):
            raise ValueError(f"{where}: {key!r} is a table of settings, not {value!r}")
        elif default[key]:
            _merge(settings[key], value, default[key], f"{where}, {key}")
        else:
            # An empty table in the default entry is open: arguments of gymnasium.make, for example.
            settings[key] = {**settings[key], **value}


def _like(default: Any, value: Any, where: str) -> Any:
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ValueError(f"{where} is true or false, not {value!r}")
    if isinstance(default, (int, float)) and isinstance(value, str):
        try:
            number = float(value)  # YAML takes 1e-4, without a dot, for text
        except ValueError:
            raise ValueError(f"{where} is a number, not {value!r}") from None
        return int(number) if isinstance(default, int) and number.is_integer() else number
    return value
