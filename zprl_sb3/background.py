"""Evaluation in a process of its own, beside training."""

from __future__ import annotations

import io
import multiprocessing
import signal
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import cloudpickle
import torch as th
from stable_baselines3.common.policies import BasePolicy

from zprl_sb3.diagnostics import evaluation_row
from zprl_sb3.wrappers import VecSteering
from zprl_sb3.wrappers.process_vec_env import process_alive
from zprl_sb3.wrappers.worker import answer, receive


class BackgroundEvaluation:
    """Evaluates one policy after another on the same seeded episodes, while this process does something else.

    The process has simulators and a base policy of its own, which costs their memory; torch computes there on one core.
    It runs the main script anew, under another name than ``__main__``: what that does must stand under
    ``if __name__ == "__main__":``.

    :param make_env: Makes the steered environments, with ``seeded_episodes=True``; called in the process
    """

    def __init__(self, make_env: Callable[[], VecSteering]) -> None:
        # Not fork: this process has threads, and perhaps a GPU. Not a daemon: those may have no processes of their own.
        context = multiprocessing.get_context("spawn")
        self._remote, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, cloudpickle.dumps(make_env)), daemon=False)
        self._process.start()
        other.close()
        self._ready = False
        self._under_way: list[dict[str, Any]] = []
        # Also when it is forgotten, and at Python's exit, before that waits for the process, and the process for work.
        self.close = Finalize(self, _end, (self._remote, self._process), exitpriority=10)

    def wait_ready(self) -> None:
        """Wait until the environments are made, as :meth:`submit` does, to know it earlier.

        :raises ChildProcessError: If they cannot be made
        """
        if not self._ready:
            with process_alive("the evaluation"):
                self._remote.recv()
            self._ready = True

    def submit(self, policy: BasePolicy, seed: int, episodes: int, labels: Mapping[str, Any]) -> None:
        """Have a policy evaluated as it is now.

        :param policy: Of any SB3 algorithm
        :param seed: First episode seed
        :param episodes: Episodes, a multiple of the environments
        :param labels: What its row begins with
        :raises ChildProcessError: If the process has ended
        """
        self.wait_ready()
        file = io.BytesIO()
        policy.save(file)  # type: ignore[arg-type]
        with process_alive("the evaluation"):
            self._remote.send(cloudpickle.dumps((type(policy), file.getvalue(), seed, episodes)))
        self._under_way.append(dict(labels))

    def finished(self, wait: bool = False) -> list[dict[str, Any]]:
        """Return the rows that have come in since the last call: labels, then :func:`evaluation_row`.

        :param wait: Wait for all that is under way
        :raises ChildProcessError: If the process has ended
        """
        rows = []
        with process_alive("the evaluation"):
            while self._under_way and (wait or self._remote.poll()):
                rows.append(self._under_way[0] | self._remote.recv())
                del self._under_way[0]
        return rows


def _end(remote: Connection, process: BaseProcess) -> None:
    remote.close()
    process.kill()  # it is deaf to the others
    process.join()


def _work(remote: Connection, make_env: bytes) -> None:
    """What the process does: policies come in through the pipe, rows go out."""
    # Ctrl-C reaches every process of the terminal, a scheduler's SIGTERM perhaps every one of the job, but what then
    # becomes of a run is for the main process to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    th.set_num_threads(1)  # the others are the training's
    env: VecSteering = cloudpickle.loads(make_env)()
    try:
        answer(remote, "ready")
        while (sent := receive(remote)) is not None:
            kind, file, seed, episodes = cloudpickle.loads(sent)
            policy = kind.load(io.BytesIO(file), env.steering.policy.device)
            answer(remote, evaluation_row(policy, env, seed, episodes))
    finally:
        env.close()
