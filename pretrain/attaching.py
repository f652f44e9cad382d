"""Attaching a bottleneck to a frozen policy: the same loop as pretraining, on contexts that are embedded once."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch as th
from torch import nn
from tqdm import tqdm

from zprl_sb3.adapters import FrozenPolicy
from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig, bottleneck_loss
from zprl_sb3.policy import SteerablePolicy
from zprl_sb3.pretrain.configuration import by_task, compose, loop_settings
from zprl_sb3.pretrain.demonstrations import Demonstrations, load_demonstrations
from zprl_sb3.pretrain.loop import OfflineLoop, TrainingConfig
from zprl_sb3.pretrain.losses import Draws, draw
from zprl_sb3.pretrain.windows import Windows, cut_windows, split_episodes

EMBEDDED = 256
"""Observations that are embedded at a time."""


@dataclass
class Contexts:
    """Embedded windows: a frozen policy sees the same in every step, so it is asked once.

    :param contexts: c of every window (N, C)
    :param actions: Of all steps (M, A), in environment units
    :param targets: Row numbers of each window's actions (N, T)
    """

    contexts: th.Tensor
    actions: th.Tensor
    targets: th.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def device(self) -> th.device:
        """Where batches are."""
        return self.targets.device

    def batch(self, index: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Return contexts (B, C) and actions (B, T, A) of the chosen windows."""
        return self.contexts[index], self.actions[self.targets[index]]


class AttachingLosses(nn.Module):
    """The bottleneck's losses on a frozen policy.

    :param bottleneck: What is trained
    :param policy: The frozen policy
    :param beta: Weight of the KL
    :param reconstruction: Weight of the reconstruction error
    """

    def __init__(self, bottleneck: Bottleneck, policy: FrozenPolicy, beta: float, reconstruction: float) -> None:
        super().__init__()
        self.bottleneck, self.beta, self.reconstruction = bottleneck, beta, reconstruction
        self._policy = (policy,)  # not a submodule: it is not trained, averaged or saved

    def forward(self, context: th.Tensor, actions: th.Tensor, draws: Draws) -> dict[str, th.Tensor]:
        """Return ``bottleneck``, ``kl``, ``reconstruction`` and ``total``, as :func:`bottleneck_loss`."""
        (policy,) = self._policy

        def imitation(condition: th.Tensor) -> th.Tensor:
            return policy.imitation_loss(condition, context, actions, draws.noise, draws.times)

        return bottleneck_loss(self.bottleneck, context, imitation, self.beta, self.reconstruction, draws.latent)


class BottleneckTrainer(OfflineLoop[Bottleneck]):
    """Trains the bottleneck of a frozen policy.

    :param frozen: The policy, with its untrained bottleneck
    :param train: Training windows
    :param validation: Held-out windows
    :param config: As of :class:`~zprl_sb3.pretrain.loop.OfflineLoop`
    :param folder: Likewise
    """

    name = "attach"

    def __init__(
        self, frozen: FrozenPolicy, train: Contexts, validation: Contexts, config: TrainingConfig, folder: Path
    ) -> None:
        assert frozen.bottleneck is not None
        self.frozen = frozen
        super().__init__(frozen.bottleneck, train, validation, config, folder)

    def _losses_of(self, module: Bottleneck) -> nn.Module:
        return AttachingLosses(module, self.frozen, self.config.beta, self.config.reconstruction)

    def _draws(self, windows: int, batch_size: int) -> Draws:
        return draw(self.frozen, windows, batch_size, self.train.device)


def attach_bottleneck(
    policy: FrozenPolicy,
    dataset: Demonstrations | str | Path,
    latent_dim: int = 16,
    training: TrainingConfig | None = None,
    folder: str | Path | None = None,
    validation_ratio: float = 0.02,
) -> FrozenPolicy:
    """Train a bottleneck on a frozen policy and return the policy with it. Nothing else of the policy changes.

    The loss is the generator's own on the demonstrated actions where the policy has one (flow matching, diffusion);
    otherwise the distance between what the policy does on c and on the decoded latent. A run that was interrupted goes
    on in the same folder.

    :param policy: A frozen policy: one of the adapters', or a :class:`~zprl_sb3.policy.FlowPolicy`
    :param dataset: Demonstrations of what it sees, or their file; best what it was trained on
    :param latent_dim: d
    :param training: Settings of the loop; None: those of ``hyperparams/pretrain/attach.yaml`` for the task
    :param folder: For TensorBoard and the training state; None: they are not kept
    :param validation_ratio: Share of the demonstrations that are held out
    :raises DemonstrationError: If the file cannot be used
    :raises ValueError: If the demonstrations lack what the policy sees, or have actions of another size
    :raises FloatingPointError: If the loss is not finite
    """
    demos = dataset if isinstance(dataset, Demonstrations) else load_demonstrations(dataset)
    check_demonstrations(demos, policy)
    training = training or default_training(demos)
    th.manual_seed(training.seed)
    parts = split_episodes(len(demos), validation_ratio, training.seed)
    policy.bottleneck = None
    train = embedded(policy, demos, parts[0])
    train.contexts = policy.fit_context(train.contexts)
    held_out = embedded(policy, demos, parts[1])
    policy.bottleneck = Bottleneck(policy.context_dim, BottleneckConfig(latent_dim)).to(policy.device)
    with nullcontext(folder) if folder is not None else TemporaryDirectory() as place:
        policy.bottleneck = BottleneckTrainer(policy, train, held_out, training, Path(place)).run()
    return policy


def default_training(demos: Demonstrations, settings: dict[str, Any] | None = None) -> TrainingConfig:
    """Return settings of the loop for some demonstrations.

    :param demos: Their task says what the settings leave open
    :param settings: With ``training`` and ``seed``; None: those of ``hyperparams/pretrain/attach.yaml``
    """
    settings = settings or compose("attach", ["policy=", "output="])
    training = loop_settings(
        by_task(settings["training"], demos.env_id, demos.env_kwargs), sum(map(len, demos.actions))
    )
    return TrainingConfig(**training, seed=settings["seed"])


def check_demonstrations(demos: Demonstrations, policy: SteerablePolicy) -> None:
    """Raise a ValueError unless demonstrations hold what a policy sees, and actions as it makes them."""
    if policy.env_id not in (None, demos.env_id):
        raise ValueError(
            f"The policy is of {policy.env_id}, {demos.path} of {demos.env_id}: give demonstrations of its own task"
        )
    found = {key: tuple(episodes[0].shape[1:]) for key, episodes in demos.observations.items()}
    for key, shape in policy.observation_shapes.items():
        if found.get(key) != tuple(shape):
            raise ValueError(
                f"The policy sees {key!r} of shape {tuple(shape)}, {demos.path} holds {found}. If that is called "
                "otherwise there, or made of several, tell the adapter: options.keys={INPUT: [KEY]}, options.shapes"
            )
    if (size := demos.actions[0].shape[1]) != policy.action_dim:
        raise ValueError(f"The policy's actions have {policy.action_dim} numbers, those in {demos.path} {size}")


def embedded(policy: FrozenPolicy, demos: Demonstrations, episodes: list[int]) -> Contexts:
    """Embed all windows of some episodes."""
    steps = policy.target_steps
    windows = cut_windows(demos, episodes, policy.obs_steps, len(steps), policy.device, steps.start)
    rows = th.split(th.arange(len(windows), device=windows.device), EMBEDDED)
    bar = tqdm(rows, desc="embed", unit="batch", dynamic_ncols=True, disable=len(rows) < 8, leave=False)
    contexts = [policy.embed(_observations(windows, batch, policy.obs_steps)) for batch in bar]
    return Contexts(th.cat(contexts), windows.actions, windows.targets)


def _observations(windows: Windows, rows: th.Tensor, obs_steps: int) -> dict[str, th.Tensor]:
    obs, _ = windows.batch(rows)
    return dict(obs) if obs_steps > 1 else {key: values[:, 0] for key, values in obs.items()}
