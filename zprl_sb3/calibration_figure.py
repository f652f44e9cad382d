"""The picture of a calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from zprl_sb3.calibration import Calibration
from zprl_sb3.files import atomic_path
from zprl_sb3.guideline import DISPLACEMENT, RMS_RATIO
from zprl_sb3.report_figures import COLORS

Array = NDArray[np.float64]
BLUE, ORANGE, GREEN = COLORS[:3]
GREY = "#808080"
TITLES = ("size of the step", "decoded context", "distance from the demonstrations", "executed actions", "latent")
SHOWN = 0.6  # the ratio up to which curves are drawn; calibration.json has them up to 1


def draw_calibration(found: Calibration, path: str | Path, title: str = "") -> Path:
    """Draw what λ does against λ, with the paper's guideline and the recommendation, and z by dimension.

    :param found: What to draw
    :param path: The PNG file
    :param title: Above all panels, for instance the task
    """
    figure = Figure(figsize=(12, 6.6), dpi=160, layout="constrained")
    panels = figure.subplot_mosaic([["ratio", "context", "distance"], ["action", "dimensions", "dimensions"]])
    _draw_ratio(panels["ratio"], found)
    _draw_context(panels["context"], found)
    _draw_distance(panels["distance"], found)
    _draw_actions(panels["action"], found)
    for name in ("ratio", "context", "distance", "action"):
        _mark(panels[name], found)
    _draw_dimensions(panels["dimensions"], found)
    for letter, (axis, text) in zip("abcde", zip(panels.values(), TITLES, strict=True), strict=True):
        axis.set_title(f"({letter}) {text}", fontsize=11, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    least, most = found.scale_range
    each = " on average" if found.by_spread else ""
    advice = f"λ = {found.scale:g}{each} to start from, {least:g} to {most:g} to choose from (blue)"
    figure.suptitle(": ".join(filter(None, (title, advice))), fontsize=12)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return Path(path)


def _curve(found: Calibration, name: str) -> tuple[Array, Array]:
    """Return λ and a curve, as far as it is shown."""
    shown = found.curves["rms_ratio"] <= SHOWN
    return found.curves["scale"][shown], found.curves[name][shown]


def _draw_ratio(axis: Axes, found: Calibration) -> None:
    axis.set_ylabel("RMS(λΔz) / RMS(z)")
    axis.plot(*_curve(found, "rms_ratio"), color=BLUE, linewidth=2)
    axis.axhspan(*RMS_RATIO, color=GREEN, alpha=0.18, linewidth=0, label="advised to start from")


def _draw_context(axis: Axes, found: Calibration) -> None:
    axis.set_ylabel("mean L2 distance")
    axis.plot(*_curve(found, "displacement"), color=BLUE, linewidth=2, label="‖c̃ − g(z)‖₂")
    axis.plot(*_curve(found, "context_distance"), color=ORANGE, linewidth=2, label="‖c̃ − c‖₂")
    axis.axhline(DISPLACEMENT, color=GREEN, linestyle="--", label=f"advised for ‖c̃ − g(z)‖₂: below {DISPLACEMENT}")


def _draw_distance(axis: Axes, found: Calibration) -> None:
    axis.set_ylabel("mean Mahalanobis distance of z̃")
    axis.plot(*_curve(found, "mahalanobis"), color=BLUE, linewidth=2)
    median, most = found.mahalanobis_offline
    axis.axhline(median, color=GREY, linestyle="--", label="half of the demonstrations' z")
    axis.axhline(most, color=GREY, linestyle=":", label="95 % of them")


def _draw_actions(axis: Axes, found: Calibration) -> None:
    axis.set_ylabel("RMS of the change (normalised)")
    axis.set_xlabel("λ")
    axis.plot(*_curve(found, "action_change"), color=BLUE, linewidth=2, label="by λΔz")
    axis.axhline(found.noise_change, color=GREY, linestyle="--", label="by other flow noise, λ = 0")


def _mark(axis: Axes, found: Calibration) -> None:
    axis.axvspan(*found.scale_range, color=BLUE, alpha=0.12, linewidth=0)
    axis.axvline(found.scale, color=BLUE, linewidth=1)
    axis.set(xlim=(0, _curve(found, "scale")[0][-1]), ylim=(0, 1.3 * axis.get_ylim()[1]))  # with room for the legend
    axis.legend(fontsize=9, loc="upper left", facecolor="white", edgecolor="none", framealpha=0.8)
    axis.set_xlabel("λ")
    axis.grid(alpha=0.25)


def _draw_dimensions(axis: Axes, found: Calibration) -> None:
    axis.set_xlabel("dimension of z, by RMS")
    order = np.argsort(-found.dimensions["rms"])
    places = np.arange(len(order))
    labels = {"rms": "RMS(z)", "spread": "spread over the demonstrations", "posterior_std": "posterior std"}
    for offset, (name, color) in enumerate(zip(labels, (BLUE, ORANGE, GREEN), strict=True), start=-1):
        axis.bar(places + 0.28 * offset, found.dimensions[name][order], 0.28, color=color, label=labels[name])
    weights = np.array(found.weights)[order]
    axis.plot(places, found.scale * weights, "k_", markersize=13, markeredgewidth=2, label="λ")
    axis.set_xticks(places, [str(number) for number in order])
    axis.grid(alpha=0.25, axis="y")
    axis.legend(frameon=False, fontsize=9, ncols=2)
