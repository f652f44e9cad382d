"""The offline loop on a few episodes: it learns, always the same, and stops where it must."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from helpers import same
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.pretrain.demonstrations import load_demonstrations
from zprl_sb3.pretrain.loop import STATE
from zprl_sb3.pretrain.losses import OfflineLosses, draw
from zprl_sb3.pretrain.trainer import Trainer
from zprl_sb3.pretrain.windows import cut_windows


def test_the_losses_go_down_on_real_demonstrations(
    push_demos: Path, tmp_path: Path, untrained: Any, config: Any
) -> None:
    demos = load_demonstrations(push_demos)
    train, held_out = (cut_windows(demos, episodes, 1, 4) for episodes in ([0, 1, 2], [3]))
    policy = untrained({"object": (17,), "proprio": (9,)}, 4)
    settings = config(steps=120, batch_size=32, learning_rate=3e-3, save_every=1000)
    run = Trainer(policy, train, held_out, settings, tmp_path)

    def losses() -> dict[str, float]:
        th.manual_seed(0)
        draws = draw(run.policy, len(train), 300, train.device)
        found = OfflineLosses(run.policy, settings.beta, settings.reconstruction)(*train.batch(draws.windows), draws)
        return {key: value.item() for key, value in found.items()}

    before, validation_before = losses(), run.validate()
    averaged = run.run()
    after, validation_after = losses(), run.validate()
    assert after["imitation"] < 0.7 * before["imitation"]
    assert after["bottleneck"] < 0.7 * before["bottleneck"]
    assert after["total"] < 0.7 * before["total"]
    # The normalisers make the data fill [-1, 1].
    normalized = averaged.action_normalizer(train.actions)
    assert normalized.min() == pytest.approx(-1)
    assert normalized.max() == pytest.approx(1)
    assert validation_after["imitation"] < validation_before["imitation"]


def test_the_result_is_frozen_and_averaged(tmp_path: Path, trainer: Any) -> None:
    run = trainer(tmp_path)
    result = run.run()
    assert result is run.ema
    assert not any(weight.requires_grad for weight in result.parameters())
    assert not same(result.parameters(), run.policy.parameters())


def test_the_average_follows_its_formula(tmp_path: Path, trainer: Any) -> None:
    run = trainer(tmp_path)
    expected = run.policy.unet.head[-1].weight.detach().clone()
    for step in (1, 2, 3):
        run._update(run._draw())
        weight, average = (policy.unet.head[-1].weight for policy in (run.policy, run.ema))
        decay = 1 - (1 + step) ** -0.8
        expected = decay * expected + (1 - decay) * weight.detach()
        th.testing.assert_close(average, expected)


def test_the_same_seed_gives_the_same_weights(whole: FlowPolicy, tmp_path: Path, trainer: Any) -> None:
    again, other = trainer(tmp_path / "again").run(), trainer(tmp_path / "other", seed=1).run()
    assert same(again.state_dict().values(), whole.state_dict().values())
    assert not same(other.parameters(), whole.parameters())


def test_validation_has_the_same_noise_every_time_and_disturbs_nothing(
    whole: FlowPolicy, tmp_path: Path, trainer: Any
) -> None:
    run = trainer(tmp_path, validate_every=1)
    first = run.validate()
    th.rand(1)
    assert run.validate() == first
    before = th.get_rng_state()
    run.validate()
    assert th.equal(th.get_rng_state(), before)
    assert same(run.run().state_dict().values(), whole.state_dict().values())


def test_small_numbers_are_themselves_again_after_training(tmp_path: Path, trainer: Any) -> None:
    trainer(tmp_path).run()
    assert np.float64(1e-300) / np.float64(1e10) > 0


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path, trainer: Any) -> None:
    with pytest.raises(FloatingPointError, match=r"The loss is (nan|inf) at step 50: lower learning_rate"):
        trainer(tmp_path, steps=60, learning_rate=1e30, save_every=60).run()
    assert not (tmp_path / STATE).exists()


@pytest.mark.parametrize("changes", [{"save_every": 7}, {"save_every": 1000}])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, trainer: Any, changes: dict[str, Any]) -> None:
    """Neither between two looks at the loss, nor as the result of a short run, nor as a checkpoint."""
    saved: list[int] = []
    with pytest.raises(FloatingPointError, match="weights that are not finite"):
        trainer(
            tmp_path, steps=30, learning_rate=1e30, save_checkpoint=lambda _, step: saved.append(step), **changes
        ).run()
    assert not (tmp_path / STATE).exists()
    assert not saved


def test_the_bottleneck_leaves_the_policy_alone(tmp_path: Path, trainer: Any) -> None:
    """The encoder and the U-Net learn the same whether the bottleneck's losses count or not."""
    runs = [trainer(tmp_path / str(beta), beta=beta, reconstruction=beta) for beta in (0.0, 1.0)]
    for run in runs:
        run.run()
    parts = [{name: x for name, x in run.policy.state_dict().items() if "bottleneck" not in name} for run in runs]
    assert same(parts[0].values(), parts[1].values())
    bottlenecks = [copy.deepcopy(run.policy.bottleneck) for run in runs]
    assert bottlenecks[0] is not None
    assert bottlenecks[1] is not None
    assert not th.equal(bottlenecks[0].mean.weight, bottlenecks[1].mean.weight)


@pytest.mark.parametrize("change", [{"ema_power": 0.3}, {"ema_max": 0.1}, {"betas": [0.5, 0.9]}, {"weight_decay": 9.0}])
def test_every_setting_of_optimiser_and_average_counts(
    whole: FlowPolicy, tmp_path: Path, trainer: Any, change: dict[str, Any]
) -> None:
    assert not same(trainer(tmp_path, **change).run().parameters(), whole.parameters())


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("save_every", 2.5, "a whole number of at least 1, not 2.5"),
        ("ema_power", 0, "positive, not 0"),
        ("ema_power", "slow", "positive, not 'slow'"),
        ("ema_max", 1.0, "at least 0 and below 1, not 1.0"),
        ("weight_decay", -1e-6, "at least 0, not -1e-06"),
        ("betas", [0.9], r"two numbers of at least 0 and below 1, not \[0.9\]"),
        ("betas", 0.9, "two numbers of at least 0 and below 1, not 0.9"),
        ("unscaled_actions", [2], r"'all' or a list of whole numbers from 0 to 1, not \[2\]"),
        ("betas", [0.9, 1.5], "two numbers of at least 0 and below 1"),
    ],
)
def test_a_setting_out_of_its_range_is_named(config: Any, setting: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"training\.{setting} must be {message}"):
        config(**{setting: value}).unscaled(action_dim=2)


@pytest.mark.parametrize(("unscaled", "expected"), [([1], [False, True]), ("all", [True, True]), ([], [False, False])])
def test_chosen_values_of_the_action_are_not_scaled(
    tmp_path: Path, trainer: Any, unscaled: list[int] | str, expected: list[bool]
) -> None:
    run = trainer(tmp_path, unscaled_actions=unscaled)
    actions = run.train.actions
    normalised = run.policy.action_normalizer(actions)
    assert [th.equal(normalised[:, k], actions[:, k]) for k in range(2)] == expected
