"""UFACTORY's arms (xArm 5, 6, 7, 850, Lite 6) in servo mode, with xarm-python-sdk. Written after its release 1.18.4."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from zprl_sb3.robot_envs.real.drivers import NO_HOME, load_package, numbers
from zprl_sb3.robot_envs.real.robots import Arm, RobotError, Values

INSTALL = "zprl-sb3[xarm]"
MILLIMETRES = 1000.0
POSITION_MODE, SERVO_MODE = 0, 1
MOTION_STATE, STOP_STATE = 0, 4
SETTLE = 0.1  # seconds that the controller takes to change its mode
HAS_ERROR = 1  # of the SDK's own codes: the controller has an error, which says more
GRIPPER_PERIOD = 0.1  # seconds: the gripper hangs on a slow serial line, which holds up the arm's commands
GRIPPER_STEP = 0.02  # of its opening: less is not worth a command
HOME_TIMEOUT = 30.0


@dataclass(frozen=True)
class _Gripper:
    """Names of the SDK's calls, and what it calls open."""

    read: str
    move: str
    open: float


# The xArm gripper counts pulses, the G2 millimetres; both are closed at 0.
GRIPPERS = {
    "gripper": _Gripper("get_gripper_position", "set_gripper_position", 850.0),
    "g2": _Gripper("get_gripper_g2_position", "set_gripper_g2_position", 84.0),
}


class XArm:
    """One arm as a :class:`~zprl_sb3.robot_envs.real.robots.Robot`.

    Commands go to the controller as they are (``set_servo_cartesian_aa``, ``set_servo_angle_j``), which plans nothing
    in servo mode: they must come often and in small steps, as a
    :class:`~zprl_sb3.robot_envs.real.guard.Guard` gives them. The SDK's millimetres are metres here; its angles are
    asked for in radians. Poses are of the tool centre point set in the controller, in the base's frame.

    :param ip: Address of the control box
    :param home: Joint angles in radians that episodes begin with; None: there is none
    :param joints: Number of joints
    :param control: ``"pose"`` or ``"joints"``
    :param gripper: ``"gripper"``, ``"g2"``, or None: it has none
    :param name: Of the arm
    :param home_speed: Of the fastest joint on the way home, in rad/s
    :raises ValueError: If one of these is none of them
    """

    def __init__(
        self,
        ip: str,
        home: Sequence[float] | None = None,
        joints: int = 7,
        control: str = "pose",
        gripper: str | None = "gripper",
        name: str = "arm",
        home_speed: float = 0.35,
    ) -> None:
        if control not in ("pose", "joints") or gripper not in (None, *GRIPPERS):
            raise ValueError(f"control is pose or joints, gripper {', '.join(GRIPPERS)} or null: {control}, {gripper}")
        self._ip, self._name, self._home_speed = ip, name, home_speed
        self._home = None if home is None else numbers(home, joints, "home")
        self._arm = Arm(control, joints, gripper is not None)
        self._gripper = GRIPPERS[gripper] if gripper is not None else None
        self._opening = 1.0
        self._wanted: float | None = None  # what the gripper was told last
        self._gripper_asked = -np.inf
        self._holds = False
        self._api: Any = None

    @property
    def arms(self) -> Mapping[str, Arm]:
        return {self._name: self._arm}

    def connect(self) -> None:
        """Clear old errors, enable the motors and change to servo mode; the arm holds.

        :raises RobotError: If the arm does not answer, is another one, or still has an error
        :raises ImportError: Without the SDK
        """
        wrapper = load_package("xarm.wrapper", INSTALL)
        self.disconnect()
        try:
            self._api = wrapper.XArmAPI(self._ip, is_radian=True, do_not_open=True)
            self._api.connect()
        except Exception as error:  # the SDK raises nothing narrower
            raise RobotError(f"No xArm answers at {self._ip} ({error}): is it on, and in this network?") from error
        try:
            self._prepare()
        except BaseException:
            self.disconnect()
            raise

    def _prepare(self) -> None:
        if self._api.axis != self._arm.joints:
            raise RobotError(f"The xArm at {self._ip} has {self._api.axis} joints, not {self._arm.joints}")
        self._api.clean_warn()
        self._api.clean_error()
        self._check("enabling the motors", self._api.motion_enable(True))
        if self._gripper is not None:
            self._check("enabling the gripper", self._api.set_gripper_enable(True))
            self._check("setting the gripper's mode", self._api.set_gripper_mode(0))
        self._enter(SERVO_MODE)
        if self._api.error_code:
            raise RobotError(f"The xArm at {self._ip} cannot be used: {self._reason(HAS_ERROR)}")

    def get_observation(self) -> Values:
        """Return position, rotation, joints and the gripper's opening."""
        pose = self._asked("its pose", self._connected.get_position_aa(is_radian=True))
        angles = self._asked("its joints", self._api.get_servo_angle(is_radian=True))
        values = {
            "position": np.array(pose[:3], dtype=np.float64) / MILLIMETRES,
            "rotation": np.array(pose[3:6], dtype=np.float64),
            "joints": np.array(angles[: self._arm.joints], dtype=np.float64),
        }
        if self._gripper is not None:
            values["gripper"] = np.array([self._gripper_opening()])
        return {f"{self._name}/{part}": value for part, value in values.items()}

    def send_action(self, action: Values) -> None:
        self._holds = False
        if self._arm.control == "pose":
            pose = [*(action[f"{self._name}/position"] * MILLIMETRES), *action[f"{self._name}/rotation"]]
            code = self._connected.set_servo_cartesian_aa([float(each) for each in pose], is_radian=True)
        else:
            angles = [float(each) for each in action[f"{self._name}/joints"]]
            code = self._connected.set_servo_angle_j(angles, is_radian=True)
        self._check("the command", code)
        if self._gripper is not None:
            self._move_gripper(float(action[f"{self._name}/gripper"][0]))

    def hold(self) -> None:
        """Command the pose, or the joints, where the arm is now, which is only looked up once: it would sink.

        The gripper keeps its own target.
        """
        if self._holds:
            return
        now = self.get_observation()
        self.send_action({key: now[key] for key in self._arm.command_shapes(self._name)} | self._kept(now))
        self._holds = True

    def home(self) -> None:
        """Go to ``home`` in a straight line of joint angles, planned by the controller, and open the gripper."""
        if self._home is None:
            raise RobotError(NO_HOME)
        self._holds = False
        try:
            self._enter(POSITION_MODE)
            angles = [float(each) for each in self._home]
            code = self._connected.set_servo_angle(
                angle=angles, speed=self._home_speed, is_radian=True, wait=True, timeout=HOME_TIMEOUT
            )
            self._check("going home", code)
        except BaseException:
            with suppress(RobotError):  # what went wrong before is to be seen
                self._enter(SERVO_MODE)
            raise
        self._enter(SERVO_MODE)
        if self._gripper is not None:
            self._wanted, self._gripper_asked = None, -np.inf
            self._move_gripper(1.0)

    def disconnect(self) -> None:
        api, self._api, self._holds = self._api, None, False
        if api is not None:
            with suppress(Exception):  # it may have gone; the SDK raises nothing narrower
                api.set_state(STOP_STATE)
                api.disconnect()

    @property
    def _connected(self) -> Any:
        if self._api is None or not self._api.connected:
            raise RobotError(f"There is no connection to the xArm at {self._ip}")
        return self._api

    def _enter(self, mode: int) -> None:
        self._check("changing the mode", self._connected.set_mode(mode))
        self._check("getting ready to move", self._api.set_state(MOTION_STATE))
        time.sleep(SETTLE)

    def _kept(self, now: Values) -> Values:
        if self._gripper is None:
            return {}
        wanted = self._wanted if self._wanted is not None else float(now[f"{self._name}/gripper"][0])
        return {f"{self._name}/gripper": np.array([wanted])}

    def _gripper_opening(self) -> float:
        # Reading and moving share the line, so that they share its period.
        assert self._gripper is not None
        if time.monotonic() - self._gripper_asked >= GRIPPER_PERIOD:
            self._gripper_asked = time.monotonic()
            position = self._asked("the gripper's position", getattr(self._api, self._gripper.read)())
            self._opening = float(np.clip(position / self._gripper.open, 0.0, 1.0))
        return self._opening

    def _move_gripper(self, opening: float) -> None:
        assert self._gripper is not None
        if self._wanted is not None and abs(opening - self._wanted) < GRIPPER_STEP:
            return
        if time.monotonic() - self._gripper_asked < GRIPPER_PERIOD / 2:
            return  # the next command, a period of control later, says it again
        self._gripper_asked = time.monotonic()
        # Without wait_motion it would wait until the arm has come to rest.
        code = getattr(self._api, self._gripper.move)(opening * self._gripper.open, wait=False, wait_motion=False)
        self._check("moving the gripper", code)
        self._wanted = opening

    def _asked(self, what: str, answer: tuple[int, Any]) -> Any:
        code, value = answer
        self._check(f"asking for {what}", code)
        return value

    def _check(self, what: str, code: int) -> None:
        if code != 0:
            raise RobotError(f"The xArm at {self._ip} refused {what}: {self._reason(code)}")

    def _reason(self, code: int) -> str:
        """Return the controller's error in the SDK's words, or the name of the SDK's own code."""
        number = self._api.error_code if self._api is not None else 0
        if number:
            error = load_package("xarm.core.config.x_code", INSTALL).ControllerError(number)
            return f"controller error {number}, {error.title['en']}. {error.description['en']}".strip()
        states = vars(load_package("xarm.x3.code", INSTALL).APIState)
        names = [name for name, value in states.items() if value == code and name.isupper()]
        return f"code {code} {' or '.join(names)}".strip()


robot = XArm
