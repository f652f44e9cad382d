from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from zprl_sb3.robot_envs.demonstrators import PAUSE_STEPS, Operator, ScriptedDemonstrator, sample_operator
from zprl_sb3.settings import load_settings

PERFECT = Operator("better", noise=0, gain=1, random=0, pause=0, burst=0, bias=0, object_offset=0, goal_offset=0)
MIXTURE = load_settings("collect.yml", "default")["operators"]


@pytest.fixture(scope="module")
def env():
    return gym.make("zprl/Push-v0")


def actions(env, operator, seed=0, steps=30):
    env.reset(seed=0)
    demonstrator = ScriptedDemonstrator(env, operator, np.random.default_rng(seed))
    taken = []
    for _ in range(steps):
        taken.append(demonstrator.act())
        env.step(taken[-1])
    return np.stack(taken)


def test_the_mixture_has_three_classes_in_equal_parts():
    rng = np.random.default_rng(0)
    qualities = [sample_operator(MIXTURE, rng, Operator).quality for _ in range(600)]
    for quality in ("better", "okay", "worse"):
        assert 150 < qualities.count(quality) < 250


def test_parameters_are_drawn_from_their_ranges():
    entry = {**MIXTURE["better"], "noise": [0.1, 0.2], "gain": 0.5, "share": 3}
    operator = sample_operator({"better": entry}, np.random.default_rng(0), Operator)
    assert 0.1 <= operator.noise <= 0.2
    assert operator.gain == 0.5


def test_the_same_seed_draws_the_same_operator():
    one, two = (sample_operator(MIXTURE, np.random.default_rng(4), Operator) for _ in range(2))
    assert one == two


@pytest.mark.parametrize("value", ["much", [1, 2, 3], [0.3, 0.1], None, float("nan")])
def test_a_wrong_range_is_named(value):
    with pytest.raises(ValueError, match="'better' needs 'noise'"):
        sample_operator({"better": {**MIXTURE["better"], "noise": value}}, np.random.default_rng(0), Operator)


def test_a_missing_parameter_is_named():
    entry = {key: value for key, value in MIXTURE["better"].items() if key != "gain"}
    with pytest.raises(ValueError, match="'better' needs 'gain'"):
        sample_operator({"better": entry}, np.random.default_rng(0), Operator)


def test_an_unknown_parameter_is_named():
    with pytest.raises(ValueError, match=r"'better' has no 'speed'; it has share, noise"):
        sample_operator({"better": {**MIXTURE["better"], "speed": 1}}, np.random.default_rng(0), Operator)


@pytest.mark.parametrize("share", [0, -1])
def test_some_share_must_be_positive(share):
    with pytest.raises(ValueError, match="shares"):
        sample_operator({"better": {**MIXTURE["better"], "share": share}}, np.random.default_rng(0), Operator)


def test_actions_are_valid_and_depend_on_the_seed_only(env):
    operator = replace(PERFECT, noise=0.3, random=0.1, burst=0.05, pause=0.05, bias=0.1, object_offset=0.02)
    taken = actions(env, operator)
    assert taken.dtype == np.float32
    assert all(env.action_space.contains(action) for action in taken)
    np.testing.assert_array_equal(actions(env, operator), taken)
    assert (actions(env, operator, seed=1) != taken).any()


def test_a_perfect_operator_does_not_use_chance(env):
    np.testing.assert_array_equal(actions(env, PERFECT, seed=0), actions(env, PERFECT, seed=1))


def test_gain_slows_the_movement_but_not_the_grip(env):
    perfect, slow = actions(env, PERFECT, steps=1), actions(env, replace(PERFECT, gain=0.5), steps=1)
    np.testing.assert_allclose(slow[0, :3], 0.5 * perfect[0, :3], rtol=1e-6)
    assert slow[0, 3] == perfect[0, 3]


def test_a_pause_holds_the_hand_still(env):
    taken = actions(env, replace(PERFECT, pause=1.0), steps=PAUSE_STEPS)
    assert not taken[:, :3].any()


def test_bursts_and_random_actions_ignore_the_expert(env):
    for operator in (replace(PERFECT, burst=1.0), replace(PERFECT, random=1.0)):
        taken = actions(env, operator, steps=100)
        assert abs(taken.mean()) < 0.15
        assert taken.std() == pytest.approx(1 / np.sqrt(3), abs=0.05)


@pytest.mark.parametrize("offset", ["object_offset", "goal_offset"])
def test_an_offset_is_one_error_for_the_whole_episode(env, offset):
    env.reset(seed=0)
    demonstrator = ScriptedDemonstrator(env, replace(PERFECT, **{offset: 0.05}), np.random.default_rng(0))
    seen = []
    demonstrator._policy.get_action = lambda raw: seen.append(raw) or np.zeros(4)
    for _ in range(3):
        demonstrator.act()
    errors = np.stack(seen) - env.unwrapped.raw_observation
    np.testing.assert_array_equal(errors[0], errors[2])
    changed = {"object_offset": [4, 5, 6, 22, 23, 24], "goal_offset": [36, 37, 38]}[offset]
    assert np.flatnonzero(errors[0]).tolist() == changed


def test_an_offset_makes_the_demonstrator_worse(env):
    def successes(operator):
        count = 0
        for seed in range(6):
            env.reset(seed=seed)
            demonstrator = ScriptedDemonstrator(env, operator, np.random.default_rng(seed))
            over = False
            while not over:
                *_, terminated, truncated, info = env.step(demonstrator.act())
                over = terminated or truncated
            count += info["is_success"]
        return count

    assert successes(PERFECT) == 6
    assert successes(replace(PERFECT, object_offset=0.03)) < 4


def test_other_environments_have_no_demonstrator():
    with pytest.raises(ValueError, match="Meta-World's tasks only"):
        ScriptedDemonstrator(gym.make("CartPole-v1"), PERFECT, np.random.default_rng(0))
