"""LeRobot's Diffusion Policy: a U-Net that denoises a chunk of actions, conditioned on states and images.

The context c is the condition of the U-Net: for each of the n frames, oldest first, the normalised robot state, the
features of the images and the normalised state of the environment. Images are cropped at the centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from zprl_sb3.adapters.base import AdapterError
from zprl_sb3.adapters.lerobot_folder import ENVIRONMENT, STATE, Folder
from zprl_sb3.adapters.lerobot_policy import Inputs, LeRobotPolicy, action_size
from zprl_sb3.adapters.resnet import group_norm, map_shape, resnet
from zprl_sb3.adapters.unet import Unet1d
from zprl_sb3.adapters.weights import rebuilt
from zprl_sb3.diffusion import Denoiser, Diffusion
from zprl_sb3.policy import Observation

SCHEDULER = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "clip_sample",
    "clip_sample_range",
)
"""Settings of the noise schedule; the others are as ``diffusers`` has them."""


class SpatialSoftmax(nn.Module):
    """Keypoints: where in the image learned mixtures of the features are, on average. (B, C, H, W) -> (B, 2 K).

    Finn et al. 2016, "Deep Spatial Autoencoders for Visuomotor Learning".
    """

    def __init__(self, shape: Sequence[int], keypoints: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.nets = nn.Conv2d(channels, keypoints, kernel_size=1)
        self.pos_grid: th.Tensor
        rows, columns = th.meshgrid(th.linspace(-1, 1, height), th.linspace(-1, 1, width), indexing="ij")
        self.register_buffer("pos_grid", th.stack([columns.flatten(), rows.flatten()], dim=1))

    def forward(self, features: th.Tensor) -> th.Tensor:
        attention = F.softmax(self.nets(features).flatten(2), dim=-1)
        return (attention @ self.pos_grid).flatten(1)


class ImageEncoder(nn.Module):
    """An image (B, 3, H, W) to features (B, F): resize, crop, ResNet, keypoints, linear layer and ReLU.

    :param config: LeRobot's configuration
    :param size: Height and width of the images
    :raises ValueError: If the crop is larger than the image
    """

    def __init__(self, config: Mapping[str, Any], size: Sequence[int]) -> None:
        super().__init__()
        self.resize, self.crop = _sizes(config, size)
        norm = group_norm if config["use_group_norm"] else nn.BatchNorm2d
        # As LeRobot puts them, its layers have numbers.
        self.backbone = nn.Sequential(*resnet(config["vision_backbone"], False, norm).children())
        keypoints = config["spatial_softmax_num_keypoints"]
        self.pool = SpatialSoftmax(map_shape(config["vision_backbone"], False, self.crop), keypoints)
        self.out = nn.Linear(2 * keypoints, 2 * keypoints)

    def forward(self, images: th.Tensor) -> th.Tensor:
        if self.resize is not None:
            images = F.interpolate(images, self.resize, mode="bilinear", antialias=True)
        top, left = (round((whole - part) / 2) for whole, part in zip(images.shape[2:], self.crop, strict=True))
        images = images[:, :, top : top + self.crop[0], left : left + self.crop[1]]
        return th.relu(self.out(self.pool(self.backbone(images))))


def _sizes(config: Mapping[str, Any], size: Sequence[int]) -> tuple[list[int] | None, list[int]]:
    """Return what images are resized to, if they are, and then cropped to."""
    resize, crop = config.get("resize_shape"), config["crop_shape"]
    if resize is not None:  # LeRobot computes the crop then
        size, ratio = resize, config["crop_ratio"]
        crop = [int(length * ratio) for length in size]
    crop = list(size) if crop is None else crop
    if any(part > whole for part, whole in zip(crop, size, strict=True)):
        raise ValueError(f"the policy crops images to {list(crop)}, which those of {list(size)} are smaller than")
    return None if resize is None else list(resize), list(crop)


class DiffusionNetwork(nn.Module):
    """The networks, with LeRobot's names.

    :param config: LeRobot's configuration
    :param inputs: What the policy sees
    :param action_dim: A
    :raises ValueError: If the images differ in size
    """

    def __init__(self, config: Mapping[str, Any], inputs: Inputs, action_dim: int) -> None:
        super().__init__()
        sizes = {shape[:2] for shape in inputs.images.values()}
        if len(sizes) > 1:
            raise ValueError(f"LeRobot's Diffusion Policy takes images of one size, not of {sorted(sizes)}")
        self.separate = config["use_separate_rgb_encoder_per_camera"]
        if sizes:
            count = len(inputs.images) if self.separate else 1
            encoders = [ImageEncoder(config, *sizes) for _ in range(count)]
            self.rgb_encoder = nn.ModuleList(encoders) if self.separate else encoders[0]
        features = 2 * config["spatial_softmax_num_keypoints"] * len(inputs.images)
        self.context_dim = (sum(inputs.vectors.values()) + features) * config["n_obs_steps"]
        self.unet = Unet1d(
            action_dim,
            self.context_dim,
            config["down_dims"],
            config["diffusion_step_embed_dim"],
            config["kernel_size"],
            config["n_groups"],
            config["use_film_scale_modulation"],
        )

    def image_features(self, images: Sequence[th.Tensor]) -> list[th.Tensor]:
        """Return the features (B, n, F) of each camera's images (B, n, 3, H, W)."""
        encoders: Any = self.rgb_encoder if self.separate else [self.rgb_encoder] * len(images)
        return [
            encoder(image.flatten(0, 1)).unflatten(0, image.shape[:2])
            for encoder, image in zip(encoders, images, strict=True)
        ]


class DiffusionPolicy(LeRobotPolicy):
    """LeRobot's Diffusion Policy.

    The generator predicts the actions of the observed frames too; what is returned begins with the present one.

    :param folder: The checkpoint
    :param inputs: What the policy sees
    :param chunk: h; None: the policy's own
    :raises AdapterError: If there is no robot state, or the folder holds something else
    :raises ValueError: If a setting is not supported
    """

    architecture = ("vision_backbone", "resize_shape", "crop_shape", "crop_ratio", "kernel_size", "n_groups")

    def __init__(self, folder: Folder, inputs: Inputs, chunk: int | None) -> None:
        config = folder.config
        if STATE not in inputs.vectors:
            raise AdapterError(
                f"{folder.path} has no input {STATE!r}, without which LeRobot's Diffusion Policy is none"
            )
        settings = {name: config[name] for name in SCHEDULER}
        sampler = config["noise_scheduler_type"].lower()
        diffusion = Diffusion.of(settings, sampler, config["num_inference_steps"])
        past, total, action_dim = config["n_obs_steps"] - 1, config["horizon"], action_size(folder)
        weights = {name.removeprefix("diffusion."): value for name, value in folder.weights.items()}
        what = f"a Diffusion Policy with a U-Net of {list(config['down_dims'])}"
        network = rebuilt(lambda: DiffusionNetwork(config, inputs, action_dim), weights, folder.file, what)
        super().__init__(
            folder,
            inputs,
            network.context_dim,
            horizon=total - past,
            chunk=chunk,
            obs_steps=past + 1,
            noise_shape=diffusion.noise_shape(total, action_dim),
            target_steps=range(-past, total - past),
        )
        self.network, self.diffusion = network, diffusion

    def context(self, obs: Observation) -> th.Tensor:
        images = [self.image(obs, name) for name in self.inputs.images]
        parts = [self.vector(obs, STATE)]
        parts += self.network.image_features(images) if images else []
        parts += [self.vector(obs, ENVIRONMENT)] if ENVIRONMENT in self.inputs.vectors else []
        return th.cat(parts, dim=-1).flatten(1)

    def generate(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        actions = self.diffusion.sample(self._denoiser(context), noise)
        return self.action_scaling.inverse(actions[:, self.obs_steps - 1 :])

    def imitation_loss(
        self, condition: th.Tensor, context: th.Tensor, actions: th.Tensor, noise: th.Tensor, times: th.Tensor
    ) -> th.Tensor:
        """Return the loss that the policy was trained with."""
        denoiser = self._denoiser(self.context_normalizer.inverse(condition))
        return self.diffusion.loss(denoiser, self.action_normalizer(actions), noise, times)

    def _denoiser(self, context: th.Tensor) -> Denoiser:
        return lambda actions, steps: self.network.unet(actions, steps, context)

    def set_sampling_steps(self, steps: int) -> None:
        self.diffusion = replace(self.diffusion, sampling_steps=steps)
        self.noise_shape = self.diffusion.noise_shape(self.config["horizon"], self.action_dim)

    def settings(self) -> dict[str, object]:
        return super().settings() | {"diffusion": asdict(self.diffusion)}
