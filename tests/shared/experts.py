"""Expert policies for the Adroit hand's tasks that know nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def expert_arrays(inputs: int = 39, actions: int = 28, hidden: int = 32) -> dict[str, NDArray[Any]]:
    """Return a policy of a public expert's shape that does something or other."""
    rng = np.random.default_rng(0)
    sizes = [inputs, hidden, hidden, actions]
    arrays = {f"w{k}": rng.normal(0, 0.1, (sizes[k + 1], sizes[k])) for k in range(3)}
    arrays |= {f"b{k}": rng.normal(0, 0.1, sizes[k + 1]) for k in range(3)}
    arrays |= {"in_shift": rng.normal(0, 1, inputs), "in_scale": rng.uniform(1, 2, inputs)}
    arrays |= {"out_shift": rng.normal(0, 0.1, actions), "out_scale": rng.uniform(0.5, 1, actions)}
    arrays["log_std"] = rng.uniform(-2, -1, actions)
    return {name: values.astype(np.float32) for name, values in arrays.items()}
