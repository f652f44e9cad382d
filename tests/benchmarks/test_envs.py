"""The benchmark of the environments: what it prints, and that robots stand still in it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import cloudpickle
import numpy as np
import pytest


@pytest.fixture
def envs(benchmark_module: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the benchmark with short blocks."""
    module = benchmark_module("envs")
    # What is run as a program is sent to the processes as a whole, what is imported by its name only.
    monkeypatch.setitem(sys.modules, "envs", module)
    cloudpickle.register_pickle_by_value(module)
    monkeypatch.setattr(module, "SECONDS", 0.1)
    return module


def test_it_ends_with_rates_memory_and_ratio(
    envs: ModuleType, results: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("gymnasium_robotics")
    monkeypatch.setattr(envs, "QUICK", (("AdroitDoor", "state"),))
    assert envs.main(["--quick"]) == 0
    found = results(capsys.readouterr().out)
    assert len(found) == 8
    assert found["envs_adroitdoor_state_alone"][1] == "steps/s"
    assert found["envs_memory_adroitdoor_state_two"][0] > found["envs_memory_adroitdoor_state_alone"][0] > 10
    rates = [found[f"envs_adroitdoor_state_{way}"][0] for way in ("alone", "two")]
    assert found["envs_ratio_adroitdoor_state_two"][0] == pytest.approx(rates[1] / rates[0], abs=0.01)


def test_robots_hold_their_pose(envs: ModuleType) -> None:
    pytest.importorskip("robosuite")
    from stable_baselines3.common.vec_env import DummyVecEnv

    venv = DummyVecEnv([lambda: envs.make("Lift", "state", 4)])
    venv.seed(0)
    first = venv.reset()
    assert isinstance(first, dict)
    actions = envs.calm_actions(venv, first["proprio"], np.random.default_rng(0))
    for _ in range(5):
        obs, *_ = venv.step(actions)
    assert isinstance(obs, dict)
    np.testing.assert_allclose(obs["proprio"][0, :3], first["proprio"][0, :3], atol=2e-3)
    venv.close()
