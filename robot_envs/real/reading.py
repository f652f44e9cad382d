"""Reads a task's file strictly: what is unknown is named, with what is known, and what is wrong with its place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zprl_sb3.robot_envs.real.frames import View
from zprl_sb3.robot_envs.real.poses import JOINTS, REPRESENTATIONS
from zprl_sb3.robot_envs.real.robots import Arm

REMOTE, LOCAL = "remote", "local"
KINDS = ("keyboard", "page", "simulated")  # of supervisors
LOOP = ("watchdog", "rate")  # of the loop that keeps the limits, beside those of the arms
NEEDED = ("rate", "max_episode_steps", "arms", "control", "observation", "robot", "limits", "supervisor")
OPTIONAL = ("name", "cameras", "drivers", "home", "teleoperator", "policy", "train")


class TaskError(ValueError):
    """A task's file cannot be used; the message names the file and the key."""


class Reader:
    """Reads the tables of a task's file. Every method raises a :class:`TaskError` for what is wrong.

    :param path: For messages
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, content: Any) -> dict[str, Any]:
        """Return the fields of a :class:`~zprl_sb3.robot_envs.real.tasks.Task`."""
        top = self.table(content, "", NEEDED, OPTIONAL)
        control = self.table(top["control"], "control", ("representation",))
        observation = self.table(top["observation"], "observation", ("proprio",), ("sensors",))
        representation, sensors = control["representation"], self.names(observation, "sensors")
        if representation not in REPRESENTATIONS:
            raise self.error("control.representation", f"one of {', '.join(REPRESENTATIONS)}", representation)
        arms = {name: self.arm(each, f"arms.{name}", representation) for name, each in self.names(top, "arms").items()}
        teleoperator = top.get("teleoperator")
        return {
            "name": str(top.get("name", self._path.stem)),
            "path": self._path,
            "rate": self.number(top["rate"], "rate"),
            "max_episode_steps": self.whole(top["max_episode_steps"], "max_episode_steps"),
            "arms": arms,
            "representation": representation,
            "proprio": self.proprio(observation["proprio"]),
            "sensors": {name: self.whole(size, f"observation.sensors.{name}") for name, size in sensors.items()},
            "views": {name: self.view(each, f"cameras.{name}") for name, each in self.names(top, "cameras").items()},
            "robot": self.choice(top["robot"], "robot", "driver", (REMOTE, LOCAL)),
            "drivers": self.drivers(top.get("drivers")),
            "limits": self.limits(top["limits"], arms),
            "home": self.names(top, "home") or None,
            "supervisor": self.choice(top["supervisor"], "supervisor", "kind", (*KINDS, "a module.of.yours")),
            "teleoperator": {} if teleoperator is None else self.driver(teleoperator, "teleoperator"),
            "policy": self.names(top, "policy"),
            "train": self.names(top, "train"),
        }

    def error(self, key: str, wanted: str, found: Any) -> TaskError:
        return TaskError(f"{self._path}, {key or 'the file'}: must be {wanted}, not {found!r}")

    def table(self, value: Any, key: str, needed: tuple[str, ...] = (), more: tuple[str, ...] = ()) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(key, "a table", value)
        known, where = (*needed, *more), f"{self._path}{f', {key}' if key else ''}"
        if unknown := [str(name) for name in value if name not in known]:
            raise TaskError(f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(known)}")
        if missing := [name for name in needed if name not in value]:
            raise TaskError(f"{where}: {', '.join(missing)} is missing")
        return dict(value)

    def names(self, table: dict[str, Any], key: str) -> dict[str, Any]:
        """Return a table whose keys are names; an empty one where it is left out or null."""
        value = table.get(key) or {}
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise self.error(key, "a table by name", value)
        return dict(value)

    def choice(self, value: Any, key: str, choice: str, known: tuple[str, ...]) -> dict[str, Any]:
        """Return a table that chooses something and gives it arguments; where others may, a module's name has a dot."""
        name = value.get(choice) if isinstance(value, dict) else None
        theirs = isinstance(name, str) and "." in name and any("." in each for each in known)
        if not (name in known or theirs):
            raise self.error(key, f"a table with {choice}: {' or '.join(known)}", value)
        return dict(value)

    def number(self, value: Any, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise self.error(key, "a positive number", value)
        return float(value)

    def whole(self, value: Any, key: str) -> int:
        if type(value) is not int or value < 1:
            raise self.error(key, "a whole number of at least 1", value)
        return value

    def arm(self, value: Any, key: str, representation: str) -> Arm:
        table = self.table(value, key, ("joints",), ("gripper",))
        gripper = table.get("gripper", True)
        if not isinstance(gripper, bool):
            raise self.error(f"{key}.gripper", "true or false", gripper)
        control = JOINTS if representation == JOINTS else "pose"
        return Arm(control, self.whole(table["joints"], f"{key}.joints"), gripper)

    def proprio(self, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value) or not value:
            raise self.error("observation.proprio", "a list of names, such as [arm/position, arm/gripper]", value)
        return tuple(value)

    def view(self, value: Any, key: str) -> View:
        table = self.table(value, key, ("size",), ("max_age", "frozen_after"))
        size = table["size"]
        if not isinstance(size, list) or len(size) != 2:
            raise self.error(f"{key}.size", "[height, width]", size)
        height, width = (self.whole(each, f"{key}.size") for each in size)
        ages = {
            name: self.number(table[name], f"{key}.{name}") for name in ("max_age", "frozen_after") if name in table
        }
        return View((height, width), **ages)

    def drivers(self, value: Any) -> dict[str, Any]:
        if value is None:
            return {}
        table = self.table(value, "drivers", ("robot",), ("cameras",))
        cameras = self.names(table, "cameras")
        return {
            "robot": self.driver(table["robot"], "drivers.robot"),
            "cameras": {name: self.driver(each, f"drivers.cameras.{name}") for name, each in cameras.items()},
        }

    def driver(self, value: Any, key: str) -> dict[str, Any]:
        if not isinstance(value, dict) or not isinstance(value.get("driver"), str):
            raise self.error(key, "a table with driver: and its arguments", value)
        return dict(value)

    def limits(self, value: Any, arms: Mapping[str, Arm]) -> dict[str, Any]:
        table = self.table(value, "limits", tuple(arms), LOOP)
        for name in arms:
            self.names(table, name)
        return table
