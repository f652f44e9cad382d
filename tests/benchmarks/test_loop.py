"""The benchmark of the training loop: what it prints, and that its robots hardly move."""

from __future__ import annotations

import os
from typing import Any

import gymnasium as gym
import numpy as np
import pytest


def test_it_ends_with_rates_and_ratios(
    benchmark_module: Any, results: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    module = benchmark_module("loop")
    monkeypatch.setattr(module, "CASES", (("box_close", "zprl/BoxClose-v0", "state", 2),))
    monkeypatch.setattr(module, "BURST", 3)
    assert module.main(["--quick"]) == 0
    found = results(capsys.readouterr().out)
    assert len(found) == 8
    ways = {way: found[f"loop_box_close_state_{way}"] for way in ("simulator", "updates", "sequential", "overlapped")}
    assert {unit for _, unit in ways.values()} == {"steps/s"}
    rates = {way: rate for way, (rate, _) in ways.items()}
    ratio = found["loop_ratio_box_close_state_overlapped"][0]
    assert ratio == pytest.approx(rates["overlapped"] / rates["sequential"], abs=0.01)
    share = found["loop_of_ideal_box_close_state_sequential"][0]
    assert share == pytest.approx(rates["sequential"] / min(rates["simulator"], rates["updates"]), abs=0.01)
    limit = module.limit_of_cores(rates["simulator"], rates["updates"], 2, len(os.sched_getaffinity(0)))
    share = found["loop_of_cores_box_close_state_overlapped"][0]
    assert share == pytest.approx(rates["overlapped"] / min(limit, rates["simulator"], rates["updates"]), abs=0.01)


def test_cores_that_are_all_at_work_are_the_limit(benchmark_module: Any) -> None:
    limit_of_cores = benchmark_module("loop").limit_of_cores
    # A step of each of two environments takes 10 ms of a core, and so does the update for each of these steps.
    assert limit_of_cores(200.0, 100.0, 2, 2) == pytest.approx(100.0)
    assert limit_of_cores(100.0, 100.0, 2, 1) == pytest.approx(50.0)
    assert limit_of_cores(100.0, 100.0, 1, 2) == pytest.approx(100.0)


def test_an_untrained_policy_keeps_robosuites_arm_near_its_first_pose(benchmark_module: Any) -> None:
    pytest.importorskip("robosuite")
    module = benchmark_module("loop")
    center = module.make_policy("zprl/Can-v0", "state").action_normalizer.center.numpy()
    env = gym.make("zprl/Can-v0")
    first, _ = env.reset(seed=0)
    for _ in range(10):
        obs, *_ = env.step(center)
    np.testing.assert_allclose(obs["proprio"][:7], first["proprio"][:7], atol=0.02)
    env.close()
