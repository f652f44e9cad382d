"""Evaluation against env steps, and snapshots from which a run goes on as if nothing had happened."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch as th
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.callbacks import BaseCallback, ConvertCallback
from stable_baselines3.common.logger import configure

from helpers import everything, same, same_contents, steered_points, tiny_model, tiny_policy
from zprl_sb3.callbacks import SnapshotCallback, SteeringEvalCallback, load_snapshot, save_snapshot
from zprl_sb3.evaluation import NoSteering, evaluate
from zprl_sb3.files import read_rows, write_rows
from zprl_sb3.sac import SteeringSAC

COLUMNS = [
    *("chunks", "env_steps", "success_rate", "ci_low", "ci_high", "mean_length", "mean_return"),
    *("rms_z", "rms_step", "rms_ratio", "context_distance", "displacement"),
]


def evaluation(path: Path, eval_freq: int = 20, episodes: int = 4, verbose: int = 0) -> SteeringEvalCallback:
    env = steered_points(seeded_episodes=True, env_kwargs={"reach": 0.5})
    return SteeringEvalCallback(env, path, eval_freq, episodes, seed=77, verbose=verbose)


def chunks(path: Path) -> list[float]:
    return [row["chunks"] for row in read_rows(path)]


# --- Evaluation


def test_a_row_before_the_first_chunk_then_every_eval_freq_chunks_and_at_the_end(tmp_path: Path) -> None:
    model = tiny_model()
    model.learn(51, evaluation(tmp_path / "evaluations.csv"))
    rows = read_rows(tmp_path / "evaluations.csv")
    assert [row["chunks"] for row in rows] == [0, 20, 40, 52]
    assert list(rows[0]) == COLUMNS
    assert rows[0]["env_steps"] == 0
    assert rows[-1]["env_steps"] == model.env_steps
    assert all(row["ci_low"] <= row["success_rate"] <= row["ci_high"] for row in rows)


def test_the_first_row_is_the_base_policy_nearly_and_the_last_the_trained_model_exactly(tmp_path: Path) -> None:
    callback = evaluation(tmp_path / "evaluations.csv", episodes=8)
    model = tiny_model(learning_rate=0.01)
    model.learn(60, callback)
    first, *_, last = read_rows(tmp_path / "evaluations.csv")
    base = evaluate(NoSteering(), callback.eval_env, 77, 8).summary()
    assert 0 < base["success_rate"] < 1
    assert first["mean_length"] == pytest.approx(base["mean_length"], abs=0.5)
    assert first["rms_ratio"] < 0.05
    trained = evaluate(model, callback.eval_env, 77, 8).summary()
    for column in ("success_rate", "mean_length", "mean_return"):
        assert last[column] == trained[column]
    assert (last["ci_low"], last["ci_high"]) == pytest.approx(tuple(trained["ci95"]))
    assert last["rms_ratio"] > first["rms_ratio"]


def test_evaluating_does_not_change_training(tmp_path: Path) -> None:
    def train(callback: BaseCallback | None) -> SteeringSAC:
        return tiny_model(steered_points(sample_latent=True)).learn(40, callback)

    assert same(everything(train(None)), everything(train(evaluation(tmp_path / "evaluations.csv", eval_freq=10))))


def test_a_resumed_run_drops_the_rows_beyond_its_snapshot_and_repeats_none(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.csv"
    tiny_model().learn(50, [evaluation(path), SnapshotCallback(tmp_path / "snapshot", save_freq=30)])
    assert chunks(path) == [0, 20, 40, 50]
    before = read_rows(path)
    model = load_snapshot(SteeringSAC, tmp_path / "snapshot", steered_points())
    model.learn(30, evaluation(path), reset_num_timesteps=False)
    assert chunks(path) == [0, 20, 40, 60]
    assert read_rows(path)[:2] == before[:2]


def test_an_evaluation_that_was_lost_is_made_where_the_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.csv"
    tiny_model().learn(30, [evaluation(path), SnapshotCallback(tmp_path / "snapshot", save_freq=24)])
    write_rows(path, read_rows(path)[:1])  # as where it was made beside training, and cut off with it
    model = load_snapshot(SteeringSAC, tmp_path / "snapshot", steered_points())
    model.learn(26, evaluation(path), reset_num_timesteps=False)
    assert chunks(path) == [0, 24, 40, 50]


def test_a_snapshot_at_the_moment_of_an_evaluation_does_not_evaluate_twice(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.csv"
    tiny_model().learn(40, [evaluation(path), SnapshotCallback(tmp_path / "snapshot", save_freq=20)])
    model = load_snapshot(SteeringSAC, tmp_path / "snapshot", steered_points())
    model.learn(20, evaluation(path), reset_num_timesteps=False)
    assert chunks(path) == [0, 20, 40]


def test_every_evaluation_goes_to_the_logs_the_last_one_too(tmp_path: Path) -> None:
    model = tiny_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(40, evaluation(tmp_path / "evaluations.csv"))
    logged = pd.read_csv(tmp_path / "progress.csv").dropna(subset="eval/chunks")
    rows = read_rows(tmp_path / "evaluations.csv")
    for column in COLUMNS:
        name = f"eval/{column}" if column in COLUMNS[:7] else f"steering/{column}"
        assert logged[name].tolist() == pytest.approx([row[column] for row in rows], abs=1e-6)


@pytest.mark.parametrize("algorithm", [PPO, TD3])
def test_stock_algorithms_have_their_env_steps_counted(tmp_path: Path, algorithm: Any) -> None:
    arguments = {"n_steps": 10, "batch_size": 10} if algorithm is PPO else {"learning_starts": 1000}
    model = algorithm("MultiInputPolicy", steered_points(), device="cpu", seed=0, **arguments)
    counted: list[int] = []
    count = ConvertCallback(lambda local, _: bool(counted.append(sum(i["env_steps"] for i in local["infos"])) or True))
    model.learn(40, [evaluation(tmp_path / "evaluations.csv"), count])
    rows = read_rows(tmp_path / "evaluations.csv")
    assert [row["env_steps"] for row in rows][::2] == [0, sum(counted)]
    assert 40 < sum(counted) <= 80


def test_a_new_run_starts_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.csv"
    tiny_model().learn(20, evaluation(path, episodes=4))
    before = read_rows(path)
    tiny_model(seed=5).learn(20, evaluation(path, episodes=6))
    assert chunks(path) == [0, 20]
    assert read_rows(path)[0] != before[0]


def test_a_line_per_evaluation_is_printed_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model().learn(20, evaluation(tmp_path / "quiet.csv"))
    assert capsys.readouterr().out == ""
    tiny_model().learn(20, evaluation(tmp_path / "loud.csv", verbose=1))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("       0 env steps: success 0.")
    assert "on 4 episodes" in lines[0]


def test_a_run_that_is_already_over_is_evaluated_once(tmp_path: Path) -> None:
    model = tiny_model().learn(20)
    model.learn(0, evaluation(tmp_path / "evaluations.csv"), reset_num_timesteps=False)
    assert chunks(tmp_path / "evaluations.csv") == [20]


# --- Snapshots


def test_a_loaded_snapshot_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    uninterrupted = tiny_model(steered_points(sample_latent=True)).learn(80)
    # The environments stay as they are: a simulator's state is not part of a snapshot.
    env = steered_points(sample_latent=True)
    save_snapshot(tiny_model(env).learn(40), tmp_path / "snapshot")
    # Another run in between leaves other random states behind.
    tiny_model(seed=9).learn(20)
    resumed = load_snapshot(SteeringSAC, tmp_path / "snapshot", env, force_reset=False)
    assert isinstance(resumed, SteeringSAC)
    assert resumed.num_timesteps == 40
    resumed.learn(40, reset_num_timesteps=False)
    assert resumed._n_updates == uninterrupted._n_updates == 70
    assert same(everything(resumed), everything(uninterrupted))
    assert resumed.env_steps == uninterrupted.env_steps
    assert resumed.num_timesteps == uninterrupted.num_timesteps
    assert same_contents(resumed.replay_buffer, uninterrupted.replay_buffer)


def test_a_snapshot_keeps_every_random_state(tmp_path: Path) -> None:
    model = tiny_model().learn(20)

    def draw() -> tuple[float, float, float, float]:
        return random.random(), random.gauss(0, 1), float(np.random.normal()), float(th.randn(1))

    draw()  # NumPy and Python keep the second of two normal numbers for later
    save_snapshot(model, tmp_path / "snapshot")
    expected = draw()
    load_snapshot(SteeringSAC, tmp_path / "snapshot", steered_points())
    assert draw() == expected


def test_snapshots_are_written_every_save_freq_chunks_and_replace_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    tiny_model().learn(70, SnapshotCallback(folder, save_freq=30))
    assert {path.name for path in folder.iterdir()} == {"model.zip", "replay_buffer.pkl", "rng.pt"}
    assert SteeringSAC.load(folder / "model.zip").num_timesteps == 60
    assert {path.name for path in tmp_path.iterdir()} == {"snapshot"}
    model = load_snapshot(SteeringSAC, folder, steered_points())
    model.learn(40, SnapshotCallback(folder, save_freq=30), reset_num_timesteps=False)
    assert SteeringSAC.load(folder / "model.zip").num_timesteps == 90


def test_weights_that_are_not_finite_leave_the_last_good_snapshot(tmp_path: Path) -> None:
    folder = tmp_path / "snapshot"
    model = tiny_model()
    save_snapshot(model, folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with th.no_grad():
        next(model.critic.parameters())[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="stays as it was") as caught:
        save_snapshot(model, folder)
    assert str(folder) in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_snapshot_refuses_environments_that_differ(tmp_path: Path) -> None:
    save_snapshot(tiny_model(), tmp_path / "snapshot")
    with pytest.raises(ValueError, match=r"scale \(λ\) 0.5, the environment has 0.25"):
        load_snapshot(SteeringSAC, tmp_path / "snapshot", steered_points(scale=0.25))
    with pytest.raises(ValueError, match="base policy"):
        load_snapshot(SteeringSAC, tmp_path / "snapshot", steered_points(tiny_policy(seed=3)))


def test_snapshots_work_for_algorithms_without_a_replay_buffer(tmp_path: Path) -> None:
    model = PPO("MultiInputPolicy", steered_points(), n_steps=8, batch_size=8, n_epochs=1, device="cpu", seed=0)
    model.learn(16)
    save_snapshot(model, tmp_path / "snapshot")
    loaded = load_snapshot(PPO, tmp_path / "snapshot", steered_points(), device="cpu")
    assert loaded.num_timesteps == 16
    assert same(model.policy.parameters(), loaded.policy.parameters())
    loaded.learn(16, reset_num_timesteps=False)
    assert loaded.num_timesteps == 32


def test_a_snapshot_after_every_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, ended = [], []
    monkeypatch.setattr("zprl_sb3.callbacks.save_snapshot", lambda model, _: saved.append(model.num_timesteps))
    model = tiny_model()

    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if local["dones"].any():
            ended.append(model.num_timesteps)
        return True

    model.learn(60, [SnapshotCallback(tmp_path, 0), ConvertCallback(note)])
    assert len(ended) > 1
    assert saved == [chunks for chunks in ended if chunks < model.num_timesteps]
