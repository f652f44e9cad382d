"""What tests of the real robot share."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from robot_tasks import write

from arms import KinematicRobot
from zprl_sb3.robot_envs.real.keys import make_keys


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a task's file: :func:`robot_tasks.write`."""
    return partial(write, tmp_path)


@pytest.fixture
def limit_file_size() -> Iterator[Callable[[int], None]]:
    """Return what makes every write beyond so many bytes of a file fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of keys of a server and of those who are admitted, with good intentions or bad ones."""
    folder = tmp_path_factory.mktemp("keys")
    for client in ("robot", "viewer", "traitor"):
        make_keys(folder, client)
    return folder


@pytest.fixture
def robot() -> KinematicRobot:
    """Return a driver that does what it is told."""
    return KinematicRobot()
