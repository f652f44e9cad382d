"""A task's file is read strictly, and says all of a task."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import yaml
from lab.kinematic import Leader
from people import ScriptedPerson

from zprl_sb3.pretrain.configuration import by_task, compose
from zprl_sb3.robot_envs.real.drivers.lerobot import LeRobotLeader
from zprl_sb3.robot_envs.real.guard import Guard
from zprl_sb3.robot_envs.real.tasks import (
    TaskError,
    load_task,
    local_station,
    make_station,
    make_supervisor,
    make_teleoperator,
    task_settings,
)
from zprl_sb3.settings import load_settings

REAL = "zprl/RealRobot-v0"

# arXiv 2605.19919, Table VII; chunks of warm-up
PAPER = {
    "place_orange": {"rate": 30, "q": 7, "a": 7, "obs": 1, "chunk": 16, "scale": 0.2, "warm": 300, "crop": [106, 276]},
    "flip_egg": {"rate": 10, "q": 7, "a": 6, "obs": 3, "chunk": 16, "scale": 0.2, "warm": 300, "crop": [124, 124]},
    "open_box": {"rate": 20, "q": 16, "a": 16, "obs": 1, "chunk": 16, "scale": 0.175, "warm": 500, "crop": [124, 124]},
    "insert_bills": {
        "rate": 20,
        "q": 16,
        "a": 16,
        "obs": 2,
        "chunk": 24,
        "scale": 0.15,
        "warm": 500,
        "crop": [116, 156],
    },
}
IMAGES = {
    "place_orange": [(110, 280)],
    "flip_egg": [(128, 128)],
    "open_box": 3 * [(128, 128)],
    "insert_bills": 3 * [(120, 160)],
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_tasks_are_table_vii(name: str) -> None:
    wanted = PAPER[name]
    task = load_task(name)
    assert task.rate == wanted["rate"]
    assert [view.size for view in task.views.values()] == IMAGES[name]
    env = gym.make(REAL, task=name)
    assert env.observation_space["proprio"].shape == (wanted["q"],)
    assert env.action_space.shape == (wanted["a"],)
    env.close()
    model = by_task(compose(overrides=["demos=x", "output=x"])["model"], REAL, {"task": name})
    assert (model["obs_steps"], model["chunk"], model["latent_dim"]) == (wanted["obs"], wanted["chunk"], 32)
    assert model["crop"] == wanted["crop"]
    assert model["unet_widths"] == [256, 384, 512]
    assert model["horizon"] >= model["chunk"] + model["obs_steps"] - 1
    train = load_settings("zprl.yml", REAL, own=task_settings(REAL, {"task": name}, "train"))
    assert train["scale"] == wanted["scale"]
    assert train["algorithm"]["learning_starts"] == wanted["warm"]
    assert (train["n_envs"], train["eval_episodes"], train["save_freq"], train["subprocess"]) == (1, 0, 0, True)
    assert train["algorithm"]["replay_buffer_kwargs"] == {"n_steps": 3, "context_dtype": "float16"}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_tasks_can_be_served_and_their_way_home_be_stopped(name: str) -> None:
    task = load_task(name)
    station = local_station(task)  # drivers take the file's arguments, limits and home fit the arms
    assert dict(station.robot.arms) == task.arms
    assert set(station.cameras) == set(task.views)
    # A driver's own home() would neither keep the limits nor end when a person stops it.
    assert task.home is not None


def test_a_baseline_starts_from_the_tasks_settings() -> None:
    settings = load_settings("po_dec.yml", REAL, own=task_settings(REAL, {"task": "flip_egg"}, "train"))
    assert settings["steering"] == "action"
    assert settings["algorithm"]["learning_starts"] == 300
    assert settings["eval_episodes"] == 0


def test_a_typing_error_in_train_is_named(write_task: Callable[..., Path]) -> None:
    path = write_task(train={"default": "real", "scael": 0.2})
    with pytest.raises(KeyError, match="scael"):
        load_settings("zprl.yml", REAL, own=task_settings(REAL, {"task": str(path)}, "train"))


def test_other_environments_have_no_task() -> None:
    assert task_settings("zprl/Push-v0", {}, "train") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speed": 3}, "unknown key speed; known are rate"),
        ({"rate": None}, "rate is missing"),
        ({"rate": 0}, "rate: must be a positive number, not 0"),
        ({"rate": True}, "rate: must be a positive number"),
        ({"max_episode_steps": 2.5}, "max_episode_steps: must be a whole number"),
        ({"control": {"representation": "euler"}}, "one of axis_angle, rotation_6d, quaternion, joints, not 'euler'"),
        ({"control": {"frame": "base", "representation": "joints"}}, "control: unknown key frame"),
        ({"arms": {"arm": {"joints": 6, "gripper": 1}}}, "arms.arm.gripper: must be true or false"),
        ({"observation": {"proprio": ["arm/force"]}}, "no 'arm/force' to see"),
        ({"observation": {"proprio": []}}, "observation.proprio: must be a list of names"),
        ({"cameras": {"front": {"size": [24]}}}, r"cameras.front.size: must be \[height, width\]"),
        ({"cameras": {"front": {"size": [24, 32], "fps": 30}}}, "cameras.front: unknown key fps"),
        ({"robot": {"driver": "xarm"}}, "robot: must be a table with driver: remote or local"),
        ({"supervisor": {"kind": "nobody"}}, "supervisor: must be a table with kind: keyboard or page"),
        ({"limits": {}}, "limits: arm is missing"),
        ({"limits": {"arm": {}, "fence": 1}}, "limits: unknown key fence"),
        ({"drivers": {"robot": {"ip": "1.2.3.4"}}}, "drivers.robot: must be a table with driver:"),
    ],
)
def test_what_is_wrong_is_named(write_task: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    path = write_task(**changes)
    with pytest.raises(TaskError, match=message) as caught:
        load_task(path)
    assert str(path) in str(caught.value)


def test_what_is_no_yaml_or_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.yml"
    path.write_text("rate: [")
    with pytest.raises(TaskError, match="not YAML"):
        load_task(path)
    path.write_text("- 1")
    with pytest.raises(TaskError, match="must be a table"):
        load_task(path)
    with pytest.raises(FileNotFoundError, match="place_lemon"):
        load_task("place_lemon")


def test_sensors_are_seen_beside_the_arms(write_task: Callable[..., Path]) -> None:
    observation = {"proprio": ["orange/position", "arm/gripper"], "sensors": {"orange/position": 3}}
    assert load_task(write_task(observation=observation)).poses().proprio_size == 4


def test_robot_leader_and_person_are_made_of_the_file(write_task: Callable[..., Path]) -> None:
    task = load_task(write_task())
    station = make_station(task)
    assert isinstance(station.robot, Guard)
    assert station.robot.watchdog == 0.5
    assert set(station.cameras) == {"front"}
    assert isinstance(make_supervisor(task), ScriptedPerson)
    assert isinstance(make_teleoperator(task), Leader)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drivers": {"robot": {"driver": "yumi"}}}, "drivers.robot: there is no 'yumi' .* xarm, franka, lerobot, sev"),
        (
            {"drivers": {"robot": {"driver": "several", "left": {"driver": "frnka"}}}},
            "left: there is no 'frnka'",
        ),
        ({"drivers": {"robot": {"driver": "lab.yumi"}}}, "drivers.robot: there is no 'lab.yumi'"),
        ({"drivers": {"robot": {"driver": "lab.kinematic", "colour": "red"}}}, "drivers.robot: .*colour"),
        ({"drivers": {"robot": {"driver": "lab.scripted"}}}, "'lab.scripted' is a driver, but not of a robot"),
        ({"drivers": None}, "there are no drivers"),
        ({"limits": {"arm": {"speed": -1}}}, "limits.arm: speed must be above 0"),
        ({"limits": {"arm": {"sped": 1}}}, "limits.arm: .*sped"),
    ],
)
def test_what_cannot_be_made_is_named(write_task: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make_station(load_task(write_task(**changes)))


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_tasks_show_who_may_demonstrate_them(name: str, repository: Path, tmp_path: Path) -> None:
    text = (repository / "hyperparams" / "real" / f"{name}.yml").read_text()
    examples = re.findall(r"(?:^# teleoperator: .*\n)(?:#   .*\n)*", text, re.MULTILINE)
    assert examples
    for example in examples:
        (tmp_path / "mine.yml").write_text(text.replace(example, example.replace("# ", "", 1).replace("#   ", "  ")))
        task = load_task(tmp_path / "mine.yml")
        assert task.teleoperator["driver"] in ("my_lab.space_mouse", "my_lab.two_leaders", "lerobot")
        if task.teleoperator["driver"] == "lerobot":
            assert isinstance(make_teleoperator(task), LeRobotLeader)
    names = [key for arm, each in task.arms.items() for key in each.command_shapes(arm)]
    assert ", ".join(names) in text  # what it has to tell


def test_packaged_files_are_plain(repository: Path) -> None:
    for path in (repository / "hyperparams" / "real").glob("*.yml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict)
        load_task(path)
