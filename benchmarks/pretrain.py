"""Samples per second of a pretraining step on images, against the usual loop over a Dataset and a DataLoader.

Both train the same networks on the same two cameras of 84 by 84 pixels with the same losses and batches. The usual loop
has a Dataset that returns one sample (images cropped, as floats, channels first), a DataLoader that collates them,
float32 arithmetic, AdamW as it comes, an average of the weights that loops over them, and a look at the loss at every
step. Ours is the step of ``zprl pretrain`` as its settings have it (``ours``), and in float32 (``ours_float32``), which
leaves the way of the data and the optimiser as the difference. On a GPU there is ``ours_plain`` too: not compiled.

All run in one process and take turns, so that whatever else the machine does falls on each alike; on the CPU with one
thread. The figures are medians over the blocks; a ratio says how many times as fast as the usual loop the other is.
Memory: on a GPU the peak of each; on a CPU the peak of the process, beside the size of the images it trains on.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from torch.utils.data import DataLoader, Dataset

from zprl_sb3.bottleneck import bottleneck_loss
from zprl_sb3.flow import flow_loss, sample_times, without_gradients
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.pretrain.acceleration import compiled
from zprl_sb3.pretrain.trainer import Trainer, TrainingConfig
from zprl_sb3.pretrain.windows import Windows
from zprl_sb3.scripts.pretrain import build_policy, by_task, compose
from zprl_sb3.vision import MEAN, STD

SHAPES: dict[str, tuple[int, ...]] = {"front_image": (84, 84, 3), "hand_image": (84, 84, 3), "proprio": (9,)}
ACTION_DIM, SEED = 10, 0
# By device: model settings, batch size, samples, steps in a block.
CASES: dict[str, dict[str, Any]] = {
    "cpu": {"models": ("small_image", "paper"), "batch_size": 16, "samples": 500, "steps": 1},
    "cuda": {"models": ("small_image", "paper"), "batch_size": 256, "samples": 4000, "steps": 10},
}
Step = Callable[[], object]


def make_policy(model: str) -> FlowPolicy:
    """Return an untrained policy as ``zprl pretrain model=...`` makes it for robosuite's square."""
    settings = by_task(compose(overrides=[f"model={model}", "demos=x", "output=x"])["model"], "zprl/Square-v0")
    th.manual_seed(SEED)
    return build_policy(SHAPES, ACTION_DIM, settings)


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


class Samples(Dataset[dict[str, th.Tensor]]):
    """What is usually written: one sample at a time, images as floats with the channels first."""

    def __init__(self, windows: Windows, crop: Sequence[int]) -> None:
        self.observations = {key: values.cpu().numpy() for key, values in windows.observations.items()}
        self.actions, self.targets = windows.actions.cpu().numpy(), windows.targets.cpu().numpy()
        self.crop = crop

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> dict[str, th.Tensor]:
        sample = {"actions": th.from_numpy(self.actions[self.targets[number]])}
        for key, values in self.observations.items():
            sample[key] = th.from_numpy(self._image(values[number]) if values.ndim == 4 else values[number])
        return sample

    def _image(self, image: Any) -> Any:
        (height, width), (top, left) = self.crop, (np.random.randint(84 - size + 1) for size in self.crop)
        cut = image[top : top + height, left : left + width]
        return np.moveaxis(cut, -1, 0).astype(np.float32) / 255


def endless(loader: DataLoader[dict[str, th.Tensor]]) -> Iterator[dict[str, th.Tensor]]:
    """Return batches, epoch after epoch."""
    while True:
        yield from loader


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
    ema = copy.deepcopy(policy).freeze()
    optimizer = th.optim.AdamW(policy.parameters(), 1e-4, (0.95, 0.999), weight_decay=1e-6)
    mean, std = (th.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))

    def step() -> None:
        batch = {key: values.to(device, non_blocking=True) for key, values in next(batches).items()}
        cameras = zip(policy.image_keys, policy.image_encoders, strict=True)
        parts = [encoder.head(encoder.trunk((batch[key] - mean) / std)) for key, encoder in cameras]  # type: ignore[operator,union-attr]
        context = th.cat([*parts, policy.obs_normalizer(batch["proprio"])], dim=1)
        actions = policy.action_normalizer(batch["actions"])
        noise, times = th.randn_like(actions), sample_times(len(actions), actions.device)
        loss = flow_loss(policy.unet, actions, noise, times, context)
        assert policy.bottleneck is not None
        velocity = without_gradients(policy.unet)
        losses = bottleneck_loss(policy.bottleneck, velocity, context, actions, noise, times, 2e-4, 0.01)
        loss = loss + losses["total"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with th.no_grad():
            for average, weight in zip(ema.parameters(), policy.parameters(), strict=True):
                average.mul_(0.999).add_(weight, alpha=0.001)
        loss.item()

    return step


def ours(policy: FlowPolicy, windows: Windows, config: TrainingConfig, **changes: Any) -> Step:
    """Return the step of ``zprl pretrain``."""
    config = TrainingConfig(**vars(config) | changes)
    trainer = Trainer(policy, windows, windows, config, Path(tempfile.gettempdir()))
    trainer._losses = compiled(trainer._losses, trainer._try, config.compile, windows.device)
    return lambda: trainer._update(trainer._draw())


def make_steps(model: str, case: dict[str, Any], device: str) -> dict[str, Step]:
    """Return the steps to compare, by name, each with its own copy of the same policy."""
    policy = make_policy(model).to(device)
    windows = make_windows(case["samples"], policy.horizon, device)
    training = compose(overrides=["demos=x", "output=x"])["training"] | {"batch_size": case["batch_size"]}
    config = TrainingConfig(**training, seed=SEED)
    policy.obs_normalizer.fit(windows.observations["proprio"])
    policy.action_normalizer.fit(windows.actions)
    ways: dict[str, dict[str, Any]] = {"ours": {}, "ours_float32": {"autocast": False, "compile": False}}
    if device == "cuda":
        ways["ours_plain"] = {"compile": False}
    steps = {name: ours(copy.deepcopy(policy), windows, config, **changes) for name, changes in ways.items()}
    # Contiguous, as a network comes that nobody has touched.
    plain = copy.deepcopy(policy).to(memory_format=th.contiguous_format)  # type: ignore[call-overload]
    return {"loader": usual(plain, windows, config, device), **steps}


def measure(steps: dict[str, Step], count: int, blocks: int, device: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds per step (the median over blocks that take turns) and, on a GPU, peaks of memory in MB."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    memory: dict[str, float] = {}
    for block in range(blocks + 1):
        for name, step in steps.items():
            if device == "cuda":
                th.cuda.synchronize()
                th.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            for _ in range(count):
                step()
            if device == "cuda":
                th.cuda.synchronize()
                memory[name] = th.cuda.max_memory_allocated() / 1e6
            if block:  # the first one warms up
                seconds[name].append((time.perf_counter() - start) / count)
    return {name: statistics.median(values) for name, values in seconds.items()}, memory


def report(device: str, blocks: int) -> Iterator[str]:
    """Yield the lines of one device."""
    case = CASES[device]
    for model in case["models"]:
        steps = make_steps(model, case, device)
        seconds, memory = measure(steps, case["steps"], blocks, device)
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
