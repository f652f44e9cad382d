"""Replay on the training device, in which every observation lies once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import BaseBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

Array = NDArray[Any]

CONTEXT_TYPES = {"float32": th.float32, "float16": th.float16}
ROOM = 32  # one more row for every so many transitions: each episode ends with an observation that begins no transition


class SteeringReplayBuffer(ReplayBuffer):
    """Transitions (c, z, Δz, r, done) with the next (c, z) by index, on the training device, newest replacing oldest.

    Each observation takes one row, whether it begins a transition, ends one, or both. Where episodes are shorter than
    32 chunks, their last observations take more rows than there is room for, and the oldest transitions go a little
    before ``buffer_size`` is reached. An episode that was aborted (``info["aborted"]``) is forgotten as a whole, of a
    single environment; of several it counts as a time-out. Pickled, it holds what is in it and nothing of the device.

    :param buffer_size: Transitions (chunks), over all environments
    :param observation_space: {"c": (C,), "z": (d,)}
    :param action_space: Δz in [-1, 1]^d
    :param device: Where it lies and where samples come from
    :param n_envs: Environments
    :param optimize_memory_usage: Has no effect: next observations are never stored twice
    :param handle_timeout_termination: Bootstrap from the last observation at a time-out; otherwise it is terminal
    :param context_dtype: ``"float32"``, or ``"float16"`` for half of the memory of c; samples are float32
    :param n_steps: Chunks whose rewards a sample sums, as far as the episode and the data go
    :param gamma: Discount of one chunk in such a sum
    :raises ValueError: If a setting is out of its range
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        context_dtype: str = "float32",
        n_steps: int = 3,
        gamma: float = 1.0,
    ) -> None:
        # Not ReplayBuffer's own, which would allocate every observation twice.
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        if context_dtype not in CONTEXT_TYPES:
            raise ValueError(f"context_dtype is {' or '.join(CONTEXT_TYPES)}, not {context_dtype!r}")
        if not isinstance(n_steps, int) or n_steps < 1:
            raise ValueError(f"n_steps must be a whole number of at least 1, not {n_steps!r}")
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.context_dtype, self.n_steps, self.gamma = context_dtype, n_steps, gamma
        # Rows and transitions are counted for ever; where they lie is the count modulo the capacity.
        self._row = self._count = self._oldest = 0
        self._last: dict[str, Array] = {}  # the next observations of the last step
        self._last_rows = np.zeros(n_envs, np.int64)
        self._goes_on = np.zeros(n_envs, bool)
        self._begun = 0  # count of the first transition of the episode that runs, in a single environment
        self._tables: dict[str, th.Tensor] = {}

    @property
    def rows(self) -> int:
        """Observations that have room."""
        return self.buffer_size + self.buffer_size // ROOM + 2 * self.n_envs

    def _shapes(self) -> dict[str, tuple[tuple[int, ...], th.dtype]]:
        assert isinstance(self.observation_space, spaces.Dict)
        context, latent = (get_action_dim(self.observation_space[key]) for key in ("c", "z"))
        one = (self.buffer_size,)
        return {
            "c": ((self.rows, context), CONTEXT_TYPES[self.context_dtype]),
            "z": ((self.rows, latent), th.float32),
            "here": (one, th.int64),
            "next": (one, th.int64),
            "delta": ((*one, latent), th.float32),
            "reward": (one, th.float32),
            "over": (one, th.bool),
            "timeout": (one, th.bool),
            "left": (one, th.bool),  # its episode was left in the middle: what follows is of another one
        }

    @property
    def nbytes(self) -> int:
        """Memory that it takes when full, in bytes."""
        return sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in self._shapes().values())

    def require_memory(self) -> None:
        """Find out before the training whether there is room for it.

        :raises ValueError: If not, saying how much it takes and how much there is
        """
        if self._tables:
            return
        on_gpu = self.device.type == "cuda"
        free = th.cuda.mem_get_info(self.device)[0] if on_gpu else psutil.virtual_memory().available
        if self.nbytes > free:
            raise ValueError(
                f"The replay buffer of {self.buffer_size} chunks takes {self.nbytes / 1e9:.2f} GB, {self.device} has "
                f"{free / 1e9:.2f} GB free: choose a smaller buffer_size, or context_dtype float16"
            )

    def size(self) -> int:
        """Return how many transitions are in it."""
        return self._count - self._oldest

    def chunk_rewards(self) -> Array:
        """Return the rewards of the chunks that are in it, oldest first."""
        return _ordered(self._tables["reward"], self._oldest, self._count, self.buffer_size)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._row = self._count = self._oldest = self._begun = 0
        self._goes_on = np.zeros(self.n_envs, bool)

    def add(  # type: ignore[override]
        self,
        obs: Mapping[str, Array],
        next_obs: Mapping[str, Array],
        action: Array,
        reward: Array,
        done: Array,
        infos: list[dict[str, Any]],
    ) -> None:
        """Store one transition of every environment.

        :param obs: {"c": (n, C), "z": (n, d)}
        :param next_obs: What followed; where an episode ended, its last observation
        :param action: Δz (n, d)
        :param reward: Of the chunks (n,)
        :param done: Whether the episode ended (n,)
        :param infos: ``TimeLimit.truncated``: a time-out ended it; ``aborted``: it is not to be learned from
        """
        if not self._tables:
            self._allocate()
        timeout = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        here, following = self._rows_of(obs), self._write(next_obs)
        place = self._places(np.arange(self._count, self._count + self.n_envs), self.buffer_size)
        self._put("here", place, here)
        self._put("next", place, following)
        self._put("delta", place, action)
        self._put("reward", place, reward)
        self._put("over", place, done)
        self._put("timeout", place, timeout)
        self._put("left", place, np.zeros_like(timeout))
        self._first_rows[np.arange(self._count, self._count + self.n_envs) % self.buffer_size] = here.min()
        self._count += self.n_envs
        self._last = {key: values.copy() for key, values in next_obs.items()}
        self._last_rows, self._goes_on = following, ~done.astype(bool)
        self._forget()
        if self.n_envs == 1 and done[0]:
            if infos[0].get("aborted", False):
                self._take_back()
            self._begun = self._count
        self.pos, self.full = self._count % self.buffer_size, self._count >= self.buffer_size

    def _take_back(self) -> None:
        """Forget the episode that has just ended, and go on where it began."""
        self._count = max(self._begun, self._oldest)
        self._row = int(self._first_rows[self._count % self.buffer_size])
        self._last_rows[:] = self._row

    def _rows_of(self, obs: Mapping[str, Array]) -> NDArray[np.int64]:
        """Return the rows of the observations that act; those that ended the step before are there already."""
        rows = self._last_rows.copy()
        same = self._goes_on.copy()
        for key, values in self._last.items():  # after a reset from outside they are others
            same &= (values == obs[key]).all(axis=1)
        if not same.all():
            self._leave(np.flatnonzero(self._goes_on & ~same))
            rows[~same] = self._write({key: obs[key][~same] for key in ("c", "z")})
        return rows

    def _leave(self, envs: NDArray[np.int64]) -> None:
        """Note environments whose episode does not go on though it is not over, e.g. where a run is resumed."""
        if envs.size:
            last = self._places(self._count - self.n_envs + envs, self.buffer_size)
            self._put("left", last, np.ones(len(envs), bool))
            self._begun = self._count

    def _write(self, obs: Mapping[str, Array]) -> NDArray[np.int64]:
        numbers = np.arange(self._row, self._row + len(obs["c"]))
        place = self._places(numbers, self.rows)
        for key in ("c", "z"):
            self._put(key, place, obs[key])
        self._row += len(numbers)
        return numbers

    def _places(self, numbers: NDArray[np.int64], capacity: int) -> th.Tensor:
        return th.as_tensor(numbers % capacity, device=self.device)

    def _put(self, name: str, place: th.Tensor, values: Array) -> None:
        table = self._tables[name]
        table[place] = th.as_tensor(values).to(self.device, table.dtype).reshape(len(place), *table.shape[1:])

    def _allocate(self) -> None:
        self._tables = {
            name: th.empty(shape, dtype=dtype, device=self.device) for name, (shape, dtype) in self._shapes().items()
        }
        self._first_rows = np.zeros(self.buffer_size, np.int64)

    def _forget(self) -> None:
        """Drop the transitions whose place, or whose first observation, newer ones have taken."""
        self._oldest = max(self._oldest, self._count - self.buffer_size)
        while self.size() and self._first_rows[self._oldest % self.buffer_size] < self._row - self.rows:
            self._oldest += 1

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> DictReplayBufferSamples:  # type: ignore[override]
        """Draw transitions uniformly, with replacement, by torch's generator of the device.

        :param batch_size: B
        :param env: Scales the rewards, where it does
        :return: Tensors on the device; rewards, dones and, with ``n_steps`` above 1, discounts (B, 1)
        :raises ValueError: If it is empty
        """
        if not self.size():
            raise ValueError("There is nothing in the replay buffer to sample from")
        return self._samples(self._oldest + th.randint(self.size(), (batch_size,), device=self.device), env)

    def _get_samples(self, batch_inds: Array, env: VecNormalize | None = None) -> DictReplayBufferSamples:  # type: ignore[override]
        return self._samples(self._oldest + th.as_tensor(batch_inds, device=self.device), env)

    def _samples(self, numbers: th.Tensor, env: VecNormalize | None) -> DictReplayBufferSamples:
        first = numbers % self.buffer_size
        last, reward, discount = (
            (first, self._rewards(first, env), None) if self.n_steps == 1 else self._sum(numbers, env)
        )
        return DictReplayBufferSamples(
            observations=self._observations("here", first),
            actions=self._tables["delta"][first],
            next_observations=self._observations("next", last),
            dones=self._dones(last).float().unsqueeze(1),
            rewards=reward.unsqueeze(1),
            discounts=None if discount is None else discount.unsqueeze(1),
        )

    def _sum(self, numbers: th.Tensor, env: VecNormalize | None) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Return the last place (B,) of each sum of rewards, the sum, and the discount of what follows it."""
        # All environments step together, so each one's next transition comes n_envs later.
        steps = numbers.unsqueeze(1) + self.n_envs * th.arange(self.n_steps, device=self.device)
        places = steps % self.buffer_size
        ends = self._tables["over"][places] | self._tables["left"][places] | (steps + self.n_envs >= self._count)
        within = (ends.cumsum(dim=1) - ends.long()) == 0
        powers = self.gamma ** th.arange(self.n_steps, device=self.device)
        length = within.sum(dim=1)
        last = places.gather(1, (length - 1).unsqueeze(1)).squeeze(1)
        # Beyond the data lies whatever was in memory, NaN perhaps, which times 0 would stay.
        rewards = th.where(within, self._rewards(places, env) * powers, 0.0)
        return last, rewards.sum(dim=1), self.gamma**length

    def _dones(self, places: th.Tensor) -> th.Tensor:
        over = self._tables["over"][places]
        return over & ~self._tables["timeout"][places] if self.handle_timeout_termination else over

    def _rewards(self, places: th.Tensor, env: VecNormalize | None) -> th.Tensor:
        rewards = self._tables["reward"][places]
        return rewards if env is None else th.as_tensor(env.normalize_reward(rewards.cpu().numpy())).to(rewards)

    def _observations(self, which: str, places: th.Tensor) -> dict[str, th.Tensor]:
        rows = self._tables[which][places] % self.rows
        return {key: self._tables[key].index_select(0, rows).float() for key in ("c", "z")}

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_tables": {}, "device": th.device("cpu")}
        if self._tables:
            # In the order in which it came, so that it may be loaded with another size or on another device.
            start = min(int(self._first_rows[self._oldest % self.buffer_size]), int(self._last_rows.min()))
            rows, transitions = (start, self._row, self.rows), (self._oldest, self._count, self.buffer_size)
            tables = self._tables | {"first": th.as_tensor(self._first_rows)}
            state["_content"] = {
                name: _ordered(table, *(rows if name in ("c", "z") else transitions)) for name, table in tables.items()
            }
            state |= {"_first_rows": None, "_start": start, "_begun": max(0, self._begun - self._oldest)}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        content, start = state.pop("_content", None), state.pop("_start", 0)
        self.__dict__.update({"_begun": state["_count"]} | state)  # older ones do not say it
        if content is not None:
            self._fill(content, start)

    def _fill(self, content: dict[str, Array], start: int) -> None:
        """Begin to count anew with what another one held, whose rows began to count at ``start``."""
        self._allocate()
        content = {"left": np.zeros_like(content["over"])} | content  # older ones do not say it
        content = content | {name: content[name] - start for name in ("here", "next", "first")}
        for name, values in content.items():
            table = th.as_tensor(self._first_rows) if name == "first" else self._tables[name]
            numbers = np.arange(len(values))[-len(table) :]  # what there is room for
            table[self._places(numbers, len(table)).to(table.device)] = th.as_tensor(values[numbers]).to(table.device)
        self._row, self._count, self._oldest = len(content["c"]), len(content["here"]), 0
        self._last_rows = self._last_rows - start
        self._begun = min(self._begun, self._count)
        self._forget()

    def moved(self, device: th.device | str, buffer_size: int | None = None) -> SteeringReplayBuffer:
        """Return a buffer with the same content elsewhere, or of another size.

        :param device: Where to
        :param buffer_size: Capacity; None: as it is. What does not fit is forgotten, oldest first
        """
        other = object.__new__(SteeringReplayBuffer)
        changes = {"device": th.device(device), "buffer_size": buffer_size or self.buffer_size}
        other.__setstate__(self.__getstate__() | changes)
        return other


def _ordered(table: th.Tensor, start: int, end: int, capacity: int) -> Array:
    """Return what lies between two counts, as NumPy array in their order."""
    first, length = start % capacity, end - start
    parts = (table[first : first + length], table[: max(0, first + length - capacity)])
    return np.concatenate([part.cpu().numpy() for part in parts])
