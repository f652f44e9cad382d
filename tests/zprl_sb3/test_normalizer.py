from __future__ import annotations

import numpy as np
import pytest
import torch as th
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from zprl_sb3.normalizer import MIN_RANGE, Normalizer

# Steps of 0.01 up to 100: narrower ranges farther from zero have too few digits in float32 for sharp limits.
DATA = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
    elements=st.integers(-10_000, 10_000).map(lambda hundredths: np.float32(hundredths / 100)),
)
Array = NDArray[np.float32]


@given(DATA)
def test_normalised_data_come_back(data: Array) -> None:
    x = th.as_tensor(data)
    normalizer = Normalizer(x.shape[1]).fit(x)
    th.testing.assert_close(normalizer.inverse(normalizer(x)), x, atol=1e-4, rtol=0)


@given(DATA)
def test_every_dimension_fills_the_unit_range_or_is_zero(data: Array) -> None:
    x = th.as_tensor(data)
    normalised = Normalizer(x.shape[1]).fit(x)(x)
    varies = (x.amax(0) > x.amin(0)).float()
    th.testing.assert_close(normalised.amax(0), varies, atol=5e-3, rtol=0)
    th.testing.assert_close(normalised.amin(0), -varies, atol=5e-3, rtol=0)


def test_limits_by_hand() -> None:
    normalizer = Normalizer(2).fit(th.tensor([[0.0, -4.0], [10.0, 4.0], [2.5, 0.0]]))
    found = normalizer(th.tensor([[0.0, -4.0], [10.0, 4.0], [2.5, 1.0]]))
    assert found.tolist() == [[-1, -1], [1, 1], [-0.5, 0.25]]


def test_data_beyond_the_limits_are_not_clipped() -> None:
    normalizer = Normalizer(1).fit(th.tensor([[0.0], [1.0]]))
    assert normalizer(th.tensor([[2.0], [-1.0]])).tolist() == [[3], [-3]]
    assert normalizer.inverse(th.tensor([[3.0], [-3.0]])).tolist() == [[2], [-1]]


@pytest.mark.parametrize("spread", [0.0, 0.5 * MIN_RANGE])
def test_a_constant_dimension_becomes_zero_and_is_never_stretched(spread: float) -> None:
    x = th.tensor([[7.0, 0.0], [7.0, spread]])
    normalizer = Normalizer(2).fit(x)
    normalised = normalizer(x)
    assert normalised[:, 0].tolist() == [0, 0]
    assert normalised[:, 1].abs().max() <= MIN_RANGE
    th.testing.assert_close(normalizer.inverse(normalised), x)
    # A value that the data never had keeps its distance in its own units.
    assert normalizer(th.tensor([[9.0, 0.0]]))[0, 0] == 2


def test_a_fresh_normaliser_changes_nothing() -> None:
    x = th.randn(5, 3)
    assert th.equal(Normalizer(3)(x), x)
    assert th.equal(Normalizer(3).inverse(x), x)


def test_the_limits_travel_in_the_state() -> None:
    fitted = Normalizer(3).fit(th.randn(10, 3))
    loaded = Normalizer(3)
    loaded.load_state_dict(fitted.state_dict())
    x = th.randn(4, 2, 3)
    assert th.equal(loaded(x), fitted(x))
