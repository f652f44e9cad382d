"""Jobs of a benchmark: how a failing program is told, and that no two are at one run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Event, Timer

import pytest

from zprl_sb3 import jobs
from zprl_sb3.jobs import Job, JobFailed, last_line, run_job
from zprl_sb3.locks import locked


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("a/b-0", tmp_path / "b-0", (("trian",),), ())


def test_a_failing_command_is_told_with_its_last_words(tmp_path: Path) -> None:
    job = Job("a/b-0", tmp_path / "b-0", (("train", "--policy", "nowhere", "--output", "x"),), ())
    with pytest.raises(JobFailed, match=r"zprl train ended with 1: zprl train: .*nowhere.*b-0/log.txt"):
        run_job(job)
    assert last_line("first\rlast \n\n\r") == "last"
    assert last_line("\n") == ""


def test_a_run_that_another_process_holds_is_left_alone(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Event()
    stop.set()
    with locked(job.folder):
        with pytest.raises(JobFailed, match=r"b-0 is in use by process .*, which does not end"):
            run_job(job, stop)
        monkeypatch.setattr(jobs, "PATIENCE", 0.1)
        with pytest.raises(JobFailed, match="in use"):
            run_job(job)
    assert not (job.folder / "log.txt").exists()


def test_the_end_of_a_process_that_still_saves_is_waited_for(job: Job) -> None:
    program = f"from zprl_sb3.locks import locked\nwith locked({str(job.folder)!r}): print('held', flush=True); input()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        Timer(0.7, process.kill).start()
        with pytest.raises(JobFailed, match="zprl trian ended with 2"):
            run_job(job)
        assert process.poll() is not None
