"""A training that was cut goes on as if nothing had happened."""

from __future__ import annotations

import json
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

from helpers import same
from programs import pretrain_command
from zprl_sb3.checkpoint import load_policy, read_config, save_policy
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.pretrain.configuration import compose
from zprl_sb3.pretrain.demonstrations import load_demonstrations
from zprl_sb3.pretrain.loop import STATE
from zprl_sb3.pretrain.losses import Draws
from zprl_sb3.pretrain.trainer import Trainer
from zprl_sb3.scripts.pretrain import pretrain


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def stop_before(run: Trainer, step: int) -> None:
    """Run until the batch of this update has been drawn, and let the process end there."""
    update = run._update

    def update_or_stop(draws: Draws) -> dict[str, th.Tensor]:
        if run.step == step:
            raise Interrupted
        return update(draws)

    run._update = update_or_stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        run.run()


def assert_same(mine: FlowPolicy, theirs: FlowPolicy) -> None:
    assert same(mine.state_dict().values(), theirs.state_dict().values())


@pytest.mark.parametrize("step", [3, 10, 17])
def test_a_run_that_was_cut_ends_as_if_it_were_not(whole: FlowPolicy, tmp_path: Path, trainer: Any, step: int) -> None:
    stop_before(trainer(tmp_path), step)
    assert (tmp_path / STATE).is_file() == (step >= 10)
    again = trainer(tmp_path)
    th.manual_seed(99)  # whatever a new process had drawn so far
    assert_same(again.run(), whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_keeps_the_step_it_fell_into(
    whole: FlowPolicy, tmp_path: Path, trainer: Any, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    run = trainer(tmp_path)
    update = run._update

    def update_and_press(draws: Draws) -> Any:
        if run.step == 12:
            os.kill(os.getpid(), number)
        return update(draws)

    run._update = update_and_press
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run.run()
    assert "Interrupted at step 13" in capsys.readouterr().out
    assert th.load(tmp_path / STATE, weights_only=True)["step"] == 13
    assert_same(trainer(tmp_path).run(), whole)


def test_a_second_ctrl_c_leaves_the_last_saved_state(whole: FlowPolicy, tmp_path: Path, trainer: Any) -> None:
    run = trainer(tmp_path)
    update = run._update

    def update_and_press(draws: Draws) -> Any:
        losses = update(draws)
        if run.step == 13:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("The step went on")
        return losses

    run._update = update_and_press
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert th.load(tmp_path / STATE, weights_only=True)["step"] == 10
    assert_same(trainer(tmp_path).run(), whole)


def test_the_policy_so_far_is_offered_at_every_save(whole: FlowPolicy, tmp_path: Path, trainer: Any) -> None:
    """And can be loaded, with the weights that the state of the same step has."""
    steps: list[int] = []

    def save(policy: FlowPolicy, step: int) -> None:
        steps.append(step)
        save_policy(policy, tmp_path / "policy_latest", step=step)
        state = th.load(tmp_path / STATE, weights_only=True)
        assert state["step"] == step
        loaded = load_policy(tmp_path / "policy_latest").state_dict()
        assert all(th.equal(loaded[name], tensor) for name, tensor in state["ema"].items())

    stop_before(trainer(tmp_path, save_checkpoint=save), 17)
    assert steps == [10]
    assert_same(trainer(tmp_path, save_checkpoint=save).run(), whole)
    assert steps == [10, 20]
    assert read_config(tmp_path / "policy_latest")["step"] == 20


def test_a_finished_run_makes_no_more_steps(
    whole: FlowPolicy, tmp_path: Path, trainer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path).run()
    again = trainer(tmp_path)
    again._update = None  # whoever calls it fails
    assert_same(again.run(), whole)
    assert f"Going on from step 20, saved in {tmp_path / STATE}" in capsys.readouterr().out


def test_the_last_good_state_survives_bad_weights(tmp_path: Path, trainer: Any) -> None:
    run = trainer(tmp_path)
    stop_before(run, 12)
    with th.no_grad():
        next(run.policy.parameters())[0] = float("nan")
    with pytest.raises(FloatingPointError):
        run._save()
    assert th.load(tmp_path / STATE, weights_only=True)["step"] == 10


def test_a_damaged_state_is_named(tmp_path: Path, trainer: Any) -> None:
    trainer(tmp_path).run()
    (tmp_path / STATE).write_bytes((tmp_path / STATE).read_bytes()[:-500])
    with pytest.raises(ValueError, match=rf"{STATE} cannot be read .*: if it is truncated, delete it to train from"):
        trainer(tmp_path).run()


def test_a_state_of_another_architecture_is_not_called_damaged(tmp_path: Path, trainer: Any) -> None:
    trainer(tmp_path).run()
    other = trainer(tmp_path, latent_dim=3)
    with pytest.raises(ValueError, match=rf"{STATE} is of another architecture: go on with the model"):
        other.run()
    assert other.step == 0


def test_a_killed_process_costs_nothing_but_time(push_demos: Path, tmp_path: Path) -> None:
    killed, expected, longer = tmp_path / "killed", tmp_path / "whole", "training.steps=80"
    process = subprocess.Popen(
        [sys.executable, "-m", "zprl_sb3.scripts.cli", *pretrain_command(push_demos, killed, longer)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (killed / STATE).is_file():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "policy").exists()
    assert 20 <= th.load(killed / STATE, weights_only=True)["step"] < 80
    for output in (killed, expected):
        pretrain(compose(overrides=pretrain_command(push_demos, output, longer)[1:]))
    mine, theirs = (load_file(output / "policy" / "weights.safetensors") for output in (killed, expected))
    for name, tensor in theirs.items():
        assert th.equal(mine[name], tensor), name
    configs = [json.loads((output / "policy" / "config.json").read_text()) for output in (killed, expected)]
    assert configs[0] == configs[1]
    assert configs[0]["dataset_sha256"] == load_demonstrations(push_demos).sha256
