import time

import numpy as np
import pytest

from zprl_sb3.robot_envs.real import simulated
from zprl_sb3.robot_envs.real.robots import Camera, RobotError

DOWN = {"arm/rotation": np.array([np.pi, 0.0, 0.0]), "arm/gripper": np.ones(1)}


def move(robot, k=0):
    robot.send_action(DOWN | {"arm/position": np.array([0.4, 0.02 * k, 0.25])})


@pytest.fixture
def looking(connected):
    cameras = []

    def make(**arguments):
        cameras.append(simulated.camera("test", **arguments))
        assert isinstance(cameras[-1], Camera)
        cameras[-1].connect()
        return cameras[-1]

    yield make
    for camera in cameras:
        camera.disconnect()


def test_it_sees_the_orange_where_the_scene_has_it(connected, looking):
    robot = connected()
    camera = looking(size=(110, 280), noise=0.0)
    places = []
    for y in (-0.15, 0.0, 0.15):
        robot.simulation.world.scene._set_free("orange", [0.45, y, 0.036])
        move(robot)
        image = camera.read().image.astype(int)
        assert image.shape == (110, 280, 3)
        orange = (image[..., 0] > 180) & (image[..., 1] - image[..., 2] > 60) & (image[..., 0] - image[..., 1] > 60)
        places.append(np.argwhere(orange).mean(axis=0)[1])
    assert places == sorted(places)
    assert np.ptp(places) > 50


def test_three_cameras_of_two_arms_see_different_things(connected, looking):
    connected("tray")
    frames = [looking(view=view, size=(128, 128)).read() for view in ("front", "left/wrist", "right/wrist")]
    assert {frame.image.shape for frame in frames} == {(128, 128, 3)}
    images = [frame.image.astype(float) for frame in frames]
    assert min(np.abs(images[a] - images[b]).mean() for a, b in ((0, 1), (0, 2), (1, 2))) > 5


def test_in_lock_step_frames_are_new_when_time_has_passed_and_the_same_for_a_seed(connected, looking):
    robot = connected()
    camera = looking(size=(48, 64))

    def episode():
        robot.simulation.reset(1)
        frames = []
        for k in range(3):
            move(robot, k)
            frames.append(camera.read())
        return frames

    first, again = episode(), episode()
    assert all((one.image == two.image).all() for one, two in zip(first, again, strict=True))
    assert [frame.number for frame in first] == list(range(first[0].number, first[0].number + 3))
    assert {frame.age for frame in first} == {0.0}
    assert camera.read().number == again[-1].number  # nothing has happened since


def test_in_real_time_frames_come_by_themselves_with_noise_that_differs(connected, looking):
    connected(lock_step=None)
    camera = looking(size=(48, 64), rate=60.0)
    first = camera.read()
    while (later := camera.read()).number < first.number + 3:
        time.sleep(0.01)
    assert (later.image != first.image).any()
    assert later.age >= 0.0
    with pytest.raises(ValueError, match="read-only"):
        later.image[0] = 0


def test_without_noise_a_scene_at_rest_looks_the_same(connected, looking):
    robot = connected()
    camera = looking(size=(48, 64), noise=0.0)
    robot.simulation._advance(2000)
    first = camera.read()
    robot.simulation._advance(50)
    second = camera.read()
    assert second.number == first.number + 1
    assert (second.image == first.image).all()


def test_late_frames_are_old_ones(connected, looking):
    robot = connected(faults={"late": 0.1})
    camera = looking(size=(48, 64))
    numbers, ages = [], []
    for k in range(8):
        move(robot, k)
        frame = camera.read()
        numbers.append(frame.number)
        ages.append(frame.age)
    assert ages[4:] == pytest.approx([0.1] * 4, abs=0.002)
    assert np.diff(numbers[3:]).tolist() == [1] * 4


def test_a_frozen_camera_tells_no_new_frame_and_a_stuck_one_the_same_picture(connected, looking):
    robot = connected()
    camera = looking(size=(48, 64))

    def watch():
        frames = []
        for k in range(3):
            move(robot, k)
            frames.append(camera.read())
        return frames

    robot.simulation.set_faults(freeze=True)
    frozen = watch()
    assert len({frame.number for frame in frozen}) == 1
    assert np.diff([frame.age for frame in frozen]) == pytest.approx([1 / 30] * 2, abs=0.002)
    robot.simulation.set_faults(freeze=False, stuck=True)
    stuck = watch()
    assert len({frame.number for frame in stuck}) == 3
    assert all((frame.image == stuck[0].image).all() for frame in stuck)
    robot.simulation.set_faults(stuck=False)
    assert (watch()[0].image != stuck[0].image).any()


def test_it_can_be_let_go_of_twice_and_connected_again(connected, looking):
    connected()
    camera = looking(size=(48, 64))
    camera.disconnect()
    camera.disconnect()
    with pytest.raises(RobotError, match="not connected"):
        camera.read()
    camera.connect()
    assert camera.read().image.shape == (48, 64, 3)


def test_what_cannot_be_seen_is_said(connected, looking):
    with pytest.raises(RobotError, match="no simulation 'nowhere'"):
        simulated.camera("nowhere").connect()
    connected()
    with pytest.raises(RobotError, match="this model has front, arm/wrist"):
        looking(view="back", size=(48, 64))
    for wrong, match in [({"size": (0, 5)}, "positive"), ({"rate": 0.0}, "positive"), ({"quality": "best"}, "best")]:
        with pytest.raises(ValueError, match=match):
            simulated.camera("test", **wrong)
