from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from helpers import PointReach, push_policy, tiny_policy
from zprl_sb3.diagnostics import evaluation_row
from zprl_sb3.evaluation import NoSteering, evaluate
from zprl_sb3.smoothness import SMOOTHNESS, smoothness
from zprl_sb3.wrappers import LatentSteering, VecSteering, make_vec_steering


def test_the_differences_by_hand() -> None:
    # Along x: 0, 1, 3, 6, 10; differences 1 2 3 4, 1 1 1, 0 0. Another hand stands still.
    x = np.array([0.0, 1.0, 3.0, 6.0, 10.0])
    hands = np.zeros((5, 2, 3))
    hands[:, 0, 0] = x
    assert smoothness([hands[:, :1]], dt=0.5) == pytest.approx({"velocity": 5.0, "acceleration": 4.0, "jerk": 0.0})
    assert smoothness([hands], dt=1.0) == pytest.approx({"velocity": 1.25, "acceleration": 0.5, "jerk": 0.0})


def test_a_cubic_path_has_its_derivatives() -> None:
    t = np.arange(0, 1, 0.01)[:, None, None]
    path = np.concatenate([t**3, 2 * t**3, 2 * t**3], axis=2)  # of norm 3 t³
    result = smoothness([path], dt=0.01)
    assert result["velocity"] == pytest.approx(np.mean(9 * t**2), rel=0.05)
    assert result["acceleration"] == pytest.approx(np.mean(18 * t), rel=0.05)
    assert result["jerk"] == pytest.approx(18.0)


def test_all_steps_count_alike_and_short_episodes_as_far_as_they_go() -> None:
    fast, slow = np.zeros((4, 1, 3)), np.zeros((2, 1, 3))
    fast[:, 0, 1], slow[:, 0, 1] = 2 * np.arange(4), np.arange(2)
    assert smoothness([fast, slow], 1.0)["velocity"] == pytest.approx((3 * 2 + 1) / 4)
    nothing = smoothness([slow[:1]], 1.0)
    assert all(math.isnan(nothing[name]) for name in SMOOTHNESS)


class Commanded(PointReach):
    """The toy task, in which the point itself is what is commanded, 10 times a second."""

    metadata: dict[str, Any] = {"render_modes": [], "render_fps": 10}

    def commanded(self) -> Any:
        return np.append(self.point, 0.0)[None]


gym.register("test/Commanded-v0", Commanded, max_episode_steps=12)


def commanded_env(reach: float, n_envs: int = 3) -> VecSteering:
    steering = LatentSteering(tiny_policy(), 0.5)
    return make_vec_steering("test/Commanded-v0", steering, n_envs, env_kwargs={"reach": reach}, seeded_episodes=True)


def test_an_evaluation_keeps_what_was_commanded() -> None:
    result = evaluate(NoSteering(), commanded_env(0.5), 300, 12)
    assert 0 < sum(result.successes) < 12
    assert [len(positions) for positions in result.commanded if positions is not None] == result.lengths
    succeeded = [p for p, success in zip(result.commanded, result.successes, strict=True) if success and p is not None]
    summary = result.summary()
    expected = smoothness(succeeded, 0.1)
    assert {name: summary[name] for name in SMOOTHNESS} == expected
    # An action moves the point by up to 0.2 along two axes.
    assert 0 < expected["velocity"] <= 0.2 * math.sqrt(2) / 0.1
    row = evaluation_row(NoSteering(), commanded_env(0.5), 300, 12)
    assert {name: row[name] for name in SMOOTHNESS} == expected


def test_without_a_success_there_is_none() -> None:
    assert evaluate(NoSteering(), commanded_env(0.0), 300, 3).summary()["jerk"] is None
    assert math.isnan(evaluation_row(NoSteering(), commanded_env(0.0), 300, 3)["jerk"])


@pytest.mark.slow
def test_meta_world_commands_a_place_that_the_hand_follows() -> None:
    pytest.importorskip("metaworld")
    env = make_vec_steering("zprl/Push-v0", LatentSteering(push_policy(), 0.5), 1, seeded_episodes=True)
    env.seed(0)
    env.reset()
    _, _, _, infos = env.step(np.zeros((1, env.steering.anchor_dim), np.float32))
    (path,) = (info["commanded"] for info in infos)
    hand = env.get_attr("unwrapped")[0].raw_observation[:3]
    assert path.shape == (infos[0]["env_steps"], 1, 3)
    assert np.linalg.norm(path[-1, 0] - hand) < 0.1
    env.close()
