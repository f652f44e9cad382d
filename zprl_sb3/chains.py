"""Chains of layers on a CPU: MLPs in one step of autograd instead of one per layer, with the faster matrix products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

import torch as th
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zprl_sb3.products import product

Tensors = tuple[Any, ...]


class _Linear:
    """A step keeps what its backward needs, but not its output: the last one holds the chain, and with it the step."""

    before = 0  # columns of x that no gradient is wanted for

    def __init__(self, layer: nn.Linear, weights: Tensors) -> None:
        self.weights = weights

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.x = x
        self.weight, bias = (each.to(x.dtype) for each in self.weights)
        return product(x, self.weight, bias)

    def backward(self, grad: th.Tensor, learns: bool) -> tuple[th.Tensor, Tensors]:
        of_weights = (product(grad.t(), self.x.t()), grad.sum(dim=0)) if learns else (None, None)
        return grad @ self.weight[:, self.before :] if self.before else product(grad, self.weight.t()), of_weights


class _LayerNorm:
    def __init__(self, layer: nn.LayerNorm, weights: Tensors) -> None:
        self.layer, self.weights = layer, weights

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.x = x
        shape, (weight, bias) = self.layer.normalized_shape, self.weights
        output, *self.moments = th.native_layer_norm(x, shape, weight, bias, self.layer.eps)
        return output

    def backward(self, grad: th.Tensor, learns: bool) -> tuple[th.Tensor, Tensors]:
        arguments = (self.layer.normalized_shape, *self.moments, *self.weights, [True, learns, learns])
        of_x, *of_weights = th.ops.aten.native_layer_norm_backward.default(grad, self.x, *arguments)
        return of_x, tuple(of_weights)


class _GELU:
    def __init__(self, layer: nn.GELU, weights: Tensors) -> None:
        self.layer = layer

    def forward(self, x: th.Tensor) -> th.Tensor:
        self.x = x
        return F.gelu(x, approximate=self.layer.approximate)

    def backward(self, grad: th.Tensor, learns: bool) -> tuple[th.Tensor, Tensors]:
        return th.ops.aten.gelu_backward.default(grad, self.x, approximate=self.layer.approximate), ()


Step = _Linear | _LayerNorm | _GELU
STEPS: dict[type[nn.Module], type[Step]] = {nn.Linear: _Linear, nn.LayerNorm: _LayerNorm, nn.GELU: _GELU}


def can_chain(layers: Iterable[nn.Module], device: th.device) -> bool:
    """Whether :func:`run_chains` knows these layers and is the faster way there."""
    return device.type == "cpu" and all(type(layer) in STEPS for layer in layers)


def run_chains(chains: Sequence[Iterable[nn.Module]], context: th.Tensor, latent: th.Tensor) -> Tensors:
    """Return what each of several chains of layers makes of [c, z]: n tensors (B, out), in bfloat16 under autocast.

    Gradients reach z and the weights that want them, but not c, where most of the first layer's would be.

    :param chains: n times layers of the types in :data:`STEPS`, a linear one first
    :param context: c (B, C)
    :param latent: z (B, d)
    """
    weights = [weight for layers in chains for layer in layers for weight in layer._parameters.values()]
    dtype = th.get_autocast_dtype("cpu") if th.is_autocast_enabled("cpu") else context.dtype
    outputs: Tensors = _Chains.apply(chains, dtype, context, latent, *weights)  # type: ignore[no-untyped-call]
    return outputs


class _Chains(th.autograd.Function):
    """One step of autograd from [c, z] to the ends of all chains."""

    @staticmethod
    def forward(
        ctx: Any, chains: Any, dtype: th.dtype, context: th.Tensor, latent: th.Tensor, *weights: Any
    ) -> Tensors:
        inputs = th.cat([context, latent], dim=1).to(dtype)
        remaining, outputs, ctx.chains = iter(weights), [], []
        for layers in chains:
            steps: list[Any] = [
                STEPS[type(layer)](layer, tuple(islice(remaining, len(layer._parameters)))) for layer in layers
            ]
            steps[0].before = (context if ctx.needs_input_grad[3] else inputs).shape[1]
            x = inputs
            for step in steps:
                x = step.forward(x)
            ctx.chains.append(steps)
            outputs.append(x)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: th.Tensor) -> tuple[Any, ...]:
        learns = any(ctx.needs_input_grad[4:])
        of_latent: th.Tensor | int = 0
        of_weights: list[Tensors] = []
        for steps, grad in zip(ctx.chains, grads, strict=True):
            own = []
            for step in reversed(steps):
                grad, of_step = step.backward(grad, learns)
                own.append(of_step)
            of_latent = of_latent + grad
            of_weights += reversed(own)
        return None, None, None, of_latent if ctx.needs_input_grad[3] else None, *chain.from_iterable(of_weights)
