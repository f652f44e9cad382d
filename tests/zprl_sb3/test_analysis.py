"""The numbers behind an analysis: by hand where that is possible, and against what else knows them.

Maps are tested in ``tests/scripts/test_analyse.py``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch as th

from helpers import POINT, point_demonstrations, tiny_model, tiny_policy
from zprl_sb3 import analysis
from zprl_sb3.analysis import TRAINED, UNIFORM, shift_curves, steer, traces
from zprl_sb3.diagnostics import steering_diagnostics
from zprl_sb3.evaluation import Evaluation
from zprl_sb3.latents import LatentGaussian, OfflineLatents, offline_latents
from zprl_sb3.wrappers import LatentSteering


@pytest.fixture
def steering() -> LatentSteering:
    return LatentSteering(tiny_policy(env_id=POINT), 0.5)


@pytest.fixture
def latents(steering: LatentSteering, tmp_path: Path) -> OfflineLatents:
    return offline_latents(point_demonstrations(tmp_path / "demos.hdf5", (30, 30)), steering.policy)


def test_another_scale_keeps_the_dimensions_in_proportion() -> None:
    steering = LatentSteering(tiny_policy(), (0.1, 0.2, 0.6))
    z, delta = np.ones((1, 3), np.float32), np.array([[1, -1, 0.5]], np.float32)
    np.testing.assert_allclose(steer(steering, z, delta, 0.3), z + steering.step(delta), rtol=1e-6)
    np.testing.assert_allclose(steer(steering, z, delta, 0.6), [[1.2, 0.6, 1.6]], rtol=1e-6)
    np.testing.assert_array_equal(steer(steering, z, delta, 0.0), z)


def test_the_actor_moves_what_it_sees_and_uniform_moves_fill_the_cube(latents: OfflineLatents) -> None:
    model = tiny_model()
    found = analysis.deltas(model, latents, seed=0)
    expected, _ = model.predict({"c": latents.c[:1], "z": latents.z[:1]}, deterministic=True)
    np.testing.assert_allclose(found[TRAINED][:1], expected, rtol=1e-5)
    assert found[UNIFORM].shape == latents.z.shape
    assert -1 <= found[UNIFORM].min() < -0.9
    assert 0.9 < found[UNIFORM].max() <= 1


def test_curves_begin_at_the_demonstrations_and_agree_with_the_diagnostics(
    steering: LatentSteering, latents: OfflineLatents
) -> None:
    moves = analysis.deltas(tiny_model(), latents, seed=0)
    curves = shift_curves(steering, latents, moves, [0.0, 0.5, 2.0])
    assert list(curves["delta"]) == [TRAINED] * 3 + [UNIFORM] * 3
    for way, table in curves.groupby("delta"):
        still, own, far = (row for _, row in table.iterrows())
        distances = LatentGaussian(latents.z).distance(latents.z)
        assert still["mahalanobis"] == pytest.approx(distances.mean(), rel=1e-5)
        low, high = still["mahalanobis_low"], still["mahalanobis_high"]
        assert (low, high) == pytest.approx(tuple(np.percentile(distances, (5, 95))), rel=1e-4)
        assert still["displacement"] == 0
        known = steering_diagnostics(steering, {"c": latents.c, "z": latents.z}, moves[str(way)])
        for name in ("context_distance", "displacement"):
            assert own[name] == pytest.approx(known[name], rel=1e-4)
        assert far["displacement"] > own["displacement"] > 0
    far = curves[curves["scale"] == 2.0].set_index("delta")["mahalanobis"]
    assert far[UNIFORM] > curves["mahalanobis"].iloc[0]


def test_chunks_are_those_that_the_steering_executes(steering: LatentSteering, latents: OfflineLatents) -> None:
    policy = steering.policy
    rng = np.random.default_rng(7)
    noise = rng.standard_normal((2, policy.horizon, policy.action_dim), np.float32)
    rngs = [np.random.default_rng(seed) for seed in (3, 4)]
    noise = np.stack([np.random.default_rng(seed).standard_normal(noise.shape[1:], np.float32) for seed in (3, 4)])
    z, delta = latents.z[:2], np.full((2, 3), 0.5, np.float32)
    chunks = steering.act({"c": latents.c[:2], "z": z}, delta, rngs)
    contexts = analysis.decode(steering, steer(steering, z, delta, 0.5))
    found = analysis.executed(steering, contexts, noise).reshape(chunks.shape)
    inverse = tiny_policy().action_normalizer.inverse(th.as_tensor(found)).numpy()
    np.testing.assert_allclose(inverse, chunks, rtol=1e-4, atol=1e-6)


def test_without_umap_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'zprl-sb3\[analysis\]'"):
        analysis.check_umap()


def test_traces_are_every_hand_of_every_episode_in_seconds() -> None:
    places = np.arange(12.0).reshape(2, 2, 3)
    base = Evaluation([7, 8], [True, False], commanded=[places, places[:1]], dt=0.05)
    steered = Evaluation([7], [True], commanded=[places + 100], dt=0.05)
    found = traces({"base": base, "steered": steered})
    assert list(found) == ["policy", "seed", "success", "hand", "seconds", "x", "y", "z"]
    assert found.iloc[3].tolist() == ["base", 7, True, 1, 0.1, 9.0, 10.0, 11.0]
    assert found["policy"].tolist() == ["base"] * 6 + ["steered"] * 4
    assert found.loc[found["seed"] == 8, "success"].tolist() == [False, False]
    assert traces({"base": Evaluation([7], [True], commanded=[None])}).empty
