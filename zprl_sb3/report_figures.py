"""The pictures of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from zprl_sb3.files import atomic_path
from zprl_sb3.guideline import RMS_RATIO
from zprl_sb3.report_groups import Group, by_environment
from zprl_sb3.report_statistics import curve_over_seeds
from zprl_sb3.smoothness import SMOOTHNESS

# Okabe and Ito's palette, which the colour-blind tell apart, with a brown for its yellow.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#4d4d4d", "#8c510a")
STYLES = ("-", "-.", ":")  # of the first eight methods, of the next eight, ...
BAND = "dashed: base policy; band: 95 %, of two seeds their range"
PANELS = {
    "success_rate": "success rate",
    "mean_length": "mean episode length (env steps)",
    "train/q_mean": "mean Q of the batches",
    "rms_ratio": "RMS(λΔz) / RMS(z)",
    "context_distance": "‖c̃ − c‖₂",
    "train/delta_rms": "RMS(Δz) of the actor",
    **{name: f"{name} ({unit})" for name, unit in SMOOTHNESS.items()},
}

Looks = Mapping[str, tuple[str, str]]


def looks(methods: Iterable[str]) -> Looks:
    """Return a colour and a line style for each method, the same in all pictures of a report."""
    names = list(dict.fromkeys(methods))
    return {
        name: (COLORS[place % len(COLORS)], STYLES[place // len(COLORS) % len(STYLES)])
        for place, name in enumerate(names)
    }


def draw_environment(groups: Sequence[Group], styles: Looks, path: str | Path) -> Path:
    """Draw success, episode length, steering diagnostics and smoothness of one environment against env steps.

    :param groups: Of one environment; each becomes a curve with a band, see ``curve_over_seeds``
    :param styles: Of :func:`looks`
    :param path: The PNG file
    """
    panels = [column for column in PANELS if any(_complete(each, column) for each in groups)]
    rows = math.ceil(len(panels) / 3)
    figure = Figure(figsize=(16, 3.2 * rows + 0.4), dpi=120, layout="constrained")
    axes = list(figure.subplots(rows, 3, squeeze=False).flat)
    for column, axis in zip(panels, axes, strict=False):
        for each in groups:
            _draw_curve(axis, each, column, *styles[each.method], f"{each.label} ({each.seeds})")
        _decorate(axis, column)
    for axis in axes[len(panels) :]:
        axis.remove()
    _legend(figure, axes[0])
    return _save(figure, path)


def draw_overview(groups: Sequence[Group], styles: Looks, path: str | Path) -> Path:
    """Draw success against env steps, a panel for each environment; arguments as :func:`draw_environment`'s."""
    environments = by_environment(groups)
    columns = min(3, len(environments))
    rows = math.ceil(len(environments) / columns)
    figure = Figure(figsize=(5.4 * columns, 3.9 * rows + 0.6), dpi=120, layout="constrained")
    axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axis, (env_id, members) in zip(axes, environments.items(), strict=False):
        for each in members:
            _draw_curve(axis, each, "success_rate", *styles[each.method], each.method)
        _decorate(axis, "success_rate")
        axis.set_title(env_id, fontsize=11)
        if not axis.get_subplotspec().is_first_col():
            axis.set_ylabel("")
    for axis in axes[len(environments) :]:
        axis.remove()
    figure.suptitle(BAND, fontsize=9)
    _legend(figure, *axes[: len(environments)])
    return _save(figure, path)


def draw_across(across: pd.DataFrame, improvements: pd.DataFrame, styles: Looks, path: str | Path) -> Path:
    """Draw interquartile means and the first method's probabilities of improvement, with their intervals.

    :param across: Of :func:`~zprl_sb3.report_tables.across_tasks`
    :param improvements: Of :func:`~zprl_sb3.report_tables.improvements`
    """
    first = across["method"].iloc[0]
    versus = improvements[improvements["method"] == first]
    figure = Figure(figsize=(13, 1.3 + 0.36 * len(across)), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_intervals(left, across, "method", "iqm", styles)
    left.set_title("interquartile mean of the final success", fontsize=11)
    if len(versus):
        _draw_intervals(right, versus, "over", "probability", styles)
        right.axvline(0.5, color="grey", linestyle="--", linewidth=1)
        right.set_title(f"probability of improvement: {first} over ...", fontsize=11)
    else:
        right.remove()
    return _save(figure, path)


def _draw_intervals(axis: Axes, table: pd.DataFrame, names: str, value: str, styles: Looks) -> None:
    for place, (_, row) in enumerate(table.iterrows()):
        color = styles[row[names]][0]
        axis.plot([row[f"{value}_low"], row[f"{value}_high"]], [place, place], color=color, alpha=0.35, linewidth=9)
        axis.plot(row[value], place, marker="|", markersize=13, markeredgewidth=2.5, color=color)
    axis.set_yticks(range(len(table)), list(table[names]))
    axis.set_ylim(len(table) - 0.5, -0.5)
    axis.set_xlim(-0.02, 1.02)
    plain(axis)


def _complete(each: Group, column: str) -> bool:
    return all(run.table(column) is not None for run in each.runs)


def _draw_curve(axis: Axes, each: Group, column: str, color: str, style: str, label: str) -> None:
    if not _complete(each, column):
        return
    curve = curve_over_seeds(each.runs, column)
    for run in each.runs if len(each.runs) > 1 else ():
        table = run.table(column)
        assert table is not None
        axis.plot(table["env_steps"], table[column], color=color, alpha=0.3, linewidth=0.8)
    axis.plot(curve["env_steps"], curve["mean"], color=color, linestyle=style, linewidth=2, label=label)
    axis.fill_between(curve["env_steps"], curve["low"], curve["high"], color=color, alpha=0.15, linewidth=0)
    base = np.mean([run.base for run in each.runs])
    if column == "success_rate" and not np.isnan(base):
        axis.axhline(float(base), color=color, linestyle="--", linewidth=1, alpha=0.7)


def _decorate(axis: Axes, column: str) -> None:
    axis.set_ylabel(PANELS[column])
    axis.set_xlabel("env steps")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    plain(axis)
    if column == "success_rate":
        axis.set_ylim(-0.02, 1.02)
        axis.set_title(BAND, fontsize=9)
    if column == "rms_ratio":
        axis.axhspan(*RMS_RATIO, color="grey", alpha=0.12, linewidth=0)
        axis.set_title("grey: the range the paper advises to start from", fontsize=9)


def plain(axis: Axes) -> None:
    """Give a panel a light grid and no frame above and at the right."""
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, *axes: Axes) -> None:
    """Put one legend below all panels."""
    handles = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    # So many columns as fit, and so few as need no more rows.
    fitting = max(1, int(figure.get_figwidth() * 11 / (max(map(len, handles)) + 8)))
    columns = math.ceil(len(handles) / math.ceil(len(handles) / fitting))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False)


def _save(figure: Figure, path: str | Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)
