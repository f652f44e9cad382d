"""What the tests of the programs share: tiny runs on the toy task, and programs in processes of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
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

    def run(*arguments: str | Path, program: Sequence[str] = ("-m", "zprl_sb3.scripts.cli")) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
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


@pytest.fixture
def with_toy_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the runs that a program starts find the toy task."""
    monkeypatch.setenv("PYTHONPATH", str(Path(helpers.__file__).parent), prepend=os.pathsep)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Start a PostgreSQL server of its own, with an empty database, and return its URL."""
    places = [*Path("/usr/lib/postgresql").glob("*/bin"), *map(Path, os.get_exec_path())]
    program = next((place / "pg_ctl" for place in places if (place / "pg_ctl").is_file()), None)
    if program is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        user: list[str] = []
        if os.geteuid() == 0:  # whom it refuses
            shutil.chown(folder, "postgres")
            user = ["runuser", "-u", "postgres", "--"]
        server = [*user, str(program), "--pgdata", f"{folder}/data", "--silent"]
        subprocess.run([*server, "initdb", "-o", "--username=zprl --auth=trust --no-sync"], check=True, cwd=folder)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -F"
        free.close()
        subprocess.run([*server, "start", "-w", "-l", f"{folder}/log", "-o", options], check=True, cwd=folder)
        yield f"postgresql://zprl@127.0.0.1:{port}/postgres"
        subprocess.run([*server, "stop", "-m", "immediate"], check=True, cwd=folder)
