"""The tables of a report as figures, in full precision: what its CSV files hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from zprl_sb3.report import Base, Figures, Run
from zprl_sb3.report_groups import Group, by_environment
from zprl_sb3.report_statistics import Estimate, Scores, fewest, improvement, iqm, mean_over_seeds
from zprl_sb3.smoothness import SMOOTHNESS

GOAL = 0.9  # success, of which the paper's Table I tells when it is reached
SHARES = {"0": 0.0, "⅓": 1 / 3, "⅔": 2 / 3, "1": 1.0}  # of the training, at which the paper's Table II looks
ZERO = ", zero noise"  # ends the names of evaluations without flow noise


def curves(groups: Iterable[Group]) -> pd.DataFrame:
    """Return a row for each evaluation during training."""
    tables: list[pd.DataFrame] = []
    for each in groups:
        for run in each.runs:
            names = {"environment": each.env_id, "method": each.method, "label": each.label, "seed": run.seed}
            tables.append(run.curve.assign(**names)[[*names, *run.curve]])
    return pd.concat(tables, ignore_index=True)


def by_group(groups: Iterable[Group]) -> pd.DataFrame:
    """Return a row for each group, as means over its seeds with low and high of 95 % intervals: the paper's Table I.

    ``base``: before any update. ``env_steps_to_goal``: first evaluation with a success of :data:`GOAL`, of the
    ``reached`` runs that have one. ``final``: mean of the last evaluations. ``steered`` and ``zero_noise``: the final
    evaluations of ``evaluated`` runs.
    """
    return pd.DataFrame([_group_row(each) for each in groups])


def _group_row(each: Group) -> dict[str, Any]:
    goals = _known(run.steps_to(GOAL) for run in each.runs)
    lengths = [run.env_steps for run in each.runs]
    steered, still = ([run.evaluations.get(f"steered{end}") for run in each.runs] for end in ("", ZERO))
    row = {"environment": each.env_id, "method": each.method, "label": each.label, "seeds": len(each.runs)}
    row |= {"base": _over_seeds(run.base for run in each.runs).value}
    row |= {"env_steps_to_goal": np.mean(goals) if len(goals) else np.nan, "reached": len(goals)}
    row |= _named("final", _over_seeds(run.final for run in each.runs))
    row |= {"env_steps_low": min(lengths), "env_steps_high": max(lengths)}
    row |= {"evaluated": sum(figures is not None for figures in steered)}
    row |= _named("steered", _over_seeds(figures["success"] for figures in steered if figures))
    return row | _named("zero_noise", _over_seeds(figures["success"] for figures in still if figures))


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not np.isnan(value)]


def _over_seeds(values: Iterable[float]) -> Estimate:
    """Return the mean of what is not NaN; of a single value without an interval, of none without a mean."""
    known = _known(values)
    if len(known) < 2:
        return Estimate(*known, *[np.nan] * (3 - len(known)))
    return Estimate(*(float(value) for value in mean_over_seeds(np.array(known))))


def _named(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def by_run(groups: Iterable[Group]) -> pd.DataFrame:
    """Return a row for each run: success before, at the end and at best, and how far steering goes at the end."""
    return pd.DataFrame([_run_row(each, run) for each in groups for run in each.runs])


def _run_row(each: Group, run: Run) -> dict[str, Any]:
    last = run.curve.iloc[-1]
    row = {"environment": each.env_id, "method": each.method, "label": each.label, "seed": run.seed}
    row |= {"base": run.base, "final": run.final, "best": run.curve["success_rate"].max(), "env_steps": run.env_steps}
    row |= {column: last.get(column, np.nan) for column in ("rms_ratio", "context_distance")}
    return row | {"folder": str(run.folder)}


def final_evaluations(groups: Iterable[Group], bases: Iterable[Base]) -> pd.DataFrame:
    """Return a row for each final model and each way of running a base policy, with and without flow noise.

    Success with its 95 % (Wilson) interval, and the same with ``zero_noise_`` before it; nothing where there is none.
    """
    rows: list[dict[str, Any]] = []
    for base in bases:
        for way in dict.fromkeys(name.removesuffix(ZERO) for name in base.evaluations):
            row: dict[str, Any] = {"environment": base.env_id, "policy": way, "seed": None}
            rows.append(row | _both(base.evaluations, way) | {"folder": str(base.folder)})
    for each in groups:
        for run in (run for run in each.runs if run.evaluations):
            row = {"environment": each.env_id, "policy": each.label, "seed": run.seed}
            rows.append(row | _both(run.evaluations, "steered") | {"folder": str(run.folder)})
    return pd.DataFrame(rows)


def _both(evaluations: dict[str, Figures], name: str) -> Figures:
    still = {f"zero_noise_{key}": value for key, value in evaluations.get(f"{name}{ZERO}", {}).items()}
    return evaluations.get(name, {}) | still


def across_tasks(scores: dict[str, Scores]) -> pd.DataFrame:
    """Return a row for each method: interquartile mean of the final success with its bootstrap interval.

    :param scores: Of :func:`~zprl_sb3.report_statistics.final_scores`
    """
    rows: list[dict[str, Any]] = []
    for method, tasks in scores.items():
        counts = {"tasks": len(tasks), "runs": sum(map(len, tasks.values())), "fewest_runs_of_a_task": fewest(tasks)}
        rows.append({"method": method} | counts | _named("iqm", iqm(tasks)))
    return pd.DataFrame(rows)


def improvements(scores: dict[str, Scores]) -> pd.DataFrame:
    """Return a row for each two methods with a task in common: the probability that the first is better."""
    rows: list[dict[str, Any]] = []
    for first in scores:
        for second in scores:
            if first != second and (estimate := improvement(scores[first], scores[second])) is not None:
                tasks = len(scores[first].keys() & scores[second].keys())
                rows.append({"method": first, "over": second, "tasks": tasks} | _named("probability", estimate))
    return pd.DataFrame(
        rows, columns=["method", "over", "tasks", *(f"probability{end}" for end in ("", "_low", "_high"))]
    )


def smoothness(groups: Iterable[Group]) -> pd.DataFrame:
    """Return velocity, acceleration and jerk by method at four times of the training: the paper's Table II.

    The times are shares of an environment's longest run. Each row is the mean of the seeds with an evaluation near it,
    within half of the way to the next one.
    """
    rows: list[dict[str, Any]] = []
    for members in by_environment(groups).values():
        longest = max(run.env_steps for each in members for run in each.runs)
        for each in members:
            for name, share in SHARES.items():
                if near := [row for run in each.runs if (row := _near(run, share * longest, longest / 6)) is not None]:
                    names = {"environment": each.env_id, "method": each.method, "label": each.label, "share": name}
                    rows.append(names | pd.DataFrame(near).mean().to_dict())
    return pd.DataFrame(rows)


def _near(run: Run, env_steps: float, within: float) -> dict[str, float] | None:
    """Return the motion at the evaluation that is nearest to so many env steps."""
    columns = [column for column in SMOOTHNESS if run.table(column) is not None]
    table = run.curve.dropna(subset=columns)
    if not columns or table.empty:
        return None
    row = table.loc[(table["env_steps"] - env_steps).abs().idxmin(), ["env_steps", *columns]]
    return dict(row) if abs(row["env_steps"] - env_steps) <= within else None
