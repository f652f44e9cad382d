"""The replay buffer against a list of everything that was ever stored."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import psutil
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from zprl_sb3.replay import SteeringReplayBuffer

C, D = 3, 2
SPACE = spaces.Dict({"c": spaces.Box(-np.inf, np.inf, (C,)), "z": spaces.Box(-np.inf, np.inf, (D,))})
ACTIONS = spaces.Box(-1, 1, (D,))


def make(size: int, n_envs: int = 1, **kwargs: Any) -> SteeringReplayBuffer:
    return SteeringReplayBuffer(size, SPACE, ACTIONS, "cpu", n_envs, **({"n_steps": 1} | kwargs))


class World:
    """Environments with random numbers for everything, and a list of what happened."""

    def __init__(self, n_envs: int, seed: int, ending: float = 0.2) -> None:
        self.n, self.rng, self.ending = n_envs, np.random.default_rng(seed), ending
        self.obs = self.draw()
        self.history: list[dict[str, Any]] = []

    def draw(self) -> dict[str, Any]:
        return {key: self.rng.normal(size=(self.n, size)).astype(np.float32) for key, size in (("c", C), ("z", D))}

    def reset(self) -> None:
        self.obs = self.draw()

    def step(self, buffer: SteeringReplayBuffer) -> None:
        following, action = self.draw(), self.rng.uniform(-1, 1, (self.n, D)).astype(np.float32)
        reward, done = self.rng.normal(size=self.n).astype(np.float32), self.rng.random(self.n) < self.ending
        timeout = done & (self.rng.random(self.n) < 0.5)
        infos = [{"TimeLimit.truncated": bool(late)} for late in timeout]
        buffer.add(self.obs, following, action, reward, done, infos)
        for k in range(self.n):
            self.history.append(
                {
                    "c": self.obs["c"][k],
                    "z": self.obs["z"][k],
                    "next_c": following["c"][k],
                    "next_z": following["z"][k],
                    "delta": action[k],
                    "reward": reward[k],
                    "done": done[k],
                    "timeout": timeout[k],
                }
            )
        fresh = self.draw()
        self.obs = {key: np.where(done[:, None], fresh[key], following[key]) for key in fresh}


def content(buffer: SteeringReplayBuffer) -> list[dict[str, Any]]:
    """All samples in their order."""
    batch = buffer._get_samples(np.arange(buffer.size()))
    return [
        {
            "c": batch.observations["c"][k].numpy(),
            "z": batch.observations["z"][k].numpy(),
            "next_c": batch.next_observations["c"][k].numpy(),
            "next_z": batch.next_observations["z"][k].numpy(),
            "delta": batch.actions[k].numpy(),
            "reward": batch.rewards[k, 0].item(),
            "done": batch.dones[k, 0].item(),
            "discount": None if batch.discounts is None else batch.discounts[k, 0].item(),
        }
        for k in range(buffer.size())
    ]


def assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]], *keys: str) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        for key in keys:
            np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-5, atol=1e-6)


STORED = ("c", "z", "next_c", "next_z", "delta", "reward", "done")


@settings(deadline=None, max_examples=40)
@given(
    n_envs=st.integers(1, 4),
    size=st.integers(4, 90),
    steps=st.integers(1, 60),
    ending=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_it_holds_the_newest_transitions_as_they_were(
    n_envs: int, size: int, steps: int, ending: float, seed: int
) -> None:
    world, buffer = World(n_envs, seed, ending), make(size, n_envs, handle_timeout_termination=False)
    for step in range(steps):
        if step == steps // 2:
            world.reset()  # from outside, as between two calls of learn
        world.step(buffer)
    kept = buffer.size()
    # Every episode's end takes one row more; with episodes of a single chunk half of the rows are such ends.
    assert kept == min(size, len(world.history)) or kept >= (buffer.rows - 2 * n_envs) // 2 - n_envs
    assert_equal(content(buffer), world.history[-kept:], *STORED)


def test_episodes_of_usual_length_fill_it_whole() -> None:
    world, buffer = World(4, 0, ending=0.01), make(640, 4)
    for _ in range(400):
        world.step(buffer)
    assert buffer.size() == 640


def test_a_time_out_is_terminal_or_not() -> None:
    world = World(3, 0)
    terminal, bootstrapped = make(150, 3, handle_timeout_termination=False), make(150, 3)
    for buffer in (terminal, bootstrapped):
        world = World(3, 0)
        for _ in range(30):
            world.step(buffer)
    assert any(each["timeout"] for each in world.history)
    assert [each["done"] for each in content(terminal)] == [each["done"] for each in world.history]
    assert [each["done"] for each in content(bootstrapped)] == [
        each["done"] and not each["timeout"] for each in world.history
    ]


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("n_steps", [2, 5])
@pytest.mark.parametrize("steps", [12, 50])
def test_sums_of_rewards_end_with_the_episode_or_the_data(n_envs: int, n_steps: int, steps: int) -> None:
    world, gamma = World(n_envs, 1), 0.9
    buffer = make(60, n_envs, n_steps=n_steps, gamma=gamma)
    world.step(buffer)
    buffer._tables["reward"][n_envs:] = th.nan  # as memory may hold before anything is written there
    for _ in range(steps):
        world.step(buffer)
    expected = []
    for k in range(len(world.history) - buffer.size(), len(world.history)):
        chain = [k]
        while len(chain) < n_steps and not world.history[chain[-1]]["done"] and chain[-1] + n_envs < len(world.history):
            chain.append(chain[-1] + n_envs)
        last = world.history[chain[-1]]
        rewards = sum(gamma**i * world.history[each]["reward"] for i, each in enumerate(chain))
        done = last["done"] and not last["timeout"]
        expected.append(
            world.history[k]
            | {"next_c": last["next_c"], "next_z": last["next_z"], "reward": rewards, "done": done}
            | {"discount": gamma ** len(chain)}
        )
    assert_equal(content(buffer), expected, *STORED, "discount")


@pytest.mark.parametrize("steps", [0, 5, 70])
def test_pickled_it_is_the_same_and_goes_on_the_same(steps: int) -> None:
    world, buffer = World(2, 3), make(50, 2, n_steps=2, gamma=0.9)
    for _ in range(steps):
        world.step(buffer)
    again = pickle.loads(pickle.dumps(buffer))
    assert len(pickle.dumps(buffer)) < 6000 + 60 * 2 * max(1, steps)
    twin = World(2, 3)
    for _ in range(steps):
        twin.step(make(50, 2))
    for _ in range(40):
        world.step(buffer)
        twin.step(again)
    keys = (*STORED, "discount")
    assert_equal(content(again), content(buffer), *keys)
    samples = []
    for each in (buffer, again):
        th.manual_seed(0)
        samples.append(each.sample(16).observations["c"])
    assert th.equal(*samples)


@pytest.mark.parametrize("size", [30, 200])
def test_its_size_can_be_changed(size: int) -> None:
    world, buffer = World(2, 4, ending=0.02), make(100, 2)
    for _ in range(90):
        world.step(buffer)
    other = buffer.moved("cpu", size)
    for _ in range(8):
        world.step(other)
    kept = other.size()
    assert kept == min(size, buffer.size() + 16)
    bootstrapped = [each | {"done": each["done"] and not each["timeout"]} for each in world.history]
    assert_equal(content(other), bootstrapped[-kept:], *STORED)


def test_samples_are_uniform_and_float32() -> None:
    world, buffer = World(2, 0), make(8, 2, context_dtype="float16")
    for _ in range(10):
        world.step(buffer)
    th.manual_seed(0)
    batch = buffer.sample(8000)
    assert all(values.dtype == th.float32 for values in batch.observations.values())
    _, counts = np.unique(batch.rewards.numpy(), return_counts=True)
    assert len(counts) == buffer.size()
    assert counts.min() > 800


def test_half_precision_rounds_the_context_only() -> None:
    world, buffer = World(2, 0), make(20, 2, context_dtype="float16")
    for _ in range(5):
        world.step(buffer)
    for mine, theirs in zip(content(buffer), world.history, strict=True):
        np.testing.assert_array_equal(mine["z"], theirs["z"])
        np.testing.assert_allclose(mine["c"], theirs["c"], rtol=1e-3, atol=1e-4)
        assert (mine["c"] != theirs["c"]).any()


def test_a_million_transitions_of_square_are_as_large_as_promised() -> None:
    space = spaces.Dict({"c": spaces.Box(-1, 1, (521,)), "z": spaces.Box(-1, 1, (16,))})
    sizes = [
        SteeringReplayBuffer(10**6, space, spaces.Box(-1, 1, (16,)), "cpu", 20, context_dtype=dtype).nbytes
        for dtype in ("float32", "float16")
    ]
    assert sizes[0] < 2.4e9
    assert sizes[1] < 1.3e9


def test_no_memory_is_taken_before_it_is_needed_and_too_much_is_refused() -> None:
    buffer = make(10**12)
    with pytest.raises(ValueError, match=r"of 1000000000000 chunks takes \d+\.\d\d GB, cpu has .* choose a smaller"):
        buffer.require_memory()
    make(10).require_memory()
    assert psutil.virtual_memory().available > make(10).nbytes


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"context_dtype": "bfloat16"}, "context_dtype is float32 or float16, not 'bfloat16'"),
        ({"n_steps": 0}, "n_steps must be a whole number of at least 1, not 0"),
    ],
)
def test_wrong_settings_are_named(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(10, **setting)


def test_an_empty_one_cannot_be_sampled() -> None:
    buffer = make(10)
    with pytest.raises(ValueError, match="nothing in the replay buffer"):
        buffer.sample(2)
    world = World(1, 0)
    world.step(buffer)
    assert buffer.size() == 1
    buffer.reset()
    assert buffer.size() == 0


def filled_by_episodes(*lengths: int, size: int = 50) -> SteeringReplayBuffer:
    """Return a buffer with episodes of one environment, whose chunks are numbered; negative lengths are aborted."""
    spaces_ = spaces.Dict({"c": spaces.Box(-1e6, 1e6, (2,)), "z": spaces.Box(-1e6, 1e6, (1,))})
    buffer = SteeringReplayBuffer(size, spaces_, spaces.Box(-1, 1, (1,)), "cpu", n_steps=1)
    number = 0
    for length in lengths:
        number += 1
        for k in range(abs(length)):
            obs, following = ({"c": np.full((1, 2), n), "z": np.full((1, 1), n)} for n in (number, number + 1))
            done = k == abs(length) - 1
            info = {"aborted": True, "TimeLimit.truncated": True} if done and length < 0 else {}
            buffer.add(obs, following, np.zeros((1, 1)), np.array([number]), np.array([done]), [info])
            number += 1
    return buffer


def stored_rewards(buffer: SteeringReplayBuffer) -> list[float]:
    return buffer.chunk_rewards().tolist() if buffer.size() else []


def test_an_aborted_episode_is_forgotten() -> None:
    buffer = filled_by_episodes(2, -3, 2)
    assert stored_rewards(buffer) == [1, 2, 8, 9]
    samples = buffer.sample(100)
    here, following = samples.observations["z"][:, 0], samples.next_observations["z"][:, 0]
    assert (samples.rewards[:, 0] == here).all()
    assert (following == here + 1).all()
    assert stored_rewards(filled_by_episodes(-3)) == []


def test_an_aborted_episode_is_forgotten_after_a_snapshot_within_it() -> None:
    buffer = filled_by_episodes(2, 2)
    obs = [{"c": np.full((1, 2), n), "z": np.full((1, 1), n)} for n in (20, 21, 22)]
    buffer.add(obs[0], obs[1], np.zeros((1, 1)), np.array([20.0]), np.array([False]), [{}])
    again = pickle.loads(pickle.dumps(buffer))
    again.add(obs[1], obs[2], np.zeros((1, 1)), np.array([21.0]), np.array([True]), [{"aborted": True}])
    assert stored_rewards(again) == [1, 2, 4, 5]


def test_an_episode_that_a_run_was_resumed_in_is_not_mixed_with_the_next_one() -> None:
    spaces_ = spaces.Dict({"c": spaces.Box(-1e6, 1e6, (2,)), "z": spaces.Box(-1e6, 1e6, (1,))})
    buffer = SteeringReplayBuffer(50, spaces_, spaces.Box(-1, 1, (1,)), "cpu", n_steps=3, gamma=0.9)

    def add(number: int, reward: float, done: bool, **info: bool) -> None:
        obs, following = ({"c": np.full((1, 2), n), "z": np.full((1, 1), n)} for n in (number, number + 1))
        buffer.add(obs, following, np.zeros((1, 1)), np.array([reward]), np.array([done]), [info])

    add(1, 0.0, False)
    add(2, 0.0, False)
    buffer = pickle.loads(pickle.dumps(buffer))
    add(100, 1.0, True)
    samples = buffer._get_samples(np.arange(3))
    assert samples.rewards[:, 0].tolist() == [0.0, 0.0, 1.0]
    assert samples.dones[:, 0].tolist() == [0.0, 0.0, 1.0]
    assert samples.next_observations["z"][:, 0].tolist() == [3.0, 3.0, 101.0]
    assert samples.discounts is not None
    np.testing.assert_allclose(samples.discounts[:, 0], [0.81, 0.9, 0.9])
    add(200, 0.0, False)
    buffer = pickle.loads(pickle.dumps(buffer))
    add(300, 0.0, True, aborted=True)  # takes back itself only
    assert buffer.size() == 4
    old = buffer.__getstate__()
    del old["_content"]["left"]  # as older versions wrote it
    older = object.__new__(SteeringReplayBuffer)
    older.__setstate__(old)
    assert not older._tables["left"][:4].any()


def test_an_aborted_episode_longer_than_the_buffer_leaves_it_empty() -> None:
    buffer = filled_by_episodes(3, -20, size=8)
    assert stored_rewards(buffer) == []
    again = pickle.loads(pickle.dumps(buffer))
    assert again.size() == 0
