"""Diffusion Policy's ``.ckpt``: its U-Nets on states and images; and those of ZPRL's authors, which descend from it.

Chi et al. 2023. Read are the checkpoints of ``DiffusionUnetLowdimPolicy``, ``DiffusionUnetImagePolicy`` and
``DiffusionUnetHybridImagePolicy`` whose observations are the U-Net's condition (``obs_as_global_cond``), and
flow-matching policies of the same layout with or without a bottleneck (:mod:`zprl_sb3.adapters.zprl_authors`). The
project is not imported.

The context c is the condition of the U-Net: the encoder's features of all frames, oldest first. The generator predicts
the actions of the observed frames too; what is returned begins with the present one. Images are cropped at the centre.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch as th
from torch import nn

from zprl_sb3.adapters.base import AdaptedPolicy, AdapterError
from zprl_sb3.adapters.diffusion_policy_encoders import HybridEncoder, ImageEncoder, VectorEncoder, of_robomimic
from zprl_sb3.adapters.diffusion_policy_file import Checkpoint, read_checkpoint
from zprl_sb3.adapters.inputs import environment_keys
from zprl_sb3.adapters.unet import Unet1d
from zprl_sb3.adapters.weights import rebuilt
from zprl_sb3.adapters.zprl_authors import Flow, embedded_features, encoder_settings, read_bottleneck, renamed_encoder
from zprl_sb3.diffusion import Denoiser, Diffusion
from zprl_sb3.policy import Observation
from zprl_sb3.wrappers.chunking import BOX_KEY

LOWDIM, IMAGE, HYBRID = "DiffusionUnetLowdimPolicy", "DiffusionUnetImagePolicy", "DiffusionUnetHybridImagePolicy"
FLOW_SCHEDULER = "FlowMatchEulerDiscreteScheduler"  # of diffusers, by which policies of ZPRL's authors are known
SCHEDULERS = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim"}

Shape = tuple[int, ...]
Encoder = VectorEncoder | ImageEncoder | HybridEncoder


def load(
    path: str | Path,
    keys: Mapping[str, Sequence[str]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    chunk: int | None = None,
    sampling_steps: int | None = None,
    sampler: str | None = None,
    weights: str | None = None,
) -> AdaptedPolicy:
    """Return a policy of Diffusion Policy.

    :param path: The ``.ckpt`` of its workspace
    :param keys: For the policy's inputs, by the names of its ``shape_meta`` (a policy on states has one, ``"obs"``),
        the keys of the environment's observation that are put side by side for it; an image has one. Default: the same
        names, and for ``"obs"`` that of a plain box observation, ``"state"``
    :param shapes: Of those keys, where several make one input
    :param chunk: h, executed actions; default: the policy's ``n_action_steps``
    :param sampling_steps: Of the sampler; default: the policy's ``num_inference_steps``
    :param sampler: ``"ddpm"`` or ``"ddim"``; default: that of the policy's noise scheduler
    :param weights: ``"ema"`` or ``"model"``; default: the averaged ones where there are any
    :raises AdapterError: If the file is of another kind, incomplete, or the options do not fit it
    :raises ValueError: If it is damaged, or asks for code to be run
    """
    checkpoint = read_checkpoint(path, weights)
    try:
        return _policy(checkpoint, keys, shapes, chunk, sampling_steps, sampler)
    except (AttributeError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{path}: the policy's settings lack or mistake something: {type(error).__name__}: {error}"
        ) from error
    except AdapterError:
        raise
    except ValueError as error:
        raise AdapterError(f"{path}: {error}") from error


@dataclass(frozen=True)
class Plan:
    """What a policy's settings say.

    :param inputs: Shape of each input by the policy's name, (H, W, 3) of images
    :param action_dim: A
    :param unet: Its settings
    :param horizon: Predicted actions
    :param start: Which of them is the present one's
    :param obs_steps: n
    :param chunk: h
    :param generator: How the network is sampled
    """

    inputs: dict[str, Shape]
    action_dim: int
    unet: Mapping[str, Any]
    horizon: int
    start: int
    obs_steps: int
    chunk: int
    generator: Diffusion | Flow


def _policy(
    checkpoint: Checkpoint,
    keys: Mapping[str, Sequence[str]] | None,
    shapes: Mapping[str, Sequence[int]] | None,
    chunk: int | None,
    sampling_steps: int | None,
    sampler: str | None,
) -> UnetPolicy:
    settings = checkpoint.settings
    kind = str(settings["_target_"]).rpartition(".")[2]
    generator = _generator(settings, sampler, sampling_steps)
    if kind not in (LOWDIM, IMAGE, HYBRID) and not isinstance(generator, Flow):
        raise AdapterError(
            f"{checkpoint.path} holds a {kind}. Supported are {LOWDIM}, {IMAGE} and {HYBRID}, and policies of their "
            f"layout that are sampled by {FLOW_SCHEDULER}"
        )
    if not settings.get("obs_as_global_cond", kind != LOWDIM):
        raise AdapterError(f"{checkpoint.path}: its observations are not the U-Net's condition (obs_as_global_cond)")
    plan = _lowdim(settings, generator) if kind == LOWDIM else _image(settings, generator)
    plan = plan if chunk is None else replace(plan, chunk=chunk)
    if list(plan.inputs) == ["obs"]:
        keys = {"obs": [BOX_KEY], **(keys or {})}
    groups, observed = environment_keys(plan.inputs, keys, shapes)
    make, tensors = _encoder(kind, checkpoint, plan)
    encoder = rebuilt(make, tensors, checkpoint.path, f"the observation encoder of a {kind}")
    policy = UnetPolicy(checkpoint, plan, groups, observed, encoder)
    policy.bottleneck = read_bottleneck(checkpoint, policy.context_dim)
    return policy


def _generator(settings: Mapping[str, Any], sampler: str | None, sampling_steps: int | None) -> Diffusion | Flow:
    scheduler = dict(settings["noise_scheduler"])
    kind = str(scheduler.pop("_target_")).rpartition(".")[2]
    sampling_steps = settings.get("num_inference_steps") if sampling_steps is None else sampling_steps
    if kind == FLOW_SCHEDULER:
        if sampler is not None:
            raise ValueError(f"it is a flow, which has no sampler {sampler!r}: leave the option out")
        return Flow.of(scheduler, sampling_steps)
    if kind not in SCHEDULERS:
        raise ValueError(f"its noise scheduler is {kind}; supported are {', '.join(SCHEDULERS)} and {FLOW_SCHEDULER}")
    return Diffusion.of(scheduler, sampler or SCHEDULERS[kind], sampling_steps)


def _lowdim(settings: Mapping[str, Any], generator: Diffusion | Flow) -> Plan:
    only = settings.get("pred_action_steps_only", False)
    frames, chunk = settings["n_obs_steps"], settings["n_action_steps"]
    start = 0 if only else frames - (1 if settings.get("oa_step_convention", False) else 0)
    horizon = chunk if only else settings["horizon"]
    inputs: dict[str, Shape] = {"obs": (settings["obs_dim"],)}
    unet = {"diffusion_step_embed_dim": 256, "down_dims": (256, 512, 1024), "kernel_size": 3, "n_groups": 8}
    unet |= {"cond_predict_scale": False, **settings["model"]}
    return Plan(inputs, settings["action_dim"], unet, horizon, start, frames, chunk, generator)


def _image(settings: Mapping[str, Any], generator: Diffusion | Flow) -> Plan:
    inputs: dict[str, Shape] = {}
    for name, about in settings["shape_meta"]["obs"].items():
        inputs[name] = tuple(about["shape"])
        if about.get("type", "low_dim") == "rgb":
            channels, height, width = inputs[name]
            inputs[name] = (height, width, channels)
    (action_dim,) = settings["shape_meta"]["action"]["shape"]
    frames, chunk = settings["n_obs_steps"], settings["n_action_steps"]
    unet = {"diffusion_step_embed_dim": 256, "down_dims": (256, 512, 1024), "kernel_size": 5, "n_groups": 8}
    unet |= {"cond_predict_scale": True, **settings}
    return Plan(inputs, action_dim, unet, settings["horizon"], frames - 1, frames, chunk, generator)


def _encoder(kind: str, checkpoint: Checkpoint, plan: Plan) -> tuple[Callable[[], Encoder], Mapping[str, th.Tensor]]:
    """Return what makes the encoder, and the weights that belong to it."""
    tensors: Mapping[str, th.Tensor] = checkpoint.part("obs_encoder.")
    if kind == LOWDIM:
        return partial(VectorEncoder, plan.inputs), tensors
    if kind == HYBRID:
        return partial(HybridEncoder, plan.inputs, checkpoint.settings), of_robomimic(tensors)
    settings = checkpoint.settings["obs_encoder"]
    if not isinstance(plan.generator, Flow):
        return partial(ImageEncoder, plan.inputs, settings), tensors
    tensors = renamed_encoder(tensors, checkpoint.path)
    return partial(ImageEncoder, plan.inputs, encoder_settings(settings), embedded_features(tensors)), tensors


def _unet(checkpoint: Checkpoint, plan: Plan, context_dim: int) -> Unet1d:
    about, widths = plan.unet, plan.unet["down_dims"]
    make = partial(
        Unet1d,
        plan.action_dim,
        context_dim,
        widths,
        about["diffusion_step_embed_dim"],
        about["kernel_size"],
        about["n_groups"],
        about["cond_predict_scale"],
    )
    names = [(r"\.blocks\.0\.", ".conv1."), (r"\.blocks\.1\.", ".conv2."), (r"(_modules\.\d+\.2)\.conv\.", r"\1.")]
    tensors = checkpoint.part("model.")
    for old, new in names:
        tensors = {re.sub(old, new, name): value for name, value in tensors.items()}
    return rebuilt(make, tensors, checkpoint.path, f"a U-Net of {list(widths)} for a context of {context_dim} numbers")


class UnetPolicy(AdaptedPolicy):
    """A policy of Diffusion Policy.

    :param checkpoint: Where it is from
    :param plan: What it is
    :param keys: The environment's keys that each input is made of
    :param shapes: Of those keys
    :param encoder: Its observation encoder
    :raises AdapterError: If the checkpoint does not hold weights and normalisers of that
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        keys: Mapping[str, list[str]],
        shapes: Mapping[str, Shape],
        encoder: Encoder,
    ) -> None:
        super().__init__(
            shapes,
            plan.action_dim,
            encoder.features * plan.obs_steps,
            horizon=plan.horizon - plan.start,
            chunk=plan.chunk,
            obs_steps=plan.obs_steps,
            noise_shape=plan.generator.noise_shape(plan.horizon, plan.action_dim),
            target_steps=range(-plan.start, plan.horizon - plan.start),
        )
        self.plan, self.generator, self.keys = plan, plan.generator, keys
        self.architecture = repr(sorted(checkpoint.settings.items()))
        self.encoder = encoder
        self.scales, self.offsets = nn.ParameterDict(), nn.ParameterDict()
        for name, shape in plan.inputs.items():
            scale, offset = checkpoint.normalizer(name, 1 if len(shape) == 3 else shape[0])
            self.scales[name], self.offsets[name] = nn.Parameter(scale.clone()), nn.Parameter(offset.clone())
        scale, offset = checkpoint.normalizer("action", plan.action_dim)
        self.action_normalizer.center.copy_(-offset / scale)
        self.action_normalizer.half_range.copy_(1 / scale)
        self.unet = _unet(checkpoint, plan, self.context_dim)

    def context(self, obs: Observation) -> th.Tensor:
        inputs = {}
        for name, shape in self.plan.inputs.items():
            values = self.images(obs, self.keys[name][0]) if len(shape) == 3 else self.frames(obs, self.keys[name])
            inputs[name] = (values * self.scales[name] + self.offsets[name]).flatten(0, 1)
        features: th.Tensor = self.encoder(inputs)
        return features.reshape(-1, self.context_dim)

    def generate(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        actions = self.generator.sample(self._denoiser(context), noise)
        return self.action_normalizer.inverse(actions[:, self.plan.start :])

    def imitation_loss(
        self, condition: th.Tensor, context: th.Tensor, actions: th.Tensor, noise: th.Tensor, times: th.Tensor
    ) -> th.Tensor:
        """Return the loss that the policy was trained with."""
        denoiser = self._denoiser(self.context_normalizer.inverse(condition))
        return self.generator.loss(denoiser, self.action_normalizer(actions), noise, times)

    def _denoiser(self, context: th.Tensor) -> Denoiser:
        return lambda actions, steps: self.unet(actions, steps, context)

    def set_sampling_steps(self, steps: int) -> None:
        self.generator = replace(self.generator, sampling_steps=steps)
        self.noise_shape = self.generator.noise_shape(self.plan.horizon, self.action_dim)

    def settings(self) -> dict[str, object]:
        own = {"keys": self.keys, "generator": asdict(self.generator), "architecture": self.architecture}
        return super().settings() | own
