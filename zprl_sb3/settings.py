"""Settings by environment id from the YAML files in ``hyperparams/``, and overrides from the command line."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

# Tables that take keys which the default entry lacks: whoever gets such a table knows which there are. In the tables
# within them, values may be of any kind: an operator's parameter is a number or a range.
OPEN = frozenset({"env_kwargs", "train_env_kwargs", "operators", "policy_kwargs", "replay_buffer_kwargs"})

# Settings of a run that say how long, where and how closely watched it is, not what it learns.
NOT_IDENTITY = ("n_timesteps", "eval_freq", "eval_beside", "save_freq", "subprocess")
# What may change where a run goes on: also who computes the policy. Reports and studies tell such runs apart.
MAY_CHANGE = (*NOT_IDENTITY, "openvino")

FINE_TUNING = ("reinflow", "dppo")  # learners that change the base policy's weights
AUTO = "auto"  # as a value of scale: calibrated on the policy's demonstrations

METHODS = {
    ("latent", "sac"): "ZPRL",
    ("action", "sac"): "Policy Decorator",
    ("noise", "sac"): "DSRL",
    ("noise", "dsrl_na"): "DSRL-NA",
    ("embedding", "sac"): "ResEmb",
    ("weights", "reinflow"): "ReinFlow",
    ("weights", "dppo"): "DPPO",
    ("latent", "tqc"): "TQC",
    ("latent", "trpo"): "TRPO",
    ("latent", "soe"): "SOE",
}
"""What papers call the methods, by the settings ``steering`` and ``learner``."""


class _Loader(yaml.SafeLoader):
    """Takes 1e-4 for a number, as YAML 1.2 does; YAML 1.1 wants 1.0e-4."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_settings(
    name: str,
    env_id: str,
    overrides: Sequence[str] = (),
    observation: str | None = None,
    own: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the settings of one environment: ``default``, then the environment's own entry, then the overrides.

    An entry may name another entry to start from under ``default`` (``default: robosuite``), which may do the same, and
    changes for state observations, where smaller networks and fewer steps will do, under ``state``. A file that
    ``extends`` another one of ``hyperparams/`` changes the settings that come from there; the tables that it
    ``replaces`` are its own as a whole.

    :param name: File in ``hyperparams/`` (``"zprl.yml"``) or the path of a file of the user's
    :param env_id: Gymnasium id, e.g. ``"zprl/Push-v0"``
    :param observation: ``"state"`` takes the changes under ``state``
    :param overrides: ``"key=value"``, dots for nested keys, values in YAML (``"scale=0.3"``)
    :param own: The environment's own entry where it is not in the file, nor in the one that this extends: a real
        robot's task has its own (:func:`~zprl_sb3.robot_envs.real.tasks.task_settings`)
    :raises FileNotFoundError: If there is no such file
    :raises KeyError: If an environment's entry or an override names a setting that the default entry lacks, outside of
        the tables in ``OPEN``
    :raises ValueError: If the file is no such table, or a value is of another kind than the default
    """
    settings, default = _of_file(name, env_id, observation, own)
    for override in overrides:
        _merge(settings, parse_override(override), default, where=f"override {override!r}")
    return settings


def _of_file(
    name: str, env_id: str, observation: str | None, own: Mapping[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an environment's settings, and the default entry that says which there are and of what kind."""
    tables = _read(name)
    if own is not None and "extends" not in tables:
        tables[env_id] = copy.deepcopy(dict(own))
    first, *others = _entries(name, tables, env_id)
    if "extends" in tables:
        settings, default = _of_file(str(tables["extends"]), env_id, observation, own)
        for key in tables.get("replaces", ()):
            settings[key], default[key] = copy.deepcopy(first[key]), first[key]
        others.insert(0, first)
    else:
        settings, default = copy.deepcopy(first), first
    states = [entry.pop("state", {}) for entry in others]
    for changes in (*others, *(states if observation == "state" else ())):
        _merge(settings, changes, default, where=f"{name}, {env_id}")
    return settings, default


def _entries(name: str, tables: dict[str, Any], env_id: str) -> list[dict[str, Any]]:
    """Return the entries that lead to an environment's settings, from the one with all settings to its own."""
    entries = [dict(_table(tables.get(env_id) or {}, f"{name}: {env_id!r}"))]
    entries[0].setdefault("default", "default")
    while "default" in entries[0]:
        base = entries[0].pop("default")
        if not isinstance(tables.get(base), dict) or len(entries) > len(tables):
            raise ValueError(f"{name}, {env_id}: there is no entry {base!r} to start from, or it starts from itself")
        entries.insert(0, dict(tables[base]))
    return entries


def parse_override(text: str) -> dict[str, Any]:
    """Turn ``"a.b=1"`` into ``{"a": {"b": 1}}``.

    :raises ValueError: If there is no equals sign, no key, or the value is not YAML
    """
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ValueError(f"An override reads key=value (for example scale=0.3), not {text!r}")
    try:
        result: Any = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"The value of the override {text!r} (key=value) is not YAML: {error}") from error
    for part in reversed(parts):
        result = {part: result}
    return dict(result)


def find_file(name: str | Path, folder: str = "") -> Path:
    """Return the file of a name: at that path, or else in the package's ``hyperparams/``, with or without ``.yml``.

    :param name: Name or path
    :param folder: In ``hyperparams/``
    :raises FileNotFoundError: If there is neither
    """
    # A file of the user's comes first: an edited copy must not be passed over for the packaged one of the same name.
    package = Path(str(files("zprl_sb3.hyperparams"))) / folder
    for path in (Path(name), package / name, package / f"{name}.yml"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"No settings file {name}: neither in the package's hyperparams/{folder} nor at that path")


def read_settings(file: Path) -> Any:
    """Read YAML as all of ``hyperparams/`` is read: 1e-4 is a number.

    :raises yaml.YAMLError: If it is none
    """
    return yaml.load(file.read_text(), _Loader)


def _read(name: str) -> dict[str, Any]:
    try:
        tables = read_settings(find_file(name))
    except yaml.YAMLError as error:
        raise ValueError(f"{name} is not YAML: {error}") from error
    if not isinstance(tables, dict) or not isinstance(tables.get("default"), dict):
        raise ValueError(f"{name} needs an entry 'default' with all settings (start from a copy of the package's file)")
    return tables


def _merge(
    settings: dict[str, Any], changes: dict[str, Any], default: dict[str, Any], where: str, *tables: str
) -> None:
    """Change settings, in place, as far as the default entry allows it.

    :param where: Where the changes come from, for messages
    :param tables: Names of the tables that lead to these settings
    """
    place = ", ".join((where, *tables))
    for key, value in changes.items():
        if key not in default:
            if not OPEN.intersection(tables[-1:]):
                raise KeyError(f"{place}: unknown setting {key!r}; known are {', '.join(sorted(default))}")
            settings[key] = _joined(settings.get(key), value)
        elif isinstance(default[key], dict):
            _merge(settings[key], _table(value, f"{place}: {key!r}"), default[key], where, *tables, key)
        elif OPEN.intersection(tables[:-1]):
            settings[key] = value
        else:
            settings[key] = _like(default[key], value, f"{place}: {key!r}", auto=(*tables, key) == ("scale",))


def _joined(old: Any, new: Any) -> Any:
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return copy.deepcopy(new)
    return old | {key: _joined(old.get(key), value) for key, value in new.items()}


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a table of settings, not {value!r}")
    return value


def _like(default: Any, value: Any, where: str, auto: bool) -> Any:
    """Return the value if it is of the default's kind. Where that is text, a list or null, any value is.

    :param auto: Whether it may be ``auto`` as well
    """
    if auto and value == AUTO:
        return value
    if isinstance(default, bool):
        fits, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        value = int(value) if isinstance(value, float) and value.is_integer() else value  # 1e6
        fits, kind = type(value) is int, "a whole number"
    elif isinstance(default, float):
        fits, kind = type(value) in (int, float), "a number"
        value = float(value) if fits else value
    else:
        return value
    if not fits:
        raise ValueError(f"{where} is {kind}{' or auto' if auto else ''}, not {value!r}")
    return value


def nested(overrides: Sequence[str]) -> dict[str, Any]:
    """Return overrides as one table, as an entry of a settings file has it.

    :param overrides: ``"key=value"``, as :func:`load_settings` takes them; later ones win
    """
    table: dict[str, Any] = {}
    for override in overrides:
        table = _joined(table, parse_override(override))
    return table


def differences(there: dict[str, Any], here: dict[str, Any], ignore: Sequence[str] = ()) -> str:
    """Say in which values two tables differ; nothing if they do not.

    :param there: What is stored
    :param here: What is asked for
    :param ignore: Keys that may differ, dots for nested ones
    """
    old, new = flatten(there), flatten(here)
    free = tuple(f"{key}." for key in ignore)
    keys = sorted(key for key in {*old, *new} if not f"{key}.".startswith(free))
    different = [key for key in keys if old.get(key) != new.get(key)]
    return ", ".join(f"{key} ({old.get(key)} there, {new.get(key)} now)" for key in different)


def check_options(settings: dict[str, Any]) -> None:
    """Raise a ValueError if settings ask another method for what only ZPRL can be given, or end before a policy learns.

    Only for ZPRL are demonstrations (SOE has a use of its own for them), a λ by the spread of z, and a calibrated one.
    """
    asked = [name for name in ("demonstrations", "scale_by") if settings[name] is not None]
    asked += ["scale=auto"] if settings["scale"] == AUTO else []
    if settings["learner"] == "soe":
        asked = [name for name in asked if name != "demonstrations"]
    if asked and (settings["steering"], settings["learner"]) != ("latent", "sac"):
        raise ValueError(f"{' and '.join(asked)}: with steering latent and learner sac only")
    check_openvino(settings)
    own, chunks = settings["algorithm"], settings["n_timesteps"]
    if own.get("critic_warmup") and chunks <= (warm_up := own["critic_warmup"] * own["n_steps"] * settings["n_envs"]):
        raise ValueError(
            f"n_timesteps={chunks} is no more than the critic's warm-up, {own['critic_warmup']} rollouts of "
            f"{own['n_steps']} x {settings['n_envs']} chunks = {warm_up}, and the policy would never learn: raise it, "
            "or lower algorithm.n_steps, algorithm.critic_warmup or n_envs"
        )


def check_openvino(settings: dict[str, Any]) -> None:
    """Raise a ValueError if OpenVINO is asked for where the policy does not stay as it is."""
    if settings["openvino"] is not None and settings["learner"] in FINE_TUNING:
        raise ValueError(f"openvino={settings['openvino']}: for policies that stay as they are, not for fine-tuning")


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn ``{"a": {"b": 1}}`` into ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
