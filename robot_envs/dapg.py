"""Demonstrators of the Adroit tasks: the public expert policies of DAPG, made as imperfect as wanted."""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from zprl_sb3.foreign_pickles import Stub, read_foreign_pickle
from zprl_sb3.robot_envs.adroit import AdroitEnv
from zprl_sb3.robot_envs.demonstrators import Graded

Array = NDArray[np.float64]

WHERE = (
    "The expert policies are public: folder dapg/policies of the DAPG authors' repository aravindr93/hand_dapg on "
    "GitHub, one pickle per task. Say where the file is, e.g. --set expert=downloads/door-v0.pickle"
)
AFFINE = ("in_shift", "in_scale", "out_shift", "out_scale")


@dataclass(frozen=True)
class Operator(Graded):
    """Who demonstrates a task of the Adroit hand.

    :param quality: ``"better"``, ``"okay"`` or ``"worse"``
    :param noise: Gaussian noise on every action, as a multiple of the noise with which the expert was trained; an
        action lasts two of the steps of then, and so does its noise
    :param random: Probability that an action is a uniformly random one
    """

    noise: float
    random: float


@dataclass(frozen=True)
class Expert:
    """A Gaussian policy with tanh between its layers.

    :param layers: Weight (out, in) and bias (out,) of each
    :param in_shift: Subtracted from the observation
    :param in_scale: By which that is divided
    :param out_shift: Added to the output
    :param out_scale: By which that is multiplied before
    :param log_std: Logarithm of the noise with which it was trained
    :raises ValueError: If the sizes do not fit together
    """

    layers: tuple[tuple[Array, Array], ...]
    in_shift: Array
    in_scale: Array
    out_shift: Array
    out_scale: Array
    log_std: Array

    def __post_init__(self) -> None:
        size = len(self.in_shift)
        for weight, bias in self.layers:
            if weight.shape != (len(bias), size):
                raise ValueError(f"a layer's weight is {weight.shape}, not {(len(bias), size)}")
            size = len(bias)
        sizes = {name: getattr(self, name).shape for name in ("out_shift", "out_scale", "log_std")}
        if set(sizes.values()) != {(size,)} or self.in_scale.shape != self.in_shift.shape:
            raise ValueError(f"{size} actions and {len(self.in_shift)} inputs do not go with {sizes}")

    def mean(self, observation: Array) -> Array:
        """Return the action without noise, which may leave [−1, 1]."""
        hidden = (observation - self.in_shift) / (self.in_scale + 1e-8)
        for k, (weight, bias) in enumerate(self.layers):
            hidden = weight @ (np.tanh(hidden) if k else hidden) + bias
        return np.asarray(hidden * self.out_scale + self.out_shift)


def load_expert(path: str | Path | None) -> Expert:
    """Read an expert: a pickle of DAPG, whose code is not run, or its weights as ``.npz``.

    Arrays of an ``.npz``: ``w0``, ``b0``, ``w1``, …, ``in_shift``, ``in_scale``, ``out_shift``, ``out_scale``,
    ``log_std``.

    :param path: The file
    :raises FileNotFoundError: If there is none; says where to get it
    :raises UnsafePickleError: If a pickle asks for anything that a policy does not need
    :raises ValueError: If the file is something else or damaged
    """
    if path is None:
        raise FileNotFoundError(f"The demonstrations need an expert policy. {WHERE}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no expert policy {path}. {WHERE}")
    return _load(Path(path).resolve(), Path(path).stat().st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _load(path: Path, _: int) -> Expert:
    archive = zipfile.is_zipfile(path)
    # Outside of the try: what is wrong with the pickle itself is said by its reader.
    content: Any = path if archive else read_foreign_pickle(path)
    try:
        return _of_arrays(content) if archive else _of_policy(content)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no expert policy of DAPG: {error!r}. {WHERE}") from error


def _of_arrays(path: Path) -> Expert:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name].astype(np.float64) for name in file.files}
    names = sorted(name[1:] for name in arrays if name.startswith("w"))
    layers = tuple((arrays[f"w{k}"], arrays[f"b{k}"]) for k in names)
    return Expert(layers, log_std=arrays["log_std"], **{name: arrays[name] for name in AFFINE})


def _of_policy(policy: Stub) -> Expert:
    network = policy.state["model"].state
    layers = tuple(_layers(network))
    log_std = policy.state.get("log_std_val", policy.state.get("log_std"))
    return Expert(layers, log_std=_array(log_std), **{name: _array(network[name]) for name in AFFINE})


def _layers(module: Mapping[str, Any]) -> Iterator[tuple[Array, Array]]:
    parameters = _table(module["_parameters"])
    if "weight" in parameters:
        yield _array(parameters["weight"]), _array(parameters["bias"])
    for child in _table(module["_modules"]).values():
        yield from _layers(child.state)


def _table(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Stub):
        return dict(value)
    # An ordered dictionary: Python 2 gave it its items when it was made.
    return dict(*value.arguments) | value.items


def _array(value: Any) -> Array:
    # Older versions of torch wrap parameters in a class, which is a stub here.
    values = np.asarray(value.arguments[0] if isinstance(value, Stub) else value, dtype=np.float64)
    return values if values.ndim == 2 else values.reshape(-1)


class ExpertDemonstrator:
    """An expert policy with an operator's faults, for one episode.

    Holding its actions for two simulator steps, as the environment does, does not make it worse: without noise it
    succeeds as often as at its own rate. Its noise lasts longer, however, and so does more harm.

    :param env: The environment to act in, wrapped or not
    :param operator: How well it acts
    :param rng: Source of all randomness of this episode
    :param expert: File of the expert policy, see :func:`load_expert`
    :raises ValueError: If the environment is none of the Adroit hand's, or the expert is for another task
    :raises FileNotFoundError: If there is no such file
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        operator: Operator,
        rng: np.random.Generator,
        expert: str | Path | None,
    ) -> None:
        if not isinstance(env.unwrapped, AdroitEnv):
            raise ValueError(f"There is an expert policy for the Adroit hand's tasks only, not for {env}")
        self.operator = operator
        self._env, self._rng = env.unwrapped, rng
        self._expert = load_expert(expert)
        size, actions = len(self._env.raw_observation), self._env.model.nu
        if (len(self._expert.in_shift), len(self._expert.out_shift)) != (size, actions):
            raise ValueError(
                f"The expert {expert} has {len(self._expert.in_shift)} inputs and {len(self._expert.out_shift)} "
                f"actions; {self._env.name} has {size} and {actions}. Is it for another task?"
            )

    def act(self) -> NDArray[np.float32]:
        """Return the next action in [−1, 1] for the environment's present state."""
        size = len(self._expert.log_std)
        if self._rng.random() < self.operator.random:
            return self._rng.uniform(-1.0, 1.0, size).astype(np.float32)
        noise = self.operator.noise * np.exp(self._expert.log_std) * self._rng.normal(0.0, 1.0, size)
        action: Array = np.clip(self._expert.mean(self._env.raw_observation) + noise, -1.0, 1.0)
        return action.astype(np.float32)
