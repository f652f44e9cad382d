"""``zprl tune``: whole studies with real runs, killed, stopped, pruned, and finished by the same command."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from programs import TINY
from zprl_sb3.files import read_rows
from zprl_sb3.locks import holder
from zprl_sb3.studies import JOURNAL, WORKER, database, joined, origin
from zprl_sb3.tuning import read_tuning

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("with_toy_task"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]
FAIL, PRUNED, COMPLETE = TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE


@pytest.fixture
def plan(tmp_path: Path, toy_policy: Path) -> Any:
    """Write a file of what is searched, and return its path."""

    def write(*changes: str, **content: Any) -> Path:
        search = {"scale": {"low": 0.1, "high": 2.0, "log": True}, "algorithm.policy_kwargs.net_arch": [[8], [8, 8]]}
        table = {"policy": str(toy_policy), "search": search, "set": [*TINY, *changes]}
        (tmp_path / "my.yml").write_text(yaml.safe_dump(table | content))
        return tmp_path / "my.yml"

    return write


def study_of(output: Path, storage: str | None = None) -> optuna.Study:
    url = database(storage).render_as_string(hide_password=False) if storage else None
    journal = JournalStorage(JournalFileBackend(str(output / JOURNAL)))
    return optuna.load_study(study_name=output.name, storage=url or journal)


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_study_is_stopped_finished_and_gone_on_with(
    plan: Any, tmp_path: Path, toy_policy: Path, zprl: Any, start: Any
) -> None:
    file, out = plan("n_timesteps=300", "eval_freq=150"), tmp_path / "out"
    command = ["tune", file, "--output", out, "--jobs", "1"]
    process = start(*command, "--trials", "2")
    wait_for((out / "trials" / "0000-0" / "snapshot").is_dir)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=300) == 143
    assert [trial.state.name for trial in study_of(out).trials] == ["FAIL", "WAITING"]
    assert holder(out / "trials" / "0000-0") is None

    code, text, err = zprl(*command, "--trials", "2")
    assert (code, err) == (0, "")
    assert "0001: running, 0000 again" in text
    assert f"optuna-dashboard {out / JOURNAL}" in text
    assert "Going on from" in (out / "trials" / "0000-0" / "log.txt").read_text()
    stopped, repeated, second = study_of(out).trials
    assert [trial.state for trial in (stopped, repeated, second)] == [FAIL, COMPLETE, COMPLETE]
    assert stopped.params == repeated.params
    for trial in (repeated, second):
        rows = read_rows(out / "trials" / f"{origin(trial):04d}-0" / "evaluations.csv")
        assert [row["chunks"] for row in rows] == [0, 150, 300]
        assert trial.value == (rows[1]["success_rate"] + rows[2]["success_rate"]) / 2

    code, text, _ = zprl(*command, "--trials", "2")
    assert (code, "running" in text) == (0, False)
    best = study_of(out).best_trial
    assert f"Best: trial {origin(best):04d} with {best.value:.3f}: " in text
    table = pd.read_csv(out / "trials.csv")
    assert list(table["state"]) == ["fail", "complete", "complete"]
    assert (out / "trials.png").read_bytes().startswith(b"\x89PNG")

    run = tmp_path / "zprl-0"
    train = ["train", "--policy", toy_policy, "--output", run, "--config", out / "best.yml", "--set", "n_timesteps=20"]
    assert zprl(*train)[0] == 0
    settings, tried = (
        yaml.safe_load((folder / "run.yml").read_text())["settings"]
        for folder in (run, out / "trials" / f"{origin(best):04d}-0")
    )
    assert settings["scale"] == best.params["scale"]
    assert settings | {"n_timesteps": 300} == tried

    code, _, err = zprl("tune", plan("n_timesteps=300", "eval_freq=150", "gamma=0.5"), *command[2:])
    assert code == 1
    assert "was begun otherwise: settings.gamma (0.9 there, 0.5 now)" in err


def test_a_run_that_learns_worse_than_others_is_ended_early(plan: Any, tmp_path: Path, zprl: Any) -> None:
    file, out = plan("n_timesteps=600", search={"scale": [0.5]}), tmp_path / "out"
    space = {"scale": optuna.distributions.CategoricalDistribution([0.5])}
    perfect = {"value": 1.0, "intermediate_values": dict.fromkeys(range(31), 1.0)}
    with joined(read_tuning(file), out) as shared:
        for _ in range(5):
            shared.study.add_trial(optuna.create_trial(params={"scale": 0.5}, distributions=space, **perfect))
    code, text, _ = zprl("tune", file, "--output", out, "--trials", "6", "--jobs", "1")
    assert code == 0
    trial = study_of(out).trials[5]
    assert trial.state == PRUNED
    assert f"0005: pruned {trial.value:.3f} (6 of 6 trials done)" in text
    run = out / "trials" / "0005-0"
    assert 200 <= read_rows(run / "evaluations.csv")[-1]["chunks"] < 600
    assert "SystemExit; the same command goes on" in (run / "log.txt").read_text()


# `zprl tune` that takes the trials of another for lost after 10 seconds without a sign of life, not after 30.
SOON = """
import sys
from zprl_sb3 import studies
studies.HEARTBEAT, studies.GRACE = 1, 10
from zprl_sb3.scripts import cli
sys.exit(cli.entry())
"""


@pytest.mark.parametrize("kind", ["journal", "postgresql"])
def test_a_worker_that_is_killed_loses_nothing(
    plan: Any, tmp_path: Path, start: Any, kind: str, request: pytest.FixtureRequest
) -> None:
    storage = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    in_storage = ["--storage", storage] if storage else []
    file, out = plan("n_timesteps=240", "eval_freq=120"), tmp_path / "out"
    command = ["tune", file, "--output", out, "--trials", "2", "--jobs", "1", *in_storage]
    workers = [start(*command, program=("-c", SOON)) for _ in range(2)]
    wait_for((out / "trials" / "0001-0" / "snapshot").is_dir)
    killed = study_of(out, storage).trials[1]
    assert killed.state == TrialState.RUNNING
    victim = next(each for each in workers if f"-{each.pid}-" in killed.user_attrs[WORKER])
    victim.kill()
    (survivor,) = set(workers) - {victim}
    text, _ = survivor.communicate(timeout=300)
    assert survivor.returncode == 0, text

    trials = study_of(out, storage).trials
    assert sorted(trial.state.name for trial in trials) == ["COMPLETE", "COMPLETE", "FAIL"]
    (repeated,) = [trial for trial in trials if origin(trial) != trial.number]
    assert (origin(repeated), repeated.params) == (killed.number, killed.params)
    assert trials[killed.number].state == FAIL
    log = (out / "trials" / f"{killed.number:04d}-0" / "log.txt").read_text()
    assert "SystemExit; the same command goes on" in log
    assert "Going on from" in log
    folders = {folder.name for folder in (out / "trials").iterdir()}
    assert folders == {f"{origin(trial):04d}-0" for trial in trials}
    assert len(folders) == 2
    assert (out / "best.yml").is_file()
