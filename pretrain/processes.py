"""One process or, under ``torchrun``, several that share every batch: one for each GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th
from torch import distributed as dist
from torch import nn

from zprl_sb3.pretrain.losses import Draws


class Processes:
    """The processes of a training and which of them this one is. All draw the same batch and compute their rows of it.

    :param rank: This one's number
    :param size: How many there are
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files."""
        return self.rank == 0

    def part(self, draws: Draws) -> Draws:
        """Return this process's rows of a batch.

        :raises ValueError: If the batch cannot be divided evenly
        """
        if len(draws.windows) % self.size:
            raise ValueError(f"batch_size {len(draws.windows)} cannot be divided evenly among {self.size} processes")
        count = len(draws.windows) // self.size
        return draws.rows(slice(self.rank * count, (self.rank + 1) * count))

    def parallel(self, module: nn.Module) -> nn.Module:
        """Return the module such that its gradients are the mean over all processes."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)

    def mean(self, values: dict[str, th.Tensor]) -> dict[str, float]:
        """Return the means of scalars over all processes."""
        numbers = th.stack(list(values.values())).detach().double().cpu()
        if self.size > 1:
            dist.all_reduce(numbers)
        return dict(zip(values, (numbers / self.size).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self.mean({"flag": th.tensor(float(flag))})["flag"]) if self.size > 1 else flag

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.any(False)


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, if it did."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes()
        return
    # Numbers on the CPU go another way than gradients on the GPUs: looking at them does not stop the GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if th.cuda.is_available() else "gloo")
    try:
        yield Processes(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def local_device(device: th.device) -> th.device:
    """Return this process's own GPU where the device is a GPU without a number.

    :raises ValueError: In every process, if there are more of them on this machine than GPUs
    """
    if str(device) != "cuda":
        return device
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    count, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", rank + 1)), th.cuda.device_count()
    if count > gpus:
        raise ValueError(
            f"{count} processes were started on this machine, which has {gpus} GPU{'s' * (gpus != 1)}: give torchrun "
            f"--nproc_per_node={gpus}, or show more of them in CUDA_VISIBLE_DEVICES"
        )
    device = th.device("cuda", rank)
    th.cuda.set_device(device)
    return device
