"""Frozen policies computed by OpenVINO: on a CPU at least twice as fast as by PyTorch, where few act at once.

A policy that acts for one robot spends most of its time between the matrix products: calls, rearranged weights, layers
one by one. OpenVINO compiles all of it once, with weights packed for the processor, in a few seconds.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any, cast

import torch as th
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from zprl_sb3.bottleneck import Bottleneck
from zprl_sb3.policy import Observation, SteerablePolicy

MOST = 64  # rows that are computed here; more come from demonstrations, not from environments, and PyTorch is as fast
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
CHECKS = 2  # calls that are compared
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.1}  # of the largest number

Function = Callable[..., tuple[th.Tensor, ...]]


def with_openvino(policy: SteerablePolicy, precision: str = "float32") -> SteerablePolicy:
    """Return a frozen policy that is computed by OpenVINO and is otherwise the same: chunk, fingerprint, attributes.

    In float32 it differs in the last digits, in bfloat16 actions differ by up to three hundredths of the largest.
    Networks are compiled at the first call, in seconds, with as many threads as PyTorch has then; again for fewer
    rows, and for more than twice as many. The first calls are compared with the policy's own.

    :param policy: On a CPU
    :param precision: ``"float32"`` or ``"bfloat16"``
    :raises ImportError: If OpenVINO is not installed
    :raises ValueError: If the policy is not on a CPU, or there is no such precision, or not on this processor
    """
    if precision not in PRECISIONS:
        raise ValueError(f"OpenVINO computes in {' or '.join(PRECISIONS)}, not in {precision!r}")
    if policy.device.type != "cpu":
        raise ValueError(
            f"OpenVINO computes on the CPU, but the policy is on {policy.device}: load it with device='cpu'"
        )
    if precision not in precisions():
        raise ValueError(
            "This processor does not multiply bfloat16, OpenVINO would compute in float32: ask for float32"
        )
    return cast(SteerablePolicy, _Compiled(policy, precision))


def precisions() -> list[str]:
    """Return what OpenVINO computes in on this processor.

    :raises ImportError: If OpenVINO is not installed
    """
    _openvino()  # itself, since a core that is kept raises nothing
    has_bfloat16 = "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [name for name in PRECISIONS if name != "bfloat16" or has_bfloat16]


def _openvino() -> ModuleType:
    # It would report its use to Intel without asking; without this package, which it can do without, it does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise ImportError("OpenVINO is not installed: pip install 'zprl-sb3[openvino]'") from error
    return cast(ModuleType, openvino)


@lru_cache
def _core() -> Any:
    # One, kept: each has a stack for signals, and where several end in the order in which they began, the next Ctrl-C
    # or SIGTERM finds that of one which is gone, and ends the process.
    return _openvino().Core()


class _Delegate:
    """Has what something else has, but for what it has itself."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)


class _Compiled(_Delegate):
    def __init__(self, policy: SteerablePolicy, precision: str) -> None:
        super().__init__(policy)
        self.bottleneck = None if policy.bottleneck is None else _CompiledBottleneck(policy.bottleneck, precision)
        self._embed = _Graph(self._context, precision)
        self._act = _Graph(self._actions, precision)

    def _context(self, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        keys = list(self.inner.observation_shapes)
        return (self.inner.embed(dict(zip(keys, inputs, strict=False)), *inputs[len(keys) :]),)

    def _actions(self, condition: th.Tensor, noise: th.Tensor | None = None) -> tuple[th.Tensor, ...]:
        return (self.inner.act(condition, condition.new_zeros(len(condition), 0) if noise is None else noise),)

    def embed(self, obs: Observation, where: th.Tensor | None = None) -> th.Tensor:
        # Environments that promise float32 may give float64, which would be compiled anew.
        inputs = [
            obs[key].float() if obs[key].is_floating_point() else obs[key] for key in self.inner.observation_shapes
        ]
        return self._embed(*inputs, *([] if where is None else [where]))[0]

    def act(
        self, condition: th.Tensor, noise: th.Tensor | None = None, generator: th.Generator | None = None
    ) -> th.Tensor:
        if noise is None:
            noise = th.randn((len(condition), *self.inner.noise_shape), generator=generator)
        return self._act(condition, *([noise] if noise.numel() else []))[0]

    def set_sampling_steps(self, steps: int) -> None:
        raise ValueError(
            f"Set the {steps} steps before OpenVINO compiles the policy: load_policy(sampling_steps={steps})"
        )

    def freeze(self) -> _Compiled:
        return self

    def eval(self) -> _Compiled:
        return self


class _CompiledBottleneck(_Delegate):
    def __init__(self, bottleneck: Bottleneck, precision: str) -> None:
        super().__init__(bottleneck)
        self._encode = _Graph(bottleneck.encode, precision)
        self._decode = _Graph(self._condition, precision)

    def _condition(self, latent: th.Tensor) -> tuple[th.Tensor, ...]:
        return (self.inner.decode(latent),)

    def encode(self, context: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        mean, std = self._encode(context)
        return mean, std

    def decode(self, latent: th.Tensor) -> th.Tensor:
        return self._decode(latent)[0]


class _Graph:
    """A function of tensors, compiled for the shapes and types that it is given.

    :param function: From tensors (B, ...) to tensors, without randomness and without decisions by their values
    :param precision: One of :data:`PRECISIONS`
    """

    def __init__(self, function: Function, precision: str) -> None:
        self.function, self.precision = function, precision
        self.compiled: dict[Any, dict[int, _Checked]] = {}  # by all but the rows, then by rows

    @th.no_grad()
    def __call__(self, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        """Return what the function does, for at most :data:`MOST` rows by OpenVINO.

        :raises RuntimeError: If OpenVINO cannot compile the function, or then computes something else
        """
        rows = len(inputs[0])
        if not 0 < rows <= MOST:
            return self.function(*inputs)
        compiled = self.compiled.setdefault(tuple((x.shape[1:], x.dtype) for x in inputs), {})
        if rows not in compiled:
            # The last observations of episodes come with the first of the next: not a graph for each such number.
            if fewer := min((count for count in compiled if count < rows <= 2 * count), default=None):
                return self._in_two_turns(compiled[fewer], fewer, inputs)
            self.function(*inputs)  # first: what a policy computes once and keeps is to be a constant
            compiled[rows] = _Checked(self._compile(inputs), self.function, TOLERANCES[self.precision])
        return compiled[rows](*inputs)

    def _in_two_turns(self, compiled: _Checked, count: int, inputs: tuple[th.Tensor, ...]) -> tuple[th.Tensor, ...]:
        """Return the results of the first ``count`` rows, and of those that remain of the last ``count`` rows."""
        rows = len(inputs[0])
        first, last = compiled(*(x[:count] for x in inputs)), compiled(*(x[rows - count :] for x in inputs))
        return tuple(th.cat([a, b[2 * count - rows :]]) for a, b in zip(first, last, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"compiled": {}}  # which another process compiles itself

    def _compile(self, inputs: tuple[th.Tensor, ...]) -> Function:
        openvino = _openvino()
        settings = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.precision],
            "INFERENCE_NUM_THREADS": th.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        shapes = [tuple(x.shape) for x in inputs]
        try:
            with _Rewriting(), _quietly():
                example = tuple(map(_other, inputs))
                model = openvino.convert_model(_Module(self.function), example_input=example, input=shapes)
            request = _core().compile_model(model, "CPU", settings).create_infer_request()
        except Exception as error:
            reason = " ".join(str(error.__cause__ or error).split())[:300] or type(error).__name__
            raise RuntimeError(f"OpenVINO cannot compile this policy, use it without: {reason}") from error

        # Calls with arguments and results of OpenVINO's own making would take several times as long as these copies.
        places = [th.from_numpy(tensor.data) for tensor in request.input_tensors]
        results = [th.from_numpy(tensor.data) for tensor in request.output_tensors]

        def call(*inputs: th.Tensor) -> tuple[th.Tensor, ...]:
            for place, values in zip(places, inputs, strict=True):
                place.copy_(values)
            request.infer({})
            return tuple(result.clone() for result in results)

        return call


class _Checked:
    """A compiled function whose first results are compared with those of the function itself.

    They would differ where a policy draws numbers or decides by values: what it did with the values that it was traced
    with became constants. The first call may be the one with zeros that environments are made with, so it is no proof.

    :param compiled: What is called
    :param function: What it was compiled from
    :param tolerance: Of the largest number
    """

    def __init__(self, compiled: Function, function: Function, tolerance: float) -> None:
        self.compiled, self.function, self.tolerance = compiled, function, tolerance
        self.left = CHECKS

    def __call__(self, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        found = self.compiled(*inputs)
        if self.left:
            expected = self.function(*inputs)
            if all(values.isfinite().all() for values in expected):  # of zeros may come anything
                self._compare(found, expected)
                self.left -= 1
        return found

    def _compare(self, found: tuple[th.Tensor, ...], expected: tuple[th.Tensor, ...]) -> None:
        for mine, theirs in zip(expected, found, strict=True):
            error, largest = (mine - theirs).abs().max(), mine.abs().max().clamp(min=0.1)
            if not error <= self.tolerance * largest:
                raise RuntimeError(
                    f"OpenVINO's results differ from this policy's by up to {error:.2g}, with numbers up to "
                    f"{largest:.2g}: use it without"
                )


def _other(x: th.Tensor) -> th.Tensor:
    """Return random values like x; floats from 0 to 1, as places of crops are. No seed of anyone's is touched."""
    generator = th.Generator().manual_seed(0)
    if x.is_floating_point():
        return th.rand(x.shape, generator=generator, dtype=x.dtype)
    return th.randint(0, 2 if x.dtype == th.bool else 100, x.shape, generator=generator).to(x.dtype)


class _Module(nn.Module):
    """A function as the module that a conversion starts from."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        return self.function(*inputs)


class _Rewriting(TorchFunctionMode):
    """Writes GroupNorm in terms of LayerNorm: OpenVINO 2025.4 to 2026.4 crash where they compile it in a ResNet."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_group_norm if func is F.group_norm else func)(*args, **(kwargs or {}))


def _group_norm(
    x: th.Tensor, num_groups: int, weight: th.Tensor | None = None, bias: th.Tensor | None = None, eps: float = 1e-5
) -> th.Tensor:
    """GroupNorm as LayerNorm of the groups."""
    groups = x.reshape(len(x), num_groups, -1)
    normal = F.layer_norm(groups, groups.shape[2:], eps=eps).reshape(x.shape)
    per_channel = (1, -1, *[1] * (x.dim() - 2))
    normal = normal if weight is None else normal * weight.reshape(per_channel)
    return normal if bias is None else normal + bias.reshape(per_channel)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the tracer's warnings: what it takes for constants are shapes, for which a graph is compiled.

    The root logger keeps its level, which a conversion that fails would leave at another.
    """
    level = logging.root.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.root.setLevel(level)
