"""A task of a real robot as tests use it: fast, small images, limits that nothing reaches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TASK: dict[str, Any] = {
    "rate": 100,
    "max_episode_steps": 6,
    "arms": {"arm": {"joints": 6}},
    "control": {"representation": "axis_angle"},
    "observation": {"proprio": ["arm/position", "arm/rotation", "arm/gripper"]},
    "cameras": {"front": {"size": [24, 32]}},
    "robot": {"driver": "local"},
    "limits": {"arm": {"workspace": [[-1.0, -1.0, 0.0], [1.0, 1.0, 1.0]]}},
    "supervisor": {"kind": "keyboard"},
    "policy": {"horizon": 4, "chunk": 2, "latent_dim": 4, "crop": []},
    "train": {"default": "real", "scale": 0.2},
}


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Return what writes a task's file, with some of its keys changed; None leaves one out."""

    def write(name: str = "reach", **changes: Any) -> Path:
        content = {key: value for key, value in (TASK | changes).items() if value is not None}
        path = tmp_path / f"{name}.yml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write
