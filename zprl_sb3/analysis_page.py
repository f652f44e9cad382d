"""An analysis as files: pictures, the numbers behind them, and a page of Markdown that shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from zprl_sb3 import analysis
from zprl_sb3 import analysis_figures as figures
from zprl_sb3.files import atomic_path, write_json
from zprl_sb3.report_text import markdown, three_digits
from zprl_sb3.smoothness import SMOOTHNESS


@dataclass
class Analysis:
    """What is found out about a run.

    :param tables: The numbers behind each picture, by its name
    :param facts: What else is told, for ``analysis.json``
    :param missing: Why there is no picture, by its name
    """

    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def write(found: Analysis, output: Path) -> Path:
    """Write pictures, their numbers, ``analysis.json`` and ``analysis.md``, whose path is returned.

    :param found: What is found out
    :param output: The folder; of an earlier analysis there nothing stays
    """
    for name in PICTURES:
        picture, numbers = output / f"{name}.png", output / f"{name}.csv"
        if name not in found.tables:
            picture.unlink(missing_ok=True)
            numbers.unlink(missing_ok=True)
            continue
        with atomic_path(numbers) as temporary:
            found.tables[name].to_csv(temporary, index=False, float_format="%.6g")
        PICTURES[name][2](found, picture)
    write_json(output / "analysis.json", found.facts | {"missing": found.missing})
    page = output / "analysis.md"
    with atomic_path(page) as temporary:
        temporary.write_text(_markdown(found), encoding="utf-8")
    return page


PICTURES: dict[str, tuple[str, str, Callable[[Analysis, Path], Path]]] = {
    "maps": (
        "Maps of contexts and actions",
        "UMAP of the decoded contexts c̃ = g(z + λΔz) and of the executed chunks of (normalised) actions, of {mapped} "
        "observations of the demonstrations, before and after steering with the trained actor's Δz(c, z). The λ of the "
        "run is {scale:g}; all λ share one map for each row, and the flow noise is the same before and after.",
        lambda found, path: figures.draw_maps(found.tables["maps"], path),
    ),
    "shift": (
        "How far steering leads",
        "Mahalanobis distance of z̃ = z + λΔz to a Gaussian with Ledoit and Wolf's covariance, fitted on z of "
        "{observations} observations of the demonstrations (at λ = 0 that of these z themselves), and distances of "
        "c̃ = g(z̃) to the context c (at λ = 0 what the bottleneck loses) and to g(z). Lines: means over these "
        "observations; bands: 5th to 95th percentile. Uniform Δz, in [−1, 1], stands for a policy that has not learned "
        "where to go.",
        lambda found, path: figures.draw_shift(found.tables["shift"], found.facts["scale"], path),
    ),
    "traces": (
        "Desired positions",
        "Where the base policy and the steered one send the hand from the same layouts with the same flow noise; the "
        "mark is where the episode ends. The first layout is that of seed {seed}; drawn are the first {shown}.",
        lambda found, path: figures.draw_traces(found.tables["traces"], path),
    ),
    "smoothness": (
        "Smoothness",
        "Mean norms of the first to third difference of the desired positions, in the successful episodes of the "
        "evaluation at each checkpoint.",
        lambda found, path: figures.draw_smoothness(found.tables["smoothness"], path),
    ),
}
"""By name: title, caption, and what draws it."""


def _markdown(found: Analysis) -> str:
    facts = found.facts
    lines = [f"# What steering does: {facts['run']}", "", f"{facts['env_id']}, model {facts['model']}."]
    for name, (title, caption, _) in PICTURES.items():
        lines += ["", f"## {title}", ""]
        if name in found.missing:
            lines.append(f"Left out: {found.missing[name]}.")
            continue
        lines += [f"![{title}]({name}.png)", "", f"{caption.format(**facts)} Numbers: [{name}.csv]({name}.csv)."]
        if name in TABLES:
            lines += ["", markdown(TABLES[name](found))]
    return "\n".join(lines) + "\n"


def _shift_table(found: Analysis) -> pd.DataFrame:
    curves = found.tables["shift"]
    rows = curves[
        (curves["delta"] == analysis.TRAINED)
        & curves["scale"].isin([0.0, found.facts["scale"], *found.facts["scales"]])
    ]
    names = {
        "scale": "λ",
        "mahalanobis": "Mahalanobis distance",
        "context_distance": "‖c̃ − c‖",
        "displacement": "‖c̃ − g(z)‖",
    }
    return rows[list(names)].rename(columns=names).map("{:.4g}".format)


def _rollout_table(found: Analysis) -> pd.DataFrame:
    rows: list[dict[str, str]] = []
    for name, result in found.facts["rollouts"].items():
        row = {"policy": name, "success": f"{result['success_rate'] * result['episodes']:.0f} of {result['episodes']}"}
        row |= {
            f"{motion} ({unit})": three_digits(result.get(motion) or float("nan"))
            for motion, unit in SMOOTHNESS.items()
        }
        rows.append(row)
    return pd.DataFrame(rows)


TABLES = {"shift": _shift_table, "traces": _rollout_table}
