"""What is steered: anchors and chunks against the policy's own parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from numpy.typing import NDArray

from helpers import tiny_policy
from zprl_sb3.checkpoint import CheckpointError, save_policy
from zprl_sb3.wrappers import EmbeddingSteering, LatentSteering, Steering, SteeringSpec
from zprl_sb3.wrappers.steering import episode_rng

OBS = {"state": np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)}
DELTA = np.random.default_rng(1).uniform(-1, 1, (3, 3)).astype(np.float32)


def rngs() -> list[np.random.Generator]:
    return [np.random.default_rng(k) for k in range(3)]


def noise_of(generators: list[np.random.Generator]) -> th.Tensor:
    """The flow noise (B, T, A) that is drawn next."""
    return th.as_tensor(np.stack([rng.standard_normal((4, 2), np.float32) for rng in generators]))


def parts(steering: LatentSteering) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Context, mean and standard deviation of the test's observations."""
    context = steering.policy.embed({"state": th.as_tensor(OBS["state"])})
    return context, *steering.bottleneck.encode(context)


@pytest.mark.parametrize("scale", [0, -0.2, float("nan"), float("inf"), "0.2", None, (0.1, 0, 0.1)])
@pytest.mark.parametrize("kind", [LatentSteering, EmbeddingSteering])
def test_a_scale_that_is_not_positive_is_refused(kind: type[Steering], scale: Any) -> None:
    with pytest.raises(ValueError, match=r"scale \(λ\) must be a positive number"):
        kind(tiny_policy(), scale)


def test_each_dimension_may_have_a_scale_of_its_own() -> None:
    scales = (0.1, 0.5, 2.0)
    steering, alike = LatentSteering(tiny_policy(), scales), LatentSteering(tiny_policy(), 1.0)
    observation = steering.observe(OBS, rngs())
    moved = {"c": observation["c"], "z": observation["z"] + np.array(scales, np.float32) * DELTA}
    still = np.zeros_like(DELTA)
    np.testing.assert_array_equal(steering.act(observation, DELTA, rngs()), alike.act(moved, still, rngs()))
    assert steering.spec(0.9).scale == scales
    with pytest.raises(ValueError, match="scale has 2 values of λ, but z has 3 dimensions"):
        LatentSteering(tiny_policy(), (0.1, 0.2)).spec(0.9)


class Half:
    """Has some members of a policy."""

    action_dim, chunk, bottleneck = 2, 2, None

    def embed(self, obs: Any) -> Any:
        return obs["state"]


@pytest.mark.parametrize("kind", [LatentSteering, EmbeddingSteering])
def test_an_object_that_is_no_policy_is_refused_with_all_that_it_lacks(kind: type[Steering]) -> None:
    lacking = "observation_shapes, obs_steps, env_id, horizon, noise_shape, context_dim, device, act, fingerprint"
    with pytest.raises(TypeError, match=rf"^Half cannot be steered: it lacks {lacking} \("):
        kind(Half(), 0.5)  # type: ignore[arg-type]


def test_another_kind_of_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise is 'normal' or 'zero', not 'pink'"):
        LatentSteering(tiny_policy(), 0.5, noise="pink")  # type: ignore[arg-type]


def test_a_policy_without_bottleneck_has_no_latent_to_steer() -> None:
    with pytest.raises(ValueError, match="no bottleneck"):
        LatentSteering(tiny_policy(latent_dim=None), 0.5)
    assert EmbeddingSteering(tiny_policy(latent_dim=None), 0.5).anchor_dim == 4


def test_a_path_is_as_good_as_the_policy(tmp_path: Path) -> None:
    policy = tiny_policy()
    path = save_policy(policy, tmp_path / "policy")
    for given in (path, str(path)):
        steering = LatentSteering(given, 0.5)
        assert steering.policy.fingerprint() == policy.fingerprint()
    with pytest.raises(CheckpointError, match="nowhere"):
        LatentSteering(tmp_path / "nowhere", 0.5)


def test_its_spaces_have_the_policys_sizes() -> None:
    steering = LatentSteering(tiny_policy(latent_dim=3), 0.5)
    assert {key: space.shape for key, space in steering.observation_space.items()} == {"c": (4,), "z": (3,)}
    assert (steering.action_space.low == -1).all()
    assert (steering.action_space.high == 1).all()
    assert steering.action_space.shape == (3,)


def test_the_anchor_is_the_mean_of_the_posterior() -> None:
    steering = LatentSteering(tiny_policy(), 0.5)
    context, mean, _ = parts(steering)
    shown = steering.observe(OBS, rngs())
    np.testing.assert_array_equal(shown["c"], context)
    np.testing.assert_array_equal(shown["z"], mean)


def test_a_sampled_anchor_is_a_standard_deviation_times_noise_away() -> None:
    steering = LatentSteering(tiny_policy(), 0.5, sample_latent=True)
    _, mean, std = parts(steering)
    z = steering.observe(OBS, rngs())["z"]
    draws = np.stack([rng.standard_normal(3, np.float32) for rng in rngs()])
    np.testing.assert_allclose((z - mean.numpy()) / std.numpy(), draws, rtol=1e-4, atol=1e-5)
    assert np.abs(z - mean.numpy()).min() > 0


def test_sampled_anchors_spread_like_the_posterior() -> None:
    steering = LatentSteering(tiny_policy(), 0.5, sample_latent=True)
    _, mean, std = parts(steering)
    rng = np.random.default_rng(0)
    many = np.stack([steering.observe(OBS, [rng] * 3)["z"] for _ in range(1500)])
    np.testing.assert_allclose(many.mean(axis=0), mean, atol=0.1 * float(std.max()))
    np.testing.assert_allclose(many.std(axis=0), std, rtol=0.1)


@pytest.mark.parametrize("noise", ["normal", "zero"])
def test_steering_by_nothing_is_the_base_policy_through_the_mean(noise: Any) -> None:
    steering = LatentSteering(tiny_policy(), 0.5, noise=noise)
    _, mean, _ = parts(steering)
    chunk = steering.act(steering.observe(OBS, rngs()), np.zeros((3, 3)), rngs())
    flow_noise = noise_of(rngs()) if noise == "normal" else th.zeros(3, 4, 2)
    expected = steering.policy.act(steering.bottleneck.decode(mean), flow_noise)
    np.testing.assert_array_equal(chunk, expected[:, :2])


def test_steering_by_delta_decodes_the_moved_latent() -> None:
    steering = LatentSteering(tiny_policy(), 0.3)
    shown = steering.observe(OBS, rngs())
    moved = th.as_tensor(shown["z"] + np.float32(0.3) * DELTA)
    expected = steering.policy.act(steering.bottleneck.decode(moved), noise_of(rngs()))[:, :2]
    chunk = steering.act(shown, DELTA, rngs())
    np.testing.assert_array_equal(chunk, expected)
    still = steering.act(shown, np.zeros_like(DELTA), rngs())
    assert np.abs(chunk - still).max() > 1e-6


def test_a_delta_beyond_its_box_is_clipped_to_it() -> None:
    steering = LatentSteering(tiny_policy(), 0.3)
    shown = steering.observe(OBS, rngs())
    far = np.float32([[1.5, -7, 0.3], [0, 1, -1], [1e30, -1e30, 1.0001]])
    box = np.float32([[1, -1, 0.3], [0, 1, -1], [1, -1, 1]])
    np.testing.assert_array_equal(steering.act(shown, far, rngs()), steering.act(shown, box, rngs()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_delta_that_is_not_finite_is_refused_before_anything_is_drawn(bad: float) -> None:
    steering = LatentSteering(tiny_policy(), 0.3)
    generators = rngs()
    delta = DELTA.copy()
    delta[0, 2] = delta[2, 1] = bad
    with pytest.raises(ValueError, match=r"Δz is not finite \(NaN or infinite in environments \[0, 2\]\)"):
        steering.act(steering.observe(OBS, rngs()), delta, generators)
    assert th.equal(noise_of(generators), noise_of(rngs()))


def test_without_flow_noise_the_generators_do_not_matter() -> None:
    steering = LatentSteering(tiny_policy(), 0.5, noise="zero")
    shown = steering.observe(OBS, rngs())
    others = [np.random.default_rng(k + 50) for k in range(3)]
    np.testing.assert_array_equal(steering.act(shown, DELTA, rngs()), steering.act(shown, DELTA, others))
    noisy = LatentSteering(tiny_policy(), 0.5)
    assert (noisy.act(shown, DELTA, rngs()) != noisy.act(shown, DELTA, others)).any()


def test_steering_the_embedding_by_nothing_is_the_policy_without_bottleneck() -> None:
    steering = EmbeddingSteering(tiny_policy(latent_dim=None), 0.5)
    shown = steering.observe(OBS, rngs())
    np.testing.assert_array_equal(shown["c"], shown["z"])
    context = th.as_tensor(shown["c"])
    expected = steering.policy.act(context, noise_of(rngs()))[:, :2]
    np.testing.assert_array_equal(steering.act(shown, np.zeros((3, 4)), rngs()), expected)
    step = np.float32(np.ones((3, 4)))
    moved = steering.policy.act(context + 0.5, noise_of(rngs()))[:, :2]
    np.testing.assert_allclose(steering.act(shown, step, rngs()), moved, atol=1e-6)


def test_each_environment_has_its_own_generator() -> None:
    steering = LatentSteering(tiny_policy(), 0.5, sample_latent=True)
    together = steering.observe(OBS, rngs())
    chunks = steering.act(together, DELTA, rngs())
    for k in range(3):
        alone = steering.observe({"state": OBS["state"][k : k + 1]}, [rngs()[k]])
        np.testing.assert_allclose(alone["z"][0], together["z"][k], atol=1e-6)
        one = {key: value[k : k + 1] for key, value in together.items()}
        np.testing.assert_allclose(steering.act(one, DELTA[k : k + 1], [rngs()[k]])[0], chunks[k], atol=1e-6)


def test_the_noise_of_an_episode_is_not_that_of_its_layout() -> None:
    assert episode_rng(4).normal() == episode_rng(4).normal()
    assert episode_rng(4).normal() != np.random.default_rng(4).normal()
    assert episode_rng(4).normal() != episode_rng(5).normal()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "embedding"}, "steering latent, the environment has embedding"),
        ({"scale": 0.2}, r"scale \(λ\) 0.5, the environment has 0.2"),
        ({"chunk": 4}, "chunk length 2, the environment has 4"),
        ({"gamma": 0.99}, "gamma per env step 0.9, the environment has 0.99"),
        ({"policy": "other"}, r"base policy \(fingerprint\) \w+, the environment has other"),
    ],
)
def test_what_differs_from_a_saved_model_is_named(change: dict[str, Any], words: str) -> None:
    spec = LatentSteering(tiny_policy(), 0.5).spec(gamma=0.9)
    spec.require_same(LatentSteering(tiny_policy(), 0.5).spec(gamma=0.9))
    with pytest.raises(ValueError, match=words):
        spec.require_same(replace(spec, **change))


def test_the_discount_between_chunks_is_gamma_to_the_chunk() -> None:
    spec = SteeringSpec("latent", 0.5, chunk=4, gamma=0.9, policy="")
    assert spec.chunk_discount == pytest.approx(0.9 * 0.9 * 0.9 * 0.9)


def test_observations_come_back_as_new_arrays() -> None:
    """The context of a policy without encoder must not be the environment's own memory."""
    steering = LatentSteering(tiny_policy(), 0.5)
    raw: dict[str, NDArray[np.float32]] = {"state": OBS["state"].copy()}
    shown = steering.observe(raw, rngs())
    raw["state"][:] = 7
    np.testing.assert_array_equal(shown["c"], steering.observe(OBS, rngs())["c"])
