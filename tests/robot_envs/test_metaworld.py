import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import simulated
from zprl_sb3 import robot_envs
from zprl_sb3.robot_envs import METAWORLD_TASKS, env_id, register_envs
from zprl_sb3.robot_envs.demonstrators import Operator, ScriptedDemonstrator
from zprl_sb3.robot_envs.metaworld import MetaWorldEnv

CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
QUICK = ("push-v3", "door-open-v3", "peg-insert-side-v3")
SHOWN = [("PushWall", camera) for camera in CAMERAS] + [("BoxClose", "corner2")]
PERFECT = Operator("better", noise=0, gain=1, random=0, pause=0, burst=0, bias=0, object_offset=0, goal_offset=0)


def test_every_task_of_metaworld_is_registered():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert set(METAWORLD_TASKS) == set(ALL_V3_ENVIRONMENTS)
    assert {env_id(task) for task in METAWORLD_TASKS} <= set(gym.registry)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("push-v3", "zprl/Push-v0"),
        ("pick-place-v3", "zprl/PickPlace-v0"),
        ("box-close-v3", "zprl/BoxClose-v0"),
        ("peg-insert-side-v3", "zprl/PegInsertSide-v0"),
        ("plate-slide-back-side-v3", "zprl/PlateSlideBackSide-v0"),
    ],
)
def test_ids_are_the_names_in_camel_case(task, expected):
    assert env_id(task) == expected


def test_registering_twice_neither_fails_nor_warns():
    before = dict(gym.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_envs()
    assert gym.registry == before


def test_importing_loads_neither_simulator_nor_torch():
    code = "import sys, zprl_sb3.scripts.collect; print({'torch', 'metaworld', 'mujoco'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_missing_simulator_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(ImportError, match=r'pip install "zprl-sb3\[sim\]"'):
        gym.make("zprl/Push-v0")


@pytest.mark.filterwarnings("ignore:.*Box observation space (minimum|maximum) value is")
@pytest.mark.filterwarnings("ignore:.*not set a.*render")
def test_gymnasiums_own_check():
    check_env(gym.make("zprl/Push-v0").unwrapped, skip_render_check=True)


@pytest.mark.parametrize(
    "task", [task if task in QUICK else pytest.param(task, marks=pytest.mark.slow) for task in METAWORLD_TASKS]
)
def test_a_seed_fixes_the_rollout_bit_by_bit(task):
    simulated.check_seeded_rollouts(gym.make(env_id(task)), gym.make(env_id(task)), steps=20)


@pytest.mark.parametrize("name", ["zprl/BoxClose-v0", "zprl/Push-v0"])
def test_seeds_give_distinct_layouts_and_resets_go_on_from_the_last_seed(name):
    simulated.check_layouts(gym.make(name), seeds=50)


def test_the_global_generator_of_numpy_is_left_alone():
    simulated.check_global_generator(gym.make("zprl/Push-v0"))


def test_the_observation_names_what_it_holds():
    env = gym.make("zprl/Push-v0")
    observation, _ = env.reset(seed=0)
    raw = env.unwrapped.raw_observation
    assert raw.shape == (39,)
    np.testing.assert_allclose(observation["object"], np.append(raw[4:18], raw[36:]), rtol=1e-6)
    np.testing.assert_allclose(observation["proprio"][:3], raw[:3], rtol=1e-6)
    fingers = observation["proprio"][3:].reshape(2, 3)
    np.testing.assert_allclose(fingers.mean(axis=0)[:2], raw[:2], atol=0.01)


def test_the_goal_stays_the_same_for_a_whole_episode():
    # In this task Meta-World's step clips the goal that its reset shows.
    env = gym.make("zprl/BoxClose-v0")
    goal = env.reset(seed=0)[0]["object"][14:]
    np.testing.assert_array_equal(env.step(np.zeros(4, np.float32))[0]["object"][14:], goal)


def test_the_state_is_time_positions_and_velocities():
    env = gym.make("zprl/Push-v0").unwrapped
    env.reset(seed=0)
    before = env.get_state()
    env.step(np.zeros(4, np.float32))
    model = env._simulation.model
    assert before.shape == (1 + model.nq + model.nv,)
    assert env.get_state()[0] - before[0] == pytest.approx(1 / env.metadata["render_fps"])


def test_success_is_the_only_reward_and_ends_the_episode():
    env = gym.make("zprl/Push-v0")
    env.reset(seed=0)
    expert = ScriptedDemonstrator(env, PERFECT, np.random.default_rng(0))
    over, rewards = False, []
    while not over:
        _, reward, terminated, truncated, info = env.step(expert.act())
        assert info["is_success"] is terminated
        rewards.append(reward)
        over = terminated or truncated
    assert terminated
    assert rewards[-1] == 1.0
    assert not any(rewards[:-1])


@pytest.mark.parametrize(
    ("arguments", "limit"), [({}, 200), ({"max_episode_steps": 7}, 7), ({"max_episode_steps": 510}, 510)]
)
def test_the_time_limit_truncates(arguments, limit):
    env = gym.make("zprl/Push-v0", **arguments)
    env.reset(seed=0)
    for step in range(1, limit + 1):
        _, reward, terminated, truncated, info = env.step(np.zeros(4, np.float32))
        assert truncated is (step == limit)
    assert (terminated, reward, info["is_success"]) == (False, 0.0, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "push"}, "no task 'push'"),
        ({"task": "push-v3", "observation": "sound"}, "not available"),
        ({"task": "push-v3", "render_mode": "human"}, "render_mode"),
        ({"task": "push-v3", "cameras": ["top"]}, "no camera 'top'; this model has topview, corner"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        MetaWorldEnv(**arguments)


def test_an_unstable_simulation_is_not_hidden():
    simulated.check_instability(MetaWorldEnv("push-v3"), np.zeros(4, np.float32), r"push-v3.*step 2", steps=1)


def test_rendering_is_off_without_a_mode():
    env = MetaWorldEnv("push-v3")
    env.reset(seed=0)
    assert env.render() is None


@pytest.mark.slow
def test_frames_are_upright():
    env = MetaWorldEnv("push-v3", render_mode="rgb_array")
    env.reset(seed=0)
    try:
        frame = env.render()
    except Exception as error:  # MuJoCo raises whatever its OpenGL loader does
        pytest.skip(f"no offscreen rendering on this machine: {error}")
    assert frame.shape == (480, 480, 3)
    assert frame.dtype == np.uint8
    # Above is the plain grey wall, below the table: an upside-down frame has them the other way round.
    assert frame[:100].std() < frame[-200:].std()
    env.close()


def test_cameras_can_be_chosen():
    cameras = ["topview", "corner3"]
    simulated.check_cameras(gym.make("zprl/Push-v0", observation="image", cameras=cameras), cameras)


@pytest.mark.parametrize(("task", "camera"), SHOWN)
def test_every_camera_shows_what_it_did_when_we_looked(task, camera):
    simulated.check_frame(gym.make(f"zprl/{task}-v0", cameras=[camera]), camera, f"{task}_{camera}.png")


def test_import_simulator_returns_the_module():
    assert robot_envs.import_simulator("json").__name__ == "json"


def test_touch_is_what_metaworld_says():
    sawyer = pytest.importorskip("metaworld.sawyer_xyz_env").SawyerXYZEnv
    env = gym.make("zprl/PickPlace-v0")
    env.reset(seed=3)
    demonstrator = ScriptedDemonstrator(env, PERFECT, np.random.default_rng(0))
    simulation = env.unwrapped._simulation
    geom = simulation._get_id_main_object()
    seen = []
    for _ in range(80):
        *_, terminated, truncated, _ = env.step(demonstrator.act())
        seen.append(simulation.touching_object(geom))
        assert seen[-1] == sawyer.touching_object(simulation, geom)
        if terminated or truncated:
            break
    assert set(seen) == {True, False}
