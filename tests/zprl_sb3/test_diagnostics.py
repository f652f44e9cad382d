from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from torch import nn

from helpers import steered_points, tiny_model, tiny_policy
from zprl_sb3.diagnostics import Recorder, steering_diagnostics
from zprl_sb3.evaluation import NoSteering, evaluate
from zprl_sb3.wrappers import EmbeddingSteering, LatentSteering, VecSteering

Z = np.array([[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
DELTA = np.array([[0.0, 0.8, 0.0], [0.0, 0.0, -0.6]], np.float32)
C = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]], np.float32)


class Padding(nn.Module):
    """A decoder that appends a 0 to the latent."""

    def forward(self, latent: th.Tensor) -> th.Tensor:
        return nn.functional.pad(latent, (0, 1))


def test_the_diagnostics_by_hand() -> None:
    policy = tiny_policy()
    assert policy.bottleneck is not None
    policy.bottleneck.decoder = Padding()  # type: ignore[assignment]
    found = steering_diagnostics(LatentSteering(policy, scale=0.5), {"c": C, "z": Z}, DELTA)
    # λΔz has lengths 0.4 and 0.3; c̃ is (3, 0.4, 0, 0) and (0, 0, -0.3, 0).
    assert found == pytest.approx(
        {
            "rms_z": np.sqrt(9 / 6),
            "rms_step": np.sqrt((0.16 + 0.09) / 6),
            "rms_ratio": np.sqrt(0.25 / 9),
            "context_distance": (np.sqrt(4 + 1.6**2 + 9 + 16) + 0.3) / 2,
            "displacement": (0.4 + 0.3) / 2,
        }
    )


def test_other_steerings_have_no_decoder_to_compare_with() -> None:
    found = steering_diagnostics(EmbeddingSteering(tiny_policy(), scale=0.5), {"c": C, "z": C}, C / 4)
    assert found == pytest.approx({"rms_z": np.sqrt(30 / 8), "rms_step": np.sqrt(30 / 8) / 8, "rms_ratio": 1 / 8})


def test_latents_of_zero_have_no_ratio() -> None:
    zeros = np.zeros_like(Z)
    found = steering_diagnostics(LatentSteering(tiny_policy(), 0.5), {"c": C, "z": zeros}, zeros)
    assert "rms_ratio" not in found
    assert found["displacement"] == 0


def test_the_recorder_answers_what_the_model_answers_and_keeps_what_it_saw() -> None:
    model = tiny_model()
    recorder = Recorder(model, episodes=2)
    start = np.array([True, True])
    pairs = [({"c": C + k, "z": Z + k}, model.predict({"c": C + k, "z": Z + k}, deterministic=True)[0]) for k in (0, 1)]
    for observation, expected in pairs:
        answer, _ = recorder.predict(observation, episode_start=start, deterministic=True)
        np.testing.assert_array_equal(answer, expected)
        start = np.array([False, False])
    steering = LatentSteering(tiny_policy(), 0.5)
    together = {key: np.concatenate([observation[key] for observation, _ in pairs]) for key in ("c", "z")}
    delta = np.concatenate([expected for _, expected in pairs])
    assert recorder.diagnose(steering) == steering_diagnostics(steering, together, delta)


def test_the_base_policy_is_not_displaced_but_the_bottleneck_loses_something() -> None:
    env = steered_points(seeded_episodes=True)
    recorder = Recorder(NoSteering(), 4)
    evaluate(recorder, env, 0, 4)
    found = recorder.diagnose(env.steering)
    assert found["rms_step"] == found["rms_ratio"] == found["displacement"] == 0
    assert found["rms_z"] > 0
    assert found["context_distance"] > 0


def test_only_the_steps_of_episodes_that_count_are_kept() -> None:
    env, counted = steered_points(n_envs=3, seeded_episodes=True, env_kwargs={"reach": 0.9}), []
    recorder = Recorder(NoSteering(), 6)
    steps = VecSteering.step_wait

    def counting() -> Any:
        result = steps(env)
        counted.append(result[2])
        return result

    env.step_wait = counting  # type: ignore[method-assign]
    lengths = evaluate(recorder, env, 0, 6).lengths
    kept = sum(len(rows) for rows in recorder.latents)
    assert kept == sum(-(-length // 2) for length in lengths)  # chunks of 2 env steps
    assert kept < 3 * len(counted)
