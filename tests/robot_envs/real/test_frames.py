"""Frames are new, in the policy's size, and old ones are found out."""

from __future__ import annotations

import numpy as np
import pytest

from arms import SyntheticCamera
from zprl_sb3.robot_envs.real.frames import Frames, StaleCamera, View, resized


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def eyes(view: View, clock: Clock) -> tuple[Frames, SyntheticCamera]:
    camera = SyntheticCamera((48, 64), 10.0, clock)
    camera.connect()
    return Frames({"front": camera, "other": camera}, {"front": view}, clock), camera


def test_images_have_the_policys_size_and_names() -> None:
    frames, _ = eyes(View((24, 30)), Clock())
    images = frames.read()
    assert images["front_image"].shape == (24, 30, 3)
    assert images["front_image"].dtype == np.uint8
    assert list(frames.latest) == ["front"]
    assert frames.latest["front"].shape == (48, 64, 3)


def test_a_frame_may_be_seen_twice_but_not_for_long() -> None:
    clock = Clock()
    frames, camera = eyes(View((24, 30), max_age=10.0, frozen_after=1.0), clock)
    for _ in range(30):  # 10 frames a second, asked for 30 times
        frames.read()
        clock.now += 1 / 30
    camera.freeze()
    clock.now += 0.9
    frames.read()
    clock.now += 0.9
    with pytest.raises(StaleCamera, match="front has shown the same frame for 1"):
        frames.read()
    camera.thaw()
    frames.read()


def test_an_old_frame_is_refused() -> None:
    clock = Clock()
    frames, camera = eyes(View((24, 30), max_age=0.5), clock)
    camera.freeze()
    clock.now += 0.45
    frames.read()
    clock.now += 0.2
    with pytest.raises(StaleCamera, match=r"front shows what was 0\.\d s ago \(max_age is 0\.5 s\)"):
        frames.read()


def test_a_pause_between_episodes_is_no_frozen_camera() -> None:
    clock = Clock()
    frames, _ = eyes(View((24, 30)), clock)
    frames.read()
    clock.now += 100
    frames.begin()
    frames.read()


def test_people_see_what_is_there_whatever_its_age() -> None:
    clock = Clock()
    frames, camera = eyes(View((24, 30)), clock)
    camera.freeze()
    clock.now += 100
    assert frames.look()["front"].shape == (48, 64, 3)
    camera.disconnect()
    assert frames.look()["front"].shape == (48, 64, 3)  # what it gave last


def test_a_missing_camera_is_named() -> None:
    with pytest.raises(ValueError, match="There is no camera wrist; there is front"):
        Frames({"front": SyntheticCamera()}, {"wrist": View((1, 1))})


def test_resizing_averages() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, ::2] = 200
    small = resized(image, (10, 10))
    assert small.shape == (10, 10, 3)
    assert abs(small.astype(float).mean() - 100) < 5
    assert small.astype(float).std() < 15  # bars of a pixel become grey, not bars of another width
    same = resized(image, (40, 40))
    assert same is not image
    np.testing.assert_array_equal(same, image)
