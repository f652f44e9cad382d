"""What a report says, section by section, and the pictures and CSV files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from zprl_sb3 import report_tables as tables
from zprl_sb3 import report_text as text
from zprl_sb3.files import atomic_path, slug
from zprl_sb3.report import LAST, Base
from zprl_sb3.report_figures import Looks, draw_across, draw_environment, draw_overview, looks
from zprl_sb3.report_groups import Group, by_environment
from zprl_sb3.report_statistics import final_scores

ENOUGH = 3  # runs of a task, below which an interval says little
OUTCOME = re.compile(r"episode_(\d+)_(success|failure)")

MEANING = (
    f"Base: success before any update. Env steps to {tables.GOAL}: the first evaluation with at least that success, as "
    f"a mean over the seeds that reach it. Final: the mean of a run's last {LAST} evaluations (of SOE the last, as "
    "each is of a policy of its own). Final models: as the runs ended, on other episodes. In brackets: 95 % intervals "
    "over seeds (Student's t), of two seeds their range."
)
ACROSS = (
    "Interquartile mean (IQM) of the final success of all runs on all tasks, and the probability that a run of one "
    "method beats one of another on the same task (ties count half; mean over the tasks), with 95 % intervals of a "
    "stratified bootstrap, after Agarwal et al. 2021, arXiv 2108.13264."
)
EVALUATED = "Final models and base policies, with 95 % (Wilson) intervals over the episodes"
SMOOTH = "Smoothness of successful episodes: means over seeds, at the evaluations nearest to four times of the training"


@dataclass
class Video:
    """A video and what it shows."""

    file: Path
    caption: str


@dataclass
class Section:
    """One section of a report; its parts are shown in this order.

    :param title: Heading
    :param text: Paragraphs
    :param pictures: PNG files by caption
    :param tables: Tables of text cells by caption
    :param videos: Videos
    """

    title: str
    text: list[str] = field(default_factory=list)
    pictures: dict[str, Path] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    videos: list[Video] = field(default_factory=list)


Figures = dict[str, pd.DataFrame]


def collect_figures(groups: Sequence[Group], bases: Iterable[Base]) -> Figures:
    """Return all tables of a report by the name of their CSV file; some may be empty."""
    scores = final_scores(groups)
    return {
        "table": tables.by_group(groups),
        "across_tasks": tables.across_tasks(scores),
        "improvement": tables.improvements(scores),
        "final_evaluations": tables.final_evaluations(groups, bases),
        "smoothness": tables.smoothness(groups),
        "runs": tables.by_run(groups),
        "curves": tables.curves(groups),
    }


def write_figures(figures: Figures, output: Path) -> list[Path]:
    """Write tables as CSV files; of a table without a row there is none, not even an older one."""
    files = {output / f"{name}.csv": table for name, table in figures.items()}
    for file, table in files.items():
        if len(table):
            with atomic_path(file) as temporary:
                table.to_csv(temporary, index=False)
        else:
            file.unlink(missing_ok=True)
    return [file for file, table in files.items() if len(table)]


def sections(groups: Sequence[Group], bases: Sequence[Base], figures: Figures, output: Path) -> list[Section]:
    """Return what a report says, with its pictures drawn into a folder in place of an older report's.

    :param groups: The runs
    :param bases: Evaluations of base policies
    :param figures: Of :func:`collect_figures`
    :param output: The folder
    """
    for old in (*output.glob("curves_*.png"), output / "across_tasks.png"):
        old.unlink(missing_ok=True)
    styles, environments = looks(each.method for each in groups), by_environment(groups)
    found = [_success(groups, styles, figures, output)]
    methods = len(figures["across_tasks"])  # none where nothing has been evaluated but base policies
    if methods > 1 or (methods and len(environments) > 1):
        found.append(_across(figures, len(environments), styles, output))
    for env_id, members in environments.items():
        found.append(_environment(env_id, members, [base for base in bases if base.env_id == env_id], figures))
        if len(environments) > 1:
            picture = draw_environment(members, styles, output / f"curves_{slug(env_id)}.png")
            found[-1].pictures["Learning curves and steering diagnostics"] = picture
    return [*found, Section("Runs", tables={"Every run, and where it is": text.run_text(figures["runs"])})]


def _success(groups: Sequence[Group], styles: Looks, figures: Figures, output: Path) -> Section:
    environments = by_environment(groups)
    draw = draw_overview if len(environments) > 1 else draw_environment
    picture = draw(groups, styles, output / "report.png")
    notes = [note for env_id in environments if (note := _lengths(env_id, figures["table"]))]
    table = {"Success by environment and method": text.group_text(figures["table"])}
    return Section("Success", [MEANING, *notes], {"Success against env steps": picture}, table)


def _lengths(env_id: str, table: pd.DataFrame) -> str | None:
    """Return a warning where runs of an environment have not trained equally long."""
    here = table[table["environment"] == env_id]
    low, high = here["env_steps_low"].min(), here["env_steps_high"].max()
    if low >= 0.9 * high:
        return None
    ends = f"{text.env_steps(low)} and {text.env_steps(high)}"
    return f"The runs on {env_id} end between {ends} env steps: their final successes are not of equally long training."


def _across(figures: Figures, environments: int, styles: Looks, output: Path) -> Section:
    across, improvement = figures["across_tasks"], figures["improvement"]
    few = ", ".join(across.loc[across["fewest_runs_of_a_task"] < ENOUGH, "method"])
    notes = [f"Fewer than three runs of some task, so that an interval says little (of one run there is none): {few}."]
    found = Section("Methods compared", [ACROSS, *(notes if few else [])])
    if (across["tasks"] < environments).any():
        found.text.append(
            "Not every method has runs on every task: interquartile means over other tasks do not compare."
        )
    picture = draw_across(across, improvement, styles, output / "across_tasks.png")
    found.pictures["Interquartile means and probabilities of improvement with 95 % intervals"] = picture
    found.tables["Interquartile mean of the final success"] = text.across_text(across)
    if len(improvement):
        found.tables["Probability of improvement"] = text.improvement_text(improvement)
    return found


def _environment(env_id: str, members: Sequence[Group], bases: Sequence[Base], figures: Figures) -> Section:
    """Return the section of one environment."""
    found = Section(env_id, videos=list(find_videos(members, bases)))
    shown = {EVALUATED: (text.evaluation_text, "final_evaluations"), SMOOTH: (text.smoothness_text, "smoothness")}
    for caption, (words, name) in shown.items():
        table = figures[name]
        if len(table) and (table["environment"] == env_id).any():
            found.tables[caption] = words(table[table["environment"] == env_id])
    return found


def find_videos(groups: Iterable[Group], bases: Iterable[Base]) -> list[Video]:
    """Return the videos that ``zprl evaluate --video`` has written beside the evaluations, base policies first."""
    folders = {base.folder: "base policy" for base in bases}
    folders |= {run.folder: f"{each.label}, seed {run.seed}" for each in groups for run in each.runs}
    files = [(file, name) for folder, name in folders.items() for file in sorted((folder / "videos").glob("*.mp4"))]
    return [Video(file, f"{name}: {_outcome(file)}") for file, name in files]


def _outcome(file: Path) -> str:
    found = OUTCOME.fullmatch(file.stem)
    return f"episode {found[1]}, {found[2]}" if found else file.stem
