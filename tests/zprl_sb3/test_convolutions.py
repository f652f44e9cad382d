"""Convolutions as products: the same numbers as PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from zprl_sb3 import convolutions
from zprl_sb3.convolutions import Conv1d, Conv2d, ConvTranspose1d
from zprl_sb3.products import PackedProduct


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests' small layers be products."""
    monkeypatch.setattr(convolutions, "MANY", 1)


def assert_same(layer: Any, x: th.Tensor) -> None:
    expected = layer(x)  # with gradients: PyTorch's own
    assert expected.requires_grad
    with th.no_grad():
        found = layer(x)
    assert found.shape == expected.shape
    th.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(
    batch=st.integers(1, 5),
    channels=st.integers(1, 40),
    outputs=st.integers(1, 40),
    length=st.sampled_from([4, 6, 16]),
    shape=st.sampled_from([(5, 1, 2), (3, 2, 1), (1, 1, 0)]),
)
def test_one_dimension(batch: int, channels: int, outputs: int, length: int, shape: tuple[int, int, int]) -> None:
    assert_same(Conv1d(channels, outputs, *shape), th.randn(batch, channels, length))


@settings(deadline=None)
@given(batch=st.integers(1, 5), channels=st.integers(1, 40), outputs=st.integers(1, 40), length=st.integers(1, 16))
def test_upsampling(batch: int, channels: int, outputs: int, length: int) -> None:
    assert_same(ConvTranspose1d(channels, outputs, 4, stride=2, padding=1), th.randn(batch, channels, length))


@pytest.mark.parametrize("channels_last", [False, True])
@settings(deadline=None)
@given(
    batch=st.sampled_from([1, 2, convolutions.FEW + 1]),
    channels=st.integers(1, 20),
    outputs=st.integers(1, 20),
    size=st.tuples(st.integers(7, 12), st.integers(7, 12)),
    shape=st.sampled_from([(7, 2, 3), (3, 1, 1), (3, 2, 1), (1, 2, 0)]),
)
def test_images(
    channels_last: bool, batch: int, channels: int, outputs: int, size: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    layer: Any = Conv2d(channels, outputs, *shape, bias=False)
    x = th.randn(batch, channels, *size)
    if channels_last:
        layer, x = (part.to(memory_format=th.channels_last) for part in (layer, x))
    assert_same(layer, x)


def test_they_are_products_only_without_gradients_and_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    monkeypatch.setattr(convolutions, "onednn_computes", lambda x: x.dtype == th.float32)
    monkeypatch.setattr(PackedProduct, "__call__", lambda self, *args: used.append(args) or th.zeros(8, 16))
    layer, x = Conv1d(16, 16, 5, padding=2), th.randn(2, 16, 4)
    layer(x)
    with th.no_grad(), th.autocast("cpu", th.bfloat16):
        layer(x)
    with th.no_grad():
        layer.double()(x.double())
        layer.float()(x.repeat(convolutions.FEW, 1, 1))
    assert not used
    with th.no_grad():
        layer.float()(x)
    assert used
