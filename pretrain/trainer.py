"""The offline loop: demonstrations -> flow policy and bottleneck. The only one in the project."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch as th
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from zprl_sb3.bottleneck import bottleneck_loss
from zprl_sb3.flow import flow_loss, sample_times, without_gradients
from zprl_sb3.interrupts import interrupts_wait
from zprl_sb3.policy import FlowPolicy, Observation
from zprl_sb3.pretrain.optimization import adamw, cosine, update_ema
from zprl_sb3.pretrain.training_state import read_state, write_state
from zprl_sb3.pretrain.windows import Windows

STATE = "training_state.pt"


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the offline loop.

    :param steps: Gradient steps
    :param batch_size: Windows per step
    :param learning_rate: Peak of the cosine schedule
    :param warmup_steps: Steps of linear warm-up before it
    :param betas: Of AdamW
    :param weight_decay: Of AdamW, on all weights
    :param ema_power: The average of the weights has the decay 1 - (1 + step)^-power
    :param ema_max: Largest decay
    :param beta: Weight of the bottleneck's KL
    :param reconstruction: Weight of its reconstruction error
    :param validate_every: Steps between validations
    :param save_every: Steps between saves of the training state and of the policy so far
    :param seed: Of initialisation, split, batches and noise
    :raises ValueError: If a count is not a whole number of at least 1, or a real number is out of its range
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    betas: Sequence[float]
    weight_decay: float
    ema_power: float
    ema_max: float
    beta: float
    reconstruction: float
    validate_every: int
    save_every: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "save_every"):
            self._require(name, _count(getattr(self, name)), "a whole number of at least 1")
        for name in ("learning_rate", "ema_power"):
            self._require(name, _real(getattr(self, name)) and getattr(self, name) > 0, "positive")
        self._require("weight_decay", _real(self.weight_decay) and self.weight_decay >= 0, "at least 0")
        self._require("ema_max", _share(self.ema_max), "at least 0 and below 1")
        betas = isinstance(self.betas, Sequence) and len(self.betas) == 2 and all(map(_share, self.betas))
        self._require("betas", betas, "two numbers of at least 0 and below 1")

    def _require(self, name: str, fits: bool, what: str) -> None:
        if not fits:
            raise ValueError(f"training.{name} must be {what}, not {getattr(self, name)!r}")


def _count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _real(value: object) -> bool:
    return isinstance(value, (int, float))


def _share(value: Any) -> bool:
    return _real(value) and 0 <= value < 1


class Trainer:
    """Train a policy with AdamW, cosine schedule with warm-up, and an exponential moving average of the weights.

    Run again in the same folder after a kill or Ctrl-C, it goes on from the last saved state and ends with the same
    weights as an uninterrupted run.

    :param policy: With its bottleneck; its normalisers are fitted here
    :param train: Training windows
    :param validation: Held-out windows
    :param config: Settings
    :param folder: For TensorBoard and the training state
    :param save_checkpoint: Called with the averaged policy and the step after every save of the state, so that there
        is a checkpoint to try before the training ends
    """

    def __init__(
        self,
        policy: FlowPolicy,
        train: Windows,
        validation: Windows,
        config: TrainingConfig,
        folder: Path,
        save_checkpoint: Callable[[FlowPolicy, int], object] | None = None,
    ) -> None:
        self.policy, self.train, self.validation, self.config, self.folder = policy, train, validation, config, folder
        self.save_checkpoint = save_checkpoint
        frames = th.cat([train.observations[key] for key in policy.keys], dim=-1)
        policy.obs_normalizer.fit(frames)
        policy.action_normalizer.fit(train.actions)
        self.ema = copy.deepcopy(policy).freeze()
        self.optimizer = adamw(policy, config.learning_rate, config.betas, config.weight_decay)
        self.step = 0

    def run(self) -> FlowPolicy:
        """Train to the end and return the policy with EMA weights.

        :raises FloatingPointError: If the loss or a weight is not finite
        :raises ValueError: If the saved state cannot be read, or is of another architecture
        :raises KeyboardInterrupt: After Ctrl-C, once the step is done and saved
        :raises SystemExit: The same after SIGTERM
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
        with interrupts_wait() as pending:
            for index in self._batches():
                losses = self._update(index)
                self._report(losses, board, bar)
                if pending:
                    self._save()
                    tqdm.write(f"Interrupted at step {self.step}, all is saved. The same command goes on from there")
                    raise pending.exception()

    def _update(self, index: th.Tensor) -> dict[str, th.Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * cosine(self.step, self.config.warmup_steps, self.config.steps)
        losses = offline_losses(self.policy, *self.train.batch(index), self.config)
        self.optimizer.zero_grad()
        losses["total"].backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        update_ema(self.ema, self.policy, self.step, self.config.ema_power, self.config.ema_max)
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
        write_state(self.folder / STATE, state)
        if self.save_checkpoint is not None:
            self.save_checkpoint(self.ema, self.step)

    def _resume(self) -> None:
        th.manual_seed(self.config.seed)
        file = self.folder / STATE
        if not file.is_file():
            return
        state = read_state(file)
        try:
            self.policy.load_state_dict(state["policy"])
            self.ema.load_state_dict(state["ema"])
        except RuntimeError as error:
            raise ValueError(
                f"{file} is of a policy with another architecture: go on with the model settings that it was trained "
                "with, or delete it to train from the beginning"
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        cpu, *gpus = state["rng"]
        th.set_rng_state(cpu)
        th.cuda.set_rng_state_all(gpus[: th.cuda.device_count()])
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
