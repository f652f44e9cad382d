"""What a study leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml
from optuna.trial import TrialState

from helpers import POINT, tiny_policy
from zprl_sb3.checkpoint import save_policy
from zprl_sb3.settings import load_settings
from zprl_sb3.studies import joined
from zprl_sb3.tuning import Tuning, read_tuning
from zprl_sb3.tuning_results import write_results


@pytest.fixture
def tuning(tmp_path: Path) -> Tuning:
    table = {
        "policy": str(save_policy(tiny_policy(env_id=POINT), tmp_path / "policy")),
        "search": {
            "scale": {"low": 0.1, "high": 2.0, "log": True},
            "algorithm.utd": {"low": 1, "high": 2},
            "algorithm.policy_kwargs.net_arch": [[8], [8, 8]],
        },
        "set": ["n_timesteps=60", "algorithm.policy_kwargs.n_critics=3"],
    }
    (tmp_path / "my.yml").write_text(yaml.safe_dump(table))
    return read_tuning(tmp_path / "my.yml")


def finished(space: Any, scale: float, place: int, state: TrialState = TrialState.COMPLETE) -> Any:
    params = {"scale": scale, "algorithm.utd": 1 + place % 2, "algorithm.policy_kwargs.net_arch": "[8, 8]"}
    value = 1 - abs(scale - 0.5) if state == TrialState.COMPLETE else None
    return optuna.create_trial(
        state=state, value=value, params=params, distributions=space, intermediate_values={0: 0.25, 1: 0.5}
    )


def test_the_best_trial_becomes_settings_that_train_reads(tuning: Tuning, tmp_path: Path) -> None:
    with joined(tuning, tmp_path / "out") as study:
        for place, scale in enumerate((0.2, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)):
            study.study.add_trial(finished(study.space, scale, place))
        study.study.add_trial(finished(study.space, 1.9, 0, TrialState.PRUNED))
        text = write_results(study, tuning)
    assert "Best: trial 0002 with 1.000: scale=0.5, algorithm.utd=1, algorithm.policy_kwargs.net_arch=[8, 8]" in text
    importance = next(line for line in text.splitlines() if line.startswith("Importance"))
    assert importance.startswith("Importance (fANOVA): scale ")  # the only one that matters here
    settings = load_settings(str(tmp_path / "out" / "best.yml"), POINT)
    assert (settings["scale"], settings["n_timesteps"], settings["algorithm"]["utd"]) == (0.5, 60, 1)
    networks = settings["algorithm"]["policy_kwargs"]
    assert (networks["net_arch"], networks["n_critics"], networks["layer_norm"]) == ([8, 8], 3, True)
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert list(table["state"]) == ["complete"] * 10 + ["pruned"]
    assert list(table["scale"][:3]) == [0.2, 0.3, 0.5]
    assert (tmp_path / "out" / "trials.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_complete_trial_there_is_no_best(tuning: Tuning, tmp_path: Path) -> None:
    with joined(tuning, tmp_path / "out") as study:
        trial = study.take(1)
        assert trial is not None
        study.finish(0, TrialState.FAIL, error="the simulator is broken")
        with pytest.raises(ValueError, match=r"No trial is complete; .*trials\.csv says why"):
            write_results(study, tuning)
    table = pd.read_csv(tmp_path / "out" / "trials.csv")
    assert (table["state"][0], table["error"][0]) == ("fail", "the simulator is broken")
