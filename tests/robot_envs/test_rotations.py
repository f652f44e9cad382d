import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zprl_sb3.robot_envs.rotations import (
    are_parallel,
    matrix_of_6d,
    matrix_of_vector,
    quaternion_of,
    rotation_6d,
    rotation_vector,
)

NUMBERS = st.floats(-1, 1)
VECTORS = st.tuples(NUMBERS, NUMBERS, NUMBERS).map(np.array)


@settings(deadline=None)
@given(VECTORS, st.floats(0, np.pi))
def test_every_form_leads_back(axis, angle):
    vector = angle * axis / max(np.linalg.norm(axis), 1e-3)
    matrix = matrix_of_vector(vector)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix_of_6d(rotation_6d(matrix)), matrix, atol=1e-9)
    np.testing.assert_allclose(matrix_of_vector(rotation_vector(matrix)), matrix, atol=1e-6)


@settings(deadline=None)
@given(VECTORS)
def test_as_scipy_has_them(vector):
    rotation = pytest.importorskip("scipy.spatial.transform").Rotation.from_rotvec(3 * vector)
    np.testing.assert_allclose(matrix_of_vector(3 * vector), rotation.as_matrix(), atol=1e-9)
    quaternion = quaternion_of(rotation.as_matrix())
    assert abs(quaternion @ rotation.as_quat()) == pytest.approx(1)
    assert quaternion[np.abs(quaternion).argmax()] > 0


def test_six_numbers_are_the_first_two_rows():
    turn = matrix_of_vector(np.array([0, 0, np.pi / 2]))
    np.testing.assert_allclose(rotation_6d(turn), [0, -1, 0, 1, 0, 0], atol=1e-12)


def test_rows_of_a_policy_are_neither_long_nor_square():
    matrix = matrix_of_vector(np.array([0.3, -2.0, 1.0]))
    rows = matrix[:2] * [[0.7], [1.3]]
    rows[1] += 0.2 * rows[0]
    np.testing.assert_allclose(matrix_of_6d(rows.reshape(6)), matrix, atol=1e-12)


@pytest.mark.parametrize("values", [np.zeros(6), [1, 0, 0, 2, 0, 0], [np.nan] * 6])
def test_what_is_no_rotation_is_refused(values):
    with pytest.raises(ValueError, match="no rotation"):
        matrix_of_6d(values)


@pytest.mark.parametrize("axis", np.eye(3))
def test_half_a_turn_is_exact(axis):
    vector = rotation_vector(matrix_of_vector(np.pi * axis))
    np.testing.assert_allclose(np.abs(vector), np.pi * axis, atol=1e-7)


def test_parallel_rows_are_told_from_zeros_and_nan() -> None:
    assert are_parallel([-1, 1, 1, 2, -2, -2])
    assert not are_parallel([-1, 1, 1, 2, -2, -1])
    assert not are_parallel([0, 0, 0, 2, -2, -2])
    assert not are_parallel([float("nan"), 1, 1, 2, -2, -2])
