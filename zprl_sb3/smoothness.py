"""How smoothly a hand is told to move: velocity, acceleration and jerk of its commanded positions (paper, Table II)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMOOTHNESS = {"velocity": "m/s", "acceleration": "m/s²", "jerk": "m/s³"}
"""First to third difference, with their units."""


def smoothness(episodes: Sequence[NDArray[Any]], dt: float) -> dict[str, float]:
    """Return the mean norms of the differences over dt, dt² and dt³, over all episodes, env steps and hands.

    velocity ‖(p_{t+1} - p_t) / dt‖, acceleration ‖(p_{t+1} + p_{t-1} - 2 p_t) / dt²‖, and jerk likewise.

    :param episodes: Commanded positions p (T, hands, 3) of each, in metres
    :param dt: Seconds between two of them
    :return: By the names in :data:`SMOOTHNESS`; NaN where no episode is long enough
    """
    return {name: _mean_norm(episodes, order, dt) for order, name in enumerate(SMOOTHNESS, start=1)}


def _mean_norm(episodes: Sequence[NDArray[Any]], order: int, dt: float) -> float:
    norms = [np.linalg.norm(np.diff(p, order, axis=0) / dt**order, axis=-1).ravel() for p in episodes]
    together = np.concatenate([np.zeros(0), *norms])
    return float(together.mean()) if len(together) else float("nan")
