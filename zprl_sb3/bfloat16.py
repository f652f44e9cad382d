"""Who multiplies bfloat16. Other processors compute with it as well, but many times slower than in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch as th

NAMES = ("avx512_bf16", "amx_bf16", "bf16")  # of processors' capabilities; the last is ARM's


def multiplies_bfloat16(device: th.device) -> bool:
    """Return whether a device multiplies bfloat16 itself, as far as PyTorch can tell.

    :param device: Any
    """
    if device.type == "cuda":
        return th.cuda.get_device_capability(device)[0] >= 8
    capabilities = _capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(name, False) for name in NAMES)


def _capabilities() -> Mapping[str, Any]:
    older: Callable[[], bool] = getattr(th.cpu, "_is_avx512_bf16_supported", bool)
    known: Callable[[], Mapping[str, Any]] | None = getattr(th.cpu, "get_capabilities", None)
    return {"avx512_bf16": older()} if known is None else known()
