"""Actor, critic ensemble and policy of :class:`~zprl_sb3.sac.SteeringSAC`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn
from torch.nn import functional as F

from zprl_sb3.chains import can_chain, run_chains
from zprl_sb3.wrappers.spec import Scale


class SteeringActor(Actor):
    """tanh-Gaussian Δz ~ π(·|c, z). log σ is a tanh rescaled to its bounds and starts at their middle.

    Hidden layers are orthogonal with gain √2, the heads with gain 0.01 and zero bias, so the first Δz are close to 0.

    :param log_std_bounds: Lowest and highest log σ
    :param kwargs: SB3's
    """

    reach: th.Tensor
    """How far Δz goes, in (0, 1]: it is in [-reach, reach]. log π stays that of Δz before it, so entropies compare."""

    def __init__(self, *args: Any, log_std_bounds: tuple[float, float] = (-10.0, 2.0), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_std_bounds = log_std_bounds
        self.register_buffer("reach", th.ones(()))
        self.latent_pi.apply(lambda module: _orthogonal(module, math.sqrt(2)))
        self.mu.apply(lambda module: _orthogonal(module, 0.01))
        self.log_std.apply(lambda module: _orthogonal(module, 0.01))  # type: ignore[attr-defined]

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor, dict[str, th.Tensor]]:
        """Return mean and log σ (B, d) before the tanh that squashes Δz."""
        if can_chain(self.latent_pi, self.device):
            (features,) = run_chains([self.latent_pi], obs["c"], obs["z"])  # type: ignore[index]
        else:
            features = self.latent_pi(self.extract_features(obs, self.features_extractor))
        low, high = self.log_std_bounds
        with th.autocast(features.device.type, enabled=False):  # as in the critic
            mean, unit = self.mu(features.float()), th.tanh(self.log_std(features.float()))  # type: ignore[operator]
        return mean, low + 0.5 * (high - low) * (unit + 1), {}

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Return Δz (B, d)."""
        if deterministic:  # without a distribution, for a robot that waits
            return self.reach * self.get_action_dist_params(obs)[0].tanh()
        return self.reach * super().forward(obs, deterministic)

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """Return a sampled Δz (B, d) and its log π (B,)."""
        delta, log_prob = super().action_log_prob(obs)
        return self.reach * delta, log_prob

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        state_dict.setdefault(f"{prefix}reach", th.ones(()))  # a model from before there was one
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"log_std_bounds": self.log_std_bounds}


def _orthogonal(module: nn.Module, gain: float) -> None:
    if isinstance(module, nn.Linear):
        nn.init.orthogonal_(module.weight, gain)
        nn.init.zeros_(module.bias)


class SteeringCritic(BaseModel):
    """Ensemble of Q(c, z + λΔz): what is judged is where the policy acts from, whichever (z, Δz) led there.

    :param observation_space: {"c": (C,), "z": (d,)}
    :param action_space: Δz in [-1, 1]^d
    :param net_arch: Hidden layers of each head
    :param features_extractor: Unused by the critic itself, part of SB3's contract
    :param features_dim: Likewise
    :param activation_fn: Activation between the layers
    :param normalize_images: Likewise unused
    :param n_critics: Heads
    :param scale: λ, or one of each dimension
    :param bounded: Squash each head to (0, 1) by ½(tanh + 1), for returns of sparse 0/1 tasks
    :param layer_norm: LayerNorm after every hidden linear layer
    """

    scale: th.Tensor

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.GELU,
        normalize_images: bool = True,
        n_critics: int = 2,
        scale: Scale = 1.0,
        bounded: bool = True,
        layer_norm: bool = False,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.bounded = bounded
        self.register_buffer("scale", th.as_tensor(scale), persistent=False)
        inputs = get_action_dim(observation_space["c"]) + get_action_dim(action_space)
        norms: list[type[nn.Module]] = [nn.LayerNorm] if layer_norm else []
        self.q_networks = nn.ModuleList(
            nn.Sequential(*create_mlp(inputs, 1, net_arch, activation_fn, post_linear_modules=norms))
            for _ in range(n_critics)
        )

    def forward(self, obs: dict[str, th.Tensor], delta: th.Tensor, heads: list[int] | None = None) -> th.Tensor:
        """Return Q of the chosen heads, all where None: (len(heads), B).

        :param obs: {"c": (B, C), "z": (B, d)}
        :param delta: Δz (B, d)
        :param heads: Indices of the heads to compute
        """
        chosen = range(len(self.q_networks)) if heads is None else heads
        networks: list[Any] = [self.q_networks[head] for head in chosen]
        inputs = obs["c"], obs["z"] + self.scale * delta
        # On a CPU core matrices are faster one by one, on a GPU all at once.
        if can_chain(networks[0], self.device):
            values = _values(networks, run_chains([[*network][:-1] for network in networks], *inputs))
        elif self.device.type == "cuda" and all(_can_be_stacked(layer) for layer in networks[0]):
            values = _values_at_once(networks, *inputs)
        else:
            together = th.cat(inputs, dim=1)
            values = _values(networks, [network[:-1](together) for network in networks])
        return 0.5 * (values.tanh() + 1) if self.bounded else values


def _values(networks: Sequence[Any], features: Sequence[th.Tensor]) -> th.Tensor:
    """Return Q (n, B) of n heads' last features (B, H), in float32 under autocast, too.

    In bfloat16 Q would step by 1/256 between ½ and 1.
    """
    with th.autocast(features[0].device.type, enabled=False):
        values = [
            network[-1](each.to(network[-1].weight.dtype)) for network, each in zip(networks, features, strict=True)
        ]
    return th.cat(values, dim=1).t()


def _values_at_once(networks: Sequence[Any], context: th.Tensor, latent: th.Tensor) -> th.Tensor:
    """Return Q (n, B) of n heads by products of stacked matrices.

    [c, z̃] stay apart: no gradient is computed for c, which would be most of the first layer's.
    """
    first, *hidden, last = zip(*networks, strict=True)
    weights, heads = th.stack([layer.weight for layer in first]), len(first)
    of_context, of_latent = th.split(weights, [context.shape[1], latent.shape[1]], dim=2)
    context, latent = (part.expand(heads, *part.shape) for part in (context, latent))
    bias = th.stack([layer.bias for layer in first]).unsqueeze(1)
    features = th.baddbmm(th.baddbmm(bias, context, of_context.mT), latent, of_latent.mT)
    for layers in hidden:
        if isinstance(layers[0], nn.Linear):
            features = _product(layers, features)
        elif isinstance(layers[0], nn.LayerNorm):
            scale, shift = (th.stack([getattr(norm, name) for norm in layers]) for name in ("weight", "bias"))
            normal = F.layer_norm(features, layers[0].normalized_shape, eps=layers[0].eps)
            features = normal * scale.unsqueeze(1) + shift.unsqueeze(1)
        else:
            features = layers[0](features)
    with th.autocast(features.device.type, enabled=False):
        return _product(last, features.to(last[0].weight.dtype)).squeeze(2)


def _can_be_stacked(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.LayerNorm)) or not any(True for _ in layer.parameters())


def _product(layers: Sequence[nn.Linear], features: th.Tensor) -> th.Tensor:
    """Return n linear layers' outputs (n, B, out) for n inputs (n, B, in)."""
    weights, biases = th.stack([layer.weight for layer in layers]), th.stack([layer.bias for layer in layers])
    return th.baddbmm(biases.unsqueeze(1), features, weights.mT)


class SteeringSACPolicy(SACPolicy):
    """Actor and critic ensemble, three hidden GELU layers of 256 each unless told otherwise (paper: 4 layers, 256).

    :param observation_space: {"c": (C,), "z": (d,)}
    :param action_space: Δz in [-1, 1]^d
    :param lr_schedule: Of the actor (the algorithm sets the critic's own)
    :param net_arch: Hidden layers of actor and critics
    :param activation_fn: Activation between the layers
    :param n_critics: Heads of the ensemble (paper: 2 in simulation, which collapsed on some tasks, 5 on robots)
    :param layer_norm: LayerNorm in the critics (paper: with dense rewards)
    :param bounded_critic: Q in (0, 1), for sparse 0/1 rewards
    :param log_std_bounds: Lowest and highest log σ of Δz before the tanh (Table V)
    :param scale: λ, or one of each dimension; the algorithm takes it from the environment
    :param optimizer_class: Of actor, critics and temperature
    :param optimizer_kwargs: Its further arguments
    :param kwargs: Passed to SB3's policy
    :raises TypeError: For a features extractor: the frozen policy is the one
    """

    actor: SteeringActor
    critic: SteeringCritic  # type: ignore[assignment]
    critic_target: SteeringCritic  # type: ignore[assignment]

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.GELU,
        n_critics: int = 5,
        layer_norm: bool = True,
        bounded_critic: bool = True,
        log_std_bounds: tuple[float, float] = (-10.0, 2.0),
        scale: Scale = 1.0,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.pop("features_extractor_class", CombinedExtractor) is not CombinedExtractor:
            raise TypeError("The observation (c, z) is the frozen policy's embedding already: no features extractor")
        self.log_std_bounds = log_std_bounds
        self.steering_kwargs: dict[str, Any] = {"scale": scale, "bounded": bounded_critic, "layer_norm": layer_norm}
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=net_arch or [256, 256, 256],
            activation_fn=activation_fn,
            n_critics=n_critics,
            features_extractor_class=CombinedExtractor,
            optimizer_class=optimizer_class,
            optimizer_kwargs=_in_one_pass(optimizer_class) | (optimizer_kwargs or {}),
            **kwargs,
        )

    def set_training_mode(self, mode: bool) -> None:
        """Switch to training or evaluation, which SB3 does for every action: through all layers only where needed."""
        if mode != self.training:
            super().set_training_mode(mode)

    def set_scale(self, scale: Scale) -> None:
        """Set λ in critics and target critics."""
        self.steering_kwargs["scale"] = scale
        self.critic.scale = self.critic_target.scale = th.as_tensor(scale, device=self.device)

    def set_reach(self, reach: float) -> None:
        """Set how far Δz goes, in (0, 1]."""
        self.actor.reach.fill_(reach)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> SteeringActor:
        """Build the actor on the policy's device."""
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return SteeringActor(**kwargs, log_std_bounds=self.log_std_bounds).to(self.device)

    def make_critic(  # type: ignore[override]
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> SteeringCritic:
        """Build a critic ensemble on the policy's device."""
        return self._make_critic(features_extractor)

    def _make_critic(self, features_extractor: BaseFeaturesExtractor | None = None, **changes: Any) -> SteeringCritic:
        """Build one with some arguments changed."""
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        kwargs.pop("share_features_extractor")
        return SteeringCritic(**(kwargs | self.steering_kwargs | changes)).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters() | {"log_std_bounds": self.log_std_bounds}
        parameters["bounded_critic"] = self.steering_kwargs["bounded"]
        return parameters | {key: self.steering_kwargs[key] for key in ("scale", "layer_norm")}


def _in_one_pass(optimizer_class: type[th.optim.Optimizer]) -> dict[str, Any]:
    # The same numbers in less time, from the optimisers that can.
    return {"fused": True} if optimizer_class in (th.optim.Adam, th.optim.AdamW) else {}
