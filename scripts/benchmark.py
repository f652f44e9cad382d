"""``zprl benchmark``: tasks x methods x seeds from one file, as many runs at once as there are cores or GPUs.

With ``--engine ray`` those of a Ray cluster.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Event

import torch as th
from rich.table import Table

from zprl_sb3.benchmark import read_plan
from zprl_sb3.cluster import Cluster
from zprl_sb3.interrupts import interrupts_wait
from zprl_sb3.jobs import LOOK, Job, JobFailed, Stop, run_job
from zprl_sb3.report import ReportError
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import at_least, cores, new_parser
from zprl_sb3.scripts.live import shown
from zprl_sb3.scripts.report import report

EXAMPLES = """examples:
  zprl benchmark my.yml --output runs/benchmark
  zprl benchmark my.yml --output runs/benchmark --jobs 4
  zprl benchmark my.yml --output runs/benchmark --engine ray --ray-address auto
  zprl benchmark ablations/scale --output runs/scale   # our own: scale, latent_dim, demos, beta, resemb, options
  zprl benchmark benchmarks/figure3 --output runs/figure3   # all methods on the paper's tasks

my.yml:
  tasks:
    box-close: {policy: runs/box/base/policy}
    door: {policy: runs/door/base/policy, set: [n_timesteps=30000]}
    can: {base: {env: zprl/Can-v0, demos: 50}}  # demonstrations and policy are made, what is not said by quickstart.yml
  methods:                  # the names of `zprl train --algo`, or names of your own
    zprl: {}
    po_dec: {}
    zprl-three-chunks: {algo: zprl, set: [algorithm.replay_buffer_kwargs.n_steps=3]}
  seeds: [0, 1]
  set: [n_timesteps=12000]  # of all runs
  episodes: 200             # of the evaluations at the end

Every run is a folder TASK/METHOD-SEED as `zprl train` leaves it, with log.txt. The same command again skips what is
finished, goes on with what was stopped or killed, and tries again what has failed. At the end `zprl report`.
With Ray all nodes must share the file system of the output, the policies and the folder that this is started in; a run
whose node dies goes on elsewhere."""

Runner = Callable[[Job, Event], None]


def benchmark(jobs: Sequence[Job], run: Runner, at_once: int) -> dict[str, str]:
    """Run what is not finished, so many at once, show a table of it, and return the errors of what failed by name.

    :param jobs: All runs
    :param run: Runs one, until an event says stop; called in threads
    :param at_once: How many at once
    :raises KeyboardInterrupt: After Ctrl-C, once all runs have saved and ended
    :raises SystemExit: Likewise after SIGTERM
    """
    states = _states(jobs)
    errors: dict[str, str] = {}
    left = [job for job in jobs if states[job.name] == "waiting"]
    stop = Event()

    def work(job: Job) -> None:
        states[job.name] = "running"
        run(job, stop)

    show_them = shown(states, lambda: _left(states), lambda: _table(jobs, states))
    with interrupts_wait() as interrupts, ThreadPoolExecutor(at_once) as pool, show_them as show:
        futures: dict[Future[None], Job] = {}
        while futures or left:
            ready, left = _ready(left, states, errors)
            futures |= {pool.submit(work, job): job for job in ready}
            time.sleep(LOOK)
            for future in [each for each in futures if each.done()]:
                _note(future, futures.pop(future), states, errors)
            show()
            if interrupts:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise interrupts.exception()
    return errors


def _states(jobs: Sequence[Job]) -> dict[str, str]:
    """Return which jobs are waiting and which are done, or not needed any more by any that is waiting."""
    states: dict[str, str] = {}
    for job in reversed(jobs):
        users = [states[other.name] for other in jobs if job.name in other.needs]
        waiting = not job.finished() and (not users or "waiting" in users)
        states[job.name] = "waiting" if waiting else "done"
    return {job.name: states[job.name] for job in jobs}


def _ready(left: Sequence[Job], states: dict[str, str], errors: dict[str, str]) -> tuple[list[Job], list[Job]]:
    """Part the jobs that can be started from those that wait for others. What needs one that failed fails with it."""
    ready: list[Job] = []
    waiting: list[Job] = []
    for job in left:
        needed = {states[name]: name for name in job.needs}
        if "failed" in needed:
            states[job.name], errors[job.name] = "failed", f"not started, because {needed['failed']} failed"
        else:
            (waiting if needed.keys() - {"done"} else ready).append(job)
    return ready, waiting


def _note(future: Future[None], job: Job, states: dict[str, str], errors: dict[str, str]) -> None:
    try:
        future.result()
        states[job.name] = "done"
    except (JobFailed, OSError) as error:
        states[job.name], errors[job.name] = "failed", str(error)


def _left(states: dict[str, str]) -> str:
    return f"{sum(state in ('waiting', 'running') for state in states.values())} of {len(states)} left"


def _table(jobs: Sequence[Job], states: dict[str, str]) -> Table:
    table = Table("run", "state", "trained", "success", title=_left(states))
    for job in jobs:
        share, success = job.progress()
        trained = f"{share:.0%}" if job.n_timesteps else "–"
        table.add_row(job.name, states[job.name], trained, "–" if success is None else f"{success:.2f}")
    return table


class Slots:
    """Runs jobs on this machine: one thread of the processor each, and GPUs in turn.

    :param count: How many run at once
    """

    def __init__(self, count: int) -> None:
        self._free: Queue[int] = Queue()
        for slot in range(count):
            self._free.put(slot)
        gpus = th.cuda.device_count()
        # Those that this process may use: a scheduler has told it which.
        named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        self._gpus = named[:gpus] if len(named) >= gpus and named[0] else [str(gpu) for gpu in range(gpus)]

    def run(self, job: Job, stop: Stop) -> None:
        """Run a job in a free slot, until an event says stop."""
        slot = self._free.get()
        environment = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]} if self._gpus else None
        try:
            run_job(job, stop, environment)
        finally:
            self._free.put(slot)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser("benchmark", __doc__, EXAMPLES)
    parser.add_argument(
        "file", help="YAML file of tasks, methods and seeds, or one of the package's, e.g. ablations/scale"
    )
    parser.add_argument("--output", required=True, help="folder of all runs")
    parser.add_argument("--jobs", type=at_least(1), help="runs at once; default: all cores, under Ray all GPUs or CPUs")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="what runs them; default: %(default)s, this machine"
    )
    parser.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="of a running Ray cluster, or auto; default: RAY_ADDRESS, or a new cluster on this machine",
    )
    return parser


@contextmanager
def _engine(args: argparse.Namespace) -> Iterator[tuple[Runner, int]]:
    """Yield what runs a job, and how many at once."""
    if args.engine == "ray":
        with Cluster(args.ray_address, args.jobs) as cluster:
            yield cluster.run, cluster.at_once
        return
    if args.ray_address:
        raise ValueError("--ray-address goes with --engine ray")
    yield Slots(args.jobs or cores()).run, args.jobs or cores()


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl benchmark``."""
    args = parser().parse_args(argv)
    output = Path(args.output)
    jobs = read_plan(args.file, output)
    with _engine(args) as (run, at_once):
        errors = benchmark(jobs, run, at_once)
    try:
        page, table = report([job.folder for job in jobs if job.n_timesteps], output / "report")
        print(f"{table}\nWrote {page}")
    except ReportError as error:
        print(f"No report: {error}", file=sys.stderr)
    for name, text in errors.items():
        print(f"{name} failed: {text}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(cli.main(["benchmark", *sys.argv[1:]]))
