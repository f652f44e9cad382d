"""Arms, leader arms and cameras of an installed LeRobot. Written after its release 0.4.4.

LeRobot pins many packages. Where that does not fit beside a training, install it in an environment of its own, with
``zprl robot-server``: the two then speak over the network, of the same computer too.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.real.drivers import NO_HOME, load_package, numbers
from zprl_sb3.robot_envs.real.drivers.grabbing import GrabbingCamera
from zprl_sb3.robot_envs.real.robots import Arm, RobotError, Values

INSTALL = "lerobot"
POSITION = ".pos"
LIMP = "disable_torque_on_disconnect"  # a setting of most arms
# What one unit of a motor's position is here: radians for degrees, a share of the calibrated range for -100 to 100.
UNITS = {"degrees": math.pi / 180.0, "normalized": 0.01}
GRIPPER_OPEN = 100.0
DEVICES = ("Robot", "Teleoperator", "Camera")
HOME_RATE, CLOSE = 50.0, 0.06  # commands per second on the way home; how near to it the arm must come
HOME_PATIENCE = 3.0  # seconds to come there after the last command


class _Joints:
    """What LeRobot's follower and leader arms share: motors by name, which are joints and a gripper here.

    :param device: LeRobot's robot or teleoperator, or ``module:class`` of one
    :param motors: Names of the joints' motors, in order
    :param settings: Of its configuration
    :param gripper: Name of the gripper's motor, 0 closed to 100 open; None: it has none
    :param unit: ``"degrees"`` or ``"normalized"``
    :param name: Of the arm
    :raises ValueError: If the unit is none
    """

    def __init__(
        self,
        device: Any,
        motors: Sequence[str],
        settings: Mapping[str, Any] | None,
        gripper: str | None,
        unit: str,
        name: str,
    ) -> None:
        if unit not in UNITS:
            raise ValueError(f"unit is {' or '.join(UNITS)}, not {unit!r}")
        self._kind, self._settings, self._motors = device, dict(settings or {}), list(motors)
        self._gripper, self._unit, self._name = gripper, UNITS[unit], name
        self._device: Any = None

    @property
    def arms(self) -> Mapping[str, Arm]:
        return {self._name: Arm("joints", len(self._motors), self._gripper is not None)}

    def connect(self) -> None:
        """Connect without calibrating; do nothing to one that is connected and answers.

        :raises RobotError: If that fails, it has other motors, or is not calibrated
        """
        if self._device is not None:
            with suppress(RobotError):
                self.get_observation()
                return
            self._let_go(limp=False)
        with _errors("connecting to"):
            self._device = _made(self._kind, self._settings) if isinstance(self._kind, str) else self._kind
            self._check_motors()
            self._device.connect(calibrate=False)
        if not self._device.is_calibrated:
            self.disconnect()
            raise RobotError("LeRobot's arm is not calibrated: run lerobot-calibrate with its type, port and id first")

    def disconnect(self) -> None:
        """Let go of it. Many arms go limp then: their setting ``disable_torque_on_disconnect``."""
        self._let_go(limp=True)

    def get_observation(self) -> Values:
        """Return where it is."""
        raise NotImplementedError

    def _let_go(self, limp: bool) -> None:
        device, self._device = self._device, None
        config = getattr(device, "config", None)
        limps = getattr(config, LIMP, False)
        with suppress(Exception):  # it may have gone
            if device is not None and device.is_connected:
                if limps and not limp:
                    setattr(config, LIMP, False)
                device.disconnect()
        if limps:
            setattr(config, LIMP, limps)

    @property
    def _connected(self) -> Any:
        if self._device is None:
            raise RobotError("There is no connection to LeRobot's arm")
        return self._device

    def _check_motors(self) -> None:
        wanted = {f"{motor}{POSITION}" for motor in [*self._motors, *([self._gripper] if self._gripper else [])]}
        features = set(self._device.action_features)
        if wanted != features:
            raise RobotError(
                f"LeRobot's arm has {', '.join(sorted(features))}: motors and gripper name {', '.join(sorted(wanted))}"
            )

    def _values(self, told: Mapping[str, Any]) -> Values:
        joints = np.array([told[f"{motor}{POSITION}"] for motor in self._motors], dtype=np.float64)
        values = {f"{self._name}/joints": joints * self._unit}
        if self._gripper is not None:
            opening = np.array([float(told[f"{self._gripper}{POSITION}"])]) / GRIPPER_OPEN
            values[f"{self._name}/gripper"] = np.clip(opening, 0.0, 1.0)
        return values

    def _told(self, values: Values) -> dict[str, float]:
        joints = values[f"{self._name}/joints"] / self._unit
        told = {f"{motor}{POSITION}": float(value) for motor, value in zip(self._motors, joints, strict=True)}
        if self._gripper is not None:
            told[f"{self._gripper}{POSITION}"] = float(values[f"{self._name}/gripper"][0]) * GRIPPER_OPEN
        return told


class LeRobotArm(_Joints):
    """One arm of a LeRobot robot as a :class:`~zprl_sb3.robot_envs.real.robots.Robot`, told where its joints go.

    Joints are in radians where LeRobot's motors tell degrees (``use_degrees`` of its SO arms), and from -1 to 1 of
    their calibrated range where they tell -100 to 100: limits in a task's file are in the same unit. The robot must be
    calibrated before (``lerobot-calibrate``), because that asks questions at the terminal. Images among what the robot
    observes are left alone: see :class:`LeRobotCamera`.

    :param robot: LeRobot's robot, or ``module:class`` of one (``lerobot.robots.so_follower:SO101Follower``)
    :param motors: Names of the joints' motors, in order
    :param home: Position of each joint that episodes begin with, in the unit of joints; None: there is none
    :param settings: Of the robot's configuration, as on LeRobot's command line (``{port: /dev/ttyACM0, id: blue}``)
    :param gripper: Name of the gripper's motor, 0 closed to 100 open; None: it has none
    :param unit: ``"degrees"`` or ``"normalized"``: what the motors tell
    :param name: Of the arm
    :param home_speed: Of the fastest joint on the way home, in its unit per second
    :raises ValueError: If one of these is none of them
    """

    def __init__(
        self,
        robot: Any,
        motors: Sequence[str],
        home: Sequence[float] | None = None,
        settings: Mapping[str, Any] | None = None,
        gripper: str | None = "gripper",
        unit: str = "degrees",
        name: str = "arm",
        home_speed: float = 0.5,
    ) -> None:
        super().__init__(robot, motors, settings, gripper, unit, name)
        self._home = None if home is None else numbers(home, len(motors), "home")
        self._home_speed, self._holds = home_speed, False

    def get_observation(self) -> Values:
        """Return joints and the gripper's opening."""
        with _errors("observing"):
            told = self._connected.get_observation()
        return self._values(told)

    def send_action(self, action: Values) -> None:
        self._holds = False
        with _errors("commanding"):
            self._connected.send_action(self._told(action))

    def hold(self) -> None:
        """Command where the arm is now, which is only looked up once: motors give way a little."""
        if not self._holds:
            self.send_action(self.get_observation())
            self._holds = True

    def home(self) -> None:
        """Go home in a straight line of joints, in small steps, with the gripper opening on the way."""
        if self._home is None:
            raise RobotError(NO_HOME)
        now = self.get_observation()
        start = now[f"{self._name}/joints"]
        steps = max(1, math.ceil(float(np.abs(self._home - start).max()) / self._home_speed * HOME_RATE))
        for step in range(1, steps + 1):
            now[f"{self._name}/joints"] = start + (self._home - start) * (step / steps)
            if self._gripper is not None:
                now[f"{self._name}/gripper"] = np.array([1.0])
            self.send_action(now)
            time.sleep(1.0 / HOME_RATE)
        self._arrive(self._home)

    def _arrive(self, home: NDArray[np.float64]) -> None:
        end = time.monotonic() + HOME_PATIENCE
        while True:
            off = np.abs(self.get_observation()[f"{self._name}/joints"] - home)
            if off.max() <= CLOSE:
                return
            if time.monotonic() > end:
                raise RobotError(f"{self._motors[int(off.argmax())]} is {off.max():.2f} away from home: is it blocked?")
            time.sleep(0.05)


class LeRobotLeader(_Joints):
    """A leader arm, which a person moves: a robot whose observation is where the arm shall be, for ``zprl record``.

    The parameters are those of :class:`LeRobotArm`, with LeRobot's teleoperator
    (``lerobot.teleoperators.so_leader:SO101Leader``) in the place of the robot.
    """

    def __init__(
        self,
        leader: Any,
        motors: Sequence[str],
        settings: Mapping[str, Any] | None = None,
        gripper: str | None = "gripper",
        unit: str = "degrees",
        name: str = "arm",
    ) -> None:
        super().__init__(leader, motors, settings, gripper, unit, name)

    def get_observation(self) -> Values:
        """Return where the person holds it."""
        with _errors("observing"):
            told = self._connected.get_action()
        return self._values(told)

    def send_action(self, action: Values) -> None:
        """Refuse: it is moved by a person.

        :raises RobotError: Always
        """
        raise RobotError("A leader arm goes where a person moves it, not where it is told")

    def hold(self) -> None:
        """Do nothing: a person holds it."""

    def home(self) -> None:
        """Do nothing: a person moves it."""


class LeRobotCamera(GrabbingCamera):
    """A camera of LeRobot's.

    :param camera: LeRobot's camera, or ``module:class`` of one (``lerobot.cameras.opencv:OpenCVCamera``)
    :param settings: Of its configuration
    """

    def __init__(self, camera: Any, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__("camera of LeRobot")
        self._kind, self._settings = camera, dict(settings or {})
        self._camera: Any = None

    def _open(self) -> None:
        if self._camera is None:
            self._camera = _made(self._kind, self._settings) if isinstance(self._kind, str) else self._kind
        with _errors("connecting to"):
            self._camera.connect()

    def _grab(self) -> NDArray[np.uint8]:
        with _errors("reading"):
            image: NDArray[np.uint8] = np.array(self._camera.async_read(timeout_ms=1000), dtype=np.uint8)
        return image

    def _release(self) -> None:
        with suppress(Exception):
            if self._camera is not None:
                self._camera.disconnect()


@contextmanager
def _errors(doing: str) -> Iterator[None]:
    """Make LeRobot's errors, of whatever kind, ours."""
    try:
        yield
    except (RobotError, ImportError):
        raise
    except Exception as error:
        raise RobotError(f"LeRobot, {doing} it: {type(error).__name__}: {error}") from error


def _made(path: str, settings: dict[str, Any]) -> Any:
    """Make one of LeRobot's robots or cameras, as its command line would."""
    module, _, name = path.partition(":")
    if not name:
        raise ValueError(f"{path!r} is not module:class, such as lerobot.robots.so_follower:SO101Follower")
    load_package("lerobot", INSTALL)
    draccus = load_package("draccus", INSTALL)
    kind = getattr(importlib.import_module(module), name, None)
    known = tuple(getattr(load_package(f"lerobot.{name.lower()}s", INSTALL), name) for name in DEVICES)
    if not (isinstance(kind, type) and issubclass(kind, known)):
        raise ValueError(f"{path} is no {', '.join(DEVICES)} of LeRobot")
    return kind(draccus.decode(_config_class(kind), settings))


def _config_class(kind: Any) -> Any:
    # Robots and teleoperators say it; cameras say it in the annotation of their only argument.
    return getattr(kind, "config_class", None) or get_type_hints(kind.__init__)["config"]


robot, teleoperator, camera = LeRobotArm, LeRobotLeader, LeRobotCamera
