"""The benchmark of the updates: what it prints, and that its quick form is quick."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch as th
from stable_baselines3 import SAC

from zprl_sb3.sac import SteeringSAC

NAMES = ("delay1", "default", "bf16_delay1", "bf16")


@pytest.fixture
def update(benchmark_module: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the benchmark with small networks and batches."""
    module = benchmark_module("update")
    small = {"BATCH": 4, "ROWS": 16, "UPDATES": {2: 2}, "NETWORKS": {"net_arch": [8], "activation_fn": th.nn.GELU}}
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_it_ends_with_rates_and_their_ratios(
    update: ModuleType, results: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert update.main(["--quick"]) == 0
    found = results(capsys.readouterr().out)
    rates = [f"updates_2_critics_{name}" for name in ("sb3", *NAMES)]
    ratios = [f"update_ratio_2_critics_{name}" for name in NAMES]
    assert list(found) == rates + ratios
    assert all(found[name][1] == "updates/s" for name in rates)
    assert all(found[name][1] == "x" for name in ratios)
    assert found[ratios[0]][0] == pytest.approx(found[rates[1]][0] / found[rates[0]][0], abs=0.01)


def test_the_long_form_has_more_blocks(update: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def measure(models: dict[str, SAC], updates: int, blocks: int) -> dict[str, float]:
        counts.append(blocks)
        return dict.fromkeys(models, 1.0)

    monkeypatch.setattr(update, "measure", measure)
    for arguments in (["--quick"], []):
        update.main(arguments)
    assert counts[0] < counts[1]


def test_every_model_makes_its_updates_on_a_full_buffer(update: ModuleType) -> None:
    model = update.make(SteeringSAC, 2)
    assert model.replay_buffer is not None
    assert model.replay_buffer.size() == 16
    batch = model.replay_buffer.sample(100)
    assert all(table.isfinite().all() and table.std() > 0.5 for table in batch.next_observations.values())  # type: ignore[attr-defined]
    rates = update.measure({"ours": model, "sb3": update.make(SAC, 2)}, updates=3, blocks=2)
    assert set(rates) == {"ours", "sb3"}
    assert min(rates.values()) > 0
    assert model._n_updates == 9  # two blocks, and one to warm up


@pytest.mark.slow
def test_the_quick_form_stays_under_its_50_seconds(repository: Path, results: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "benchmarks/update.py", "--quick"]
    output = subprocess.run(command, cwd=repository, check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of the processor, which it has to itself unless tests run beside it.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 50
    found = results(output)
    assert len(found) == 18
    assert all(figure > 0 for figure, _ in found.values())
