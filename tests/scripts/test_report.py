"""``zprl report``: a picture and a table of runs. What they show is tested with zprl_sb3.report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from zprl_sb3.scripts.report import report

PNG = b"\x89PNG\r\n\x1a\n"


def copy_of(run: Path, output: Path, seed: int, rows: int | None = None) -> Path:
    """Return a run with another seed, and with its first rows only."""
    output.mkdir()
    content = yaml.safe_load((run / "run.yml").read_text())
    (output / "run.yml").write_text(yaml.safe_dump(content | {"seed": seed}))
    lines = (run / "evaluations.csv").read_text().splitlines()
    (output / "evaluations.csv").write_text("\n".join(lines[: None if rows is None else rows + 1]) + "\n")
    return output


def test_runs_become_a_picture_and_a_table(toy_run: Path, tmp_path: Path, zprl: Any) -> None:
    other = copy_of(toy_run, tmp_path / "other", seed=1)
    code, out, err = zprl("report", toy_run, other, "--output", tmp_path / "report")
    assert (code, err) == (0, "")
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(PNG)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "![learning curves](report.png)" in text
    rows = [line for line in text.splitlines() if "PointReach" in line]
    assert [row.split("|")[2].strip() for row in rows] == ["0", "1"]
    assert all(row in out for row in rows)
    assert f"Wrote {tmp_path / 'report' / 'report.png'} and {tmp_path / 'report' / 'report.md'}" in out


def test_a_run_that_still_trains_is_reported_as_far_as_it_came(toy_run: Path, tmp_path: Path) -> None:
    started = copy_of(toy_run, tmp_path / "started", seed=1, rows=1)
    picture, table = report([toy_run, started], tmp_path / "report")
    assert picture.read_bytes().startswith(PNG)
    assert len(table.splitlines()) == 4


@pytest.mark.parametrize("missing", ["run.yml", "evaluations.csv"])
def test_a_folder_that_is_not_a_run_is_refused(toy_run: Path, tmp_path: Path, zprl: Any, missing: str) -> None:
    run = copy_of(toy_run, tmp_path / "run", seed=0)
    (run / missing).unlink()
    code, _, err = zprl("report", run, "--output", tmp_path / "report")
    assert code == 1
    assert err == f"zprl report: {run} has no {missing}: it is not a run of `zprl train`, or has not evaluated yet\n"
    assert not (tmp_path / "report").exists()


def test_a_folder_that_is_not_a_run_does_not_stop_the_others(toy_run: Path, tmp_path: Path, zprl: Any) -> None:
    code, out, err = zprl("report", tmp_path, toy_run, "--output", tmp_path / "report")
    assert code == 0
    assert err.startswith(f"zprl report: left out: {tmp_path} has no run.yml")
    assert out.count("PointReach") == 1
    code, _, err = zprl("report", tmp_path, tmp_path, "--output", tmp_path / "report")
    assert code == 1
    assert "None of these 2 folders can be reported" in err


def test_a_checkpoint_is_not_a_run(toy_policy: Path, tmp_path: Path, zprl: Any) -> None:
    code, _, err = zprl("report", toy_policy, "--output", tmp_path / "report")
    assert code == 1
    assert "has no run.yml" in err


@pytest.mark.parametrize(("name", "content"), [("run.yml", "seed: ["), ("run.yml", "seed: 1"), ("evaluations.csv", "")])
def test_a_damaged_run_is_one_line(toy_run: Path, tmp_path: Path, zprl: Any, name: str, content: str) -> None:
    run = copy_of(toy_run, tmp_path / "run", seed=0)
    (run / name).write_text(content)
    code, _, err = zprl("report", run, "--output", tmp_path / "report")
    assert code == 1
    assert str(run) in err
    assert err.count("\n") == 1


def test_a_report_is_written_anew(toy_run: Path, tmp_path: Path) -> None:
    other = copy_of(toy_run, tmp_path / "other", seed=1)
    report([toy_run, other], tmp_path / "report")
    report([toy_run], tmp_path / "report")
    assert (tmp_path / "report" / "report.md").read_text().count("PointReach") == 1
    assert not list((tmp_path / "report").glob(".*"))
    shutil.rmtree(tmp_path / "report")
