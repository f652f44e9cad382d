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
from programs import train_command
from zprl_sb3.checkpoint import save_policy
from zprl_sb3.scripts import cli

Program = Callable[..., tuple[int, str, str]]
Start = Callable[..., subprocess.Popen[str]]


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
    toy_task = str(Path(helpers.__file__).parent)
    path = os.pathsep.join([toy_task, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)

    def run(*arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "zprl_sb3.scripts.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def toy_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a policy with random weights for the toy task."""
    return save_policy(tiny_policy(env_id=POINT), tmp_path_factory.mktemp("toy") / "policy", env_kwargs={"reach": 0.3})


@pytest.fixture(scope="session")
def toy_run(toy_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished tiny run; look at it only."""
    output = tmp_path_factory.mktemp("toy_run") / "zprl-0"
    assert cli.main(train_command(toy_policy, output)) == 0
    return output
