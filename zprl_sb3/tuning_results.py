"""What a study leaves: the best settings as a file for ``zprl train``, a table, a picture."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import optuna
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from zprl_sb3.files import atomic_path
from zprl_sb3.settings import nested
from zprl_sb3.studies import ERROR, SharedStudy, origin
from zprl_sb3.tuning import Tuning

BEST, TABLE, PICTURE = "best.yml", "trials.csv", "trials.png"
COLUMNS = 4  # panels beside each other
ENOUGH = 10  # complete trials before their settings' importance is told
STATES = {TrialState.COMPLETE: ("complete", "#0072b2"), TrialState.PRUNED: ("pruned", "#e69f00")}


def write_results(study: SharedStudy, tuning: Tuning) -> str:
    """Write ``best.yml``, ``trials.csv`` and ``trials.png``, and return what there is to say.

    :raises ValueError: If no trial is complete
    """
    trials, output = study.trials(), study.output
    _write_table(trials, list(study.space), output / TABLE)
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        raise ValueError(f"No trial is complete; {output / TABLE} says why")
    best = study.study.best_trial
    _write_best(best, tuning, len(trials), output / BEST)
    _draw(trials, study.space, output / PICTURE)
    lines = [f"Best: trial {named(best)} with {best.value:.3f}: {described(best)}", *_importance(study)]
    return "\n".join([*lines, f"Wrote {output / BEST}, {output / TABLE} and {output / PICTURE}"])


def named(trial: FrozenTrial) -> str:
    """Return a trial's name, that of its folder: a repeated one has that of the trial that it repeats."""
    return f"{origin(trial):04d}"


def described(trial: FrozenTrial) -> str:
    """Return a trial's settings in one line."""
    return ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in trial.params.items()
    )


def _write_best(best: FrozenTrial, tuning: Tuning, count: int, path: Path) -> None:
    content = {"extends": f"{tuning.algo}.yml", "default": nested(tuning.overrides(best.params))}
    with atomic_path(path) as temporary:
        temporary.write_text(
            f"# The best of {count} trials of `zprl tune`: {named(best)}, with {best.value:.3f}. The best is also the\n"
            "# luckiest: train with other seeds to see what it is worth.\n"
            f"#     zprl train --algo {tuning.algo} --policy {tuning.policy} --config {path} --seed 1 --output ...\n"
            + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        )


def _write_table(trials: list[FrozenTrial], names: list[str], path: Path) -> None:
    import pandas as pd

    rows = [
        {
            "trial": trial.number,
            "folder": named(trial),
            "state": trial.state.name.lower(),
            "value": trial.value if trial.state in STATES else None,
            "evaluations": len(trial.intermediate_values),
            "seconds": trial.duration.total_seconds() if trial.duration else None,
            **{name: trial.params.get(name) for name in names},
            "error": trial.user_attrs.get(ERROR, ""),
        }
        for trial in trials
    ]
    with atomic_path(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def _importance(study: SharedStudy) -> list[str]:
    """Return a line about which setting matters how much, where there are several and trials enough."""
    if len(study.space) < 2 or len(study.trials(TrialState.COMPLETE)) < ENOUGH:
        return []
    shares = optuna.importance.get_param_importances(study.study)
    return ["Importance (fANOVA): " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items())]


def _draw(trials: list[FrozenTrial], space: dict[str, BaseDistribution], path: Path) -> None:
    rows = math.ceil((1 + len(space)) / COLUMNS)
    columns = min(COLUMNS, 1 + len(space))
    figure = Figure(figsize=(4.6 * columns, 3.8 * rows), dpi=120, layout="constrained")
    first, *others = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
    for axis in others[len(space) :]:
        axis.remove()
    for state, (label, color) in STATES.items():
        those = [trial for trial in trials if trial.state == state and trial.value is not None]
        worth = [trial.value for trial in those]
        first.scatter([trial.number for trial in those], worth, s=18, color=color, label=label)
        for axis, (name, distribution) in zip(others, space.items(), strict=False):
            axis.scatter([_place(trial, name, distribution) for trial in those], worth, s=18, color=color)
    complete = [(trial.number, trial.value) for trial in trials if trial.state == TrialState.COMPLETE]
    numbers, values = np.array(complete, float).T
    first.step(numbers, np.maximum.accumulate(values), where="post", color="#4d4d4d", label="best so far")
    first.set(xlabel="trial", ylabel="success, mean of the last evaluations")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False)
    for axis, (name, distribution) in zip(others, space.items(), strict=False):
        _label(axis, name, distribution)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _place(trial: FrozenTrial, name: str, distribution: BaseDistribution) -> float:
    value = trial.params[name]
    return float(distribution.to_internal_repr(value) if isinstance(distribution, CategoricalDistribution) else value)


def _label(axis: Axes, name: str, distribution: BaseDistribution) -> None:
    axis.set_xlabel("λ (scale)" if name == "scale" else name)
    if isinstance(distribution, CategoricalDistribution):
        axis.set_xticks(range(len(distribution.choices)), [str(choice) for choice in distribution.choices])
    elif getattr(distribution, "log", False):
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    elif isinstance(distribution, IntDistribution):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
