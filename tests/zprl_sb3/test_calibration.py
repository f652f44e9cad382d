"""λ from demonstrations: what each does, and which to start from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch as th
from torch import nn

from helpers import POINT, image_demonstrations, image_policy, point_demonstrations, steered_points, tiny_policy
from zprl_sb3.calibration import RATIOS, RMS_DELTA, Calibration, calibrate, scale_by_spread
from zprl_sb3.calibration_figure import draw_calibration
from zprl_sb3.checkpoint import save_policy
from zprl_sb3.files import write_json
from zprl_sb3.latents import offline_latents
from zprl_sb3.policy import FlowPolicy

STDS = np.array([0.1, 0.2, 0.6])
MEANS = np.array([1.0, -2.0, 0.5])


class Stretching(nn.Module):
    """A decoder that multiplies the latent and appends a 0."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, latent: th.Tensor) -> th.Tensor:
        return nn.functional.pad(self.factor * latent, (0, 1))


def known_policy(factor: float = 1.0) -> FlowPolicy:
    """Return a policy whose posterior depends on nothing, with a mean and a deviation of its own in each dimension."""
    policy = tiny_policy(env_id=POINT)
    assert policy.bottleneck is not None
    policy.bottleneck.decoder = Stretching(factor)  # type: ignore[assignment]
    with th.no_grad():
        for head, bias in ((policy.bottleneck.mean, MEANS), (policy.bottleneck.log_var, 2 * np.log(STDS))):
            head.weight.zero_()
            head.bias.copy_(th.as_tensor(bias))
    return policy


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return point_demonstrations(tmp_path_factory.mktemp("demos") / "demos.hdf5", (400,) * 10)


@pytest.fixture(scope="module")
def found(demos: Path) -> Calibration:
    return calibrate(known_policy(), demos)


def rms_z() -> float:
    return float(np.sqrt((MEANS**2 + STDS**2).mean()))


def test_the_range_is_where_the_step_is_a_tenth_to_a_fifth_of_z(found: Calibration) -> None:
    assert found.rms_z == pytest.approx(rms_z(), rel=0.02)
    least, most = (ratio * rms_z() / RMS_DELTA for ratio in (0.1, 0.2))
    assert found.scale_range == pytest.approx((least, most), rel=0.05)
    assert (found.scale, found.limited_by) == (found.scale_range[1], "rms_ratio")
    assert found.steering_scale == found.scale
    assert found.observations == 4000
    assert found.curves["rms_ratio"].tolist() == pytest.approx(RATIOS)
    assert found.at("rms_ratio", found.scale) == pytest.approx(0.2, rel=0.03)


def test_the_tables_are_what_was_built_in(found: Calibration) -> None:
    assert found.dimensions["rms"] == pytest.approx(np.sqrt(MEANS**2 + STDS**2), rel=0.05)
    assert found.dimensions["spread"] == pytest.approx(STDS, rel=0.05)
    assert found.dimensions["posterior_std"] == pytest.approx(STDS, rel=1e-5)


def test_the_displacement_is_the_length_of_the_step_where_the_decoder_is_the_identity(found: Calibration) -> None:
    # The length of a point that is uniform in [-1, 1]³ is 0.9606 on average (Robbins).
    assert found.curves["displacement"] == pytest.approx(0.9606 * found.curves["scale"], rel=0.03)
    assert found.curves["mahalanobis"][0] == pytest.approx(np.sqrt(8 / np.pi), rel=0.03)  # of χ with 3 degrees
    whitened = np.random.default_rng(0).uniform(-1, 1, (100_000, 3)) / STDS * found.curves["scale"][-1]
    assert found.curves["mahalanobis"][-1] == pytest.approx(np.linalg.norm(whitened, axis=1).mean(), rel=0.05)
    assert found.mahalanobis_offline[0] == pytest.approx(1.538, rel=0.03)
    assert found.mahalanobis_offline[1] == pytest.approx(2.795, rel=0.04)


def test_actions_change_more_the_larger_lambda_is_and_by_the_noise(found: Calibration) -> None:
    change = found.curves["action_change"]
    assert change[0] == 0
    assert (np.diff(change) > 0).all()
    assert found.noise_change > 0


def test_a_decoder_that_stretches_ends_the_range_sooner(demos: Path) -> None:
    found = calibrate(known_policy(factor=10.0), demos)
    assert found.limited_by == "displacement"
    assert found.at("displacement", found.scale) == pytest.approx(0.8, rel=0.05)
    assert found.scale_range[0] < found.scale_range[1] == found.scale
    assert found.at("rms_ratio", found.scale) < 0.1


def test_a_lambda_for_each_dimension_follows_the_spread_and_keeps_the_ratio(demos: Path) -> None:
    policy = known_policy()
    found = calibrate(policy, demos, by_spread=True)
    scales = found.steering_scale
    assert isinstance(scales, tuple)
    assert scales == pytest.approx(found.scale * STDS / STDS.mean(), rel=0.05)
    assert np.mean(scales) == pytest.approx(found.scale)
    step = np.array(scales) * np.random.default_rng(0).uniform(-1, 1, (10_000, 3))
    assert np.sqrt(np.square(step).mean()) / found.rms_z == pytest.approx(0.2, rel=0.05)
    steered_points(policy, scale=scales)


def test_the_same_seed_finds_the_same_and_a_checkpoint_what_its_policy_does(demos: Path, tmp_path: Path) -> None:
    policy = tiny_policy(env_id=POINT)
    path = save_policy(policy, tmp_path / "policy")
    first, second, other = calibrate(policy, demos), calibrate(path, demos), calibrate(policy, demos, seed=1)
    assert first.as_dict() == second.as_dict() != other.as_dict()


def test_images_are_calibrated_too(tmp_path: Path) -> None:
    found = calibrate(image_policy(), image_demonstrations(tmp_path / "demos.hdf5"))
    assert 0 < found.scale_range[0] < found.scale


def test_what_does_not_fit_is_refused(demos: Path) -> None:
    with pytest.raises(ValueError, match="has demonstrations of"):
        calibrate(tiny_policy(env_id="zprl/Can-v0"), demos)
    with pytest.raises(ValueError, match="no bottleneck"):
        calibrate(tiny_policy(latent_dim=None), demos)


@pytest.mark.parametrize("by_spread", [False, True])
def test_all_of_it_is_json_and_a_picture(found: Calibration, tmp_path: Path, by_spread: bool) -> None:
    write_json(tmp_path / "found.json", replace(found, by_spread=by_spread).as_dict())
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["scale"] == found.scale
    assert content["curves"]["displacement"] == found.curves["displacement"].tolist()
    assert content["rms_delta"] == RMS_DELTA
    picture = draw_calibration(replace(found, by_spread=by_spread), tmp_path / "found.png", "test")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_scale_of_each_dimension_is_in_proportion_to_its_spread(demos: Path) -> None:
    policy = known_policy()
    scale = scale_by_spread(demos, policy, 0.3)
    assert scale == pytest.approx((0.1, 0.2, 0.6), rel=0.1)
    assert np.mean(scale) == pytest.approx(0.3)
    assert scale == pytest.approx(
        0.3 * (spread := offline_latents(demos, policy).z.std(axis=0)) / spread.mean(), rel=1e-4
    )
    with pytest.raises(ValueError, match="has demonstrations of"):
        scale_by_spread(demos, tiny_policy(env_id="zprl/Can-v0"), 0.3)
