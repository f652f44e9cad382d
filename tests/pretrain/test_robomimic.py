"""robomimic's data sets: recorded here with the real simulator, in its layout, and read back by its own loader."""

import json

import gymnasium as gym
import h5py
import numpy as np
import pytest

from recordings import record_robomimic, robosuite_env
from zprl_sb3.pretrain.demonstrations import DemonstrationError, load_demonstrations
from zprl_sb3.pretrain.robomimic import open_robomimic
from zprl_sb3.scripts.collect import collect
from zprl_sb3.scripts.convert import convert
from zprl_sb3.settings import load_settings

pytest.importorskip("robosuite")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a file as robosuite 1.5 and robomimic write it: relative actions in the frame of the robot's base."""
    return record_robomimic(tmp_path_factory.mktemp("robomimic") / "lift.hdf5", in_base=True)


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Return two short episodes with images."""
    return record_robomimic(tmp_path_factory.mktemp("robomimic") / "short.hdf5", steps=3, images=True)


def replay(env, look, states, actions):
    """Act from the stored start, and yield position of the hand and success."""
    env.set_state(states[0])
    for action in actions:
        *_, info = env.step(action)
        yield look.observe_state(env.get_state())["proprio"][:3], info["is_success"]


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
def test_a_converted_episode_replays_and_succeeds(tmp_path, source, old, absolute):
    if old or absolute:
        source = record_robomimic(tmp_path / "source.hdf5", 1, old=old, absolute=absolute)
    demos = load_demonstrations(convert(source, tmp_path / "demos.hdf5"))
    assert demos.env_id == "zprl/Lift-v0"
    assert demos.masks["better"] == [0]
    assert demos.env_kwargs == {"observation": "state"}
    env, look = robosuite_env("lift"), robosuite_env("lift", copy=1)
    look.reset(seed=98)
    with h5py.File(tmp_path / "demos.hdf5") as file:
        for k, demo in enumerate(file["data"].values()):
            assert demo.attrs["success"]
            env.reset(seed=99)
            positions, successes = zip(*replay(env, look, demo["states"][()], demos.actions[k]), strict=True)
            away = np.linalg.norm(np.array(positions) - demo["next_obs/proprio"][:, :3], axis=1)
            assert np.median(away) < 0.0005
            assert away.max() < 0.003
            assert any(successes)


def test_observations_are_what_the_environment_shows_in_the_stored_states(tmp_path, source):
    convert(source, tmp_path / "demos.hdf5")
    env = robosuite_env("lift")
    env.reset(seed=5)
    with h5py.File(tmp_path / "demos.hdf5") as file, h5py.File(source) as original:
        demo, recorded = file["data/demo_1"], original["data/demo_1"]
        np.testing.assert_array_equal(demo["states"][()], recorded["states"][()])
        np.testing.assert_array_equal(demo["rewards"][()], recorded["rewards"][()])
        assert demo["dones"][-1] == 1
        for key, values in env.observe_state(demo["states"][7]).items():
            np.testing.assert_array_equal(demo[f"obs/{key}"][7], values)
            np.testing.assert_array_equal(demo[f"next_obs/{key}"][6], values)
        # robosuite's own observation may be one step of the physics late: at most 2 ms
        np.testing.assert_allclose(demo["obs/proprio"][:, :3], recorded["obs/robot0_eef_pos"][()], atol=0.003)
        assert demo["actions"].shape == (len(recorded["actions"]), 10)


def test_files_with_nothing_but_states_and_actions(tmp_path, source):
    path = changed(source, tmp_path)
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            del demo["obs"], demo["rewards"], demo["dones"]
        del file["mask"]
    assert [episode.rewards.sum() for episode in open_robomimic(path).episodes] == [2.0, 2.0]


def test_images_are_taken_or_rendered_anew(tmp_path, short):
    recorded = load_demonstrations(convert(short, tmp_path / "recorded.hdf5", observation="image"))
    assert recorded.env_kwargs == {"observation": "image", "render_quality": "full"}
    assert set(recorded.observations) == {"proprio", "agentview_image", "robot0_eye_in_hand_image"}
    with h5py.File(short) as file:
        np.testing.assert_array_equal(
            recorded.observations["agentview_image"][0], file["data/demo_0/obs/agentview_image"][()]
        )
    rendered = load_demonstrations(convert(short, tmp_path / "fast.hdf5", observation="image", render="fast"))
    assert rendered.env_kwargs["render_quality"] == "fast"
    env = gym.make(rendered.env_id, **rendered.env_kwargs).unwrapped
    env.reset(seed=3)
    with h5py.File(short) as file:
        seen = env.observe_state(file["data/demo_0/states"][1])
    np.testing.assert_array_equal(rendered.observations["agentview_image"][0][1], seen["agentview_image"])


def changed(source, folder, env_args=None, **kwargs):
    """Return a copy whose description differs."""
    path = folder / "changed.hdf5"
    path.write_bytes(source.read_bytes())
    with h5py.File(path, "a") as file:
        described = json.loads(file["data"].attrs["env_args"]) | (env_args or {})
        described["env_kwargs"] |= kwargs
        file["data"].attrs["env_args"] = json.dumps(described)
    return path


def with_values(source, folder, key, change, demo="demo_0"):
    """Return a copy in which something of a demonstration differs: ``change`` is called with the old values."""
    path = changed(source, folder)
    with h5py.File(path, "a") as file:
        values = change(file[f"data/{demo}/{key}"][()])
        del file[f"data/{demo}/{key}"]
        if values is not None:
            file[f"data/{demo}/{key}"] = values
    return path


def test_another_environment_is_refused(tmp_path, short):
    with pytest.raises(DemonstrationError, match="no environment for robosuite's 'ToolHang', only for Lift, PickPlace"):
        open_robomimic(changed(short, tmp_path, {"env_name": "ToolHang"}))
    with pytest.raises(DemonstrationError, match=r"none of robosuite's environments \(type 2\)"):
        open_robomimic(changed(short, tmp_path, {"type": 2}))
    with pytest.raises(DemonstrationError, match=r"changed.hdf5, env_args: recorded with Sawyer"):
        open_robomimic(changed(short, tmp_path, robots=["Sawyer"]))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("states", lambda values: values[:, :-1], "states: 31 values, but .* has 32; .* robosuite 1.5.2"),
        ("states", lambda values: values[:-1], "2 states, but 3 actions"),
        ("states", lambda values: None, "the key 'states' is missing"),
        ("actions", lambda values: values * np.nan, "actions: NaN or infinite at step 0"),
        ("actions", lambda values: values[:, :6], "1 arm need 7 values"),
        ("actions", lambda values: values + 2, "the relative controller takes -1 to 1"),
    ],
)
def test_what_does_not_fit_is_found_before_the_work_begins(tmp_path, short, key, change, message):
    with pytest.raises(DemonstrationError, match=f"demo_1.*{message}"):
        open_robomimic(with_values(short, tmp_path, key, change, "demo_1"))


def test_observations_of_another_state_are_refused(tmp_path, source):
    for change, message in (
        (lambda values: values + 0.05, r"obs/object: it differs by 0\.0\d+ from what zprl/Lift-v0 observes"),
        (lambda values: values[:, :-1], r"obs/object: the shape is \(\d+, 9\), but zprl/Lift-v0 has \(\d+, 10\)"),
    ):
        recording = open_robomimic(with_values(source, tmp_path, "obs/object", change))
        with pytest.raises(DemonstrationError, match=message):
            next(recording.episodes)


def test_poses_that_are_nowhere_near_the_hand_are_refused(tmp_path, short):
    recording = open_robomimic(with_values(short, tmp_path, "actions", lambda values: values + 2), absolute=True)
    with pytest.raises(DemonstrationError, match=r"at least .* m away from the hand"):
        next(recording.episodes)


def test_images_that_do_not_fit_are_refused(tmp_path, short, source):
    key = "obs/agentview_image"
    with pytest.raises(DemonstrationError, match=r"demo_0: it holds no images obs/agentview_image.*--render fast"):
        open_robomimic(source, "image")
    for change in (lambda values: values[:, ::2, ::2], lambda values: values / 255, lambda values: values[:-1]):
        with pytest.raises(DemonstrationError, match=r"needed is uint8 \(3, 84, 84, 3\).*--render fast"):
            open_robomimic(with_values(short, tmp_path, key, change), "image")
    recording = open_robomimic(with_values(short, tmp_path, key, lambda values: values[:, ::-1]), "image")
    with pytest.raises(DemonstrationError, match=r"looks unlike what zprl/Lift-v0 shows.*--render fast"):
        next(recording.episodes)


def test_unknown_arguments_are_refused_before_the_file_is_read(tmp_path):
    with pytest.raises(ValueError, match="render_quality is"):
        open_robomimic(tmp_path / "none.hdf5", "image", render="best")
    with pytest.raises(ValueError, match="observation='sound'"):
        open_robomimic(tmp_path / "none.hdf5", "sound")


@pytest.mark.parametrize("content", [b"", b"no HDF5", None])
def test_files_that_are_none_or_broken_say_so(tmp_path, short, content):
    path = tmp_path / "broken.hdf5"
    path.write_bytes(short.read_bytes()[:3000] if content is None else content)
    with pytest.raises(DemonstrationError, match="not an HDF5 file, or a damaged one"):
        open_robomimic(path)


class TestRobomimicsOwnLoader:
    """robomimic's ``SequenceDataset`` reads what ``zprl collect`` writes."""

    @pytest.fixture(autouse=True)
    def _robomimic(self):
        pytest.importorskip(
            "robomimic.utils.dataset",
            reason="make install has it; or: pip install --no-deps --no-build-isolation robomimic==0.3.0",
        )

    def read(self, path, modalities, mask):
        from robomimic.utils import obs_utils
        from robomimic.utils.dataset import SequenceDataset

        obs_utils.initialize_obs_utils_with_obs_specs({"obs": modalities})
        return SequenceDataset(
            hdf5_path=str(path),
            obs_keys=tuple(key for keys in modalities.values() for key in keys),
            dataset_keys=("actions", "rewards", "dones"),
            seq_length=2,
            filter_by_attribute=mask,
            hdf5_cache_mode=None,
            load_next_obs=not modalities["rgb"],  # we do not repeat images among the next observations
        )

    def test_low_dimensional(self, push_demos):
        demos = load_demonstrations(push_demos)
        mask = next(quality for quality in ("better", "okay", "worse") if demos.masks[quality])
        dataset = self.read(push_demos, {"low_dim": ["object", "proprio"], "rgb": []}, mask)
        chosen = demos.select(mask)
        assert 0 < len(dataset) == sum(map(len, chosen.actions))
        np.testing.assert_allclose(dataset[5]["actions"], chosen.actions[0][5:7])
        np.testing.assert_allclose(dataset[5]["obs"]["object"], chosen.observations["object"][0][5:7])
        np.testing.assert_allclose(dataset[5]["next_obs"]["object"], chosen.observations["object"][0][6:8])

    def test_images(self, tmp_path):
        changes = ["max_episode_steps=6", "observation=image"]
        settings = load_settings("collect.yml", "zprl/Push-v0", changes)
        path = collect("zprl/Push-v0", 2, 0, tmp_path / "demos.hdf5", settings=settings)
        (camera,) = (key for key in load_demonstrations(path).observations if key.endswith("_image"))
        dataset = self.read(path, {"low_dim": ["proprio"], "rgb": [camera]}, "train")
        chosen = load_demonstrations(path).select("train")
        assert len(dataset) == sum(map(len, chosen.actions))
        image = dataset[3]["obs"][camera]  # 0 … 255, whose conversion is the policy's business
        np.testing.assert_array_equal(image, chosen.observations[camera][0][3:5])
