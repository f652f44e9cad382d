"""What tests of the real robot share."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from robot_tasks import write


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
