"""When somebody is told that a figure has left the guideline."""

from __future__ import annotations

from zprl_sb3.guideline import Guard


def told(guard: Guard, values: list[float]) -> list[int]:
    return [index for index, value in enumerate(values) if guard.is_due(value, 10)]


def test_once_for_each_time_that_it_is_beyond_for_long() -> None:
    guard = Guard(1.0, above=True, patience=30)
    assert told(guard, [2, 2, 0, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2]) == [5, 12]


def test_below_works_as_above() -> None:
    guard = Guard(1.0, above=False, patience=20)
    assert told(guard, [0.5, 2, 0.5, 0.5, 0.5, 1.0, 0.5, 0.5]) == [3, 7]
