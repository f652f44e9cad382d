"""The whole way on the simulator with settings that make it short: every program, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from programs import TINY, pretrain_command, train_command
from zprl_sb3.files import read_rows
from zprl_sb3.scripts import quickstart as program
from zprl_sb3.scripts.common import read_yaml
from zprl_sb3.scripts.evaluate import WAYS
from zprl_sb3.scripts.quickstart import quickstart
from zprl_sb3.settings import load_settings

pytestmark = pytest.mark.filterwarnings("ignore:rich is experimental")

REPORT = {"report.html", "report.md", "report.png", "table.csv", "final_evaluations.csv", "curves.csv"}
KEYS = {"success_rate", "ci95", "episodes", "seeds", "mean_length", "policy", "model", "scale"}


def test_demonstrations_become_a_report(tmp_path: Path, zprl: Any) -> None:
    pytest.importorskip("metaworld")
    demos, base, run = tmp_path / "demos.hdf5", tmp_path / "base", tmp_path / "zprl-0"
    steps = [
        ["collect", "--env", "zprl/Push-v0", "--episodes", "3", "--output", demos, "--set", "max_episode_steps=25"],
        pretrain_command(demos, base, "evaluation.episodes=2"),
        train_command(base / "policy", run, "n_timesteps=20"),
        ["evaluate", run, "--episodes", "2"],
        ["evaluate", base / "policy", "--episodes", "2", "--output", tmp_path / "base.json"],
        ["report", run, "--output", tmp_path / "report"],
    ]
    for step in steps:
        code, _, err = zprl(*step)
        assert code == 0, err
    # The environment's time limit went all the way from the demonstrations to the evaluations.
    steered = json.loads((run / "evaluation.json").read_text())
    assert steered.keys() >= KEYS
    assert steered["mean_length"] <= 25
    assert steered["env_id"] == "zprl/Push-v0"
    # The policy is judged the same after pretraining and on demand, and on the episodes of the steered one.
    after, on_demand = (
        json.loads(file.read_text()) for file in (base / "base_evaluation.json", tmp_path / "base.json")
    )
    assert list(after) == list(WAYS)
    assert after == on_demand
    assert all(result["seeds"] == steered["seeds"] == [100_000, 100_001] for result in after.values())
    assert [row["chunks"] for row in read_rows(run / "evaluations.csv")] == [0, 20]
    assert {path.name for path in (tmp_path / "report").iterdir()} >= REPORT


@pytest.mark.slow
def test_quickstart_goes_all_the_way_and_repeats_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("metaworld")
    short = [
        "demos=3",
        "jobs=1",
        "collect=[max_episode_steps=25]",
        "pretrain=[model=state, training=short, training.steps=20, 'model.unet_widths=[8,16]']",
        f"train={json.dumps([*TINY, 'n_timesteps=20'])}",
        "eval_episodes=2",
    ]
    settings = load_settings("quickstart.yml", "zprl/Push-v0", short)
    results = quickstart(tmp_path / "a folder", 0, settings)
    root = tmp_path / "a folder"
    assert list(results) == [*WAYS, "steered", "steered, zero noise"]
    assert json.loads((root / "quickstart.json").read_text()) == results
    assert all(result.keys() >= KEYS for result in results.values())
    assert (root / "quickstart.md").read_text().count("\n") == 2 + len(results)
    assert {path.name for path in (root / "report").iterdir()} >= REPORT
    assert read_yaml(root / "zprl-0" / "run.yml")["settings"]["n_timesteps"] == 20
    out = capsys.readouterr().out
    assert [line.split(" (")[0] for line in out.splitlines() if line.startswith("== ")] == [
        "== 1/5 demonstrations",
        "== 2/5 base policy",
        "== 3/5 base policy, four ways",
        "== 4/5 steering",
        "== 5/5 evaluation",
    ]
    assert f"zprl train --policy {root / 'base' / 'policy'} --output {root}/zprl-1 --seed 1" in out
    kept = [root / "demos.hdf5", root / "base" / "policy" / "weights.safetensors", root / "zprl-0" / "model.zip"]
    written = [path.stat().st_mtime_ns for path in kept]
    assert quickstart(root, 0, settings) == results
    assert [path.stat().st_mtime_ns for path in kept] == written
    out = capsys.readouterr().out
    assert out.count("is trained already") == 2
    assert "is complete already" in out


def test_quickstart_hands_its_device_to_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zprl: Any) -> None:
    devices: dict[str, str] = {}

    def stage(name: str, device: Callable[..., str], result: Any) -> None:
        monkeypatch.setattr(program, name, lambda *a, **k: devices.update({name: device(*a, **k)}) or result)

    stage("pretrain", lambda config: config["device"], tmp_path / "policy")
    stage("evaluate_base", lambda *arguments: arguments[3], {})
    stage("train", lambda *arguments: arguments[4], tmp_path / "zprl-0" / "model.zip")
    stage("evaluate_run", lambda *_, device, **__: device, {})
    for name, result in (("collect", tmp_path), ("report", (tmp_path, "")), ("table", "")):
        monkeypatch.setattr(program, name, lambda *_, result=result: result)
    assert zprl("quickstart", "--output", tmp_path, "--device", "cuda:0")[0] == 0
    assert devices == dict.fromkeys(("pretrain", "evaluate_base", "train", "evaluate_run"), "cuda:0")


def test_quickstart_refuses_what_it_does_not_know(tmp_path: Path, zprl: Any) -> None:
    code, _, err = zprl("quickstart", "--output", tmp_path / "run", "--set", "demonstrations=3")
    assert code == 1
    assert "unknown setting 'demonstrations'; known are" in err
    assert not (tmp_path / "run").exists()
