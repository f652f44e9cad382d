import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import simulated
from zprl_sb3.robot_envs import ADROIT_TASKS, adroit_id
from zprl_sb3.robot_envs.adroit import TASKS, AdroitEnv
from zprl_sb3.wrappers import ActionChunk

pytest.importorskip("gymnasium_robotics")

SIZES = {"door": (15, 28), "hammer": (22, 26), "pen": (21, 24), "relocate": (15, 30)}


def make(task, **kwargs):
    return simulated.make_once(adroit_id(task), **kwargs)


def make_anew(task, **kwargs):
    return gym.make(adroit_id(task), **kwargs)


def simulators_own(task):
    """The task as gymnasium-robotics makes it."""
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    return gym.make(f"AdroitHand{task.capitalize()}-v1").unwrapped


def random_actions(task, steps, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, SIZES[task][1])).astype(np.float32)


def test_every_task_is_registered_with_its_limit():
    assert set(TASKS) == set(ADROIT_TASKS)
    assert {task: gym.spec(adroit_id(task)).max_episode_steps for task in TASKS} == {
        "door": 100,
        "hammer": 100,
        "pen": 75,
        "relocate": 100,
    }


@pytest.mark.parametrize("task", TASKS)
def test_the_observation_is_the_simulators_own_in_two_parts(task):
    env, own = make(task), simulators_own(task)
    observation, _ = env.reset(seed=4)
    raw, _ = own.reset(seed=4)
    np.testing.assert_array_equal(env.unwrapped.raw_observation, raw)
    size, actions = SIZES[task]
    assert {key: value.shape for key, value in observation.items()} == {"object": (size,), "proprio": (24,)}
    assert env.action_space.shape == (actions,)
    for action in random_actions(task, 5):
        observation, *_ = env.step(action)
        for _ in range(2):
            raw, *_ = own.step(action)
    np.testing.assert_array_equal(env.unwrapped.raw_observation, raw)
    np.testing.assert_allclose(np.sort(np.concatenate([*observation.values()])), np.sort(raw), atol=1e-6)
    first = env.unwrapped.model.joint("WRJ1").qposadr[0]
    np.testing.assert_allclose(observation["proprio"], env.unwrapped.data.qpos[first : first + 24], atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*Box observation space (minimum|maximum) value is")
@pytest.mark.filterwarnings("ignore:.*not set a.*render")
@pytest.mark.parametrize("observation", ["state", "image"])
@pytest.mark.parametrize("task", TASKS)
def test_gymnasiums_own_check(task, observation):
    check_env(make(task, observation=observation).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_fixes_the_rollout_bit_by_bit(task):
    simulated.check_seeded_rollouts(make(task), make_anew(task), steps=15)


def test_seeds_give_distinct_layouts_and_resets_go_on_from_the_last_seed():
    simulated.check_layouts(make("pen"), seeds=20)


def scene(qvel=(0.0,), angle=0.0, **places):
    """What the rewards read of MuJoCo's state, made up."""
    positions = {name: SimpleNamespace(xpos=np.array(place, dtype=float)) for name, place in places.items()}
    joint = SimpleNamespace(qpos=np.array([angle]))
    return SimpleNamespace(
        site=positions.__getitem__, body=positions.__getitem__, joint=lambda _: joint, qvel=np.array(qvel)
    )


@pytest.mark.parametrize(("angle", "bonus"), [(-0.2, 0), (0.2, 0), (0.21, 2), (1.01, 10), (1.36, 20)])
def test_the_doors_reward_by_hand(angle, bonus):
    data = scene(qvel=[3.0, 4.0], angle=angle, S_grasp=[0, 0, 0], S_handle=[0, 0.3, 0.4])
    # Distance 0.5, which is punished, and squared velocities 25.
    assert TASKS["door"].reward(data) == pytest.approx(-0.05 - 0.1 * (angle - 1.57) ** 2 - 25e-5 + bonus)


@pytest.mark.parametrize(
    ("height", "left", "bonus"), [(0.04, 0.03, 0), (0.05, 0.03, 2), (0.05, 0.019, 27), (0.05, 0.009, 102)]
)
def test_the_hammers_reward_by_hand(height, left, bonus):
    data = scene(
        qvel=[3.0, 4.0],
        Object=[0, 0, height],
        S_grasp=[0.1, 0, height],
        tool=[0, 0.2, height],
        S_target=[0, 0.5, height],
        nail_goal=[0, 0.5 + left, height],
    )
    assert TASKS["hammer"].reward(data) == pytest.approx(-0.01 - 0.3 - 10 * left - 0.05 + bonus)


@pytest.mark.parametrize(
    ("distance", "angle", "height", "bonus"),
    [(0.07, 0.3, 0.2, 60), (0.07, 0.4, 0.2, 10), (0.07, 0.5, 0.2, 0), (0.08, 0.3, 0.2, 0), (0.08, 0.3, 0.07, -5)],
)
def test_the_pens_reward_by_hand(distance, angle, height, bonus):
    data = scene(
        Object=[0, 0, height],
        eps_ball=[0, distance, height],
        object_top=[0, 0, 0.2],
        object_bottom=[0, 0, 0],
        target_top=[0.1 * np.sin(angle), 0, 0.1 * np.cos(angle)],
        target_bottom=[0, 0, 0],
    )
    assert TASKS["pen"].reward(data) == pytest.approx(np.cos(angle) - distance + bonus)


@pytest.mark.parametrize(
    ("height", "left", "expected"),
    [(0.03, 0.2, -0.01), (0.05, 0.2, -0.01 + 1 - 0.15 - 0.1), (0.05, 0.04, -0.01 + 1 - 0.07 - 0.02 + 30)],
)
def test_relocates_reward_by_hand(height, left, expected):
    data = scene(Object=[0, 0, height], S_grasp=[-0.1, 0, height], target=[left, 0, height])
    assert TASKS["relocate"].reward(data) == pytest.approx(expected)


@pytest.mark.parametrize(("task", "scale"), [("door", 1 / 20), ("hammer", 1 / 100), ("pen", 1 / 50)])
def test_rewards_of_two_simulator_steps_are_scaled_and_summed(task, scale):
    env, own = make(task), simulators_own(task)
    env.reset(seed=1)
    own.reset(seed=1)
    for action in random_actions(task, 5):
        expected = 0.0
        for _ in range(2):
            own.step(action)
            expected += scale * TASKS[task].reward(own.data)
        assert env.step(action)[1] == pytest.approx(expected, abs=1e-12)


def open_door(env):
    env.data.joint("door_hinge").qpos[0] = 1.5


def test_success_is_to_hold_the_goal_for_25_steps_and_ends_nothing():
    env = make("door")
    env.reset(seed=0)
    for step in range(1, 101):
        if step > 10:
            open_door(env.unwrapped)
        _, reward, terminated, truncated, info = env.step(np.zeros(28, np.float32))
        assert info["is_success"] is (step >= 35)
        assert (terminated, truncated) == (False, step == 100)
        assert (reward > 1.9) is (step > 10)
    assert env.reset(seed=0)[1]["is_success"] is False
    open_door(env.unwrapped)
    assert env.step(np.zeros(28, np.float32))[4]["is_success"] is False


def test_success_lasts_once_it_is_reached_and_the_steps_need_not_follow_each_other():
    env = make("door").unwrapped
    env.reset(seed=0)
    seen = []
    for step in range(60):
        env.data.joint("door_hinge").qpos[0] = 1.5 if step % 2 == 0 else 0.0
        seen.append(env.step(np.zeros(28, np.float32))[4]["is_success"])
    assert seen.index(True) == 48
    assert all(seen[48:])


def test_the_pen_needs_20_steps():
    assert {task: TASKS[task].success_steps for task in TASKS} == {"door": 25, "hammer": 25, "pen": 20, "relocate": 25}


def fail(env, task):
    if task == "door":
        env.data.joint("door_hinge").qpos[0] = -0.3
    elif task == "pen":
        env.data.joint("OBJTx").qpos[0] = 0.2  # It points down.


@pytest.mark.parametrize(("task", "ends"), [("door", True), ("pen", True), ("hammer", False)])
def test_failures_end_an_episode_only_where_asked_for(task, ends):
    for asked in (False, True):
        env = make(task, terminate_on_failure=asked)
        env.reset(seed=0)
        action = np.zeros(env.action_space.shape, np.float32)
        assert env.step(action)[2] is False
        fail(env.unwrapped, task)
        _, _, terminated, truncated, info = env.step(action)
        assert (terminated, truncated) == (asked and ends, False)
        assert info["is_success"] is False


def test_the_limit_is_an_argument():
    env = gym.make("zprl/AdroitPen-v0", max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(np.zeros(24, np.float32))[3] for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize("task", TASKS)
def test_stored_states_show_the_scene_again_in_another_episode(task):
    simulated.check_stored_states(make(task, observation="image").unwrapped, elsewhere=True)


@pytest.mark.parametrize("task", TASKS)
def test_a_set_state_can_be_observed(task):
    env = make(task).unwrapped
    env.reset(seed=0)
    raw, state = env.raw_observation, env.get_state()
    env.reset(seed=1)
    env.set_state(state)
    np.testing.assert_allclose(env.raw_observation, raw, atol=1e-9)


@pytest.mark.parametrize("task", TASKS)
def test_the_camera_shows_what_it_did_when_we_looked(task):
    camera = TASKS[task].camera
    simulated.check_frame(make(task, observation="image"), camera, f"Adroit{task.capitalize()}_{camera}.png")


def test_cameras_can_be_chosen():
    simulated.check_cameras(make("pen", observation="image", cameras=("fixed", "view_1")), ["fixed", "view_1"])


def test_a_chunk_draws_once_what_each_step_would_have_shown():
    stepped, chunked = (make_anew("pen", observation="image", max_episode_steps=10) for _ in range(2))
    chunked = ActionChunk(chunked, 4)
    first = [env.reset(seed=1)[0] for env in (stepped, chunked)]
    actions = random_actions("pen", 12)
    shown = [stepped.step(action)[0] for action in actions[:10]]
    frames = []
    cameras = chunked.unwrapped._drawn
    draw = cameras.frame
    cameras.frame = lambda *arguments: frames.append(1) or draw(*arguments)
    seen = [chunked.step(actions[k : k + 4])[0] for k in (0, 4, 8)]
    for one, other in zip([first[0], shown[3], shown[7], shown[9]], [first[1], *seen], strict=True):
        for key, values in one.items():
            np.testing.assert_array_equal(values, other[key])
    assert len(frames) == 3


def test_videos_have_a_larger_view():
    env = make("hammer", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (480, 480, 3)
    assert make("hammer").unwrapped.render() is None


def test_an_unstable_simulation_is_not_hidden():
    simulated.check_instability(make("door"), np.zeros(28, np.float32), r"door.*step 1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "Door"}, "no Adroit task 'Door'; there is door, hammer"),
        ({"task": "door", "observation": "sound"}, "'sound' is not available; there is state, image"),
        ({"task": "door", "render_mode": "human"}, "render_mode"),
        ({"task": "door", "render_quality": "good"}, "render_quality is 'fast' or 'full', not 'good'"),
        ({"task": "door", "cameras": ["view_1"]}, "no camera 'view_1'; this model has fixed, vil_camera, top"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdroitEnv(**arguments)


def test_a_missing_simulator_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.adroit_hand.adroit_door", None)
    with pytest.raises(ImportError, match=r'pip install "zprl-sb3\[sim\]"'):
        gym.make("zprl/AdroitDoor-v0")


def test_importing_loads_no_simulator_and_making_prints_no_notice():
    code = (
        "import sys, gymnasium as gym, zprl_sb3.robot_envs.adroit as adroit, zprl_sb3.robot_envs.dapg;"
        "print({'torch', 'gymnasium_robotics', 'mujoco'} & set(sys.modules)); adroit.AdroitEnv('door')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
    assert "AdroitHand" not in result.stderr
