"""What a policy sees of the cameras: the newest frames, in its size, and never old ones that pass for new."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zprl_sb3.robot_envs.base import image_key
from zprl_sb3.robot_envs.real.robots import Camera, Frame, RobotError

Images = dict[str, NDArray[np.uint8]]


class StaleCamera(RobotError):
    """A camera shows what was, not what is."""


@dataclass(frozen=True)
class View:
    """What is wanted of a camera.

    :param size: Height and width that a policy sees
    :param max_age: Seconds that a frame may be old
    :param frozen_after: Seconds after which a camera that still shows the same frame counts as frozen
    """

    size: tuple[int, int]
    max_age: float = 0.5
    frozen_after: float = 1.0


class Frames:
    """The cameras of a station, read together.

    :param cameras: By name, connected
    :param views: For each that a policy sees
    :param clock: Seconds, which only grow
    :raises ValueError: If there is no camera of a view's name
    """

    def __init__(
        self,
        cameras: Mapping[str, Camera],
        views: Mapping[str, View],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if missing := sorted(set(views) - set(cameras)):
            raise ValueError(f"There is no camera {', '.join(missing)}; there is {', '.join(cameras) or 'none'}")
        self._cameras, self._views, self._clock = cameras, views, clock
        self._changed: dict[str, tuple[int, float]] = {}  # number of the newest frame and when it was first seen
        self.latest: Images = {}
        """What the cameras gave last, in their own size."""

    def read(self) -> Images:
        """Return the images of all views by the observation's keys, uint8 (H, W, 3).

        :raises StaleCamera: If one of them is too old, or the same as before for too long
        :raises RobotError: If a camera does not answer
        """
        images: Images = {}
        for name, view in self._views.items():
            frame = self._cameras[name].read()
            self.latest[name] = frame.image
            self._check(name, view, frame)
            images[image_key(name)] = resized(frame.image, view.size)
        return images

    def look(self) -> Images:
        """Return what the cameras show, for people, whatever its age; the latest of those that do not answer."""
        for name in self._views:
            try:
                self.latest[name] = self._cameras[name].read().image
            except RobotError:
                continue
        return self.latest

    def _check(self, name: str, view: View, frame: Frame) -> None:
        now = self._clock()
        number, since = self._changed.get(name, (None, now))
        if number != frame.number:
            self._changed[name], since = (frame.number, now), now
        if frame.age > view.max_age:
            raise StaleCamera(f"The camera {name} shows what was {frame.age:.1f} s ago (max_age is {view.max_age:g} s)")
        if now - since > view.frozen_after:
            raise StaleCamera(f"The camera {name} has shown the same frame for {now - since:.1f} s: is it frozen?")

    def begin(self) -> None:
        """Begin an episode: for how long nobody has looked says nothing of a camera."""
        self._changed.clear()


def resized(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return an image in another size, uint8 (H, W, 3), always a copy.

    :param image: uint8 (h, w, 3)
    :param size: Height and width
    """
    if image.shape[:2] == size:
        return image.copy()
    # Pillow's bilinear filter averages over all pixels that become one.
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)).copy()
