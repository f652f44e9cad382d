"""The pictures of an analysis, as wide as a page of a paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

from zprl_sb3.analysis import MEASURES, TRAINED, UNIFORM
from zprl_sb3.files import atomic_path
from zprl_sb3.guideline import DISPLACEMENT
from zprl_sb3.report_figures import COLORS, plain
from zprl_sb3.smoothness import SMOOTHNESS

WIDTH, DPI = 7.2, 240  # inches; dots per inch
PALETTE = 128  # colours of a picture, a third of the bytes of all
BEFORE, AFTER = COLORS[0], COLORS[1]
LOOKS = {TRAINED: (AFTER, "-"), UNIFORM: (COLORS[6], "--")}
LABELS = dict(
    zip(MEASURES, ("Mahalanobis distance of z̃\nto the demonstrations' z", "‖c̃ − c‖₂", "‖c̃ − g(z)‖₂"), strict=True)
)
SPACES = {"context": "UMAP of c̃", "actions": "UMAP of actions"}
DOTS = (("#9ecae1", 9.0), (AFTER, 1.6))  # before and after steering: what has not moved is a small dot on a large one
SHOWN = 4  # layouts of a picture of traces
LINES = ("-", ":")  # of the first hand, of the second

Draw = Callable[..., Path]


def _for_print(draw: Draw) -> Draw:
    """Draw with letters of a paper's size."""

    @wraps(draw)
    def drawn(*arguments: Any) -> Path:
        with mpl.rc_context(
            {"font.size": 8, "axes.titlesize": 9, "legend.fontsize": 7.5, "savefig.dpi": DPI, "axes.linewidth": 0.6}
        ):
            return draw(*arguments)

    return drawn


@_for_print
def draw_maps(points: pd.DataFrame, path: Path) -> Path:
    """Draw the maps of c̃ and actions, a column for each λ.

    :param points: Of :func:`~zprl_sb3.analysis.maps`
    :param path: The PNG file
    """
    scales = sorted(set(points["scale"]) - {0.0})
    figure = Figure(figsize=(WIDTH, 0.35 + 2 * WIDTH / max(3, len(scales))), layout="constrained")
    rows = figure.subplots(len(SPACES), len(scales), squeeze=False)
    for axes, (space, label) in zip(rows, SPACES.items(), strict=True):
        here = points[points["space"] == space]
        for axis, scale in zip(axes, scales, strict=True):
            for which, (color, size) in zip((0.0, scale), DOTS, strict=True):
                part = here[here["scale"] == which]
                axis.scatter(part["x"], part["y"], s=size, color=color, linewidth=0)
            axis.set(xlim=_around(here["x"]), ylim=_around(here["y"]), xticks=[], yticks=[])
        axes[0].set_ylabel(label)
    for axis, scale in zip(rows[0], scales, strict=True):
        axis.set_title(f"λ = {scale:g}")
    names = zip(("before steering (λ = 0)", "after steering"), DOTS, strict=True)
    _legend(figure, [_key(name, color, marker="o", size=1.5 * size**0.5) for name, (color, size) in names])
    return _save(figure, path)


def _around(values: pd.Series[float]) -> tuple[float, float]:
    low, high = values.min(), values.max()
    return low - 0.04 * (high - low), high + 0.04 * (high - low)


@_for_print
def draw_shift(curves: pd.DataFrame, scale: float, path: Path) -> Path:
    """Draw how far steering leads, against λ.

    :param curves: Of :func:`~zprl_sb3.analysis.shift_curves`
    :param scale: λ of the run
    :param path: The PNG file
    """
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    axes = figure.subplots(1, len(MEASURES))
    for axis, measure in zip(axes, MEASURES, strict=True):
        for way, table in curves.groupby("delta", sort=False):
            color, style = LOOKS[way]
            axis.plot(table["scale"], table[measure], color=color, linestyle=style, label=way)
            low, high = (table[f"{measure}_{end}"] for end in ("low", "high"))
            axis.fill_between(table["scale"], low, high, color=color, alpha=0.15, linewidth=0)
        axis.axvline(scale, **GREYS["λ of the run"])
        axis.set(xlabel="λ", ylabel=LABELS[measure], xlim=(0, curves["scale"].max()))
        plain(axis)
    first, *_, last = axes
    first.axhline(curves.loc[curves["scale"] == 0, "mahalanobis_high"].iloc[0], **GREYS[HOME])
    last.axhline(DISPLACEMENT, **GREYS[LIMIT])
    for axis in axes:
        axis.set_ylim(0, None)
    ways = [_key(way, color, style) for way, (color, style) in LOOKS.items()]
    _legend(figure, [*ways, *(_key(name, **look) for name, look in GREYS.items())], columns=3)
    return _save(figure, path)


HOME, LIMIT = "95th percentile of the demonstrations' z", f"advised for the mean: below {DISPLACEMENT}"
GREYS: dict[str, dict[str, Any]] = {
    name: {"color": "grey", "linewidth": 0.9, "linestyle": style}
    for name, style in (("λ of the run", ":"), (LIMIT, "-"), (HOME, "-."))
}


@_for_print
def draw_traces(table: pd.DataFrame, path: Path) -> Path:
    """Draw where two policies sent the hands from the same layouts: a column for each layout, a row for x, y and z.

    :param table: Of :func:`~zprl_sb3.analysis.traces`
    :param path: The PNG file
    """
    policies, seeds = list(dict.fromkeys(table["policy"])), list(dict.fromkeys(table["seed"]))[:SHOWN]
    looks = dict(zip(policies, (BEFORE, AFTER), strict=True))
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    rows = figure.subplots(3, len(seeds), sharex=True, sharey="row", squeeze=False)
    for axes, coordinate in zip(rows, "xyz", strict=True):
        for axis, seed in zip(axes, seeds, strict=True):
            for (policy, hand), trace in table[table["seed"] == seed].groupby(["policy", "hand"], sort=False):
                _draw_trace(axis, trace, coordinate, looks[policy], LINES[hand % len(LINES)])
            axis.yaxis.set_major_locator(MaxNLocator(4))
            plain(axis)
        axes[0].set_ylabel(f"desired {coordinate} (m)")
    for place, (above, below) in enumerate(zip(rows[0], rows[-1], strict=True), start=1):
        above.set_title(f"layout {place}")
        below.set_xlabel("time (s)")
    hands = dict(zip(("first hand", "second hand"), LINES, strict=True)) if table["hand"].max() else {}
    keys = [_key(policy, color) for policy, color in looks.items()]
    keys += [_key(name, "black", style) for name, style in hands.items()]
    _legend(figure, [*keys, *(_key(end, "black", marker=marker) for end, marker in ENDS.items())])
    return _save(figure, path)


ENDS = {"success": "o", "failure": "x"}


def _draw_trace(axis: Axes, trace: pd.DataFrame, coordinate: str, color: str, style: str) -> None:
    axis.plot(trace["seconds"], trace[coordinate], color=color, linestyle=style, linewidth=1)
    last = trace.iloc[-1]
    marker = ENDS["success" if last["success"] else "failure"]
    axis.plot(last["seconds"], last[coordinate], color=color, marker=marker, markersize=4.5)


@_for_print
def draw_smoothness(curve: pd.DataFrame, path: Path) -> Path:
    """Draw velocity, acceleration and jerk against env steps.

    :param curve: Evaluations, as in ``evaluations.csv``
    :param path: The PNG file
    """
    figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
    before = curve[curve["env_steps"] == 0]
    for axis, (name, unit) in zip(figure.subplots(1, len(SMOOTHNESS)), SMOOTHNESS.items(), strict=True):
        axis.plot(curve["env_steps"], curve[name], color=AFTER, marker="o", markersize=3, label="steered")
        for value in before[name]:
            axis.axhline(value, color=BEFORE, linestyle="--", linewidth=1, label="base policy")
        axis.set(xlabel="env steps", ylabel=f"{name} ({unit})", ylim=(0, 1.15 * np.nanmax(curve[name])))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        plain(axis)
    _legend(figure, axis.get_legend_handles_labels()[0])
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
        with Image.open(temporary) as image:
            image.convert("RGB").quantize(PALETTE, dither=Image.Dither.NONE).save(temporary, "PNG", optimize=True)
    return path


def _key(
    label: str, color: str, linestyle: Any = "-", linewidth: float = 1.5, marker: str = "", size: float = 4.5
) -> Line2D:
    """Return what a legend shows for a line, or for a marker without one."""
    style: Any = "" if marker else linestyle
    return Line2D(
        [], [], color=color, linestyle=style, linewidth=linewidth, marker=marker, markersize=size, label=label
    )


def _legend(figure: Figure, handles: list[Any], columns: int = 6) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), columns), frameon=False)
