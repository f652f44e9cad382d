"""Rotations as robots' actions have them: the first two rows of a rotation matrix, which jump nowhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
SHORT = 1e-6  # what is no direction any more


def rotation_6d(matrix: ArrayLike) -> Array:
    """Return the first two rows (6,) of a rotation matrix (3, 3)."""
    return np.asarray(matrix, dtype=np.float64)[:2].reshape(6).copy()


def matrix_of_6d(values: ArrayLike) -> Array:
    """Return the rotation matrix (3, 3) whose first two rows are nearest to six numbers (Gram–Schmidt).

    :raises ValueError: If the two rows are zero or parallel, so that they name no rotation
    """
    first, second = np.asarray(values, dtype=np.float64).reshape(2, 3)
    x = _unit(first, values)
    y = _unit(second - x * (x @ second), values)
    return np.stack([x, y, np.cross(x, y)])


def are_parallel(values: ArrayLike) -> bool:
    """Tell whether six numbers are two rows that are not zero but parallel, of which no rotation can be made."""
    rows = np.asarray(values, dtype=np.float64).reshape(2, 3)
    area = np.linalg.norm(np.cross(rows[0], rows[1]))
    return bool(rows.any(axis=1).all() and area <= SHORT * np.linalg.norm(rows[0]))


def _unit(row: Array, values: ArrayLike) -> Array:
    length = float(np.sqrt(row @ row))
    if not length > SHORT:
        raise ValueError(f"These six numbers are no rotation, two rows that are neither zero nor parallel: {values!r}")
    return row / length


def quaternion_of(matrix: ArrayLike) -> Array:
    """Return the quaternion (x, y, z, w) of a rotation matrix (3, 3); its largest component is positive."""
    m = np.asarray(matrix, dtype=np.float64)
    trace = np.array([m[0, 0], m[1, 1], m[2, 2]])
    squares = np.append(1.0 + 2.0 * trace - trace.sum(), 1.0 + trace.sum())  # 4x², 4y², 4z², 4w²
    largest = int(squares.argmax())
    # Row k is 4 times component k times (x, y, z, w).
    rows = np.array(
        [
            [squares[0], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0], m[2, 1] - m[1, 2]],
            [m[0, 1] + m[1, 0], squares[1], m[1, 2] + m[2, 1], m[0, 2] - m[2, 0]],
            [m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], squares[2], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], squares[3]],
        ]
    )
    quaternion: Array = rows[largest] / np.linalg.norm(rows[largest])
    return quaternion


def rotation_vector(matrix: ArrayLike) -> Array:
    """Return axis times angle (3,) of a rotation matrix (3, 3), with an angle in [0, π]."""
    quaternion = quaternion_of(matrix)
    if quaternion[3] < 0:
        quaternion = -quaternion
    sine = float(np.linalg.norm(quaternion[:3]))
    if sine < 1e-12:
        return np.zeros(3)
    vector: Array = quaternion[:3] / sine * (2.0 * np.arctan2(sine, quaternion[3]))
    return vector


def matrix_of_vector(vector: ArrayLike) -> Array:
    """Return the rotation matrix (3, 3) of axis times angle (3,) (Rodrigues)."""
    v = np.asarray(vector, dtype=np.float64)
    angle = float(np.linalg.norm(v))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = v / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    matrix: Array = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)
    return matrix
