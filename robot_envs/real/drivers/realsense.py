"""Colour images of Intel's RealSense cameras, with pyrealsense2. Written after its release 2.59.1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs.real.drivers import load_package
from zprl_sb3.robot_envs.real.drivers.grabbing import GrabbingCamera, check_settings
from zprl_sb3.robot_envs.real.robots import RobotError

INSTALL = "zprl-sb3[realsense]"
WAIT = 1000  # milliseconds without a frame, after which the camera counts as failed


class RealSenseCamera(GrabbingCamera):
    """The colour stream of one camera.

    :param serial: Serial number, as ``rs-enumerate-devices -s`` tells; None: the only one that is plugged in
    :param width: Of the images, in pixels
    :param height: Of the images
    :param fps: Images per second
    :param exposure: Fixed, in microseconds; None: automatic
    :param rotate: Degrees counterclockwise by which images are turned
    """

    def __init__(
        self,
        serial: str | int | None = None,
        width: int = 640,
        height: int = 480,
        fps: int = 30,
        exposure: float | None = None,
        rotate: int = 0,
    ) -> None:
        super().__init__(f"RealSense camera {serial or ''}".strip(), rotate)
        self._serial, self._size, self._fps, self._exposure = serial, (width, height), fps, exposure
        self._rs: Any = None
        self._pipeline: Any = None

    def _open(self) -> None:
        self._rs = rs = load_package("pyrealsense2", INSTALL)
        self._find()
        config = rs.config()
        if self._serial is not None:
            config.enable_device(str(self._serial))
        config.enable_stream(rs.stream.color, *self._size, rs.format.rgb8, self._fps)
        pipeline = rs.pipeline()
        try:
            profile = pipeline.start(config)
        except RuntimeError as error:
            asked = f"{self._size[0]} x {self._size[1]} at {self._fps} fps"
            raise RobotError(f"it does not start with {asked} ({error})") from error
        self._pipeline = pipeline
        self._expose(profile.get_device().first_color_sensor())

    def _find(self) -> None:
        # Without a camera, starting would take a quarter of a minute to say so.
        devices = self._rs.context().query_devices()
        serials = [device.get_info(self._rs.camera_info.serial_number) for device in devices]
        if not serials or (self._serial is not None and str(self._serial) not in serials):
            raise RobotError(f"it is not plugged in (there are: {', '.join(serials) or 'none'})")

    def _expose(self, sensor: Any) -> None:
        option = self._rs.option
        if self._exposure is None:
            sensor.set_option(option.enable_auto_exposure, 1.0)
            return
        try:
            sensor.set_option(option.enable_auto_exposure, 0.0)
            sensor.set_option(option.exposure, self._exposure)
        except RuntimeError as error:
            raise ValueError(f"it refused exposure {self._exposure:g} ({error})") from error
        check_settings({"exposure": self._exposure}, {"exposure": sensor.get_option(option.exposure)})

    def _grab(self) -> NDArray[np.uint8]:
        try:
            frame = self._pipeline.wait_for_frames(WAIT).get_color_frame()
        except RuntimeError as error:
            raise RobotError(str(error)) from error
        # A copy: the camera's buffer is used again.
        image: NDArray[np.uint8] = np.array(frame.get_data(), dtype=np.uint8)
        return image

    def _release(self) -> None:
        pipeline, self._pipeline = self._pipeline, None
        if pipeline is not None:
            try:
                pipeline.stop()
            except RuntimeError:
                return  # it was never started, or is gone


camera = RealSenseCamera
