"""What is asked of an environment before it is made."""

import sys

import gymnasium as gym
import pytest

from zprl_sb3.robot_envs import check_kwargs


class Any(gym.Env):
    """Takes whatever it is given."""

    def __init__(self, **kwargs):
        pass


@pytest.fixture
def made():
    """Environments of somebody else, by a function and by a class."""
    ids = {"test/Function-v0": lambda size, color=None: None, "test/Any-v0": Any, "test/Nothing-v0": None}
    for env_id, entry_point in ids.items():
        gym.register(env_id, entry_point, vector_entry_point="nobody:Nothing", kwargs={"size": 1})
    yield
    for env_id in ids:
        del gym.registry[env_id]


@pytest.mark.parametrize(
    ("env_id", "has"),
    [
        ("zprl/Push-v0", "task, observation, render_mode, render_quality, cameras"),
        ("zprl/Lift-v0", "task, observation, render_mode, render_quality, terminate_on_failure, cameras"),
        ("zprl/AdroitDoor-v0", "task, observation, render_mode, render_quality, terminate_on_failure, cameras"),
        ("test/Function-v0", "size, color"),
        ("zprl_sb3:zprl/Push-v0", "task, observation"),
    ],
)
def test_an_unknown_argument_is_named_with_those_that_exist(made, env_id, has):
    name = env_id.rpartition(":")[2]
    with pytest.raises(ValueError, match=f"^{name} has no argument 'foo', 'camera'; it has {has}.*max_episode_steps"):
        check_kwargs(env_id, {"foo": 1, "max_episode_steps": 3, "camera": "x"})


def test_what_exists_is_accepted(made):
    check_kwargs("zprl/Push-v0", {"cameras": ["corner"], "max_episode_steps": 3, "disable_env_checker": True})
    check_kwargs("test/Function-v0", {"size": 2})
    check_kwargs("test/Any-v0", {"foo": 1})


def test_what_gymnasium_explains_is_left_to_it(made):
    for env_id in ("test/Nothing-v0", "zprl/Nowhere-v0", "CartPole"):
        check_kwargs(env_id, {"foo": 1})
    with pytest.raises(ImportError, match="nobody"):
        check_kwargs("nobody:zprl/Push-v0", {})


def test_asking_loads_no_simulator(monkeypatch):
    for name in ("metaworld.env_dict", "robosuite", "mujoco"):
        monkeypatch.setitem(sys.modules, name, None)
    for env_id in ("zprl/Push-v0", "zprl/Lift-v0", "zprl/AdroitDoor-v0"):
        check_kwargs(env_id, {"observation": "image"})
