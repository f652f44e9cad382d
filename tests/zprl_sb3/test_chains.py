"""Chains of layers on a CPU: the same numbers as PyTorch's own layers give."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch as th
from torch import nn

from zprl_sb3.chains import run_chains

CONTEXT, LATENT, BATCH = 23, 5, 32


def make_chains(count: int = 2) -> Any:
    pairs = [(CONTEXT + LATENT, 32), (32, 24)]
    hidden = [[nn.Linear(*pair), nn.LayerNorm(pair[1]), nn.GELU()] for _ in range(count) for pair in pairs]
    return [nn.Sequential(*hidden[2 * k], *hidden[2 * k + 1]) for k in range(count)]


@pytest.mark.parametrize("learns", [False, True])
def test_gradients_are_those_of_autograd(learns: bool) -> None:
    networks = make_chains()
    weights = [weight for network in networks for weight in network.parameters()]
    for weight in weights:
        weight.requires_grad_(learns)
    context, latent = th.randn(BATCH, CONTEXT), th.randn(BATCH, LATENT, requires_grad=True)
    wanted = [latent, *weights] if learns else [latent]
    inputs = th.cat([context, latent], dim=1)
    by_autograd = th.stack([network(inputs) for network in networks])
    by_chains = th.stack(run_chains(networks, context, latent))
    th.testing.assert_close(by_chains, by_autograd, rtol=1e-4, atol=1e-5)
    upstream = th.randn_like(by_chains)
    expected, found = (th.autograd.grad(values, wanted, upstream) for values in (by_autograd, by_chains))
    for ours, theirs in zip(found, expected, strict=True):
        th.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_latent_needs_no_gradient_for_the_weights_to_get_theirs() -> None:
    networks = make_chains(1)
    context, latent = th.randn(BATCH, CONTEXT), th.randn(BATCH, LATENT)
    run_chains(networks, context, latent)[0].sum().backward()  # type: ignore[no-untyped-call]
    mine = [weight.grad for weight in networks[0].parameters()]
    networks[0].zero_grad()
    networks[0](th.cat([context, latent], dim=1)).sum().backward()
    for ours, weight in zip(mine, networks[0].parameters(), strict=True):
        th.testing.assert_close(ours, weight.grad, rtol=1e-3, atol=1e-4)


def test_under_autocast_it_computes_in_bfloat16_and_gradients_are_float32() -> None:
    networks = make_chains(1)
    context, latent = th.randn(BATCH, CONTEXT), th.randn(BATCH, LATENT)
    exact = run_chains(networks, context, latent)[0]
    with th.autocast("cpu", th.bfloat16):
        (rough,) = run_chains(networks, context, latent)
    assert rough.dtype == th.bfloat16
    assert not th.equal(rough.float(), exact)
    th.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1)
    rough.float().sum().backward()  # type: ignore[no-untyped-call]
    assert {weight.grad.dtype for weight in networks[0].parameters()} == {th.float32}


def test_what_backward_needs_is_freed_with_the_output() -> None:
    """A cycle would keep every update's activations until the garbage collector finds it."""
    gc.disable()
    try:
        outputs = run_chains(make_chains(1), th.randn(BATCH, CONTEXT), th.randn(BATCH, LATENT))
        step = weakref.ref(outputs[0].grad_fn.chains[0][0])  # type: ignore[union-attr]
        assert step() is not None
        del outputs
        assert step() is None
    finally:
        gc.enable()
