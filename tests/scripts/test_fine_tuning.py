"""``zprl train --algo reinflow | dppo``: runs that go on, and the tuned policy as a checkpoint of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch as th

from helpers import POINT, POINT_IMAGES, image_demonstrations, image_policy, tiny_policy
from programs import TINY, image_pretrain_command
from zprl_sb3.checkpoint import load_policy, read_config, save_policy
from zprl_sb3.files import read_rows
from zprl_sb3.learners import learner
from zprl_sb3.report import read_run

OWN = ["n_steps=5", "batch_size=10", "critic_warmup=0", "learning_rate=0.003", "policy_kwargs.net_arch=[8]"]
OBJECTIVES = {"reinflow": "flow", "dppo": "diffusion"}


def base(folder: Path, algo: str, **config: Any) -> Path:
    policy = tiny_policy(objective=OBJECTIVES[algo], env_id=POINT, **config)
    return save_policy(policy, folder, env_kwargs={"reach": 0.5})


def command(algo: str, policy: Path, output: Path, *changes: str) -> list[str]:
    own = [change for change in TINY if not change.startswith("algorithm.")]
    own += [f"algorithm.{change}" for change in OWN]
    return ["train", "--algo", algo, "--policy", str(policy), "--output", str(output), "--set", *own, *changes]


@pytest.mark.parametrize("algo", OBJECTIVES)
def test_a_run_goes_on_and_leaves_a_policy_that_does_what_its_model_does(algo: str, tmp_path: Path, zprl: Any) -> None:
    policy, run = base(tmp_path / "policy", algo), tmp_path / "run"
    assert zprl(*command(algo, policy, run, "n_timesteps=40"))[0] == 0
    code, out, _ = zprl(*command(algo, policy, run))
    assert code == 0
    assert "Going on from " in out
    rows = read_rows(run / "evaluations.csv")
    assert [row["chunks"] for row in rows] == [0, 20, 40, 60]
    model: Any = learner(algo).load(run / "model.zip", device="cpu")
    assert (model.num_timesteps, model.env_steps) == (60, rows[-1]["env_steps"])
    assert "is trained already" in zprl(*command(algo, policy, run))[1]

    about = read_config(run / "retrained")
    assert about["fine_tuned"] == {"with": type(model).__name__, "env_steps": model.env_steps}
    assert (about["env_id"], about["env_kwargs"], about["bottleneck"]) == (POINT, {"reach": 0.5}, None)
    tuned = load_policy(run / "retrained")
    for name, weight in model.policy.flow.state_dict().items():
        assert th.equal(tuned.state_dict()[name], weight), name
    assert tuned.fingerprint() != load_policy(policy).fingerprint()

    assert zprl("evaluate", run, "--episodes", "10")[0] == 0
    assert zprl("evaluate", run / "retrained", "--episodes", "10", "--output", tmp_path / "tuned.json")[0] == 0
    steered, exported = (json.loads(file.read_text()) for file in (run / "evaluation.json", tmp_path / "tuned.json"))
    assert exported.keys() == {"base through c", "base through c, zero noise"}
    for figure in ("success_rate", "mean_length", "mean_return", "route"):
        assert steered[figure] == exported["base through c"][figure]
    assert zprl("evaluate", run, "--episodes", "2", "--noise", "zero")[0] == 0
    assert read_run(run).method == {"reinflow": "ReinFlow", "dppo": "DPPO"}[algo]


def test_where_two_networks_make_the_steps_there_is_no_checkpoint(tmp_path: Path, zprl: Any) -> None:
    policy = base(tmp_path / "policy", "dppo", sampling_steps=4)
    run = tmp_path / "run"
    code, out, _ = zprl(*command("dppo", policy, run, "algorithm.policy_kwargs.tuned_steps=2", "n_timesteps=20"))
    assert code == 0
    assert "what has two networks is no checkpoint" in out
    assert not (run / "retrained").exists()
    assert zprl("evaluate", run, "--episodes", "2")[0] == 0


def test_the_wrong_kind_of_policy_is_refused_before_the_folder_is_claimed(tmp_path: Path, zprl: Any) -> None:
    code, _, err = zprl(*command("dppo", base(tmp_path / "policy", "reinflow"), tmp_path / "run"))
    assert code == 1
    assert "pretrain one with model=diffusion" in err
    assert not (tmp_path / "run" / "run.yml").exists()
    code, _, err = zprl(*command("reinflow", base(tmp_path / "other", "reinflow"), tmp_path / "run", "scale=0.5"))
    assert code == 1
    assert "scale (λ) is 1" in err


@pytest.mark.slow
def test_images_in_processes_of_their_own_with_evaluations_beside(tmp_path: Path, zprl: Any) -> None:
    policy = image_policy(env_id=POINT_IMAGES)
    save_policy(policy, tmp_path / "policy")
    run = tmp_path / "run"
    changes = ["n_timesteps=20", "subprocess=true", "eval_beside=true"]
    assert zprl(*command("reinflow", tmp_path / "policy", run, *changes))[0] == 0
    assert [row["chunks"] for row in read_rows(run / "evaluations.csv")] == [0, 20]
    tuned = load_policy(run / "retrained")
    moved = [name for name, weight in tuned.state_dict().items() if not th.equal(weight, policy.state_dict()[name])]
    assert any(name.startswith("image_encoders") for name in moved)


def test_a_diffusion_policy_is_pretrained_by_the_same_loop(tmp_path: Path, zprl: Any) -> None:
    demos = image_demonstrations(tmp_path / "demos.hdf5")
    settings = ["+model.objective=diffusion", "model.sampling_steps=4"]
    assert zprl(*image_pretrain_command(demos, tmp_path / "base", *settings))[0] == 0
    policy = load_policy(tmp_path / "base" / "policy")
    assert (policy.config.objective, policy.config.sampling_steps) == ("diffusion", 4)  # type: ignore[union-attr]
    assert policy.bottleneck is not None
    assert zprl("evaluate", tmp_path / "base" / "policy", "--episodes", "2")[0] == 0  # through the bottleneck, too
