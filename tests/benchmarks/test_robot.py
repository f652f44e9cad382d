"""The benchmark of the robot's rate: what it prints, and how it finds a phase."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("mujoco")


@pytest.fixture
def robot(benchmark_module: Any) -> ModuleType:
    module: ModuleType = benchmark_module("robot")
    return module


@pytest.mark.slow
def test_it_ends_with_what_a_robot_in_training_was_commanded(
    robot: ModuleType, results: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(robot, "QUICK", 4.0)
    monkeypatch.setattr(robot, "SIDE", 20)
    assert robot.main(["--quick"]) == 0
    found = results(capsys.readouterr().out)
    names = ("p50", "p99", "max", "phase")
    for name in names:
        milliseconds, share = found[f"robot_period_{name}"], found[f"robot_period_{name}_of_30_hz"]
        assert (milliseconds[1], share[1]) == ("ms", "%")
        assert share[0] == pytest.approx(3.0 * milliseconds[0], abs=0.04)
    assert found["robot_period_p50"][0] <= found["robot_period_p99"][0] <= found["robot_period_max"][0]
    assert found["robot_period_phase"][0] <= 1000 / 60 + 0.01
    assert 0 <= found["robot_missed"][0] <= 100
    assert found["robot_pauses"][0] >= 1  # the one of two seconds
    assert found["robot_guard_p99"][0] > 0
    assert found["robot_updates"][0] > 0  # it learned meanwhile
    assert len(found) == 2 * len(names) + 4


@pytest.mark.parametrize("shift", [0.0, 0.004, -0.012, 0.016])
@pytest.mark.parametrize("start", [0.0, 0.0329])
def test_the_phase_is_compared_across_the_longest_gap(robot: ModuleType, shift: float, start: float) -> None:
    period, random = 1 / 30, np.random.default_rng(0)
    steps = start + period * np.concatenate([np.arange(200), np.arange(261, 400)])
    steps[200:] += shift
    times = steps + np.abs(random.normal(0.0, 0.0002, len(steps)))
    times[150] += 0.015  # one that was late says nothing of the phase
    assert robot.phase_shift(times, period) == pytest.approx(abs(shift), abs=0.0002)


def test_the_servers_last_word_on_its_loop_counts(robot: ModuleType) -> None:
    lines = [f"15:00:0{k} | clients: robot | loop: jitter {k}.5 ms, 0 missed | limits: none\n" for k in range(3)]
    assert robot.guard_p99(lines) == 2.5
    with pytest.raises(RuntimeError, match="has not said"):
        robot.guard_p99(["Connecting to the robot\n"])
