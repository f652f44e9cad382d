"""Several processes that train together learn what one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch as th
from safetensors.torch import load_file

import helpers
from helpers import image_demonstrations
from programs import image_pretrain_command
from zprl_sb3.pretrain.configuration import compose
from zprl_sb3.pretrain.loop import STATE
from zprl_sb3.pretrain.losses import draw
from zprl_sb3.pretrain.processes import Processes, local_device
from zprl_sb3.scripts.pretrain import pretrain


def start(*arguments: str, count: int = 2) -> subprocess.Popen[str]:
    """Start ``zprl pretrain`` in several processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    paths = os.pathsep.join([str(Path.cwd()), str(Path(helpers.__file__).parent)])
    return subprocess.Popen(
        [*torchrun, "-m", "zprl_sb3.scripts.pretrain", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def assert_close(mine: Path, theirs: Path) -> None:
    first, second = (load_file(output / "policy" / "weights.safetensors") for output in (mine, theirs))
    for name, tensor in second.items():
        th.testing.assert_close(first[name], tensor, rtol=0, atol=2e-4, msg=name)


@pytest.mark.slow
def test_two_processes_learn_what_one_does_even_if_interrupted(tmp_path: Path) -> None:
    demos = image_demonstrations(tmp_path / "demos.hdf5")
    # Adam's first steps follow the signs of gradients, and so their last bits: a small rate keeps this comparable.
    changes = ["training.autocast=false", "training.learning_rate=1e-4", "training.steps=60"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    command = image_pretrain_command(demos, together, *changes)[1:]
    process = start(*command)
    deadline = time.monotonic() + 300
    while not (together / STATE).is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert not (together / "policy").exists(), output
    assert output.count("Interrupted at step") == 1
    output = finish(start(*command))
    assert output.count("Going on from step") == output.count("Wrote ") == 1
    pretrain(compose(overrides=image_pretrain_command(demos, alone, *changes)[1:]))
    assert_close(together, alone)
    assert len(list(together.glob("events.out.tfevents.*"))) == 2  # one for each start


def test_every_process_computes_its_rows_of_one_batch() -> None:
    policy = helpers.image_policy()
    draws = draw(policy, 50, 8, policy.device)
    parts = [Processes(rank, 2).part(draws) for rank in range(2)]
    for whole, *halves in zip(draws, *parts, strict=True):
        assert th.equal(th.cat(halves), whole)
    assert Processes().part(draws).windows.tolist() == draws.windows.tolist()
    with pytest.raises(ValueError, match="batch_size 8 cannot be divided evenly among 3 processes"):
        Processes(0, 3).part(draws)


def test_every_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[Any] = []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device(th.device("cuda")) == th.device("cuda", 3)
    assert chosen == [th.device("cuda", 3)]
    assert local_device(th.device("cuda", 1)) == th.device("cuda", 1)
    assert local_device(th.device("cpu")) == th.device("cpu")


@pytest.mark.parametrize(
    ("gpus", "variables", "message"),
    [
        (2, {"LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "0"}, r"^3 processes were .* has 2 GPUs.*--nproc_per_node=2"),
        (1, {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, r"^2 processes were .* has 1 GPU:"),
        (2, {"LOCAL_RANK": "2"}, r"^3 processes were .* has 2 GPUs"),
    ],
)
def test_more_processes_than_gpus_are_refused_in_each(
    monkeypatch: pytest.MonkeyPatch, gpus: int, variables: dict[str, str], message: str
) -> None:
    monkeypatch.setattr("torch.cuda.set_device", lambda device: pytest.fail(f"{device} was chosen"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        local_device(th.device("cuda"))
    assert local_device(th.device("cuda", 5)) == th.device("cuda", 5)
    assert local_device(th.device("cpu")) == th.device("cpu")
