"""``zprl evaluate``: figures of runs and of base policies, and what cannot be evaluated."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch as th
import yaml

from helpers import push_policy
from programs import train_command
from zprl_sb3.checkpoint import load_policy, save_policy
from zprl_sb3.openvino import with_openvino
from zprl_sb3.policy import SteerablePolicy
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.scripts.evaluate import WAYS, evaluate_base, evaluate_run, table

BASE = "base through the bottleneck"
pytestmark = pytest.mark.filterwarnings("ignore:rich is experimental")

KEYS = {
    "success_rate",
    "ci95",
    "episodes",
    "seeds",
    "mean_length",
    "mean_length_of_successes",
    "mean_return",
    "policy",
    "model",
    "scale",
    "route",
    "noise",
    "chunk",
    "env_id",
    "openvino",
}


@pytest.fixture
def run(toy_run: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run, to do with as one likes."""
    shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("snapshot", "logs"))
    return tmp_path / "run"


def test_a_run_is_evaluated_into_its_folder(run: Path, zprl: Any) -> None:
    code, out, err = zprl("evaluate", run, "--episodes", "4", "--seed", "700")
    assert (code, err) == (0, "")
    result = json.loads((run / "evaluation.json").read_text())
    assert result.keys() == KEYS | {"steering", "env_steps"}
    assert result["episodes"] == 4
    assert result["seeds"] == [700, 703]
    assert result["scale"] == 0.5
    assert result["noise"] == "normal"
    assert result["model"] == str(run / "model.zip")
    assert result["policy"] == str(run / "policy")
    assert result["env_steps"] == SteeringSAC.load(run / "model.zip").env_steps
    assert result["steering"]["rms_ratio"] > 0
    low, high = result["ci95"]
    assert 0 <= low <= result["success_rate"] <= high <= 1
    assert f"| steered | {result['success_rate']:.3f} |" in out
    assert f"Wrote {run / 'evaluation.json'}" in out


def test_an_evaluation_repeats_exactly_and_other_seeds_differ(run: Path) -> None:
    first = evaluate_run(run, 6, 700)
    assert evaluate_run(run, 6, 700) == first
    assert evaluate_run(run, 6, 900)["mean_length"] != first["mean_length"]
    assert evaluate_run(run, 6, 700, noise="zero")["noise"] == "zero"


def test_the_result_may_go_elsewhere(run: Path, tmp_path: Path, zprl: Any) -> None:
    output = tmp_path / "results" / "zero.json"
    code, out, _ = zprl("evaluate", run, "--episodes", "2", "--noise", "zero", "--output", output)
    assert code == 0
    assert "| steered, zero noise |" in out
    assert json.loads(output.read_text())["noise"] == "zero"
    assert not (run / "evaluation.json").exists()


def test_evaluations_of_one_run_do_not_overwrite_each_other(run: Path, zprl: Any) -> None:
    for arguments in ([run], [run, "--noise", "zero"], [run / "policy"]):
        assert zprl("evaluate", *arguments, "--episodes", "2")[0] == 0
    normal, zero = (json.loads((run / f"evaluation{name}.json").read_text()) for name in ("", "_zero_noise"))
    assert (normal["noise"], zero["noise"]) == ("normal", "zero")
    assert list(json.loads((run / "base_evaluation.json").read_text())) == list(WAYS)


def test_a_lack_of_memory_or_permission_is_not_called_damage(
    run: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(error: Exception) -> Any:
        def load(*_: Any, **__: Any) -> None:
            raise error

        return load

    with monkeypatch.context() as patch:
        patch.setattr(SteeringSAC, "load", raising(PermissionError(13, "Permission denied")))
        refused(zprl, run, "zprl evaluate: [Errno 13] Permission denied\n")
    monkeypatch.setattr(SteeringSAC, "load", raising(th.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(th.OutOfMemoryError):
        evaluate_run(run, 2, 0)


def test_a_base_policy_is_evaluated_four_ways_beside_its_folder(toy_policy: Path, tmp_path: Path, zprl: Any) -> None:
    shutil.copytree(toy_policy, tmp_path / "policy")
    code, out, err = zprl("evaluate", tmp_path / "policy", "--episodes", "3")
    assert (code, err) == (0, "")
    results = json.loads((tmp_path / "base_evaluation.json").read_text())
    assert list(results) == list(WAYS)
    ways = set()
    for name, result in results.items():
        assert result.keys() == KEYS
        assert (result["model"], result["scale"], result["episodes"]) == (None, None, 3)
        assert result["seeds"] == [100_000, 100_002]
        assert f"| {name} |" in out
        ways.add((result["route"], result["noise"]))
    assert len(ways) == 4


def test_base_and_steered_differ_by_the_steering_only(run: Path) -> None:
    """An actor that answers nothing makes the steered policy the base policy through the bottleneck."""
    model = SteeringSAC.load(run / "model.zip")
    for parameter in model.policy.actor.mu.parameters():
        parameter.data.zero_()
    model.save(run / "model.zip")
    steered, base = evaluate_run(run, 5, 40), evaluate_base(run / "policy", 5, 40)[BASE]
    common = KEYS - {"model", "scale", "policy"}
    assert {key: steered[key] for key in common} == {key: base[key] for key in common}


def test_the_arguments_of_the_environment_are_those_of_the_demonstrations(toy_policy: Path) -> None:
    """A larger goal is reached more often: the recorded reach is used unless another is given."""
    recorded = evaluate_base(toy_policy, 40, 0)
    assert recorded == evaluate_base(toy_policy, 40, 0, env_kwargs={"reach": 0.3})
    assert evaluate_base(toy_policy, 40, 0, env_kwargs={"reach": 3.0})[BASE]["success_rate"] == 1.0
    assert recorded[BASE]["success_rate"] < 1


def test_a_shorter_chunk_may_be_chosen(toy_policy: Path) -> None:
    assert {result["chunk"] for result in evaluate_base(toy_policy, 2, 0, chunk=1).values()} == {1}
    assert load_policy(toy_policy).chunk == 2


def test_a_base_policy_may_be_sampled_with_more_steps(toy_policy: Path, tmp_path: Path, zprl: Any) -> None:
    results = []
    for number in ("1", "8"):
        file = tmp_path / f"{number}.json"
        command = ["evaluate", toy_policy, "--episodes", "8", "--sampling-steps", number, "--output", file]
        assert zprl(*command)[0] == 0
        results.append(json.loads(file.read_text()))
    assert results[0] != results[1]


def test_a_base_policy_may_be_computed_by_openvino(
    toy_policy: Path, tmp_path: Path, compiled: list[str], zprl: Any
) -> None:
    results = []
    for own in ([], ["--openvino", "float32"]):
        file = tmp_path / f"{len(own)}.json"
        assert zprl("evaluate", toy_policy, "--episodes", "8", *own, "--output", file)[0] == 0
        found = json.loads(file.read_text())
        results.append({name: way["success_rate"] for name, way in found.items()})
        assert {way["openvino"] for way in found.values()} == {own[-1] if own else None}
    assert results[0] == results[1]
    assert len(compiled) == 1


def test_a_run_s_policy_may_be_computed_by_openvino_in_evaluations_only(
    run: Path, compiled: list[str], zprl: Any
) -> None:
    for own, expected in ([], None), (["--openvino", "bfloat16"], "bfloat16"):
        assert zprl("evaluate", run, "--episodes", "2", *own)[0] == 0
        assert json.loads((run / "evaluation.json").read_text())["openvino"] == expected
    assert compiled == ["bfloat16"]
    recorded = yaml.safe_load((run / "run.yml").read_text())
    recorded["settings"] |= {"openvino": "float32"}
    (run / "run.yml").write_text(yaml.safe_dump(recorded))
    assert zprl("evaluate", run, "--episodes", "2", "--openvino", "none")[0] == 0
    assert compiled == ["bfloat16"]
    assert zprl("evaluate", run, "--episodes", "2")[0] == 0
    assert compiled == ["bfloat16", "float32"]
    (run / "run.yml").write_text(yaml.safe_dump(recorded | {"settings": recorded["settings"] | {"learner": "dppo"}}))
    code, _, err = zprl("evaluate", run, "--episodes", "2", "--openvino", "float32")
    assert (code, "not for fine-tuning" in err) == (1, True)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the precision of each policy that OpenVINO is asked to compute."""
    asked: list[str] = []

    def noted(policy: SteerablePolicy, precision: str = "float32") -> SteerablePolicy:
        asked.append(precision)
        return with_openvino(policy, precision)

    monkeypatch.setattr("zprl_sb3.openvino.with_openvino", noted)
    # On a processor without bfloat16 these policies are computed in float32 then.
    monkeypatch.setattr("zprl_sb3.openvino.precisions", lambda: ["float32", "bfloat16"])
    return asked


def test_a_precision_that_the_processor_lacks_is_an_error(
    toy_policy: Path, monkeypatch: pytest.MonkeyPatch, zprl: Any
) -> None:
    monkeypatch.setattr("zprl_sb3.openvino.precisions", lambda: ["float32"])
    code, _, err = zprl("evaluate", toy_policy, "--episodes", "2", "--openvino", "bfloat16")
    assert (code, "does not multiply bfloat16" in err) == (1, True)


def test_a_table_has_a_row_for_each_result() -> None:
    result = {"success_rate": 0.5, "ci95": (0.25, 0.75), "mean_length": 10.0, "mean_length_of_successes": 8.0}
    never = result | {"success_rate": 0.0, "mean_length_of_successes": None}
    lines = table({"one": result, "two": never}).splitlines()
    assert lines[2] == "| one | 0.500 | 0.250 – 0.750 | 10.0 | 8.0 |"
    assert lines[3] == "| two | 0.000 | 0.250 – 0.750 | 10.0 | – |"


@pytest.mark.slow
def test_videos_of_the_first_episodes_on_demand(tmp_path: Path, zprl: Any) -> None:
    policy = save_policy(push_policy(), tmp_path / "policy", env_kwargs={"max_episode_steps": 4})
    code, out, err = zprl("evaluate", policy, "--episodes", "3", "--seed", "70", "--video", "2")
    assert (code, err) == (0, "")
    videos = tmp_path / "videos"
    assert {file.name for file in videos.iterdir()} == {"episode_70_failure.mp4", "episode_71_failure.mp4"}
    frames = imageio.imread(videos / "episode_70_failure.mp4", plugin="pyav")
    assert len(frames) > 5
    assert np.std(frames[0]) > 10
    assert f"videos to {videos}" in out


def refused(zprl: Any, what: Path, words: str) -> None:
    code, _, err = zprl("evaluate", what, "--episodes", "2")
    assert code == 1
    assert words in err
    assert err.startswith("zprl evaluate: ")
    assert err.count("\n") == 1


def test_an_unfinished_run_is_refused(run: Path, zprl: Any) -> None:
    (run / "model.zip").unlink()
    refused(zprl, run, "has no model.zip: it is not a finished run (continue it with `zprl train`)")


def test_a_damaged_run_is_refused(run: Path, zprl: Any) -> None:
    whole = (run / "model.zip").read_bytes()
    for damage in (b"", b"nonsense", whole[: len(whole) // 2]):
        (run / "model.zip").write_bytes(damage)
        refused(zprl, run, "model.zip")
    (run / "model.zip").write_bytes(whole)
    (run / "run.yml").write_text("seed: [")
    refused(zprl, run, "run.yml is damaged")


def test_a_run_whose_policy_is_gone_or_another_is_refused(run: Path, toy_policy: Path, zprl: Any) -> None:
    weights = run / "policy" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused(zprl, run, "is truncated or changed")
    shutil.rmtree(run / "policy")
    refused(zprl, run, "No policy checkpoint at")


def test_a_run_whose_scale_was_edited_is_refused(run: Path, zprl: Any) -> None:
    content = yaml.safe_load((run / "run.yml").read_text())
    content["settings"]["scale"] = 0.1
    (run / "run.yml").write_text(yaml.safe_dump(content))
    refused(zprl, run, "The model was trained with scale (λ) 0.5, the environment has 0.1")


def test_what_is_neither_a_run_nor_a_policy_is_refused(tmp_path: Path, zprl: Any) -> None:
    refused(zprl, tmp_path, f"No policy checkpoint at {tmp_path}")
    refused(zprl, tmp_path / "nowhere", "No policy checkpoint at")
    assert not list(tmp_path.iterdir())


def test_a_run_that_just_began_is_refused(toy_policy: Path, tmp_path: Path, zprl: Any, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("zprl_sb3.scripts.train._learn", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert zprl(*train_command(toy_policy, tmp_path / "run"))[0] == 130
    refused(zprl, tmp_path / "run", "not a finished run")


@pytest.mark.parametrize("extra", [["--episodes", "0"], ["--episodes", "-3"], ["--seed", "-1"], ["--noise", "loud"]])
def test_arguments_out_of_range_show_the_usage(toy_run: Path, zprl: Any, extra: list[str]) -> None:
    code, _, err = zprl("evaluate", toy_run, *extra)
    assert code == 2
    assert extra[0] in err


def test_a_full_disk_leaves_the_old_result(run: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "evaluation.json").write_text("old")

    def full(source: Any, target: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    refused(zprl, run, f"The disk is full: {run / 'evaluation.json'} was not written and its old content is untouched")
    assert (run / "evaluation.json").read_text() == "old"
