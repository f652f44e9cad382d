"""Samples per second of a pretraining step on images, against the usual loop over a Dataset and a DataLoader.

Both train the same networks on the same two cameras of 84 by 84 pixels with the same losses and batches. The usual loop
has a Dataset that returns one sample (images cropped, as floats, channels first), a DataLoader that collates them,
float32 arithmetic, AdamW as it comes, an average of the weights that loops over them, and a look at the loss at every
step. Ours is the step of ``zprl pretrain`` as its settings have it (``ours``), and in float32 (``ours_float32``), which
leaves the way of the data and the optimiser as the difference. On a GPU there is ``ours_plain`` too: not compiled.

All run in one process and take turns, so that whatever else the machine does falls on each alike; on the CPU with one
thread. The figures are medians over the blocks; a ratio says how many times as fast as the usual loop the other is.
Memory: on a GPU the peak of each above what lay there before it was made (weights, their average, optimiser and the
step itself); the images, which only ours keep on the GPU, come on top (``pretrain_images``). On a CPU the peak of the
process.
"""

from __future__ import annotations

import argparse
import copy
import gc
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from torch.utils.data import DataLoader, Dataset

from zprl_sb3.bottleneck import bottleneck_loss
from zprl_sb3.flow import flow_loss, sample_times, without_gradients
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.pretrain.acceleration import compiled
from zprl_sb3.pretrain.configuration import by_task, compose
from zprl_sb3.pretrain.loop import TrainingConfig
from zprl_sb3.pretrain.trainer import Trainer
from zprl_sb3.pretrain.windows import Windows
from zprl_sb3.scripts.pretrain import build_policy
from zprl_sb3.vision import MEAN, STD

SHAPES: dict[str, tuple[int, ...]] = {"front_image": (84, 84, 3), "hand_image": (84, 84, 3), "proprio": (9,)}
ACTION_DIM, SEED, TASK = 10, 0, "zprl/Square-v0"
# By device: model settings, batch size, samples, steps in a block.
CASES: dict[str, dict[str, Any]] = {
    "cpu": {"models": ("small_image", "paper"), "batch_size": 16, "samples": 500, "steps": 1},
    "cuda": {"models": ("small_image", "paper"), "batch_size": 256, "samples": 4000, "steps": 10},
}
Batch = dict[str, th.Tensor]
Step = Callable[[], object]
Make = Callable[[], Step]


def make_policy(model: str) -> FlowPolicy:
    """Return an untrained policy as ``zprl pretrain model=...`` makes it for robosuite's square."""
    settings = by_task(compose(overrides=[f"model={model}", "demos=x", "output=x"])["model"], TASK)
    th.manual_seed(SEED)
    return build_policy(SHAPES, ACTION_DIM, settings)


def make_config(batch_size: int) -> TrainingConfig:
    """Return the settings of ``zprl pretrain`` for it, without an end."""
    training = by_task(compose(overrides=["demos=x", "output=x"])["training"], TASK)
    del training["epochs"]
    return TrainingConfig(**training | {"steps": 10**6, "batch_size": batch_size}, seed=SEED)


def make_windows(samples: int, horizon: int, device: str) -> Windows:
    """Return windows of random pixels and numbers."""
    th.manual_seed(SEED)
    rows = th.arange(samples, device=device)[:, None]
    observations = {
        key: th.randint(0, 256, (samples, *shape), dtype=th.uint8) if len(shape) == 3 else th.randn(samples, *shape)
        for key, shape in SHAPES.items()
    }
    return Windows(
        {key: values.to(device) for key, values in observations.items()},
        th.randn(samples, ACTION_DIM).to(device),
        rows,
        (rows + th.arange(horizon, device=device)).clamp(max=samples - 1),
    )


class Samples(Dataset[Batch]):
    """What is usually written: one sample at a time, images as floats with the channels first."""

    def __init__(self, windows: Windows, crop: Sequence[int]) -> None:
        self.observations = {key: values.cpu().numpy() for key, values in windows.observations.items()}
        self.actions, self.targets = windows.actions.cpu().numpy(), windows.targets.cpu().numpy()
        self.crop = crop

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> Batch:
        images = [key for key, values in self.observations.items() if values.ndim == 4]
        return self.sample(number, {key: [np.random.randint(84 - size + 1) for size in self.crop] for key in images})

    def sample(self, number: int, corners: dict[str, list[int]]) -> Batch:
        """Return a sample with the images of each camera cut at its corner."""
        sample = {"actions": th.from_numpy(self.actions[self.targets[number]])}
        for key, values in self.observations.items():
            cut = self._cut(values[number], *corners[key]) if key in corners else values[number]
            sample[key] = th.from_numpy(cut)
        return sample

    def _cut(self, image: Any, top: int, left: int) -> Any:
        cut = image[top : top + self.crop[0], left : left + self.crop[1]]
        return np.moveaxis(cut, -1, 0).astype(np.float32) / 255


def endless(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Return batches, epoch after epoch."""
    while True:
        yield from loader


def usual_losses(
    policy: FlowPolicy, batch: Batch, noise: th.Tensor, times: th.Tensor, latent: th.Tensor, config: TrainingConfig
) -> dict[str, th.Tensor]:
    """Return the losses of the usual loop, as :class:`zprl_sb3.pretrain.losses.OfflineLosses` names them."""
    mean, std = (th.tensor(values, device=noise.device)[:, None, None] for values in (MEAN, STD))
    cameras = zip(policy.image_keys, policy.image_encoders, strict=True)
    parts = [encoder.head(encoder.trunk((batch[key] - mean) / std)) for key, encoder in cameras]  # type: ignore[operator]
    context = th.cat([*parts, policy.obs_normalizer(batch["proprio"])], dim=1)
    actions = policy.action_normalizer(batch["actions"])
    imitation = flow_loss(policy.unet, actions, noise, times, context)
    assert policy.bottleneck is not None
    velocity, weights = without_gradients(policy.unet), (config.beta, config.reconstruction)
    losses = bottleneck_loss(
        policy.bottleneck, context, lambda c: flow_loss(velocity, actions, noise, times, c), *weights, latent
    )
    return {"imitation": imitation, **losses, "total": imitation + losses["total"]}


def usual(policy: FlowPolicy, windows: Windows, config: TrainingConfig, device: str) -> Step:
    """Return the step of the usual loop."""
    workers = 4 if device == "cuda" else 0
    batches = endless(
        DataLoader(
            Samples(windows, policy.config.crop),
            config.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=bool(workers),
            pin_memory=bool(workers),
        )
    )
    assert policy.bottleneck is not None
    latent_dim = policy.bottleneck.latent_dim
    ema = copy.deepcopy(policy).freeze()
    optimizer = th.optim.AdamW(policy.parameters(), 1e-4, (0.95, 0.999), weight_decay=1e-6)

    def step() -> None:
        batch = {key: values.to(device, non_blocking=True) for key, values in next(batches).items()}
        actions = batch["actions"]
        noise, times = th.randn_like(actions), sample_times(len(actions), actions.device)
        latent = th.randn(len(actions), latent_dim, device=device)
        loss = usual_losses(policy, batch, noise, times, latent, config)["total"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with th.no_grad():
            for average, weight in zip(ema.parameters(), policy.parameters(), strict=True):
                average.mul_(0.999).add_(weight, alpha=0.001)
        loss.item()

    return step


def make_trainer(policy: FlowPolicy, windows: Windows, config: TrainingConfig, **changes: Any) -> Trainer:
    """Return the trainer of ``zprl pretrain``, with some settings changed."""
    config = TrainingConfig(**vars(config) | changes)
    return Trainer(policy, windows, windows, config, Path(tempfile.gettempdir()))


def ours(policy: FlowPolicy, windows: Windows, config: TrainingConfig, **changes: Any) -> Step:
    """Return the step of ``zprl pretrain``."""
    trainer = make_trainer(policy, windows, config, **changes)
    trainer._losses = compiled(trainer._losses, trainer._try, trainer.config.compile, windows.device)
    return lambda: trainer._update(trainer._draw())


def prepared(model: str, case: dict[str, Any], device: str) -> tuple[FlowPolicy, Windows, TrainingConfig]:
    """Return what all train: a policy whose normalisers are fitted, windows and settings."""
    policy, config = make_policy(model).to(device), make_config(case["batch_size"])
    windows = make_windows(case["samples"], policy.horizon, device)
    policy.obs_normalizer.fit(windows.observations["proprio"])
    policy.action_normalizer.fit(windows.actions, config.unscaled(ACTION_DIM))
    return policy, windows, config


def plain(policy: FlowPolicy) -> FlowPolicy:
    """Return a copy that is contiguous, as a network comes that nobody has touched."""
    copied: FlowPolicy = copy.deepcopy(policy).to(memory_format=th.contiguous_format)  # type: ignore[call-overload]
    return copied


def make_steps(model: str, case: dict[str, Any], device: str) -> dict[str, Make]:
    """Return what makes the steps to compare, by name, each with its own copy of the same policy."""
    policy, windows, config = prepared(model, case, device)
    ways: dict[str, dict[str, Any]] = {"ours": {}, "ours_float32": {"autocast": False, "compile": False}}
    if device == "cuda":
        ways["ours_plain"] = {"compile": False}

    def make_ours(changes: dict[str, Any]) -> Step:
        return ours(copy.deepcopy(policy), windows, config, **changes)

    makers = {name: partial(make_ours, changes) for name, changes in ways.items()}
    return {"loader": lambda: usual(plain(policy), windows, config, device), **makers}


def warm(make: Make, count: int, device: str) -> tuple[Step, float]:
    """Make a step and take it a few times; return it and the peak of GPU memory above what lay there before, in MB."""
    gc.collect()
    before = th.cuda.memory_allocated() if device == "cuda" else 0
    step = make()
    seconds_of(step, count, device)
    if device != "cuda":
        return step, 0.0
    th.cuda.reset_peak_memory_stats()  # compiling takes memory too
    seconds_of(step, count, device)
    return step, (th.cuda.max_memory_allocated() - before) / 1e6


def seconds_of(step: Step, count: int, device: str) -> float:
    """Return how long a step takes, of some in a row."""
    if device == "cuda":
        th.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device == "cuda":
        th.cuda.synchronize()
    return (time.perf_counter() - start) / count


def measure(makers: dict[str, Make], count: int, blocks: int, device: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds per step (the median over blocks that take turns) and, on a GPU, peaks of memory in MB."""
    warmed = {name: warm(make, count, device) for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in warmed}
    for _ in range(blocks):
        for name, (step, _) in warmed.items():
            seconds[name].append(seconds_of(step, count, device))
    memory = {name: peak for name, (_, peak) in warmed.items() if device == "cuda"}
    return {name: statistics.median(values) for name, values in seconds.items()}, memory


def report(device: str, blocks: int) -> Iterator[str]:
    """Yield the lines of one device."""
    case = CASES[device]
    for model in case["models"]:
        seconds, memory = measure(make_steps(model, case, device), case["steps"], blocks, device)
        for name, value in seconds.items():
            yield f"RESULT pretrain_{device}_{model}_{name} {case['batch_size'] / value:.2f} samples/s"
        for name in list(seconds)[1:]:
            yield f"RESULT pretrain_ratio_{device}_{model}_{name} {seconds['loader'] / seconds[name]:.2f} x"
        for name, peak in memory.items():
            yield f"RESULT pretrain_memory_{device}_{model}_{name} {peak:.1f} MB"
    images = case["samples"] * sum(np.prod(shape) for shape in SHAPES.values() if len(shape) == 3) / 1e6
    yield f"RESULT pretrain_images_{device} {images:.1f} MB"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer blocks: less than 50 seconds")
    blocks = 3 if parser.parse_args(argv).quick else 20
    th.set_num_threads(1)
    results = [line for device in ("cpu", *["cuda"] * th.cuda.is_available()) for line in report(device, blocks)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print("\n".join([*results, f"RESULT pretrain_memory_process {peak:.1f} MB"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
