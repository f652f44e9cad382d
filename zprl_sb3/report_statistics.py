"""Statistics of a report: over seeds means, across tasks interquartile means and probabilities of improvement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zprl_sb3.report import Run
from zprl_sb3.report_groups import Group

# Two-sided 95 % quantiles of Student's t for 1, 2, ... 30 degrees of freedom; 1.96 beyond.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
RESAMPLES = 10_000  # of a bootstrap

Floats = NDArray[np.float64]
Scores = dict[str, Floats]
"""A method's scores (n,) by task, one a run."""


class Estimate(NamedTuple):
    """A value and its 95 % interval, NaN where there is none."""

    value: float
    low: float
    high: float


def mean_over_seeds(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return mean, low and high over the first axis.

    From three on Student's 95 % interval; of two their range, as the interval would be wider than any picture; of one
    the value.

    :param values: (n, ...)
    """
    mean, freedom = values.mean(axis=0), len(values) - 1
    if freedom < 2:
        return mean, values.min(axis=0), values.max(axis=0)
    quantile = T_QUANTILES[freedom - 1] if freedom <= len(T_QUANTILES) else 1.96
    half = quantile * values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return mean, mean - half, mean + half


def curve_over_seeds(runs: Sequence[Run], column: str) -> pd.DataFrame:
    """Return mean, low and high of a column against env steps, see :func:`mean_over_seeds`.

    Of several runs on the env steps that all reached, those left out that have only begun. One run of ``success_rate``
    has its own 95 % interval over episodes.
    """
    tables = [table for run in runs if (table := run.table(column)) is not None]
    tables = [table for table in tables if len(table) > 1] or tables
    if len(tables) == 1:
        (curve,) = tables
        success = column == "success_rate"
        low, high = (curve[name] if success else curve[column] for name in ("ci_low", "ci_high"))
        return pd.DataFrame({"env_steps": curve["env_steps"], "mean": curve[column], "low": low, "high": high})
    shortest = min(tables, key=lambda table: table["env_steps"].iloc[-1])["env_steps"].to_numpy()
    values = np.stack([np.interp(shortest, table["env_steps"], table[column]) for table in tables])
    mean, low, high = mean_over_seeds(values)
    return pd.DataFrame({"env_steps": shortest, "mean": mean, "low": low, "high": high})


def final_scores(groups: Iterable[Group]) -> dict[str, Scores]:
    """Return the final successes (n,) of all runs that have one, by method and environment."""
    scores: dict[str, Scores] = {}
    for each in groups:
        finals = np.array([run.final for run in each.runs])
        if len(known := finals[~np.isnan(finals)]):
            scores.setdefault(each.method, {})[each.env_id] = known
    return scores


def interquartile_mean(scores: NDArray[Any]) -> NDArray[Any]:
    """Return the mean of the last axis without its lowest and its highest quarter (rounded down)."""
    count = scores.shape[-1]
    middle: NDArray[Any] = np.sort(scores)[..., count // 4 : count - count // 4].mean(axis=-1)
    return middle


def iqm(scores: Scores) -> Estimate:
    """Return the interquartile mean over all runs of all tasks, with a stratified bootstrap interval.

    Agarwal et al. 2021 (arXiv 2108.13264): the runs are drawn anew within each task. Percentiles of :data:`RESAMPLES`
    draws, which are the same every time. No interval where a task has a single run: it cannot be drawn otherwise.
    """
    rng = np.random.default_rng(0)
    drawn = np.concatenate([_resampled(runs, rng) for runs in scores.values()], axis=1)
    value = interquartile_mean(np.concatenate(list(scores.values())))
    return _estimate(value, interquartile_mean(drawn), fewest(scores))


def improvement(first: Scores, second: Scores) -> Estimate | None:
    """Return the probability that a run of the first method beats one of the second, on the same task.

    The share of the pairs of runs in which it does, ties counted half (Mann and Whitney's U), as a mean over the tasks
    that both have; with a stratified bootstrap interval as in :func:`iqm`. None where they have no task in common.
    """
    tasks = [task for task in first if task in second]
    if not tasks:
        return None
    rng = np.random.default_rng(0)
    drawn = [_wins(_resampled(first[task], rng), _resampled(second[task], rng)) for task in tasks]
    value = np.mean([_wins(first[task], second[task]) for task in tasks])
    few = min(len(scores[task]) for scores in (first, second) for task in tasks)
    return _estimate(value, np.mean(drawn, axis=0), few)


def fewest(scores: Scores) -> int:
    """Return the number of runs of the task that has fewest."""
    return min(map(len, scores.values()))


def _resampled(runs: Floats, rng: np.random.Generator) -> Floats:
    """Return (RESAMPLES, n) draws with replacement."""
    drawn: Floats = runs[rng.integers(len(runs), size=(RESAMPLES, len(runs)))]
    return drawn


def _wins(first: Floats, second: Floats) -> Floats:
    """Return the share of pairs (..., n) x (..., m) in which the first is larger, ties counted half."""
    # Means of the same successes in another order differ in their last bits.
    signs = np.sign(np.round(first[..., :, None] - second[..., None, :], 9))
    share: Floats = (signs.mean(axis=(-2, -1)) + 1) / 2
    return share


def _estimate(value: Any, draws: NDArray[Any], few: int) -> Estimate:
    low, high = np.percentile(draws, (2.5, 97.5)) if few > 1 else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high))
