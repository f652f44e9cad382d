"""Minari's data sets of the Adroit hand, recorded here and written by its own library."""

import json
import shutil
import sys

import gymnasium as gym
import h5py
import numpy as np
import pytest

from recordings import record_minari
from zprl_sb3.pretrain.demonstrations import DemonstrationError, load_demonstrations
from zprl_sb3.pretrain.minari import GOALS, looks_like_minari, open_minari, to_episode
from zprl_sb3.robot_envs import adroit_id
from zprl_sb3.robot_envs.adroit import TASKS
from zprl_sb3.scripts.convert import convert

pytest.importorskip("gymnasium_robotics")
pytest.importorskip("minari")
pytestmark = pytest.mark.filterwarnings("ignore:`.*` is set to None")  # Minari would like to know more about a data set


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return the folder in which Minari keeps its data sets, of which there are two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        root = tmp_path_factory.getbasetemp() / "minari0"
        record_minari(root, "door", steps=21)
        record_minari(root, "pen", episodes=1)
        yield root


@pytest.fixture
def copy(root, tmp_path):
    """Return a copy of the data set of the door, to be broken."""
    return shutil.copytree(root / "test/door-v0/data", tmp_path / "copy")


def test_every_second_observation_and_the_mean_of_two_actions(root, tmp_path):
    demos = load_demonstrations(convert(root / "test/door-v0", tmp_path / "demos.hdf5"))
    assert (demos.env_id, demos.env_kwargs) == ("zprl/AdroitDoor-v0", {"observation": "state"})
    assert len(demos) == 2
    env = gym.make(demos.env_id, **demos.env_kwargs)
    with h5py.File(root / "test/door-v0/data/main_data.hdf5") as file, h5py.File(tmp_path / "demos.hdf5") as converted:
        recorded = file["episode_1/observations"][()]
        actions = file["episode_1/actions"][()]
        demo = converted["data/demo_1"]
        assert demo["actions"].shape == (10, 28)  # of 21 steps, the last of which has no other
        np.testing.assert_allclose(demo["actions"][3], (actions[6] + actions[7]) / 2, atol=1e-6)
        np.testing.assert_allclose(demo["obs/proprio"][3], recorded[6, 3:27], atol=1e-6)
        np.testing.assert_allclose(demo["next_obs/object"][3], np.delete(recorded[8], range(3, 27)), atol=1e-6)
        assert "states" not in demo
    # The seed makes the same layout here: what our environment observes is what was recorded.
    observed, _ = env.reset(seed=1)
    for key, values in observed.items():
        np.testing.assert_allclose(demos.observations[key][1][0], values, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_goals_are_what_the_simulator_says(task):
    """In random states, in half of which the goal is reached."""
    env, rng = gym.make(adroit_id(task)).unwrapped, np.random.default_rng(0)
    env.reset(seed=0)
    seen, said = [], []
    for _ in range(40):
        _near_the_goal(task, env, rng)
        raw, *_, info = env._simulation.step(np.zeros(env.model.nu))
        seen.append(raw)
        said.append(bool(info["success"]))
    assert 5 < sum(said) < 35
    np.testing.assert_array_equal(GOALS[task](np.stack(seen)), said)


def _near_the_goal(task, env, rng):
    if task == "door":
        env.data.joint("door_hinge").qpos[:] = rng.uniform(1.1, 1.57)
    elif task == "hammer":
        env.data.joint("nail_dir").qpos[:] = rng.uniform(0.07, 0.09)
    elif task == "relocate":
        reach = env.data.site("target").xpos - env.data.body("Object").xpos
        slides = [env.data.joint(f"OBJT{axis}") for axis in "xyz"]
        for slide, part in zip(slides, reach, strict=True):
            slide.qpos[:] += part + rng.uniform(-0.1, 0.1)
    else:
        env.reset(seed=0)
        quaternion = env.data.body("Object").xquat + rng.uniform(-0.2, 0.2, 4)
        env.model.body("target").quat[:] = quaternion / np.linalg.norm(quaternion)


def test_success_is_what_our_environment_calls_so():
    """Some pens happen to fall into the right place, and some of those stay there for 20 of our steps."""
    env = gym.make("zprl/AdroitPen-v0").unwrapped
    outcomes = []
    for seed in (1, 8, 12):
        env.reset(seed=seed)
        raw = [env.raw_observation]
        for _ in range(60):
            raw.append(env._simulation.step(np.zeros(24))[0].copy())
        episode = to_episode("pen", np.stack(raw), np.zeros((60, 24)))
        env.reset(seed=seed)
        successes = [env.step(np.zeros(24))[4]["is_success"] for _ in range(30)]
        np.testing.assert_array_equal(episode.rewards, successes)
        outcomes.append(episode.success)
    assert 0 < sum(outcomes) < len(outcomes)


def test_actions_are_clipped_as_the_simulator_does():
    episode = to_episode("pen", np.zeros((5, 45)), np.tile([[3.0], [-0.5]], (2, 24)))
    np.testing.assert_allclose(episode.actions, 0.25)


def test_an_id_is_looked_up_in_minaris_folder(root, tmp_path):
    assert load_demonstrations(convert("test/pen-v0", tmp_path / "demos.hdf5")).env_id == "zprl/AdroitPen-v0"
    with pytest.raises(DemonstrationError, match="minari download D4RL/pen/human-v2"):
        open_minari("D4RL/pen/human-v2")


def test_without_minari_an_id_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari.storage", None)
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r'pip install "zprl-sb3\[minari\]"'):
        open_minari("D4RL/pen/human-v2")


def test_what_may_be_minaris(tmp_path):
    (tmp_path / "file-v2").touch()
    assert looks_like_minari(tmp_path)
    assert looks_like_minari("D4RL/door/human-v2")
    assert not looks_like_minari(tmp_path / "file-v2")
    assert not looks_like_minari("downloads/low_dim_v141.hdf5")


def describe(folder, **changes):
    path = folder / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_task_that_is_not_here_is_refused(copy):
    for spec, message in (
        (json.dumps({"id": "FetchReach-v3"}), "a data set of FetchReach-v3; there are .* AdroitHandDoor"),
        (json.dumps({"id": "AdroitHandJuggle-v1"}), "AdroitHandJuggle-v1"),
        ("{", "an environment that it does not name"),
    ):
        describe(copy, env_spec=spec)
        with pytest.raises(DemonstrationError, match=message):
            open_minari(copy)


def test_variants_of_a_task_are_known(copy):
    describe(copy, env_spec=json.dumps({"id": "AdroitHandDoorSparse-v2"}))
    assert open_minari(copy).env_id == "zprl/AdroitDoor-v0"


def test_another_size_or_length_is_refused(copy):
    describe(copy, env_spec=json.dumps({"id": "AdroitHandPen-v1"}))
    with pytest.raises(DemonstrationError, match=r"episode_0, observations: .* \(22, 39\), but .* has 45 a step"):
        open_minari(copy)
    describe(copy, env_spec=json.dumps({"id": "AdroitHandRelocate-v1"}))
    with pytest.raises(DemonstrationError, match=r"actions: the shape is \(21, 28\), but .* has 30"):
        open_minari(copy)
    describe(copy, env_spec=json.dumps({"id": "AdroitHandDoor-v1"}))
    with h5py.File(copy / "main_data.hdf5", "a") as file:
        file["episode_1/actions"].resize((20, 28))
    with pytest.raises(DemonstrationError, match="episode_1: 22 observations and 20 actions"):
        open_minari(copy)


def test_broken_and_foreign_folders_are_refused(copy, tmp_path):
    describe(copy, data_format="arrow")
    with pytest.raises(DemonstrationError, match="in the format 'arrow'; only hdf5"):
        open_minari(copy)
    describe(copy, data_format="hdf5")
    with h5py.File(copy / "main_data.hdf5", "w"):
        pass
    with pytest.raises(DemonstrationError, match="it holds no episode"):
        open_minari(copy)
    (copy / "main_data.hdf5").write_bytes(b"no HDF5")
    with pytest.raises(DemonstrationError, match="not an HDF5 file"):
        open_minari(copy)
    (copy / "metadata.json").write_text("[")
    with pytest.raises(DemonstrationError, match=r"metadata.json: not Minari's JSON"):
        open_minari(copy)
    with pytest.raises(DemonstrationError, match="no data set of Minari, which is a folder with"):
        open_minari(tmp_path)
