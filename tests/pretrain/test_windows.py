"""Windows against rows written down by hand, and against slicing for any lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from zprl_sb3.pretrain.demonstrations import Demonstrations
from zprl_sb3.pretrain.windows import cut_windows, split_episodes


def demonstrations(lengths: list[int]) -> Demonstrations:
    """Episodes whose observation and action at step t of episode k are 100 k + t."""
    values = [np.float32([[100 * k + t] for t in range(length)]) for k, length in enumerate(lengths)]
    count = len(lengths)
    return Demonstrations(
        path=Path("demos.hdf5"),
        sha256="",
        env_id="test/None-v0",
        env_kwargs={},
        env_version="",
        names=[f"demo_{k}" for k in range(count)],
        observations={"a": values, "b": [np.concatenate([x, -x], axis=1) for x in values]},
        actions=[x + 0.5 for x in values],
        successes=[True] * count,
        qualities=[""] * count,
        masks={},
    )


def test_the_ends_of_an_episode_are_repeated() -> None:
    windows = cut_windows(demonstrations([3, 2]), [0, 1], obs_steps=2, horizon=4)
    obs, actions = windows.batch(th.arange(5))
    assert obs["a"][..., 0].tolist() == [[0, 0], [0, 1], [1, 2], [100, 100], [100, 101]]
    assert actions[..., 0].tolist() == [
        [0.5, 1.5, 2.5, 2.5],
        [1.5, 2.5, 2.5, 2.5],
        [2.5, 2.5, 2.5, 2.5],
        [100.5, 101.5, 101.5, 101.5],
        [101.5, 101.5, 101.5, 101.5],
    ]
    assert obs["b"].shape == (5, 2, 2)
    np.testing.assert_array_equal(obs["b"][..., 1], -obs["a"][..., 0])


def test_without_history_the_observation_is_that_of_the_first_action() -> None:
    windows = cut_windows(demonstrations([4]), [0], obs_steps=1, horizon=1)
    obs, actions = windows.batch(th.tensor([3, 0]))
    assert obs["a"].tolist() == [[[3]], [[0]]]
    assert actions.tolist() == [[[3.5]], [[0.5]]]


def test_only_the_chosen_episodes_are_in_it() -> None:
    windows = cut_windows(demonstrations([2, 3, 1]), [2, 0], obs_steps=1, horizon=2)
    obs, _ = windows.batch(th.arange(len(windows)))
    assert obs["a"].flatten().tolist() == [200, 0, 1]


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    obs_steps=st.integers(1, 5),
    horizon=st.integers(1, 12),
)
def test_every_step_is_a_window_of_its_own_episode(lengths: list[int], obs_steps: int, horizon: int) -> None:
    demos = demonstrations(lengths)
    windows = cut_windows(demos, list(range(len(lengths))), obs_steps, horizon)
    assert len(windows) == sum(lengths)
    obs, actions = windows.batch(th.arange(len(windows)))
    steps = [(k, t) for k, length in enumerate(lengths) for t in range(length)]
    for row, (k, t) in enumerate(steps):
        past = [max(0, t + i) for i in range(1 - obs_steps, 1)]
        future = [min(lengths[k] - 1, t + i) for i in range(horizon)]
        np.testing.assert_array_equal(obs["a"][row], demos.observations["a"][k][past])
        np.testing.assert_array_equal(obs["b"][row], demos.observations["b"][k][past])
        np.testing.assert_array_equal(actions[row], demos.actions[k][future])


@given(count=st.integers(2, 200), ratio=st.floats(0, 0.5), seed=st.integers(0, 99))
def test_a_split_shares_all_episodes_out(count: int, ratio: float, seed: int) -> None:
    if max(1, round(ratio * count)) >= count:
        return
    train, held_out = split_episodes(count, ratio, seed)
    assert sorted(train + held_out) == list(range(count))
    assert len(held_out) == max(1, round(ratio * count))
    assert train
    assert split_episodes(count, ratio, seed) == (train, held_out)


def test_another_seed_holds_out_other_episodes() -> None:
    assert split_episodes(100, 0.1, 0) != split_episodes(100, 0.1, 1)


@pytest.mark.parametrize(("count", "ratio"), [(1, 0.02), (2, 0.9), (4, 1.0)])
def test_too_few_episodes_to_hold_any_out_are_refused(count: int, ratio: float) -> None:
    with pytest.raises(ValueError, match=f"{count} demonstrations are too few"):
        split_episodes(count, ratio, 0)
