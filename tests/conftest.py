"""What every test needs before the first import: off-screen rendering and quiet, single-threaded libraries.

Tests that take more than a few seconds carry ``@pytest.mark.slow``; ``-m "not slow"`` leaves them out.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

# MuJoCo and robosuite choose their renderer while they are imported, and two parallel workers share the cores.
os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch as th
from absl.logging import get_absl_handler

# A job in the background ignores Ctrl-C and so would every program that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
th.set_num_threads(1)
# TensorBoard and OpenVINO load this handler, which would take pytest's capture for its own file, and close it.
get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the source tree."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def _close_environments() -> Iterator[None]:
    yield
    if "simulated" in sys.modules:
        sys.modules["simulated"].close_all()


@pytest.fixture(scope="session")
def push_demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 4 real demonstrations of ``zprl/Push-v0``, up to 60 env steps each."""
    pytest.importorskip("metaworld")
    from zprl_sb3.scripts.collect import collect
    from zprl_sb3.settings import load_settings

    settings = load_settings("collect.yml", "zprl/Push-v0", ["max_episode_steps=60"])
    return collect("zprl/Push-v0", 4, 0, tmp_path_factory.mktemp("push") / "demos.hdf5", settings=settings)
