"""Checkpoints of ZPRL's authors: a flow in the layout of Diffusion Policy, with spatial embeddings and a bottleneck.

What they consist of is known: the U-Net and ResNet-18 of Diffusion Policy, times 100·k for the network, Euler's steps
1 -> 0.01 -> 0, learned spatial embeddings, a linear layer, LayerNorm and tanh for each camera; and a bottleneck of
three GELU layers with a mean and a log variance, and three GELU layers back. **How they are named is not**: no file of
theirs was at hand. :data:`ENCODER` and :data:`BOTTLENECK` are the names that are understood, and a file with others is
refused with the list of what was not: an entry more in these tables will do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th

from zprl_sb3.adapters.base import AdapterError
from zprl_sb3.adapters.diffusion_policy_file import Checkpoint
from zprl_sb3.adapters.weights import rebuilt
from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
from zprl_sb3.diffusion import Denoiser
from zprl_sb3.flow import LEVELS, flow_loss, sample, time_grid

CAMERA = r"key_model_map\.(?P<key>[^.]+)\."
RESNET = r"(?:(?:backbone|trunk|resnet|model|net)\.)?"
SPATIAL = r"(?:(?:spatial_?embed\w*|spatial|pool\w*|embed\w*)\.)?"
LEAF = r"(?P<leaf>weight|bias)"
LEVELS_OF_RESNET = {4: "layer1", 5: "layer2", 6: "layer3", 7: "layer4"}

ENCODER = [
    (CAMERA + RESNET + r"(?P<rest>(?:conv1|bn1|layer[1-4])\..*)", "key_model_map.{key}.{rest}"),
    # torchvision's layers as numbers, where they are put into a list without pooling and classifier.
    (CAMERA + RESNET + r"0\.(?P<rest>weight)", "key_model_map.{key}.conv1.{rest}"),
    (CAMERA + RESNET + r"1\.(?P<rest>weight|bias)", "key_model_map.{key}.bn1.{rest}"),
    *(
        (CAMERA + RESNET + rf"{number}\.(?P<rest>\d\..*)", f"key_model_map.{{key}}.{level}.{{rest}}")
        for number, level in LEVELS_OF_RESNET.items()
    ),
    (CAMERA + SPATIAL + r"(?:kernel|embeddings?|spatial_embeddings?)", "heads.{key}.0.weight"),
    (CAMERA + r"(?:spatial_?embed\w*|spatial|pool\w*)\.weight", "heads.{key}.0.weight"),
    (CAMERA + rf"(?:linear|proj\w*|fc|out\w*|head|head\.0)\.{LEAF}", "heads.{key}.1.{leaf}"),
    (CAMERA + rf"(?:norm|ln|layer_?norm|head\.1)\.{LEAF}", "heads.{key}.2.{leaf}"),
]
"""Names in the observation encoder, and what they are called in ours."""

VIB = r"(?:vib|bottleneck|ib)(?:_model|_module)?[._]"
INNER = r"(?:(?:trunk|net|mlp|layers|shared)\.)?"
BOTTLENECK = [
    (VIB + r"(?:encoder|enc|trunk)\." + INNER + rf"(?P<layer>\d+)\.{LEAF}", "trunk.{layer}.{leaf}"),
    (VIB + rf"(?:(?:encoder|enc)\.)?(?:fc_|head_)?(?:mean|mu)(?:_head|_layer|_net)?\.{LEAF}", "mean.{leaf}"),
    (VIB + rf"(?:(?:encoder|enc)\.)?(?:fc_|head_)?log_?var(?:_head|_layer|_net)?\.{LEAF}", "log_var.{leaf}"),
    (VIB + r"(?:decoder|dec)\." + INNER + rf"(?P<layer>\d+)\.{LEAF}", "decoder.{layer}.{leaf}"),
]
"""Names of the bottleneck, and what they are called in ours; its linear layers are counted, whatever their numbers."""


@dataclass(frozen=True)
class Flow:
    """Flow matching as the authors' U-Nets were trained with it; otherwise as :class:`Diffusion` is.

    :param sampling_steps: Of Euler's rule
    :raises ValueError: If there is none
    """

    sampling_steps: int

    def __post_init__(self) -> None:
        time_grid(self.sampling_steps)

    @classmethod
    def of(cls, settings: Mapping[str, Any], sampling_steps: int | None) -> Flow:
        """Return the flow of a scheduler's settings.

        :raises ValueError: If the schedule is another than that of levels 1/100 to 1
        """
        others = {name: value for name, value in settings.items() if (name, value) != ("shift", 1.0)}
        if others != {"num_train_timesteps": LEVELS}:
            raise ValueError(f"the flow's scheduler has the settings {dict(settings)}, not {LEVELS} equal levels")
        return cls(2 if sampling_steps is None else sampling_steps)

    def noise_shape(self, horizon: int, action_dim: int) -> tuple[int, ...]:
        """Return the shape of the noise of one prediction, (T, A)."""
        return horizon, action_dim

    def sample(self, denoiser: Denoiser, noise: th.Tensor) -> th.Tensor:
        """Return the actions (B, T, A) that noise (B, T, A) flows to."""
        return sample(_velocity(denoiser), noise, noise, self.sampling_steps)

    def loss(self, denoiser: Denoiser, actions: th.Tensor, noise: th.Tensor, times: th.Tensor) -> th.Tensor:
        """Return the flow-matching loss for actions and noise (B, T, A) at times (B,)."""
        return flow_loss(_velocity(denoiser), actions, noise, times, actions)


def _velocity(denoiser: Denoiser) -> Any:
    return lambda actions, times, _: denoiser(actions, LEVELS * times)


def encoder_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of an observation encoder, completed by what is known: a ResNet-18 with GroupNorm per camera.

    :param settings: Those of the checkpoint, whose crop and scaling are taken
    """
    model = {"_target_": "torchvision.models.get_resnet", "name": "resnet18"}
    return {"imagenet_norm": True, **settings, "rgb_model": model, "use_group_norm": True, "share_rgb_model": False}


def renamed_encoder(tensors: Mapping[str, th.Tensor], file: Path) -> dict[str, th.Tensor]:
    """Return an encoder's weights by the names of our :class:`ImageEncoder`.

    :param tensors: By their own names
    :param file: Where they are from
    :raises AdapterError: If names are not understood
    """
    renamed = _renamed(tensors, ENCODER, file)
    for name, value in renamed.items():
        if re.fullmatch(r"heads\.[^.]+\.0\.weight", name) and value.ndim == 4:  # C, H, W and maps
            renamed[name] = value.flatten(1, 2)
    return renamed


def embedded_features(tensors: Mapping[str, th.Tensor]) -> int | None:
    """Return the number of features of a camera with spatial embeddings; None for one without."""
    sizes = [len(value) for name, value in tensors.items() if re.fullmatch(r"heads\.[^.]+\.1\.bias", name)]
    return sizes[0] if sizes else None


def read_bottleneck(checkpoint: Checkpoint, context_dim: int) -> Bottleneck | None:
    """Return the bottleneck of a checkpoint, None if there is none.

    :param checkpoint: The file
    :param context_dim: C
    :raises AdapterError: If there are weights that are not understood, or it is of another size
    """
    rest = {
        k: v for k, v in checkpoint.tensors.items() if not k.startswith(("model.", "obs_encoder.", "mask_generator."))
    }
    if not rest:
        return None
    tensors = {}
    renamed = _renamed(rest, BOTTLENECK, checkpoint.path)
    for name, value in renamed.items():
        part, _, leaf = name.partition(".")
        if part in ("trunk", "decoder"):
            number, _, leaf = leaf.partition(".")
            numbers = sorted({int(other.split(".")[1]) for other in renamed if other.startswith(f"{part}.")})
            leaf = f"{2 * numbers.index(int(number))}.{leaf}"  # ours has an activation behind each
        tensors[f"{part}.{leaf}"] = value
    if "mean.weight" not in tensors:
        raise AdapterError(f"{checkpoint.path} has no mean among the weights of its bottleneck: {_first(list(rest))}")
    latent, hidden = tensors["mean.weight"].shape
    what = f"a bottleneck of {latent} for {context_dim} numbers"
    config = BottleneckConfig(latent, hidden)
    bottleneck = rebuilt(lambda: Bottleneck(context_dim, config), tensors, checkpoint.path, what)
    with th.no_grad():  # the authors' option to add 2 log α to the log variance
        bottleneck.log_var.bias.add_(2 * math.log(checkpoint.settings.get("vib_alpha", 1.0)))
    return bottleneck


def _renamed(tensors: Mapping[str, th.Tensor], table: Sequence[tuple[str, str]], file: Path) -> dict[str, th.Tensor]:
    found, unknown = {}, []
    for name, value in tensors.items():
        new = next((new.format(**m.groupdict()) for old, new in table if (m := re.fullmatch(old, name))), None)
        if new is None:
            unknown.append(name)
        else:
            found[new] = value
    if unknown:
        raise AdapterError(
            f"{file}: these weights are not understood: {_first(unknown)} "
            "(the names that are, and where to add others: zprl_sb3/adapters/zprl_authors.py)"
        )
    return found


def _first(names: list[str], shown: int = 20) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
