"""Evaluation in a process of its own: the same rows as beside none, and no process that stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from helpers import everything, same, steered_points, tiny_model
from zprl_sb3.background import BackgroundEvaluation
from zprl_sb3.callbacks import SteeringEvalCallback
from zprl_sb3.diagnostics import evaluation_row
from zprl_sb3.files import read_rows
from zprl_sb3.wrappers import VecSteering

MAKE = partial(steered_points, seeded_episodes=True, env_kwargs={"reach": 0.5})
SEED, EPISODES = 77, 4


@pytest.fixture(scope="module")
def background() -> Iterator[BackgroundEvaluation]:
    """Return one that tests share, as its process takes seconds to start."""
    evaluation = BackgroundEvaluation(MAKE)
    yield evaluation
    evaluation.close()


@pytest.fixture
def own() -> Iterator[BackgroundEvaluation]:
    """Return one whose process a test may end."""
    evaluation = BackgroundEvaluation(MAKE)
    yield evaluation
    evaluation.close()


def train(callback: BaseCallback) -> object:
    return everything(tiny_model(steered_points(sample_latent=True)).learn(50, callback))


def callback(env: VecSteering | BackgroundEvaluation, path: Path) -> SteeringEvalCallback:
    return SteeringEvalCallback(env, path, eval_freq=20, episodes=EPISODES, seed=SEED, verbose=0)


def evaluate_once(evaluation: BackgroundEvaluation) -> list[dict[str, object]]:
    evaluation.submit(tiny_model().policy, SEED, EPISODES, {})
    return evaluation.finished(wait=True)


def test_rows_and_training_are_those_of_an_evaluation_in_this_process(
    background: BackgroundEvaluation, tmp_path: Path
) -> None:
    alone = train(callback(MAKE(), tmp_path / "alone.csv"))
    beside = train(callback(background, tmp_path / "beside.csv"))
    assert same(alone, beside)
    wanted, rows = read_rows(tmp_path / "alone.csv"), read_rows(tmp_path / "beside.csv")
    assert [row["chunks"] for row in rows] == [0, 20, 40, 50]
    for row, other in zip(rows, wanted, strict=True):
        assert row == pytest.approx(other, rel=1e-5)


def test_a_policy_is_judged_as_it_was_when_it_was_submitted(background: BackgroundEvaluation) -> None:
    model = tiny_model()
    wanted = evaluation_row(model, MAKE(), SEED, EPISODES)
    background.submit(model.policy, SEED, EPISODES, {"chunks": 0})
    with th.no_grad():
        for weight in model.policy.parameters():
            weight.fill_(0.3)
    background.submit(model.policy, SEED, EPISODES, {"chunks": 1})
    before, after = background.finished(wait=True)
    assert before == pytest.approx({"chunks": 0} | wanted, rel=1e-5)
    assert after["chunks"] == 1
    assert after["rms_ratio"] > before["rms_ratio"]


def test_nothing_is_finished_where_nothing_was_submitted(background: BackgroundEvaluation) -> None:
    assert background.finished() == background.finished(wait=True) == []


def test_a_process_that_has_died_is_an_error(own: BackgroundEvaluation) -> None:
    own._process.kill()
    own._process.join()
    with pytest.raises(ChildProcessError, match="evaluation has ended"):
        evaluate_once(own)


def test_an_environment_that_cannot_be_made_is_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    evaluation = BackgroundEvaluation(partial(steered_points, scale=-1.0))
    with pytest.raises(ChildProcessError):
        evaluate_once(evaluation)
    assert "must be a positive number" in capfd.readouterr().err
    evaluation.close()


def test_signals_are_for_the_main_process_to_answer(background: BackgroundEvaluation) -> None:
    background.wait_ready()
    assert background._process.pid is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(background._process.pid, number)
    assert len(evaluate_once(background)) == 1


def test_close_ends_the_process_in_the_middle_of_an_evaluation(own: BackgroundEvaluation) -> None:
    own.submit(tiny_model().policy, SEED, 1000 * EPISODES, {})
    own.close()
    assert not own._process.is_alive()


FORGETFUL = """
import sys
import tempfile

folder = tempfile.TemporaryDirectory()  # Its finalizer makes weakref's run later than multiprocessing's.

from functools import partial
from helpers import steered_points
from zprl_sb3.background import BackgroundEvaluation

if __name__ == "__main__":
    evaluation = BackgroundEvaluation(partial(steered_points, seeded_episodes=True))
    print(evaluation._process.pid, flush=True)
    if sys.argv[1:]:
        sys.stdin.read()
"""


def test_a_row_that_comes_late_is_logged_under_its_own_step(tmp_path: Path) -> None:
    model = tiny_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    late = callback(MAKE(), tmp_path / "evaluations.csv")
    note, rows = late._note, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(late, "_note", rows.append)
        patch.setattr(late, "_fetch", lambda wait=False: [note(rows.pop(0)) for _ in (rows if wait else rows[:-1])[:]])
        model.learn(50, late, log_interval=1)
    logged = pd.read_csv(tmp_path / "progress.csv")
    of_rows = logged.dropna(subset="eval/chunks")
    assert of_rows["eval/chunks"].tolist() == [0, 20, 40, 50]
    assert of_rows["train/n_updates"].isna()[:-1].all()  # those belong to later steps
    assert logged["train/n_updates"].dropna().is_monotonic_increasing


@pytest.fixture
def forgetful(tmp_path: Path) -> list[str]:
    """Return the command of a program that does not close its evaluation; with an argument it waits to be killed."""
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    return [sys.executable, str(tmp_path / "forgetful.py")]


def test_a_program_that_forgets_to_close_ends(forgetful: list[str], repository: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(repository / "tests" / "shared")}
    ended = subprocess.run(forgetful, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert not psutil.pid_exists(int(ended.stdout))


def test_the_process_ends_with_a_program_that_is_killed(forgetful: list[str], repository: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(repository / "tests" / "shared")}
    program = subprocess.Popen([*forgetful, "wait"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdout is not None
    process = psutil.Process(int(program.stdout.readline()))
    program.send_signal(signal.SIGKILL)
    program.wait()
    deadline = time.monotonic() + 120
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
