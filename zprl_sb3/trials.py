"""One trial of a study: its runs, each in a process of its own, and their evaluations as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from threading import Event
from typing import Any

import optuna
from optuna.trial import TrialState

from zprl_sb3.files import read_rows
from zprl_sb3.jobs import Job, JobFailed, Stop
from zprl_sb3.studies import SharedStudy, origin
from zprl_sb3.tuning import Tuning

LAST = 3  # evaluations whose mean is what a study maximises: one of 50 episodes is 7 points off at 0.5

Runner = Callable[[Job, Stop], None]


def run_trial(study: SharedStudy, tuning: Tuning, trial: optuna.Trial, run: Runner, stop: Event) -> None:
    """Run a trial, with one seed after another, and tell the study what came of it.

    :param study: The study
    :param tuning: What it searches
    :param trial: From :meth:`~zprl_sb3.studies.SharedStudy.take`
    :param run: Runs a job until its second argument says stop
    :param stop: Stops the trial, so that it is queued again
    """
    values: list[float] = []
    for seed in tuning.seeds:
        job = tuning.job(run_folder(study, trial, seed), seed, trial.params)
        watch = Watch(study, tuning, trial, job.folder / "evaluations.csv", values, stop)
        try:
            run(job, watch)
        except (JobFailed, OSError) as error:
            _cut(study, trial.number, watch, stop, error)
            return
        watch.look()
        values.append(objective(read_rows(watch.file)))
    study.finish(trial.number, TrialState.COMPLETE, fmean(values))


def run_folder(study: SharedStudy, trial: optuna.Trial, seed: int) -> Path:
    """Return the folder of a run. A trial that is tried again has the one that it began in."""
    number = origin(study.trials()[trial.number])
    return study.output / "trials" / f"{number:04d}-{seed}"


def objective(rows: Sequence[dict[str, Any]]) -> float:
    """Return what a study maximises: the mean success of the last evaluations, without that of the untrained actor.

    Not the best evaluation, which rewards luck and a curve that falls again.

    :param rows: Of ``evaluations.csv``
    """
    return fmean(row["success_rate"] for row in (rows[1:] or rows)[-LAST:])


class Watch:
    """Reports the evaluations of a run while it goes on, and says when it is to end: a ``Stop`` for ``run_job``.

    The step is the number of evaluations so far (chunks // ``eval_freq``), those of earlier seeds included: env steps
    differ from trial to trial, because episodes end early. What is reported is what the trial would be worth if it
    ended there.

    :param study: The study
    :param tuning: What it searches
    :param trial: The trial
    :param file: The run's ``evaluations.csv``
    :param before: What the trial's runs with other seeds were worth
    :param stop: Ends the run from outside
    """

    def __init__(
        self,
        study: SharedStudy,
        tuning: Tuning,
        trial: optuna.Trial,
        file: Path,
        before: Sequence[float],
        stop: Event,
    ) -> None:
        self.file, self.pruned = file, False
        self._study, self._trial, self._stop, self._before = study, trial, stop, list(before)
        self._every, self._first = int(tuning.settings["eval_freq"]), (tuning.steps + 1) * len(before)
        self._reported = -1

    def is_set(self) -> bool:
        """Whether the run is to end."""
        if self._stop.is_set() or self.pruned or self.lost:
            return True
        if self.look():
            self.pruned = self._trial.should_prune()
        return self.pruned

    @property
    def lost(self) -> bool:
        """Whether another process has the trial now."""
        return self._study.is_lost(self._trial.number)

    def look(self) -> bool:
        """Report what is new, and say whether there was any."""
        rows = read_rows(self.file) if self.file.is_file() else []
        new = [place for place, row in enumerate(rows) if self._step(row) > self._reported]
        for place in new:
            step = self._step(rows[place])
            if step > self._reported and not self.lost:
                self._report(fmean([*self._before, objective(rows[: place + 1])]), step)
        return bool(new)

    def _report(self, value: float, step: int) -> None:
        try:
            self._trial.report(value, self._first + step)
        except optuna.exceptions.UpdateFinishedTrialError:
            self._study.lose(self._trial.number)
        self._reported = step

    def _step(self, row: dict[str, Any]) -> int:
        return int(row["chunks"]) // self._every


def _cut(study: SharedStudy, number: int, watch: Watch, stop: Event, error: JobFailed | OSError) -> None:
    """Tell the study of a trial that did not come to its end, and why."""
    if watch.lost or (stop.is_set() and not watch.pruned):
        study.again(number, retries=None)
    elif watch.pruned:
        study.finish(number, TrialState.PRUNED)
    elif isinstance(error, JobFailed) and error.cut_short:
        study.again(number)
    else:
        study.finish(number, TrialState.FAIL, error=str(error))
