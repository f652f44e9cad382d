"""A policy of your own: any network of PyTorch, split by a function of yours into what embeds and what acts.

``zprl attach policy=my_policy.py:make demos=demos.hdf5 output=runs/mine``, with this in ``my_policy.py``::

    from pathlib import Path

    import torch as th
    from my_project import Network

    from zprl_sb3.adapters.module import SplitPolicy


    def make():
        network = Network()
        network.load_state_dict(th.load(Path(__file__).with_name("network.pt"), weights_only=True))
        return SplitPolicy(
            network,
            embed=lambda obs: network.encoder(th.cat([obs["proprio"], obs["object"]], dim=1)),
            act=network.head,  # (B, C) -> (B, T, A)
            observation_shapes={"proprio": (9,), "object": (10,)},
        )

Unlike the other adapters this one runs code: the file or module that you name is imported, and the function called.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import torch as th
from torch import nn

from zprl_sb3.adapters.base import AdaptedPolicy, AdapterError
from zprl_sb3.policy import Observation, check_chunk

TRIAL = 2  # observations in a trial


class SplitPolicy(AdaptedPolicy):
    """A network that two functions of yours split into what makes the context c, and what makes actions from c.

    Sizes are found by a trial with observations of zeros. The network is put in evaluation mode.

    :param network: What holds all weights that the two functions use, so that they are frozen and moved to a GPU, and
        tell this policy from others
    :param embed: c (B, C) of observations: by key, as the environment has them, float32 vectors (B, D) and images
        (B, H, W, 3) of bytes, or (B, n, ...) with a history
    :param act: Actions (B, T, A) in environment units of c (B, C), with gradients to c; and of noise (B, *noise_shape),
        as a second argument, if there is a noise shape. All that is random comes from this noise
    :param observation_shapes: Shape of each key of the environment's observation, in one frame
    :param noise_shape: Of the noise, from a standard normal, that one prediction takes; None: it takes none
    :param chunk: Executed actions; None: all T
    :param obs_steps: n, frames of history
    :param details: What else decides what the policy does, such as the steps of a sampler: two policies that differ
        there count as different ones
    :raises AdapterError: If the functions do not return what they should
    """

    def __init__(
        self,
        network: nn.Module,
        embed: Callable[[Observation], th.Tensor],
        act: Callable[..., th.Tensor],
        observation_shapes: Mapping[str, tuple[int, ...]],
        noise_shape: tuple[int, ...] | None = None,
        chunk: int | None = None,
        obs_steps: int = 1,
        details: Mapping[str, object] | None = None,
    ) -> None:
        first = next(chain(network.parameters(), network.buffers()), None)
        if first is None:
            raise AdapterError(f"the network {type(network).__name__} of a SplitPolicy has no weights")
        network.eval()
        noise = [] if noise_shape is None else [th.randn(TRIAL, *noise_shape, device=first.device)]
        with th.no_grad():
            context = _checked("embed", embed(zeros(observation_shapes, obs_steps, first.device)), "C")
            actions = _checked("act", act(context, *noise), "T, A")
        _, horizon, action_dim = actions.shape
        super().__init__(
            observation_shapes,
            action_dim,
            context.shape[1],
            horizon,
            horizon if chunk is None else chunk,
            obs_steps,
            noise_shape or (0,),
        )
        self.network = network
        self._embed, self._act, self._takes_noise = embed, act, noise_shape is not None
        self._details = dict(details or {})
        self.to(first.device)

    def context(self, obs: Observation) -> th.Tensor:
        """Return c (B, C)."""
        return self._embed({key: _single(obs[key]) for key in self.observation_shapes})

    def generate(self, context: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """Return actions (B, T, A)."""
        return self._act(context, noise) if self._takes_noise else self._act(context)

    def settings(self) -> dict[str, object]:
        """Return what, beside the weights, decides what the policy does, as far as it was said: code is not read."""
        return super().settings() | {"details": self._details}


def _single(values: th.Tensor) -> th.Tensor:
    """Return vectors in single precision, as networks take them. Many environments have them in double."""
    return values if values.dtype == th.uint8 else values.float()


def _checked(function: str, value: Any, sizes: str) -> th.Tensor:
    """Return what one of the functions returned for a trial.

    :raises AdapterError: If it is not a tensor (B, sizes)
    """
    found = tuple(value.shape) if isinstance(value, th.Tensor) else type(value).__name__
    if not isinstance(found, tuple) or len(found) != 2 + sizes.count(",") or found[0] != TRIAL or 0 in found:
        raise AdapterError(f"{function} must return a tensor (B, {sizes}); for B = {TRIAL} it returned {found}")
    return value  # type: ignore[no-any-return]


def zeros(shapes: Mapping[str, tuple[int, ...]], obs_steps: int, device: th.device) -> dict[str, th.Tensor]:
    """Return a trial's observations, as environments have them: images are bytes."""
    frames = (TRIAL, obs_steps) if obs_steps > 1 else (TRIAL,)
    kinds = {key: th.uint8 if len(shape) == 3 else th.float32 for key, shape in shapes.items()}
    return {key: th.zeros(*frames, *shape, dtype=kinds[key], device=device) for key, shape in shapes.items()}


def try_out(policy: AdaptedPolicy) -> None:
    """Let a policy act on observations of zeros, before any work is lost on it.

    :raises AdapterError: If shapes are not what it says, its actions are not finite, differ from one call to the next
        with the same noise, or pass no gradient to the context
    """
    context = policy.embed(zeros(policy.observation_shapes, policy.obs_steps, policy.device)).requires_grad_(True)
    noise = th.randn(TRIAL, *policy.noise_shape, device=policy.device)
    actions = policy.generate(context, noise)
    for name, found, sizes in (
        ("contexts", context.shape, (policy.context_dim,)),
        ("actions", actions.shape, (policy.horizon, policy.action_dim)),
    ):
        if found != (TRIAL, *sizes):
            raise AdapterError(f"its {name} are {tuple(found)}, not {(TRIAL, *sizes)} as its sizes say")
    if not (context.isfinite().all() and actions.isfinite().all()):
        raise AdapterError("its context or its actions are not finite for an observation of zeros")
    if not th.allclose(actions, policy.generate(context, noise), rtol=1e-3, atol=1e-5):
        raise AdapterError(
            "its actions differ from call to call: let it take noise (noise_shape) and draw nothing itself"
        )
    if not actions.requires_grad:
        raise AdapterError(
            "its actions pass no gradient to the context, which a bottleneck is trained by: "
            "is there a th.no_grad, detach or NumPy between them?"
        )


def load(path: str | Path, chunk: int | None = None, **arguments: Any) -> AdaptedPolicy:
    """Return the policy that a function of yours makes: the file or module that you name is imported, that is, runs.

    :param path: ``my_policy.py:make`` or ``package.module:make``
    :param chunk: Executed actions; None: the policy's own
    :param arguments: Of the function
    :raises AdapterError: If there is no such file, module or function, or what it returns is no policy that works;
        what your code itself raises is left as it is
    :raises ValueError: If the chunk does not fit the horizon
    """
    place, _, name = str(path).rpartition(":")
    if not place or not name.isidentifier():
        raise AdapterError(f"{path} is neither file.py:function nor package.module:function")
    with _findable(Path(place).resolve().parent if place.endswith(".py") else Path.cwd()):
        module = _file(Path(place)) if place.endswith(".py") else _module(place)
        function = getattr(module, name, None)
        if not callable(function):
            raise AdapterError(f"There is no function {name} in {place}, only {', '.join(_own(module)) or 'nothing'}")
        policy = function(**arguments)
    if not isinstance(policy, AdaptedPolicy):
        raise AdapterError(
            f"{path} returned a {type(policy).__name__}, not a policy: "
            "put it into a zprl_sb3.adapters.module.SplitPolicy, or return an AdaptedPolicy of your own"
        )
    policy.freeze()
    try:
        try_out(policy)
    except AdapterError as error:
        raise AdapterError(f"{path}: {error}") from error
    if chunk is not None:
        check_chunk(chunk, policy.horizon)
        policy.chunk = chunk
    return policy


@contextmanager
def _findable(folder: Path) -> Iterator[None]:
    """Let a folder's modules be imported, as Python does for a script's own folder."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _file(file: Path) -> ModuleType:
    if not file.is_file():
        raise AdapterError(f"There is no file {file}")
    name = f"_zprl_adapter_{file.stem}"  # no module of this name is there already
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise AdapterError(f"There is no module {error.name}. Is it installed, or in the working folder?") from error


def _own(module: ModuleType) -> list[str]:
    """Return the names of what a module itself defines and can be called."""
    return [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
