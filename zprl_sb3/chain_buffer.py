"""SB3's rollout buffer with the chain of latents that led to each chunk."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer


class Chain(NamedTuple):
    """How chunks were made from noise.

    :param latents: x of every step, from where the tuned steps begin to the normalised actions, (B, K + 1, T, A)
    :param log_prob: Of each of the K steps, (B, K)
    """

    latents: th.Tensor
    log_prob: th.Tensor


class ChainSamples(NamedTuple):
    """A batch of the rollout.

    :param observations: By key, (B, ...)
    :param chain: With the log-probabilities of the policy that has acted
    :param advantages: (B,)
    :param returns: (B,)
    """

    observations: dict[str, th.Tensor]
    chain: Chain
    advantages: th.Tensor
    returns: th.Tensor


class ChainRolloutBuffer(DictRolloutBuffer):
    """One row per **chunk**. The policy hands its :class:`Chain` over in the place of SB3's log-probability.

    Advantages are SB3's: at a time-out ``collect_rollouts`` adds γ^h V(last observation) to the reward, and the sum
    ends there, as it does where an episode ends by itself.

    :param args: SB3's: buffer_size, observation_space, action_space
    :param latents: Shape of a chain's latents, (K + 1, T, A)
    :param kwargs: SB3's: device, gae_lambda, gamma, n_envs
    """

    chains: NDArray[np.float32]

    def __init__(self, *args: Any, latents: tuple[int, int, int], **kwargs: Any) -> None:
        self.latents = latents
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Forget the rollout."""
        super().reset()
        rows = (self.buffer_size, self.n_envs)
        self.chains = np.zeros((*rows, *self.latents), np.float32)
        self.log_probs = np.zeros((*rows, self.latents[0] - 1), np.float32)

    def add(self, obs: Any, action: Any, reward: Any, episode_start: Any, value: Any, log_prob: Any) -> None:
        """Add a chunk of every environment; arguments as SB3 has them.

        :param log_prob: The :class:`Chain`
        """
        self.chains[self.pos] = log_prob.latents.cpu().numpy()
        super().add(obs, action, reward, episode_start, value, log_prob.log_prob)

    def get(self, batch_size: int | None = None) -> Generator[ChainSamples, None, None]:  # type: ignore[override]
        """Yield the rollout in batches, in an order drawn anew."""
        if not self.generator_ready:
            self.chains = self.swap_and_flatten(self.chains)
        yield from super().get(batch_size)  # type: ignore[misc]

    def _get_samples(self, batch_inds: NDArray[np.int64], env: Any = None) -> ChainSamples:  # type: ignore[override]
        return ChainSamples(
            {key: self.to_torch(values[batch_inds]) for key, values in self.observations.items()},
            Chain(self.to_torch(self.chains[batch_inds]), self.to_torch(self.log_probs[batch_inds])),
            self.to_torch(self.advantages[batch_inds].flatten()),
            self.to_torch(self.returns[batch_inds].flatten()),
        )
