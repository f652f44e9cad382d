"""What the drivers' packages offer, as far as it is used, with the names and parameters of the real ones.

Recorded by introspection from xarm-python-sdk 1.18.4, franky-control 2.0.0 and pyrealsense2 2.59.1 (whose functions
are overloaded: of each the overload that is used). Behind them are simple machines, which go at once where they are
told and refuse what the real ones refuse. ``tests/robot_envs/real/drivers/test_signatures.py`` compares them with the
real packages where those are installed. Import it as ``sdks``.
"""

from __future__ import annotations

import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest


def install(monkeypatch: pytest.MonkeyPatch, **modules: Any) -> None:
    """Put modules where ``import`` finds them; dots in names are written as ``__``."""
    for name, content in modules.items():
        module = ModuleType(name.replace("__", "."))
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)


class APIState:
    """Some of ``xarm.x3.code.APIState``."""

    NOT_CONNECTED = -1
    NOT_READY = -2
    HAS_ERROR = 1
    STATE_NOT_READY = 9


class ControllerError:
    """``xarm.core.config.x_code.ControllerError`` with one of its texts."""

    def __init__(self, code: int, status: int = 0) -> None:
        known = {31: ("Collision Caused Abnormal Current", "Please check whether the robotic arm has collided.")}
        title, text = known.get(code, ("Other Errors", ""))
        self.title, self.description = {"en": title}, {"en": text}


class XArmAPI:
    """``xarm.wrapper.XArmAPI``: millimetres; degrees unless told otherwise."""

    made: list[XArmAPI] = []
    reachable = True

    def __init__(self, port=None, is_radian=False, do_not_open=False, **kwargs):  # type: ignore[no-untyped-def]
        self.port, self._radian = port, is_radian
        self.axis, self.error_code, self.mode, self.state, self.connected = 7, 0, 0, 4, False
        self.pose = [300.0, 0.0, 200.0, np.pi, 0.0, 0.0]
        self.joints = [0.0] * 7
        self.gripper = 850.0
        self.calls: list[str] = []
        self.stuck_error = 0
        XArmAPI.made.append(self)
        assert do_not_open

    def connect(self, port=None, baudrate=None, timeout=None, axis=None, **kwargs):  # type: ignore[no-untyped-def]
        if not XArmAPI.reachable:
            raise Exception("connect socket failed")
        self.connected = True

    def disconnect(self):  # type: ignore[no-untyped-def]
        self.connected = False

    def clean_error(self):  # type: ignore[no-untyped-def]
        self.error_code = self.stuck_error
        return 0

    def clean_warn(self):  # type: ignore[no-untyped-def]
        return 0

    def motion_enable(self, enable=True, servo_id=None):  # type: ignore[no-untyped-def]
        return 0

    def set_mode(self, mode=0, detection_param=0):  # type: ignore[no-untyped-def]
        self.mode, self.state = mode, 5
        self.calls.append(f"mode {mode}")
        return 0

    def set_state(self, state=0):  # type: ignore[no-untyped-def]
        self.state = state
        return 0

    def _move(self, mode: int) -> int:
        if self.error_code:
            return APIState.HAS_ERROR
        return 0 if self.state == 0 and self.mode == mode else APIState.STATE_NOT_READY

    def get_position_aa(self, is_radian=None):  # type: ignore[no-untyped-def]
        turn = self.pose[3:] if is_radian else [float(np.degrees(each)) for each in self.pose[3:]]
        return 0, [*self.pose[:3], *turn]

    def set_servo_cartesian_aa(  # type: ignore[no-untyped-def]
        self, axis_angle_pose, speed=None, mvacc=None, is_radian=None, is_tool_coord=False, relative=False, **kwargs
    ):
        code = self._move(1)
        if code == 0:
            turn = axis_angle_pose[3:] if is_radian else [float(np.radians(each)) for each in axis_angle_pose[3:]]
            self.pose = [*axis_angle_pose[:3], *turn]
        return code

    def get_servo_angle(self, servo_id=None, is_radian=None, is_real=False):  # type: ignore[no-untyped-def]
        return 0, [each if is_radian else float(np.degrees(each)) for each in self.joints]

    def set_servo_angle_j(self, angles, speed=None, mvacc=None, mvtime=None, is_radian=None, **kwargs):  # type: ignore[no-untyped-def]
        code = self._move(1)
        if code == 0:
            self.joints = [each if is_radian else float(np.radians(each)) for each in angles]
        return code

    def set_servo_angle(  # type: ignore[no-untyped-def]
        self,
        servo_id=None,
        angle=None,
        speed=None,
        mvacc=None,
        mvtime=None,
        relative=False,
        is_radian=None,
        wait=False,
        timeout=None,
        radius=None,
        **kwargs,
    ):
        code = self._move(0)
        if code == 0:
            assert wait
            self.joints = [each if is_radian else float(np.radians(each)) for each in angle]
            self.calls.append(f"home at {speed}")
        return code

    def set_gripper_enable(self, enable, **kwargs):  # type: ignore[no-untyped-def]
        return 0

    def set_gripper_mode(self, mode, **kwargs):  # type: ignore[no-untyped-def]
        return 0

    def get_gripper_position(self, **kwargs):  # type: ignore[no-untyped-def]
        self.calls.append("read gripper")
        return 0, self.gripper

    def set_gripper_position(self, pos, wait=False, speed=None, auto_enable=False, timeout=None, **kwargs):  # type: ignore[no-untyped-def]
        assert not wait
        assert kwargs == {"wait_motion": False}
        self.gripper = pos
        self.calls.append(f"gripper {pos:.0f}")
        return 0

    def get_gripper_g2_position(self, **kwargs):  # type: ignore[no-untyped-def]
        return 0, self.gripper

    def set_gripper_g2_position(self, pos, speed=100, force=50, wait=False, timeout=None, **kwargs):  # type: ignore[no-untyped-def]
        self.gripper = pos
        return 0


XARM = {
    "xarm__wrapper": {"XArmAPI": XArmAPI},
    "xarm__x3__code": {"APIState": APIState},
    "xarm__core__config__x_code": {"ControllerError": ControllerError},
}


class FrankyError(Exception):
    """Stands for ``franky.Exception``."""


class Affine:
    """``franky.Affine``: a translation and a quaternion (x, y, z, w)."""

    def __init__(self, translation, quaternion=(0.0, 0.0, 0.0, 1.0)):  # type: ignore[no-untyped-def]
        self.translation, self.quaternion = np.asarray(translation), np.asarray(quaternion)
        x, y, z, w = self.quaternion / np.linalg.norm(self.quaternion)
        self.matrix = np.eye(4)
        self.matrix[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
        self.matrix[:3, 3] = self.translation


class JointState:
    """``franky.JointState``."""

    def __init__(self, position):  # type: ignore[no-untyped-def]
        self.position = np.asarray(position)


class JointMotion:
    """``franky.JointMotion``."""

    def __init__(self, target, reference_type=None, relative_dynamics_factor=1.0, return_when_finished=True):  # type: ignore[no-untyped-def]
        self.target, self.relative_dynamics_factor = target, relative_dynamics_factor


class FrankyRobot:
    """``franky.Robot``, as far as the driver uses it."""

    made: list[FrankyRobot] = []

    def __init__(self, fci_hostname, relative_dynamics_factor=1.0, *, realtime_config=None):  # type: ignore[no-untyped-def]
        if fci_hostname == "nowhere":
            raise FrankyError("libfranka: Connection error")
        self.realtime_config = realtime_config
        self.pose = Affine([0.4, 0.0, 0.3], [1.0, 0.0, 0.0, 0.0])
        self.current_joint_positions = np.zeros(7)
        self.is_in_control = False
        self.fault: str | None = None
        self.slow = False
        FrankyRobot.made.append(self)

    @property
    def current_pose(self) -> SimpleNamespace:
        return SimpleNamespace(end_effector_pose=self.pose)

    def recover_from_errors(self):  # type: ignore[no-untyped-def]
        return True

    def move(self, motion, asynchronous=False, limit_rate=False, cutoff_frequency=100.0):  # type: ignore[no-untyped-def]
        assert not self.is_in_control, "the type of control must not change while the robot is in motion"
        self.current_joint_positions = motion.target.position

    def join_motion(self, timeout=None):  # type: ignore[no-untyped-def]
        if self.fault:
            raise FrankyError(self.fault)
        return not self.slow

    def stop(self):  # type: ignore[no-untyped-def]
        self.is_in_control = False


class Tracker:
    """What both of franky's trackers do."""

    def __init__(self, robot: FrankyRobot) -> None:
        self.robot = robot
        robot.is_in_control = True
        self.targets: list[Any] = []

    @property
    def is_running(self) -> bool:
        return self.robot.is_in_control

    def stop(self, stop_motion=None):  # type: ignore[no-untyped-def]
        self.robot.is_in_control = False


class CartesianImpedanceTracker(Tracker):
    """``franky.CartesianImpedanceTracker``."""

    def __init__(self, robot, *, translational_stiffness=None, rotational_stiffness=None):  # type: ignore[no-untyped-def]
        super().__init__(robot)
        self.stiffness = (translational_stiffness, rotational_stiffness)
        robot.tracker = self

    def set_target(self, pose, twist=None, acceleration=None):  # type: ignore[no-untyped-def]
        self.targets.append(pose)
        self.robot.pose = pose


class JointImpedanceTracker(Tracker):
    """``franky.JointImpedanceTracker``."""

    def __init__(self, robot, *, stiffness=None, damping=None):  # type: ignore[no-untyped-def]
        super().__init__(robot)
        robot.tracker = self

    def set_target(self, q, dq=None, tau_ff=None):  # type: ignore[no-untyped-def]
        self.targets.append(q)
        self.robot.current_joint_positions = q


class FrankyGripper:
    """``franky.Gripper``: takes a while for each command, and loses one that comes meanwhile."""

    made: list[FrankyGripper] = []

    def __init__(self, fci_hostname):  # type: ignore[no-untyped-def]
        self.width, self.max_width = 0.08, 0.08
        self.commands: list[str] = []
        self._until = 0.0
        FrankyGripper.made.append(self)

    def open_async(self, speed):  # type: ignore[no-untyped-def]
        return self._start("open", 0.08)

    def grasp_async(self, width, speed, force, epsilon_inner=0.005, epsilon_outer=0.005):  # type: ignore[no-untyped-def]
        return self._start("grasp", 0.03)

    def _start(self, name: str, width: float) -> Any:
        assert time.monotonic() >= self._until, "a command while another one runs"
        self.commands.append(name)
        self.width, self._until = width, time.monotonic() + 0.2
        return SimpleNamespace(wait=lambda timeout=None: time.monotonic() >= self._until)


FRANKY = {
    "franky": {
        "Affine": Affine,
        "CartesianImpedanceTracker": CartesianImpedanceTracker,
        "Gripper": FrankyGripper,
        "JointImpedanceTracker": JointImpedanceTracker,
        "JointMotion": JointMotion,
        "JointState": JointState,
        "RealtimeConfig": SimpleNamespace(Enforce="enforce", Ignore="ignore"),
        "Robot": FrankyRobot,
    }
}


class RealSense:
    """``pyrealsense2`` with one camera behind it, of 640 x 480 at 30 fps, whose exposures go up to 10,000."""

    def __init__(self) -> None:
        self.serials = ["123"]
        self.unplugged = False
        self.options: dict[str, float] = {}
        self.started = 0

    def module(self) -> dict[str, Any]:
        return {
            "camera_info": SimpleNamespace(serial_number="serial"),
            "config": _Config,
            "context": lambda: SimpleNamespace(query_devices=self._devices),
            "pipeline": lambda: _Pipeline(self),
            "stream": SimpleNamespace(color="color"),
            "format": SimpleNamespace(rgb8="rgb8"),
            "option": SimpleNamespace(enable_auto_exposure="auto", exposure="exposure"),
        }

    def _devices(self) -> list[Any]:
        serials = [] if self.unplugged else self.serials
        return [SimpleNamespace(get_info=lambda info, serial=serial: serial) for serial in serials]

    def first_color_sensor(self) -> Any:
        return self

    def set_option(self, option: str, value: float) -> None:
        if option == "exposure" and value > 20000:
            raise RuntimeError("out of range value for argument")
        self.options[option] = min(value, 10000.0)

    def get_option(self, option: str) -> float:
        return self.options[option]


class _Config:
    def __init__(self) -> None:
        self.serial: str | None = None
        self.asked: tuple[Any, ...] = ()

    def enable_device(self, serial: str) -> None:
        self.serial = serial

    def enable_stream(self, stream_type: str, width: int, height: int, format: str, framerate: int) -> None:
        assert (stream_type, format) == ("color", "rgb8")
        self.asked = (width, height, framerate)


class _Pipeline:
    def __init__(self, camera: RealSense) -> None:
        self._camera, self._number = camera, 0

    def start(self, config: _Config) -> Any:
        if self._camera.unplugged or (config.serial is not None and config.serial not in self._camera.serials):
            raise RuntimeError("No device connected")
        if config.asked != (640, 480, 30):
            raise RuntimeError("Couldn't resolve requests")
        self._camera.started += 1
        return SimpleNamespace(get_device=lambda: self._camera)

    def wait_for_frames(self, timeout_ms: int = 5000) -> Any:
        time.sleep(0.02)
        if self._camera.unplugged:
            raise RuntimeError(f"Frame didn't arrive within {timeout_ms}")
        self._number += 1
        image = np.zeros((480, 640, 3), dtype=np.uint8)
        image[..., 0] = 255
        return SimpleNamespace(get_color_frame=lambda index=0: SimpleNamespace(get_data=lambda: image))

    def stop(self) -> None:
        return None
