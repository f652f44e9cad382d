"""One run of a benchmark or study: what it takes, how far it is, its programs in processes of their own. No torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zprl_sb3.files import read_rows
from zprl_sb3.interrupts import INTERRUPTED, PARENT, TERMINATED
from zprl_sb3.locks import holder

LOOK = 0.5  # seconds between two looks at what has ended
SIGNALLED = (INTERRUPTED, TERMINATED)  # how a program ends that a signal has made save
PATIENCE = 600.0  # seconds that a process of a killed benchmark has to finish an evaluation, save and end


@dataclass(frozen=True)
class Job:
    """One run of a benchmark: training and its evaluations, or what makes or evaluates a task's base policy.

    :param name: ``task/method-seed``, and its folder below the benchmark's
    :param commands: Programs of ``zprl`` with their arguments, to be run one after another
    :param results: The files that they leave, of a training JSON
    :param n_timesteps: Chunks to train for; 0 where nothing is steered
    :param needs: Names of the jobs that have to be done before
    """

    name: str
    folder: Path
    commands: tuple[tuple[str, ...], ...]
    results: tuple[Path, ...]
    n_timesteps: int = 0
    needs: tuple[str, ...] = ()

    def finished(self) -> bool:
        """Whether all results are there, of a run as long as it is to be."""
        if not all(result.is_file() for result in self.results):
            return False
        if not self.n_timesteps:
            return True
        rows = self._rows()
        steps = [json.loads(result.read_text()).get("env_steps") for result in self.results]
        return bool(rows) and rows[-1]["chunks"] >= self.n_timesteps and steps == [rows[-1]["env_steps"]] * len(steps)

    def progress(self) -> tuple[float, float | None]:
        """Return the share of the chunks that are trained, and the success of the last evaluation."""
        rows = self._rows()
        if not rows or not self.n_timesteps:
            return 0.0, None
        return rows[-1]["chunks"] / self.n_timesteps, rows[-1]["success_rate"]

    def _rows(self) -> list[dict[str, Any]]:
        file = self.folder / "evaluations.csv"
        return read_rows(file) if file.is_file() else []


class JobFailed(RuntimeError):
    """A run whose program ended with an error; the message says where its output is.

    :param text: The message
    :param cut_short: Whether a signal ended the program, which itself found nothing wrong
    """

    def __init__(self, text: str, cut_short: bool = False) -> None:
        super().__init__(text)
        self.cut_short = cut_short


class Stop(Protocol):
    """Says whether a run is to save and end: a ``threading.Event``, or what finds out when it is asked."""

    def is_set(self) -> bool:
        """Whether it is; asked every half second."""
        ...


def run_job(
    job: Job, stop: Stop | None = None, environment: Mapping[str, str] | None = None, apart: bool = False
) -> None:
    """Run a job's commands in their own processes, which end with this one. What they print goes to its ``log.txt``.

    Each has one thread of the processor, unless ``OMP_NUM_THREADS`` says otherwise. A process of the same run whose
    benchmark was killed may still be saving: its end is waited for.

    :param job: The job
    :param stop: Once it is set, the process is told to save and end
    :param environment: Changes of the environment's variables
    :param apart: In sessions of their own, for a starter that is killed with its whole process group
    :raises JobFailed: If a command fails, or is stopped, or another process holds the folder for long
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    log = job.folder / "log.txt"
    _wait_until_free(job.folder, stop)
    for command in job.commands:
        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "zprl_sb3.scripts.cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=apart,
                env={"OMP_NUM_THREADS": "1", **os.environ, **(environment or {}), PARENT: str(os.getpid())},
            )
            code = _wait(process, stop)
        if code:
            text = f"zprl {command[0]} ended with {code}: {last_line(log.read_text(errors='replace'))} ({log})"
            raise JobFailed(text, cut_short=code < 0 or code in SIGNALLED)


def _wait_until_free(folder: Path, stop: Stop | None) -> None:
    end = time.monotonic() + PATIENCE
    while other := holder(folder):
        if time.monotonic() > end or (stop is not None and stop.is_set()):
            raise JobFailed(f"{folder} is in use by {other}, which does not end")
        time.sleep(LOOK)


def _wait(process: subprocess.Popen[bytes], stop: Stop | None) -> int:
    try:
        while True:
            if stop is not None and stop.is_set():
                process.terminate()
                return process.wait()
            with suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=LOOK)
    except BaseException:
        process.terminate()
        process.wait()
        raise


def last_line(text: str) -> str:
    """Return the last line of a program's output that says something."""
    lines = text.replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
