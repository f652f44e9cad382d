"""The offline loop: AdamW, cosine schedule, averaged weights, progress, resuming. The only one in the project."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch as th
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from zprl_sb3.interrupts import TERMINATED, interrupts_wait
from zprl_sb3.pretrain.acceleration import compiled
from zprl_sb3.pretrain.losses import Draws
from zprl_sb3.pretrain.optimization import adamw, cosine, ema_decay
from zprl_sb3.pretrain.processes import Processes
from zprl_sb3.pretrain.training_state import read_state, write_state

STATE = "training_state.pt"
SHOWN = ("imitation", "bottleneck", "kl")  # of the losses, beside the progress bar

Tensors = tuple[th.Tensor, ...] | list[th.Tensor]
Trained = TypeVar("Trained", bound=nn.Module)


class Data(Protocol):
    """What batches are taken from."""

    def __len__(self) -> int: ...

    @property
    def device(self) -> th.device:
        """Where batches are."""
        ...

    def batch(self, index: th.Tensor) -> tuple[Any, th.Tensor]:
        """Return inputs and actions of the chosen windows."""
        ...


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of the offline loop.

    :param steps: Gradient steps
    :param batch_size: Windows per step, over all processes
    :param learning_rate: Peak of the cosine schedule
    :param warmup_steps: Steps of linear warm-up before it
    :param betas: Of AdamW
    :param weight_decay: Of AdamW, on all weights
    :param ema_power: The average of the weights has the decay 1 - (1 + step)^-power
    :param ema_max: Largest decay
    :param beta: Weight of the bottleneck's KL
    :param reconstruction: Weight of its reconstruction error
    :param unscaled_actions: Dimensions of the action that are learned as they are, not scaled to [-1, 1], or ``"all"``
    :param validate_every: Steps between validations
    :param save_every: Steps between saves of the training state and of the policy so far
    :param seed: Of initialisation, split, batches and noise
    :param autocast: Run encoders and U-Net in bfloat16; ``"auto"`` where that is faster, see
        :func:`~zprl_sb3.pretrain.acceleration.use_autocast`
    :param compile: Compile the losses with ``torch.compile``; ``"auto"`` as for ``autocast``
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
    unscaled_actions: Sequence[int] | str = ()
    autocast: bool | str = "auto"
    compile: bool | str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "save_every"):
            self._require(name, _count(getattr(self, name)), "a whole number of at least 1")
        for name in ("learning_rate", "ema_power"):
            self._require(name, _real(getattr(self, name)) and getattr(self, name) > 0, "positive")
        self._require("weight_decay", _real(self.weight_decay) and self.weight_decay >= 0, "at least 0")
        self._require("ema_max", _share(self.ema_max), "at least 0 and below 1")
        betas = isinstance(self.betas, Sequence) and len(self.betas) == 2 and all(map(_share, self.betas))
        self._require("betas", betas, "two numbers of at least 0 and below 1")
        for name in ("autocast", "compile"):
            self._require(name, getattr(self, name) in (True, False, "auto"), "true, false or auto")

    def unscaled(self, action_dim: int) -> Sequence[int]:
        """Return the dimensions of an action that are not scaled.

        :param action_dim: A
        :raises ValueError: If there is no such dimension
        """
        chosen: Sequence[Any] = range(action_dim) if self.unscaled_actions == "all" else self.unscaled_actions
        fits = all(type(index) is int and 0 <= index < action_dim for index in chosen)
        self._require("unscaled_actions", fits, f"'all' or a list of whole numbers from 0 to {action_dim - 1}")
        return chosen

    def _require(self, name: str, fits: bool, what: str) -> None:
        if not fits:
            raise ValueError(f"training.{name} must be {what}, not {getattr(self, name)!r}")


def _count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _real(value: object) -> bool:
    return isinstance(value, (int, float))


def _share(value: Any) -> bool:
    return _real(value) and 0 <= value < 1


class OfflineLoop(ABC, Generic[Trained]):
    """Train a module with AdamW, cosine schedule with warm-up, and an exponential moving average of the weights.

    Run again in the same folder after a kill or Ctrl-C, it goes on from the last saved state and ends with the same
    weights as an uninterrupted run. A subclass says what is drawn for a batch and which losses follow from it.

    :param policy: What is trained
    :param train: Training windows
    :param validation: Held-out windows
    :param config: Settings
    :param folder: For TensorBoard and the training state
    :param save_checkpoint: Called with the averaged module and the step after every save of the state, so that there
        is a checkpoint to try before the training ends
    :param processes: Those that train together, each with its own policy and windows; one by default
    """

    name: str
    """What the progress bar calls it."""

    def __init__(
        self,
        policy: Trained,
        train: Data,
        validation: Data,
        config: TrainingConfig,
        folder: Path,
        save_checkpoint: Callable[[Trained, int], object] | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.policy, self.train, self.validation, self.config, self.folder = policy, train, validation, config, folder
        self.save_checkpoint = save_checkpoint
        self.processes = processes or Processes()
        self._average = AveragedModel(policy, multi_avg_fn=self._move_average)
        self._average.n_averaged.fill_(1)  # the initial weights count: from zero, the first update would replace them
        self.ema: Trained = self._average.module.eval().requires_grad_(False)  # type: ignore[assignment]
        self.optimizer = adamw(policy, config.learning_rate, config.betas, config.weight_decay)
        self.step = 0
        self._losses, self._ema_losses = (self._losses_of(each) for each in (policy, self.ema))

    @abstractmethod
    def _losses_of(self, module: Trained) -> nn.Module:
        """Return the losses of a batch of the data and its draws, as a module that returns them by name."""

    @abstractmethod
    def _draws(self, windows: int, batch_size: int) -> Draws:
        """Return what is random in a batch; ``windows`` is how many there are to choose from."""

    def run(self) -> Trained:
        """Train to the end and return the module with EMA weights.

        :raises FloatingPointError: If the loss or a weight is not finite
        :raises ValueError: If the saved state cannot be read, or is of another architecture
        :raises KeyboardInterrupt: After Ctrl-C, once the step is done and saved
        :raises SystemExit: The same after SIGTERM
        """
        losses = compiled(self._losses, self._try, self.config.compile, self.train.device)
        self._losses = self.processes.parallel(losses)
        self._resume()
        th.set_flush_denormal(True)  # they appear late in the training and are slow
        try:
            with self._board() as board, self._bar() as bar:
                self._loop(board, bar)
        finally:
            th.set_flush_denormal(False)
        return self.ema

    def _loop(self, board: SummaryWriter | None, bar: tqdm[Any]) -> None:
        with interrupts_wait() as pending:
            while self.step < self.config.steps:
                losses = self._update(self._draw())
                self._report(losses, board, bar)
                if self.processes.any(bool(pending)):
                    self._save()
                    self._say(f"Interrupted at step {self.step}, all is saved. The same command goes on from there")
                    raise pending.exception() if pending else SystemExit(TERMINATED)

    def _draw(self) -> Draws:
        return self._draws(len(self.train), self.config.batch_size)

    def _update(self, draws: Draws) -> dict[str, th.Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * cosine(self.step, self.config.warmup_steps, self.config.steps)
        mine = self.processes.part(draws)
        losses: dict[str, th.Tensor] = self._losses(*self.train.batch(mine.windows), mine)
        self.optimizer.zero_grad()
        losses["total"].backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.step += 1
        self._average.update_parameters(self.policy)
        return losses

    def _move_average(self, averages: Tensors, weights: Tensors, _: th.Tensor | int) -> None:
        # By our own count of updates: theirs may lie on a GPU, which would have to wait to tell it.
        decay = ema_decay(self.step, self.config.ema_power, self.config.ema_max)
        th._foreach_lerp_(averages, weights, 1 - decay)

    def _report(self, losses: dict[str, th.Tensor], board: SummaryWriter | None, bar: tqdm[Any]) -> None:
        bar.update()
        last = self.step == self.config.steps
        if self.step % 50 == 0:
            values = self.processes.mean(losses)
            if not math.isfinite(values["total"]):
                raise self._diverged(f"The loss is {values['total']}")
            bar.set_postfix({name: f"{values[name]:.4f}" for name in SHOWN if name in values})
            _log(board, "train", values, self.step)
        if board is not None and (self.step % self.config.validate_every == 0 or last):
            _log(board, "validation", self.validate(), self.step)
        if self.step % self.config.save_every == 0 or last:
            self._save()

    @th.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the losses of the EMA weights on held-out windows, with noise that is the same every time."""
        count, sums = min(1024, 4 * len(self.validation)), Counter[str]()
        with self._own_random_numbers():
            th.manual_seed(0)
            draws = self._draws(len(self.validation), count)._replace(where=None)
        for start in range(0, count, self.config.batch_size):
            part = draws.rows(slice(start, start + self.config.batch_size))
            losses = self._ema_losses(*self.validation.batch(part.windows), part)
            sums.update({name: value.item() * len(part.windows) / count for name, value in losses.items()})
        return dict(sums)

    def _try(self, losses: nn.Module) -> None:
        """Compute losses and their gradients as in a step, and change nothing by it."""
        with self._own_random_numbers():
            mine = self.processes.part(self._draw())
        losses(*self.train.batch(mine.windows), mine)["total"].backward()
        self.policy.zero_grad()

    def _own_random_numbers(self) -> AbstractContextManager[None]:
        # Without a list it would wake every GPU of the machine.
        device = self.train.device
        return th.random.fork_rng([device] if device.type == "cuda" else [])

    def _board(self) -> AbstractContextManager[SummaryWriter | None]:
        return SummaryWriter(str(self.folder), purge_step=self.step) if self.processes.first else nullcontext()

    def _bar(self) -> tqdm[Any]:
        steps, first = self.config.steps, self.processes.first
        return tqdm(total=steps, initial=self.step, desc=self.name, unit="step", dynamic_ncols=True, disable=not first)

    def _say(self, text: str) -> None:
        if self.processes.first:
            tqdm.write(text)

    def _diverged(self, what: str) -> FloatingPointError:
        return FloatingPointError(
            f"{what} at step {self.step}: lower learning_rate (the last good state stays in {self.folder})"
        )

    def _save(self) -> None:
        if not all(bool(th.isfinite(weight).all()) for weight in self.policy.parameters()):
            raise self._diverged("There are weights that are not finite")
        if self.processes.first:
            state = {
                "step": self.step,
                "policy": self.policy.state_dict(),
                "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "rng": self._generators(),
            }
            write_state(self.folder / STATE, state)
            if self.save_checkpoint is not None:
                self.save_checkpoint(self.ema, self.step)
        self.processes.wait()  # whoever went ahead could end, and torchrun would end the one that writes

    def _generators(self) -> list[th.Tensor]:
        gpu = [th.cuda.get_rng_state(self.train.device)] if self.train.device.type == "cuda" else []
        return [th.get_rng_state(), *gpu]

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
                f"{file} is of another architecture: go on with the model settings that it was trained "
                "with, or delete it to train from the beginning"
            ) from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        cpu, *gpus = state["rng"]
        th.set_rng_state(cpu)
        if gpus and self.train.device.type == "cuda":
            th.cuda.set_rng_state(gpus[0], self.train.device)
        self._say(f"Going on from step {self.step}, saved in {file}")


def _log(board: SummaryWriter | None, group: str, values: dict[str, float], step: int) -> None:
    for name, value in values.items() if board is not None else ():
        board.add_scalar(f"{group}/{name}", value, step)  # type: ignore[union-attr]
