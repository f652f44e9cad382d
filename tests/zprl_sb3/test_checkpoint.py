from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch as th

from helpers import POINT_ID, tiny_policy
from zprl_sb3.checkpoint import (
    CONFIG,
    FORMAT,
    VERSIONS,
    WEIGHTS,
    CheckpointError,
    load_policy,
    read_config,
    save_policy,
)
from zprl_sb3.files import sha256
from zprl_sb3.policy import IMAGE_SETTINGS, FlowPolicy


def fitted_policy(**config: Any) -> FlowPolicy:
    policy = tiny_policy(env_id=POINT_ID, encoder_sizes=(6, 5), **config)
    policy.obs_normalizer.fit(th.randn(9, 4))
    policy.action_normalizer.fit(th.randn(9, 2))
    return policy


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_policy(fitted_policy(), tmp_path / "policy", dataset_sha256="abc", env_kwargs={"reach": 0.3})


def edit(checkpoint: Path, **changes: Any) -> None:
    config = json.loads((checkpoint / CONFIG).read_text())
    (checkpoint / CONFIG).write_text(json.dumps(config | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("latent_dim", [3, None])
def test_a_loaded_policy_equals_the_saved_one_bit_for_bit(tmp_path: Path, latent_dim: int | None) -> None:
    policy = fitted_policy(latent_dim=latent_dim)
    loaded = load_policy(save_policy(policy, tmp_path / "policy"))
    assert loaded.config == policy.config
    assert loaded.env_id == POINT_ID
    assert loaded.fingerprint() == policy.fingerprint()
    assert (loaded.bottleneck is None) == (latent_dim is None)
    before, after = policy.state_dict(), loaded.state_dict()
    assert set(before) == set(after)
    assert any(name.startswith("action_normalizer") for name in before)
    for name in before:
        assert th.equal(before[name], after[name]), name
    obs, noise = {"state": th.randn(2, 4)}, th.randn(2, 4, 2)
    assert th.equal(loaded.act(loaded.embed(obs), noise), policy.act(policy.embed(obs), noise))


def test_a_loaded_policy_is_frozen(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)
    assert not policy.training
    assert not any(weight.requires_grad for weight in policy.parameters())


def test_metadata_and_versions_are_kept(checkpoint: Path) -> None:
    config = read_config(checkpoint)
    assert config["dataset_sha256"] == "abc"
    assert config["env_kwargs"] == {"reach": 0.3}
    assert config["env_id"] == POINT_ID
    assert config["versions"]["torch"] == th.__version__
    assert config["weights_sha256"] == sha256(checkpoint / WEIGHTS)


def test_the_folder_holds_json_and_safetensors_and_no_pickle(checkpoint: Path) -> None:
    assert set(contents(checkpoint)) == {CONFIG, WEIGHTS}
    data = (checkpoint / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    assert set(header) - {"__metadata__"} == set(fitted_policy().state_dict())
    assert 8 + length + max(entry["data_offsets"][1] for entry in header.values()) == len(data)


def test_an_error_while_saving_leaves_the_old_checkpoint(checkpoint: Path) -> None:
    before = contents(checkpoint)
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_policy(fitted_policy(), checkpoint, note=object())
    assert contents(checkpoint) == before
    assert {path.name for path in checkpoint.parent.iterdir()} == {"policy"}
    load_policy(checkpoint)


def test_saving_again_replaces_the_checkpoint(checkpoint: Path) -> None:
    policy = fitted_policy(seed=5)
    save_policy(policy, checkpoint)
    assert load_policy(checkpoint).fingerprint() == policy.fingerprint()
    assert "dataset_sha256" not in read_config(checkpoint)
    assert {path.name for path in checkpoint.parent.iterdir()} == {"policy"}


def test_a_kill_between_the_two_renames_of_a_replacement_costs_nothing(checkpoint: Path) -> None:
    fingerprint = load_policy(checkpoint).fingerprint()
    os.replace(checkpoint, checkpoint.parent / ".policy.old")
    assert load_policy(checkpoint).fingerprint() == fingerprint
    # What is wrong is said of the checkpoint, not of where it lay.
    os.replace(checkpoint, checkpoint.parent / ".policy.old")
    truncate_weights(checkpoint.parent / ".policy.old")
    with pytest.raises(CheckpointError, match="truncated or changed") as caught:
        load_policy(checkpoint)
    assert str(checkpoint / WEIGHTS) in str(caught.value)


def test_a_checkpoint_of_the_first_format_is_read(checkpoint: Path) -> None:
    """It had sizes instead of shapes, and knew no images."""
    policy = read_config(checkpoint)["policy"]
    shapes = policy.pop("observation_shapes")
    policy["observation_dims"] = {key: size for key, (size,) in shapes.items()}
    for name in IMAGE_SETTINGS:
        del policy[name]
    fingerprint = load_policy(checkpoint).fingerprint()
    edit(checkpoint, policy=policy, format_version=1)
    assert load_policy(checkpoint).fingerprint() == fingerprint


def test_the_chunk_is_chosen_while_loading(checkpoint: Path) -> None:
    assert load_policy(checkpoint).chunk == 2
    assert load_policy(checkpoint, chunk=4).chunk == 4
    # h says how much of the plan is executed, it is no property of the weights.
    assert load_policy(checkpoint, chunk=4).fingerprint() == load_policy(checkpoint).fingerprint()


@pytest.mark.parametrize("chunk", [0, 5])
def test_a_chunk_beyond_the_horizon_is_refused(checkpoint: Path, chunk: int) -> None:
    with pytest.raises(ValueError, match=rf"chunk of {chunk} actions .* predicts 4 \(choose 1 to 4\)"):
        load_policy(checkpoint, chunk=chunk)


def truncate_weights(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


def write_rubbish(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"these are no weights")
    edit(folder, weights_sha256=sha256(folder / WEIGHTS))


def widen(folder: Path) -> None:
    edit(folder, policy=read_config(folder)["policy"] | {"unet_widths": [8, 24]})


def add_unknown_setting(folder: Path) -> None:
    edit(folder, policy=read_config(folder)["policy"] | {"flux": 1})


def make_horizon_odd(folder: Path) -> None:
    edit(folder, policy=read_config(folder)["policy"] | {"horizon": 5})


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "weights missing": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS, "is missing: the checkpoint is incomplete"),
    "weights truncated": (truncate_weights, WEIGHTS, "truncated or changed"),
    "weights with one other bit": (flip_a_bit, WEIGHTS, "truncated or changed"),
    "weights that are none": (write_rubbish, WEIGHTS, "not a readable safetensors file"),
    "weights of another network": (widen, WEIGHTS, f"does not fit {CONFIG}"),
    "config missing": (lambda f: (f / CONFIG).unlink(), CONFIG, "does not exist"),
    "config cut off": (lambda f: (f / CONFIG).write_text('{"format": "zprl'), CONFIG, "is damaged"),
    "config not text": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), CONFIG, "is damaged"),
    "config of another project": (lambda f: (f / CONFIG).write_text('{"model": "bert"}'), CONFIG, "not a zprl_sb3"),
    "config that is a list": (lambda f: (f / CONFIG).write_text("[1]"), CONFIG, "not a zprl_sb3"),
    "newer format": (lambda f: edit(f, format_version=VERSIONS[FORMAT] + 1), CONFIG, "upgrade it"),
    "format in words": (lambda f: edit(f, format_version="1"), CONFIG, "format_version is a whole number, not '1'"),
    "format as a list": (lambda f: edit(f, format_version=[1]), CONFIG, r"whole number, not \[1\]"),
    "format unknown": (lambda f: edit(f, format_version=None), CONFIG, "whole number, not None"),
    "config without its entries": (
        lambda f: (f / CONFIG).write_text('{"format": "zprl_sb3.policy"}'),
        CONFIG,
        "lacks format_version, env_id, bottleneck, weights_sha256, policy",
    ),
    "unknown setting": (add_unknown_setting, CONFIG, "lacks or mistakes a setting: .*flux"),
    "setting lost": (lambda f: edit(f, policy={"action_dim": 2}), CONFIG, "lacks or mistakes a setting: .*observation"),
    "negative size": (
        lambda f: edit(f, policy=read_config(f)["policy"] | {"action_dim": -1}),
        CONFIG,
        "mistakes a setting",
    ),
    "impossible setting": (make_horizon_odd, CONFIG, "mistakes a setting: horizon 5"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_wrong_with_a_checkpoint_is_said_with_the_name_of_the_file(checkpoint: Path, damage: str) -> None:
    apply, file, message = DAMAGE[damage]
    apply(checkpoint)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_policy(checkpoint)
    assert str(checkpoint / file) in str(caught.value)


def test_a_folder_that_does_not_exist_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="zprl pretrain") as caught:
        load_policy(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_a_checkpoint_error_is_a_value_error() -> None:
    assert issubclass(CheckpointError, ValueError)
