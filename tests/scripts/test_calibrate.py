"""``zprl calibrate``, and runs with ``scale=auto``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import POINT, point_demonstrations, tiny_policy
from programs import train_command
from zprl_sb3.benchmark import read_plan
from zprl_sb3.calibration import calibrate
from zprl_sb3.checkpoint import save_policy
from zprl_sb3.files import sha256
from zprl_sb3.report import read_run
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.scripts.common import find_demonstrations, read_yaml, record_run

pytestmark = pytest.mark.filterwarnings("ignore:rich is experimental")
BY_DEMONSTRATIONS = ("scale_by", "demonstrations")


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkpoint as `zprl pretrain` leaves it, with a relative path to its demonstrations."""
    monkeypatch.chdir(tmp_path)
    demos = point_demonstrations(Path("runs/demos.hdf5"), (12, 9, 11))
    record_run(Path("runs/base/pretrain.yml"), {"demos": str(demos), "mask": None})
    about = {"env_kwargs": {"reach": 0.3}, "dataset_sha256": sha256(demos)}
    return save_policy(tiny_policy(env_id=POINT), Path("runs/base/policy"), **about).resolve()


def demos_of(policy: Path) -> Path:
    return policy.parents[1] / "demos.hdf5"


def test_table_picture_and_numbers_come_from_the_checkpoint_alone(policy: Path, zprl: Any) -> None:
    code, out, err = zprl("calibrate", policy)
    assert (code, err) == (0, "")
    found = calibrate(policy, demos_of(policy))
    content = json.loads((policy.parent / "calibration.json").read_text())
    assert content["scale"] == found.scale
    assert tuple(content["scale_range"]) == found.scale_range
    assert content["demonstrations"].endswith("runs/demos.hdf5")
    assert (policy.parent / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert f"λ = {found.scale:g} to start from" in out
    assert len([line for line in out.splitlines() if line.startswith("| ")]) == 2 + 3 + len(found.curves["scale"])


def test_a_lambda_for_each_dimension_is_shown_and_files_go_elsewhere(policy: Path, tmp_path: Path, zprl: Any) -> None:
    code, out, _ = zprl(
        "calibrate", policy, "--by-spread", "--demonstrations", demos_of(policy), "--output", tmp_path / "here"
    )
    assert code == 0
    assert "posterior std | λ |" in out
    assert len(json.loads((tmp_path / "here" / "calibration.json").read_text())["steering_scale"]) == 3
    assert not (policy.parent / "calibration.json").exists()


def test_demonstrations_are_found_from_every_folder_and_known_by_their_content(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_demonstrations(policy) == (Path("runs/demos.hdf5"), None)
    monkeypatch.chdir("/")
    assert find_demonstrations(policy) == (demos_of(policy), None)
    point_demonstrations(demos_of(policy), (5,))
    with pytest.raises(ValueError, match=r"is not what the policy in .* was pretrained on: it has changed since"):
        find_demonstrations(policy)
    os.remove(demos_of(policy))
    with pytest.raises(ValueError, match=r"runs/demos.hdf5 is missing, from which the policy in .* was pretrained"):
        find_demonstrations(policy)


def test_what_cannot_be_found_is_to_be_said(policy: Path, toy_policy: Path, zprl: Any) -> None:
    code, _, err = zprl("calibrate", toy_policy)
    assert (code, err.count("\n")) == (1, 1)
    assert "pretrain.yml is missing" in err
    assert "say which demonstrations to take with --demonstrations FILE" in err
    assert "--mask goes with --demonstrations" in zprl("calibrate", policy, "--mask", "train")[2]


def test_a_calibrated_run_records_its_lambda_resumes_with_it_and_is_reported(
    policy: Path, tmp_path: Path, zprl: Any
) -> None:
    output, scale = tmp_path / "run", calibrate(policy, demos_of(policy)).scale
    code, out, _ = zprl(*train_command(policy, output, "scale=auto", "n_timesteps=40"))
    assert code == 0
    assert f"Steering with λ = {scale:g}: " in out
    assert "compare z̃ with the demonstrations in runs/demos.hdf5" in out
    run = read_yaml(output / "run.yml")
    assert (run["settings"]["scale"], run["scale"]) == ("auto", scale)
    assert read_run(output).facts["scale"] == scale
    demos_of(policy).unlink()
    code, out, _ = zprl(*train_command(policy, output, "scale=auto"))  # as it was, without the demonstrations
    assert code == 0
    assert "the logs have no Mahalanobis distance" in out
    spec = SteeringSAC.load(output / "model.zip").steering_spec
    assert spec is not None
    assert spec.scale == scale
    assert zprl("evaluate", output, "--episodes", "2")[0] == 0
    assert json.loads((output / "evaluation.json").read_text())["scale"] == scale
    _, _, err = zprl(*train_command(policy, output, f"scale={scale}"))
    assert f"settings.scale (auto there, {scale} now)" in err


@pytest.mark.parametrize("own", [False, True])
def test_a_calibrated_lambda_by_spread(own: bool, policy: Path, tmp_path: Path, zprl: Any) -> None:
    demos, output = demos_of(policy), tmp_path / "run"
    changes = ["scale=auto", "n_timesteps=20", *(f"{name}={'auto' if own else demos}" for name in BY_DEMONSTRATIONS)]
    code, out, _ = zprl(*train_command(policy, output, *changes))
    assert code == 0
    assert f"compare z̃ with the demonstrations in {'runs/demos.hdf5' if own else demos}" in out
    spec = SteeringSAC.load(output / "model.zip").steering_spec
    expected = calibrate(policy, demos, by_spread=True)
    assert spec is not None
    assert spec.scale == expected.steering_scale
    assert read_run(output).facts["scale"] == pytest.approx(expected.scale, abs=1e-6)
    assert zprl("evaluate", output, "--episodes", "2")[0] == 0


@pytest.mark.parametrize("name", ["scale", *BY_DEMONSTRATIONS])
def test_without_demonstrations_nothing_is_automatic(name: str, toy_policy: Path, tmp_path: Path, zprl: Any) -> None:
    code, _, err = zprl(*train_command(toy_policy, tmp_path / "run", f"{name}=auto"))
    assert (code, err.count("\n")) == (1, 1)
    assert f"{name}=auto needs the policy's demonstrations: " in err
    assert "pretrain.yml is missing" in err
    assert not (tmp_path / "run" / "run.yml").exists()


@pytest.mark.parametrize("algo", ["po_dec", "dsrl", "resemb", "tqc", "soe"])
def test_other_methods_have_no_calibrated_lambda(algo: str, policy: Path, tmp_path: Path, zprl: Any) -> None:
    code, _, err = zprl(
        "train", "--algo", algo, "--policy", policy, "--output", tmp_path / "run", "--set", "scale=auto"
    )
    assert code == 1
    assert "scale=auto: with steering latent and learner sac only" in err


def test_a_benchmark_takes_it_for_zprl_and_refuses_it_for_others_at_once(
    policy: Path, tmp_path: Path, zprl: Any
) -> None:
    plan = {"tasks": {"reach": {"policy": str(policy)}}, "seeds": [0]}
    file = tmp_path / "plan.yml"
    file.write_text(yaml.safe_dump(plan | {"methods": {"zprl": {}, "po_dec": {}}, "set": ["scale=auto"]}))
    code, _, err = zprl("benchmark", file, "--output", tmp_path / "out")
    assert code == 1
    assert "scale=auto: with steering latent and learner sac only" in err
    assert not (tmp_path / "out").exists()
    file.write_text(yaml.safe_dump(plan | {"methods": {"zprl": {"set": ["scale=auto"]}}}))
    assert "scale=auto" in read_plan(file, tmp_path / "out")[1].commands[0]
