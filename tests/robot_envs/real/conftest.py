"""What tests of the real robot share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from robot_tasks import write


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a task's file: :func:`robot_tasks.write`."""
    return partial(write, tmp_path)
