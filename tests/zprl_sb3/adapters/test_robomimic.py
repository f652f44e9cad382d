"""Checkpoints that robomimic wrote, against what its policies did (see fixtures/make_robomimic.py)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch as th

from zprl_sb3.adapters import AdapterError, open_policy
from zprl_sb3.adapters.robomimic import load
from zprl_sb3.openvino import with_openvino

FOLDER = Path(__file__).parent / "fixtures" / "robomimic"
NAMES = ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
GAUSSIANS = ["gaussian_noisy", "gaussian_exp", "gaussian_fixed"]
MIXTURES = ["gmm", "gmm_noisy", "gmm_exp"]


def recorded(name):
    """Observations, and what robomimic made of them."""
    with np.load(FOLDER / f"{name}.npz") as file:
        arrays = {key: th.as_tensor(file[key]) for key in file.files}
    return {key: arrays.pop(key) for key in NAMES}, arrays


@pytest.mark.parametrize("name", ["mlp", "mlp_normalized", "gaussian"])
def test_deterministic_policies(name):
    obs, found = recorded(name)
    policy = open_policy(FOLDER / f"{name}.pth", "robomimic")
    assert (policy.noise_shape, policy.horizon, policy.chunk, policy.context_dim) == ((0,), 1, 1, 14)
    actions = policy.act(policy.embed(obs))
    th.testing.assert_close(actions[:, 0], found["action"], atol=1e-5, rtol=0)
    assert found["action"].std(dim=0).min() > 0.01
    compiled = with_openvino(policy)
    th.testing.assert_close(compiled.act(compiled.embed(obs))[:, 0], found["action"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", GAUSSIANS)
def test_gaussian_noise(name):
    obs, found = recorded(name)
    policy = open_policy(FOLDER / f"{name}.pth", "robomimic")
    assert policy.noise_shape == (7,)
    noise = th.randn(len(found["mean"]), 7)
    actions = policy.act(policy.embed(obs), noise)
    th.testing.assert_close(actions[:, 0], found["mean"] + found["scale"] * noise, atol=1e-5, rtol=0)
    assert name == "gaussian_fixed" or found["scale"].std() > 0.01


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures(name):
    obs, found = recorded(name)
    rows, modes, _ = found["mean"].shape
    policy = open_policy(FOLDER / f"{name}.pth", "robomimic")
    assert policy.noise_shape == (modes + 7,)
    context = policy.embed(obs)

    # Without noise: the mean of the most probable mode.
    best = found["probabilities"].argmax(dim=1)
    assert len(best.unique()) > 1
    actions = policy.act(context, th.zeros(rows, modes + 7))[:, 0]
    th.testing.assert_close(actions, found["mean"][th.arange(rows), best], atol=1e-5, rtol=0)

    # With noise: one of the modes as often as robomimic draws it, and that mode's deviation.
    draws = 3000
    noise = th.randn(draws, modes + 7, generator=th.Generator().manual_seed(0))
    for row in range(3):
        actions = policy.act(context[row].expand(draws, -1), noise)[:, 0]
        options = found["mean"][row] + found["scale"][row] * noise[:, None, modes:]
        distances = (actions[:, None] - options).abs().amax(dim=2)
        assert distances.amin(dim=1).max() < 1e-5
        shares = th.bincount(distances.argmin(dim=1), minlength=modes) / draws
        th.testing.assert_close(shares, found["probabilities"][row], atol=0.035, rtol=0)


def test_the_context_is_the_normalised_observation():
    obs, _ = recorded("mlp_normalized")
    policy = open_policy(FOLDER / "mlp_normalized.pth", "robomimic")
    statistics = th.load(FOLDER / "mlp_normalized.pth", weights_only=True)["obs_normalization_stats"]
    expected = [(obs[key] - th.tensor(statistics[key]["mean"])) / th.tensor(statistics[key]["std"]) for key in NAMES]
    th.testing.assert_close(policy.embed(obs), th.cat(expected, dim=1).float())


def test_the_environments_own_keys():
    obs, found = recorded("mlp")
    proprio = th.cat([obs[key] for key in NAMES[1:]], dim=1)
    options = {"keys": {"low_dim": ["object", "proprio"]}, "shapes": {"object": [5], "proprio": [9]}}
    policy = open_policy(FOLDER / "mlp.pth", "robomimic", **options)
    assert policy.observation_shapes == {"object": (5,), "proprio": (9,)}
    actions = policy.act(policy.embed({"object": obs["object"], "proprio": proprio}))
    th.testing.assert_close(actions[:, 0], found["action"], atol=1e-5, rtol=0)
    renamed = open_policy(FOLDER / "mlp.pth", "robomimic", keys={"object": ["cube"]})
    assert renamed.observation_shapes["cube"] == (5,)
    with pytest.raises(AdapterError, match=r"mlp.pth: the policy's input 'low_dim' is of shape \(14,\), not made of"):
        load(FOLDER / "mlp.pth", **options | {"shapes": {"object": [14], "proprio": [9]}})  # another robot's
    with pytest.raises(ValueError, match="chunk of 2 actions"):
        load(FOLDER / "mlp.pth", chunk=2)


@pytest.mark.parametrize("name", ["mlp", "gaussian_noisy", "gmm"])
def test_gradients_and_loss(name):
    obs, _ = recorded(name)
    policy = open_policy(FOLDER / f"{name}.pth", "robomimic")
    context = policy.embed(obs)
    noise = th.randn(len(context), *policy.noise_shape)
    actions, times = th.zeros(len(context), 1, 7), th.ones(len(context))
    moved = (context + 0.1 * th.randn_like(context)).requires_grad_(True)
    policy.generate(moved, noise).sum().backward()
    assert (moved.grad.abs().sum(dim=1) > 0).all()

    same = policy.imitation_loss(context, context, actions, noise, times)
    th.testing.assert_close(same, th.tensor(0.0), atol=1e-6, rtol=0)
    moved.grad = None
    loss = policy.imitation_loss(moved, context, actions, noise, times)
    loss.backward()
    assert loss > 1e-4
    downhill = (moved - 0.2 * len(context) * moved.grad).detach()
    assert policy.imitation_loss(downhill, context, actions, noise, times) < loss


def test_fingerprints():
    names = ["mlp", "mlp_normalized", "gaussian", *GAUSSIANS, *MIXTURES]
    prints = {open_policy(FOLDER / f"{name}.pth", "robomimic").fingerprint() for name in names}
    assert len(prints) == len(names)
    again = open_policy(FOLDER / "gmm.pth", "robomimic")
    assert again.fingerprint() in prints
    again.network.decoder.low_noise = False
    assert again.fingerprint() not in prints


@pytest.mark.parametrize("kind", ["rnn", "transformer", "vae"])
def test_policies_that_are_not_read(kind):
    with pytest.raises(AdapterError, match=rf"{kind}.pth: it is a BC policy with {kind}; only BC, BC_Gaussian and"):
        load(FOLDER / f"{kind}.pth")


def changed(tmp_path, change, name="mlp_normalized"):
    """A checkpoint in which something is different."""
    content = th.load(FOLDER / f"{name}.pth", weights_only=True)
    config = json.loads(content["config"])
    change(content, config)
    content["config"] = json.dumps(config)
    th.save(content, tmp_path / "changed.pth")
    return tmp_path / "changed.pth"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, _: c.update(algo_name="bcq"), "of robomimic's algorithm 'bcq'"),
        (lambda c, _: c.pop("obs_normalization_stats"), "normalised observations, but lacks the statistics of"),
        (lambda c, _: c["obs_normalization_stats"].pop("object"), "lacks the statistics of"),
        (lambda c, _: c["obs_normalization_stats"]["object"].update(mean=[[0.0]]), "statistics are of different sizes"),
        (lambda c, _: c.update(model={"nets": c["model"]}), "later robomimic than 0.3"),
        (
            lambda c, _: c["model"].pop("policy.nets.mlp._model.2.bias"),
            "changed.pth does not hold .*missing: mlp.2.bias",
        ),
        (lambda c, _: c["model"].update(extra=th.zeros(2)), "not part of it: extra"),
        (lambda c, _: c["shape_metadata"].update(ac_dim=14), r"another shape: decoder.action.bias \(7,\), not \(14,\)"),
        (
            lambda c, _: c["shape_metadata"]["all_shapes"].update(object=[6]),
            "are of 14 values, the policy's input has 15",
        ),
        (lambda _, config: config["algo"].update(actor_layer_dims=[16]), r"another shape|not part of it: mlp.2"),
        (lambda _, config: config["algo"].pop("gaussian"), "lacks or mistakes an entry .*gaussian"),
        (lambda _, config: config["train"].update(frame_stack=2), "sees several frames"),
        (lambda _, config: config["observation"]["modalities"]["obs"].update(rgb=["view"]), "more than vectors: view"),
        (lambda _, config: config["observation"]["modalities"]["goal"].update(low_dim=["object"]), "on goals"),
        (
            lambda _, config: config["observation"]["encoder"]["low_dim"].update(core_class="Mine"),
            "network of their own",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, message):
    with pytest.raises(AdapterError, match=message) as caught:
        load(changed(tmp_path, change))
    assert "changed.pth" in str(caught.value)


def test_another_activation_of_the_deviation(tmp_path):
    path = changed(tmp_path, lambda _, config: config["algo"]["gmm"].update(std_activation="relu"), "gmm")
    with pytest.raises(AdapterError, match="deviation goes through 'relu'"):
        load(path)


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def test_bombs_and_damage(tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "policy.pth"
    content = th.load(FOLDER / "mlp.pth", weights_only=True)
    for part in ("env_metadata", "model"):
        th.save(content | {part: Evil(trace)}, path)
        with pytest.raises(AdapterError, match=r"policy.pth is refused: it asks for posix.mkdir"):
            load(path)
        assert not trace.exists()
    whole = (FOLDER / "mlp.pth").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"no zip", b""):
        path.write_bytes(damaged)
        with pytest.raises(AdapterError, match=r"policy.pth"):
            load(path)
    th.save({"model": {}}, path)
    with pytest.raises(AdapterError, match="no checkpoint of robomimic: it does not hold model, config"):
        load(path)
    with pytest.raises(AdapterError, match="There is no"):
        load(tmp_path / "other.pth")
