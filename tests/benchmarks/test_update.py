"""The benchmark of the updates: what it prints, and its limit by hand."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch as th
from stable_baselines3 import SAC

from zprl_sb3.sac import SteeringSAC


@pytest.fixture
def update(benchmark_module: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the benchmark with small networks and batches."""
    module = benchmark_module("update")
    networks = {"net_arch": [8], "activation_fn": th.nn.GELU}
    small = {"BATCH": 4, "ROWS": 16, "UPDATES": {2: 2}, "PRODUCTS": 20, "NETWORKS": networks}
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_it_ends_with_rates_and_their_ratios(
    update: ModuleType,
    results: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    has_bfloat16: bool,
) -> None:
    monkeypatch.setattr(update, "multiplies_bfloat16", lambda _: has_bfloat16)
    names = ["delay1", "default", *(["bf16_delay1", "bf16"] if has_bfloat16 else [])]
    precisions = ["float32", "float32_onednn", *(["bfloat16"] if has_bfloat16 else [])]
    assert update.main(["--quick"]) == 0
    found = results(capsys.readouterr().out)
    rates = [f"updates_2_critics_{name}" for name in ("sb3", *names)]
    ratios = [f"update_ratio_2_critics_{name}" for name in names]
    products = [f"product_2_critics_{precision}" for precision in precisions]
    assert list(found)[: len(rates + ratios + products)] == rates + ratios + products
    assert len(found) == len(rates + ratios + products) + 2 * len(rates)
    assert all(found[name][1] == "updates/s" for name in rates)
    assert all(found[name][1] == "x" for name in ratios)
    assert found[ratios[0]][0] == pytest.approx(found[rates[1]][0] / found[rates[0]][0], abs=0.01)


def test_the_limit_is_the_rate_of_the_matrix_products(update: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "BATCH", 64)
    monkeypatch.setattr(update, "measure", lambda ways, counts, blocks: dict.fromkeys(ways, 10.0))
    lines = update.report(2, updates=2, blocks=1)
    model = update.make(SteeringSAC, 2)
    # By hand: the actor's target, two target critics and two critics forward, 2 of 3 of these backward for the weights
    # and, but for the first layers, for the inputs; every second time actor and critics again.
    inputs, width = update.CONTEXT + update.LATENT, 8
    layer, head, heads = 2 * 64 * inputs * width, 2 * 64 * width, 2 * 64 * width * 2 * update.LATENT
    latent = 2 * 64 * update.LATENT * width  # what of a first layer is backward for Δz
    critic_step = (layer + heads) + 2 * (layer + head) + 2 * (layer + head) + 2 * (layer + 2 * head)
    actor_step = (layer + heads) + 2 * (layer + head) + 2 * (head + latent) + (layer + 2 * heads)
    assert update.operations(model) == pytest.approx(critic_step + actor_step / 2)
    product = 2 * 64 * width * width * 10
    assert f"RESULT product_2_critics_float32 {product / 1e9:.1f} GFLOP/s" in lines
    share = 10 * update.operations(model) / product
    assert f"RESULT update_of_limit_2_critics_default {share:.2f} x" in lines


def test_the_long_form_has_more_blocks(update: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []

    def measure(ways: dict[str, Any], times: dict[str, int], blocks: int) -> dict[str, float]:
        counts.append(blocks)
        return dict.fromkeys(ways, 1.0)

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
    ways = {name: partial(update._train, each) for name, each in (("ours", model), ("sb3", update.make(SAC, 2)))}
    rates = update.measure(ways, dict.fromkeys(ways, 3), blocks=2)
    assert set(rates) == {"ours", "sb3"}
    assert min(rates.values()) > 0
    assert model._n_updates == 9  # two blocks, and one to warm up
