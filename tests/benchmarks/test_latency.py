"""The benchmark of the latency: the whole way of an observation, and what it prints."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def latency(benchmark_module: Any) -> ModuleType:
    module: ModuleType = benchmark_module("latency")
    return module


def test_an_observation_becomes_a_chunk_at_the_paper_s_sizes(latency: ModuleType) -> None:
    for shapes in latency.CASES.values():
        chunk = latency.make(shapes, None)()
        assert chunk.shape == (1, 4, 10)
        assert np.isfinite(chunk).all()


@pytest.mark.slow
def test_openvino_s_chunk_is_the_same(latency: ModuleType) -> None:
    expected, found = (latency.make(latency.CASES["image"], precision)() for precision in (None, "float32"))
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_it_ends_with_milliseconds_and_shares_of_a_period(
    latency: ModuleType,
    results: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    has_bfloat16: bool,
) -> None:
    monkeypatch.setattr(latency, "precisions", lambda: ["float32", "bfloat16"][: 1 + has_bfloat16])
    times = np.array([10.0] * 98 + [30.0, 40.0])
    monkeypatch.setattr(latency, "make", lambda shapes, precision: None)
    monkeypatch.setattr(
        latency, "measure", lambda calls, count: {way: times * (1 + (way == "pytorch")) for way in calls}
    )
    assert latency.main(["--quick"]) == 0
    found = results(capsys.readouterr().out)
    assert found["latency_state_openvino_median"] == (10.0, "ms")
    assert found["latency_state_openvino_median_of_30_hz"] == (30.0, "%")
    assert found["latency_image_pytorch_p99"][0] == pytest.approx(60.2)
    assert found["latency_ratio_image_openvino"] == (2.0, "x")
    assert found.get("latency_ratio_image_openvino_bf16") == ((2.0, "x") if has_bfloat16 else None)


def test_turns_are_taken_and_the_first_does_not_count(latency: ModuleType) -> None:
    calls: list[str] = []
    times = latency.measure({name: lambda name=name: calls.append(name) for name in "ab"}, 25)
    assert "".join(calls) == ("a" * 10 + "b" * 10) * 4
    assert {name: len(taken) for name, taken in times.items()} == {"a": 30, "b": 30}
    assert all((taken >= 0).all() for taken in times.values())
