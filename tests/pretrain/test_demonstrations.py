import json

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zprl_sb3.files import sha256
from zprl_sb3.pretrain.demonstrations import DemonstrationError, StoredImages, load_demonstrations
from zprl_sb3.pretrain.recording import (
    Episode,
    load_episode,
    read_collection,
    save_demonstrations,
    save_episode,
)

KWARGS = {"max_episode_steps": 50, "observation": "state"}


def make_episode(steps=4, sizes=None, action_size=4, seed=0, quality="better", success=True):
    rng = np.random.default_rng([seed, steps])
    sizes = sizes or {"object": 17, "proprio": 9}

    def observations():
        return {key: rng.normal(size=(steps, size)).astype(np.float32) for key, size in sizes.items()}

    return Episode(
        observations=observations(),
        next_observations=observations(),
        actions=rng.uniform(-1, 1, (steps, action_size)).astype(np.float32),
        rewards=np.append(np.zeros(steps - 1), float(success)),
        states=rng.normal(size=(steps, 5)),
        seed=seed,
        quality=quality,
        success=success,
    )


def save(path, episodes):
    save_demonstrations(path, episodes, "zprl/Push-v0", KWARGS, "3.1.1", {"seed": 0})
    return path


@pytest.fixture
def path(tmp_path):
    qualities = ("better", "okay", "worse") * 4
    episodes = [make_episode(3 + k, seed=k, quality=q, success=k % 3 != 2) for k, q in enumerate(qualities)]
    return save(tmp_path / "demos.hdf5", episodes)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    sizes=st.dictionaries(st.sampled_from(["object", "proprio", "touch"]), st.integers(1, 5), min_size=1),
    action_size=st.integers(1, 7),
)
def test_what_is_written_is_read(tmp_path_factory, lengths, sizes, action_size):
    episodes = [make_episode(steps, sizes, action_size, seed=k, success=k % 2 == 0) for k, steps in enumerate(lengths)]
    path = save(tmp_path_factory.mktemp("round_trip") / "demos.hdf5", episodes)
    loaded = load_demonstrations(path)
    assert len(loaded) == len(episodes)
    assert set(loaded.observations) == set(sizes)
    assert loaded.successes == [episode.success for episode in episodes]
    for k, episode in enumerate(episodes):
        np.testing.assert_array_equal(loaded.actions[k], episode.actions)
        for key in sizes:
            np.testing.assert_array_equal(loaded.observations[key][k], episode.observations[key])


def test_what_the_file_says_about_itself(path):
    loaded = load_demonstrations(path)
    assert loaded.path == path
    assert loaded.env_id == "zprl/Push-v0"
    assert loaded.env_kwargs == KWARGS
    assert loaded.sha256 == sha256(path)
    assert loaded.names == [f"demo_{k}" for k in range(12)]
    assert loaded.qualities[:3] == ["better", "okay", "worse"]
    assert read_collection(path) == {"seed": 0, "episodes": 12}


def test_the_layout_is_robomimics(path):
    with h5py.File(path) as file:
        assert file["data"].attrs["total"] == sum(range(3, 15))
        env_args = json.loads(file["data"].attrs["env_args"])
        assert env_args == {"env_name": "zprl/Push-v0", "env_version": "3.1.1", "type": 2, "env_kwargs": KWARGS}
        demo = file["data/demo_1"]
        assert dict(demo.attrs) == {"num_samples": 4, "seed": 1, "quality": "okay", "success": True}
        assert set(demo) == {"actions", "states", "rewards", "dones", "obs", "next_obs"}
        assert demo["actions"].dtype == np.float64
        assert demo["dones"][()].tolist() == [0, 0, 0, 1]
        assert demo["obs/object"].shape == demo["next_obs/object"].shape == (4, 17)
        assert set(file["mask"]) == {"train", "valid", "better", "okay", "worse", "success"}
        assert file["mask/okay"][()].tolist() == [b"demo_1", b"demo_4", b"demo_7", b"demo_10"]


def test_masks_split_the_episodes(path):
    masks = load_demonstrations(path).masks
    assert sorted(masks["train"] + masks["valid"]) == list(range(12))
    assert len(masks["valid"]) == 1
    assert masks["success"] == [0, 1, 3, 4, 6, 7, 9, 10]


def test_select_keeps_the_episodes_of_a_mask(path):
    everything = load_demonstrations(path)
    better = everything.select("better")
    assert better.names == ["demo_0", "demo_3", "demo_6", "demo_9"]
    assert better.masks["better"] == [0, 1, 2, 3]
    assert better.masks["worse"] == []
    np.testing.assert_array_equal(better.actions[1], everything.actions[3])
    np.testing.assert_array_equal(better.observations["object"][1], everything.observations["object"][3])
    with pytest.raises(DemonstrationError, match=r"no mask 'best'; it has .*better"):
        everything.select("best")


def test_the_same_episodes_give_the_same_bytes(tmp_path):
    one, two = (save(tmp_path / name, [make_episode(), make_episode(seed=1)]) for name in ("one.hdf5", "two.hdf5"))
    assert one.read_bytes() == two.read_bytes()


def test_no_episode_is_no_file(tmp_path):
    with pytest.raises(DemonstrationError, match="no episode"):
        save(tmp_path / "demos.hdf5", [])
    assert list(tmp_path.iterdir()) == []


def test_robomimics_own_attributes_are_enough(path):
    with h5py.File(path, "r+") as file:
        del file["mask"]
        del file["data"].attrs["collection"]
        for demo in file["data"].values():
            for name in ("success", "quality", "seed"):
                del demo.attrs[name]
    loaded = load_demonstrations(path)
    assert loaded.successes == [k % 3 != 2 for k in range(12)]
    assert loaded.qualities == [""] * 12
    assert loaded.masks == {}
    assert read_collection(path) == {}


def with_images(path):
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            images = np.full((demo.attrs["num_samples"], 8, 8, 3), 7, np.uint8)
            demo.create_dataset("obs/image", data=images, chunks=(1, 8, 8, 3), compression="gzip")
    return path


def test_images_stay_bytes_in_the_file_until_they_are_needed(path):
    images = load_demonstrations(with_images(path), "image").observations["image"]
    assert isinstance(images[0], StoredImages)
    assert (images[0].ndim, len(images[0]), images[0].nbytes) == (4, 3, 3 * 8 * 8 * 3)
    assert images[0][:].dtype == images[0].dtype == np.uint8
    np.testing.assert_array_equal(images[0][1:], np.full((2, 8, 8, 3), 7))


def test_images_that_turn_out_to_be_damaged_are_named(path):
    with h5py.File(with_images(path), "r") as file:
        place = file["data/demo_2/obs/image"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[place : place + 8] = b"\xff" * 8
    path.write_bytes(content)
    images = load_demonstrations(path, "image").observations["image"]
    assert images[1][:].shape == images[1].shape
    with pytest.raises(DemonstrationError, match=r"demos\.hdf5: not an HDF5 file, or a damaged one"):
        images[2][:]


def test_observations_that_a_file_does_not_hold_are_named(path):
    with pytest.raises(DemonstrationError, match=r"it holds no images\. Collect with --set observation=image"):
        load_demonstrations(path, "image")
    with h5py.File(with_images(path), "r+") as file:
        for demo in file["data"].values():
            del demo["obs/object"]
    with pytest.raises(DemonstrationError, match="does not hold the state, whose key is 'object'"):
        load_demonstrations(path, "state")


def test_images_of_other_numbers_are_refused(path):
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["obs/image"] = np.full((demo.attrs["num_samples"], 8, 8, 3), 0.5, np.float32)
    with pytest.raises(DemonstrationError, match="obs/image: images are uint8 from 0 to 255, not float32"):
        load_demonstrations(path)


def replace(file, key, values):
    del file[key]
    file[key] = values


def remove_demos(file):
    del file["data"]
    file.create_group("data")


def set_nan(file):
    file["data/demo_2/obs/object"][3, 1] = np.nan


def set_infinite(file):
    file["data/demo_2/actions"][1, 0] = np.inf


DAMAGES = [
    (lambda file: file.__delitem__("data"), "'data' is missing"),
    (remove_demos, "no demonstration"),
    (lambda file: file["data"].attrs.__delitem__("env_args"), "env_args"),
    (lambda file: file["data"].attrs.__setitem__("env_args", "{"), "env_args"),
    (lambda file: file["data"].attrs.__setitem__("env_args", "[]"), "env_args"),
    (lambda file: file.__delitem__("data/demo_2/actions"), "demo_2: the key 'actions' is missing"),
    (lambda file: file.__delitem__("data/demo_2/obs"), "demo_2: the key 'obs/.*' is missing"),
    (lambda file: file.__delitem__("data/demo_0/obs"), "demo_0: the key 'obs' is missing"),
    (lambda file: file.__delitem__("data/demo_2/obs/object"), "demo_2: the key 'obs/object' is missing"),
    (
        lambda file: replace(file, "data/demo_2/obs/object", np.zeros((4, 17))),
        "demo_2, obs/object: 4 steps.* 5 actions",
    ),
    (lambda file: replace(file, "data/demo_2/rewards", np.zeros(4)), "demo_2, rewards: 4 steps.* 5 actions"),
    (lambda file: file["data/demo_2"].attrs.__setitem__("num_samples", 9), "demo_2, .*num_samples: 9 steps"),
    (
        lambda file: replace(file, "data/demo_2/obs/object", np.zeros((5, 16))),
        r"demo_2, object: shape \(16,\).*\(17,\)",
    ),
    (lambda file: replace(file, "data/demo_2/actions", np.zeros((5, 3))), r"demo_2, actions: shape \(3,\).*\(4,\)"),
    (lambda file: replace(file, "data/demo_2/actions", np.zeros(5)), r"demo_2, actions: the shape must be"),
    (lambda file: replace(file, "data/demo_2/actions", np.zeros((0, 4))), r"demo_2, actions: the shape must be"),
    (lambda file: replace(file, "data/demo_2/actions", b"text"), "demo_2, actions: not an array of numbers"),
    (set_nan, "demo_2, obs/object: NaN or infinite at step 3"),
    (set_infinite, "demo_2, actions: NaN or infinite at step 1"),
    (lambda file: replace(file, "mask/train", np.array([b"demo_99"])), "mask.*demo_99"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[message for _, message in DAMAGES])
def test_every_damage_is_named(path, damage, message):
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(DemonstrationError, match=message) as caught:
        load_demonstrations(path)
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(DemonstrationError, match=r"no such file.*zprl collect"):
        load_demonstrations(tmp_path / "none.hdf5")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for read in (load_demonstrations, read_collection):
        with pytest.raises(DemonstrationError, match="not an HDF5 file, or a damaged one"):
            read(path)


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "demos.hdf5").write_text("time,x\n0,1\n")
    with pytest.raises(DemonstrationError, match="not an HDF5 file"):
        load_demonstrations(tmp_path / "demos.hdf5")


def test_single_episodes_are_kept_whole(tmp_path):
    episode = make_episode(quality="worse", success=False)
    save_episode(tmp_path / "episode.npz", episode)
    loaded = load_episode(tmp_path / "episode.npz")
    assert (loaded.seed, loaded.quality, loaded.success) == (0, "worse", False)
    for name in ("actions", "rewards", "states"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(episode, name))
    for name in ("observations", "next_observations"):
        for key, values in getattr(episode, name).items():
            np.testing.assert_array_equal(getattr(loaded, name)[key], values)


def test_a_damaged_episode_says_what_to_do(tmp_path):
    path = tmp_path / "episode.npz"
    save_episode(path, make_episode())
    for size in (0, 100, path.stat().st_size - 50):
        path.write_bytes(path.read_bytes()[:size] if size else b"")
        with pytest.raises(DemonstrationError, match="delete it to have it collected again"):
            load_episode(path)
        save_episode(path, make_episode())


def test_robomimic_reads_the_file(path):
    pytest.importorskip(
        "robomimic", reason="install with: pip install --no-deps --no-build-isolation robomimic==0.3.0 (and egl_probe)"
    )
    from robomimic.utils import obs_utils
    from robomimic.utils.dataset import SequenceDataset

    obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["object", "proprio"], "rgb": []}})
    dataset = SequenceDataset(
        hdf5_path=str(path),
        obs_keys=("object", "proprio"),
        dataset_keys=("actions", "rewards", "dones"),
        frame_stack=1,
        seq_length=3,
        filter_by_attribute="okay",
        hdf5_cache_mode="all",
        load_next_obs=True,
    )
    okay = load_demonstrations(path).select("okay")
    assert len(dataset) == sum(map(len, okay.actions))
    np.testing.assert_allclose(dataset[0]["actions"], okay.actions[0][:3])
    np.testing.assert_allclose(dataset[0]["obs"]["object"], okay.observations["object"][0][:3])
