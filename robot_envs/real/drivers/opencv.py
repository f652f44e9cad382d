"""Cameras that OpenCV opens: webcams by number or device, streams by address."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.real.drivers import load_package
from zprl_sb3.robot_envs.real.drivers.grabbing import GrabbingCamera, check_settings
from zprl_sb3.robot_envs.real.robots import RobotError

INSTALL = "zprl-sb3[opencv]"
MANUAL_EXPOSURE = 1  # of Video4Linux, in the words of OpenCV


class OpenCVCamera(GrabbingCamera):
    """A camera of ``cv2.VideoCapture``.

    What is left out stays as the camera has it. A webcam's exposure is best fixed: an automatic one changes what a
    policy sees with what stands before the camera.

    :param index: Number of the camera, a device (``/dev/v4l/by-id/...`` stays the same when cables change), a file or
        an address
    :param width: Of the images, in pixels
    :param height: Of the images
    :param fps: Images per second
    :param exposure: Fixed, in the driver's unit (Video4Linux: 0.1 ms)
    :param fourcc: Format between camera and computer, such as ``MJPG``, which many need to be fast
    :param rotate: Degrees counterclockwise by which images are turned
    """

    def __init__(
        self,
        index: int | str,
        width: int | None = None,
        height: int | None = None,
        fps: float | None = None,
        exposure: float | None = None,
        fourcc: str | None = None,
        rotate: int = 0,
    ) -> None:
        super().__init__(f"camera {index}", rotate)
        if fourcc is not None and len(fourcc) != 4:
            raise ValueError(f"fourcc is four letters, such as MJPG, not {fourcc!r}")
        self._index, self._fourcc, self._exposure = index, fourcc, exposure
        settings = {"FRAME_WIDTH": width, "FRAME_HEIGHT": height, "FPS": fps}
        self._settings = {name: float(value) for name, value in settings.items() if value is not None}
        self._cv2: Any = None
        self._capture: Any = None

    def _open(self) -> None:
        self._cv2 = cv2 = load_package("cv2", INSTALL)
        self._capture = cv2.VideoCapture(self._index)
        if not self._capture.isOpened():
            raise RobotError("OpenCV cannot open it: is it plugged in, and used by no other program?")
        asked = dict(self._settings)
        if self._fourcc is not None:
            asked = {"FOURCC": float(cv2.VideoWriter.fourcc(*self._fourcc)), **asked}
        if self._exposure is not None:
            asked |= {"AUTO_EXPOSURE": float(MANUAL_EXPOSURE), "EXPOSURE": float(self._exposure)}
        for name, value in asked.items():
            self._capture.set(getattr(cv2, f"CAP_PROP_{name}"), value)
        check_settings(asked, {name: self._capture.get(getattr(cv2, f"CAP_PROP_{name}")) for name in asked})

    def _grab(self) -> NDArray[np.uint8]:
        read, image = self._capture.read()
        if not read:
            raise RobotError("it gives no frame")
        rgb: NDArray[np.uint8] = self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)
        return rgb

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.release()


camera = OpenCVCamera
