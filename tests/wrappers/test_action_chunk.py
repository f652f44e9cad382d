"""ActionChunk against episodes whose rewards are written down here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from zprl_sb3.wrappers import ActionChunk, SimulationError, SteeringSpec

NAN, INF = float("nan"), float("inf")


class Scripted(gym.Env[Any, NDArray[np.float32]]):
    """Gives these rewards and observations one after the other, ends after the last, and notes the actions.

    :param observations: Of the reset and of every step; None counts the steps
    """

    action_space = spaces.Box(np.float32([-1, -2]), np.float32([1, 2]))
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def __init__(self, rewards: Sequence[float], observations: Sequence[Any] | None = None, cut: bool = False) -> None:
        self.rewards, self.cut = rewards, cut
        self.observations = observations or [np.float32([k]) for k in range(len(rewards) + 1)]
        self.actions: list[NDArray[np.float32]] = []
        self.time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.time = 0
        return self.observations[0], {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        self.time += 1
        end = self.time == len(self.rewards)
        return (
            self.observations[self.time],
            self.rewards[self.time - 1],
            end and not self.cut,
            end and self.cut,
            {"t": self.time},
        )


ZEROS = np.zeros((3, 2), np.float32)


def test_a_chunk_is_worth_the_discounted_sum_of_its_rewards() -> None:
    env = ActionChunk(Scripted([1, 2, 3, 4, 5, 6, 7]), chunk=3, gamma=0.5)
    env.reset()
    assert [env.step(ZEROS)[1] for _ in range(2)] == [1 + 2 / 2 + 3 / 4, 4 + 5 / 2 + 6 / 4]


def test_chunk_discounts_give_the_return_of_the_whole_episode() -> None:
    rewards, gamma = [0.5, -1.0, 2.0, 0.0, 3.0, 1.0, 4.0], 0.9
    env = ActionChunk(Scripted(rewards), chunk=3, gamma=gamma)
    env.reset()
    discount = SteeringSpec("latent", scale=1.0, chunk=3, gamma=gamma, policy="").chunk_discount
    assert discount == pytest.approx(0.729)
    chunks = [float(env.step(ZEROS)[1]) for _ in range(3)]
    assert sum(discount**k * chunk for k, chunk in enumerate(chunks)) == pytest.approx(
        sum(gamma**t * reward for t, reward in enumerate(rewards))
    )


@pytest.mark.parametrize("cut", [False, True])
def test_a_chunk_stops_where_the_episode_ends(cut: bool) -> None:
    scripted = Scripted([1, 2, 3, 4, 5], cut=cut)
    env = ActionChunk(scripted, chunk=3, gamma=0.5)
    env.reset()
    *_, info = env.step(ZEROS)
    assert info == {"t": 3, "env_steps": 3}
    obs, reward, terminated, truncated, info = env.step(ZEROS)
    assert (obs, reward) == (np.float32([5]), 4 + 5 / 2)
    assert (terminated, truncated) == (not cut, cut)
    assert info == {"t": 5, "env_steps": 2}
    assert len(scripted.actions) == 5


def test_the_actions_run_in_order_within_the_bounds() -> None:
    scripted = Scripted([0, 0, 0])
    env = ActionChunk(scripted, chunk=3)
    env.reset()
    env.step(np.float32([[0.5, 5.0], [-9.0, 1.5], [0.0, -0.25]]))
    np.testing.assert_array_equal(scripted.actions, [[0.5, 2.0], [-1.0, 1.5], [0.0, -0.25]])


def test_its_actions_are_chunks_of_bounded_actions() -> None:
    space = ActionChunk(Scripted([0]), chunk=3).action_space
    np.testing.assert_array_equal(space.high, [[1, 2]] * 3)
    np.testing.assert_array_equal(space.low, [[-1, -2]] * 3)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_reward_that_is_not_finite_is_named_with_its_step(bad: float) -> None:
    env = ActionChunk(Scripted([0, 0, 0, 0, bad, 0]), chunk=3)
    env.reset()
    env.step(ZEROS)
    with pytest.raises(SimulationError, match=r"Scripted.* a reward that is not finite, 5 env steps into the episode"):
        env.step(ZEROS)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_an_observation_that_is_not_finite_is_named_by_its_key(bad: float) -> None:
    fine, broken = ({"image": np.zeros(2, np.uint8), "proprio": np.float32([0, x])} for x in (0, bad))
    env = ActionChunk(Scripted([0] * 3, [fine, fine, broken, fine]), chunk=3)
    env.reset()
    with pytest.raises(SimulationError, match=r"a proprio that is not finite, 2 env steps"):
        env.step(ZEROS)


def test_the_first_observation_is_checked_too() -> None:
    env = ActionChunk(Scripted([0], [np.float32([NAN]), np.float32([0])]), chunk=1)
    with pytest.raises(SimulationError, match=r"an? observation that is not finite, 0 env steps"):
        env.reset()


def test_steps_are_counted_from_the_start_of_the_episode() -> None:
    env = ActionChunk(Scripted([0, NAN]), chunk=1)
    for _ in range(2):
        env.reset()
        env.step(ZEROS[:1])
        with pytest.raises(SimulationError, match="2 env steps"):
            env.step(ZEROS[:1])


class Clicks(Scripted):
    action_space = spaces.Discrete(3)  # type: ignore[assignment]


class Pictures(Scripted):
    action_space = spaces.Box(-1, 1, (2, 2))


@pytest.mark.parametrize("env", [Clicks([0]), Pictures([0])])
def test_other_action_spaces_are_refused(env: gym.Env[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs an action space Box\(A,\)"):
        ActionChunk(env, chunk=2)


@pytest.mark.parametrize("chunk", [0, -1])
def test_an_empty_chunk_is_refused(chunk: int) -> None:
    with pytest.raises(ValueError, match=f"chunk must be at least 1, not {chunk}"):
        ActionChunk(Scripted([0]), chunk)


@pytest.mark.parametrize("gamma", [0, -0.5, 1.01, NAN])
def test_a_discount_outside_its_range_is_refused(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"gamma is a discount per env step in \(0, 1\]"):
        ActionChunk(Scripted([0]), 2, gamma)


class Filmed(Scripted):
    """Its camera shows the time, and is counted."""

    observation_space = spaces.Dict(
        {"time": spaces.Box(0, 99, (1,), np.float32), "top_image": spaces.Box(0, 255, (2, 2, 3), np.uint8)}
    )
    draw_images = True

    def __init__(self, steps: int, cut: bool) -> None:
        super().__init__([0.0] * steps, cut=cut)
        self.drawn = 0
        self.seen: dict[str, Any] = {}

    def images(self) -> dict[str, Any]:
        self.drawn += 1
        return {"top_image": np.full((2, 2, 3), self.time, np.uint8)}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(**kwargs)
        return self._with_images(obs), info

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, *rest = super().step(action)
        return (self._with_images(obs), *rest)  # type: ignore[return-value]

    def _with_images(self, obs: Any) -> dict[str, Any]:
        self.seen = self.images() if self.draw_images else self.seen
        return {"time": obs, **self.seen}


@pytest.mark.parametrize("cut", [False, True])
def test_only_the_last_observation_of_a_chunk_is_drawn(cut: bool) -> None:
    inner = Filmed(8, cut)
    env = ActionChunk(gym.wrappers.TimeLimit(inner, 99), 3)
    for episode in (1, 2):
        obs, _ = env.reset()
        shown, over = [obs], False
        while not over:
            obs, _, terminated, truncated, _ = env.step(ZEROS)
            shown.append(obs)
            over = terminated or truncated
        assert [int(obs["time"][0]) for obs in shown] == [0, 3, 6, 8]  # the last chunk is not whole
        assert [int(obs["top_image"].max()) for obs in shown] == [0, 3, 6, 8]
        assert inner.drawn == 4 * episode


def test_an_error_within_a_chunk_leaves_the_next_episode_drawn() -> None:
    inner = Filmed(8, False)
    inner.rewards = [0.0, NAN] + [0.0] * 6
    env = ActionChunk(inner, 3)
    env.reset()
    with pytest.raises(SimulationError):
        env.step(ZEROS)
    inner.images = lambda: {"top_image": np.full((2, 2, 3), 77, np.uint8)}  # type: ignore[method-assign]
    obs, _ = env.reset()
    assert obs["top_image"].max() == 77


def test_wrappers_that_may_look_at_every_observation_get_them_all() -> None:
    inner = Filmed(8, False)
    history = gym.wrappers.TransformObservation(inner, lambda obs: obs, None)
    env = ActionChunk(history, 3)
    env.reset()
    env.step(ZEROS)
    assert inner.drawn == 4
