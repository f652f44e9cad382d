"""Pretraining: demonstrations -> flow policy and bottleneck."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch as th
from torch import nn

from zprl_sb3.policy import FlowPolicy
from zprl_sb3.pretrain.acceleration import use_autocast
from zprl_sb3.pretrain.loop import OfflineLoop, TrainingConfig
from zprl_sb3.pretrain.losses import Draws, OfflineLosses, draw
from zprl_sb3.pretrain.processes import Processes
from zprl_sb3.pretrain.windows import Windows


class Trainer(OfflineLoop[FlowPolicy]):
    """Trains a flow policy and its bottleneck.

    :param policy: With its bottleneck; its normalisers are fitted here
    :param train: Training windows
    :param validation: Held-out windows
    :param config: As of :class:`~zprl_sb3.pretrain.loop.OfflineLoop`, and so are the others
    """

    name = "pretrain"

    def __init__(
        self,
        policy: FlowPolicy,
        train: Windows,
        validation: Windows,
        config: TrainingConfig,
        folder: Path,
        save_checkpoint: Callable[[FlowPolicy, int], object] | None = None,
        processes: Processes | None = None,
    ) -> None:
        if policy.vector_keys:
            vectors = th.cat([train.observations[key].float() for key in policy.vector_keys], dim=-1)
            policy.obs_normalizer.fit(vectors)
        policy.action_normalizer.fit(train.actions, config.unscaled(policy.action_dim))
        super().__init__(policy, train, validation, config, folder, save_checkpoint, processes)

    def _losses_of(self, module: FlowPolicy) -> nn.Module:
        autocast = use_autocast(self.config.autocast, module, self.train.device)
        return OfflineLosses(module, self.config.beta, self.config.reconstruction, autocast)

    def _draws(self, windows: int, batch_size: int) -> Draws:
        return draw(self.policy, windows, batch_size, self.train.device)
