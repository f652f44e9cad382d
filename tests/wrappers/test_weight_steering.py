"""What those who tune a policy's weights see of an environment, and how far from the frozen policy they act."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from helpers import POINT, POINT_IMAGES, image_policy, tiny_policy, tuned_points
from zprl_sb3.adapters.base import AdaptedPolicy
from zprl_sb3.evaluation import NoSteering, evaluate
from zprl_sb3.wrappers import EmbeddingSteering, WeightSteering, WeightSteeringWrapper, make_vec_steering


def run(steering: Any, episodes: int = 6) -> Any:
    env = make_vec_steering(POINT, steering, 2, seeded_episodes=True, env_kwargs={"reach": 0.5})
    return evaluate(NoSteering(), env, 5, episodes)


def test_without_a_change_it_is_the_base_policy_through_c_with_the_same_noise() -> None:
    policy = tiny_policy()
    mine, base = run(WeightSteering(policy)), run(EmbeddingSteering(policy, 1.0))
    assert (mine.successes, mine.lengths, mine.returns) == (base.successes, base.lengths, base.returns)
    assert len(set(mine.lengths)) > 1
    assert run(WeightSteering(policy, noise="zero")).lengths == run(EmbeddingSteering(policy, 1.0, "zero")).lengths


def test_the_observation_is_the_policys_own_with_the_noise_of_the_chunk() -> None:
    policy = tiny_policy()
    policy.action_normalizer.center.copy_(th.tensor([0.5, -1.0]))
    policy.action_normalizer.half_range.copy_(th.tensor([2.0, 0.25]))
    env = tuned_points(policy)
    env.seed(3)
    for step in range(4):
        obs: Any = env.reset() if step == 0 else env.step(np.zeros((2, 4), np.float32))[0]
        assert env.observation_space.contains({key: values[0] for key, values in obs.items()})
        context = policy.embed({"state": th.as_tensor(obs["obs/state"])[:, 0]})
        np.testing.assert_allclose(obs["c"], context, atol=1e-6)
        chunk = policy.act(context, th.as_tensor(obs["noise"]))[:, :2]
        np.testing.assert_allclose(obs["z"], policy.action_normalizer(chunk).flatten(1), atol=1e-5)
    delta = np.full((2, 4), 1.5, np.float32)  # beyond what other steerings take
    executed = env.steering.act(obs, delta, env._rngs)
    expected = policy.action_normalizer.inverse(th.as_tensor(obs["z"] + delta).view(2, 2, 2))
    np.testing.assert_allclose(executed, expected, atol=1e-5)


@pytest.mark.parametrize("random_crop", [False, True])
@pytest.mark.parametrize("obs_steps", [1, 2])
def test_images_come_as_bytes_with_the_place_of_their_crop(random_crop: bool, obs_steps: int) -> None:
    # Margins of 4 and, in the other direction, of 3, whose middle lies between two pixels.
    policy = image_policy(obs_steps=obs_steps, crop=(12, 13))
    env = make_vec_steering(POINT_IMAGES, WeightSteering(policy, random_crop=random_crop), 2)
    env.seed(0)
    obs: Any = env.reset()
    assert obs["obs/top_image"].dtype == np.uint8
    assert obs["obs/top_image"].shape == (2, obs_steps, 16, 16, 3)
    assert env.observation_space.contains({key: values[0] for key, values in obs.items()})
    raw = {key: th.as_tensor(obs[f"obs/{key}"]) for key in policy.observation_shapes}
    again = policy.embed(raw, th.as_tensor(obs["where"]))
    np.testing.assert_allclose(obs["c"], again, atol=1e-5)
    centred = policy.embed(raw)
    assert np.allclose(obs["c"], centred, atol=1e-5) is not random_crop


def test_one_environment_is_wrapped_likewise() -> None:
    env = WeightSteeringWrapper(gym.make(POINT), tiny_policy(), scale=1.0)
    obs, _ = env.reset(seed=4)
    assert env.observation_space.contains(obs)
    assert env.step(np.zeros(4, np.float32))[4]["env_steps"] == 2


def test_what_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scale \(λ\) is 1 where the weights are tuned, not 0.5"):
        WeightSteering(tiny_policy(), 0.5)

    class Foreign(AdaptedPolicy):
        observation_shapes, action_dim, obs_steps, horizon, chunk = {"state": (4,)}, 2, 1, 4, 2
        context_dim, noise_shape, env_id = 4, (4, 2), None
        device = th.device("cpu")

        def __init__(self) -> None:
            th.nn.Module.__init__(self)
            self.bottleneck = None

        def context(self, obs: Any) -> Any: ...

        def generate(self, context: Any, noise: Any) -> Any: ...

    with pytest.raises(TypeError, match="Only policies of `zprl pretrain` can be fine-tuned, not a Foreign"):
        WeightSteering(Foreign())
