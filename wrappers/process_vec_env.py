"""Environments in processes of their own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cloudpickle
import gymnasium as gym
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from zprl_sb3.wrappers.worker import work

PATIENCE = 10.0  # seconds that processes may take to end


@contextmanager
def process_alive(of: str) -> Iterator[None]:
    """Say what a closed pipe means, which is all that is noticed of an error in a process.

    :param of: Whose process
    :raises ChildProcessError: If it has ended
    """
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise ChildProcessError(f"The process of {of} has ended; its own error stands above") from error


class ProcessVecEnv(SubprocVecEnv):
    """SB3's ``SubprocVecEnv`` with processes that import neither SB3 nor torch, unless an environment does.

    They run the main script anew, under another name than ``__main__``: what it imports at its top they import, too,
    and what it does must stand under ``if __name__ == "__main__":``.

    :param makers: Functions that make one environment each
    :raises EOFError: If one of them fails; its error stands on stderr
    """

    def __init__(self, makers: Sequence[Callable[[], gym.Env[Any, Any]]]) -> None:
        self.waiting = self.closed = False
        # Not fork: the main process has threads.
        server = "forkserver" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("forkserver" if server else "spawn")
        pipes = [context.Pipe() for _ in makers]
        self.remotes, self.work_remotes = zip(*pipes, strict=True)
        self.processes = []
        for remote, make in zip(self.work_remotes, makers, strict=True):
            process = context.Process(target=work, args=(remote, cloudpickle.dumps(make)), daemon=True)
            process.start()
            self.processes.append(process)
            remote.close()
        try:
            for remote in self.remotes:
                remote.send(("get_spaces", None))
            spaces = [remote.recv() for remote in self.remotes]
        except (EOFError, ConnectionError):
            self.close()
            raise
        VecEnv.__init__(self, len(makers), *spaces[0])

    def close(self) -> None:
        """End the processes, whatever they are doing; one that was killed, or a step that failed, does not keep it."""
        self.closed = True
        for remote in self.remotes:
            remote.close()  # which a process notices when it next looks for a command
        deadline = time.monotonic() + PATIENCE
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.terminate()
                process.join()
