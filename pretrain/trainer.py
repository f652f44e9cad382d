"""The offline loop: demonstrations -> flow policy and bottleneck. The only one in the project."""

from __future__ import annotations

import copy
import math
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from zprl_sb3.bottleneck import bottleneck_loss
from zprl_sb3.files import atomic_path
from zprl_sb3.flow import flow_loss, sample_times, without_gradients
from zprl_sb3.policy import FlowPolicy, Observation
from zprl_sb3.pretrain.windows import Windows

STATE = "training_state.pt"
EMA_POWER, EMA_MAX = 0.8, 0.9999
BETAS, WEIGHT_DECAY = (0.95, 0.999), 1e-6


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the offline loop.

    :param steps: Gradient steps
    :param batch_size: Windows per step
    :param learning_rate: Peak of the cosine schedule
    :param warmup_steps: Steps of linear warm-up before it
    :param beta: Weight of the bottleneck's KL
    :param reconstruction: Weight of its reconstruction error
    :param validate_every: Steps between validations
    :param save_every: Steps between saves of the training state
    :param seed: Of initialisation, split, batches and noise
    :raises ValueError: If a count is not a whole number of at least 1, or the learning rate is not positive
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    beta: float
    reconstruction: float
    validate_every: int
    save_every: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "save_every"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"training.{name} must be a whole number of at least 1, not {value!r}")
        if not isinstance(self.learning_rate, (int, float)) or not self.learning_rate > 0:
            raise ValueError(f"training.learning_rate must be positive, not {self.learning_rate!r}")


class Trainer:
    """Train a policy with AdamW, cosine schedule with warm-up, and an exponential moving average of the weights.

    Run again in the same folder after a kill or Ctrl-C, it goes on from the last saved state and ends with the same
    weights as an uninterrupted run.

    :param policy: With its bottleneck; its normalisers are fitted here
    :param train: Training windows
    :param validation: Held-out windows
    :param config: Settings
    :param folder: For TensorBoard and the training state
    """

    def __init__(
        self, policy: FlowPolicy, train: Windows, validation: Windows, config: TrainingConfig, folder: Path
    ) -> None:
        self.policy, self.train, self.validation, self.config, self.folder = policy, train, validation, config, folder
        frames = th.cat([train.observations[key] for key in policy.keys], dim=-1)
        policy.obs_normalizer.fit(frames)
        policy.action_normalizer.fit(train.actions)
        self.ema = copy.deepcopy(policy).freeze()
        self.optimizer = th.optim.AdamW(
            policy.parameters(), config.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
        )
        self.step = 0

    def run(self) -> FlowPolicy:
        """Train to the end and return the policy with EMA weights.

        :raises FloatingPointError: If the loss or a weight is not finite
        :raises ValueError: If the saved state is damaged
        """
        self._resume()
        th.set_flush_denormal(True)  # they appear late in the training and are slow
        try:
            with SummaryWriter(str(self.folder), purge_step=self.step) as board, self._bar() as bar:
                self._loop(board, bar)
        finally:
            th.set_flush_denormal(False)
        return self.ema

    def _loop(self, board: SummaryWriter, bar: tqdm[Any]) -> None:
        with _ctrl_c_waits() as received:
            for index in self._batches():
                losses = self._update(index)
                self._report(losses, board, bar)
                if received:
                    self._save()
                    tqdm.write(f"Interrupted at step {self.step}, all is saved. The same command goes on from there")
                    raise KeyboardInterrupt

    def _update(self, index: th.Tensor) -> dict[str, th.Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * _cosine(self.step, self.config.warmup_steps, self.config.steps)
        losses = offline_losses(self.policy, *self.train.batch(index), self.config)
        self.optimizer.zero_grad()
        losses["total"].backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        update_ema(self.ema, self.policy, self.step)
        return losses

    def _batches(self) -> Iterator[th.Tensor]:
        while self.step < self.config.steps:
            yield th.randint(len(self.train), (self.config.batch_size,), device=self.train.targets.device)

    def _report(self, losses: dict[str, th.Tensor], board: SummaryWriter, bar: tqdm[Any]) -> None:
        bar.update()
        if self.step % 50 == 0:
            values = {name: value.item() for name, value in losses.items()}
            if not math.isfinite(values["total"]):
                raise self._diverged(f"The loss is {values['total']}")
            bar.set_postfix({name: f"{values[name]:.4f}" for name in ("imitation", "flow", "kl")})
            for name, value in values.items():
                board.add_scalar(f"train/{name}", value, self.step)
        if self.step % self.config.validate_every == 0 or self.step == self.config.steps:
            for name, value in self.validate().items():
                board.add_scalar(f"validation/{name}", value, self.step)
        if self.step % self.config.save_every == 0 or self.step == self.config.steps:
            self._save()

    @th.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the losses of the EMA weights on held-out windows, with noise that is the same every time."""
        device = self.train.targets.device
        with th.random.fork_rng():
            th.manual_seed(0)
            index = th.randint(len(self.validation), (min(1024, 4 * len(self.validation)),), device=device)
            losses = offline_losses(self.ema, *self.validation.batch(index), self.config)
        return {name: value.item() for name, value in losses.items()}

    def _bar(self) -> tqdm[Any]:
        return tqdm(total=self.config.steps, initial=self.step, desc="pretrain", unit="step", dynamic_ncols=True)

    def _diverged(self, what: str) -> FloatingPointError:
        return FloatingPointError(
            f"{what} at step {self.step}: lower learning_rate (the last good state stays in {self.folder})"
        )

    def _save(self) -> None:
        if not all(bool(th.isfinite(weight).all()) for weight in self.policy.parameters()):
            raise self._diverged("There are weights that are not finite")
        state = {
            "step": self.step,
            "policy": self.policy.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": [th.get_rng_state(), *th.cuda.get_rng_state_all()],
        }
        # Through Python's own file, so that a full disk is told apart from other errors.
        with atomic_path(self.folder / STATE) as temporary, open(temporary, "wb") as file:
            th.save(state, file)

    def _resume(self) -> None:
        th.manual_seed(self.config.seed)
        file = self.folder / STATE
        if not file.is_file():
            return
        try:
            state = th.load(file, map_location=self.policy.device, weights_only=True)
        except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{file} is damaged: delete it to train from the beginning") from error
        self.step = state["step"]
        self.policy.load_state_dict(state["policy"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        cpu, *gpus = (rng.cpu() for rng in state["rng"])
        th.set_rng_state(cpu)
        th.cuda.set_rng_state_all(gpus)
        tqdm.write(f"Going on from step {self.step}, saved in {file}")


def offline_losses(
    policy: FlowPolicy, obs: Observation, actions: th.Tensor, config: TrainingConfig
) -> dict[str, th.Tensor]:
    """Return the imitation loss, the bottleneck's losses (same noise and times), and ``total``, their sum.

    The bottleneck's gradients reach neither the encoder nor the U-Net.

    :param obs: (B, n, D) for each key
    :param actions: (B, T, A) in environment units
    """
    assert policy.bottleneck is not None
    actions = policy.action_normalizer(actions)
    noise, times = th.randn_like(actions), sample_times(len(actions), actions.device)
    context = policy.context(obs)
    imitation = flow_loss(policy.unet, actions, noise, times, context)
    velocity = without_gradients(policy.unet)
    losses = bottleneck_loss(
        policy.bottleneck, velocity, context, actions, noise, times, config.beta, config.reconstruction
    )
    return {"imitation": imitation, **losses, "total": imitation + losses["total"]}


def update_ema(ema: nn.Module, module: nn.Module, step: int) -> None:
    """Move the average towards the weights with decay 1 - (1 + step)^-0.8, at most 0.9999."""
    decay = min(1 - (1 + step) ** -EMA_POWER, EMA_MAX)
    with th.no_grad():
        th._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - decay)


@contextmanager
def _ctrl_c_waits() -> Iterator[list[int]]:
    """Collect Ctrl-C: raised in the middle of an update it would leave a state that no uninterrupted run has."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there are signals handled
        yield received
        return
    previous = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)


def _cosine(step: int, warmup: int, total: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
