"""What the tests of the programs share: tiny runs on the toy task, and programs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import helpers
from helpers import POINT, tiny_policy
from zprl_sb3.checkpoint import save_policy
from zprl_sb3.scripts import cli

Program = Callable[..., tuple[int, str, str]]
Start = Callable[..., subprocess.Popen[str]]

# A run of 60 chunks that evaluates at 0, 20, 40 and 60, and saves at 20, 40 and 60.
TINY = [
    "n_timesteps=60",
    "n_envs=2",
    "eval_freq=20",
    "eval_episodes=2",
    "save_freq=20",
    "gamma=0.9",
    "algorithm.learning_starts=8",
    "algorithm.batch_size=8",
    "algorithm.policy_kwargs.net_arch=[8]",
    "algorithm.policy_kwargs.n_critics=2",
]


@pytest.fixture
def zprl(capsys: pytest.CaptureFixture[str]) -> Program:
    """Run a program in this process: exit code, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as caught:  # how argparse ends
            code = int(caught.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a program in a process group of its own, as a terminal does, with all its output in one pipe."""
    processes: list[subprocess.Popen[str]] = []

    def run(*arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "zprl_sb3.scripts.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(Path(helpers.__file__).parent)},  # where the toy task is
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def toy_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a policy with random weights for the toy task."""
    return save_policy(tiny_policy(env_id=POINT), tmp_path_factory.mktemp("toy") / "policy", env_kwargs={"reach": 0.3})


def train_toy(policy: Path, output: Path, *changes: str, seed: int = 0) -> list[str]:
    """Return the command of a tiny run."""
    return ["train", "--policy", str(policy), "--output", str(output), "--seed", str(seed), "--set", *TINY, *changes]


@pytest.fixture(scope="session")
def toy_run(toy_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished tiny run; look at it only."""
    output = tmp_path_factory.mktemp("toy_run") / "zprl-0"
    assert cli.main(train_toy(toy_policy, output)) == 0
    return output
