"""The way from demonstrations to a steered policy with one robot: recorded, pretrained, trained, killed, evaluated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab.kinematic import Leader
from robot_tasks import write

from programs import pretrain_command
from zprl_sb3.files import read_rows
from zprl_sb3.pretrain.demonstrations import load_demonstrations
from zprl_sb3.robot_envs.real.episodes import ending_of, episode_files, read_episode
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.scripts import cli

pytestmark = pytest.mark.filterwarnings("ignore:rich is experimental")

TRAIN = {
    "default": "real",
    "scale": 0.2,
    "chunk": 2,
    "n_timesteps": 36,
    "algorithm": {
        "learning_starts": 4,
        "batch_size": 8,
        "policy_kwargs": {"net_arch": [8], "n_critics": 2},
    },
}
BLIND: dict[str, Any] = {
    "max_episode_steps": 20,
    "cameras": {},
    "drivers": {"robot": {"driver": "lab.kinematic"}},
    "train": TRAIN,
    "policy": {"horizon": 4, "chunk": 2, "latent_dim": 4},
}


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return recorded demonstrations, their task's file beside them."""
    folder = tmp_path_factory.mktemp("robot")
    task = write(folder, **BLIND)
    assert cli.main(["record", "--task", str(task), "--episodes", "4", "--output", str(folder / "demos")]) == 0
    return folder / "demos.hdf5"


@pytest.fixture(scope="module")
def policy(demos: Path) -> Path:
    """Return the checkpoint of a policy pretrained on them, hardly at all."""
    # Evaluation is asked for, and left out: nobody is beside the robot.
    command = [*pretrain_command(demos, demos.parent / "base"), "evaluation.episodes=4"]
    assert cli.main(command) == 0
    assert not (demos.parent / "base" / "base_evaluation.json").exists()
    return demos.parent / "base" / "policy"


def test_what_is_recorded_is_demonstrations(demos: Path) -> None:
    found = load_demonstrations(demos)
    assert found.env_kwargs == {"task": str(demos.parent / "reach.yml")}
    assert found.successes == [True, False, True, False]
    assert [len(actions) for actions in found.actions] == [5, 20, 5, 20]
    assert found.observations["proprio"][0].shape == (5, 7)
    positions = found.actions[0][:, 0]  # as the leader showed them
    assert (abs(positions[1:] - positions[:-1] - 0.002) < 1e-6).all()


def test_recording_goes_on_and_counts_what_is_kept(tmp_path: Path, zprl: Any) -> None:
    task = write(tmp_path, supervisor={"kind": "lab.scripted", "success": 3, "quit_after": 2, "abort": 2})
    command = ["record", "--task", task, "--episodes", "2", "--output", tmp_path / "demos"]
    code, out, _ = zprl(*command)
    assert code == 0
    assert "1 of 2 episodes" in out
    assert not (tmp_path / "demos.hdf5").exists()
    code, out, _ = zprl(*command)
    assert "Recording 1 of 2" in out
    assert "Wrote" in out
    endings = [ending_of(path) for path in episode_files(tmp_path / "demos")]
    assert endings == ["success", "aborted", "success"]
    assert load_demonstrations(tmp_path / "demos.hdf5").observations["front_image"][0].shape == (3, 24, 32, 3)
    code, out, _ = zprl("record", "--join", tmp_path / "demos", "--output", tmp_path / "all.hdf5")
    assert len(load_demonstrations(tmp_path / "all.hdf5")) == 2


def test_a_leader_that_fails_interrupts_the_episode(tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(leader: Leader) -> None:
        leader.asked += 1
        leader.broken = leader.asked > 4  # once before the episode

    told = Leader.get_observation
    monkeypatch.setattr(Leader, "get_observation", lambda leader: (fail(leader), told(leader))[1])
    code, _, err = zprl("record", "--task", write(tmp_path, **BLIND), "--output", tmp_path / "demos")
    assert code == 1
    assert "does not answer" in err
    assert [ending_of(path) for path in episode_files(tmp_path / "demos")] == ["interrupted"]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_loses_its_running_episode_only(policy: Path, tmp_path: Path, start: Any, zprl: Any) -> None:
    output = tmp_path / "run"
    command = ["train", "--policy", policy, "--output", output, "--set", "algorithm.overlap=true"]
    process = start(*command)
    wait_for(lambda: (output / "episodes.csv").is_file() and len(read_rows(output / "episodes.csv")) >= 2, process)
    wait_for((output / "snapshot" / "model.zip").is_file, process)
    wait_for(lambda: any(journal.stat().st_size > 700 for journal in output.rglob("*.journal")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = SteeringSAC.load(output / "snapshot" / "model.zip")
    # The next process waits for the robot that the killed one's still lets go of, and recovers its journal.
    process = start(*command)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text
    assert f"Going on from {before.env_steps} env steps" in text
    model = SteeringSAC.load(output / "model.zip")
    assert model.num_timesteps == 36
    rows = read_rows(output / "episodes.csv")
    assert [row["chunks"] for row in rows] == sorted({row["chunks"] for row in rows})
    assert {row["success"] for row in rows} == {0.0, 1.0}
    assert all(row["jitter_p99"] < 0.1 for row in rows)
    endings = [ending_of(path) for path in episode_files(output / "episodes")]
    assert set(endings) >= {"success", "timeout", "interrupted"}
    assert not list((output / "episodes").glob("*.journal"))
    # A snapshot at an episode's end: whole episodes only, so that at most the one that ran is missing.
    lost = sum(len(read_episode(path).episode.actions) for path in episode_files(output / "episodes")) - model.env_steps
    assert 0 <= lost <= 40


@pytest.mark.slow
@pytest.mark.parametrize("overlap", ["false", "true"])
def test_what_a_person_has_judged_is_kept_though_nobody_sets_the_next_scene(
    policy: Path, tmp_path: Path, start: Any, overlap: str
) -> None:
    task = policy.parent.parent / "reach.yml"
    text = task.read_text()
    write(task.parent, **BLIND | {"supervisor": {"kind": "lab.scripted", "success": 4, "leaves_after": 4}})
    try:
        process = start("train", "--policy", policy, "--output", tmp_path, "--set", f"algorithm.overlap={overlap}")
        model = tmp_path / "snapshot" / "model.zip"
        wait_for(lambda: model.is_file() and SteeringSAC.load(model).env_steps == 16, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finally:
        task.write_text(text)
    kept = SteeringSAC.load(model)
    kept.load_replay_buffer(tmp_path / "snapshot" / "replay_buffer.pkl")
    assert kept.replay_buffer is not None
    assert (kept.num_timesteps, kept.replay_buffer.size()) == (8, 8)
    assert kept._n_updates == 8  # two for each chunk after the warm-up of 4
    assert len(read_rows(tmp_path / "episodes.csv")) == 4


@pytest.mark.slow
def test_a_person_ends_a_run_and_goes_on_with_it(policy: Path, tmp_path: Path, zprl: Any) -> None:
    task = policy.parent.parent / "reach.yml"
    text = task.read_text()
    write(task.parent, **BLIND | {"supervisor": {"kind": "lab.scripted", "success": 3, "quit_after": 2, "abort": 4}})
    command = ["train", "--policy", policy, "--output", tmp_path / "run", "--set", "subprocess=false"]
    try:
        code, _, err = zprl(*command)
        assert code == 130
        assert "the same command goes on" in err
        assert [ending_of(path) for path in episode_files(tmp_path / "run" / "episodes")] == ["success", "aborted"]
        first = SteeringSAC.load(tmp_path / "run" / "snapshot" / "model.zip")
        first.load_replay_buffer(tmp_path / "run" / "snapshot" / "replay_buffer.pkl")
        assert first.replay_buffer is not None
        assert (first.num_timesteps, first.env_steps) == (4, 7)
        assert first.replay_buffer.size() == 2  # without the aborted episode's
        assert len(read_rows(tmp_path / "run" / "episodes.csv")) == 1
    finally:
        task.write_text(text)
    code, out, _ = zprl(*command)
    assert code == 0
    assert "Going on from" in out
    code, out, _ = zprl("evaluate", tmp_path / "run", "--episodes", "3")
    assert code == 0
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert result["episodes"] == 3
    assert result["success_rate"] == pytest.approx(2 / 3)
    assert len(episode_files(tmp_path / "run" / "evaluated_episodes")) == 3


@pytest.mark.slow
def test_a_base_policy_is_evaluated_once(policy: Path, tmp_path: Path, zprl: Any) -> None:
    code, _, err = zprl("evaluate", policy, "--episodes", "2", "--output", tmp_path / "base.json")
    assert code == 0, err
    assert list(json.loads((tmp_path / "base.json").read_text())) == ["base through the bottleneck"]
    assert len(episode_files(policy.parent / "evaluated_episodes")) == 2


@pytest.mark.parametrize("change", ["n_envs=2", "eval_episodes=2"])
def test_there_is_one_robot(policy: Path, tmp_path: Path, zprl: Any, change: str) -> None:
    code, _, err = zprl("train", "--policy", policy, "--output", tmp_path / "run", "--set", change)
    assert code == 1
    assert "There is one real robot" in err
