"""A policy whose weights PPO tunes: the chain of Gaussian steps by which it makes a chunk has a likelihood."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from zprl_sb3.chain_buffer import Chain
from zprl_sb3.checkpoint import policy_config
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.wrappers.steering import RAW


class ChainPolicy(BasePolicy):
    """The tuned copy of a frozen :class:`~zprl_sb3.policy.FlowPolicy`, through c (without its bottleneck), and V(c).

    Step i of K leads from x_i to x_{i+1} ~ N(mean, std²); x_0 is noise, x_K the normalised actions. Only h of its T
    actions are executed. Those of the last step that are not decide nothing, and do not count in its likelihood.

    Its action is :class:`~zprl_sb3.wrappers.steering.WeightSteering`'s: Δ, how far the executed chunk is from the
    frozen policy's. V sees the frozen policy's context, which does not move while the tuned one does.

    :param observation_space: As :class:`~zprl_sb3.wrappers.steering.WeightSteering` has it
    :param action_space: Likewise
    :param lr_schedule: Of the policy (the algorithm sets the value's own)
    :param config: Architecture of the frozen policy, as a table; the algorithm takes it from the environment
    :param net_arch: Hidden layers of V
    :param optimizer_class: Of both
    :param optimizer_kwargs: Its further arguments
    :param use_sde: SB3's, without effect
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        config: Mapping[str, Any],
        net_arch: list[int] | None = None,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        super().__init__(
            observation_space, action_space, optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs
        )
        self.config, self.net_arch = dict(config), net_arch or [256, 256, 256]
        self.flow = FlowPolicy(policy_config(config))
        self.chunk = math.prod(action_space.shape) // self.flow.action_dim
        self.value_net = hidden_layers([self.flow.context_dim, *self.net_arch], 1, nn.Mish)
        self._build()
        counted = th.ones(self.steps, *self.flow.noise_shape)
        counted[-1, self.chunk :] = 0.0
        self.counted: th.Tensor
        self.register_buffer("counted", counted, persistent=False)
        learned = [weight for name, weight in self.named_parameters() if not name.startswith(("value_net", "frozen"))]
        self.optimizer = optimizer_class(learned, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
        self.value_optimizer = optimizer_class(
            self.value_net.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    def _build(self) -> None:
        """Make the networks that a method adds."""

    @property
    def steps(self) -> int:
        """K, of the tuned steps."""
        return self.flow.config.sampling_steps

    @property
    def entries(self) -> th.Tensor:
        """How many numbers each step draws that count, (K,)."""
        return self.counted.sum(dim=(1, 2))

    @abstractmethod
    def transition(self, x: th.Tensor, context: th.Tensor, steps: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return mean (B, T, A) and deviation (broadcast to that) of what tuned steps lead to.

        :param x: Before the step, (B, T, A)
        :param context: c of the tuned policy, (B, C)
        :param steps: Which of the K steps, (B,)
        """

    @abstractmethod
    def generate(self, obs: Mapping[str, th.Tensor]) -> th.Tensor:
        """Return the normalised actions (B, T, A) without noise of the steps: what is evaluated, and exported."""

    def first(self, obs: Mapping[str, th.Tensor]) -> th.Tensor:
        """Return x_0 (B, T, A), from where the tuned steps begin."""
        return obs["noise"]

    def start_from(self, base: FlowPolicy) -> None:
        """Take over the weights of the frozen policy."""
        weights = {name: tensor for name, tensor in base.state_dict().items() if not name.startswith("bottleneck.")}
        self.flow.load_state_dict(weights)

    def tuned(self) -> FlowPolicy | None:
        """Return the tuned policy with its chunk, without a bottleneck; None where other weights take part."""
        policy = copy.deepcopy(self.flow)
        policy.config, policy.chunk = replace(policy.config, chunk=self.chunk), self.chunk
        return policy

    def context(self, obs: Mapping[str, th.Tensor]) -> th.Tensor:
        """Return c (B, C) of the tuned policy, with gradients."""
        raw = {key: obs[RAW + key] for key in self.flow.observation_shapes}
        return self.flow.context(raw, obs.get("where"))

    def sample(self, obs: Mapping[str, th.Tensor]) -> Chain:
        """Draw a chain for each observation."""
        context, x = self.context(obs), self.first(obs)
        latents, log_probs = [x], []
        for step in range(self.steps):
            steps = th.full((len(x),), step, device=x.device)
            mean, std = self.transition(x, context, steps)
            x = mean + std * th.randn_like(mean)
            latents.append(x)
            log_probs.append(self._log_prob(x, mean, std, steps))
        return Chain(th.stack(latents, dim=1), th.stack(log_probs, dim=1))

    def evaluate(self, obs: Mapping[str, th.Tensor], latents: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return log-probabilities of chains' steps (B, K), and the mean entropy of the numbers that they draw (B,).

        On the same times, with the same deviations, as :meth:`sample`.

        :param obs: Observations of B chains
        :param latents: Theirs (B, K + 1, T, A)
        """
        batch, count = len(latents), self.steps
        steps = th.arange(count, device=latents.device).repeat(batch)
        context = self.context(obs).repeat_interleave(count, dim=0)
        mean, std = self.transition(latents[:, :-1].flatten(0, 1), context, steps)
        log_prob = self._log_prob(latents[:, 1:].flatten(0, 1), mean, std, steps)
        entropy = self._total(std.expand_as(mean).log() + 0.5 * math.log(2 * math.pi * math.e), steps)
        return log_prob.view(batch, count), entropy.view(batch, count).sum(dim=1) / self.entries.sum()

    def _log_prob(self, x: th.Tensor, mean: th.Tensor, std: th.Tensor, steps: th.Tensor) -> th.Tensor:
        """Return log N(x; mean, std²) of what counts, (B,)."""
        errors = (x - mean) / std
        return self._total(-0.5 * errors**2 - std.log() - 0.5 * math.log(2 * math.pi), steps)

    def _total(self, values: th.Tensor, steps: th.Tensor) -> th.Tensor:
        return (values * self.counted[steps]).sum(dim=(1, 2))

    def forward(self, obs: Mapping[str, th.Tensor], deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, Chain]:
        """Return Δ (B, h * A), V (B, 1) and the chains, as SB3's ``collect_rollouts`` passes them on to the buffer."""
        chain = self.sample(obs)
        return self.delta(obs, chain.latents[:, -1]), self.predict_values(obs), chain

    def delta(self, obs: Mapping[str, th.Tensor], actions: th.Tensor) -> th.Tensor:
        """Return Δ (B, h * A): the executed ones of normalised actions (B, T, A), less the frozen policy's."""
        return actions[:, : self.chunk].flatten(1) - obs["z"]

    def predict_values(self, obs: Mapping[str, th.Tensor]) -> th.Tensor:
        """Return V (B, 1)."""
        values: th.Tensor = self.value_net(obs["c"])
        return values

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        assert isinstance(observation, dict)
        actions = self.generate(observation) if deterministic else self.sample(observation).latents[:, -1]
        return self.delta(observation, actions)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "config": self.config,
            "net_arch": self.net_arch,
            "lr_schedule": self._dummy_schedule,  # for loading; the algorithm sets its own
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }


def hidden_layers(sizes: list[int], outputs: int, activation: type[nn.Module]) -> nn.Sequential:
    """Return linear layers with an activation after each but the last."""
    layers: list[nn.Module] = []
    for inputs, size in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(inputs, size), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
