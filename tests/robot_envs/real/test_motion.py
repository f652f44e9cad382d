"""Set points under limits: properties that hold for all targets, starts and time steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from zprl_sb3.robot_envs.real.motion import (
    Moving,
    arc_fits,
    into_cone,
    move_axes,
    move_gripper,
    move_point,
    move_rotation,
)
from zprl_sb3.robot_envs.rotations import matrix_of_vector, rotation_vector

Array = NDArray[np.float64]

LOW, HIGH = np.array([0.2, -0.3, 0.0]), np.array([0.6, 0.3, 0.4])
SPEED, ACCELERATION = 0.5, 2.0
CONE = (np.array([0.0, 0.0, -1.0]), 0.6)
DOWN = np.array([np.pi, 0.0, 0.0])
# Relative rounding of set points, divided by the shortest squared time step.
SLACK = 1.0 + 1e-3

coordinate = st.floats(-1.0, 1.0)
points = st.tuples(coordinate, coordinate, coordinate).map(np.array)
insides = points.map(lambda point: LOW + (point + 1) / 2 * (HIGH - LOW))
# Usual ticks, jitter, late ones, and quick ones that follow late ones.
steps = st.floats(0.002, 0.02) | st.just(0.01) | st.floats(0.02, 1.0)
ticks = st.lists(
    st.tuples(st.one_of(st.none(), points), st.lists(steps, min_size=1, max_size=8)), min_size=1, max_size=12
)
directions = points.filter(lambda point: np.linalg.norm(point) > 1e-3).map(lambda point: point / np.linalg.norm(point))
turns = st.tuples(directions, st.floats(0.0, 3.1)).map(lambda drawn: drawn[0] * drawn[1])


def tilt(vector: Array) -> float:
    return float(np.arccos(np.clip(matrix_of_vector(vector)[:, 2] @ CONE[0], -1, 1)))


@settings(max_examples=60, deadline=None)
@given(start=insides, orders=ticks, within=st.floats(0.0, 0.2))
def test_a_point_keeps_box_speed_and_acceleration(
    start: Array, orders: list[tuple[Array, list[float]]], within: float
) -> None:
    moving, before = Moving(start, np.zeros(3)), np.zeros(3)
    for target, dts in orders:
        for dt in dts:
            goal = None if target is None else np.clip(target, LOW, HIGH)
            there, _ = move_point(moving, goal, (LOW, HIGH), SPEED, ACCELERATION, dt, max(within, dt))
            velocity = (there.value - moving.value) / dt
            assert ((there.value >= LOW) & (there.value <= HIGH)).all()
            assert np.linalg.norm(velocity) <= SPEED * SLACK
            assert np.linalg.norm(velocity - before) <= ACCELERATION * dt * SLACK
            moving, before = there, velocity


@settings(max_examples=40, deadline=None)
@given(start=points, orders=ticks)
def test_a_point_outside_only_moves_inward(start: Array, orders: list[tuple[Array, list[float]]]) -> None:
    moving, before = Moving(start, np.zeros(3)), np.zeros(3)
    for target, dts in orders:
        for dt in dts:
            goal = None if target is None else np.clip(target, LOW, HIGH)
            there, _ = move_point(moving, goal, (LOW, HIGH), SPEED, ACCELERATION, dt, dt)
            outside = np.maximum(LOW - moving.value, moving.value - HIGH).clip(0)
            assert (np.maximum(LOW - there.value, there.value - HIGH) <= outside).all()
            velocity = (there.value - moving.value) / dt
            assert np.linalg.norm(velocity - before) <= ACCELERATION * dt * SLACK
            moving, before = there, velocity


@settings(max_examples=40, deadline=None)
@given(start=st.one_of(turns), orders=st.lists(st.tuples(turns, st.lists(steps, min_size=1, max_size=6)), max_size=8))
def test_a_rotation_keeps_cone_speed_and_acceleration(start: Array, orders: list[tuple[Array, list[float]]]) -> None:
    moving, before = Moving(start, np.zeros(3)), np.zeros(3)
    for target, dts in orders:
        goal = rotation_vector(into_cone(matrix_of_vector(target), CONE))
        for dt in dts:
            there, _ = move_rotation(moving, goal, CONE, 2.0, 8.0, dt, dt)
            turn = matrix_of_vector(there.value) @ matrix_of_vector(moving.value).T
            velocity = rotation_vector(turn) / dt
            assert tilt(there.value) <= max(CONE[1], tilt(moving.value)) + 1e-6
            assert np.linalg.norm(velocity) <= 2.0 * SLACK
            if 2.0 * dt < np.pi / 2:  # otherwise the turn of a step is told less one or more whole ones
                assert np.linalg.norm(velocity - before) <= 8.0 * dt * SLACK + 1e-5
            moving, before = there, velocity if 2.0 * dt < np.pi / 2 else there.velocity


@settings(max_examples=40, deadline=None)
@given(start=points, orders=ticks, within=st.floats(0.0, 0.2))
def test_joints_keep_ranges_speeds_and_accelerations(
    start: Array, orders: list[tuple[Array, list[float]]], within: float
) -> None:
    speed, acceleration = np.array([0.5, 1.0, 2.0]), np.array([1.0, 4.0, 20.0])
    moving, before = Moving(start, np.zeros(3)), np.zeros(3)
    for target, dts in orders:
        for dt in dts:
            goal = None if target is None else np.clip(target, LOW, HIGH)
            there, _ = move_axes(moving, goal, (LOW, HIGH), speed, acceleration, dt, max(within, dt))
            velocity = (there.value - moving.value) / dt
            outside = np.maximum(LOW - moving.value, moving.value - HIGH).clip(0)
            assert (np.maximum(LOW - there.value, there.value - HIGH) <= outside).all()
            assert (np.abs(velocity) <= speed * SLACK).all()
            assert (np.abs(velocity - before) <= acceleration * dt * SLACK).all()
            moving, before = there, velocity


def arrive(target: Array, ticks: int = 400) -> list[Moving]:
    way = [Moving(np.array([0.3, 0.0, 0.1]), np.zeros(3))]
    for _ in range(ticks):
        way.append(move_point(way[-1], target, (LOW, HIGH), SPEED, ACCELERATION, 0.01, 0.01)[0])
    return way


@pytest.mark.parametrize("target", [[0.5, 0.2, 0.3], [0.6, 0.3, 0.4], [0.2, -0.3, 0.0], [0.3001, 0.0, 0.1]])
def test_a_point_arrives_without_overshooting(target: list[float]) -> None:
    way = arrive(np.array(target))
    far = [float(np.linalg.norm(moving.value - target)) for moving in way]
    assert far[-1] < 1e-9
    assert all(later <= earlier + 1e-12 for earlier, later in zip(far, far[1:], strict=False))


def test_a_point_is_as_quick_as_its_limits_allow() -> None:
    # 0.3 m at 0.5 m/s with 2 m/s²: two ramps of 0.25 s over 0.0625 m each, and 0.35 s at full speed.
    way = arrive(np.array([0.6, 0.0, 0.1]))
    there = next(i for i, moving in enumerate(way) if moving.value[0] > 0.599)
    assert 0.8 <= there * 0.01 <= 0.9
    assert max(float(np.linalg.norm(moving.velocity)) for moving in way) == pytest.approx(SPEED)


def test_steps_smaller_than_limits_are_spread_over_the_time_of_a_command() -> None:
    moving, path = Moving(np.array([0.3, 0.0, 0.1]), np.zeros(3)), []
    for _ in range(20):  # a slow drift, at 20 Hz
        target = moving.value + np.array([0.005, 0.0, 0.0])
        for left in (0.05, 0.04, 0.03, 0.02, 0.01):
            moving, hits = move_point(moving, target, (LOW, HIGH), SPEED, 50.0, 0.01, left)
            path.append(float(moving.velocity[0]))
            assert not hits
    assert np.allclose(path, 0.1, atol=0.01)


@settings(max_examples=10, deadline=None)
@given(start=turns, target=turns)
def test_a_rotation_in_a_cone_arrives(start: Array, target: Array) -> None:
    start, goal = (rotation_vector(into_cone(matrix_of_vector(turn), CONE)) for turn in (start, target))
    moving = Moving(start, np.zeros(3))
    for _ in range(500):
        moving, _ = move_rotation(moving, goal, CONE, 2.0, 8.0, 0.01, 0.01)
    left = rotation_vector(matrix_of_vector(goal) @ matrix_of_vector(moving.value).T)
    assert np.linalg.norm(left) < 1e-3


def test_half_a_turn_around_the_cones_axis_stays_in_the_cone_and_arrives() -> None:
    moving = Moving(DOWN, np.zeros(3))
    goal = rotation_vector(matrix_of_vector([0.0, 0.0, 3.0]) @ matrix_of_vector(DOWN))
    for _ in range(400):
        moving, hits = move_rotation(moving, goal, CONE, 2.0, 8.0, 0.01, 0.01)
        assert "cone" not in hits
        assert tilt(moving.value) < 1e-6
    assert np.linalg.norm(rotation_vector(matrix_of_vector(goal) @ matrix_of_vector(moving.value).T)) < 1e-6


@settings(max_examples=40, deadline=None)
@given(z=directions, turn=turns.filter(lambda turn: np.linalg.norm(turn) > 0.01))
def test_arcs_are_judged_as_fine_steps_along_them_are(z: Array, turn: Array) -> None:
    cosines = np.array([matrix_of_vector(turn * share) @ z @ CONE[0] for share in np.linspace(0, 1, 200)])
    falling = cosines[1:][np.diff(cosines) < -1e-12]
    lowest = falling.min() if falling.size else 1.0
    if abs(lowest - np.cos(CONE[1])) > 1e-3:  # between the fine steps
        assert arc_fits(z, CONE, turn) == (lowest > np.cos(CONE[1]))


def test_a_gripper_keeps_its_speed_and_its_range() -> None:
    moving = Moving(np.array([0.9]), np.zeros(1))
    moving, hits = move_gripper(moving, np.array([0.0]), 2.0, 0.1)
    assert moving.value == pytest.approx([0.7])
    assert hits == {"gripper_speed"}
    moving, hits = move_gripper(moving, np.array([0.75]), 2.0, 0.1)
    assert moving.value == pytest.approx([0.75])
    assert not hits
