"""Optimisers without PyTorch's compiler: the same numbers, and it is not imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Trains and goes on from the state of an optimiser, then prints the weights and whether the compiler is there.
PROGRAM = """
import sys
import torch as th
from zprl_sb3.optimizers import without_compiler

if "without" in sys.argv:
    without_compiler()
for kind in (th.optim.Adam, th.optim.AdamW):
    th.manual_seed(0)
    layer, state = th.nn.Linear(3, 1), None
    for _ in range(2):
        optimizer = kind(layer.parameters(), 0.1, fused=True)
        if state:
            optimizer.load_state_dict(state)
        for _ in range(3):
            optimizer.zero_grad()
            layer(th.ones(1, 3)).sum().backward()
            optimizer.step()
        state = optimizer.state_dict()
    print(layer.weight.tolist())
    assert layer.weight.requires_grad and layer.weight.is_leaf
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_they_compute_the_same_without_the_compiler() -> None:
    def run(*arguments: str) -> list[str]:
        command = [sys.executable, "-c", PROGRAM, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    *usual, imported = run()
    assert imported == "True"  # else there is nothing to see here
    assert run("without") == [*usual, "False"]
