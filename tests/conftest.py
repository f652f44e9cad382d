"""What every test needs before the first import: off-screen rendering and quiet, single-threaded libraries.

Tests that take more than a few seconds carry ``@pytest.mark.slow``; ``-m "not slow"`` leaves them out.
"""

from __future__ import annotations

import os
from pathlib import Path

# MuJoCo and robosuite choose their renderer while they are imported, and two parallel workers share the cores.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch as th

th.set_num_threads(1)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the source tree."""
    return Path(__file__).parents[1]
