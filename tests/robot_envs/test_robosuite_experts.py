from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

import simulated
from zprl_sb3.robot_envs import robosuite_id
from zprl_sb3.robot_envs.demonstrators import sample_operator
from zprl_sb3.robot_envs.robosuite_executor import OPEN, PAUSE_STEPS, Arm, Operator, downwards, yaw_of
from zprl_sb3.robot_envs.robosuite_experts import ScriptedDemonstrator
from zprl_sb3.settings import load_settings

pytest.importorskip("robosuite")

PERFECT = Operator("better", speed=0.024, hover=0.1, arc=0, jitter=0, pause=0, other_yaw=0, scatter=0, miss=0, drop=0)


def make(task):
    return simulated.make_once(robosuite_id(task))


def demonstrate(task, operator, seed, steps=None):
    """Return the actions of an episode and whether it succeeded."""
    env, rng = make(task), np.random.default_rng(seed)
    env.reset(seed=seed)
    demonstrator = ScriptedDemonstrator(env, operator, rng)
    actions, over, info = [], False, {}
    while not over and len(actions) != steps:
        actions.append(demonstrator.act())
        *_, terminated, truncated, info = env.step(actions[-1])
        over = terminated or truncated
    return np.stack(actions), info["is_success"]


@pytest.mark.parametrize(
    ("task", "seed", "limit"), [("lift", 0, 45), ("lift", 1, 45), ("can", 0, 190), ("can", 1, 190)]
)
def test_a_perfect_operator_succeeds_quickly(task, seed, limit):
    actions, success = demonstrate(task, PERFECT, seed)
    assert success
    assert len(actions) < limit


@pytest.mark.slow
@pytest.mark.parametrize(("task", "limit"), [("square", 190), ("transport", 460)])
@pytest.mark.parametrize("seed", [2, 3])
def test_a_perfect_operator_succeeds_in_the_longer_tasks(task, seed, limit):
    test_a_perfect_operator_succeeds_quickly(task, seed, limit)


@pytest.mark.slow
@pytest.mark.parametrize("quality", ["better", "okay", "worse"])
def test_worse_operators_take_longer(quality):
    mixture = load_settings("collect.yml", "zprl/Can-v0")["operators"]
    operator = sample_operator({quality: mixture[quality]}, np.random.default_rng(0), Operator)
    actions, success = demonstrate("can", operator, 0)
    assert success
    shortest, longest = {"better": (120, 190), "okay": (160, 260), "worse": (230, 400)}[quality]
    assert shortest < len(actions) < longest


def test_actions_are_valid_and_depend_on_the_seed_only():
    operator = replace(PERFECT, arc=0.5, jitter=0.004, pause=0.02, scatter=0.005, other_yaw=0.5)
    actions, _ = demonstrate("lift", operator, 4)
    assert actions.dtype == np.float32
    assert all(make("lift").action_space.contains(action) for action in actions)
    np.testing.assert_array_equal(demonstrate("lift", operator, 4)[0], actions)


def test_a_miss_and_a_drop_cost_another_try():
    tries = []
    for operator in (PERFECT, replace(PERFECT, miss=1), replace(PERFECT, miss=1, drop=1)):
        actions, success = demonstrate("lift", operator, 0)
        assert success
        closes = (np.diff(actions[:, 9]) > 0).sum()
        tries.append(int(closes))
    assert tries == [1, 2, 3]


def test_speed_is_what_the_setpoint_moves_in_a_step():
    slow, _ = demonstrate("lift", replace(PERFECT, speed=0.01), 0, steps=10)
    lengths = np.linalg.norm(np.diff(slow[:, :3], axis=0), axis=1)
    np.testing.assert_allclose(lengths, 0.01, atol=1e-4)


def test_a_pause_holds_the_setpoint():
    still, _ = demonstrate("lift", replace(PERFECT, pause=1.0), 0, steps=2 * PAUSE_STEPS)
    assert not np.diff(still[:, :9], axis=0).any()


def test_an_arc_leads_aside():
    straight, arc = (demonstrate("lift", replace(PERFECT, arc=arc), 3, steps=4)[0] for arc in (0, 0.7))
    way, detour = (actions[-1, :2] - actions[0, :2] for actions in (straight, arc))
    cosine = way @ detour / np.linalg.norm(way) / np.linalg.norm(detour)
    assert np.rad2deg(np.arccos(cosine)) == pytest.approx(35, abs=8)


def test_jitter_has_the_given_size():
    trembling, _ = demonstrate("lift", replace(PERFECT, jitter=0.003, pause=1.0), 0, steps=150)
    assert trembling[:, :3].std(axis=0).mean() == pytest.approx(0.003, rel=0.5)


def test_yaws_are_within_reach_and_look_the_same():
    env, rng = make("lift"), np.random.default_rng(0)
    env.reset(seed=0)
    for other in (0.0, 1.0):
        arm = Arm(env.unwrapped, 0, replace(PERFECT, other_yaw=other), rng)
        for period in (np.pi / 2, np.pi):
            for yaw in np.linspace(-np.pi, np.pi, 9):
                chosen = arm.nearest_yaw(yaw, period)
                assert abs(chosen - arm.home) <= 1.75
                assert np.cos(2 * np.pi * (chosen - yaw) / period) == pytest.approx(1)
                assert other or abs(chosen - arm.home) <= period / 2 + 1e-9


def test_downwards_points_down_and_keeps_its_yaw():
    rotation = downwards(0.7)
    np.testing.assert_allclose(rotation[:, 2], [0, 0, -1], atol=1e-12)
    assert yaw_of(rotation) == pytest.approx(0.7)


def test_an_arm_that_is_done_holds_still():
    env = make("lift")
    env.reset(seed=0)
    arm = Arm(env.unwrapped, 0, PERFECT, np.random.default_rng(0))
    np.testing.assert_array_equal(arm.command(), arm.command())
    assert arm.command()[9] == OPEN


def test_other_environments_are_refused():
    with pytest.raises(ValueError, match="robosuite's tasks only"):
        ScriptedDemonstrator(gym.make("CartPole-v1"), PERFECT, np.random.default_rng(0))
