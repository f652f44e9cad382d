"""LeRobot's ACT: a transformer that reads tokens of state and images, and answers with a chunk of actions.

Zhao et al. 2023, "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware". The VAE that it was trained
with has no part in acting: its latent is 0, so there is no noise.

**What is steered.** A transformer has no single embedding. By default the context c is all that the encoder puts out,
every token, flattened: [latent, robot state, state of the environment, images' feature maps] of ``dim_model`` each.
The decoder's cross-attention reads c, or what a bottleneck makes of it, and nothing else of the observation; which
place each token has is a constant of the policy. A single token would not do: the decoder reads the others beside it,
so that they would have to be kept from when the context was made, and would tell it of an observation that the
steered token contradicts. The price is size. A camera's image of 84 x 84 pixels is 9 tokens of, usually, 512, one of
480 x 640 is 300, and c then has 154,000 dimensions: more than :data:`~zprl_sb3.adapters.base.MAX_CONTEXT`.

``steer="chunk"`` serves those: c is the chunk of actions that the policy answers with, normalised, and beside it the
normalised states, so that who sees c knows where the robot is. The bottleneck then learns what chunks of this policy
are like, and a steered latent is decoded to another such chunk; the states in c do not act.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

from zprl_sb3.adapters.base import MAX_CONTEXT, AdapterError
from zprl_sb3.adapters.lerobot_folder import ENVIRONMENT, STATE, Folder
from zprl_sb3.adapters.lerobot_policy import Inputs, LeRobotPolicy, action_size
from zprl_sb3.adapters.resnet import FrozenBatchNorm, map_shape, resnet
from zprl_sb3.adapters.weights import load_strictly
from zprl_sb3.policy import Observation

TEMPERATURE = 10_000  # of positional embeddings: the ratio of the slowest to the fastest wavelength
PROJECTIONS = {STATE: "encoder_robot_state_input_proj", ENVIRONMENT: "encoder_env_state_input_proj"}
ACTIVATIONS: dict[str, Callable[[th.Tensor], th.Tensor]] = {"relu": F.relu, "gelu": F.gelu}


@dataclass(frozen=True)
class LayerConfig:
    """Sizes of a transformer layer, by LeRobot's names."""

    dim_model: int
    n_heads: int
    dim_feedforward: int
    feedforward_activation: str
    pre_norm: bool


class Layer(nn.Module):
    """A layer of the transformer: self-attention, in a decoder cross-attention, and two linear layers.

    Positions are added to queries and keys, not to values (Carion et al. 2020). Each part has a skip connection and a
    LayerNorm, before it (``pre_norm``) or after it.
    """

    def __init__(self, config: LayerConfig, cross: bool) -> None:
        super().__init__()
        size, self.pre_norm = config.dim_model, config.pre_norm
        self.activation = ACTIVATIONS[config.feedforward_activation]
        self.self_attn = nn.MultiheadAttention(size, config.n_heads, batch_first=True)
        if cross:
            self.multihead_attn = nn.MultiheadAttention(size, config.n_heads, batch_first=True)
        self.linear1 = nn.Linear(size, config.dim_feedforward)
        self.linear2 = nn.Linear(config.dim_feedforward, size)
        self.norms = [f"norm{number}" for number in range(1, 4 if cross else 3)]
        for name in self.norms:
            setattr(self, name, nn.LayerNorm(size))

    def forward(self, x: th.Tensor, positions: th.Tensor, *memory: th.Tensor) -> th.Tensor:
        """Return the tokens (B, S, D).

        :param x: Tokens (B, S, D)
        :param positions: (S, D)
        :param memory: Keys and values that a decoder reads, (B, M, D) each
        """

        def own(tokens: th.Tensor) -> th.Tensor:
            placed = tokens + positions
            return _attended(self.self_attn, placed, placed, tokens)

        def cross(tokens: th.Tensor) -> th.Tensor:
            return _attended(self.multihead_attn, tokens + positions, *memory)

        def feed_forward(tokens: th.Tensor) -> th.Tensor:
            output: th.Tensor = self.linear2(self.activation(self.linear1(tokens)))
            return output

        parts = [own, cross, feed_forward] if memory else [own, feed_forward]
        for name, part in zip(self.norms, parts, strict=True):
            norm = getattr(self, name)
            x = x + part(norm(x)) if self.pre_norm else norm(x + part(x))
        return x


def _attended(attention: nn.Module, *inputs: th.Tensor) -> th.Tensor:
    output: th.Tensor = attention(*inputs, need_weights=False)[0]
    return output


class Stack(nn.Module):
    """Layers, and a LayerNorm where there is one at the end."""

    def __init__(self, config: LayerConfig, depth: int, cross: bool, norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, cross) for _ in range(depth))
        self.norm = nn.LayerNorm(config.dim_model) if norm else nn.Identity()

    def forward(self, x: th.Tensor, *others: th.Tensor) -> th.Tensor:
        for layer in self.layers:
            x = layer(x, *others)
        output: th.Tensor = self.norm(x)
        return output


def image_positions(height: int, width: int, size: int) -> th.Tensor:
    """Return the positional embedding of a feature map, (H * W, D): half of it tells the row, half the column.

    Rows and columns are counted from 1 and scaled to end at 2π; sine and cosine alternate.
    """
    frequencies = TEMPERATURE ** (-2 * (th.arange(size // 2) // 2) / (size // 2))

    def waves(count: int) -> th.Tensor:
        places = th.arange(1, count + 1) / (count + 1e-6) * 2 * math.pi
        phases = places[:, None] * frequencies
        return th.stack([phases[:, 0::2].sin(), phases[:, 1::2].cos()], dim=-1).flatten(1)

    rows = waves(height)[:, None].expand(-1, width, -1)
    columns = waves(width)[None].expand(height, -1, -1)
    return th.cat([rows, columns], dim=-1).flatten(0, 1)


class ActNetwork(nn.Module):
    """The networks that act, with LeRobot's names.

    :param config: LeRobot's configuration
    :param inputs: What the policy sees
    :param action_dim: A
    """

    def __init__(self, config: dict[str, Any], inputs: Inputs, action_dim: int) -> None:
        super().__init__()
        layer = LayerConfig(**{name: config[name] for name in LayerConfig.__dataclass_fields__})
        size, self.latent_dim = layer.dim_model, config["latent_dim"]
        self.encoder = Stack(layer, config["n_encoder_layers"], cross=False, norm=layer.pre_norm)
        self.decoder = Stack(layer, config["n_decoder_layers"], cross=True, norm=True)
        self.encoder_latent_input_proj = nn.Linear(self.latent_dim, size)
        self.projections = {name: PROJECTIONS[name] for name in inputs.vectors}
        for name, projection in self.projections.items():
            setattr(self, projection, nn.Linear(inputs.vectors[name], size))
        self.encoder_1d_feature_pos_embed = nn.Embedding(1 + len(inputs.vectors), size)
        places = [th.zeros(0, size)]
        if inputs.images:
            backbone = (config["vision_backbone"], bool(config["replace_final_stride_with_dilation"]))
            self.backbone = resnet(*backbone, norm=FrozenBatchNorm)
            maps = [map_shape(*backbone, shape[:2]) for shape in inputs.images.values()]
            self.encoder_img_feat_input_proj = nn.Conv2d(maps[0][0], size, kernel_size=1)
            places += [image_positions(height, width, size) for _, height, width in maps]
        self.image_places: th.Tensor
        self.register_buffer("image_places", th.cat(places), persistent=False)
        self.decoder_pos_embed = nn.Embedding(config["chunk_size"], size)
        self.action_head = nn.Linear(size, action_dim)

    @property
    def positions(self) -> th.Tensor:
        """Of the encoder's tokens, (S, D)."""
        return th.cat([self.encoder_1d_feature_pos_embed.weight, self.image_places])

    def encode(self, vectors: dict[str, th.Tensor], images: list[th.Tensor]) -> th.Tensor:
        """Return the encoder's tokens (B, S, D) for normalised states (B, D) and images (B, 3, H, W)."""
        example = [*vectors.values(), *images][0]
        latent = example.new_zeros(len(example), self.latent_dim)
        tokens = [self.encoder_latent_input_proj(latent)[:, None]]
        tokens += [getattr(self, self.projections[name])(vector)[:, None] for name, vector in vectors.items()]
        for image in images:
            tokens.append(self.encoder_img_feat_input_proj(self.backbone(image)).flatten(2).transpose(1, 2))
        encoded: th.Tensor = self.encoder(th.cat(tokens, dim=1), self.positions)
        return encoded

    def decode(self, tokens: th.Tensor) -> th.Tensor:
        """Return normalised actions (B, T, A) for the encoder's tokens."""
        queries = self.decoder_pos_embed.weight
        start = queries.new_zeros(len(tokens), *queries.shape)
        actions: th.Tensor = self.action_head(self.decoder(start, queries, tokens + self.positions, tokens))
        return actions


class ActPolicy(LeRobotPolicy):
    """ACT, whose context is all of the encoder's tokens, or the chunk that it answers with.

    :param folder: The checkpoint
    :param inputs: What the policy sees
    :param chunk: h; None: the policy's own
    :param steer: ``"tokens"`` or ``"chunk"``
    :raises AdapterError: If the context were too large, the folder holds something else, or ``steer`` has another name
    """

    architecture = (*LayerConfig.__dataclass_fields__, "vision_backbone", "replace_final_stride_with_dilation")

    def __init__(self, folder: Folder, inputs: Inputs, chunk: int | None, steer: str = "tokens") -> None:
        if steer not in ("tokens", "chunk"):
            raise AdapterError(f"the option steer is 'tokens' or 'chunk', not {steer!r}")
        config, self.steer = folder.config, steer
        network = ActNetwork(config, inputs, action_size(folder))
        tokens, self.token_dim = network.positions.shape
        size = config["chunk_size"] * action_size(folder) + sum(inputs.vectors.values())
        if steer == "tokens":
            _check_size(folder, inputs, tokens, self.token_dim)
            size = tokens * self.token_dim
        super().__init__(folder, inputs, size, config["chunk_size"], chunk)
        self.network = network
        weights = {
            name.removeprefix("model."): value
            for name, value in folder.weights.items()
            if not name.startswith("model.vae_encoder")  # only for training
        }
        what = f"ACT with {config['n_encoder_layers']} + {config['n_decoder_layers']} layers of {self.token_dim}"
        load_strictly(network, weights, folder.file, what)
        if config["temporal_ensemble_coeff"] is not None:
            warnings.warn(
                f"{folder.path} was meant for temporal ensembling, which is not used here: chunks are executed as they "
                f"are predicted, {self.chunk} of {self.horizon} actions at a time (option chunk)",
                stacklevel=2,
            )

    def context(self, obs: Observation) -> th.Tensor:
        vectors = {name: self.vector(obs, name)[:, 0] for name in self.inputs.vectors}
        images = [self.image(obs, name)[:, 0] for name in self.inputs.images]
        tokens = self.network.encode(vectors, images)
        if self.steer == "tokens":
            return tokens.flatten(1)
        return th.cat([self.network.decode(tokens).flatten(1), *vectors.values()], dim=1)

    def generate(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        if self.steer == "tokens":
            actions = self.network.decode(context.reshape(len(context), -1, self.token_dim))
        else:
            actions = context[:, : self.horizon * self.action_dim].reshape(-1, self.horizon, self.action_dim)
        return self.action_scaling.inverse(actions)

    def settings(self) -> dict[str, object]:
        return super().settings() | {"steer": self.steer}


def _check_size(folder: Folder, inputs: Inputs, tokens: int, token_dim: int) -> None:
    if tokens * token_dim > MAX_CONTEXT:
        shapes = {key: list(inputs.shapes[key]) for name in inputs.images for key in inputs.keys[name]}
        raise AdapterError(
            f"{folder.path}: the context would have {tokens * token_dim} dimensions, {tokens} tokens of {token_dim}; "
            f"what is steered may have at most {MAX_CONTEXT}. Steer the chunk of actions instead (option steer=chunk); "
            f"or, its images being {shapes}, let the environment render smaller ones, and say so by the option shapes"
        )
