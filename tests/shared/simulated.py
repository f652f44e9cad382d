"""What every simulated task has to do, whichever its simulator: seeds, stored states, cameras. Import as ``simulated``.

Environments are made by the tests, which know what they cost. Where a check acts, ``actions`` is called right after a
reset with the environment, a generator and a number, and returns that many actions.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from zprl_sb3.robot_envs import UnstableSimulationError

Env = gym.Env[Any, Any]
Array = NDArray[Any]
Actions = Callable[[Env, np.random.Generator, int], Array]

FRAMES = Path(__file__).parents[1] / "robot_envs" / "frames"


_MADE: dict[Any, Env] = {}


def make_once(env_id: str, copy: int = 0, **kwargs: Any) -> Env:
    """Return an environment that a module's tests share, as it takes seconds to make: each starts with a reset.

    :param env_id: Registered with Gymnasium
    :param copy: Another number for another environment
    :param kwargs: Of ``gym.make``, hashable
    """
    key = (env_id, copy, *sorted(kwargs.items()))
    if key not in _MADE:
        _MADE[key] = gym.make(env_id, **kwargs)
    return _MADE[key]


def close_all() -> None:
    """Close what :func:`make_once` made: robosuite's models ask for 1.2 GB of memory each, if they do not touch it."""
    while _MADE:
        _MADE.popitem()[1].close()
    gc.collect()  # Their parts hold each other.


def random_actions(env: Env, rng: np.random.Generator, steps: int) -> Array:
    """Return actions from all over a bounded action space."""
    space: Any = env.action_space
    return rng.uniform(space.low, space.high, (steps, *space.shape)).astype(np.float32)


def rollout(env: Env, seed: int, steps: int, actions: Actions = random_actions) -> Array:
    """Return all that an agent or a demonstration file sees of the first steps of an episode."""
    observation, _ = env.reset(seed=seed)
    simulated: Any = env.unwrapped
    seen: list[Array] = []
    reward: Any = 0.0
    for action in actions(env, np.random.default_rng(seed), steps):
        seen.append(np.concatenate([*observation.values(), simulated.get_state(), [reward]]))
        observation, reward, terminated, *_ = env.step(action)
        if terminated:
            break
    return np.stack(seen)


def check_seeded_rollouts(*envs: Env, steps: int, actions: Actions = random_actions) -> None:
    """A seed fixes the rollout bit by bit, in each of these environments and whatever happened before."""
    first, other = (rollout(envs[0], seed, steps, actions) for seed in (5, 6))
    both = min(len(first), len(other))
    assert (other[:both] != first[:both]).any()
    rollout(envs[0], 6, 3, actions)  # left in the middle of an episode
    for env in envs:
        np.testing.assert_array_equal(rollout(env, 5, steps, actions), first)


def check_layouts(env: Env, seeds: int) -> None:
    """Seeds give distinct layouts, and resets without a seed go on from the last one."""

    def layouts() -> list[Array]:
        return [env.reset(seed=3)[0]["object"]] + [env.reset()[0]["object"] for _ in range(3)]

    first = layouts()
    assert len({layout.tobytes() for layout in first}) == 4
    np.testing.assert_array_equal(layouts(), first)
    assert len({env.reset(seed=seed)[0]["object"].tobytes() for seed in range(seeds)}) == seeds


def check_global_generator(env: Env) -> None:
    """A reset leaves numpy's global generator alone."""
    before: Any = np.random.get_state()
    state = before[1].copy()
    env.reset(seed=0)
    after: Any = np.random.get_state()
    np.testing.assert_array_equal(after[1], state)


def check_stored_states(env: Env, actions: Actions = random_actions, elsewhere: bool = False) -> None:
    """States of an episode can be set again and then show the same images.

    :param env: With image observations
    :param actions: What to do between the states
    :param elsewhere: Set them in an episode with another layout
    """
    simulated: Any = env.unwrapped
    observation, _ = env.reset(seed=0)
    seen = []
    for action in actions(env, np.random.default_rng(0), 3):
        seen.append((simulated.get_state(), observation))
        observation, *_ = env.step(action)
    if elsewhere:
        other, _ = env.reset(seed=1)
        assert all((other[key] != image).any() for key, image in seen[0][1].items() if image.ndim == 3)
    for state, shown in seen:
        simulated.set_state(state)
        np.testing.assert_array_equal(simulated.get_state(), state)
        for key, image in simulated.images().items():
            np.testing.assert_array_equal(image, shown[key])
    with pytest.raises(ValueError, match="values, not"):
        simulated.set_state(seen[0][0][1:])


def check_instability(env: Env, action: Array, message: str, steps: int = 0) -> None:
    """A simulation that diverges is not hidden, and a reset mends it.

    :param env: An environment
    :param action: One that does no harm
    :param message: What the error says, a regular expression
    :param steps: Steps before it diverges
    """
    simulated: Any = env.unwrapped
    simulated.reset(seed=0)
    for _ in range(steps):
        simulated.step(action)
    simulated.data.qvel[0] = np.nan
    with pytest.raises(UnstableSimulationError, match=message):
        simulated.step(action)
    simulated.reset(seed=0)
    simulated.step(action)


def check_cameras(env: Env, cameras: Sequence[str]) -> None:
    """These cameras are observed, and no others."""
    keys = {"proprio", *(f"{camera}_image" for camera in cameras)}
    space: Any = env.observation_space
    assert set(space) == keys
    assert set(env.reset(seed=0)[0]) == keys


def check_frame(env: Env, camera: str, file: str) -> None:
    """A camera that is observed shows what it did when somebody looked: ``file`` in ``tests/robot_envs/frames``."""
    simulated: Any = env.unwrapped
    simulated.reset(seed=0)
    frame = simulated.images()[f"{camera}_image"]
    assert frame.shape == (84, 84, 3)
    assert frame.dtype == np.uint8
    expected = np.asarray(Image.open(FRAMES / file))

    def difference(image: Array) -> float:
        return float(np.abs(image.astype(int) - expected).mean())

    # Other drivers and versions of OpenGL round differently at edges; upside down or turned is far from it.
    assert difference(frame) < 4
    for wrong in (frame[::-1], frame[::-1, ::-1]):
        assert difference(wrong) > 3 * difference(frame) + 4
