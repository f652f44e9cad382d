from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from runs import curve, evaluation, run, run_folder, write_evaluation
from zprl_sb3.files import read_rows, write_rows
from zprl_sb3.report import ReportError, read_bases, read_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a run folder as `zprl train` writes it."""
    settings = {"n_timesteps": 100, "algorithm": {"tau": 0.1}}
    return run_folder(tmp_path / "run", [0.25, 0.75], seed=4, env_id="test/A-v0", **settings)


def test_a_run_folder_is_read(folder: Path) -> None:
    found = read_run(folder)
    assert (found.env_id, found.seed, found.folder) == ("test/A-v0", 4, folder)
    # Which method it is was not recorded before there were several.
    method = {"steering": "latent", "learner": "sac"}
    assert found.facts == {"base policy": "abcdefgh", **method, "scale": 0.3, "algorithm.tau": 0.1}
    assert found.method == "ZPRL"
    assert found.evaluations == {}
    pd.testing.assert_frame_equal(found.curve, curve([0.25, 0.75]))


@pytest.mark.parametrize(
    ("steering", "learner", "method"),
    [
        ("latent", "sac", "ZPRL"),
        ("action", "sac", "Policy Decorator"),
        ("noise", "sac", "DSRL"),
        ("noise", "dsrl_na", "DSRL-NA"),
        ("embedding", "sac", "ResEmb"),
        ("latent", "tqc", "TQC"),
        ("latent", "trpo", "TRPO"),
        ("latent", "soe", "SOE"),
        ("noise", "tqc", "tqc on noise"),
    ],
)
def test_methods_have_the_names_of_their_papers(tmp_path: Path, steering: str, learner: str, method: str) -> None:
    folder = run_folder(tmp_path / "run", [0.5], steering=steering, learner=learner)
    assert read_run(folder).method == method


def test_base_and_final_success_and_the_way_to_a_goal_by_hand() -> None:
    found = run([0.1, 0.9, 0.5, 0.6, 0.7, 0.9, 0.8])
    assert found.base == 0.1
    assert found.final == pytest.approx((0.5 + 0.6 + 0.7 + 0.9 + 0.8) / 5)
    assert (found.steps_to(0.9), found.steps_to(0.55), found.env_steps) == (100, 100, 600)
    assert np.isnan(found.steps_to(0.95))


def test_the_evaluation_before_any_update_is_no_final_success() -> None:
    assert run([0.2, 0.4]).final == pytest.approx(0.4)
    assert np.isnan(run([0.2]).final)


def test_of_soe_the_last_policy_counts() -> None:
    assert run([0.2, 0.3, 0.5, 0.9], learner="soe").final == pytest.approx(0.9)

    later = run([0.2, 0.4], steps=[100, 200])
    assert np.isnan(later.base)
    assert later.final == pytest.approx(0.3)


def test_a_column_is_looked_for_in_both_tables_and_without_its_gaps() -> None:
    found = run([0.1, 0.2, 0.3], columns={"velocity": [np.nan, 0.2, 0.3], "jerk": np.nan})
    found.training = pd.DataFrame({"env_steps": [5.0], "train/q_mean": [0.5]})
    assert found.table("jerk") is found.table("acceleration") is None
    velocity, q = found.table("velocity"), found.table("train/q_mean")
    assert velocity is not None
    assert velocity["env_steps"].tolist() == [100, 200]
    assert q is not None
    assert q["train/q_mean"].tolist() == [0.5]


def log(folder: Path, start: int, chunks: list[int], q: float) -> None:
    """Write a log as a run does that starts or goes on after so many chunks: evaluations have rows of their own."""
    (folder / "logs" / f"from_{start}").mkdir(parents=True)
    rows: list[dict[str, float]] = [{"eval/env_steps": 0}]
    for count in chunks:
        updates = {"train/q_mean": q, "train/delta_rms": 0.5}
        rows.append({"time/env_steps": 8 * count, "time/total_timesteps": count} | updates)
    pd.DataFrame(rows).to_csv(folder / "logs" / f"from_{start}" / "progress.csv", index=False)


def test_the_log_of_a_resumed_run_is_its_parts_without_what_was_trained_again(folder: Path) -> None:
    assert read_run(folder).training.empty
    log(folder, 0, [10, 20, 30], q=0.25)
    log(folder, 20, [25, 35], q=0.75)
    (folder / "logs" / "from_40").mkdir()
    (folder / "logs" / "from_40" / "progress.csv").touch()
    found = read_run(folder)
    assert found.training["env_steps"].tolist() == [80, 160, 200, 280]
    assert found.training["train/q_mean"].tolist() == [0.25, 0.25, 0.75, 0.75]


@pytest.mark.parametrize("missing", ["run.yml", "evaluations.csv"])
def test_a_folder_that_is_no_run_is_named(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ReportError, match=f"has no {missing}: it is not a run of `zprl train`") as caught:
        read_run(folder)
    assert str(folder) in str(caught.value)


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="nowhere has no run"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.yml", "just a text"),
        ("run.yml", "{seed: [1"),
        ("run.yml", "{env_id: test/A-v0, seed: 1}"),
        ("run.yml", "{env_id: test/A-v0, seed: 1, policy: abc, settings: [scale]}"),
        ("run.yml", "{env_id: test/A-v0, seed: 1, policy: abc, settings: text}"),
        ("evaluations.csv", ""),
        ("evaluations.csv", "chunks,env_steps,success_rate\n"),
        ("evaluations.csv", "a,b\n1,2\n"),
        ("evaluations.csv", "env_steps,success_rate\n0,0.5\n"),
        ("evaluations.csv", "env_steps,success_rate,ci_low,ci_high\n0,many,0,1\n"),
        ("evaluations.csv", "env_steps,success_rate,ci_low,ci_high\n0,0.5,0,1\n100,0.6\n"),
        ("evaluation.json", ""),
        ("evaluation.json", "[0.5]"),
        ("evaluation.json", '{"success_rate": 0.5}'),
        ("evaluation_zero_noise.json", '{"success_rate": 0.5, "ci95": 0.5, "episodes": 5, "mean_length": 5}'),
    ],
)
def test_a_damaged_run_is_named(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ReportError) as caught:
        read_run(folder)
    assert str(folder / file) in str(caught.value)


def test_a_ratio_to_nothing_is_none(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", [0.2, 0.4])
    file = folder / "evaluations.csv"
    write_rows(file, [row | {"rms_z": float(row["chunks"] > 0), "rms_ratio": 8e7} for row in read_rows(file)])
    assert read_run(folder).curve["rms_ratio"].tolist() == pytest.approx([np.nan, 8e7], nan_ok=True)


def test_final_evaluations_are_read(folder: Path) -> None:
    write_evaluation(folder / "evaluation.json", evaluation(0.75, env_steps=100, velocity=0.5, jerk=None))
    write_evaluation(folder / "evaluation_zero_noise.json", evaluation(0.5))
    figures = {"success": 0.75, "success_low": 0.6875, "success_high": 0.78125, "episodes": 200, "mean_length": 80}
    still = figures | {"success": 0.5, "success_low": 0.4375, "success_high": 0.53125}
    assert read_run(folder).evaluations == {
        "steered": figures | {"env_steps": 100, "velocity": 0.5},
        "steered, zero noise": still,
    }


@pytest.mark.parametrize("place", ["base/base_evaluation.json", "base_evaluation.json"])
def test_the_base_policy_of_runs_is_found_once(tmp_path: Path, place: str) -> None:
    runs = [read_run(run_folder(tmp_path / f"zprl-{seed}", [0.5], seed)) for seed in (0, 1)]
    assert read_bases(runs) == []
    write_evaluation(tmp_path / place, {"base through c": evaluation(0.25)})
    (base,) = read_bases(runs)
    assert (base.folder, base.env_id) == ((tmp_path / place).parent, runs[0].env_id)
    assert base.evaluations["base through c"]["success"] == 0.25


def test_a_base_policy_of_another_task_is_not_that_of_a_run(tmp_path: Path) -> None:
    found = read_run(run_folder(tmp_path / "zprl-0", [0.5]))
    write_evaluation(tmp_path / "base_evaluation.json", {"base through c": evaluation(0.25, env_id="test/A-v0")})
    assert read_bases([found]) == []


@pytest.mark.parametrize("content", [{"base through c": 0.5}, {"base through c": {"env_id": "test/A-v0"}}])
def test_a_damaged_evaluation_of_a_base_policy_is_named_and_left_out(
    tmp_path: Path, content: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_run(run_folder(tmp_path / "zprl-0", [0.5]))
    write_evaluation(tmp_path / "base" / "base_evaluation.json", content)
    assert read_bases([found]) == []
    assert "base_evaluation.json is not of `zprl evaluate`" in capsys.readouterr().err
