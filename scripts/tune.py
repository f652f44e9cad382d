"""``zprl tune``: search for λ, and any other setting, with Optuna (TPE) and early ends for what learns worse.

As many workers as you like share a study, on one machine or on many.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

try:
    import optuna
except ImportError as error:
    raise ImportError("Optuna is not installed: pip install 'zprl-sb3[tune]'") from error
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from zprl_sb3.interrupts import interrupts_wait
from zprl_sb3.jobs import LOOK
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.benchmark import Slots
from zprl_sb3.scripts.common import at_least, cores, find_demonstrations, new_parser
from zprl_sb3.scripts.live import shown
from zprl_sb3.studies import ERROR, HEARTBEAT, JOURNAL, SharedStudy, database, joined
from zprl_sb3.trials import LAST, Runner, run_trial
from zprl_sb3.tuning import Tuning, read_tuning
from zprl_sb3.tuning_results import described, named, write_results

PAUSE = 2.0  # seconds between two looks of a worker that has nothing to do, and at the study for what is shown
SHOWN = 12  # trials in the table, the latest
EXAMPLES = f"""examples:
  zprl tune --policy runs/box/base/policy --output runs/tune/box
  zprl tune my.yml --output runs/tune/box --trials 40 --jobs 2
  zprl tune my.yml --output runs/tune/box --storage postgresql://user:password@host/name

my.yml:
  policy: runs/box/base/policy
  algo: zprl                # a name of `zprl train --algo`; soe is not tuned
  search:
    scale: auto             # λ: from half the low end of what `zprl calibrate` says to twice the high one
    algorithm.qf_learning_rate: {{low: 1.0e-4, high: 1.0e-3, log: true}}
    algorithm.policy_kwargs.net_arch: [[128, 128], [256, 256, 256]]
  demonstrations: runs/box/demos.hdf5   # to calibrate on; default: what the policy was pretrained on
  set: [n_timesteps=12000]  # of all trials
  seeds: [0]                # a trial is worth the mean over them
  pruner: median            # or hyperband, or none

Without a file λ alone is searched. What is maximised is the mean success of the last {LAST} evaluations of a trial;
after each evaluation the pruner ends a trial that does worse than others did by then.

Every run is a folder OUTPUT/trials/TRIAL-SEED as `zprl train` leaves it, with log.txt. The same command again goes on,
and a larger --trials adds to the study. Started several times, here or on other machines, it adds workers: with the
journal file (the default) they share OUTPUT, with a database nothing but that, and the same --study. The trial of a
worker that is killed is tried again. At the end OUTPUT holds best.yml (for `zprl train --config`), trials.csv and
trials.png."""


def tune(study: SharedStudy, tuning: Tuning, total: int, jobs: int) -> None:
    """Run trials, so many at once, until the study has all that it is to have, and show how they go.

    :param study: The study
    :param tuning: What it searches
    :param total: Trials of the study, whoever runs them
    :param jobs: Of this process at once
    :raises KeyboardInterrupt: After Ctrl-C, once all runs have saved and ended
    :raises SystemExit: Likewise after SIGTERM
    """
    stop, display = Event(), _Display(study, tuning, total)
    show_them = shown(display.states, display.left, display.table)
    run = Slots(jobs).run
    with interrupts_wait() as interrupts, ThreadPoolExecutor(jobs) as pool, show_them as show:
        workers = [pool.submit(_work, study, tuning, total, run, stop) for _ in range(jobs)]
        beat, look = _Every(HEARTBEAT), _Every(PAUSE)
        try:
            while not all(worker.done() for worker in workers):
                time.sleep(LOOK)
                if beat.is_due():
                    study.beat()
                if look.is_due():
                    display.refresh()
                show()
                if interrupts or any(worker.done() and worker.exception() for worker in workers):
                    stop.set()
            display.refresh()
            if interrupts:
                print("Stopped: the same command goes on with the trials that were running")
        finally:
            stop.set()
    for worker in workers:
        worker.result()


class _Every:
    """Says when so many seconds have gone by."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, 0.0

    def is_due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


def _work(study: SharedStudy, tuning: Tuning, total: int, run: Runner, stop: Event) -> None:
    """Run trials until all are there. Then stay: another worker may die, and somebody must try its trial again."""
    while not stop.is_set():
        if trial := study.take(total):
            run_trial(study, tuning, trial, run, stop)
        elif study.unfinished():
            stop.wait(PAUSE)
        else:
            return


class _Display:
    """What is shown of a study, of all its workers."""

    def __init__(self, study: SharedStudy, tuning: Tuning, total: int) -> None:
        self._study, self._tuning, self._total = study, tuning, total
        self._trials: list[FrozenTrial] = []
        self.states: dict[str, str] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the study."""
        self._trials = self._study.trials()
        self.states.update({f"{trial.number:04d}": _state(trial) for trial in self._trials})

    def left(self) -> str:
        return f"{self._study.done(self._trials)} of {self._total} trials done"

    def table(self) -> Table:
        values = [
            trial.value for trial in self._trials if trial.state == TrialState.COMPLETE and trial.value is not None
        ]
        best = f", best {max(values):.2f}" if values else ""
        table = Table("trial", "state", "evaluations", "settings", title=self.left() + best)
        steps = len(self._tuning.seeds) * (self._tuning.steps + 1)
        for trial in self._trials[-SHOWN:]:
            name = f"{trial.number:04d}"
            table.add_row(name, self.states[name], f"{len(trial.intermediate_values)} of {steps}", described(trial))
        return table


def _state(trial: FrozenTrial) -> str:
    repeated = "" if named(trial) == f"{trial.number:04d}" else f", {named(trial)} again"
    if trial.state == TrialState.FAIL:
        return "failed" if ERROR in trial.user_attrs else "cut short"
    value = f" {trial.value:.3f}" if trial.state.is_finished() and trial.value is not None else ""
    return f"{trial.state.name.lower()}{value}{repeated}"


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser("tune", __doc__, EXAMPLES)
    parser.add_argument("file", nargs="?", help="YAML file of what is searched; default: λ alone")
    parser.add_argument("--policy", help="checkpoint folder of the frozen policy; default: the file's")
    parser.add_argument(
        "--demonstrations", metavar="FILE", help="to calibrate λ on; default: the file's, or the policy's"
    )
    parser.add_argument("--output", required=True, help="folder of all trials")
    parser.add_argument("--trials", type=at_least(1), default=40, help="of the study in all; default: %(default)s")
    parser.add_argument("--jobs", type=at_least(1), default=cores(), help="trials at once; default: all cores")
    parser.add_argument(
        "--storage", metavar="URL", help=f"database of the study (PostgreSQL, MySQL); default: OUTPUT/{JOURNAL}"
    )
    parser.add_argument("--study", metavar="NAME", help="of the study; default: the output folder's")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl tune``."""
    args = parser().parse_args(argv)
    tuning, output = read_tuning(args.file, args.policy, args.demonstrations, find_demonstrations), Path(args.output)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with joined(tuning, output, args.storage, args.study) as study:
        where = database(args.storage).render_as_string() if args.storage else output / JOURNAL
        print(f"The study {study.study.study_name!r} is in {where}; look at it with: optuna-dashboard {where}")
        tune(study, tuning, args.trials, args.jobs)
        print(write_results(study, tuning))
        failed = [trial for trial in study.trials(TrialState.FAIL) if ERROR in trial.user_attrs]
    for trial in failed:
        print(f"Trial {named(trial)} failed: {trial.user_attrs[ERROR]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["tune", *sys.argv[1:]]))
