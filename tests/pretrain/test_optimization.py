from __future__ import annotations

import copy

import pytest
import torch as th
from torch import nn

from zprl_sb3.pretrain.optimization import adamw, cosine, ema_decay


def test_the_average_slows_down_but_never_stands_still() -> None:
    assert ema_decay(1, 0.8, 0.9999) == pytest.approx(1 - 2**-0.8)
    assert ema_decay(99, 0.8, 0.9999) == pytest.approx(1 - 100**-0.8)
    assert ema_decay(10**9, 0.8, 0.9999) == 0.9999


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
