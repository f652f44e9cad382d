"""Diffusion Policy's observation encoders, as they evaluate: normalised inputs of N frames -> features (N, F).

The names of the modules are the original's where its weights allow it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from zprl_sb3.adapters.resnet import group_norm, map_shape, resnet
from zprl_sb3.vision import MEAN, SPATIAL_MAPS, STD, SpatialEmbeddings

Shape = tuple[int, ...]
KEYPOINTS, CORE_FEATURES = 32, 64  # of robomimic's image encoders, as Diffusion Policy's hybrid policies have them


def _norm(group: bool) -> Callable[[int], nn.Module]:
    return group_norm if group else nn.BatchNorm2d


def _pair(sizes: Any, key: str) -> list[int] | None:
    """Return height and width for a camera, from one size for all or one for each."""
    size = sizes.get(key) if isinstance(sizes, dict) else sizes
    return None if size is None else [int(length) for length in size]


class Transform(nn.Module):
    """Resize (bilinear, not smoothed), crop at the centre, scale by ImageNet's mean and deviation.

    :param size: Height and width of the images
    :param resize: Height and width; None: as they are
    :param crop: Likewise
    :param imagenet: Whether to scale
    :raises ValueError: If the crop is larger than the image
    """

    def __init__(self, size: Sequence[int], resize: list[int] | None, crop: list[int] | None, imagenet: bool) -> None:
        super().__init__()
        self.resize, self.imagenet = resize, imagenet
        whole = resize or list(size)
        self.size = crop or whole
        if any(part > length for part, length in zip(self.size, whole, strict=True)):
            raise ValueError(f"the policy crops images to {self.size}, which those of {whole} are smaller than")
        self.shift: th.Tensor
        self.scale: th.Tensor
        self.register_buffer("shift", th.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("scale", 1 / th.tensor(STD)[:, None, None], persistent=False)

    def forward(self, images: th.Tensor) -> th.Tensor:
        if self.resize is not None:
            images = F.interpolate(images, self.resize, mode="bilinear", align_corners=False)
        top, left = (round((whole - part) / 2) for whole, part in zip(images.shape[2:], self.size, strict=True))
        images = images[:, :, top : top + self.size[0], left : left + self.size[1]]
        return (images - self.shift) * self.scale if self.imagenet else images


class VectorEncoder(nn.Module):
    """Vectors side by side, nothing else.

    :param shapes: Sizes by name, in their order
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        super().__init__()
        self.names = list(shapes)
        self.features = sum(shape[0] for shape in shapes.values())

    def forward(self, inputs: Mapping[str, th.Tensor]) -> th.Tensor:
        """Return the features."""
        return th.cat([inputs[name] for name in self.names], dim=-1)


class ImageEncoder(nn.Module):
    """``MultiImageObsEncoder``: a ResNet for each camera, or one for all; the images' features, then the vectors.

    :param shapes: Of the inputs by name: (H, W, 3) or (D,)
    :param settings: Arguments of the original
    :param embedded: Pool by spatial embeddings, as ZPRL's authors do, instead of by the mean: so many features
    :raises ValueError: For another network than a ResNet of torchvision's
    """

    def __init__(self, shapes: Mapping[str, Shape], settings: Mapping[str, Any], embedded: int | None = None) -> None:
        super().__init__()
        self.images = sorted(name for name, shape in shapes.items() if len(shape) == 3)
        self.vectors = sorted(set(shapes) - set(self.images))
        self.shared = bool(settings.get("share_rgb_model", False))
        crop = settings.get("crop_shape") if settings.get("random_crop", True) else None  # lost without, as there
        self.transforms = nn.ModuleDict()
        for key in self.images:
            resize = _pair(settings.get("resize_shape"), key)
            imagenet = bool(settings.get("imagenet_norm", False))
            self.transforms[key] = Transform(shapes[key][:2], resize, _pair(crop, key), imagenet)
        # The original replaces BatchNorm only in networks that it copies.
        norm = _norm(bool(settings.get("use_group_norm", False)) and not self.shared)
        names = {key: _network(settings, key) for key in (["rgb"] if self.shared else self.images)}
        self.key_model_map = nn.ModuleDict({key: resnet(name, False, norm) for key, name in names.items()})
        self.heads = nn.ModuleDict()
        size = map_shape(next(iter(names.values()), "resnet18"), False, (1, 1))[0]
        if embedded is not None:
            for key in self.images:
                transform: Any = self.transforms[key]
                self.heads[key] = _head(map_shape(names[key], False, transform.size), embedded)
            size = embedded
        self.features = size * len(self.images) + sum(shapes[name][0] for name in self.vectors)

    def forward(self, inputs: Mapping[str, th.Tensor]) -> th.Tensor:
        """Return the features."""
        return th.cat(
            [self._image(key, inputs[key]) for key in self.images] + [inputs[k] for k in self.vectors], dim=-1
        )

    def _image(self, key: str, images: th.Tensor) -> th.Tensor:
        maps: th.Tensor = self.key_model_map["rgb" if self.shared else key](self.transforms[key](images))
        features: th.Tensor = self.heads[key](maps) if key in self.heads else maps.mean(dim=(2, 3))
        return features


def _network(settings: Mapping[str, Any], key: str) -> str:
    model = settings["rgb_model"]
    model = model.get(key, model)
    if not str(model.get("_target_", "")).endswith("get_resnet"):
        raise ValueError(f"its images are encoded by {model.get('_target_')}, not by a ResNet of torchvision's")
    return str(model["name"])


def _head(shape: Shape, features: int) -> nn.Sequential:
    pooled = shape[0] * SPATIAL_MAPS
    return nn.Sequential(SpatialEmbeddings(shape), nn.Linear(pooled, features), nn.LayerNorm(features), nn.Tanh())


class SpatialSoftmax(nn.Module):
    """Where in the image learned mixtures of the features are, on average. (B, C, H, W) -> (B, 2 K).

    Finn et al. 2016, with robomimic's names.
    """

    def __init__(self, shape: Shape, keypoints: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.nets = nn.Conv2d(channels, keypoints, kernel_size=1)
        self.pos_x: th.Tensor
        self.pos_y: th.Tensor
        self.temperature: th.Tensor
        for name, value in (("pos_x", th.zeros(1, height * width)), ("pos_y", th.zeros(1, height * width))):
            self.register_buffer(name, value)
        self.register_buffer("temperature", th.ones(1))

    def forward(self, maps: th.Tensor) -> th.Tensor:
        attention = F.softmax(self.nets(maps).flatten(2) / self.temperature, dim=-1)
        return th.stack([(attention * where).sum(-1) for where in (self.pos_x, self.pos_y)], dim=-1).flatten(1)


class HybridEncoder(nn.Module):
    """robomimic's ``ObservationEncoder``, as Diffusion Policy's hybrid policies have it: ResNet-18 and keypoints.

    :param shapes: Of the inputs by name, in the order in which their features are put side by side
    :param settings: Arguments of the policy
    :raises ValueError: If the original crops at random when it is evaluated
    """

    def __init__(self, shapes: Mapping[str, Shape], settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.names = list(shapes)
        crop = settings.get("crop_shape", (76, 76))  # the default of the original
        if crop is not None and not settings.get("eval_fixed_crop", False):
            raise ValueError("it crops images at random when it is evaluated (eval_fixed_crop: false)")
        norm = _norm(bool(settings.get("obs_encoder_group_norm", False)))
        self.transforms, self.cores = nn.ModuleDict(), nn.ModuleDict()
        for name in (name for name, shape in shapes.items() if len(shape) == 3):
            transform = Transform(shapes[name][:2], None, _pair(crop, name), imagenet=False)
            self.transforms[name] = transform
            self.cores[name] = nn.Sequential(
                nn.Sequential(*resnet("resnet18", False, norm).children()),  # robomimic's have numbers
                SpatialSoftmax(map_shape("resnet18", False, transform.size), KEYPOINTS),
                nn.Flatten(),
                nn.Linear(2 * KEYPOINTS, CORE_FEATURES),
                nn.ReLU(),
            )
        self.features = sum(CORE_FEATURES if len(shape) == 3 else shape[0] for shape in shapes.values())

    def forward(self, inputs: Mapping[str, th.Tensor]) -> th.Tensor:
        """Return the features."""
        features = [
            self.cores[name](self.transforms[name](inputs[name])) if name in self.cores else inputs[name]
            for name in self.names
        ]
        return th.cat(features, dim=-1)


def of_robomimic(tensors: Mapping[str, th.Tensor]) -> dict[str, th.Tensor]:
    """Return robomimic's weights by the names of :class:`HybridEncoder`; it lists backbone and pooling twice."""
    renamed = {}
    for name, value in tensors.items():
        if re.match(r"obs_nets\.[^.]+\.(backbone|pool)\.", name):
            continue
        name = re.sub(r"^obs_nets\.([^.]+)\.nets\.0\.nets\.", r"cores.\1.0.", name)
        renamed[re.sub(r"^obs_nets\.([^.]+)\.nets\.", r"cores.\1.", name)] = value
    return renamed
