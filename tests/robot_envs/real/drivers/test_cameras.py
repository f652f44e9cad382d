"""Cameras: OpenCV for real on a video file, RealSense against a machine with its package's own signatures."""

from __future__ import annotations

import importlib
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sdks
from zprl_sb3.robot_envs.real.drivers import grabbing, opencv, realsense
from zprl_sb3.robot_envs.real.drivers.opencv import OpenCVCamera
from zprl_sb3.robot_envs.real.drivers.realsense import RealSenseCamera
from zprl_sb3.robot_envs.real.robots import Camera, RobotError

SIZE = (48, 64)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grabbing, "AGAIN", 0.05)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Return a video of 30 frames: red above, blue below."""
    cv2 = pytest.importorskip("cv2")
    file = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, SIZE[::-1])
    image = np.zeros((*SIZE, 3), dtype=np.uint8)
    image[: SIZE[0] // 2, :, 2], image[SIZE[0] // 2 :, :, 0] = 250, 250  # BGR
    for _ in range(30):
        writer.write(image)
    writer.release()
    return file


def test_images_are_rgb_and_upright(video: Path) -> None:
    camera = opencv.camera(index=str(video))
    assert isinstance(camera, Camera)
    camera.connect()
    frame = camera.read()
    assert frame.image.shape == (*SIZE, 3)
    np.testing.assert_allclose(frame.image[10, 30], [250, 0, 0], atol=12)
    np.testing.assert_allclose(frame.image[40, 30], [0, 0, 250], atol=12)
    assert frame.age >= 0.0
    camera.disconnect()
    camera.disconnect()
    with pytest.raises(RobotError, match="not connected"):
        camera.read()


def test_images_can_be_turned(video: Path) -> None:
    camera = OpenCVCamera(str(video), rotate=90)
    camera.connect()
    image = camera.read().image
    assert image.shape == (SIZE[1], SIZE[0], 3)
    assert image.flags.c_contiguous
    np.testing.assert_allclose(image[30, 10], [250, 0, 0], atol=12)  # what was above is on the left
    camera.disconnect()
    with pytest.raises(ValueError, match="rotate is 0, 90, 180, 270, not 45"):
        OpenCVCamera(0, rotate=45)


def test_frames_are_counted_grow_old_and_go_on_after_a_fault(
    video: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a file is a camera that gives no more frames; opened again, it begins anew."""
    monkeypatch.setattr(grabbing, "AGAIN", 0.5)
    camera = OpenCVCamera(str(video))
    with caplog.at_level(logging.WARNING):
        camera.connect()
        until(lambda: camera.read().number == 30)
        old = camera.read()
        time.sleep(0.2)
        again = camera.read()
        assert again.number == 30
        assert again.age > old.age + 0.15
        until(lambda: camera.read().number > 30)
        assert camera.read().age < 0.2
    camera.disconnect()
    assert "failed and is opened again: it gives no frame" in caplog.text


def test_what_fails_in_any_way_while_a_camera_comes_back_is_tried_again(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera, faults = OpenCVCamera(str(video)), [ValueError("it refused FPS 30"), RuntimeError("no such device")]
    camera.connect()
    opened = camera._open

    def fail() -> None:
        if faults:
            raise faults.pop()
        opened()

    monkeypatch.setattr(camera, "_open", fail)
    until(lambda: camera.read().number > 30)  # the file has 30 frames
    assert faults == []
    camera.disconnect()


def test_a_camera_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grabbing, "FIRST", 1.0)
    with pytest.raises(RobotError, match="camera /dev/nothing cannot be used: OpenCV cannot open it: is it plugged in"):
        OpenCVCamera("/dev/nothing").connect()


def test_settings_that_a_camera_refuses_are_named(video: Path) -> None:
    camera = OpenCVCamera(str(video), width=640, height=48, fps=60.0, exposure=100)
    with pytest.raises(RobotError, match=r"FRAME_WIDTH 640 \(it has 64\), FPS 60 \(it has 30\), .*EXPOSURE 100"):
        camera.connect()
    # What it has may be asked for.
    camera = OpenCVCamera(str(video), width=64, height=48, fps=30.0, fourcc="MJPG")
    camera.connect()
    camera.disconnect()
    with pytest.raises(ValueError, match="four letters"):
        OpenCVCamera(0, fourcc="JPEG2000")


def test_it_can_be_connected_again(video: Path) -> None:
    camera = OpenCVCamera(str(video))
    for _ in range(3):
        camera.connect()
        camera.connect()
        assert camera.read().image.any()
        camera.disconnect()


def test_without_opencv_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r'cv2 cannot be imported .*pip install "zprl-sb3\[opencv\]"'):
        OpenCVCamera(0).connect()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> sdks.RealSense:
    device = sdks.RealSense()
    sdks.install(monkeypatch, pyrealsense2=device.module())
    return device


def test_realsense(device: sdks.RealSense) -> None:
    camera = realsense.camera(serial=123)
    assert isinstance(camera, Camera)
    camera.connect()
    frame = camera.read()
    assert frame.image.shape == (480, 640, 3)
    assert frame.image[0, 0].tolist() == [255, 0, 0]
    assert device.options == {"auto": 1.0}
    until(lambda: camera.read().number > frame.number)
    device.unplugged = True
    until(lambda: camera.read().age > 0.2)
    device.unplugged = False
    until(lambda: camera.read().age < 0.1)
    assert device.started == 2
    camera.disconnect()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"serial": "456"}, r"camera 456 cannot be used: it is not plugged in \(there are: 123\)"),
        ({"fps": 90}, r"at 90 fps \(Couldn't resolve requests\)"),
        ({"exposure": 15000}, r"it refused exposure 15000 \(it has 10000\)"),
        ({"exposure": 50000}, r"it refused exposure 50000 \(out of range"),
    ],
)
def test_what_realsense_refuses_is_named(
    device: sdks.RealSense, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grabbing, "FIRST", 0.5)
    with pytest.raises(RobotError, match=message):
        RealSenseCamera(**arguments).connect()


def test_a_fixed_exposure(device: sdks.RealSense) -> None:
    camera = RealSenseCamera(exposure=8000)
    camera.connect()
    assert device.options == {"auto": 0.0, "exposure": 8000}
    camera.disconnect()


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("xarm", "xarm", {"ip": "192.0.2.7", "home": [0.0] * 7}),
        ("franka", "franka", {"ip": "192.0.2.8", "home": [0.0] * 7}),
    ],
)
def test_a_missing_package_is_named(
    module: str, extra: str, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("xarm", "xarm.wrapper", "franky"):
        monkeypatch.setitem(sys.modules, name, None)
    robot = importlib.import_module(f"zprl_sb3.robot_envs.real.drivers.{module}").robot(**arguments)
    with pytest.raises(ImportError, match=rf'pip install "zprl-sb3\[{extra}\]"'):
        robot.connect()
