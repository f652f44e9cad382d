"""From camera images to a part of the context: crop, ResNet-18 with GroupNorm, learned spatial embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch as th
from torch import nn

from zprl_sb3.convolutions import Conv2d

GROUP_SIZE = 16  # channels per group of a GroupNorm
SPATIAL_MAPS = 8  # learned weightings of the final feature map, per channel
# Of ImageNet, for images in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def crop(images: th.Tensor, size: Sequence[int], where: th.Tensor | None = None) -> th.Tensor:
    """Cut (B, H, W, 3) to (B, *size, 3).

    :param images: Of any type, which stays
    :param size: Height and width
    :param where: For each image the corner's place between the top left (0, 0) and the bottom right (1, 1), exclusive;
        (B, 2). Uniform numbers make every place equally likely. None: the centre
    """
    margins = [whole - part for whole, part in zip(images.shape[1:3], size, strict=True)]
    if where is None:
        top, left = (margin // 2 for margin in margins)
        return images[:, top : top + size[0], left : left + size[1]]
    limits = th.tensor(margins, device=images.device)
    # A number just below 1 may have been rounded up to 1 on its way.
    corners = th.minimum((where * (limits + 1)).long(), limits)
    rows = corners[:, :1] + th.arange(size[0], device=images.device)
    columns = corners[:, 1:] + th.arange(size[1], device=images.device)
    batch = th.arange(len(images), device=images.device)
    return images[batch[:, None, None], rows[:, :, None], columns[:, None, :]]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, channels // GROUP_SIZE), channels)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> Conv2d:
    layer = Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class BasicBlock(nn.Module):
    """ResNet's block of two convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(inputs, outputs, 3, stride),
            _norm(outputs),
            nn.ReLU(inplace=True),
            _convolution(outputs, outputs, 3, 1),
            _norm(outputs),
        )
        same = stride == 1 and inputs == outputs
        self.skip = nn.Identity() if same else nn.Sequential(_convolution(inputs, outputs, 1, stride), _norm(outputs))

    def forward(self, x: th.Tensor) -> th.Tensor:
        return th.relu(self.body(x) + self.skip(x))


def resnet_trunk(widths: Sequence[int]) -> nn.Sequential:
    """Return ResNet's convolutions, (B, 3, H, W) -> (B, C, H / 32, W / 32) for four widths.

    :param widths: Channels per level; ResNet-18 has 64, 128, 256, 512
    """
    stem = [_convolution(3, widths[0], 7, 2), _norm(widths[0]), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]
    blocks: list[nn.Module] = []
    for inputs, outputs in pairwise([widths[0], *widths]):
        blocks += [BasicBlock(inputs, outputs, 2 if blocks else 1), BasicBlock(outputs, outputs, 1)]
    return nn.Sequential(*stem, *blocks)


class SpatialEmbeddings(nn.Module):
    """Learned weighted sums over the places of a feature map: (B, C, H, W) -> (B, C * maps).

    :param shape: C, H, W
    :param maps: Sums per channel
    """

    def __init__(self, shape: Sequence[int], maps: int = SPATIAL_MAPS) -> None:
        super().__init__()
        channels, height, width = shape
        self.weight = nn.Parameter(th.randn(channels, height * width, maps) / (height * width) ** 0.5)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return th.einsum("bcp,cpm->bcm", x.flatten(2), self.weight).flatten(1)


class ImageEncoder(nn.Module):
    """One camera's images, uint8 (..., H, W, 3), to features (..., dim) in (-1, 1). Trained from scratch.

    :param shape: H, W and 3 channels
    :param size: Height and width of the crop; empty: the whole image
    :param widths: Channels of the ResNet's levels
    :param dim: Size of the features
    """

    def __init__(self, shape: Sequence[int], size: Sequence[int], widths: Sequence[int], dim: int) -> None:
        super().__init__()
        self.size = tuple(size) or tuple(shape[:2])
        self.trunk = resnet_trunk(widths).to(memory_format=th.channels_last)  # type: ignore[call-overload]
        with th.no_grad():
            features = self.trunk(th.zeros(1, 3, *self.size))
        pooling = SpatialEmbeddings(features.shape[1:])
        self.head = nn.Sequential(
            pooling, nn.Linear(features.shape[1] * SPATIAL_MAPS, dim), nn.LayerNorm(dim), nn.Tanh()
        )
        self.scale: th.Tensor
        self.shift: th.Tensor
        mean, std = th.tensor(MEAN), th.tensor(STD)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)

    def forward(self, images: th.Tensor, where: th.Tensor | None = None) -> th.Tensor:
        """Return the features.

        :param images: (B, H, W, 3) or, with a history, (B, n, H, W, 3)
        :param where: Places of the crops, (B, 2), as in :func:`crop`; a history's frames are cropped alike
        :raises TypeError: If the images are not uint8
        """
        if images.dtype != th.uint8:
            raise TypeError(f"Images are uint8 from 0 to 255, not {images.dtype}")
        frames = images.flatten(0, -4)
        if where is not None:
            where = where.repeat_interleave(len(frames) // len(where), dim=0)
        pixels = crop(frames, self.size, where) * self.scale + self.shift
        # What was (B, H, W, 3) in memory stays so: that is PyTorch's channels-last format.
        features: th.Tensor = self.head(self.trunk(pixels.permute(0, 3, 1, 2)))
        return features.reshape(*images.shape[:-3], -1)
