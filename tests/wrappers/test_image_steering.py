"""Steering where the observation holds images: crops at random places, and the same in a batch as alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from helpers import POINT_DICT, POINT_IMAGES, image_policy, tiny_model, tiny_policy
from zprl_sb3.checkpoint import load_policy, save_policy
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.wrappers import (
    EmbeddingSteering,
    LatentSteering,
    LatentSteeringWrapper,
    SeededEpisodes,
    VecSteering,
    make_vec_steering,
)
from zprl_sb3.wrappers.steering import episode_rng

N = 3
ATOL = 1e-5  # convolutions over a batch round otherwise than over its rows


def vec(policy: FlowPolicy, random_crop: bool, **kwargs: Any) -> VecSteering:
    return make_vec_steering(POINT_IMAGES, LatentSteering(policy, 0.5, True, random_crop=random_crop), N, 0.9, **kwargs)


def deltas(steps: int) -> Any:
    return np.random.default_rng(0).uniform(-1, 1, (steps, N, 3)).astype(np.float32)


@pytest.mark.parametrize("seeded_episodes", [False, True])
@pytest.mark.parametrize("obs_steps", [1, 2])
def test_many_do_what_each_would_do_alone(obs_steps: int, seeded_episodes: bool) -> None:
    policy = image_policy(obs_steps=obs_steps)
    env = vec(policy, True, seeded_episodes=seeded_episodes)

    def single() -> LatentSteeringWrapper:
        inner = gym.make(POINT_IMAGES)
        inner = SeededEpisodes(inner, N) if seeded_episodes else inner
        return LatentSteeringWrapper(inner, policy, 0.5, 0.9, sample_latent=True, random_crop=True)

    def assert_close(mine: Any, theirs: Any) -> None:
        for key in ("c", "z"):
            np.testing.assert_allclose(mine[key], theirs[key], rtol=0, atol=ATOL, err_msg=key)

    singles = [single() for _ in range(N)]
    env.seed(11)
    shown: Any = env.reset()
    for k, each in enumerate(singles):
        assert_close({key: value[k] for key, value in shown.items()}, each.reset(seed=11 + k)[0])
    ended = 0
    for delta in deltas(40):
        shown, _, dones, infos = env.step(delta)
        for k, each in enumerate(singles):
            obs = each.step(delta[k])[0]
            if dones[k]:
                ended += 1
                assert_close(infos[k]["terminal_observation"], obs)
                obs, _ = each.reset()
            assert_close({key: value[k] for key, value in shown.items()}, obs)
    assert ended > N


def seen(policy: FlowPolicy, monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, th.Tensor], Any]]:
    """Note what the policy embeds, and where it crops."""
    calls: list[tuple[dict[str, th.Tensor], Any]] = []
    embed = policy.embed

    def noting(obs: dict[str, th.Tensor], where: th.Tensor | None = None) -> th.Tensor:
        calls.append((obs, where))
        return embed(obs, where)

    monkeypatch.setattr(policy, "embed", noting)
    return calls


def test_images_come_to_the_policy_as_bytes_and_are_cropped_at_other_places_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = image_policy()
    calls = seen(policy, monkeypatch)
    env = vec(policy, random_crop=True)
    env.seed(0)
    env.reset()
    env.step(deltas(1)[0])
    for obs, where in calls:
        assert obs["top_image"].dtype == obs["hand_image"].dtype == th.uint8
        assert where.shape == (N, 2, 2)
        assert ((where >= 0) & (where < 1)).all()
    places = th.stack([where for _, where in calls])
    assert len(places.unique()) == places.numel(), "for each camera, environment and chunk a place of its own"


def test_an_evaluation_crops_at_the_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = image_policy()
    calls = seen(policy, monkeypatch)
    env = vec(policy, random_crop=False)
    env.seed(0)
    env.reset()
    assert calls[0][1] is None


def test_policies_without_images_draw_no_crops() -> None:
    """So that the setting may stay on, and the other random numbers stay what they were."""
    policy = tiny_policy(by_key=True)
    obs = {"goal": np.zeros((2, 2), np.float32), "point": np.ones((2, 2), np.float32)}
    results = [
        LatentSteering(policy, 0.5, True, random_crop=crop).observe(obs, [episode_rng(1), episode_rng(2)])
        for crop in (False, True)
    ]
    np.testing.assert_equal(results[1], results[0])


def test_every_steering_can_crop() -> None:
    policy = image_policy()
    env = gym.make(POINT_IMAGES)
    obs = {key: value[None] for key, value in env.reset(seed=0)[0].items()}
    contexts = [
        EmbeddingSteering(policy, 0.5, random_crop=crop).observe(obs, [episode_rng(seed)])["c"]
        for crop, seed in ((False, 0), (False, 1), (True, 0), (True, 1), (True, 0))
    ]
    np.testing.assert_array_equal(contexts[1], contexts[0])
    np.testing.assert_array_equal(contexts[4], contexts[2])
    assert not np.array_equal(contexts[2], contexts[0])
    assert not np.array_equal(contexts[3], contexts[2])


def test_an_environment_without_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs observation '\w+_image' of shape \(16, 16, 3\)"):
        LatentSteeringWrapper(gym.make(POINT_DICT), image_policy(), 0.5)
    larger = image_policy(observation_shapes={"point": (2,), "top_image": (20, 20, 3)})
    with pytest.raises(ValueError, match=r"'top_image' of shape \(20, 20, 3\), .*'top_image': \(16, 16, 3\)"):
        LatentSteeringWrapper(gym.make(POINT_IMAGES), larger, 0.5)


def test_images_rendered_otherwise_than_the_policy_learned_them_are_refused(tmp_path: Path) -> None:
    kwargs = {"observation": "image", "render_quality": "full"}
    policy = load_policy(save_policy(image_policy(env_id=POINT_IMAGES), tmp_path / "policy", env_kwargs=kwargs))
    assert policy.render_quality == "full"
    env = gym.make(POINT_IMAGES)
    LatentSteeringWrapper(env, policy, 0.5)  # an environment that does not say
    env.unwrapped.render_quality = "full"  # type: ignore[attr-defined]
    LatentSteeringWrapper(env, policy, 0.5)
    env.unwrapped.render_quality = "fast"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="learned from images with render_quality='full', the environment has 'fast'"):
        LatentSteeringWrapper(env, policy, 0.5)
    venv = vec(policy, False)
    venv.set_attr("render_quality", "fast")
    with pytest.raises(ValueError, match="make it with gymnasium"):
        VecSteering(venv.venv, venv.steering, 0.9)


@pytest.mark.parametrize("subprocess", [False, True])
def test_a_model_learns_on_images(tmp_path: Path, subprocess: bool) -> None:
    path = save_policy(image_policy(env_id=POINT_IMAGES), tmp_path / "policy")
    steering = LatentSteering(path, 0.5, True, random_crop=True)
    env = make_vec_steering(POINT_IMAGES, steering, 2, 0.9, subprocess=subprocess)
    try:
        model = tiny_model(env)
        model.learn(30)
        assert model.num_timesteps == 30
    finally:
        env.close()
