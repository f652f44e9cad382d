"""Checkpoints that refer to another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from helpers import POINT, tiny_policy
from zprl_sb3.adapters.base import FrozenPolicy
from zprl_sb3.attached import TRUSTED, Base, save_attached, trust
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
    base = Base("bases/mine.py:make", "module", {"seed": 3})
    monkeypatch.setenv(TRUSTED, "")
    trust(base)
    return base


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
    if base.adapter == "module":
        with pytest.raises(CheckpointError, match=r"export ZPRL_TRUSTED_CODE='.*/project/bases/mine.py:make'"):
            load_policy(tmp_path / "project/runs/x/policy")
        monkeypatch.setenv(TRUSTED, f"other:make,{tmp_path}/project/bases/mine.py:make")
    monkeypatch.chdir("/")
    assert load_policy(tmp_path / "project/runs/x/policy").fingerprint() == policy.fingerprint()
    shutil.rmtree(tmp_path / "project" / "bases")
    with pytest.raises(CheckpointError, match=r"is a bottleneck attached to bases/.*, which cannot be read"):
        load_policy(tmp_path / "project/runs/x/policy")


@pytest.mark.parametrize("path", ["os:mkdir", "evil.py:make"])
def test_code_of_others_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "evil.py").write_text("import os\nos.mkdir('executed')\n")
    folder = tmp_path / "download/policy"
    folder.mkdir(parents=True)
    base = {"path": path, "adapter": "module", "options": {"path": "executed"}, "fingerprint": ""}
    facts = {"format": "zprl_sb3.attached", "format_version": 1, "env_id": None, "bottleneck": {}, "weights_sha256": ""}
    (folder / CONFIG).write_text(json.dumps(facts | {"base": base}))
    monkeypatch.chdir(tmp_path / "download")
    monkeypatch.setenv(TRUSTED, "")
    with pytest.raises(CheckpointError, match=f"and loading it would run that. Look at .*{path}"):
        load_policy(folder)
    assert not Path("executed").exists()


def test_files_in_options_are_where_the_checkpoint_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    env.reset()
    env.step(np.ones((1, 1)))
    env.save("models.pkl")
    PPO("MlpPolicy", env, device="cpu", n_steps=8, batch_size=8, policy_kwargs={"net_arch": [4]}).save("agent.zip")
    base = Base("agent.zip", "sb3", {"normalize": "models.pkl", "action_high": 2.0})
    policy = attached(base, project / "runs/x/policy")
    assert policy.fingerprint() != Base("agent.zip", "sb3").load().fingerprint()
    monkeypatch.chdir("/")
    assert load_policy(project / "runs/x/policy").fingerprint() == policy.fingerprint()


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
