"""Drivers of hardware. Each module has ``robot``, ``camera`` or ``teleoperator``; a task's YAML names it as ``driver``.

A module imports without its package, which is loaded when the hardware is connected.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

DRIVERS = ("xarm", "franka", "lerobot", "several", "opencv", "realsense")
NO_HOME = "It is not said where episodes begin: give the driver home: [joint angles], or the task home:"


def find_module(name: str, ours: str, known: Iterable[str] = ()) -> ModuleType:
    """Import what a task's file names.

    :param name: With a dot in it a module of the user's
    :param ours: What it is otherwise
    :param known: Names of ours, for the message
    :raises ValueError: If there is none
    """
    wanted = name if "." in name else ours
    try:
        return importlib.import_module(wanted)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{wanted}.".startswith(f"{error.name}."):
            raise  # it is there, and lacks a library
        there = ", ".join([*known, "modules of yours by a name with a dot"])
        raise ValueError(f"there is no {name!r} ({error}); there are {there}") from error


def find_driver(name: str) -> ModuleType:
    """Import a driver by the name that a task's file has for it.

    :raises ValueError: If there is none
    """
    return find_module(name, f"{__name__}.{name}", DRIVERS)


def load_package(module: str, install: str) -> ModuleType:
    """Import a part of a driver's package.

    :param module: To import
    :param install: What ``pip install`` is given to have it
    :raises ImportError: If it cannot be imported
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f'{module} cannot be imported ({error}). Install with: pip install "{install}"') from error


def numbers(values: Sequence[float], size: int, what: str) -> NDArray[np.float64]:
    """Return numbers of a task's file as an array (size,).

    :raises ValueError: If they are not as many, or not finite
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (size,) or not np.isfinite(array).all():
        raise ValueError(f"{what} must be {size} finite numbers, not {values!r}")
    return array
