"""A benchmark's runs on the nodes of a Ray cluster. Imports no torch: each of Ray's processes would hold one."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from types import ModuleType, TracebackType
from typing import Any

from zprl_sb3.jobs import LOOK, Job, JobFailed, last_line, run_job

RETRIES = 3  # of a run whose node or worker died
STORE = 100_000_000  # bytes of shared memory: the runs exchange nothing
CONNECT = 20.0  # seconds
HERE = "local"  # Ray's word for a new cluster on this machine


class Cluster:
    """Runs jobs on a Ray cluster: a CPU each and, where it has GPUs, one of those or a share of one.

    Where a worker or a node dies, Ray starts the run again elsewhere and it goes on from its last snapshot. A run whose
    program fails is not tried again. All nodes must share the file system of output, policies and working directory.

    :param address: Of a running cluster, ``host:port`` or ``auto``; None asks ``RAY_ADDRESS``, and without that starts
        one on this machine
    :param count: How many run at once, at most as many as there are CPUs; None: as many as there are GPUs, or CPUs
    :raises ImportError: If Ray is not installed
    :raises ConnectionError: If there is no such cluster, or it has no CPUs
    """

    def __init__(self, address: str | None = None, count: int | None = None) -> None:
        self._ray = _connect(address or os.environ.get("RAY_ADDRESS") or HERE)
        self.at_once, share = shares(self._ray.cluster_resources(), count)
        options = {"num_cpus": 1, "num_gpus": share, "max_retries": RETRIES, "retry_exceptions": False}
        self._on_node = self._ray.remote(**options)(_on_node)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()

    def run(self, job: Job, stop: Event) -> None:
        """Run a job on a node that has room, until an event says stop.

        :raises JobFailed: If a command fails, is stopped, or nodes died too often
        """
        job.folder.mkdir(parents=True, exist_ok=True)
        task = self._on_node.remote(job, Path.cwd())
        while not self._ray.wait([task], timeout=LOOK)[0]:
            if stop.is_set():
                self._ray.cancel(task)  # a KeyboardInterrupt there; the task ends once its program has saved
                break
        try:
            error = self._ray.get(task)
        except self._ray.exceptions.RayError as lost:
            what = f"{type(lost).__name__}: {last_line(str(lost))}"
            raise JobFailed(f"lost on the cluster: {what} ({job.folder / 'log.txt'})") from lost
        if error:
            raise JobFailed(error)


def shares(resources: Mapping[str, float], count: int | None) -> tuple[int, float]:
    """Return how many jobs run at once on a cluster, and the part of a GPU that each gets.

    :param resources: Of the cluster, by Ray's names
    :param count: How many are wanted; None: one for each GPU, or CPU
    :raises ConnectionError: If it has no CPUs
    """
    cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if not cpus:
        raise ConnectionError("The Ray cluster has no CPUs: start its nodes first")
    at_once = min(count or gpus or cpus, cpus)
    return at_once, 1 / math.ceil(at_once / gpus) if gpus else 0.0


def _connect(address: str) -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise ImportError("Ray is not installed: pip install 'zprl-sb3[ray]'") from error
    _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    own: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE} if address == HERE else {}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError) as error:
        hint = "Where its nodes have RAY_AUTH_MODE=token, this needs it too"
        raise ConnectionError(f"No Ray cluster at {address}: {last_line(str(error))}. {hint}") from error
    return ray


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()
    except OSError as error:  # Ray itself would try for minutes
        raise ConnectionError(f"No Ray cluster at {address}: {error}") from error


def _on_node(job: Job, directory: Path) -> str | None:
    """Run a job where relative paths mean what they mean to who started the benchmark, and return what went wrong.

    Not raised: Ray would wrap it into its own words.
    """
    try:
        os.chdir(directory)
        if not job.folder.is_dir():
            raise FileNotFoundError(f"there is no {directory / job.folder}")
    except OSError as error:
        return f"{socket.gethostname()} does not share the file system of the benchmark: {error}"
    try:
        run_job(job, apart=True)  # Ray kills the group of a dead worker, and with it who is still saving
    except (JobFailed, OSError) as error:
        return f"on {socket.gethostname()}: {error}"
    return None
