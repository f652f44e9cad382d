"""What can go wrong with a simulated robot on purpose."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True)
class Faults:
    """Faults of a simulated robot and its cameras, all absent at first. Times are seconds of the simulation.

    :param delay: Commands take effect so much later
    :param drop: Share of the commands that are lost, drawn at random
    :param slow: Every call of the robot takes so much longer, in seconds of the clock on the wall
    :param error: Every call of the robot fails with this message
    :param nan: What is told of a value whose name begins so is not a number
    :param late: Frames come so much later
    :param freeze: The cameras tell no new frame
    :param stuck: The cameras tell the same picture again and again, as new frames
    """

    delay: float = 0.0
    drop: float = 0.0
    slow: float = 0.0
    error: str = ""
    nan: str = ""
    late: float = 0.0
    freeze: bool = False
    stuck: bool = False

    def changed(self, changes: dict[str, Any]) -> Faults:
        """Return these faults with some of them changed.

        :raises ValueError: If there is no such fault, or its value is of another type or range
        """
        kinds = {field.name: type(field.default) for field in fields(self)}
        for name, value in changes.items():
            if name not in kinds:
                raise ValueError(f"There is no fault {name!r}; there are {', '.join(kinds)}")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            fits = number and 0.0 <= value < float("inf") if kinds[name] is float else isinstance(value, kinds[name])
            if not fits or (name == "drop" and value > 1.0):
                raise ValueError(f"The fault {name!r} cannot be {value!r}; its default is {getattr(Faults(), name)!r}")
        return replace(self, **changes)
