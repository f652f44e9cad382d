from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from runs import ENV, run
from zprl_sb3.report import Base, Run
from zprl_sb3.report_contents import Section, collect_figures, find_videos, sections, write_figures
from zprl_sb3.report_groups import group


def contents(runs: list[Run], output: Path, bases: tuple[Base, ...] = ()) -> list[Section]:
    groups = group(runs)
    return sections(groups, bases, collect_figures(groups, bases), output)


def test_one_method_on_one_task_has_two_sections_and_its_runs(tmp_path: Path) -> None:
    found = contents([run([0.2, 0.5], 0), run([0.3, 0.6], 1)], tmp_path)
    assert [section.title for section in found] == ["Success", ENV, "Runs"]
    assert [file.name for file in tmp_path.iterdir()] == ["report.png"]
    assert list(found[0].pictures.values()) == [tmp_path / "report.png"]
    assert [len(table) for table in found[0].tables.values()] == [1]
    assert [len(table) for table in found[2].tables.values()] == [2]


def test_tasks_and_methods_have_sections_and_pictures(tmp_path: Path) -> None:
    (tmp_path / "curves_old-task.png").touch()
    runs = [run([0.2, 0.5], env_id=f"test/{name}-v0", steering=kind) for name in "AB" for kind in ("latent", "noise")]
    runs[0].evaluations = {"steered": {"success": 0.5, "success_low": 0.4, "success_high": 0.6}}
    runs[1].curve["velocity"] = 0.5
    found = contents(runs, tmp_path)
    assert [section.title for section in found] == ["Success", "Methods compared", "test/A-v0", "test/B-v0", "Runs"]
    pictures = [picture.name for section in found for picture in section.pictures.values()]
    assert pictures == ["report.png", "across_tasks.png", "curves_test-A-v0.png", "curves_test-B-v0.png"]
    assert {file.name for file in tmp_path.iterdir()} == set(pictures)
    assert [len(section.tables) for section in found] == [1, 2, 2, 0, 1]


def test_nothing_is_compared_before_there_are_evaluations(tmp_path: Path) -> None:
    runs = [run([0.2], env_id=name) for name in ("A", "B")]
    assert [section.title for section in contents(runs, tmp_path)] == ["Success", "A", "B", "Runs"]


@pytest.mark.parametrize(("runs", "few"), [(2, True), (3, False)])
def test_too_few_runs_for_intervals_are_told(tmp_path: Path, runs: int, few: bool) -> None:
    members = [run([0.2, 0.5], seed, steering=kind) for seed in range(runs) for kind in ("latent", "noise")]
    text = " ".join(contents(members, tmp_path)[1].text)
    assert ("Fewer than three runs of some task" in text) is few
    assert ("of one run there is none): ZPRL, DSRL." in text) is few


def test_unequal_tasks_and_lengths_are_told(tmp_path: Path) -> None:
    runs = [
        run([0.2, 0.5], env_id="A"),
        run([0.2, 0.5], env_id="B"),
        run([0.2, 0.5, 0.6], env_id="B", steering="noise"),
    ]
    success, compared = contents(runs, tmp_path)[:2]
    assert "Not every method has runs on every task" in compared.text[-1]
    assert [text.split(":")[0] for text in success.text[1:]] == ["The runs on B end between 100 and 200 env steps"]


def test_tables_are_written_and_empty_ones_taken_away(tmp_path: Path) -> None:
    groups = group([run([0.2, 0.5])])
    (tmp_path / "smoothness.csv").write_text("old")
    (tmp_path / "evaluations.csv").write_text("not ours")
    files = write_figures(collect_figures(groups, []), tmp_path)
    assert [file.name for file in files] == ["table.csv", "across_tasks.csv", "runs.csv", "curves.csv"]
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in files} | {"evaluations.csv"}
    assert pd.read_csv(tmp_path / "curves.csv")["success_rate"].tolist() == [0.2, 0.5]
    assert pd.read_csv(tmp_path / "table.csv")["final"].tolist() == [0.5]


def test_videos_are_found_beside_evaluations(tmp_path: Path) -> None:
    steered = run([0.5], seed=3)
    steered.folder = tmp_path / "zprl-3"
    names = ("zprl-3/videos/episode_7_success.mp4", "zprl-3/videos/mine.mp4", "base/videos/episode_7_failure.mp4")
    for name in (*names, "zprl-3/videos/.part.txt", "other/videos/episode_7_success.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_videos(group([steered]), [Base(tmp_path / "base", ENV, {})])
    assert [(video.file, video.caption) for video in found] == [
        (tmp_path / names[2], "base policy: episode 7, failure"),
        (tmp_path / names[0], "ZPRL, λ = 0.5, seed 3: episode 7, success"),
        (tmp_path / names[1], "ZPRL, λ = 0.5, seed 3: mine"),
    ]
