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
        chunk = latency.make(shapes)()
        assert chunk.shape == (1, 4, 10)
        assert np.isfinite(chunk).all()


def test_it_ends_with_milliseconds_and_shares_of_a_period(
    latency: ModuleType, results: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "measure", lambda call, count: np.array([10.0] * 98 + [30.0, 40.0]))
    assert latency.main(["--quick"]) == 0
    found = results(capsys.readouterr().out)
    assert found["latency_state_median"] == (10.0, "ms")
    assert found["latency_state_median_of_30_hz"] == (30.0, "%")
    assert found["latency_image_p99"][0] == pytest.approx(30.1)


def test_the_first_calls_do_not_count(latency: ModuleType) -> None:
    calls: list[int] = []
    times = latency.measure(lambda: calls.append(1), 25)
    assert (len(times), len(calls)) == (25, 35)
    assert (times >= 0).all()
