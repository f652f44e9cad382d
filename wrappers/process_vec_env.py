"""Environments in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

import cloudpickle
import gymnasium as gym
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from zprl_sb3.wrappers.worker import work


class ProcessVecEnv(SubprocVecEnv):
    """SB3's ``SubprocVecEnv`` with processes that import neither SB3 nor torch, unless an environment does.

    :param makers: Functions that make one environment each
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
        self.remotes[0].send(("get_spaces", None))
        VecEnv.__init__(self, len(makers), *self.remotes[0].recv())
