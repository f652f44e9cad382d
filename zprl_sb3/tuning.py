"""What a study of ``zprl tune`` searches, and what all its trials have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from zprl_sb3.calibration import calibrate
from zprl_sb3.checkpoint import load_policy, read_config
from zprl_sb3.jobs import Job
from zprl_sb3.learners import ALGORITHMS, SOE
from zprl_sb3.settings import AUTO, NOT_IDENTITY, check_options, flatten, load_settings
from zprl_sb3.wrappers.steering import LatentSteering

KEYS = {"policy", "algo", "search", "set", "seeds", "pruner", "demonstrations"}
PRUNERS = ("median", "hyperband", "none")
RANGE = {"low", "high", "log", "step"}
SCALE = "scale"
SAME = (*NOT_IDENTITY, "eval_episodes")  # trials that differ in these could not be compared
WIDER = 2.0  # the search goes so many times beyond both ends of the range that calibration finds

Find = Callable[[Path], tuple[Path, str | None]]
Value = str | int | float | bool | None


class TuningError(ValueError):
    """A study that cannot be made, or not so; the message says why and where."""


@dataclass(frozen=True)
class Tuning:
    """What a study searches, from :func:`read_tuning`.

    :param policy: Checkpoint of the base policy, which all trials steer
    :param algo: Name of the method
    :param search: By the name of a setting: a range, choices, or for λ ``"auto"``
    :param changes: Settings of all trials, ``"key=value"``
    :param seeds: Each trial trains one run with each of them
    :param pruner: One of :data:`PRUNERS`
    :param demonstrations: Of the base policy, to calibrate λ
    :param settings: Of a trial but for what is searched
    :param find: Finds demonstrations, and the mask of the episodes used, of a policy for which none are named
    """

    policy: Path
    algo: str
    search: dict[str, Any]
    changes: list[str]
    seeds: list[int]
    pruner: str
    demonstrations: Path | None
    settings: dict[str, Any]
    find: Find

    @property
    def steps(self) -> int:
        """Evaluations of one run after the first, which is that of an actor that has learned nothing."""
        return max(1, int(self.settings["n_timesteps"]) // int(self.settings["eval_freq"]))

    def about(self) -> dict[str, Any]:
        """Return what makes a study this one and no other."""
        return {
            "env_id": read_config(self.policy)["env_id"],
            "policy": load_policy(self.policy).fingerprint(),
            "algo": self.algo,
            "search": self.search,
            "seeds": self.seeds,
            "pruner": self.pruner,
            "settings": self.settings,
        }

    def space(self) -> dict[str, BaseDistribution]:
        """Return the distribution of each setting. λ is calibrated here, which takes a while.

        :raises TuningError: If a range is none
        """
        flat = flatten(self.settings)
        ranges = {name: self._range() if spec == AUTO else spec for name, spec in self.search.items()}
        return {name: _distribution(name, spec, flat.get(name)) for name, spec in ranges.items()}

    def _range(self) -> dict[str, Any]:
        by = self.settings["scale_by"]
        named = self.demonstrations or by
        file, mask = (named, None) if named is not None else self.find(self.policy)
        print(f"Calibrating λ on {file}", flush=True)
        low, high = calibrate(self.policy, file, by is not None, mask).scale_range
        return {"low": low / WIDER, "high": WIDER * high, "log": True}

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Return the settings of a trial, those of all trials first, as ``zprl train --set`` takes them."""
        return [*self.changes, *(f"{name}={_text(value)}" for name, value in params.items())]

    def job(self, folder: Path, seed: int, params: Mapping[str, Any]) -> Job:
        """Return one run of a trial."""
        run = ("--policy", str(self.policy), "--output", str(folder), "--seed", str(seed))
        command = ("train", "--algo", self.algo, *run, "--set", *self.overrides(params))
        return Job(folder.name, folder, (command,), (), self.settings["n_timesteps"])


def read_tuning(
    file: str | Path | None,
    policy: str | Path | None = None,
    demonstrations: str | Path | None = None,
    find: Find | None = None,
) -> Tuning:
    """Return what is to be searched, with everything checked that can be before the first trial.

    :param file: YAML: ``policy``, ``algo``, ``search`` (name of a setting: {low, high, log, step} or a list of choices;
        of λ, ``auto``), ``set`` (settings of all trials), ``seeds``, ``pruner``, ``demonstrations``. None: λ
    :param policy: Instead of the file's
    :param demonstrations: Instead of the file's
    :param find: Finds demonstrations, and the mask of the episodes used, of a policy for which none are named
    :raises TuningError: If a key, method, setting or range is unknown or impossible, or something is missing
    :raises CheckpointError: If the policy cannot be read
    :raises KeyError: If there is no such setting
    """
    table = _read(Path(file)) if file is not None else {}
    where = str(file or "zprl tune")
    policy, demonstrations = policy or table.get("policy"), demonstrations or table.get("demonstrations")
    algo, pruner = table.get("algo", "zprl"), table.get("pruner", "median")
    if policy is None:
        raise TuningError(f"{where} needs a policy: the checkpoint that all trials steer")
    if algo not in ALGORITHMS or algo == SOE:
        raise TuningError(f"{where}: algo is one of {', '.join(set(ALGORITHMS) - {SOE})}, not {algo!r}")
    if pruner not in PRUNERS:
        raise TuningError(f"{where}: pruner is one of {', '.join(PRUNERS)}, not {pruner!r}")
    changes, seeds = table.get("set") or [], table.get("seeds", [0])
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)):
        raise TuningError(f"{where}: seeds is a list of whole numbers, not {seeds!r}")
    tuning = Tuning(
        Path(policy),
        algo,
        table.get("search") or {SCALE: AUTO},
        changes,
        seeds,
        pruner,
        Path(demonstrations) if demonstrations else None,
        _settings(policy, algo, changes),
        find or _not_found,
    )
    _check_search(tuning, where)
    return tuning


def _read(file: Path) -> dict[str, Any]:
    try:
        table = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise TuningError(f"{file} is not YAML: {error}") from error
    if not isinstance(table, dict) or not set(table) <= KEYS:
        raise TuningError(f"{file} is a table of {', '.join(sorted(KEYS))}, and knows nothing else")
    return table


def _settings(policy: str | Path, algo: str, changes: Sequence[str]) -> dict[str, Any]:
    config = read_config(policy)
    observation = config.get("env_kwargs", {}).get("observation")
    settings = load_settings(f"{algo}.yml", config["env_id"], changes, observation)
    check_options(settings)
    return settings


def _not_found(policy: Path) -> tuple[Path, str | None]:
    raise TuningError(f"λ is calibrated on the demonstrations of {policy}: name their file, or give scale a range")


def _check_search(tuning: Tuning, where: str) -> None:
    if not isinstance(tuning.search, dict):
        raise TuningError(f"{where}: search is a table of settings, as in `scale: {{low: 0.05, high: 2.0, log: true}}`")
    flat = flatten(tuning.settings)
    for name, spec in tuning.search.items():
        if name in SAME:
            raise TuningError(f"{where}: {name} is the same in all trials: it belongs under set")
        if spec == AUTO:
            _check_auto(tuning, name, where)
            continue
        _distribution(name, spec, flat.get(name))
        for value in spec if isinstance(spec, list) else (spec["low"], spec["high"]):
            _settings(tuning.policy, tuning.algo, tuning.overrides({name: _choice(value)}))


def _check_auto(tuning: Tuning, name: str, where: str) -> None:
    if name != SCALE or tuning.settings["steering"] != LatentSteering.kind:
        raise TuningError(f"{where}: only λ (scale) of a steered latent can be calibrated; give {name} a range")
    if tuning.demonstrations is not None and not tuning.demonstrations.is_file():
        raise TuningError(f"{where}: there are no demonstrations at {tuning.demonstrations} to calibrate λ on")


def _distribution(name: str, spec: Any, value: Any) -> BaseDistribution:
    """Return what Optuna draws a setting from; whole numbers where the setting is one."""
    try:
        if isinstance(spec, list):
            return CategoricalDistribution([_choice(each) for each in spec])
        if not (isinstance(spec, dict) and RANGE >= set(spec) >= {"low", "high"}):
            raise ValueError(f"it needs {{low, high}}, with log or step, or a list of choices, not {spec!r}")
        numbers = [spec[key] for key in ("low", "high", "step") if key in spec]
        if isinstance(value, bool) or not all(type(each) in (int, float) for each in numbers):
            raise ValueError("a range is one of numbers")
        whole = all(isinstance(each, int) for each in numbers)
        if isinstance(value, int) and not whole:
            raise ValueError("it is a whole number, and so are low, high and step")
        return (IntDistribution if whole and (value is None or isinstance(value, int)) else FloatDistribution)(**spec)
    except ValueError as error:
        raise TuningError(f"The search of {name}: {error}") from error


def _choice(value: Any) -> Value:
    # Optuna takes plain values only: a list of layers, for instance, becomes its text, which --set reads again.
    return json.dumps(value) if isinstance(value, list | dict) else value


def _text(value: Value) -> str:
    return value if isinstance(value, str) else json.dumps(value)
