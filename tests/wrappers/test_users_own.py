"""What users bring along: policies that are not ours, and tasks in modules of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from helpers import POINT, tiny_policy
from zprl_sb3.checkpoint import load_policy, save_policy
from zprl_sb3.wrappers import (
    EmbeddingSteering,
    LatentSteering,
    LatentSteeringWrapper,
    NoiseSteering,
    SteeringWrapper,
    make_vec_steering,
)


class Straight:
    """A policy of someone else's: it goes straight to the goal, whatever the noise."""

    observation_shapes, context_dim, action_dim = {"state": (4,)}, 4, 2
    obs_steps, horizon, chunk, noise_shape = 1, 3, 2, (0,)
    env_id = bottleneck = None
    device = th.device("cpu")

    def embed(self, obs: Any) -> th.Tensor:
        return obs["state"].clone()

    def act(self, condition: th.Tensor, noise: Any = None, generator: Any = None) -> th.Tensor:
        return (condition[:, 2:] - condition[:, :2])[:, None].expand(-1, self.horizon, -1)

    def fingerprint(self) -> str:
        return "straight"


def test_a_policy_of_someone_elses_is_steered() -> None:
    env = SteeringWrapper(gym.make(POINT), EmbeddingSteering(Straight(), 0.5))
    assert env.steering_spec.policy == "straight"
    shown, _ = env.reset(seed=0)
    start, goal = shown["c"][:2], shown["c"][2:]
    moved, *_ = env.step(np.zeros(4, np.float32))
    np.testing.assert_allclose(moved["c"][:2], start + 0.4 * np.clip(goal - start, -1, 1), atol=1e-6)


def test_noise_that_there_is_not_cannot_be_steered() -> None:
    with pytest.raises(ValueError, match="it has no noise to steer"):
        SteeringWrapper(gym.make(POINT), NoiseSteering(Straight(), 0.5))


def test_an_object_that_is_no_policy_is_refused_with_all_that_it_lacks() -> None:
    lacking = "obs_steps, chunk, env_id, horizon, noise_shape, context_dim, bottleneck, device, embed, act, fingerprint"
    with pytest.raises(TypeError, match=f"lacks observation_shapes, action_dim, {lacking}"):
        LatentSteeringWrapper(gym.make(POINT), object(), 0.5)  # type: ignore[arg-type]


@pytest.fixture
def imported_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An id in Gymnasium's import syntax, of a task in a user's module that nobody has imported."""
    (tmp_path / "users_tasks.py").write_text(
        "import gymnasium as gym\n"
        "from helpers import PointReach\n"
        "class Task(PointReach): pass\n"
        "gym.register('users/Task-v3', 'users_tasks:Task', max_episode_steps=9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "users_tasks:users/Task-v3"
    gym.registry.pop("users/Task-v3", None)
    sys.modules.pop("users_tasks", None)


@pytest.mark.parametrize("subprocess", [False, True])
def test_a_task_of_a_users_module_is_imported_by_its_id(imported_id: str, tmp_path: Path, subprocess: bool) -> None:
    path = save_policy(tiny_policy(env_id=imported_id), tmp_path / "policy")
    policy = load_policy(path)
    assert policy.env_id == imported_id
    env = make_vec_steering(policy.env_id, LatentSteering(policy, 0.5), 2, 0.9, subprocess=subprocess)
    try:
        env.seed(0)
        env.reset()
        lengths = [
            info["episode"]["l"]
            for _ in range(6)
            for info in env.step(np.zeros((2, 3), np.float32))[3]
            if "episode" in info
        ]
        assert lengths
        assert max(lengths) == 9
    finally:
        env.close()
    other = LatentSteering(tiny_policy(env_id="users_tasks:users/Other-v0"), 0.5)
    with pytest.raises(ValueError, match="trained for users_tasks:users/Other-v0, the environment is users/Task-v3"):
        make_vec_steering(imported_id, other, 2)
