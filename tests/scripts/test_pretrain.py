"""``zprl pretrain``: from a demonstration file to a checkpoint, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from helpers import PUSH
from programs import pretrain_command
from zprl_sb3.checkpoint import load_policy, read_config
from zprl_sb3.files import sha256
from zprl_sb3.pretrain.configuration import by_task, compose, steps_of
from zprl_sb3.pretrain.loop import STATE
from zprl_sb3.pretrain.trainer import Trainer
from zprl_sb3.scripts import pretrain as program
from zprl_sb3.scripts.common import read_yaml
from zprl_sb3.scripts.evaluate import WAYS
from zprl_sb3.scripts.pretrain import evaluate_checkpoint


@pytest.fixture(scope="module")
def base(push_demos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run; look at it only."""
    from zprl_sb3.scripts import cli

    output = tmp_path_factory.mktemp("base") / "base"
    assert cli.main(pretrain_command(push_demos, output)) == 0
    return output


def test_the_checkpoint_says_where_it_comes_from(base: Path, push_demos: Path) -> None:
    config = read_config(base / "policy")
    assert config["env_id"] == "zprl/Push-v0"
    assert config["env_kwargs"] == {"max_episode_steps": 60, "observation": "state"}
    assert config["dataset_sha256"] == sha256(push_demos)
    assert config["training"]["steps"] == 60
    assert config["policy"]["observation_shapes"] == {"object": [17], "proprio": [9]}
    policy = load_policy(base / "policy")
    assert policy.bottleneck is not None
    assert (policy.action_dim, policy.bottleneck.latent_dim) == (4, 16)


def test_the_folder_holds_settings_and_curves(base: Path, push_demos: Path) -> None:
    run = read_yaml(base / "pretrain.yml")
    assert run["training"]["batch_size"] == 8
    assert run["dataset_sha256"] == sha256(push_demos)
    assert list(base.glob("events.out.tfevents.*"))
    assert not list(base.glob(".*"))
    assert not (base / "base_evaluation.json").exists()  # none was asked for


def test_an_evaluation_has_both_paths_with_and_without_noise(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "policy", tmp_path / "policy")
    results = evaluate_checkpoint(tmp_path / "policy", episodes=2, seed=100_000)
    assert list(results) == list(WAYS)
    assert json.loads((tmp_path / "base_evaluation.json").read_text()) == results
    assert [(r["route"], r["noise"]) for r in results.values()] == [
        ("bottleneck", "normal"),
        ("context", "normal"),
        ("bottleneck", "zero"),
        ("context", "zero"),
    ]
    assert all(result["seeds"] == [100_000, 100_001] for result in results.values())


def test_while_it_trains_there_is_a_checkpoint_that_can_be_loaded(
    push_demos: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(trainer: Trainer) -> None:
        trainer._save()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_loop", lambda trainer, *_: stop(trainer))
        assert zprl(*pretrain_command(push_demos, tmp_path, "training.steps=20"))[0] == 130
    assert load_policy(tmp_path / "policy_latest").env_id == PUSH
    assert zprl(*pretrain_command(push_demos, tmp_path, "training.steps=20"))[0] == 0
    assert load_policy(tmp_path / "policy").env_id == PUSH
    assert not (tmp_path / "policy_latest").exists()


def test_the_device_is_the_one_of_the_evaluation_too(
    push_demos: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    monkeypatch.setattr(program, "evaluate_checkpoint", lambda *_, device, **__: devices.append(device))
    assert zprl(*pretrain_command(push_demos, tmp_path, "training.steps=20", "evaluation.episodes=2"))[0] == 0
    assert devices == ["cpu"]


def test_a_finished_run_says_so(base: Path, push_demos: Path, zprl: Any) -> None:
    before = (base / "policy" / "weights.safetensors").stat().st_mtime_ns
    code, out, _ = zprl(*pretrain_command(push_demos, base))
    assert code == 0
    assert f"{base / 'policy'} is trained already" in out
    assert (base / "policy" / "weights.safetensors").stat().st_mtime_ns == before


def test_the_demonstrations_may_lie_elsewhere_the_next_time(
    base: Path, push_demos: Path, tmp_path: Path, zprl: Any
) -> None:
    shutil.copy(push_demos, tmp_path / "moved.hdf5")
    code, out, _ = zprl(*pretrain_command(tmp_path / "moved.hdf5", base))
    assert code == 0
    assert "is trained already" in out


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("training.steps=80", "training.steps (60 there, 80 now)"),
        ("model.latent_dim=8", "model.latent_dim (16 there, 8 now)"),
        ("seed=7", "seed (42 there, 7 now)"),
        ("mask=train", "mask (None there, train now)"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    base: Path, push_demos: Path, zprl: Any, change: str, named: str
) -> None:
    code, _, err = zprl(*pretrain_command(push_demos, base, change))
    assert code == 1
    assert named in err
    assert "Traceback" not in err


def test_other_demonstrations_in_the_same_folder_are_refused(
    base: Path, push_demos: Path, tmp_path: Path, zprl: Any
) -> None:
    shutil.copy(push_demos, tmp_path / "other.hdf5")
    with h5py.File(tmp_path / "other.hdf5", "a") as file:
        file["data/demo_0/actions"][0, 0] += 0.5
    code, _, err = zprl(*pretrain_command(tmp_path / "other.hdf5", base))
    assert code == 1
    assert "other settings: dataset_sha256 (" in err


def pictures(file: h5py.File) -> None:
    for demo in file["data"].values():
        demo["obs/image"] = np.zeros((len(demo["actions"]), 8, 8, 3), np.uint8)
    env_args = json.loads(file["data"].attrs["env_args"])
    file["data"].attrs["env_args"] = json.dumps(env_args | {"env_kwargs": {"observation": "image"}})


def one_demo(file: h5py.File) -> None:
    for name in list(file["data"])[1:]:
        del file["data"][name]
    del file["mask"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pictures, "holds images (image), this model has no networks for them: choose another one (model=paper, or"),
        (one_demo, "1 demonstrations are too few to hold out 1"),
    ],
)
def test_demonstrations_that_do_not_fit_are_named(
    push_demos: Path, tmp_path: Path, zprl: Any, damage: Any, message: str
) -> None:
    shutil.copy(push_demos, tmp_path / "demos.hdf5")
    with h5py.File(tmp_path / "demos.hdf5", "a") as file:
        damage(file)
    code, _, err = zprl(*pretrain_command(tmp_path / "demos.hdf5", tmp_path / "base"))
    assert code == 1
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "base" / "pretrain.yml").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("demos=nowhere.hdf5", "nowhere.hdf5: no such file; make one with: zprl collect"),
        ("mask=best", "no mask 'best'; it has"),
        ("model=huge", "Could not find 'model/huge'"),
        ("training.stesp=3", "Key 'stesp' is not in struct"),
        ("training.steps=0", "training.steps must be a whole number of at least 1, not 0"),
        ("training.batch_size=many", "training.batch_size must be a whole number of at least 1, not 'many'"),
        ("training.learning_rate=0", "training.learning_rate must be positive, not 0"),
        ("model.horizon=3", "horizon 3 must be a multiple of 2"),
        ("model.chunk=99", "A chunk of 99 actions cannot be executed"),
        ("validation_ratio=1", "too few to hold out"),
        ("device=warp", "There is no device 'warp' here"),
    ],
)
def test_a_wrong_setting_is_named_and_claims_no_folder(
    push_demos: Path, tmp_path: Path, zprl: Any, change: str, message: str
) -> None:
    code, _, err = zprl(*pretrain_command(push_demos, tmp_path / "base", change))
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("zprl pretrain: ")
    assert message in last
    assert "Traceback" not in err
    assert not (tmp_path / "base" / "pretrain.yml").exists()


def test_what_must_be_given_is_named(zprl: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = zprl("pretrain")
    assert code == 1
    assert "Missing mandatory value: output" in err
    assert "zprl pretrain --help" in err
    code, _, err = zprl("pretrain", "output=base")
    assert code == 1
    assert "Missing mandatory value: demos" in err


def test_ctrl_c_saves_everything_and_says_how_to_go_on(
    base: Path, push_demos: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer._update

    def update_and_press(trainer: Trainer, index: Any) -> Any:
        if trainer.step == 30:
            os.kill(os.getpid(), signal.SIGINT)
        return update(trainer, index)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", update_and_press)
        code, out, err = zprl(*pretrain_command(push_demos, tmp_path / "base"))
    assert code == 130
    assert "Interrupted at step 31, all is saved. The same command goes on from there" in out
    assert "Traceback" not in err
    code, out, _ = zprl(*pretrain_command(push_demos, tmp_path / "base"))
    assert code == 0
    assert f"Going on from step 31, saved in {tmp_path / 'base' / STATE}" in out
    # On the same machine the interruption leaves no trace in the weights.
    assert sha256(tmp_path / "base" / "policy" / "weights.safetensors") == sha256(
        base / "policy" / "weights.safetensors"
    )


def test_several_values_are_tried_in_folders_of_their_own(
    push_demos: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Hydra notes there what it ran
    program, *settings = pretrain_command(push_demos, tmp_path / "base-${seed}", "seed=1,2", "training.steps=2")
    assert zprl(program, "-m", *settings)[0] == 0
    first, second = (load_policy(tmp_path / f"base-{seed}" / "policy").fingerprint() for seed in (1, 2))
    assert first != second


def test_the_settings_of_the_paper_are_the_default() -> None:
    config = compose(overrides=["demos=x", "output=y"])
    for env_id in ("zprl/Can-v0", "zprl/AdroitPen-v0", "zprl/Push-v0"):
        model = by_task(config["model"], env_id)
        assert (model["unet_widths"], model["obs_steps"]) == ([128, 256, 512], 1)
    assert (config["training"]["epochs"], config["training"]["steps"]) == (1000, None)
    assert by_task(config["training"], "zprl/Can-v0")["beta"] == 2e-4
    assert by_task(config["training"], "zprl/Transport-v0")["beta"] == 1e-4


def changed(push_demos: Path, path: Path, **changes: Any) -> Path:
    """Copy demonstrations, with changes of what they say about their environment."""
    shutil.copy(push_demos, path)
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps(json.loads(file["data"].attrs["env_args"]) | changes)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"env_name": "zprl/Lift-v0", "env_version": ""},
            "does not fit the environment that it names: The policy needs",
        ),
        ({"env_name": "zprl/Pusch-v0"}, "Pusch"),
        ({"env_version": "2.9.0"}, "were recorded with metaworld 2.9.0, installed is"),
    ],
)
def test_demonstrations_are_compared_with_their_environment_before_any_training(
    push_demos: Path, tmp_path: Path, zprl: Any, changes: dict[str, Any], message: str
) -> None:
    demos = changed(push_demos, tmp_path / "demos.hdf5", **changes)
    code, _, err = zprl(*pretrain_command(demos, tmp_path / "base", "evaluation.episodes=1"))
    assert code == 1
    assert message in err
    assert not list(tmp_path.glob("base/pretrain.yml"))


def test_where_nothing_is_evaluated_an_unknown_environment_is_only_told(
    push_demos: Path, tmp_path: Path, zprl: Any
) -> None:
    demos = changed(push_demos, tmp_path / "demos.hdf5", env_name="lab/Robot-v0")
    code, out, _ = zprl(*pretrain_command(demos, tmp_path / "base", "training.steps=2"))
    assert code == 0
    assert "lab/Robot-v0 cannot be made here, so the demonstrations are not compared with it" in out


def test_epochs_are_passes_over_the_windows() -> None:
    assert steps_of(1000, windows=7500, batch_size=256) == 29297
    assert steps_of(0.001, windows=10, batch_size=256) == 1
    with pytest.raises(ValueError, match=r"training\.epochs must be positive where training\.steps is null, not None"):
        steps_of(None, windows=10, batch_size=256)
