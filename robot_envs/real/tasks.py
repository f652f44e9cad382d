"""A task of a real robot: one YAML file that says what the robot is, what a policy sees, and what it may do.

The only module that knows the file: drivers, limits, server and people are made from it by :func:`make_station`,
:func:`local_station` and :func:`make_supervisor`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from zprl_sb3.robot_envs import is_real
from zprl_sb3.robot_envs.real.frames import View
from zprl_sb3.robot_envs.real.poses import JOINTS, REPRESENTATIONS, Poses
from zprl_sb3.robot_envs.real.robots import Arm, Camera, Robot, Station, Supervisor
from zprl_sb3.settings import find_file, read_settings

HERE = "zprl_sb3.robot_envs.real"
REMOTE, LOCAL = "remote", "local"
LOOP = ("watchdog", "rate")  # of the loop that keeps the limits, beside those of the arms
SIMULATED = "simulated"
SUPERVISORS = {
    "keyboard": ("keyboard", "KeyboardSupervisor"),
    "page": ("page", "PageSupervisor"),
    SIMULATED: (SIMULATED, "supervisor"),
}
"""Module and what makes a supervisor there, by kind."""


class TaskError(ValueError):
    """A task's file cannot be used; the message names the file and the key."""


@dataclass(frozen=True)
class Task:
    """A task of a real robot, as its file has it.

    :param name: For people
    :param path: The file
    :param rate: Env steps per second
    :param max_episode_steps: Env steps after which a person is asked for a verdict
    :param arms: By name, in the order of the action
    :param representation: Of poses, see :class:`~zprl_sb3.robot_envs.real.poses.Poses`; or ``"joints"``
    :param proprio: What a policy sees of the robot, by the names of its values
    :param sensors: Sizes of further values that it may see
    :param views: What it sees of the cameras, by name
    :param robot: ``driver`` (``"remote"`` or ``"local"``) and its arguments
    :param drivers: What ``zprl robot-server`` connects to, or this process where the driver is local
    :param limits: What the robot may do, by arm, and ``watchdog``, ``rate`` of the loop that sees to it
    :param home: Where episodes begin, as a command has it; None: the driver's own
    :param supervisor: ``kind`` and its arguments
    :param teleoperator: ``driver`` of the leader arms of ``zprl record``, and its arguments
    :param policy: What ``hyperparams/tasks.yml`` has by environment
    :param train: What ``hyperparams/zprl.yml`` has by environment
    """

    name: str
    path: Path
    rate: float
    max_episode_steps: int
    arms: dict[str, Arm]
    representation: str
    proprio: tuple[str, ...]
    sensors: dict[str, int]
    views: dict[str, View]
    robot: dict[str, Any]
    drivers: dict[str, Any]
    limits: dict[str, Any]
    home: dict[str, Any] | None
    supervisor: dict[str, Any]
    teleoperator: dict[str, Any]
    policy: dict[str, Any]
    train: dict[str, Any]

    def poses(self) -> Poses:
        """Return what turns actions into commands and values into what a policy sees."""
        bounds = {}
        for name in self.arms:
            limits = self.limits.get(name, {})
            if "workspace" in limits:
                bounds[f"{name}/position"] = tuple(limits["workspace"])
            if "joint_low" in limits and "joint_high" in limits:
                bounds[f"{name}/joints"] = (limits["joint_low"], limits["joint_high"])
        return Poses(self.arms, self.representation, self.proprio, self.sensors, bounds)


def load_task(task: str | Path | Task) -> Task:
    """Read a task's file.

    :param task: A name (``"place_orange"``: in the package's ``hyperparams/real/``) or the path of a file
    :raises FileNotFoundError: If there is no such file
    :raises TaskError: If something in it is missing, unknown or of another kind
    """
    if isinstance(task, Task):
        return task
    path = find_file(task, "real")
    try:
        content = read_settings(path)
    except yaml.YAMLError as error:
        raise TaskError(f"{path} is not YAML: {error}") from error
    return _Reader(path).task(content)


def task_settings(env_id: str, env_kwargs: Mapping[str, Any], section: str) -> dict[str, Any] | None:
    """Return what a real robot's task says in the place of an entry of ``hyperparams/``; None for other environments.

    :param env_id: Gymnasium id
    :param env_kwargs: What ``gym.make`` is given besides the id
    :param section: ``"policy"`` (of ``tasks.yml``) or ``"train"`` (of ``zprl.yml``)
    """
    if not is_real(env_id):
        return None
    settings: dict[str, Any] = getattr(load_task(env_kwargs["task"]), section)
    return settings


class _Reader:
    """Reads a task's tables strictly: what is unknown is named, with what is known.

    :param path: For messages
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def task(self, content: Any) -> Task:
        top = self.table(
            content,
            "",
            needed=("rate", "max_episode_steps", "arms", "control", "observation", "robot", "limits", "supervisor"),
            more=("name", "cameras", "drivers", "home", "teleoperator", "policy", "train"),
        )
        control = self.table(top["control"], "control", ("representation",))
        observation = self.table(top["observation"], "observation", ("proprio",), ("sensors",))
        representation = control["representation"]
        if representation not in REPRESENTATIONS:
            raise self.error("control.representation", f"one of {', '.join(REPRESENTATIONS)}", representation)
        arms = {
            name: self.arm(value, f"arms.{name}", representation) for name, value in self.names(top, "arms").items()
        }
        task = Task(
            name=str(top.get("name", self._path.stem)),
            path=self._path,
            rate=self.number(top["rate"], "rate"),
            max_episode_steps=self.whole(top["max_episode_steps"], "max_episode_steps"),
            arms=arms,
            representation=representation,
            proprio=self.proprio(observation["proprio"]),
            sensors={
                name: self.whole(size, f"observation.sensors.{name}")
                for name, size in self.names(observation, "sensors").items()
            },
            views={
                name: self.view(value, f"cameras.{name}") for name, value in self.names(top, "cameras").items()
            },
            robot=self.open(top["robot"], "robot", "driver", (REMOTE, LOCAL)),
            drivers=self.drivers(top.get("drivers")),
            limits=self.limits(top["limits"], arms),
            home=self.names(top, "home") or None,
            supervisor=self.open(top["supervisor"], "supervisor", "kind", tuple(SUPERVISORS)),
            teleoperator=self.driver(top["teleoperator"], "teleoperator") if top.get("teleoperator") else {},
            policy=self.names(top, "policy"),
            train=self.names(top, "train"),
        )  # fmt: skip
        try:
            task.poses()
        except ValueError as error:
            raise TaskError(f"{self._path}, observation.proprio: {error}") from error
        return task

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

    def open(self, value: Any, key: str, choice: str, known: tuple[str, ...]) -> dict[str, Any]:
        """Return a table with a choice, whose other keys are arguments of what is chosen."""
        if not isinstance(value, dict) or value.get(choice) not in known:
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


def make_station(task: Task) -> Station:
    """Return robot and cameras of a task, not connected: over the network, or this computer's behind its limits.

    :raises TaskError: If an argument is wrong
    :raises ImportError: If a driver cannot be imported; says how to install it
    """
    if task.robot["driver"] == LOCAL:
        return local_station(task)
    make = part("remote", "pyzmq and msgpack", "real").remote_station
    station: Station = made(task, "robot", make, _arguments(task.robot, "driver"))
    return station


def local_station(task: Task) -> Station:
    """Return the robot and the cameras that are connected to this computer, the robot behind its limits.

    ``zprl robot-server`` serves such a station.

    :raises TaskError: If there are no drivers in the file, or an argument is wrong
    :raises ImportError: If a driver cannot be imported; says how to install it
    """
    if not task.drivers:
        raise TaskError(f"{task.path}: there are no drivers to connect to; add drivers: with robot and cameras")
    robot: Robot = _driver(task, "drivers.robot", task.drivers["robot"], "robot")
    cameras: dict[str, Camera] = {
        name: _driver(task, f"drivers.cameras.{name}", arguments, "camera")
        for name, arguments in task.drivers["cameras"].items()
    }
    return Station(guarded(task, robot), cameras)


def guarded(task: Task, robot: Robot) -> Robot:
    """Return a robot behind the task's limits.

    :raises TaskError: If a limit is wrong
    """
    safety, loop = part("safety"), {key: task.limits[key] for key in LOOP if key in task.limits}
    limits = {name: made(task, f"limits.{name}", safety.Limits, task.limits[name]) for name in task.arms}
    guard: Robot = made(
        task, "limits", part("guard").Guard, {"robot": robot, "limits": limits, "home": task.home} | loop
    )
    return guard


def make_supervisor(task: Task) -> Supervisor:
    """Return the person's side of a task: keys at the terminal, or a page.

    :raises TaskError: If an argument is wrong
    """
    kind = task.supervisor["kind"]
    module, name = SUPERVISORS[kind]
    make = getattr(part(module), name)
    supervisor: Supervisor = made(task, "supervisor", make, _arguments(task.supervisor, "kind"))
    return supervisor


def make_teleoperator(task: Task) -> Robot:
    """Return what demonstrates a task: a robot whose observation is where the arms are to be.

    :raises TaskError: If the file names none, or an argument is wrong
    :raises ImportError: If the driver cannot be imported; says how to install it
    """
    if not task.teleoperator:
        raise TaskError(f"{task.path}: there is nobody to demonstrate it; add teleoperator: with a driver")
    leader: Robot = _driver(task, "teleoperator", task.teleoperator, "teleoperator")
    return leader


def _driver(task: Task, key: str, table: dict[str, Any], kind: str) -> Any:
    name = table["driver"]
    try:
        module = part(SIMULATED if name == SIMULATED else f"drivers.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{HERE}.drivers.{name}":
            raise
        raise TaskError(f"{task.path}, {key}: there is no driver {name!r}") from error
    # Leader arms are robots, too; only some are made otherwise.
    make = getattr(module, kind, None) or (
        module.robot if kind == "teleoperator" and hasattr(module, "robot") else None
    )
    if make is None:
        raise TaskError(f"{task.path}, {key}: {name!r} is a driver, but not of a {kind}")
    return made(task, key, make, _arguments(table, "driver"))


def _arguments(table: dict[str, Any], choice: str) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name != choice}


def part(name: str, needs: str = "", extra: str = "") -> ModuleType:
    """Import a module of this folder.

    :raises ImportError: Naming the extra where a library is missing
    """
    try:
        return importlib.import_module(f"{HERE}.{name}")
    except ImportError as error:
        if not needs:
            raise
        raise ImportError(
            f'{needs} cannot be imported ({error}). Install with: pip install "zprl-sb3[{extra}]"'
        ) from error


def made(task: Task, key: str, make: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call what makes a part, and name the place in the file where its arguments are wrong."""
    try:
        return make(**arguments)
    except (TypeError, ValueError) as error:
        raise TaskError(f"{task.path}, {key}: {error}") from error
