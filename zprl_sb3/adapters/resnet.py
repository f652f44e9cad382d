"""ResNets with the names and layouts of torchvision's, so that weights of policies that were made from those fit.

He et al. 2016; the stride of a bottleneck block is in its 3 x 3 convolution, as in torchvision ("ResNet V1.5").
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch as th
from torch import nn

from zprl_sb3.convolutions import Conv2d

Norm = Callable[[int], nn.Module]
"""Makes the normalisation of so many channels."""

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}
"""Blocks per level."""
BASIC = ("resnet18", "resnet34")  # blocks of two 3 x 3 convolutions; the others have bottlenecks, of three
WIDTHS = (64, 128, 256, 512)
EXPANSION = 4  # of a bottleneck block
FROZEN_EPSILON = 1e-5


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a GroupNorm with 16 channels per group, which Diffusion Policy puts in the place of BatchNorm."""
    return nn.GroupNorm(channels // 16, channels)


class FrozenBatchNorm(nn.Module):
    """BatchNorm whose statistics and weights are constants, torchvision's ``FrozenBatchNorm2d``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight: th.Tensor
        self.bias: th.Tensor
        self.running_mean: th.Tensor
        self.running_var: th.Tensor
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            self.register_buffer(name, th.full((channels,), value))

    def forward(self, x: th.Tensor) -> th.Tensor:
        scale = self.weight * (self.running_var + FROZEN_EPSILON).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Block(nn.Module):
    """Convolutions with a skip connection: two of 3 x 3, or a bottleneck of 1 x 1, 3 x 3 and 1 x 1.

    :param inputs: Channels
    :param width: Channels inside
    :param basic: Two convolutions
    :param stride: Of the first 3 x 3 convolution
    :param dilation: Of a bottleneck's 3 x 3 convolution
    :param norm: After each convolution
    """

    def __init__(self, inputs: int, width: int, basic: bool, stride: int, dilation: int, norm: Norm) -> None:
        super().__init__()
        self.outputs = width if basic else EXPANSION * width
        wide = (width, 3, stride, dilation)
        layers = [wide, (width, 3, 1, 1)] if basic else [(width, 1, 1, 1), wide, (self.outputs, 1, 1, 1)]
        self.depth, channels = len(layers), inputs
        for number, (outputs, kernel, step, spread) in enumerate(layers, start=1):
            setattr(self, f"conv{number}", _convolution(channels, outputs, kernel, step, spread))
            setattr(self, f"bn{number}", norm(outputs))
            channels = outputs
        same = stride == 1 and inputs == self.outputs
        shortcut = [] if same else [_convolution(inputs, self.outputs, 1, stride), norm(self.outputs)]
        self.downsample = nn.Sequential(*shortcut)

    def forward(self, x: th.Tensor) -> th.Tensor:
        output = x
        for number in range(1, self.depth + 1):
            output = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(output))
            output = th.relu(output) if number < self.depth else output
        return th.relu(output + self.downsample(x))


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, dilation: int = 1) -> nn.Conv2d:
    # The faster one knows no dilation.
    if dilation == 1:
        return Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=dilation * (kernel // 2), dilation=dilation, bias=False)


def map_shape(name: str, dilate_last: bool, size: Sequence[int]) -> tuple[int, int, int]:
    """Return channels, height and width of the feature map of an image of a height and width."""
    factor = 16 if dilate_last else 32
    height, width = (-(-length // factor) for length in size)
    return WIDTHS[-1] * (1 if name in BASIC else EXPANSION), height, width


def resnet(name: str, dilate_last: bool, norm: Norm) -> nn.Sequential:
    """Return a ResNet without its pooling and classifier; :func:`map_shape` is that of its output.

    :param name: One of :data:`DEPTHS`
    :param dilate_last: The last level widens its convolutions instead of halving the resolution
    :param norm: After each convolution
    :raises ValueError: For another name, and a dilation of basic blocks
    """
    if name not in DEPTHS:
        raise ValueError(f"There is no ResNet {name!r} here, only {', '.join(DEPTHS)}")
    if dilate_last and name in BASIC:
        raise ValueError(f"{name} has no dilation, only the ResNets with bottleneck blocks have")
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=_convolution(3, WIDTHS[0], 7, 2), bn1=norm(WIDTHS[0]), relu=nn.ReLU(), maxpool=nn.MaxPool2d(3, 2, 1)
    )
    channels = WIDTHS[0]
    for level, (width, depth) in enumerate(zip(WIDTHS, DEPTHS[name], strict=True), start=1):
        dilated = dilate_last and level == len(WIDTHS)
        blocks: list[nn.Module] = []
        for index in range(depth):
            # As in torchvision, the first block of a dilated level has the dilation of the level before.
            stride = 2 if index == 0 and level > 1 and not dilated else 1
            block = Block(channels, width, name in BASIC, stride, 2 if dilated and index else 1, norm)
            blocks.append(block)
            channels = block.outputs
        layers[f"layer{level}"] = nn.Sequential(*blocks)
    return nn.Sequential(layers)
