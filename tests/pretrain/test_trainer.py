"""The offline loop on a few episodes: it learns, stops where it must, and goes on as if nothing had happened."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from safetensors.torch import load_file
from torch import nn

from programs import pretrain_command
from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
from zprl_sb3.policy import FlowPolicy, FlowPolicyConfig
from zprl_sb3.pretrain.demonstrations import load_demonstrations
from zprl_sb3.pretrain.trainer import STATE, Trainer, TrainingConfig, offline_losses, update_ema
from zprl_sb3.pretrain.windows import Windows, cut_windows
from zprl_sb3.scripts.pretrain import compose, pretrain

SETTINGS: dict[str, Any] = {
    "steps": 20,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warmup_steps": 4,
    "beta": 1e-4,
    "reconstruction": 0.01,
    "validate_every": 10,
    "save_every": 10,
    "seed": 0,
}


def windows(seed: int = 0, count: int = 40) -> Windows:
    """Random observations (2,) and actions (2,), horizon 4."""
    rng = np.random.default_rng(seed)
    rows = th.arange(count)[:, None]
    return Windows(
        {"state": th.as_tensor(rng.normal(size=(count, 2)).astype(np.float32))},
        th.as_tensor(rng.normal(size=(count, 2)).astype(np.float32)),
        rows,
        (rows + th.arange(4)).clamp(max=count - 1),
    )


def untrained(observation_dims: dict[str, int] | None = None, action_dim: int = 2) -> FlowPolicy:
    th.manual_seed(0)
    dims = observation_dims or {"state": 2}
    policy = FlowPolicy(FlowPolicyConfig(dims, action_dim, horizon=4, chunk=2, unet_widths=(8, 16), time_dim=8))
    policy.bottleneck = Bottleneck(policy.context_dim, BottleneckConfig(2, hidden=16))
    return policy


def trainer(folder: Path, **changes: Any) -> Trainer:
    return Trainer(untrained(), windows(), windows(1, 12), TrainingConfig(**SETTINGS | changes), folder)


def assert_same_weights(mine: nn.Module, theirs: nn.Module) -> None:
    for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert th.equal(a, b), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FlowPolicy:
    """What 20 uninterrupted steps lead to."""
    return trainer(tmp_path_factory.mktemp("whole")).run()


def test_the_average_follows_its_formula() -> None:
    ema, module = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(ema.weight, 1.0)
    nn.init.constant_(module.weight, 5.0)
    expected = 1.0
    for step in (1, 2, 3):
        update_ema(ema, module, step)
        decay = 1 - (1 + step) ** -0.8
        expected = decay * expected + (1 - decay) * 5.0
        assert ema.weight.item() == pytest.approx(expected, rel=1e-6)
    assert module.weight.item() == 5.0


def test_the_average_never_stands_still() -> None:
    ema, module = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(ema.weight, 0.0)
    nn.init.constant_(module.weight, 1.0)
    update_ema(ema, module, 10**9)
    assert ema.weight.item() == pytest.approx(1e-4, rel=1e-6)


def test_the_losses_go_down_on_real_demonstrations(push_demos: Path, tmp_path: Path) -> None:
    demos = load_demonstrations(push_demos)
    train, held_out = (cut_windows(demos, episodes, 1, 4) for episodes in ([0, 1, 2], [3]))
    policy = untrained({"object": 17, "proprio": 9}, 4)
    settings = SETTINGS | {"steps": 120, "batch_size": 32, "learning_rate": 3e-3, "save_every": 1000}
    run = Trainer(policy, train, held_out, TrainingConfig(**settings), tmp_path)

    def losses(index: th.Tensor) -> dict[str, float]:
        th.manual_seed(0)
        return {key: x.item() for key, x in offline_losses(run.policy, *train.batch(index), run.config).items()}

    everything = th.arange(len(train))
    before, validation_before = losses(everything), run.validate()
    averaged = run.run()
    after, validation_after = losses(everything), run.validate()
    assert after["imitation"] < 0.7 * before["imitation"]
    assert after["flow"] < 0.7 * before["flow"]
    assert after["total"] < 0.7 * before["total"]
    # The normalisers make the data fill [-1, 1].
    normalized = averaged.action_normalizer(train.actions)
    assert normalized.min() == pytest.approx(-1)
    assert normalized.max() == pytest.approx(1)
    assert validation_after["imitation"] < validation_before["imitation"]


def test_the_result_is_frozen_and_averaged(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    result = run.run()
    assert result is run.ema
    assert not any(weight.requires_grad for weight in result.parameters())
    assert any((a != b).any() for a, b in zip(result.parameters(), run.policy.parameters(), strict=True))


def test_the_same_seed_gives_the_same_weights(whole: FlowPolicy, tmp_path: Path) -> None:
    assert_same_weights(trainer(tmp_path / "again").run(), whole)
    other = trainer(tmp_path / "other", seed=1).run()
    assert any((a != b).any() for a, b in zip(other.parameters(), whole.parameters(), strict=True))


def test_validation_has_the_same_noise_every_time_and_disturbs_nothing(whole: FlowPolicy, tmp_path: Path) -> None:
    run = trainer(tmp_path, validate_every=1)
    first = run.validate()
    th.rand(1)
    assert run.validate() == first
    before = th.get_rng_state()
    run.validate()
    assert th.equal(th.get_rng_state(), before)
    assert_same_weights(run.run(), whole)


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def stop_before(run: Trainer, step: int) -> None:
    """Run until the batch of this update has been drawn, and let the process end there."""
    update = run._update

    def update_or_stop(index: th.Tensor) -> dict[str, th.Tensor]:
        if run.step == step:
            raise Interrupted
        return update(index)

    run._update = update_or_stop  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        run.run()


@pytest.mark.parametrize("step", [3, 10, 17])
def test_a_run_that_was_cut_ends_as_if_it_were_not(whole: FlowPolicy, tmp_path: Path, step: int) -> None:
    stop_before(trainer(tmp_path), step)
    assert (tmp_path / STATE).is_file() == (step >= 10)
    again = trainer(tmp_path)
    th.manual_seed(99)  # whatever a new process had drawn so far
    assert_same_weights(again.run(), whole)


def test_ctrl_c_keeps_the_step_it_fell_into(
    whole: FlowPolicy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainer(tmp_path)
    update = run._update

    def update_and_press(index: th.Tensor) -> dict[str, th.Tensor]:
        if run.step == 12:
            os.kill(os.getpid(), signal.SIGINT)
        return update(index)

    run._update = update_and_press  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert "Interrupted at step 13" in capsys.readouterr().out
    assert th.load(tmp_path / STATE, weights_only=True)["step"] == 13
    assert_same_weights(trainer(tmp_path).run(), whole)
    with pytest.raises(KeyboardInterrupt):  # Ctrl-C is itself again
        os.kill(os.getpid(), signal.SIGINT)


def test_small_numbers_are_themselves_again_after_training(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    assert np.float64(1e-300) / np.float64(1e10) > 0


def test_a_finished_run_makes_no_more_steps(
    whole: FlowPolicy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path).run()
    again = trainer(tmp_path)
    again._update = None  # type: ignore[method-assign,assignment]  # whoever calls it fails
    assert_same_weights(again.run(), whole)
    assert f"Going on from step 20, saved in {tmp_path / STATE}" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"The loss is (nan|inf) at step 50: lower learning_rate"):
        trainer(tmp_path, steps=60, learning_rate=1e30, save_every=60).run()
    assert not (tmp_path / STATE).exists()


@pytest.mark.parametrize("changes", [{"save_every": 7}, {"save_every": 1000}])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Neither between two looks at the loss, nor as the result of a short run."""
    with pytest.raises(FloatingPointError, match="weights that are not finite"):
        trainer(tmp_path, steps=30, learning_rate=1e30, **changes).run()
    assert not (tmp_path / STATE).exists()


def test_the_last_good_state_survives_bad_weights(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    stop_before(run, 12)
    with th.no_grad():
        next(run.policy.parameters())[0] = float("nan")
    with pytest.raises(FloatingPointError):
        run._save()
    assert th.load(tmp_path / STATE, weights_only=True)["step"] == 10


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    for damage in (b"", b"nonsense", (tmp_path / STATE).read_bytes()[:-500]):
        (tmp_path / STATE).write_bytes(damage)
        with pytest.raises(ValueError, match=rf"{STATE} is damaged: delete it"):
            trainer(tmp_path).run()


def test_the_bottleneck_leaves_the_policy_alone(tmp_path: Path) -> None:
    """The encoder and the U-Net learn the same whether the bottleneck's losses count or not."""
    runs = [trainer(tmp_path / str(beta), beta=beta, reconstruction=beta) for beta in (0.0, 1.0)]
    for run in runs:
        run.run()
    parts = [{name: x for name, x in run.policy.state_dict().items() if "bottleneck" not in name} for run in runs]
    assert all(th.equal(parts[0][name], parts[1][name]) for name in parts[0])
    bottlenecks = [copy.deepcopy(run.policy.bottleneck) for run in runs]
    assert bottlenecks[0] is not None
    assert bottlenecks[1] is not None
    assert not th.equal(bottlenecks[0].mean.weight, bottlenecks[1].mean.weight)


def test_a_killed_process_costs_nothing_but_time(push_demos: Path, tmp_path: Path) -> None:
    killed, expected, longer = tmp_path / "killed", tmp_path / "whole", "training.steps=120"
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
    assert 20 <= th.load(killed / STATE, weights_only=True)["step"] < 120
    for output in (killed, expected):
        pretrain(compose(overrides=pretrain_command(push_demos, output, longer)[1:]))
    mine, theirs = (load_file(output / "policy" / "weights.safetensors") for output in (killed, expected))
    for name, tensor in theirs.items():
        assert th.equal(mine[name], tensor), name
    configs = [json.loads((output / "policy" / "config.json").read_text()) for output in (killed, expected)]
    assert configs[0] == configs[1]
    assert configs[0]["dataset_sha256"] == load_demonstrations(push_demos).sha256
