import gymnasium as gym
import h5py
import numpy as np
import pytest

from zprl_sb3.pretrain.demonstrations import load_demonstrations
from zprl_sb3.robot_envs.collection import FAMILIES, env_kwargs, family_of
from zprl_sb3.robot_envs.demonstrators import sample_operator
from zprl_sb3.scripts.collect import collect
from zprl_sb3.settings import load_settings


def collected(tmp_path_factory, env_id, *changes, episodes=1):
    pytest.importorskip(family_of(env_id).simulator.replace("-", "_"))
    settings = load_settings("collect.yml", env_id, ["observation=image", *changes])
    return collect(env_id, episodes, 0, tmp_path_factory.mktemp("images") / "demos.hdf5", settings=settings)


@pytest.fixture(scope="module")
def push(tmp_path_factory):
    return collected(tmp_path_factory, "zprl/Push-v0", "max_episode_steps=6", episodes=2)


@pytest.fixture(scope="module")
def lift(tmp_path_factory):
    return collected(tmp_path_factory, "zprl/Lift-v0", "operators.okay.share=0", "operators.worse.share=0")


def test_each_environment_finds_its_demonstrators():
    assert family_of("zprl/Push-v0") is FAMILIES["metaworld"]
    assert family_of("zprl/Transport-v0") is FAMILIES["robosuite"]
    with pytest.raises(ValueError, match="no scripted demonstrator for CartPole-v1, only for tasks of metaworld"):
        family_of("CartPole-v1")
    with pytest.raises(gym.error.Error, match="Lif"):
        family_of("zprl/Lif-v0")


@pytest.mark.parametrize(
    "env_id", ["zprl/Push-v0", "zprl/Lift-v0", "zprl/Can-v0", "zprl/Square-v0", "zprl/Transport-v0"]
)
def test_the_settings_describe_operators_of_the_right_kind(env_id):
    settings = load_settings("collect.yml", env_id)
    kind = family_of(env_id).operator
    for quality, entry in settings["operators"].items():
        operator = sample_operator({quality: {**entry, "share": 1}}, np.random.default_rng(0), kind)
        assert isinstance(operator, kind)
    assert settings["max_episode_steps"] <= gym.spec(env_id).max_episode_steps


def test_only_images_depend_on_the_quality_of_rendering():
    settings = load_settings("collect.yml", "zprl/Push-v0")
    assert env_kwargs(settings) == {"max_episode_steps": 100, "observation": "state"}
    settings = load_settings("collect.yml", "zprl/Push-v0", ["observation=image"])
    assert env_kwargs(settings)["render_quality"] == "fast"
    settings = load_settings("collect.yml", "zprl/Push-v0", ["observation=image", "env_kwargs.render_quality=full"])
    assert env_kwargs(settings)["render_quality"] == "full"


@pytest.mark.parametrize("demos", ["push", "lift"])
def test_images_are_what_the_policy_will_see(demos, request):
    demonstrations = load_demonstrations(request.getfixturevalue(demos))
    env = gym.make(demonstrations.env_id, **demonstrations.env_kwargs)
    assert set(demonstrations.observations) == set(env.observation_space)
    with h5py.File(demonstrations.path) as file:
        demo = file["data/demo_0"]
        observation, _ = env.reset(seed=int(demo.attrs["seed"]))
        for t, action in enumerate(demo["actions"][:6]):
            for key, values in observation.items():
                np.testing.assert_array_equal(demo[f"obs/{key}"][t], values)
            observation, *_ = env.step(action.astype(np.float32))
    env.close()


def test_images_are_compressed_bytes_frame_by_frame(push):
    with h5py.File(push) as file:
        images = file["data/demo_0/obs/corner2_image"]
        assert images.dtype == np.uint8
        assert images.shape == (6, 84, 84, 3)
        assert images.chunks == (1, 84, 84, 3)
        assert images.compression == "gzip"
        assert images.id.get_storage_size() < 0.7 * images.size
        assert set(file["data/demo_0/next_obs"]) == {"object", "proprio"}


def test_one_file_serves_policies_that_see_images_and_those_that_see_the_state(push):
    image, state = (load_demonstrations(push, observation) for observation in ("image", "state"))
    assert set(image.observations) == {"proprio", "corner2_image"} == set(load_demonstrations(push).observations)
    assert set(state.observations) == {"proprio", "object"}
    assert [demos.env_kwargs["observation"] for demos in (image, state)] == ["image", "state"]
    np.testing.assert_array_equal(image.observations["proprio"][0], state.observations["proprio"][0])


def test_an_episode_of_lift_succeeds(lift):
    demonstrations = load_demonstrations(lift)
    assert demonstrations.successes == [True]
    assert demonstrations.qualities == ["better"]
    assert demonstrations.env_kwargs == {"max_episode_steps": 200, "observation": "image", "render_quality": "fast"}
    assert demonstrations.actions[0].shape[1] == 10
