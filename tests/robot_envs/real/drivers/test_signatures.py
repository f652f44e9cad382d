"""What ``sdks`` has recorded is what the packages have, where they are installed (extras ``xarm``, ``franka``, ...)."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest

import sdks
from zprl_sb3.robot_envs.real.drivers import grabbing
from zprl_sb3.robot_envs.real.drivers.franka import Franka
from zprl_sb3.robot_envs.real.drivers.realsense import RealSenseCamera
from zprl_sb3.robot_envs.real.drivers.xarm import XArm
from zprl_sb3.robot_envs.real.robots import RobotError

pytestmark = pytest.mark.filterwarnings("ignore")


def methods(kind: type) -> list[str]:
    return [name for name, value in vars(kind).items() if inspect.isfunction(value) and not name.startswith("_")]


@pytest.mark.parametrize("name", ["__init__", *methods(sdks.XArmAPI)])
def test_xarm(name: str) -> None:
    api = pytest.importorskip("xarm.wrapper").XArmAPI
    assert str(inspect.signature(getattr(api, name))) == str(inspect.signature(getattr(sdks.XArmAPI, name)))


def test_xarm_tells_what_went_wrong() -> None:
    code = pytest.importorskip("xarm.x3.code").APIState
    assert {name: getattr(code, name) for name in vars(sdks.APIState) if name.isupper()} == {
        name: value for name, value in vars(sdks.APIState).items() if name.isupper()
    }
    error = pytest.importorskip("xarm.core.config.x_code").ControllerError(31)
    assert error.title["en"] == sdks.ControllerError(31).title["en"]
    for name in ("axis", "error_code", "connected"):
        assert isinstance(getattr(pytest.importorskip("xarm.wrapper").XArmAPI, name), property)


def parameters(function: Any) -> list[str]:
    """Return the names of the parameters, of a compiled function from its text."""
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:
        text = function.__doc__ or ""
        parts = text.split("(", 1)[1].split(") ->")[0].split(", ")
        return [part.split(":")[0].strip() for part in parts if ":" in part]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (sdks.FrankyRobot, "__init__"),
        (sdks.FrankyRobot, "join_motion"),
        (sdks.FrankyRobot, "recover_from_errors"),
        (sdks.FrankyRobot, "stop"),
        (sdks.FrankyGripper, "open_async"),
        (sdks.FrankyGripper, "grasp_async"),
        (sdks.CartesianImpedanceTracker, "__init__"),
        (sdks.CartesianImpedanceTracker, "set_target"),
        (sdks.CartesianImpedanceTracker, "stop"),
        (sdks.JointImpedanceTracker, "__init__"),
        (sdks.JointImpedanceTracker, "set_target"),
        (sdks.JointMotion, "__init__"),
    ],
)
def test_franky(kind: type, name: str) -> None:
    franky = pytest.importorskip("franky")
    real = getattr(franky, kind.__name__.removeprefix("Franky"))
    assert set(inspect.signature(getattr(kind, name)).parameters) <= set(parameters(getattr(real, name)))


def test_franky_has_what_is_read() -> None:
    franky = pytest.importorskip("franky")
    for kind, names in (
        (franky.Robot, ("current_pose", "current_joint_positions", "move")),
        (franky.Gripper, ("width", "max_width")),
        (franky.RobotPose, ("end_effector_pose",)),
        (franky.CartesianImpedanceTracker, ("is_running",)),
        (franky.JointImpedanceTracker, ("is_running", "stop")),
        (franky.BoolFuture, ("wait",)),
        (franky.RealtimeConfig, ("Enforce", "Ignore")),
    ):
        assert [name for name in names if not hasattr(kind, name)] == []


def test_franky_counts_quaternions_as_we_do() -> None:
    franky = pytest.importorskip("franky")
    quaternion = [0.1, 0.2, 0.3, 0.927]
    ours, theirs = sdks.Affine([1, 2, 3], quaternion), franky.Affine([1, 2, 3], quaternion)
    assert theirs.matrix == pytest.approx(ours.matrix, abs=1e-3)
    franky.JointMotion(franky.JointState([0.0] * 7), relative_dynamics_factor=0.1)


def test_realsense() -> None:
    rs = pytest.importorskip("pyrealsense2")
    config, pipeline = rs.config(), rs.pipeline()
    config.enable_device("123")
    config.enable_stream(rs.stream.color, 640, 480, rs.format.rgb8, 30)
    assert callable(pipeline.start)
    for device in rs.context().query_devices():
        assert device.get_info(rs.camera_info.serial_number)
    assert parameters(rs.pipeline.wait_for_frames) == ["self", "timeout_ms"]
    for kind, names in (
        (rs.pipeline, ("stop",)),
        (rs.pipeline_profile, ("get_device",)),
        (rs.device, ("first_color_sensor", "get_info")),
        (rs.sensor, ("set_option", "get_option")),
        (rs.composite_frame, ("get_color_frame",)),
        (rs.frame, ("get_data",)),
        (rs.option, ("exposure", "enable_auto_exposure")),
    ):
        assert [name for name in names if not hasattr(kind, name)] == []


ROBOT = {
    "connect": ["self", "calibrate"],
    "get_observation": ["self"],
    "send_action": ["self", "action"],
    "disconnect": ["self"],
    "is_connected": ["self"],
    "is_calibrated": ["self"],
    "action_features": ["self"],
}
CAMERA = {"connect": ["self", "warmup"], "async_read": ["self", "timeout_ms"], "disconnect": ["self"]}
LEADER = {name: ROBOT[name] for name in ("connect", "disconnect", "is_connected", "is_calibrated", "action_features")}
CONTRACT = (
    ("robots/robot.py", "Robot", ROBOT),
    ("teleoperators/teleoperator.py", "Teleoperator", LEADER | {"get_action": ["self"]}),
    ("cameras/camera.py", "Camera", CAMERA),
)


def test_lerobot_keeps_the_contract() -> None:
    """From its files: importing it would need all that it pins."""
    spec = importlib.util.find_spec("lerobot")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("lerobot is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)))
    for file, kind, wanted in CONTRACT:
        tree = ast.parse((folder / file).read_text())
        body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind).body
        found = {node.name: [each.arg for each in node.args.args] for node in body if isinstance(node, ast.FunctionDef)}
        assert {name: found.get(name) for name in wanted} == wanted


def test_nobody_answers_the_real_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drivers with the real packages, as far as these go without hardware."""
    monkeypatch.setattr(grabbing, "FIRST", 0.5)
    tried = 0
    for package, device, message in (
        ("xarm.wrapper", XArm("127.0.0.1"), "No xArm answers at 127.0.0.1"),
        ("franky", Franka("127.0.0.1"), "The Franka at 127.0.0.1, connecting to it: NetworkException"),
        (
            "pyrealsense2",
            RealSenseCamera("0"),
            r"RealSense camera 0 cannot be used: it is not plugged in \(there are: ",
        ),
    ):
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            continue
        tried += 1
        with pytest.raises(RobotError, match=message):
            device.connect()
    if not tried:
        pytest.skip("none of the packages is installed")
