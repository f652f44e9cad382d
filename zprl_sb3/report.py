"""Run folders as ``zprl report`` reads them: curves, logs and final evaluations."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from zprl_sb3.settings import AUTO, METHODS, NOT_IDENTITY, flatten
from zprl_sb3.smoothness import SMOOTHNESS

TRAINING = ["time/env_steps", "time/total_timesteps", "train/q_mean", "train/delta_rms"]
NEEDED = ["env_steps", "success_rate", "ci_low", "ci_high"]  # of every row; the other columns may be missing
BASE_POLICY = "base policy"  # a fact of a run: the fingerprint of its base policy
FIRST = {"steering": "latent", "learner": "sac"}  # of runs from before there was a choice
LAST = 5  # evaluations whose mean is the final success
EVALUATIONS = {"steered": "evaluation.json", "steered, zero noise": "evaluation_zero_noise.json"}
"""Files of a run's final evaluations, by what is evaluated."""

Figures = dict[str, float]


class ReportError(ValueError):
    """A run that cannot be reported; the message names the folder."""


@dataclass
class Run:
    """One run folder of ``zprl train``.

    :param folder: The folder
    :param env_id: Gymnasium id
    :param seed: Seed of the run
    :param facts: All else that decides what it learns: :data:`BASE_POLICY`, settings by dotted name
    :param curve: One row per evaluation, as in ``evaluations.csv``
    :param training: One row per burst of updates, as in ``logs``; empty where these are missing
    :param evaluations: Figures of the final evaluations, by the names of :data:`EVALUATIONS`
    :param base_facts: How the base policy was made, by dotted name, as far as its checkpoint tells
    """

    folder: Path
    env_id: str
    seed: int
    facts: dict[str, Any]
    curve: pd.DataFrame
    training: pd.DataFrame = field(default_factory=pd.DataFrame)
    evaluations: dict[str, Figures] = field(default_factory=dict)
    base_facts: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """What papers call the method."""
        steering, learner = (str(self.facts.get(key, first)) for key, first in FIRST.items())
        return METHODS.get((steering, learner), f"{learner} on {steering}")

    @property
    def env_steps(self) -> float:
        """Env steps at the last evaluation."""
        return float(self.curve["env_steps"].iloc[-1])

    @property
    def base(self) -> float:
        """Success before any update, NaN if that was not evaluated."""
        before = self.curve.loc[self.curve["env_steps"] == 0, "success_rate"]
        return float(before.iloc[0]) if len(before) else np.nan

    @property
    def final(self) -> float:
        """Mean success of the last :data:`LAST` evaluations, the one before any update left out; NaN without any.

        Of SOE the last one: each is of another policy, retrained from scratch.
        """
        last = 1 if self.facts.get("learner") == "soe" else LAST
        return float(self.curve.loc[self.curve["env_steps"] > 0, "success_rate"].iloc[-last:].mean())

    def steps_to(self, success: float) -> float:
        """Return the env steps of the first evaluation with at least so much success, NaN if there is none."""
        reached = self.curve.loc[self.curve["success_rate"] >= success, "env_steps"]
        return float(reached.iloc[0]) if len(reached) else np.nan

    def table(self, column: str) -> pd.DataFrame | None:
        """Return the rows with a column, of ``curve`` or ``training``; None where neither has it."""
        tables = (table.dropna(subset=[column]) for table in (self.curve, self.training) if column in table)
        return next((table for table in tables if len(table)), None)


@dataclass
class Base:
    """The evaluations of a base policy, each way it is run: ``base_evaluation.json``.

    :param folder: Where the file is
    :param env_id: Gymnasium id
    :param evaluations: Figures by way
    """

    folder: Path
    env_id: str
    evaluations: dict[str, Figures]


def read_run(folder: str | Path) -> Run:
    """Read a run folder.

    :raises ReportError: If it is not a run folder, has no evaluation yet, or is damaged
    """
    folder = Path(folder)
    for name in ("run.yml", "evaluations.csv"):
        if not (folder / name).is_file():
            raise ReportError(f"{folder} has no {name}: it is not a run of `zprl train`, or has not evaluated yet")
    file = folder / "run.yml"
    try:
        run = yaml.safe_load(file.read_text())
        env_id, seed = run["env_id"], run["seed"]
        facts = {BASE_POLICY: run["policy"][:8], **FIRST, **flatten(run["settings"])}
        facts["scale"] = _scale(facts["scale"], run.get("scale"))
        float(facts["scale"])
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReportError(f"{file} is damaged or not of `zprl train`: {error!r}") from error
    facts = {key: value for key, value in facts.items() if key not in NOT_IDENTITY}
    files = {name: folder / file for name, file in EVALUATIONS.items() if (folder / file).is_file()}
    evaluations = {name: _figures(_read_json(file), file) for name, file in files.items()}
    curve, training = _read_curve(folder / "evaluations.csv"), _read_training(folder / "logs")
    return Run(
        folder, env_id, seed, facts, curve, training, evaluations, _base_facts(folder / "policy" / "config.json")
    )


def _base_facts(file: Path) -> dict[str, Any]:
    """Return the sizes of a base policy and how it was trained, nothing where its checkpoint is not in the run."""
    if not file.is_file():
        return {}
    config = _read_json(file)
    told = flatten(
        {key: config[key] for key in ("demonstrations", "bottleneck", "policy", "training") if key in config}
    )
    return told | {"bottleneck": "attached" if "base" in config else "joint"}


def _scale(setting: Any, found: Any) -> Any:
    """Return λ, the calibrated one where the setting is ``auto``; of one for each dimension the mean."""
    return round(float(np.mean(found)), 6) if setting == AUTO else setting


def _read_curve(file: Path) -> pd.DataFrame:
    try:
        curve = pd.read_csv(file, dtype=float)
    except ValueError as error:
        raise ReportError(f"{file} is damaged: {error}") from error
    if curve.empty or not set(NEEDED) <= set(curve):
        raise ReportError(f"{file} holds no evaluations")
    if curve[NEEDED].isna().any(axis=None):
        raise ReportError(f"{file} is damaged: figures are missing")
    if {"rms_z", "rms_ratio"} <= set(curve):  # earlier versions wrote a ratio to nothing, too
        curve.loc[curve["rms_z"] == 0, "rms_ratio"] = np.nan
    return curve


def _read_training(logs: Path) -> pd.DataFrame:
    """Return what a run logged of its updates; of chunks that were trained again after a crash, the later ones."""
    parts: list[pd.DataFrame] = []
    for file in sorted(logs.glob("from_*/progress.csv"), key=lambda file: int(file.parent.name[5:])):
        start = int(file.parent.name[5:])
        parts = [part[part["time/total_timesteps"] <= start] for part in parts]
        try:
            part = pd.read_csv(file)
        except ValueError:  # still empty
            continue
        if set(TRAINING) <= set(part):
            part = part.dropna(subset=TRAINING)
            parts.append(part.assign(env_steps=part["time/env_steps"]))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ReportError(f"{file} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise ReportError(f"{file} is not of `zprl evaluate`")
    return content


def _figures(result: Any, file: Path) -> Figures:
    """Return the numbers of one evaluation of ``zprl evaluate``: success with its interval, episodes, mean length."""
    try:
        low, high = result["ci95"]
        figures = {"success": result["success_rate"], "success_low": low, "success_high": high}
        figures |= {key: result[key] for key in ("episodes", "mean_length")}
        figures |= {key: result[key] for key in ("env_steps", *SMOOTHNESS) if result.get(key) is not None}
        return {key: float(value) for key, value in figures.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReportError(f"{file} is not of `zprl evaluate`: {error!r}") from error


def read_bases(runs: Iterable[Run]) -> list[Base]:
    """Return the evaluations of base policies that lie where ``zprl benchmark`` and ``zprl pretrain`` leave them.

    That is, as ``base_evaluation.json``, beside a run's folder or in ``base`` beside it. A damaged one is named
    and left out.
    """
    bases: dict[Path, Base] = {}
    for run in runs:
        beside = run.folder.absolute().parent
        for file in (beside / "base" / "base_evaluation.json", beside / "base_evaluation.json"):
            if file in bases or not file.is_file():
                continue
            try:
                results = _read_json(file)
                ways = {way: _figures(result, file) for way, result in results.items()}
            except ReportError as error:
                print(f"left out: {error}", file=sys.stderr)
                continue
            if {result.get("env_id") for result in results.values()} == {run.env_id}:
                bases[file] = Base(file.parent, run.env_id, ways)
    return list(bases.values())
