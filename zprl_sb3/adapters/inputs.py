"""Which keys of an environment's observation a foreign policy's inputs are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from zprl_sb3.adapters.base import AdapterError

Shape = tuple[int, ...]


def environment_keys(
    inputs: Mapping[str, Shape],
    keys: Mapping[str, Sequence[str]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> tuple[dict[str, list[str]], dict[str, Shape]]:
    """Return the environment's keys of each input, in the policy's order, and the shape of each of those keys.

    :param inputs: Shape of each input of the policy: a vector's may be of any rank, an image's is (H, W, 3)
    :param keys: For some inputs, the environment's keys that are put side by side for it; default: its own name
    :param shapes: Of environment keys; needed where several make one input
    :raises AdapterError: If a name is unknown, a shape is missing, or the sizes do not add up to the input's
    """
    keys, told = keys or {}, {key: tuple(shape) for key, shape in (shapes or {}).items()}
    groups = {name: list(keys.get(name, [name])) for name in inputs}
    used = [key for group in groups.values() for key in group]
    _check_names("keys", keys, list(inputs))
    _check_names("shapes", told, used)
    found = {group[0]: inputs[name] for name, group in groups.items() if len(group) == 1} | told
    if missing := [key for key in used if key not in found]:
        raise AdapterError(f"the option shapes must tell those of {missing}, of which one input is made")
    for name, group in groups.items():
        fits = sum(math.prod(found[key]) for key in group) == math.prod(inputs[name])
        is_image = len(inputs[name]) == 3
        if not fits or (is_image and [found[key] for key in group] != [inputs[name]]):
            made = " + ".join(f"{key} {found[key]}" for key in group) or "nothing"
            raise AdapterError(f"the policy's input {name!r} is of shape {inputs[name]}, not made of {made}")
    return groups, {key: found[key] for key in used}


def _check_names(option: str, given: Mapping[str, object], known: Sequence[str]) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise AdapterError(f"the option {option} names {unknown}, there is only {sorted(known)}")
