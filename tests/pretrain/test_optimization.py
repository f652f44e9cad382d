from __future__ import annotations

import copy

import pytest
import torch as th
from torch import nn

from zprl_sb3.pretrain.optimization import adamw, cosine, update_ema


def test_the_average_follows_its_formula() -> None:
    ema, module = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(ema.weight, 1.0)
    nn.init.constant_(module.weight, 5.0)
    expected = 1.0
    for step in (1, 2, 3):
        update_ema(ema, module, step, 0.8, 0.9999)
        decay = 1 - (1 + step) ** -0.8
        expected = decay * expected + (1 - decay) * 5.0
        assert ema.weight.item() == pytest.approx(expected, rel=1e-6)
    assert module.weight.item() == 5.0


def test_the_average_never_stands_still() -> None:
    ema, module = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(ema.weight, 0.0)
    nn.init.constant_(module.weight, 1.0)
    update_ema(ema, module, 10**9, 0.8, 0.9999)
    assert ema.weight.item() == pytest.approx(1e-4, rel=1e-6)


def test_the_learning_rate_goes_up_in_a_line_and_down_along_a_cosine() -> None:
    factors = [cosine(step, 4, 24) for step in range(24)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1.0
    assert factors[14] == pytest.approx(0.5)
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert cosine(24, 4, 24) == 0
    assert cosine(0, 0, 1) == 1.0


def test_the_fused_optimiser_moves_the_weights_like_the_plain_one() -> None:
    th.manual_seed(0)
    fused, plain = nn.Linear(8, 8), nn.Linear(8, 8)
    plain.load_state_dict(copy.deepcopy(fused.state_dict()))
    ours = adamw(fused, 1e-2, [0.95, 0.999], 0.1)
    theirs = th.optim.AdamW(plain.parameters(), 1e-2, (0.95, 0.999), weight_decay=0.1, foreach=False)
    x = th.randn(16, 8)
    for module, optimizer in ((fused, ours), (plain, theirs)):
        for _ in range(20):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
    assert ours.defaults["fused"]
    th.testing.assert_close(fused.weight, plain.weight)
