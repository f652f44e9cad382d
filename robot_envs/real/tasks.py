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
from zprl_sb3.robot_envs.real.drivers import find_driver, find_module
from zprl_sb3.robot_envs.real.frames import View
from zprl_sb3.robot_envs.real.poses import Poses
from zprl_sb3.robot_envs.real.reading import LOCAL, LOOP, Reader, TaskError
from zprl_sb3.robot_envs.real.robots import Arm, Camera, Robot, Station, Supervisor
from zprl_sb3.settings import find_file, read_settings

HERE = "zprl_sb3.robot_envs.real"
SIMULATED = "simulated"
SUPERVISORS = {
    "keyboard": ("keyboard", "KeyboardSupervisor"),
    "page": ("page", "PageSupervisor"),
    SIMULATED: (SIMULATED, "supervisor"),
}
"""Module and what makes a supervisor there, by kind."""


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
    read = Task(**Reader(path).read(content))
    try:
        read.poses()
    except ValueError as error:
        raise TaskError(f"{path}, observation.proprio: {error}") from error
    return read


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


def make_station(task: Task) -> Station:
    """Return robot and cameras of a task, not connected: over the network, or this computer's behind its limits.

    :raises TaskError: If an argument is wrong
    :raises ImportError: If a driver cannot be imported; says how to install it
    """
    if task.robot["driver"] == LOCAL:
        return local_station(task)
    make = part("remote", "pyzmq and msgpack", "real").remote_station
    enforced = part("safety").described(_limits(task), home=task.home, **_loop(task))
    agreed = {"arms": task.arms, "cameras": tuple(task.views), "enforced": enforced}
    station: Station = made(task, "robot", make, _arguments(task.robot, "driver") | agreed)
    return station


def local_station(task: Task) -> Station:
    """Return the robot and the cameras that are connected to this computer, the robot behind its limits.

    ``zprl robot-server`` serves such a station. A driver is a module of :mod:`zprl_sb3.robot_envs.real.drivers`, or,
    with a dot in its name, one of the user's, with functions ``robot``, ``camera`` or ``teleoperator``.

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
    arguments = {"robot": robot, "limits": _limits(task), "home": task.home} | _loop(task)
    guard: Robot = made(task, "limits", part("guard").Guard, arguments)
    return guard


def _limits(task: Task) -> dict[str, Any]:
    make = part("safety").Limits
    return {name: made(task, f"limits.{name}", make, task.limits[name]) for name in task.arms}


def _loop(task: Task) -> dict[str, Any]:
    return {key: task.limits[key] for key in LOOP if key in task.limits}


def make_supervisor(task: Task) -> Supervisor:
    """Return the person's side of a task: keys at the terminal, a page, or ``supervisor`` of a module of the user's.

    :raises TaskError: If an argument is wrong, or there is no such module
    """
    kind = task.supervisor["kind"]
    name, maker = SUPERVISORS.get(kind, ("", "supervisor"))
    module = made(task, "supervisor", find_module, {"name": kind, "ours": f"{HERE}.{name}", "known": SUPERVISORS})
    make = getattr(module, maker)
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
    if name == SIMULATED:
        module = importlib.import_module(f"{HERE}.{SIMULATED}")
    else:
        module = made(task, key, find_driver, {"name": name})
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
