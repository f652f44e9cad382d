from __future__ import annotations

import copy
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch as th

from helpers import tiny_policy
from zprl_sb3.policy import IMAGE_SETTINGS, FlowPolicy, check_chunk, fingerprint, missing_members

CONTEXT = th.tensor([[0.1, -0.2, 0.3, -0.4], [1.0, 0.5, -0.5, -1.0]])


def fixed_policy() -> FlowPolicy:
    """Return a policy whose weights follow a formula, so that its numbers outlive changes of torch's generators."""
    policy = tiny_policy(encoder_sizes=(6, 4), unet_widths=(32, 64), time_dim=8, horizon=4)
    with th.no_grad():
        for index, weight in enumerate(policy.parameters()):
            values = th.arange(weight.numel(), dtype=th.float64).mul(1.7).add(index).sin()
            weight.copy_(values.reshape(weight.shape) / max(1, weight[0].numel()) ** 0.5)
    policy.obs_normalizer.fit(th.tensor([[-1.0, -2.0, 0.0, 1.0], [1.0, 2.0, 4.0, 1.0]]))
    policy.action_normalizer.fit(th.tensor([[-0.5, 0.0], [0.5, 1.0]]))
    return policy


def fixed_noise() -> th.Tensor:
    return th.arange(16, dtype=th.float64).mul(2.3).cos().reshape(2, 4, 2).float()


# Computed once. A change of these numbers is a change of every policy that was ever trained.
GOLDEN_CONTEXT = [[0.733555, -0.852712, -0.686182, 1.969406], [0.842098, -0.756779, -0.931768, 2.2243]]
GOLDEN_ACTIONS = [
    [[-0.233824, 0.175191], [-0.801955, 0.906411], [-1.224404, 0.747394], [-0.583242, 0.034526]],
    [[-0.283626, 0.370217], [-1.012582, 0.991377], [-1.127534, 0.533221], [-0.394377, -0.0024]],
]
GOLDEN_BOTTLENECK = [
    [[-0.23398, 0.175102], [-0.802278, 0.906283], [-1.223997, 0.747844], [-0.58303, 0.034738]],
    [[-0.283631, 0.370258], [-1.012854, 0.991295], [-1.127113, 0.533682], [-0.394238, -0.002233]],
]


def test_a_policy_with_known_weights_acts_as_it_always_did() -> None:
    policy = fixed_policy()
    context = policy.embed({"state": CONTEXT[:, None]})
    th.testing.assert_close(context, th.tensor(GOLDEN_CONTEXT), atol=1e-5, rtol=0)
    actions = policy.act(context, fixed_noise())
    th.testing.assert_close(actions, th.tensor(GOLDEN_ACTIONS), atol=1e-5, rtol=0)
    assert policy.bottleneck is not None
    decoded = policy.bottleneck.decode(policy.bottleneck.encode(context)[0])
    th.testing.assert_close(policy.act(decoded, fixed_noise()), th.tensor(GOLDEN_BOTTLENECK), atol=1e-5, rtol=0)


def test_without_an_encoder_the_context_is_the_normalised_observation() -> None:
    policy = tiny_policy(observation_shapes={"point": (2,), "goal": (2,)})
    policy.obs_normalizer.fit(th.tensor([[0.0, 0.0, -1.0, -1.0], [4.0, 2.0, 1.0, 1.0]]))
    obs = {"point": th.tensor([[0.5, -1.0]]), "goal": th.tensor([[1.0, 2.0]])}
    # The keys come in alphabetical order, whatever their order in the configuration and in the observation.
    assert policy.embed(obs).tolist() == [[-0.5, 1.0, 0.5, -1.0]]


def test_a_history_of_frames_is_embedded_frame_by_frame_oldest_first() -> None:
    policy = tiny_policy(obs_steps=2, encoder_sizes=(6, 3))
    assert policy.context_dim == 6
    frames = th.randn(5, 2, 4)
    context = policy.embed({"state": frames})
    assert context.shape == (5, 6)
    for frame in (0, 1):
        alone = policy.encoder(policy.obs_normalizer(frames[:, frame]))
        th.testing.assert_close(context[:, 3 * frame : 3 * frame + 3], alone)


def test_double_observations_are_accepted() -> None:
    policy = tiny_policy()
    obs = th.randn(2, 4)
    assert th.equal(policy.embed({"state": obs.double()}), policy.embed({"state": obs}))


def test_acting_returns_the_whole_horizon_in_the_units_of_the_environment() -> None:
    policy = tiny_policy()
    plain = policy.act(CONTEXT, fixed_noise())
    assert plain.shape == (2, 4, 2)
    policy.action_normalizer.fit(th.tensor([[0.0, -1.0], [10.0, 1.0]]))
    th.testing.assert_close(policy.act(CONTEXT, fixed_noise()), plain * th.tensor([5.0, 1.0]) + th.tensor([5.0, 0.0]))


def test_noise_comes_from_the_given_generator() -> None:
    policy = tiny_policy()
    first = policy.act(CONTEXT, generator=th.Generator().manual_seed(7))
    state = th.get_rng_state()
    again = policy.act(CONTEXT, generator=th.Generator().manual_seed(7))
    assert th.equal(first, again)
    assert th.equal(th.get_rng_state(), state), "torch's own generator was used"
    assert not th.equal(first, policy.act(CONTEXT, generator=th.Generator().manual_seed(8)))
    noise = th.randn(2, 4, 2, generator=th.Generator().manual_seed(7))
    assert th.equal(first, policy.act(CONTEXT, noise))


def test_more_sampling_steps_change_the_actions() -> None:
    coarse, fine = tiny_policy(sampling_steps=1), tiny_policy(sampling_steps=5)
    assert (coarse.act(CONTEXT, fixed_noise()) - fine.act(CONTEXT, fixed_noise())).abs().max() > 1e-4


def test_embedding_and_acting_keep_no_gradients_even_of_a_policy_in_training() -> None:
    policy = tiny_policy(encoder_sizes=(6, 3)).requires_grad_(True)
    context = policy.embed({"state": th.randn(2, 4)})
    assert not context.requires_grad
    assert not policy.act(context).requires_grad
    assert policy.context({"state": th.randn(2, 4)}).requires_grad


def test_freezing_ends_training_of_every_weight() -> None:
    policy = tiny_policy().train().requires_grad_(True)
    frozen = policy.freeze()
    assert frozen is policy
    assert not policy.training
    assert not any(weight.requires_grad for weight in policy.parameters())


def test_the_fingerprint_changes_with_every_tensor() -> None:
    policy = tiny_policy()
    whole = policy.fingerprint()
    assert whole == copy.deepcopy(policy).fingerprint()
    seen = {whole}
    for name, tensor in policy.state_dict().items():
        before = tensor.clone()
        tensor.view(-1)[-1] += 1e-3
        seen.add(policy.fingerprint())
        tensor.copy_(before)
        assert policy.fingerprint() == whole, name
    assert len(seen) == 1 + len(policy.state_dict())


def test_the_fingerprint_changes_with_every_setting_of_the_architecture() -> None:
    policy = tiny_policy()
    changes: dict[str, Any] = {
        "observation_shapes": {"other": (4,)},
        "action_dim": 3,
        "obs_steps": 2,
        "horizon": 8,
        "unet_widths": (8, 32),
        "time_dim": 16,
        "encoder_sizes": (4,),
        "sampling_steps": 5,
        "objective": "diffusion",
    }
    assert {*changes, "chunk", *IMAGE_SETTINGS} == set(vars(policy.config))
    seen = {policy.fingerprint()}
    for name, value in changes.items():
        other = copy.deepcopy(policy)  # with the same weights
        other.config = replace(policy.config, **{name: value})
        seen.add(other.fingerprint())
    assert len(seen) == 1 + len(changes)


def test_tensors_that_numpy_does_not_know_have_a_fingerprint() -> None:
    first, second = (fingerprint({"a": th.tensor(value, dtype=th.bfloat16)}, "") for value in (1.0, 2.0))
    assert first != second
    assert fingerprint({"a": th.tensor([1.0, 2.0])}, "") == sha256(b"a" + np.float32([1, 2]).tobytes()).hexdigest()


def test_the_fingerprint_does_not_tell_lists_from_tuples() -> None:
    """A configuration that went through JSON holds lists."""
    assert tiny_policy(unet_widths=[8, 16]).fingerprint() == tiny_policy(unet_widths=(8, 16)).fingerprint()


def test_the_fingerprint_knows_neither_the_chunk_nor_the_order_of_the_keys() -> None:
    first = tiny_policy(observation_shapes={"point": (2,), "goal": (2,)}, chunk=2)
    second = tiny_policy(observation_shapes={"goal": (2,), "point": (2,)}, chunk=4)
    assert first.fingerprint() == second.fingerprint()
    # The same weights on other keys are another policy.
    assert first.fingerprint() != tiny_policy(observation_shapes={"goal": (2,), "zenith": (2,)}).fingerprint()


def test_a_policy_lacks_what_the_protocol_names_and_it_does_not_have() -> None:
    class Half:
        action_dim = 2
        bottleneck = None

        def embed(self, obs: Any) -> Any:
            return obs

    everything = {"observation_shapes", "action_dim", "obs_steps", "chunk", "env_id", "horizon", "noise_shape"} | {
        "context_dim", "bottleneck", "device", "embed", "act", "fingerprint"
    }  # fmt: skip
    assert set(missing_members(object())) == everything
    assert set(missing_members(Half())) == everything - {"action_dim", "bottleneck", "embed"}
    assert missing_members(tiny_policy()) == []
    assert missing_members(tiny_policy(latent_dim=None)) == []


def test_the_same_seed_makes_the_same_policy() -> None:
    assert tiny_policy(seed=1).fingerprint() == tiny_policy(seed=1).fingerprint()
    assert tiny_policy(seed=1).fingerprint() != tiny_policy(seed=2).fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 6, "unet_widths": (8, 16, 32)}, "horizon 6 must be a multiple of 4 for a U-Net of 3 levels"),
        ({"horizon": 3, "unet_widths": (8, 16)}, "horizon 3 must be a multiple of 2"),
        ({"horizon": 4, "chunk": 5}, r"A chunk of 5 actions cannot be executed: .* predicts 4 \(choose 1 to 4\)"),
        ({"horizon": 4, "chunk": 0}, "A chunk of 0 actions"),
        ({"horizon": 0, "chunk": 1}, "A chunk of 1 actions"),
        ({"objective": "score"}, "objective is one of flow, diffusion, not 'score'"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_policy(**changes)


@pytest.mark.parametrize("chunk", [1, 4])
def test_any_chunk_up_to_the_horizon_is_accepted(chunk: int) -> None:
    check_chunk(chunk, 4)
    assert tiny_policy(chunk=chunk).chunk == chunk
