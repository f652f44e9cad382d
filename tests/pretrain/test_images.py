"""The offline loop on images: bytes until they are computed with, crops of their own, and the same exactness."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from helpers import image_demonstrations, same
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.pretrain.demonstrations import load_demonstrations
from zprl_sb3.pretrain.losses import Draws, OfflineLosses, draw
from zprl_sb3.pretrain.trainer import Trainer
from zprl_sb3.pretrain.windows import Windows, cut_windows

VISION: dict[str, Any] = {"crop": (12, 12), "resnet_widths": (8, 16), "image_dim": 6}


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_demonstrations(tmp_path_factory.mktemp("images") / "demos.hdf5")


@pytest.fixture(scope="module")
def windows(demos: Path) -> tuple[Windows, Windows]:
    """Return windows to train and to validate with."""
    found = load_demonstrations(demos)
    return cut_windows(found, [0, 1, 2, 3], 1, 4), cut_windows(found, [4, 5], 1, 4)


@pytest.fixture(scope="module")
def image_trainer(windows: tuple[Windows, Windows], untrained: Any, config: Any) -> Callable[..., Trainer]:
    """Make a training in a folder, with changes of the settings."""

    def make(folder: Path, **changes: Any) -> Trainer:
        shapes = {"point": (2,), "top_image": (16, 16, 3), "hand_image": (16, 16, 3)}
        return Trainer(untrained(shapes, **VISION), *windows, config(**changes), folder)

    return make


def test_images_stay_bytes_until_the_policy_computes_with_them(windows: tuple[Windows, Windows], demos: Path) -> None:
    train, _ = windows
    assert train.observations["top_image"].dtype == th.uint8
    assert train.observations["point"].dtype == th.float32
    frames = np.concatenate(load_demonstrations(demos).observations["top_image"][:4])
    assert train.observations["top_image"].numel() == frames.size
    index = th.tensor([5, 0, 5])
    obs, _ = train.batch(index)
    assert obs["top_image"].dtype == th.uint8
    assert obs["top_image"].shape == (3, 1, 16, 16, 3)
    np.testing.assert_array_equal(obs["top_image"][:, 0], frames[index])


def test_only_vectors_are_fitted(tmp_path: Path, image_trainer: Any) -> None:
    run = image_trainer(tmp_path)
    points = run.train.observations["point"]
    th.testing.assert_close(run.policy.obs_normalizer.center, (points.amin(0) + points.amax(0)) / 2)


def places(run: Trainer, monkeypatch: pytest.MonkeyPatch, policy: FlowPolicy) -> list[th.Tensor | None]:
    """Note where a policy crops."""
    found: list[th.Tensor | None] = []
    context = policy.context

    def noting(obs: Any, where: th.Tensor | None = None) -> th.Tensor:
        found.append(where)
        return context(obs, where)

    monkeypatch.setattr(policy, "context", noting)
    return found


def test_training_crops_at_random_and_validation_at_the_centre(
    tmp_path: Path, image_trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = image_trainer(tmp_path, steps=2)
    training, validating = (places(run, monkeypatch, policy) for policy in (run.policy, run.ema))
    run.run()
    assert len(training) == 2
    for where in training:
        assert where is not None
        assert where.shape == (8, 2, 2)
        assert len(where.unique()) == 32
    assert validating
    assert all(where is None for where in validating)


def test_it_learns_from_images(tmp_path: Path, image_trainer: Any) -> None:
    run = image_trainer(tmp_path, steps=150, learning_rate=3e-3, validate_every=1000, save_every=1000)
    run.validation = run.train  # two held-out episodes of noise say nothing
    before = run.validate()
    run.run()
    after = run.validate()
    assert after["imitation"] < 0.8 * before["imitation"]
    assert after["bottleneck"] < 0.8 * before["bottleneck"]


def test_validation_in_parts_is_validation_at_once(tmp_path: Path, image_trainer: Any) -> None:
    parts, whole = (image_trainer(tmp_path / str(size), batch_size=size, autocast=False) for size in (7, 1024))
    expected = whole.validate()
    assert len(whole.validation) * 4 > 7
    assert parts.validate() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_run_that_was_cut_ends_as_if_it_were_not(tmp_path: Path, image_trainer: Any, autocast: bool) -> None:
    whole = image_trainer(tmp_path / "whole", autocast=autocast).run()
    cut = image_trainer(tmp_path / "cut", autocast=autocast)
    update = cut._update

    def update_or_stop(draws: Draws) -> Any:
        if cut.step == 13:
            raise KeyboardInterrupt
        return update(draws)

    cut._update = update_or_stop
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    again = image_trainer(tmp_path / "cut", autocast=autocast).run()
    assert same(again.state_dict().values(), whole.state_dict().values())


def test_bfloat16_is_only_within_the_networks(tmp_path: Path, image_trainer: Any) -> None:
    run = image_trainer(tmp_path)
    draws = draw(run.policy, len(run.train), 32, run.train.device)
    obs, actions = run.train.batch(draws.windows)
    found = []
    for autocast in (False, True):
        losses = OfflineLosses(run.policy, 1e-4, 0.01, autocast)(obs, actions, draws)
        assert all(value.dtype == th.float32 for value in losses.values())
        run.policy.zero_grad()
        losses["total"].backward()
        assert all(weight.grad is not None and weight.grad.dtype == th.float32 for weight in run.policy.parameters())
        found.append({name: value.item() for name, value in losses.items()})
    assert found[1] == pytest.approx(found[0], rel=0.05)
    assert found[1] != found[0]
