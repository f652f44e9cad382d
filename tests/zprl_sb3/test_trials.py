"""One trial: what it reports while it runs, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from helpers import POINT, tiny_policy
from zprl_sb3.checkpoint import save_policy
from zprl_sb3.files import write_rows
from zprl_sb3.jobs import Job, JobFailed, Stop
from zprl_sb3.studies import ERROR, JOURNAL, joined
from zprl_sb3.trials import objective, run_trial
from zprl_sb3.tuning import Tuning, read_tuning

Run = Callable[[Job, Stop], None]


def rows(*successes: float, every: int = 20) -> list[dict[str, Any]]:
    return [{"chunks": float(every * place), "success_rate": rate} for place, rate in enumerate(successes)]


@pytest.fixture
def tuning(tmp_path: Path) -> Tuning:
    table = {
        "policy": str(save_policy(tiny_policy(env_id=POINT), tmp_path / "policy")),
        "search": {"scale": [0.5]},
        "set": ["n_timesteps=60", "eval_freq=20"],
        "seeds": [3, 4],
    }
    (tmp_path / "my.yml").write_text(yaml.safe_dump(table))
    return read_tuning(tmp_path / "my.yml")


@pytest.fixture
def run_one(tuning: Tuning, tmp_path: Path) -> Any:
    """Run a trial whose runs are what a function does, and return the trials of the study after it."""

    def run(function: Run, stop: Event | None = None, before: list[Any] | None = None) -> list[Any]:
        with joined(tuning, tmp_path / "out") as study:
            for each in before or []:
                study.study.add_trial(each)
            trial = study.take(1 + len(before or []))
            assert trial is not None
            run_trial(study, tuning, trial, function, stop or Event())
            return study.trials()

    return run


def test_the_last_three_evaluations_count_but_not_the_one_before_training() -> None:
    assert objective(rows(1.0, 0.0, 0.25, 0.5, 0.75)) == 0.5
    assert objective(rows(1.0, 0.25, 0.75)) == 0.5
    assert objective(rows(1.0)) == 1.0


def test_a_trial_is_worth_the_mean_over_its_seeds_and_reports_every_evaluation_once(run_one: Any) -> None:
    curves = {"0000-3": rows(0.0, 0.0, 0.25, 0.5), "0000-4": rows(0.5, 0.5, 0.75, 1.0)}

    def train(job: Job, stop: Stop) -> None:
        job.folder.mkdir(parents=True)
        for count in range(1, 5):
            write_rows(job.folder / "evaluations.csv", curves[job.name][:count])
            assert not stop.is_set()
            assert not stop.is_set()

    (trial,) = run_one(train)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.5)
    assert trial.intermediate_values == {
        0: 0.0,
        1: 0.0,
        2: 0.125,
        3: 0.25,
        4: (0.25 + 0.5) / 2,
        5: (0.25 + 0.5) / 2,
        6: (0.25 + 0.625) / 2,
        7: 0.5,
    }


def better(value: float) -> Any:
    """Return a finished trial that was so good after every evaluation."""
    space = {"scale": optuna.distributions.CategoricalDistribution([0.5])}
    steps = dict.fromkeys(range(8), value)
    return optuna.create_trial(value=value, params={"scale": 0.5}, distributions=space, intermediate_values=steps)


def test_a_trial_that_learns_worse_is_pruned_once_it_could_have_learned(run_one: Any) -> None:
    asked: list[bool] = []

    def train(job: Job, stop: Stop) -> None:
        job.folder.mkdir(parents=True)
        for count in range(1, 5):
            write_rows(job.folder / "evaluations.csv", rows(0.0, 0.25, 0.25, 0.25)[:count])
            asked.append(stop.is_set())
        raise JobFailed("zprl train ended with 143", cut_short=True)

    trial = run_one(train, before=[better(0.75)] * 5)[-1]
    assert asked == [False, False, True, True]  # once a third of the 7 steps is behind it
    assert (trial.state, trial.value) == (TrialState.PRUNED, 0.25)


@pytest.mark.parametrize(
    ("cut_short", "stopped", "states"),
    [(False, False, ["FAIL"]), (True, False, ["FAIL", "WAITING"]), (True, True, ["FAIL", "WAITING"])],
)
def test_what_was_cut_short_waits_and_what_broke_has_failed(
    run_one: Any, cut_short: bool, stopped: bool, states: list[str]
) -> None:
    stop = Event()

    def train(job: Job, asked: Stop) -> None:
        if stopped:
            stop.set()
        assert asked.is_set() == stopped
        raise JobFailed("zprl train ended with 1: no such thing", cut_short)

    trials = run_one(train, stop)
    assert [trial.state.name for trial in trials] == states
    assert trials[0].user_attrs.get(ERROR) == (None if cut_short else "zprl train ended with 1: no such thing")


def test_a_trial_that_another_worker_has_taken_over_ends(run_one: Any, tmp_path: Path) -> None:
    def train(job: Job, stop: Stop) -> None:
        backend = JournalFileBackend(str(tmp_path / "out" / JOURNAL))
        optuna.load_study(study_name="out", storage=JournalStorage(backend)).tell(0, state=TrialState.FAIL)
        assert not stop.is_set()
        write_rows(job.folder / "evaluations.csv", rows(0.0))
        stop.is_set()
        assert stop.is_set()
        raise JobFailed("zprl train ended with 143", cut_short=True)

    assert [trial.state for trial in run_one(train)] == [TrialState.FAIL]
