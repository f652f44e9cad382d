"""Matrix products: the same numbers as PyTorch's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from zprl_sb3 import products
from zprl_sb3.products import PackedProduct, product

sizes = st.integers(1, 70)


@pytest.mark.parametrize("vectors", ["AVX2", "AVX512"])
@settings(deadline=None)
@given(rows=sizes, inputs=sizes, outputs=sizes, layout=st.sampled_from(["plain", "transposed", "part", "column"]))
def test_a_product_is_that_of_pytorch(vectors: str, rows: int, inputs: int, outputs: int, layout: str) -> None:
    x, weight, bias = th.randn(rows, inputs), th.randn(outputs, inputs), th.randn(outputs)
    if layout == "transposed":
        x, weight = x.t().contiguous().t(), weight.t().contiguous().t()
    elif layout == "part":
        x, weight = th.cat([x, x], dim=1)[:, :inputs], th.cat([weight, weight], dim=1)[:, inputs:]
    elif layout == "column":
        x = x[:, :1].expand(rows, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_VECTORS", vectors)
        th.testing.assert_close(product(x, weight, bias), F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)
        th.testing.assert_close(product(x, weight), F.linear(x, weight), rtol=1e-4, atol=1e-4)


def test_without_onednn_products_are_pytorch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_onednn", None)
    x, weight = th.randn(64, 32), th.randn(48, 32)
    assert th.equal(product(x, weight), F.linear(x, weight))


def test_packed_weights_are_renewed_when_they_change_and_are_not_copied() -> None:
    x, weight, packed = th.randn(4, 32), th.randn(48, 32), PackedProduct()
    for _ in range(2):
        th.testing.assert_close(packed(x, weight), F.linear(x, weight), rtol=1e-4, atol=1e-4)
    weight.mul_(2)
    th.testing.assert_close(packed(x, weight), F.linear(x, weight), rtol=1e-4, atol=1e-4)
    other = th.randn(48, 32)
    for twin in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        th.testing.assert_close(twin(x, other), F.linear(x, other), rtol=1e-4, atol=1e-4)
    assert copy.deepcopy(packed)._packed is None
