"""Matrix products on a CPU, twice as fast where PyTorch's own do without AVX-512.

PyTorch leaves products in float32 to MKL, which does without AVX-512 on processors that are not Intel's. oneDNN, which
PyTorch has for bfloat16 and ``torch.compile``, does not. Where there is only AVX2 both are as fast, but oneDNN can keep
weights as it needs them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch as th
from torch.nn import functional as F

WORTHWHILE = 16  # rows and columns of weights; for narrower ones a call of oneDNN takes longer than the product
MANY = 32  # rows of x; for fewer, oneDNN takes longer to arrange the weights than to multiply by them
_VECTORS = th.backends.cpu.get_cpu_capability()


def _find_onednn() -> Callable[..., th.Tensor] | None:
    if _VECTORS not in ("AVX2", "AVX512"):
        return None
    return getattr(getattr(th.ops.mkldnn, "_linear_pointwise", None), "default", None)


_onednn = _find_onednn()


def onednn_computes(x: th.Tensor) -> bool:
    """Whether oneDNN can compute products with x."""
    return _onednn is not None and x.dtype == th.float32 and x.device.type == "cpu"


def product(x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
    """Return x Wᵀ + b (B, out) for x (B, in) and W (out, in). It has no gradient."""
    if _onednn is None or _VECTORS == "AVX2" or x.shape[0] < MANY or not (_is_worthwhile(x, weight) and _is_dense(x)):
        return F.linear(x, weight, bias)
    return _onednn(x, weight, bias, "none", [], "")


class PackedProduct:
    """:func:`product` with weights that seldom change: they are kept in oneDNN's own arrangement as well.

    For few rows, arranging them takes longer than multiplying by them.
    """

    def __init__(self) -> None:
        self._packed: th.Tensor | None = None
        self._state: tuple[int, int] | None = None

    def __call__(self, x: th.Tensor, weight: th.Tensor, bias: th.Tensor | None = None) -> th.Tensor:
        """Return x Wᵀ + b (B, out) for x (B, in) and W (out, in)."""
        if _onednn is None or not _is_worthwhile(x, weight):
            return F.linear(x, weight, bias)
        state = weight.data_ptr(), weight._version  # which changes with what is written into it
        if state != self._state:
            self._packed = th.ops.mkldnn._reorder_linear_weight(weight.contiguous(), len(x))
            self._state = state
        return _onednn(x, self._packed, bias, "none", [], "")

    def __reduce__(self) -> tuple[type[PackedProduct], tuple[()]]:
        return PackedProduct, ()


def _is_worthwhile(x: th.Tensor, weight: th.Tensor) -> bool:
    return onednn_computes(x) and min(weight.shape) >= WORTHWHILE and _is_dense(weight)


def _is_dense(matrix: th.Tensor) -> bool:
    # A part of a matrix would go to oneDNN's reference code, which is slower by a factor of a thousand.
    return matrix.is_contiguous() or matrix.mT.is_contiguous()
