"""Learning curves, table and steering diagnostics of finished or running runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from zprl_sb3.files import atomic_path
from zprl_sb3.settings import NOT_IDENTITY, flatten

# Two-sided 95 % quantiles of Student's t for 1, 2, ... 30 degrees of freedom; 1.96 beyond.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
COLORS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#c14c8a", "#9f6b53")
GUIDELINE = (0.1, 0.2)  # advised RMS(λΔz) / RMS(z)
NEEDED = ["env_steps", "success_rate", "ci_low", "ci_high"]  # of every row; the other columns may be missing


class ReportError(ValueError):
    """A run that cannot be reported; the message names the folder."""


@dataclass
class Run:
    """One run folder of ``zprl train``.

    :param folder: The folder
    :param env_id: Gymnasium id
    :param seed: Seed of the run
    :param facts: All else that decides what it learns: fingerprint of the base policy, settings by dotted name
    :param curve: One row per evaluation, as in ``evaluations.csv``
    """

    folder: Path
    env_id: str
    seed: int
    facts: dict[str, Any]
    curve: pd.DataFrame

    @property
    def name(self) -> str:
        """Environment and λ."""
        return f"{self.env_id}, λ = {self.facts['scale']:g}"


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
        facts = {"base policy": run["policy"][:8], **flatten(run["settings"])}
        float(facts["scale"])
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ReportError(f"{file} is damaged or not of `zprl train`: {error!r}") from error
    facts = {key: value for key, value in facts.items() if key not in NOT_IDENTITY}
    return Run(folder, env_id, seed, facts, _read_curve(folder / "evaluations.csv"))


def _read_curve(file: Path) -> pd.DataFrame:
    try:
        curve = pd.read_csv(file, dtype=float)
    except ValueError as error:
        raise ReportError(f"{file} is damaged: {error}") from error
    if curve.empty or not set(NEEDED) <= set(curve):
        raise ReportError(f"{file} holds no evaluations")
    if curve[NEEDED].isna().any(axis=None):
        raise ReportError(f"{file} is damaged: figures are missing")
    return curve


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return runs that differ in their seed only, by label.

    A label is environment and λ, followed by what differs between groups that have these in common.
    """
    groups: list[list[Run]] = []
    for run in runs:
        alike = (each for each in groups if (each[0].env_id, each[0].facts) == (run.env_id, run.facts))
        if members := next(alike, None):
            members.append(run)
        else:
            groups.append([run])
    labelled: dict[str, list[Run]] = {}
    for members in groups:
        # A setting may be null in one run and missing in another: they read alike, and are.
        labelled.setdefault(_label(members[0], [each[0] for each in groups]), []).extend(members)
    return labelled


def _label(run: Run, others: Sequence[Run]) -> str:
    rivals = [other.facts for other in others if other.name == run.name]
    keys = dict.fromkeys(key for facts in rivals for key in facts)
    differing = [key for key in keys if any(facts.get(key) != run.facts.get(key) for facts in rivals)]
    return ", ".join([run.name, *(f"{key} = {run.facts.get(key)}" for key in differing)])


def curve_over_seeds(runs: Sequence[Run], column: str) -> pd.DataFrame:
    """Return mean, low and high of a column against env steps.

    From three runs on: the mean over seeds and its 95 % interval by Student's t, on the env steps that all reached.
    Two runs: mean and range, as the interval of two would be wider than the picture. One run of ``success_rate``: its
    own 95 % interval over episodes.
    """
    if len(runs) == 1:
        curve = runs[0].curve
        success = column == "success_rate"
        low, high = (curve[name] if success else curve[column] for name in ("ci_low", "ci_high"))
        return pd.DataFrame({"env_steps": curve["env_steps"], "mean": curve[column], "low": low, "high": high})
    shortest = min(runs, key=lambda run: run.curve["env_steps"].iloc[-1]).curve["env_steps"].to_numpy()
    values = np.stack([np.interp(shortest, run.curve["env_steps"], run.curve[column]) for run in runs])
    mean, freedom = values.mean(axis=0), len(runs) - 1
    quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else 1.96
    half = np.ptp(values, axis=0) / 2 if freedom == 1 else quantile * values.std(axis=0, ddof=1) / np.sqrt(len(runs))
    return pd.DataFrame({"env_steps": shortest, "mean": mean, "low": mean - half, "high": mean + half})


def draw(runs: Sequence[Run], path: str | Path) -> Path:
    """Draw success, episode length and steering diagnostics against env steps into a PNG.

    :param runs: Runs; those that differ in their seed only become one curve with a band, see :func:`curve_over_seeds`
    :param path: The PNG file
    """
    figure = Figure(figsize=(11, 6.4), dpi=110, layout="constrained")
    panels = {
        "success_rate": "success rate",
        "mean_length": "mean episode length (env steps)",
        "rms_ratio": "RMS(λΔz) / RMS(z)",
        "context_distance": "‖c̃ − c‖₂",
    }
    axes = dict(zip(panels, figure.subplots(2, 2, sharex=True).flat, strict=True))
    for color, (label, members) in zip(COLORS * len(runs), group(runs).items(), strict=False):
        for column, axis in axes.items():
            _draw_curve(axis, members, column, color, f"{label} ({len(members)} seed{'s'[: len(members) > 1]})")
    for column, axis in axes.items():
        axis.set_ylabel(panels[column])
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    _decorate(axes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)


def _draw_curve(axis: Axes, runs: Sequence[Run], column: str, color: str, label: str) -> None:
    if any(column not in run.curve for run in runs):
        return
    curve = curve_over_seeds(runs, column)
    for run in runs if len(runs) > 1 else ():
        axis.plot(run.curve["env_steps"], run.curve[column], color=color, alpha=0.3, linewidth=0.8)
    axis.plot(curve["env_steps"], curve["mean"], color=color, linewidth=2, label=label)
    axis.fill_between(curve["env_steps"], curve["low"], curve["high"], color=color, alpha=0.15, linewidth=0)
    if column == "success_rate":
        # The first evaluation is before any update: the base policy through the bottleneck.
        axis.axhline(curve["mean"].iloc[0], color=color, linestyle="--", linewidth=1, alpha=0.7)


def _decorate(axes: dict[str, Axes]) -> None:
    axes["success_rate"].set_ylim(-0.02, 1.02)
    axes["success_rate"].set_title("dashed: base policy; band: 95 %, of two seeds their range", fontsize=9)
    axes["success_rate"].legend(fontsize=8, frameon=False, loc="lower right")
    axes["rms_ratio"].axhspan(*GUIDELINE, color="grey", alpha=0.12, linewidth=0)
    axes["rms_ratio"].set_title("grey: the range the paper advises to start from", fontsize=9)
    for axis in list(axes.values())[2:]:
        axis.set_xlabel("env steps")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def markdown_table(runs: Sequence[Run]) -> str:
    """Return a Markdown table with a row per run: base, final and best success, and where they end."""
    lines = [
        "| run | seed | base | final (mean of last 3) | best | env steps | RMS(λΔz)/RMS(z) | ‖c̃ − c‖ |",
        "|---|---|---|---|---|---|---|---|",
    ]
    labels = {id(run): label for label, members in group(runs).items() for run in members}
    for run in runs:
        last, success = run.curve.iloc[-1], run.curve["success_rate"]
        cells = [labels[id(run)], run.seed, f"{success.iloc[0]:.2f}", f"{success.iloc[-3:].mean():.2f}"]
        cells += [f"{success.max():.2f}", f"{last['env_steps']:.0f}"]
        cells += [_optional(last, column) for column in ("rms_ratio", "context_distance")]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _optional(row: pd.Series[Any], column: str) -> str:
    return f"{row[column]:.2f}" if column in row else "–"
