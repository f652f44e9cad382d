"""Checkpoints that refer to another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch as th

from helpers import POINT, tiny_policy
from zprl_sb3.adapters.base import FrozenPolicy
from zprl_sb3.attached import Base, save_attached
from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
from zprl_sb3.checkpoint import CONFIG, WEIGHTS, CheckpointError, load_policy, save_policy

MINE = """
import torch as th
from torch import nn
from zprl_sb3.adapters.module import SplitPolicy

def make(seed=0):
    th.manual_seed(seed)
    network = nn.Linear(4, 6)
    return SplitPolicy(network, lambda obs: obs["state"], lambda c: network(c).view(-1, 3, 2), {"state": (4,)})
"""


def attached(base: Base, path: Path) -> FrozenPolicy:
    policy = base.load()
    fingerprint = policy.fingerprint()
    policy.env_id = POINT
    policy.fit_context(th.randn(20, policy.context_dim))
    policy.bottleneck = Bottleneck(policy.context_dim, BottleneckConfig(2, 8))
    save_attached(policy, path, base, fingerprint, env_kwargs={"reach": 0.3}, dataset_sha256="0")
    return policy


@pytest.fixture(params=["module", "zprl"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    """A foreign policy and one of ours, by a relative path."""
    monkeypatch.chdir(tmp_path)
    if request.param == "zprl":
        save_policy(tiny_policy(env_id=POINT, observation_shapes={"state": (4,)}), Path("bases/policy"))
        return Base("bases/policy", "zprl", {"sampling_steps": 4})
    Path("bases").mkdir()
    Path("bases/mine.py").write_text(MINE)
    return Base("bases/mine.py:make", "module", {"seed": 3})


def test_the_policy_comes_back_whole(base: Base, tmp_path: Path) -> None:
    policy = attached(base, tmp_path / "runs/x/policy")
    again = load_policy(tmp_path / "runs/x/policy", chunk=1)
    assert again.fingerprint() == policy.fingerprint()
    assert (again.env_id, again.chunk) == (POINT, 1)
    assert not any(weight.requires_grad for weight in again.parameters())
    obs, noise = {"state": th.randn(3, 4)}, th.randn(3, *policy.noise_shape)
    context = again.embed(obs)
    assert th.equal(context, policy.embed(obs))
    assert policy.bottleneck is not None
    assert again.bottleneck is not None
    latent = again.bottleneck.encode(context)[0]
    assert th.equal(again.bottleneck.decode(latent), policy.bottleneck.decode(latent))
    assert th.equal(again.act(context, noise), policy.act(context, noise))


def test_a_moved_project_still_finds_it(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = attached(base, tmp_path / "project/runs/x/policy")
    shutil.move(tmp_path / "bases", tmp_path / "project" / "bases")
    monkeypatch.chdir("/")
    assert load_policy(tmp_path / "project/runs/x/policy").fingerprint() == policy.fingerprint()
    shutil.rmtree(tmp_path / "project" / "bases")
    with pytest.raises(CheckpointError, match=r"is a bottleneck attached to bases/.*, which cannot be read"):
        load_policy(tmp_path / "project/runs/x/policy")


def test_a_base_that_has_changed_is_refused(base: Base, tmp_path: Path) -> None:
    attached(base, tmp_path / "policy")
    if base.adapter == "zprl":
        save_policy(tiny_policy(env_id=POINT, observation_shapes={"state": (4,)}, seed=5), Path("bases/policy"))
    else:
        Path("bases/mine.py").write_text(MINE.replace("manual_seed(seed)", "manual_seed(seed + 1)"))
    with pytest.raises(CheckpointError, match=r"is not the policy any more .* has changed\. Put the old one back"):
        load_policy(tmp_path / "policy")


def no_base(config: dict[str, Any]) -> None:
    config["base"] = {"path": "x"}


def other_adapter(config: dict[str, Any]) -> None:
    config["base"]["adapter"] = "onnx"


def other_option(config: dict[str, Any]) -> None:
    config["base"]["options"] = {"speed": 3}


def other_size(config: dict[str, Any]) -> None:
    config["bottleneck"]["latent_dim"] = 5


def newer(config: dict[str, Any]) -> None:
    config["format_version"] = 9


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_base, "does not say what it was attached to"),
        (other_adapter, "There is no adapter 'onnx'"),
        (other_option, "has no such option"),
        (other_size, "do not fit each other"),
        (newer, "has format version 9, this zprl_sb3 reads up to 1"),
    ],
)
def test_a_damaged_configuration_is_named(base: Base, tmp_path: Path, damage: Any, words: str) -> None:
    attached(base, tmp_path / "policy")
    file = tmp_path / "policy" / CONFIG
    config = json.loads(file.read_text())
    damage(config)
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=words):
        load_policy(tmp_path / "policy")


def test_truncated_weights_are_named(base: Base, tmp_path: Path) -> None:
    attached(base, tmp_path / "policy")
    file = tmp_path / "policy" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="is truncated or changed"):
        load_policy(tmp_path / "policy")
