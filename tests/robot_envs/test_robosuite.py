import logging
import os
import sys
import types
import weakref

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import simulated
from simulated import make_once as make
from zprl_sb3.robot_envs import ROBOSUITE_TASKS, robosuite_id
from zprl_sb3.robot_envs import robosuite as robosuite_module
from zprl_sb3.robot_envs.rendering import RenderingError
from zprl_sb3.robot_envs.robosuite import TASKS, RobosuiteEnv, import_robosuite
from zprl_sb3.robot_envs.rotations import matrix_of_6d, quaternion_of, rotation_6d

pytest.importorskip("robosuite")

# Of every image that Table VI of the paper lists.
CAMERAS = [(robosuite_id(task), camera) for task in TASKS for camera in TASKS[task].cameras]


def hold(env):
    """The action that keeps every hand where it is, open."""
    poses = [env.unwrapped.data.site(f"gripper{k}_right_grip_site") for k in range(len(env.unwrapped.task.homes))]
    return np.concatenate(
        [[*pose.xpos, *rotation_6d(pose.xmat.reshape(3, 3)), -1.0] for pose in poses], dtype=np.float32
    )


def around(env, rng, steps):
    """Random movements about where the hands are."""
    start = hold(env)
    reach = np.tile([0.1] * 3 + [0.05] * 6 + [2.0], len(start) // 10)
    return (start + reach * rng.uniform(0, 1, (steps, len(start)))).astype(np.float32)


def down(env, rng, steps):
    """The way down."""
    action = hold(env)
    action[2] -= 0.1
    return np.tile(action, (steps, 1))


def test_every_task_is_registered():
    assert set(TASKS) == set(ROBOSUITE_TASKS)
    assert {task: gym.spec(robosuite_id(task)).max_episode_steps for task in TASKS} == {
        "lift": 200,
        "can": 400,
        "square": 400,
        "transport": 700,
    }


@pytest.mark.parametrize(
    ("task", "object_size", "arms"), [("lift", 10, 1), ("can", 14, 1), ("square", 14, 1), ("transport", 41, 2)]
)
def test_sizes_are_robomimics(task, object_size, arms):
    env = make(robosuite_id(task))
    observation, _ = env.reset(seed=0)
    assert {key: value.shape for key, value in observation.items()} == {
        "object": (object_size,),
        "proprio": (9 * arms,),
    }
    assert env.action_space.shape == (10 * arms,)


@pytest.mark.filterwarnings("ignore:.*Box observation space (minimum|maximum) value is")
@pytest.mark.filterwarnings("ignore:.*not set a.*render")
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space")
@pytest.mark.parametrize("observation", ["state", "image"])
def test_gymnasiums_own_check(observation):
    check_env(make("zprl/Lift-v0", observation=observation).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_fixes_the_rollout_bit_by_bit(task):
    simulated.check_seeded_rollouts(make(robosuite_id(task)), steps=8, actions=around)


def test_another_environment_gives_the_same_rollout():
    simulated.check_seeded_rollouts(make("zprl/Lift-v0"), gym.make("zprl/Lift-v0"), steps=8, actions=around)


def test_seeds_give_distinct_layouts_and_resets_go_on_from_the_last_seed():
    simulated.check_layouts(make("zprl/Can-v0"), seeds=20)


@pytest.mark.parametrize(("y", "height", "lies"), [(-0.25, 0.844, True), (-0.25, 1.0, False), (0.2, 0.844, False)])
def test_a_can_that_lies_where_it_stood_ends_an_episode_only_where_asked_for(y, height, lies):
    for asked in (False, True):
        env = make("zprl/Can-v0", terminate_on_failure=asked)
        env.reset(seed=0)
        action = hold(env)
        assert env.step(action)[2] is False
        pose = env.unwrapped.data.joint("Can_joint0").qpos
        pose[1:] = [y, height, np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0]
        _, reward, terminated, truncated, info = env.step(action)
        assert (reward, terminated, truncated) == (0.0, asked and lies, False)
        assert info["is_success"] is False


def test_the_global_generator_of_numpy_is_left_alone():
    simulated.check_global_generator(make("zprl/Lift-v0"))


@pytest.mark.parametrize(("task", "name"), [("can", "Can"), ("square", "SquareNut")])
def test_the_first_observation_is_complete_and_in_robomimics_order(task, name):
    env = make(robosuite_id(task))
    observed = env.reset(seed=0)[0]["object"]
    simulation = env.unwrapped.simulation
    body = env.unwrapped.data.body(simulation.obj_body_id[name])
    np.testing.assert_allclose(observed[:3], body.xpos, atol=1e-6)
    np.testing.assert_allclose(observed[3:7], np.roll(body.xquat, -1), atol=1e-6)
    # Seen from the hand: as far away as in the world.
    hand = env.unwrapped.data.site("gripper0_right_grip_site").xpos
    assert np.linalg.norm(observed[7:10]) == pytest.approx(np.linalg.norm(body.xpos - hand), abs=1e-5)
    assert np.linalg.norm(observed[10:14]) == pytest.approx(1, abs=1e-5)


def test_proprioception_is_the_grip_site_and_the_fingers():
    env = make("zprl/Transport-v0")
    proprio = env.reset(seed=0)[0]["proprio"].reshape(2, 9)
    for k in range(2):
        site = env.unwrapped.data.site(f"gripper{k}_right_grip_site")
        np.testing.assert_allclose(proprio[k, :3], site.xpos, atol=1e-6)
        assert abs(proprio[k, 3:7] @ quaternion_of(site.xmat.reshape(3, 3))) == pytest.approx(1, abs=1e-5)
        assert proprio[k, 7] > 0 > proprio[k, 8]


def test_quaternions_do_not_jump():
    env = make("zprl/Lift-v0")
    env.reset(seed=0)
    start, before = hold(env), None
    rotation = matrix_of_6d(start[3:9])
    for k in range(30):
        # To and fro through the pose with w = 0, where the sign of the quaternion is arbitrary.
        angle = 0.4 * np.sin(k / 4)
        tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
        start[3:9] = rotation_6d(tilt @ rotation)
        quaternion = env.step(start)[0]["proprio"][3:7]
        assert before is None or np.linalg.norm(quaternion - before) < 0.2
        before = quaternion


@pytest.mark.parametrize("task", ["lift", "transport"])
def test_the_hand_goes_where_the_action_says(task):
    env = make(robosuite_id(task))
    env.reset(seed=1)
    action = hold(env)
    turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    for arm in action.reshape(-1, 10):
        arm[:3] += [0.05, -0.03, 0.04]
        arm[3:9] = rotation_6d(turn @ matrix_of_6d(arm[3:9]))
    for _ in range(30):
        env.step(action)
    reached = hold(env)
    np.testing.assert_allclose(reached, action, atol=0.01)


def test_an_action_without_rotation_is_refused():
    env = make("zprl/Lift-v0")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="no rotation"):
        env.step(np.zeros(10, np.float32))


def test_parallel_rows_leave_the_rotation_aimed_at_before():
    env = make("zprl/Lift-v0")
    env.reset(seed=0)
    action = hold(env)
    corner = action.copy()
    corner[3:9] = [-1, 1, 1, 1, -1, -1]  # where clipping to the bounds has led a policy
    aims = []
    for rotation in (corner, action, corner):
        env.step(rotation)
        aims.append(env.unwrapped.simulation.robots[0].part_controllers["right"].goal_ori.copy())
    np.testing.assert_allclose(aims[0], matrix_of_6d(action[3:9]), atol=1e-3)  # the first pose
    np.testing.assert_array_equal(aims[1], aims[2])


def test_the_state_is_time_positions_and_velocities():
    env = make("zprl/Lift-v0").unwrapped
    env.reset(seed=0)
    assert env.get_state().shape == (1 + env.model.nq + env.model.nv,)


def test_stored_states_show_the_scene_again():
    simulated.check_stored_states(make("zprl/Lift-v0", observation="image"), down)


def test_the_time_limit_truncates():
    env = gym.wrappers.TimeLimit(make("zprl/Lift-v0").unwrapped, 3)
    env.reset(seed=0)
    ends = [env.step(hold(env))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_an_unstable_simulation_is_not_hidden():
    env = make("zprl/Lift-v0")
    env.reset(seed=0)
    simulated.check_instability(env, hold(env), r"lift.*unstable")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "Lift"}, "no robosuite task 'Lift'; there is lift, can"),
        ({"task": "lift", "observation": "sound"}, "'sound' is not available; there is state, image"),
        ({"task": "lift", "render_mode": "human"}, "render_mode"),
        ({"task": "lift", "render_quality": "good"}, "render_quality is 'fast' or 'full', not 'good'"),
        ({"task": "lift", "cameras": ["top"]}, "no camera 'top'; this model has frontview"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RobosuiteEnv(**arguments)


def test_a_missing_simulator_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "robosuite", None)
    with pytest.raises(ImportError, match=r'pip install "zprl-sb3\[sim\]"'):
        gym.make("zprl/Lift-v0")


def test_another_version_of_robosuite_is_refused(monkeypatch):
    old = types.ModuleType("robosuite")
    old.__version__ = "1.4.1"
    monkeypatch.setitem(sys.modules, "robosuite", old)
    with pytest.raises(ImportError, match=r"robosuite 1\.4\.1 is installed, but version 1\.5"):
        import_robosuite()


def test_what_it_asserts_of_the_gpus_says_what_to_set(monkeypatch):
    def refuse(name):
        raise AssertionError("one of the device id specified")

    monkeypatch.setattr(robosuite_module, "import_simulator", refuse)
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(RenderingError, match=r"MUJOCO_EGL_DEVICE_ID='1' with CUDA_VISIBLE_DEVICES='0': set"):
        import_robosuite()


@pytest.mark.parametrize("named", [None, "disable"])
def test_its_import_leaves_the_renderers_name_alone(monkeypatch, named):
    def overwrite(name):
        os.environ["MUJOCO_GL"] = "egl"
        return types.SimpleNamespace(__version__="1.5.2")

    monkeypatch.setattr(robosuite_module, "import_simulator", overwrite)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    if named is None:
        monkeypatch.delenv("MUJOCO_GL")
    else:
        monkeypatch.setenv("MUJOCO_GL", named)
    import_robosuite()
    assert os.environ.get("MUJOCO_GL") == named


def test_its_notices_are_silenced_its_errors_are_not(caplog):
    import_robosuite()
    logger = logging.getLogger("robosuite_logs")
    logger.warning("a notice")
    logger.error("an error")
    assert [record.message for record in caplog.records if record.name == logger.name] == ["an error"]


def test_videos_have_a_larger_view():
    env = make("zprl/Lift-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (480, 480, 3)
    assert make("zprl/Lift-v0").unwrapped.render() is None


def test_a_closed_environment_frees_its_simulation():
    env = gym.make("zprl/Lift-v0")
    env.reset(seed=0)
    env.step(hold(env))
    data = weakref.ref(env.unwrapped.data)
    env.close()
    assert data() is None


def test_cameras_can_be_chosen():
    simulated.check_cameras(gym.make("zprl/Lift-v0", observation="image", cameras=["sideview"]), ["sideview"])


@pytest.mark.parametrize(("env_id", "camera"), CAMERAS)
def test_every_camera_shows_what_it_did_when_we_looked(env_id, camera):
    simulated.check_frame(make(env_id), camera, f"{env_id[5:-3]}_{camera}.png")


def test_what_is_commanded_is_the_place_of_the_action() -> None:
    env = make(robosuite_id("transport"))
    env.reset(seed=0)
    action = env.action_space.sample()
    env.step(action)
    np.testing.assert_allclose(env.unwrapped.commanded(), action.reshape(2, 10)[:, :3], rtol=1e-6)
