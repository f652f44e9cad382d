"""What runs in the process of one environment. Nothing here imports torch: it would take seconds and memory in each."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium as gym

from zprl_sb3.wrappers.action_chunk import layers


def work(remote: Connection, pickled: bytes) -> None:
    """Make an environment and do with it what comes through the pipe, as SB3's ``SubprocVecEnv`` sends it.

    :param remote: (name of a command, its data) comes in, the answer goes out
    :param pickled: A function without arguments that makes the environment, by cloudpickle
    """
    # Ctrl-C reaches every process of the terminal, but what then becomes of a run is for the main one to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    env: gym.Env[Any, Any] = cloudpickle.loads(pickled)()
    commands: dict[str, Callable[[Any], Any]] = {
        "step": lambda action: _step(env, action),
        "reset": lambda data: env.reset(seed=data[0], **({"options": data[1]} if data[1] else {})),
        "render": lambda _: env.render(),
        "get_spaces": lambda _: (env.observation_space, env.action_space),
        "env_method": lambda data: env.get_wrapper_attr(data[0])(*data[1], **data[2]),
        "get_attr": env.get_wrapper_attr,
        "has_attr": env.has_wrapper_attr,
        "set_attr": lambda data: setattr(env, *data),
        "is_wrapped": lambda wrapper: any(isinstance(layer, wrapper) for layer in layers(env)),
    }
    try:
        while (command := receive(remote)) is not None:
            name, data = command
            answer(remote, commands[name](data))
    finally:
        env.close()


def receive(remote: Connection) -> Any:
    """Return what comes through a pipe, or None when the other end is closed."""
    try:
        return remote.recv()
    except (EOFError, ConnectionError):
        return None


def answer(remote: Connection, what: Any) -> None:
    """Send something, unless the other end is closed, which :func:`receive` will tell."""
    with suppress(ConnectionError):
        remote.send(what)


def _step(env: gym.Env[Any, Any], action: Any) -> tuple[Any, float, bool, dict[str, Any], dict[str, Any]]:
    obs, reward, terminated, truncated, info = env.step(action)
    info["TimeLimit.truncated"] = truncated and not terminated
    reset_info: dict[str, Any] = {}
    if terminated or truncated:
        info["terminal_observation"] = obs
        obs, reset_info = env.reset()
    return obs, float(reward), terminated or truncated, info, reset_info
