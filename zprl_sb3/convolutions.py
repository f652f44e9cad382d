"""Convolutions that are faster on a CPU where no gradient is wanted: products of windows and weights.

PyTorch's own rearrange their weights in every call, which for a policy that acts for one robot takes most of the time.
"""

from __future__ import annotations

from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from zprl_sb3.products import PackedProduct, onednn_computes

FEW, MANY = 8, 2**15  # samples up to which, and weights from which on, it is the weights that take the time


def _is_traced() -> bool:
    return bool(th.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _as_product(x: th.Tensor, weight: th.Tensor) -> bool:
    if th.is_grad_enabled() or th.is_autocast_enabled("cpu") or _is_traced():
        return False
    return len(x) <= FEW and weight.numel() >= MANY and onednn_computes(x)


def _geometry(layer: Any) -> tuple[int, int, int]:
    """Return kernel, stride and padding, which are the same along each dimension."""
    return layer.kernel_size[0], layer.stride[0], layer.padding[0]


class _Packing(nn.Module):
    """Layers with a product of their own weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.product = PackedProduct()


class Conv1d(_Packing, nn.Conv1d):
    """PyTorch's, without dilation and groups: (B, C, L) -> (B, O, L / stride)."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        if not _as_product(x, self.weight):
            return super().forward(x)
        kernel, stride, padding = _geometry(self)
        windows = F.pad(x, (padding, padding)).unfold(2, kernel, stride).transpose(1, 2)  # (B, L / stride, C, kernel)
        output = self.product(windows.flatten(2).flatten(0, 1), self.weight.flatten(1), self.bias)
        return output.view(*windows.shape[:2], -1).transpose(1, 2)


class ConvTranspose1d(_Packing, nn.ConvTranspose1d):
    """PyTorch's, without dilation, groups and output padding: (B, C, L) -> (B, O, stride * L)."""

    def forward(self, x: th.Tensor) -> th.Tensor:  # type: ignore[override]
        if _is_traced():
            return self._between_zeros(x)
        if not _as_product(x, self.weight):
            return super().forward(x)
        kernel, stride, padding = _geometry(self)
        length = (x.shape[2] - 1) * stride - 2 * padding + kernel
        parts = self.product(x.transpose(1, 2).flatten(0, 1), self.weight.flatten(1).t())
        # Every place adds a window to the output, where windows overlap.
        parts = parts.view(len(x), -1, parts.shape[1]).transpose(1, 2)
        output = F.fold(parts, (1, length), (1, kernel), padding=(0, padding), stride=(1, stride))
        return output[:, :, 0] if self.bias is None else output[:, :, 0] + self.bias[:, None]

    def _between_zeros(self, x: th.Tensor) -> th.Tensor:
        """As a convolution over places with zeros between them: in OpenVINO faster by half."""
        kernel, stride, padding = _geometry(self)
        spread = th.stack([x, *[th.zeros_like(x)] * (stride - 1)], dim=3).flatten(2)
        margin = kernel - 1 - padding
        padded = F.pad(spread, (margin, margin - (stride - 1)))
        return F.conv1d(padded, self.weight.transpose(0, 1).flip(2), self.bias)


class Conv2d(_Packing, nn.Conv2d):
    """PyTorch's, without dilation, groups and bias: (B, C, H, W) -> (B, O, H / stride, W / stride)."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        if not _as_product(x, self.weight):
            return super().forward(x)
        kernel, stride, padding = _geometry(self)
        pixels = F.pad(x.permute(0, 2, 3, 1), (0, 0, *4 * (padding,)))
        windows = pixels.unfold(1, kernel, stride).unfold(2, kernel, stride).permute(0, 1, 2, 4, 5, 3)
        # In PyTorch's channels-last format the weights lie in memory like the windows.
        output = self.product(windows.flatten(3).flatten(0, 2), self.weight.permute(0, 2, 3, 1).flatten(1))
        return output.view(*windows.shape[:3], -1).permute(0, 3, 1, 2)
