"""A bottleneck attached to a frozen policy: what it learns, from what, and what stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from helpers import POINT, point_demonstrations, tiny_policy
from zprl_sb3.adapters import AdaptedPolicy
from zprl_sb3.adapters.module import SplitPolicy
from zprl_sb3.flow import flow_loss
from zprl_sb3.pretrain.attaching import attach_bottleneck, check_demonstrations, embedded
from zprl_sb3.pretrain.demonstrations import Demonstrations, load_demonstrations
from zprl_sb3.wrappers import LatentSteering


@pytest.fixture
def demos(tmp_path: Path) -> Demonstrations:
    return load_demonstrations(point_demonstrations(tmp_path / "demos.hdf5", (12, 9, 11)))


def foreign(**sizes: Any) -> AdaptedPolicy:
    """A policy with a context that is far from [-1, 1] and whose actions need all of it."""
    th.manual_seed(0)
    network = nn.ModuleDict({"encoder": nn.Linear(4, 6), "head": nn.Linear(6, 6)})
    policy = SplitPolicy(
        network,
        embed=lambda obs: 100 + 30 * network["encoder"](obs["state"].flatten(1)[:, -4:]),
        act=lambda context: network["head"]((context - 100) / 30).view(-1, 3, 2),
        observation_shapes={"state": (4,)},
        **sizes,
    )
    policy.freeze()
    return policy


def own_weights(policy: nn.Module) -> dict[str, th.Tensor]:
    added = ("bottleneck", "context_normalizer")
    return {name: x.clone() for name, x in policy.state_dict().items() if not name.startswith(added)}


def test_through_the_bottleneck_a_foreign_policy_comes_to_do_what_it_did(
    demos: Demonstrations, tmp_path: Path, config: Any
) -> None:
    policy = foreign()
    obs = {"state": th.as_tensor(np.concatenate(demos.observations["state"]))}
    before, weights = policy.act(policy.embed(obs)), own_weights(policy)
    settings = config(steps=250, batch_size=32, learning_rate=3e-3, beta=1e-5, validate_every=250, save_every=250)
    assert attach_bottleneck(policy, demos, settings, tmp_path, latent_dim=4) is policy
    assert own_weights(policy).keys() == weights.keys()
    assert all(th.equal(x, weights[name]) for name, x in own_weights(policy).items())
    context = policy.embed(obs)
    assert context.abs().max() < 3  # the held-out episode may be beyond what was fitted
    th.testing.assert_close(policy.act(context), before, atol=1e-4, rtol=1e-4)
    assert policy.bottleneck is not None
    through = policy.act(policy.bottleneck.decode(policy.bottleneck.encode(context)[0]))
    assert (through - before).square().mean() < 0.05 * before.var()
    assert LatentSteering(policy, 0.5).anchor_dim == 4


def test_a_flow_policy_learns_by_its_flow(demos: Demonstrations, tmp_path: Path, config: Any) -> None:
    policy = tiny_policy(env_id=POINT, observation_shapes={"state": (4,)})
    policy.freeze()
    weights = own_weights(policy)
    attach_bottleneck(policy, demos, config(steps=5), tmp_path, latent_dim=3)
    assert all(th.equal(x, weights[name]) for name, x in own_weights(policy).items())
    c, actions, noise, times = th.randn(5, policy.context_dim), th.rand(5, 4, 2), th.randn(5, 4, 2), th.rand(5)
    expected = flow_loss(policy.unet, policy.action_normalizer(actions), noise, times, c)
    th.testing.assert_close(policy.imitation_loss(c, c + 1, actions, noise, times), expected)


def test_an_interrupted_run_ends_as_an_uninterrupted_one(demos: Demonstrations, tmp_path: Path, config: Any) -> None:
    whole, parts = foreign(), foreign()
    attach_bottleneck(whole, demos, config(steps=20), tmp_path / "whole", latent_dim=2)
    (tmp_path / "parts").mkdir()

    class Stop(Exception):
        pass

    loss, calls = parts.imitation_loss, []

    def stopping(*arguments: th.Tensor) -> th.Tensor:
        calls.append(1)
        if len(calls) > 17:  # 10 steps, their validation, and some more
            raise Stop
        return loss(*arguments)

    parts.imitation_loss = stopping  # type: ignore[method-assign]
    with pytest.raises(Stop):
        attach_bottleneck(parts, demos, config(steps=20), tmp_path / "parts", latent_dim=2)
    again = foreign()
    attach_bottleneck(again, demos, config(steps=20), tmp_path / "parts", latent_dim=2)
    assert whole.fingerprint() == again.fingerprint()


def test_windows_begin_where_the_generator_does(demos: Demonstrations) -> None:
    policy = foreign(obs_steps=2)
    policy.target_steps = range(-1, 2)
    windows = embedded(policy, demos, [0, 1])
    _, actions = windows.batch(th.tensor([0, 5, 12]))
    first, second = (th.as_tensor(demos.actions[k]) for k in (0, 1))
    th.testing.assert_close(actions[0], first[[0, 0, 1]])
    th.testing.assert_close(actions[1], first[4:7])
    th.testing.assert_close(actions[2], second[[0, 0, 1]])
    newest = {"state": th.as_tensor(demos.observations["state"][0][4:6][None])}
    th.testing.assert_close(windows.contexts[5:6], policy.embed(newest))


def test_demonstrations_that_do_not_fit_are_refused_before_any_work(demos: Demonstrations) -> None:
    policy = foreign()
    policy.observation_shapes = {"state": (5,)}
    with pytest.raises(ValueError, match=r"sees 'state' of shape \(5,\), .*demos.hdf5 holds \{'state': \(4,\)\}"):
        check_demonstrations(demos, policy)
    policy = foreign()
    policy.action_dim = 7
    with pytest.raises(ValueError, match=r"actions have 7 numbers, those in .*demos.hdf5 2"):
        check_demonstrations(demos, policy)
    policy = foreign()
    policy.env_id = "other/Task-v0"
    with pytest.raises(ValueError, match=r"is of other/Task-v0, .* of .*PointReach-v0: give demonstrations of its own"):
        check_demonstrations(demos, policy)
