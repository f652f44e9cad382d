"""The tables of a report as text for reading, in Markdown and HTML."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from zprl_sb3.report import LAST
from zprl_sb3.report_tables import GOAL, SHARES
from zprl_sb3.smoothness import SMOOTHNESS

NONE, NAN = "–", float("nan")
WORDS = ("environment", "method", "policy", "folder", "motion", "P(row > column)")  # columns that are no figures
ONCE = ("environment", "motion")  # first columns whose cells are not repeated


def number(value: float, digits: int = 2) -> str:
    """Return a figure, or a dash where there is none."""
    return NONE if pd.isna(value) else f"{value:.{digits}f}"


def env_steps(count: float) -> str:
    """Return env steps as they are read: 480, 252k, 1.21M."""
    if pd.isna(count) or count < 10_000:
        return number(count, 0)
    return f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.2f}M"


def interval(row: Any, name: str, digits: int = 2) -> str:
    """Return ``0.85 (0.79–0.90)`` of a share in the columns name, name_low and name_high; ``0.85`` without interval."""
    value, low, high = (row.get(key, NAN) for key in (name, f"{name}_low", f"{name}_high"))
    if pd.isna(low):
        return number(value, digits)
    # A symmetric interval may reach beyond what a share can be.
    return f"{value:.{digits}f} ({max(low, 0.0):.{digits}f}–{min(high, 1.0):.{digits}f})"


def group_text(figures: pd.DataFrame) -> pd.DataFrame:
    """Return the table of :func:`~zprl_sb3.report_tables.by_group` for reading."""
    return _table([_group_cells(row) for _, row in figures.iterrows()], optional=("final models", "zero flow noise"))


def _group_cells(row: Any) -> dict[str, str]:
    lengths = dict.fromkeys(env_steps(row[f"env_steps_{end}"]) for end in ("low", "high"))
    goal = f"{env_steps(row['env_steps_to_goal'])} ({row['reached']} of {row['seeds']})" if row["reached"] else NONE
    return {
        "environment": row["environment"],
        "method": row["label"],
        "seeds": str(row["seeds"]),
        "env steps": "–".join(lengths),
        "base": number(row["base"]),
        f"env steps to {GOAL}": goal,
        f"final (mean of last {LAST})": interval(row, "final"),
        "final models": interval(row, "steered"),
        "zero flow noise": interval(row, "zero_noise"),
    }


def run_text(figures: pd.DataFrame) -> pd.DataFrame:
    """Return the table of :func:`~zprl_sb3.report_tables.by_run` for reading."""
    return _table([_run_cells(row) for _, row in figures.iterrows()], optional=("RMS(λΔz)/RMS(z)", "‖c̃ − c‖"))


def _run_cells(row: Any) -> dict[str, str]:
    names = {"environment": row["environment"], "method": row["label"], "seed": str(row["seed"])}
    shares = {name: number(row[name]) for name in ("base", "final", "best")}
    steering = {"RMS(λΔz)/RMS(z)": number(row["rms_ratio"]), "‖c̃ − c‖": number(row["context_distance"])}
    return names | shares | {"env steps": f"{row['env_steps']:,.0f}"} | steering | {"folder": _short(row["folder"])}


def evaluation_text(figures: pd.DataFrame) -> pd.DataFrame:
    """Return the table of :func:`~zprl_sb3.report_tables.final_evaluations` of one environment for reading."""
    return _table([_evaluation_cells(row) for _, row in figures.iterrows()], optional=("env steps", "zero flow noise"))


def _evaluation_cells(row: Any) -> dict[str, str]:
    return {
        "policy": row["policy"],
        "seed": number(row["seed"], 0),
        "env steps": env_steps(row.get("env_steps", NAN)),
        "success": interval(row, "success", 3),
        "zero flow noise": interval(row, "zero_noise_success", 3),
        "episodes": number(row.get("episodes", NAN), 0),
        "mean length": number(row.get("mean_length", NAN), 1),
        "folder": _short(row["folder"]),
    }


def across_text(figures: pd.DataFrame) -> pd.DataFrame:
    """Return the table of :func:`~zprl_sb3.report_tables.across_tasks` for reading."""
    rows = [
        {"method": row["method"], "tasks": str(row["tasks"]), "runs": str(row["runs"]), "IQM": interval(row, "iqm")}
        for _, row in figures.iterrows()
    ]
    return _table(rows)


def improvement_text(figures: pd.DataFrame) -> pd.DataFrame:
    """Return half of :func:`~zprl_sb3.report_tables.improvements` as a matrix; the other half is 1 minus that."""
    cells = {(row["method"], row["over"]): interval(row, "probability") for _, row in figures.iterrows()}
    methods = list(dict.fromkeys(figures["method"]))
    rows: list[dict[str, str]] = []
    for place, method in enumerate(methods[:-1]):
        later = {other: cells.get((method, other), NONE) for other in methods[place + 1 :]}
        rows.append({"P(row > column)": method} | dict.fromkeys(methods[1:], "") | later)
    return _table(rows)


def smoothness_text(figures: pd.DataFrame) -> pd.DataFrame:
    """Return :func:`~zprl_sb3.report_tables.smoothness` of one environment with a column for each method."""
    rows: list[dict[str, str]] = []
    for motion in (motion for motion in SMOOTHNESS if motion in figures):
        for share in SHARES:
            here = figures[figures["share"] == share]
            row = {"motion": f"{motion} ({SMOOTHNESS[motion]})", "of training": share}
            row |= {"env steps": env_steps(here["env_steps"].mean())} | dict.fromkeys(figures["method"], NONE)
            rows.append(
                row | {method: three_digits(value) for method, value in zip(here["method"], here[motion], strict=True)}
            )
    return _table(rows)


def three_digits(value: float) -> str:
    """Return a figure of any size with about three digits that count: 0.15, 10.4, 140."""
    return number(value, 2 if value < 10 else 1 if value < 100 else 0)


def _table(rows: list[dict[str, str]], optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return cells as a table, without the optional columns that hold nothing."""
    table = pd.DataFrame(rows, dtype=str)
    return table[[name for name in table if name not in optional or (table[name] != NONE).any()]]


def _short(folder: str) -> str:
    return "/".join(Path(folder).absolute().parts[-2:])


def markdown(table: pd.DataFrame) -> str:
    """Return a table of text cells in Markdown."""
    rows = [list(table), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


def html(table: pd.DataFrame) -> str:
    """Return a table of text cells in HTML: figures aligned at the right, what repeats in :data:`ONCE` shown once."""
    kinds = [' class="word"' if name in WORDS else "" for name in table]
    lines, above = [_row("th", kinds, list(table)), "</thead>", "<tbody>"], None
    for cells in table.to_numpy().tolist():
        again = table.columns[0] in ONCE and cells[0] == above
        begins = table.columns[0] in ONCE and above not in (None, cells[0])
        above = cells[0]
        lines.append(_row("td", kinds, ["", *cells[1:]] if again else cells, begins))
    return "\n".join(['<div class="wide"><table>', "<thead>", *lines, "</tbody>", "</table></div>"])


def _row(tag: str, kinds: list[str], cells: list[str], new: bool = False) -> str:
    inside = "".join(f"<{tag}{kind}>{escape(str(cell))}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
    return f'<tr class="new">{inside}</tr>' if new else f"<tr>{inside}</tr>"
