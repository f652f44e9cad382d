"""A study that several workers share: no trial is lost, done twice, or left running."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.trial import TrialState

from helpers import POINT, tiny_policy
from zprl_sb3 import locks, studies
from zprl_sb3.checkpoint import save_policy
from zprl_sb3.studies import RETRIES, SharedStudy, database, joined, origin
from zprl_sb3.tuning import Tuning, TuningError, read_tuning

FAIL, PRUNED, COMPLETE, WAITING = TrialState.FAIL, TrialState.PRUNED, TrialState.COMPLETE, TrialState.WAITING


@pytest.fixture
def tuning(tmp_path: Path) -> Any:
    """Read a file that searches λ, with such changes."""

    def read(seed: int = 0, **content: Any) -> Tuning:
        policy = save_policy(tiny_policy(env_id=POINT, seed=seed), tmp_path / f"policy-{seed}")
        table = {"policy": str(policy), "search": {"scale": {"low": 0.1, "high": 2.0, "log": True}}}
        (tmp_path / "my.yml").write_text(yaml.safe_dump(table | content))
        return read_tuning(tmp_path / "my.yml")

    return read


@pytest.fixture
def sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a database, with heartbeats that are missed after three seconds."""
    monkeypatch.setattr(studies, "GRACE", 3)
    return f"sqlite:///{tmp_path / 'study.db'}"


def states(study: SharedStudy) -> list[TrialState]:
    return [trial.state for trial in study.trials()]


def test_a_study_has_so_many_trials_whoever_takes_them(tuning: Any, tmp_path: Path) -> None:
    with joined(tuning(), tmp_path / "out") as one, joined(tuning(), tmp_path / "out") as two:
        first, second, third = one.take(3), two.take(3), one.take(3)
        assert first is not None
        assert second is not None
        assert third is not None
        assert [first.number, second.number, third.number] == [0, 1, 2]
        assert two.take(3) is None
        one.finish(0, COMPLETE, 0.5)
        two.finish(1, FAIL, error="it broke")
        assert two.take(3) is None  # its settings were tried, and failed
        assert two.unfinished()
        one.finish(2, COMPLETE, 0.75)
        assert not two.unfinished()
        assert two.done(two.trials()) == 3
        assert two.take(4) is not None


def test_a_trial_that_was_stopped_goes_on_with_its_settings_in_its_folder(tuning: Any, tmp_path: Path) -> None:
    with joined(tuning(), tmp_path / "out") as study:
        first = study.take(1)
        assert first is not None
        for _ in range(RETRIES + 2):
            study.again(study.trials()[-1].number, retries=None)
            repeated = study.take(1)
            assert repeated is not None
            assert repeated.params == first.params
            assert origin(study.trials()[-1]) == 0
        assert study.take(1) is None
        study.finish(study.trials()[-1].number, COMPLETE, 0.5)
        assert states(study) == [FAIL] * (RETRIES + 2) + [COMPLETE]


def test_a_trial_that_always_dies_is_given_up(tuning: Any, tmp_path: Path) -> None:
    with joined(tuning(), tmp_path / "out") as study:
        for _ in range(RETRIES + 1):
            trial = study.take(1)
            assert trial is not None
            study.again(trial.number)
        assert study.take(1) is None
        assert states(study) == [FAIL] * (RETRIES + 1)


def test_the_trial_of_a_dead_worker_is_tried_again_from_the_journal(tuning: Any, tmp_path: Path) -> None:
    with joined(tuning(), tmp_path / "out") as alive:
        mine = alive.take(2)
        with joined(tuning(), tmp_path / "out") as dead:
            lost = dead.take(2)
            assert alive.take(2) is None
        assert lost is not None
        again = alive.take(2)  # the lock is gone, as a killed process's is
        assert mine is not None
        assert again is not None
        assert (again.number, again.params, origin(alive.trials()[2])) == (2, lost.params, 1)
        assert [state.name for state in states(alive)] == ["RUNNING", "FAIL", "RUNNING"]


def test_the_trial_of_a_worker_without_heartbeats_is_tried_again_from_a_database(
    tuning: Any, tmp_path: Path, sqlite: str
) -> None:
    with ExitStack() as stack:
        # Two machines that share nothing but the database.
        alive = stack.enter_context(joined(tuning(), tmp_path / "here", sqlite, "study"))
        other = stack.enter_context(joined(tuning(), tmp_path / "there", sqlite, "study"))
        mine, lost = alive.take(2), other.take(2)
        assert mine is not None
        assert lost is not None
        again = None
        while again is None:
            alive.beat()
            again = alive.take(2)
        assert (origin(alive.trials()[again.number]), again.params) == (1, lost.params)
        assert [state.name for state in states(alive)] == ["RUNNING", "FAIL", "RUNNING"]
        assert not alive.is_lost(0)
        other.beat()  # its machine has only slept: it learns that others have the trial now
        assert other.is_lost(1)
        other.again(1, retries=None)
        assert len(alive.trials()) == 3


def test_a_study_that_searches_something_else_is_refused(tuning: Any, tmp_path: Path) -> None:
    with joined(tuning(), tmp_path / "out"):
        pass
    with joined(tuning(set=["save_freq=7"]), tmp_path / "out"):  # not what is learned
        pass
    search = {"scale": {"low": 0.1, "high": 3.0, "log": True}}
    for other, difference in (
        (tuning(search=search), r"search.scale.high \(2.0 there, 3.0 now\)"),
        (tuning(set=["gamma=0.9"]), r"settings.gamma \(0.99 there, 0.9 now\)"),
        (tuning(set=["n_timesteps=7"]), "settings.n_timesteps"),
        (tuning(pruner="none"), r"pruner \(median there, none now\)"),
        (tuning(seed=1), "policy "),
    ):
        with pytest.raises(TuningError, match=f"begun otherwise: {difference}"), joined(other, tmp_path / "out"):
            raise AssertionError("it was begun with other settings")


def test_a_database_that_cannot_be_used_is_named_without_its_password(tuning: Any, tmp_path: Path) -> None:
    for url, error, message in (
        (
            "postgresql://me:secret@127.0.0.1:1/x",
            ConnectionError,
            r"//me:\*\*\*@127.0.0.1:1/x does not",
        ),
        ("mssql+nothing://me:secret@host/x", ImportError, r"No driver for mssql\+nothing"),
        ("box", TuningError, "--storage is the URL of a database"),
    ):
        with pytest.raises(error, match=message) as caught, joined(tuning(), tmp_path / "out", url):
            raise AssertionError("there is no such database")
        assert "secret" not in str(caught.value)
    assert str(database("postgresql+psycopg2://host/x").drivername) == "postgresql+psycopg2"


def test_a_journal_where_nobody_can_tell_who_lives_is_refused(
    tuning: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_take", lambda file: True)  # as on a file system without locks
    with pytest.raises(OSError, match="without locks: give a database"), joined(tuning(), tmp_path / "out"):
        raise AssertionError("living workers would be taken for dead")
