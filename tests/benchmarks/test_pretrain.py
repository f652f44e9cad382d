"""The benchmark of pretraining: what it prints, and that what it compares is the same training."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch as th
from torch.utils.data import default_collate

from zprl_sb3.policy import FlowPolicy
from zprl_sb3.pretrain.loop import TrainingConfig
from zprl_sb3.pretrain.losses import Draws
from zprl_sb3.pretrain.windows import Windows

CASE = {"models": ("small_image",), "batch_size": 3, "samples": 12, "steps": 1}
Prepared = tuple[FlowPolicy, Windows, TrainingConfig]


@pytest.fixture
def pretrain(benchmark_module: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the benchmark with one small model and small batches, on the CPU."""
    module: ModuleType = benchmark_module("pretrain")
    monkeypatch.setattr(module, "CASES", {"cpu": CASE})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return module


@pytest.fixture
def prepared(pretrain: ModuleType) -> Prepared:
    """Return policy, windows and settings as the benchmark's sides get them, with a KL that weighs enough to show."""
    policy, windows, config = pretrain.prepared("small_image", CASE, "cpu")
    return policy, windows, replace(config, beta=0.5)


def test_it_ends_with_rates_ratios_and_memory(
    pretrain: ModuleType, results: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain.main(["--quick"]) == 0
    found = results(capsys.readouterr().out)
    ways = ["loader", "ours", "ours_float32"]
    rates = [found[f"pretrain_cpu_small_image_{way}"] for way in ways]
    assert all(unit == "samples/s" and rate > 0 for rate, unit in rates)
    for way, (rate, _) in list(zip(ways, rates, strict=True))[1:]:
        ratio, unit = found[f"pretrain_ratio_cpu_small_image_{way}"]
        assert unit == "x"
        assert ratio == pytest.approx(rate / rates[0][0], abs=0.02)
    assert found["pretrain_images_cpu"] == (0.5, "MB")  # 12 times two images of 84 by 84
    assert found["pretrain_memory_process"][0] > 10
    assert len(found) == 7


def test_the_long_form_has_more_blocks(pretrain: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def report(device: str, blocks: int) -> list[str]:
        counts.append(blocks)
        return []

    monkeypatch.setattr(pretrain, "report", report)
    for arguments in (["--quick"], []):
        pretrain.main(arguments)
    assert counts[0] < counts[1]


def with_gradients(losses: dict[str, th.Tensor], policy: FlowPolicy) -> dict[str, th.Tensor]:
    policy.zero_grad()
    losses["total"].backward()  # type: ignore[no-untyped-call]
    gradients = {f"gradient of {name}": weight.grad for name, weight in policy.named_parameters()}
    return losses | {name: gradient for name, gradient in gradients.items() if gradient is not None}


def ours(pretrain: ModuleType, prepared: Prepared, draws: Draws) -> dict[str, th.Tensor]:
    """Return what ``zprl pretrain`` computes of these draws: losses and gradients."""
    policy, windows, config = prepared
    trainer = pretrain.make_trainer(copy.deepcopy(policy), windows, config, autocast=False, compile=False)
    return with_gradients(trainer._losses(*windows.batch(draws.windows), draws), trainer.policy)


def usual(pretrain: ModuleType, prepared: Prepared, draws: Draws) -> dict[str, th.Tensor]:
    """Return what the usual loop computes of the same draws."""
    policy, windows, config = prepared
    samples, policy = pretrain.Samples(windows, policy.config.crop), pretrain.plain(policy)
    assert draws.where is not None
    places = th.tensor([84 - size + 1 for size in policy.config.crop])
    corners = [dict(zip(policy.image_keys, each, strict=True)) for each in (draws.where * places).long().tolist()]
    rows = zip(draws.windows.tolist(), corners, strict=True)
    batch = default_collate([samples.sample(number, corner) for number, corner in rows])
    losses = pretrain.usual_losses(policy, batch, draws.noise, draws.times, draws.latent, config)
    return with_gradients(losses, policy)


def differences(mine: dict[str, th.Tensor], theirs: dict[str, th.Tensor]) -> set[str]:
    """Return the names of what differs by more than rounding does."""
    assert set(mine) == set(theirs)
    return {name for name in mine if not close(mine[name], theirs[name], 1e-3 if "gradient" in name else 1e-5)}


def close(mine: th.Tensor, theirs: th.Tensor, tolerance: float) -> bool:
    return bool((mine - theirs).norm() <= tolerance * theirs.norm() + 1e-6 * tolerance)  # never where one is NaN


def draws_of(pretrain: ModuleType, prepared: Prepared) -> Draws:
    draws: Draws = pretrain.make_trainer(copy.deepcopy(prepared[0]), *prepared[1:])._draw()
    return draws


def test_both_compute_the_same_losses_and_gradients(pretrain: ModuleType, prepared: Prepared) -> None:
    draws = draws_of(pretrain, prepared)
    mine = ours(pretrain, prepared, draws)
    assert {"imitation", "bottleneck", "kl", "reconstruction", "total"} < set(mine)
    assert len(mine) > 50
    assert differences(mine, usual(pretrain, prepared, draws)) == set()


CHANGES: dict[str, Callable[[th.Tensor], th.Tensor]] = {
    "windows": lambda numbers: (numbers + 1) % CASE["samples"],  # type: ignore[operator]
    "noise": lambda noise: noise + 0.1,
    "times": lambda times: 1 - 0.9 * times,
    "latent": lambda latent: latent + 1,
    "where": lambda where: 1 - 0.9 * where,
}


def test_other_draws_would_show(pretrain: ModuleType, prepared: Prepared) -> None:
    draws = draws_of(pretrain, prepared)
    mine = ours(pretrain, prepared, draws)
    for name, change in CHANGES.items():
        others = draws._replace(**{name: change(getattr(draws, name))})
        assert "total" in differences(mine, usual(pretrain, prepared, others)), name


def test_other_weights_would_show(pretrain: ModuleType, prepared: Prepared) -> None:
    draws, (policy, windows, config) = draws_of(pretrain, prepared), prepared
    mine = ours(pretrain, prepared, draws)
    for part in ("image_encoders", "unet", "bottleneck", "obs_normalizer", "action_normalizer"):
        other = copy.deepcopy(policy)
        for tensor in getattr(other, part).state_dict().values():
            tensor.add_(0.01)
        assert "total" in differences(mine, usual(pretrain, (other, windows, config), draws)), part


def test_a_gpus_memory_is_what_each_adds_to_what_lies_there(
    pretrain: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = SimpleNamespace(now=7e6, peak=100e6)

    def take(size: float, passing: float) -> None:
        there.now += size
        there.peak = max(there.peak, there.now + passing)

    def make(size: float, passing: float) -> Callable[[], object]:
        take(size, 50 * passing)  # as compiling does
        return lambda: take(0, passing)

    fakes = {
        "synchronize": lambda: None,
        "memory_allocated": lambda: there.now,
        "max_memory_allocated": lambda: there.peak,
        "reset_peak_memory_stats": lambda: setattr(there, "peak", there.now),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(f"torch.cuda.{name}", fake)
    makers = {"one": lambda: make(3e6, 2e6), "other": lambda: make(1e6, 4e6)}
    _, memory = pretrain.measure(makers, count=2, blocks=1, device="cuda")
    assert memory == {"one": 5.0, "other": 5.0}
    assert pretrain.measure(makers, count=2, blocks=1, device="cpu")[1] == {}
