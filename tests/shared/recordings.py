"""Data sets as other projects write them, recorded with the real simulators. Import it as ``recordings``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np

from simulated import make_once
from zprl_sb3.robot_envs import robosuite_id
from zprl_sb3.robot_envs.robosuite import TASKS, RobosuiteEnv, import_robosuite
from zprl_sb3.robot_envs.robosuite_executor import Operator
from zprl_sb3.robot_envs.robosuite_experts import ScriptedDemonstrator
from zprl_sb3.robot_envs.rotations import matrix_of_6d, rotation_vector

PERFECT = Operator("better", speed=0.024, hover=0.1, arc=0, jitter=0, pause=0, other_yaw=0, scatter=0, miss=0, drop=0)
# What robosuite 1.4's load_controller_config(default_controller="OSC_POSE") returns, and older files hold.
OLD_CONTROLLER: dict[str, Any] = json.loads("""{
    "type": "OSC_POSE", "input_max": 1, "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5], "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150, "damping_ratio": 1, "impedance_mode": "fixed", "kp_limits": [0, 300], "damping_ratio_limits": [0, 10],
    "position_limits": null, "orientation_limits": null, "uncouple_pos_ori": true, "control_delta": true,
    "interpolation": null, "ramp_ratio": 0.2
}""")


def robosuite_env(task: str, copy: int = 0) -> RobosuiteEnv:
    """Return a task for a test to reset.

    :param task: ``"lift"`` …
    :param copy: Another number for another environment
    """
    env = make_once(robosuite_id(task), copy, render_quality="full").unwrapped
    assert isinstance(env, RobosuiteEnv)
    return env


def reset_for_robosuite(env: RobosuiteEnv, seed: int, absolute: bool, in_base: bool) -> None:
    """Start an episode whose ``simulation`` reads actions as robosuite's own environments do."""
    env.reset(seed=seed)  # It makes new controllers.
    for robot in env.simulation.robots:
        controller = robot.composite_controller.part_controllers["right"]
        controller.input_type = "absolute" if absolute else "delta"
        controller.input_ref_frame = "base" if in_base else "world"


def new_controller(**changes: Any) -> dict[str, Any]:
    """Return robosuite 1.5's configuration of a Panda, with changes of its arm."""
    config = dict(import_robosuite().load_composite_controller_config(robot="Panda"))
    config["body_parts"]["right"].update(changes)
    return config


def hand(env: RobosuiteEnv, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return position and rotation of a grip site."""
    site = env.data.site(f"gripper{index}_right_grip_site")
    return site.xpos.copy(), site.xmat.reshape(3, 3).copy()


def raw_action(goal: np.ndarray, env: RobosuiteEnv, absolute: bool, frame: np.ndarray) -> np.ndarray:
    """Return robosuite's action (7,) that aims at a pose, or as far towards it as one relative action goes."""
    position, rotation = goal[:3], matrix_of_6d(goal[3:9])
    if absolute:
        return np.array([*position, *rotation_vector(rotation), goal[9]])
    here, turned = hand(env)
    move = frame.T @ (position - here) / 0.05
    turn = rotation_vector(frame.T @ rotation @ turned.T @ frame) / 0.5
    return np.array([*move / max(1, np.abs(move).max()), *turn / max(1, np.abs(turn).max()), goal[9]])


def record_robomimic(
    path: Path,
    episodes: int = 2,
    steps: int = 60,
    old: bool = False,
    absolute: bool = False,
    in_base: bool = False,
    images: bool = False,
) -> Path:
    """Record lift, by an expert who gives robosuite's own actions, and write it in robomimic's layout.

    :param path: Where to
    :param episodes: How many
    :param steps: At most so many a episode, which ends two steps after success
    :param old: Describe it as robosuite 1.4 did: another controller configuration, another order of the object state
    :param absolute: Absolute actions, not relative ones
    :param in_base: In the frame of the robot's base, which robosuite 1.4 could not
    :param images: Store what the cameras see
    """
    env = robosuite_env("lift")
    controller = OLD_CONTROLLER | {"control_delta": not absolute}
    if not old:
        frame, kind = ("base" if in_base else "world"), ("absolute" if absolute else "delta")
        controller = new_controller(input_ref_frame=frame, input_type=kind)
    kwargs = {"robots": ["Panda"], "controller_configs": controller, "control_freq": 20, "reward_shaping": False}
    env_args = {"env_name": "Lift", "env_version": "1.4.1" if old else "1.5.2", "type": 1, "env_kwargs": kwargs}
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        for k in range(episodes):
            _record_lift(env, data.create_group(f"demo_{k}"), k, steps, (old, absolute, in_base, images))
        data.attrs.update(env_args=json.dumps(env_args), total=sum(len(demo["actions"]) for demo in data.values()))
        file["mask/better"] = np.array(["demo_0"], dtype="S")
        file["mask/train"] = np.array([f"demo_{k}" for k in range(episodes)], dtype="S")
    return path


def _record_lift(env: RobosuiteEnv, group: h5py.Group, seed: int, steps: int, how: tuple[bool, ...]) -> None:
    old, absolute, in_base, images = how
    reset_for_robosuite(env, seed, absolute, in_base)
    expert, simulation = ScriptedDemonstrator(env, PERFECT, np.random.default_rng(seed)), env.simulation
    base = simulation.robots[0].composite_controller.get_controller_base_pose("right")[1]
    observed, rows = simulation._get_observations(force_update=True), []
    seen: list[dict[str, Any]] = []
    while len(rows) < steps and sum(row["rewards"] for row in rows) < 2:
        seen.append(_robomimic_observation(env, observed, old, images))
        row = {"states": env.get_state()}
        row["actions"] = raw_action(expert.act(), env, absolute, base if in_base else np.eye(3))
        observed, row["rewards"], *_ = simulation.step(row["actions"])
        rows.append(row | {"dones": int(row["rewards"] > 0)})
    group.attrs.update(num_samples=len(rows), model_file=simulation.sim.model.get_xml())
    for key in rows[0]:
        group[key] = np.array([row[key] for row in rows])
    for key in seen[0]:
        group[f"obs/{key}"] = np.array([each[key] for each in seen])


def _robomimic_observation(env: RobosuiteEnv, observed: dict[str, Any], old: bool, images: bool) -> dict[str, Any]:
    keys = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos")
    ordered = np.concatenate([observed[name] for name in TASKS["lift"].objects])  # as robosuite 1.4 lists them
    pictures = env.images() if images else {}
    return {"object": ordered if old else observed["object-state"], **{key: observed[key] for key in keys}, **pictures}


def record_minari(root: Path, task: str, episodes: int = 2, steps: int = 60) -> Path:
    """Record random actions at 100 Hz and let Minari write them; return the data set's folder.

    :param root: Folder of all data sets; the environment variable ``MINARI_DATASETS_PATH`` must name it
    :param task: ``"door"``, ``"hammer"``, ``"pen"`` or ``"relocate"``
    :param episodes: How many; episode k starts from the environment's seed k
    :param steps: In each
    """
    import gymnasium_robotics
    from minari import create_dataset_from_buffers

    gym.register_envs(gymnasium_robotics)
    env = gym.make(f"AdroitHand{task.capitalize()}-v1", max_episode_steps=steps)
    who = {"algorithm_name": "random", "author": "nobody", "author_email": "nobody@example.org"}
    buffers = [_minari_episode(env, k, steps) for k in range(episodes)]
    create_dataset_from_buffers(f"test/{task}-v0", buffers, env=env, **who)
    return root / f"test/{task}-v0"


def _minari_episode(env: gym.Env[Any, Any], seed: int, steps: int) -> Any:
    from minari.data_collector import EpisodeBuffer  # whose own way of adding steps needs JAX

    observations, (actions, rewards, over, success) = [env.reset(seed=seed)[0]], ([], [], [], [])
    env.action_space.seed(seed)
    for _ in range(steps):
        actions.append((0.2 * env.action_space.sample()).astype(np.float32))
        observation, reward, _, truncated, info = env.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
        over.append(truncated)
        success.append(bool(info["success"]))
    return EpisodeBuffer(
        seed=seed,
        observations=observations,
        actions=actions,
        rewards=rewards,
        terminations=[False] * steps,
        truncations=over,
        infos={"success": np.array(success)},
    )
