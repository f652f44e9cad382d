"""The curve of training episodes, where nothing is evaluated."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.logger import Logger

from zprl_sb3.files import read_rows
from zprl_sb3.training_curve import WINDOW, TrainingCurveCallback


class Model(SimpleNamespace):
    """What a callback asks of an algorithm."""


def run(folder: Path, successes: list[bool | None], done: int = 0) -> TrainingCurveCallback:
    """Let episodes of two chunks end; None is one that was aborted."""
    model: Any = Model(num_timesteps=done, env_steps=10 * done, logger=Logger(None, []), get_env=lambda: None)
    callback = TrainingCurveCallback(folder / "evaluations.csv", folder / "episodes.csv")
    callback.init_callback(model)
    for success in successes:
        for last in (False, True):
            info: dict[str, Any] = {"env_steps": 10}
            if last:
                info |= {"is_success": bool(success), "episode": {"l": 20, "r": float(bool(success))}}
                info |= {"timing": {"missed": 3}}
                info |= {"aborted": True} if success is None else {}
            model.num_timesteps += 1
            callback.locals = {"infos": [info], "dones": np.array([last])}
            callback.on_step()
    callback.on_training_end()
    return callback


def test_episodes_and_their_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, [False] * 15 + [None] + [True] * 5 + [True] * 4)
    episodes = read_rows(tmp_path / "episodes.csv")
    assert len(episodes) == 24
    assert episodes[0] == {"chunks": 2, "env_steps": 20, "success": 0, "length": 20, "return": 0, "missed": 3}
    assert episodes[15]["env_steps"] == 340  # the aborted one took its time
    curve = read_rows(tmp_path / "evaluations.csv")
    assert [row["success_rate"] for row in curve] == [0.25, 1.0]
    assert [row["env_steps"] for row in curve] == [420, 500]
    assert curve[0]["ci_low"] < 0.25 < curve[0]["ci_high"]
    assert "success 1.00 in the last 4 episodes" in capsys.readouterr().out
    assert WINDOW == 20


def test_a_resumed_run_goes_on_with_its_rows(tmp_path: Path) -> None:
    run(tmp_path, [True, False, True])
    run(tmp_path, [False], done=4)  # the snapshot was after two episodes
    assert [row["success"] for row in read_rows(tmp_path / "episodes.csv")] == [1, 0, 0]
    assert [row["env_steps"] for row in read_rows(tmp_path / "episodes.csv")] == [20, 40, 60]


def test_a_new_run_does_not_go_on_with_another_ones(tmp_path: Path) -> None:
    run(tmp_path, [True, True])
    run(tmp_path, [False])
    assert len(read_rows(tmp_path / "episodes.csv")) == 1
