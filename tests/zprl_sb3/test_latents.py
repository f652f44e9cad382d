"""Latents of demonstrations, and the distance to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch as th

from helpers import POINT, image_demonstrations, image_policy, point_demonstrations, point_episode, tiny_policy
from zprl_sb3.latents import LatentGaussian, offline_latents
from zprl_sb3.pretrain.demonstrations import load_demonstrations


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    return point_demonstrations(tmp_path / "demos.hdf5", (5, 2, 40))


def test_all_observations_are_embedded_where_there_are_few(demos: Path) -> None:
    policy = tiny_policy(env_id=POINT)
    assert policy.bottleneck is not None
    found = offline_latents(demos, policy)
    assert len(found) == 47
    assert found.episodes.tolist() == [0] * 5 + [1] * 2 + [2] * 40
    assert found.steps[:8].tolist() == [0, 1, 2, 3, 4, 0, 1, 0]
    states = np.concatenate([point_episode(length).observations["state"] for length in (5, 2, 40)])
    context = policy.embed({"state": th.as_tensor(states)})
    np.testing.assert_allclose(found.c, context.numpy(), rtol=1e-6)
    mean, std = policy.bottleneck.encode(context)
    np.testing.assert_allclose(found.mean, mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.std, std.numpy(), rtol=1e-5)
    deviations = (found.z - found.mean) / found.std
    assert 0.8 < deviations.std() < 1.2
    np.testing.assert_array_equal(offline_latents(demos, policy).z, found.z)


def test_a_history_begins_with_the_first_observation_again(demos: Path) -> None:
    policy = tiny_policy(env_id=POINT, obs_steps=3)
    found = offline_latents(demos, policy)
    state = point_episode(5).observations["state"]
    for step, rows in ((0, [0, 0, 0]), (1, [0, 0, 1]), (4, [2, 3, 4])):
        expected = policy.embed({"state": th.as_tensor(state[rows][None])})[0].numpy()
        np.testing.assert_allclose(found.c[step], expected, rtol=1e-6)


def test_of_many_only_some_are_drawn_and_none_twice(demos: Path) -> None:
    policy = tiny_policy(env_id=POINT)
    few, others, every = (offline_latents(demos, policy, count=n, seed=s) for n, s in ((20, 0), (20, 1), (None, 0)))
    assert len(few) == 20
    drawn = set(zip(few.episodes.tolist(), few.steps.tolist(), strict=True))
    assert len(drawn) == 20
    assert drawn != set(zip(others.episodes.tolist(), others.steps.tolist(), strict=True))
    contexts = {(k, t): c for k, t, c in zip(every.episodes, every.steps, every.c, strict=True)}
    for k, t, c in zip(few.episodes, few.steps, few.c, strict=True):
        np.testing.assert_allclose(c, contexts[k, t], rtol=1e-6)


def test_a_mask_keeps_its_episodes_only(demos: Path) -> None:
    chosen = load_demonstrations(demos).masks["train"]
    found = offline_latents(demos, tiny_policy(env_id=POINT), mask="train")
    assert len(found) == sum((5, 2, 40)[k] for k in chosen)


def test_images_are_read_one_by_one_and_seen_from_the_centre(tmp_path: Path) -> None:
    path, policy = image_demonstrations(tmp_path / "demos.hdf5"), image_policy()
    demos = load_demonstrations(path)
    found = offline_latents(path, policy, count=9)
    for k, t, c in zip(found.episodes, found.steps, found.c, strict=True):
        obs = {key: th.as_tensor(episodes[k][t : t + 1]) for key, episodes in demos.observations.items()}
        np.testing.assert_allclose(c, policy.embed(obs)[0].numpy(), rtol=1e-4, atol=1e-6)


def test_a_policy_without_a_bottleneck_is_refused(demos: Path) -> None:
    with pytest.raises(ValueError, match="no bottleneck"):
        offline_latents(demos, tiny_policy(latent_dim=None))


def test_distances_are_those_in_deviations_of_the_latents() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal([1.0, -2.0, 0.0], [0.5, 1.0, 2.0], (20_000, 3)).astype(np.float32)
    gaussian = LatentGaussian(z)
    points = np.array([[1, -2, 0], [1.5, -2, 0], [1, 0, 0], [1, -2, -6]], np.float32)
    assert gaussian.distance(points) == pytest.approx([0, 1, 2, 3], abs=0.08)
    assert np.square(gaussian.distance(z)).mean() == pytest.approx(3, rel=0.02)


def test_few_latents_of_many_dimensions_still_have_a_distance() -> None:
    z = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    assert np.isfinite(LatentGaussian(z).distance(z)).all()
