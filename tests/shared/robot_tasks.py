"""A task of a real robot as tests use it: fast, small images, limits that nothing reaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TASK: dict[str, Any] = {
    "rate": 100,
    "max_episode_steps": 6,
    "arms": {"arm": {"joints": 6}},
    "control": {"representation": "axis_angle"},
    "observation": {"proprio": ["arm/position", "arm/rotation", "arm/gripper"]},
    "cameras": {"front": {"size": [24, 32]}},
    "robot": {"driver": "local"},
    "drivers": {"robot": {"driver": "lab.kinematic"}, "cameras": {"front": {"driver": "lab.kinematic"}}},
    "teleoperator": {"driver": "lab.kinematic"},
    "limits": {
        "arm": {
            "workspace": [[-1.0, -1.0, 0.0], [1.0, 1.0, 1.0]],
            "speed": 2.0,
            "acceleration": 50.0,
            "rotation_speed": 10.0,
            "rotation_acceleration": 100.0,
        },
        "watchdog": 0.5,
    },
    "supervisor": {"kind": "lab.scripted", "success": 5, "every": 2},
    "policy": {"horizon": 4, "chunk": 2, "latent_dim": 4, "crop": []},
    "train": {"default": "real", "scale": 0.2},
}


def write(folder: Path, name: str = "reach", **changes: Any) -> Path:
    """Write a task's file, with some of its keys changed; None leaves one out."""
    content = {key: value for key, value in (TASK | changes).items() if value is not None}
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(content))
    return path
