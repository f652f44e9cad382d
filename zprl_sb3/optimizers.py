"""PyTorch's optimisers without its compiler, for programs that start sooner."""

from __future__ import annotations

import inspect

import torch as th
from torch.optim import Adam, AdamW, Optimizer


def without_compiler() -> None:
    """Take out of this process's optimisers what imports PyTorch's compiler.

    They import it, with SymPy and more, when they are made and at each step, only to switch it off: 2 of the 5 seconds
    of a processor that a program takes to start. They compute the same. For programs, which have the process to
    themselves; nothing here compiles an optimiser.
    """
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        setattr(Optimizer, name, inspect.unwrap(getattr(Optimizer, name)))
    for optimizer in (Adam, AdamW):
        optimizer.step = th.no_grad()(inspect.unwrap(optimizer.step))  # type: ignore[method-assign]
