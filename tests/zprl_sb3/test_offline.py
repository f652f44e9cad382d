"""Demonstrations as transitions with Δz = 0, and batches of which they are half."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch as th

from helpers import (
    POINT,
    contents,
    image_demonstrations,
    image_policy,
    point_demonstrations,
    point_episode,
    steered_points,
    tiny_model,
    tiny_policy,
)
from zprl_sb3.offline import demonstration_buffer
from zprl_sb3.pretrain.demonstrations import DemonstrationError
from zprl_sb3.pretrain.recording import save_demonstrations
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.wrappers import LatentSteering

GAMMA = 0.9
LENGTHS = (5, 2, 1)


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    return point_demonstrations(tmp_path / "demos.hdf5", LENGTHS)


def by_hand(length: int, first: int, chunk: int = 2) -> list[tuple[Any, Any, float, bool]]:
    """Return (state, next state, reward, whether it is the last) of the chunks of an episode from an env step on."""
    it = point_episode(length)
    rows = []
    for start in range(first, length, chunk):
        rewards = it.rewards[start : start + chunk].astype(np.float32)
        last = start + chunk >= length
        after = it.observations["state"][min(start + chunk, length - 1)]
        rows.append((it.observations["state"][start], after, sum(GAMMA**k * r for k, r in enumerate(rewards)), last))
    return rows


def test_a_mask_chooses_episodes(demos: Path) -> None:
    with h5py.File(demos, "a") as file:
        file["mask/second"] = np.array([b"demo_1"])
    steering = LatentSteering(tiny_policy(env_id=POINT), 0.5)
    chosen = demonstration_buffer(demos, steering, GAMMA, sparse=False, mask="second", n_steps=1)
    rewards = [row[2] for first in range(2) for row in by_hand(LENGTHS[1], first)]
    np.testing.assert_allclose(contents(chosen).rewards[:, 0], rewards, rtol=1e-5)


def test_every_chunk_from_each_of_the_first_steps_is_a_transition(demos: Path) -> None:
    policy = tiny_policy(env_id=POINT)
    assert policy.bottleneck is not None
    batch = contents(demonstration_buffer(demos, LatentSteering(policy, 0.5), GAMMA, sparse=False, n_steps=1))
    expected = [row for length in LENGTHS for first in range(min(2, length)) for row in by_hand(length, first)]
    assert len(expected) == 3 + 2 + 1 + 1 + 1 == len(batch.rewards)
    states, following, rewards, over = (np.array(column) for column in zip(*expected, strict=True))
    np.testing.assert_allclose(batch.rewards[:, 0], rewards, rtol=1e-5)
    np.testing.assert_array_equal(batch.dones[:, 0], over)
    assert not batch.actions.any()
    context = policy.embed({"state": th.as_tensor(states)})
    th.testing.assert_close(batch.observations["c"], context)
    th.testing.assert_close(batch.observations["z"], policy.bottleneck.encode(context)[0])
    goes_on = ~over  # after the last one the next observation counts for nothing
    context = policy.embed({"state": th.as_tensor(following[goes_on])})
    th.testing.assert_close(batch.next_observations["c"][goes_on], context)


def test_sums_over_several_chunks_end_with_their_episode(demos: Path) -> None:
    steering = LatentSteering(tiny_policy(env_id=POINT), 0.5)
    batch = contents(demonstration_buffer(demos, steering, GAMMA, sparse=False, n_steps=3, context_dtype="float16"))
    assert batch.discounts is not None
    first, second, third = (reward for *_, reward, _ in by_hand(5, 0))
    whole = first + GAMMA**2 * second + GAMMA**4 * third
    assert batch.rewards[0, 0] == pytest.approx(whole, rel=1e-4)
    assert batch.dones[0, 0] == 1
    assert batch.rewards[-1, 0] == pytest.approx(by_hand(1, 0)[0][2], rel=1e-4)


def test_images_are_embedded_as_the_steering_sees_them(tmp_path: Path) -> None:
    demos = image_demonstrations(tmp_path / "demos.hdf5", count=2)
    policy = image_policy()
    batch = contents(demonstration_buffer(demos, LatentSteering(policy, 0.5, random_crop=True), GAMMA, n_steps=1))
    assert batch.observations["c"].shape[1] == policy.context_dim
    assert batch.observations["c"].isfinite().all()


def test_half_of_every_batch_is_demonstrated(demos: Path) -> None:
    env = steered_points()
    model = tiny_model(env).learn(40)
    model.learn_from(demonstration_buffer(demos, env.steering, GAMMA, n_steps=1))
    assert model.demonstrations is not None
    demonstrated = contents(model.demonstrations).observations["c"]
    batch = model._sample(7)
    theirs = [bool((row == demonstrated).all(dim=1).any()) for row in batch.observations["c"]]
    assert theirs == [False] * 4 + [True] * 3
    assert {len(values) for values in (batch.actions, batch.rewards, batch.dones, batch.next_observations["z"])} == {7}
    model.learn(20, reset_num_timesteps=False)


def test_they_are_not_saved_with_the_model(demos: Path, tmp_path: Path) -> None:
    env = steered_points()
    model = tiny_model(env)
    model.learn_from(demonstration_buffer(demos, env.steering, GAMMA, n_steps=1))
    model.save(tmp_path / "model")
    assert SteeringSAC.load(tmp_path / "model").demonstrations is None


def test_a_sparse_episode_ends_with_its_first_reward(tmp_path: Path) -> None:
    episode = point_episode(6)
    rewards = np.array([0.0, 0, 0, 1, 1, 1])
    path = tmp_path / "demos.hdf5"
    save_demonstrations(path, [dataclasses.replace(episode, rewards=rewards)], POINT, {}, "0", {})
    steering = LatentSteering(tiny_policy(env_id=POINT), 0.5)
    batch = contents(demonstration_buffer(path, steering, GAMMA, n_steps=1))
    np.testing.assert_allclose(batch.rewards[:, 0], [0, GAMMA, 0, 1], rtol=1e-6)
    np.testing.assert_array_equal(batch.dones[:, 0], [0, 1, 0, 1])
    assert len(contents(demonstration_buffer(path, steering, GAMMA, sparse=False, n_steps=1)).rewards) == 6


def test_demonstrations_that_do_not_fit_the_model_are_refused(demos: Path) -> None:
    env = steered_points()
    model = tiny_model(env)
    with pytest.raises(ValueError, match="have n_steps 3, the model's replay buffer has 1"):
        model.learn_from(demonstration_buffer(demos, env.steering, GAMMA, n_steps=3))
    with pytest.raises(ValueError, match="have gamma"):
        model.learn_from(demonstration_buffer(demos, env.steering, 0.5, n_steps=1))
    with pytest.raises(ValueError, match="bounded critics know returns from 0 to 1 only"):
        model.learn_from(demonstration_buffer(demos, env.steering, GAMMA, sparse=False, n_steps=1))
    assert model.demonstrations is None
    other = tiny_model(env, policy_kwargs={"bounded_critic": False})
    other.learn_from(demonstration_buffer(demos, env.steering, GAMMA, sparse=False, n_steps=1))


def test_dense_rewards_are_not_expected_of_converted_files(tmp_path: Path) -> None:
    path = tmp_path / "demos.hdf5"
    save_demonstrations(path, [point_episode(5)], POINT, {}, "0", {"converted": {"project": "Minari"}})
    steering = LatentSteering(tiny_policy(env_id=POINT), 0.5)
    assert demonstration_buffer(path, steering, GAMMA, n_steps=1).size() > 0
    with pytest.raises(DemonstrationError, match="does not hold the dense rewards"):
        demonstration_buffer(path, steering, GAMMA, sparse=False, n_steps=1)


def test_a_policy_that_sees_the_state_takes_it_from_a_file_with_images(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8, 3), np.uint8)
    rows = {"object": np.ones((4, 3), np.float32), "proprio": np.ones((4, 2), np.float32), "front_image": images}
    episode = dataclasses.replace(point_episode(4), observations=rows, next_observations={})
    path = tmp_path / "demos.hdf5"
    save_demonstrations(path, [episode], POINT, {"observation": "image"}, "0", {})
    policy = tiny_policy(observation_shapes={"object": (3,), "proprio": (2,)}, env_id=POINT)
    assert demonstration_buffer(path, LatentSteering(policy, 0.5), GAMMA, sparse=False, n_steps=1).size() == 4
    with pytest.raises(DemonstrationError, match=r"sees 'object' of shape \(4,\), the file has .*'object': \(3,\)"):
        demonstration_buffer(
            path, LatentSteering(tiny_policy(observation_shapes={"object": (4,)}), 0.5), GAMMA, n_steps=1
        )


def test_a_reward_that_is_not_finite_is_named(tmp_path: Path) -> None:
    path = tmp_path / "demos.hdf5"
    broken = dataclasses.replace(point_episode(2), rewards=np.array([0.0, np.nan]))
    save_demonstrations(path, [point_episode(3), broken], POINT, {}, "0", {})
    with pytest.raises(DemonstrationError, match="demo_1, rewards: NaN"):
        demonstration_buffer(path, LatentSteering(tiny_policy(env_id=POINT), 0.5), GAMMA, n_steps=1)


def test_demonstrations_of_another_task_are_refused(demos: Path) -> None:
    with pytest.raises(ValueError, match=f"has demonstrations of {POINT}, the policy is for zprl/Can-v0"):
        demonstration_buffer(demos, LatentSteering(tiny_policy(env_id="zprl/Can-v0"), 0.5), GAMMA, n_steps=1)


def test_a_file_without_rewards_is_named(demos: Path) -> None:
    with h5py.File(demos, "a") as file:
        del file["data/demo_1/rewards"]
    with pytest.raises(DemonstrationError, match=r"demo_1: the key 'rewards' is missing"):
        demonstration_buffer(demos, LatentSteering(tiny_policy(env_id=POINT), 0.5), GAMMA, n_steps=1)
