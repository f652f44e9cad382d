"""What is logged of steering while it is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium.wrappers import TransformReward
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import POINT, everything, point_demonstrations, same, steered_points, tiny_model, tiny_policy
from zprl_sb3.diagnostics import steering_diagnostics
from zprl_sb3.latents import LatentGaussian, offline_latents
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.training_diagnostics import SteeringDiagnostics
from zprl_sb3.wrappers import ActionSteering, LatentSteeringWrapper, make_vec_steering

OF_STEERING = ("rms_z", "rms_delta", "rms_step", "rms_ratio", "displacement", "context_distance", "saturation")
OF_CRITICS = ("q_first", "return_first", "q_error")


def logged(model: Any, folder: Path, chunks: int, callback: Any) -> pd.DataFrame:
    """Train, and return the rows of the log that have diagnostics."""
    model.set_logger(configure(str(folder), ["csv", "tensorboard"]))
    model.learn(chunks, callback, log_interval=1)
    table = pd.read_csv(folder / "progress.csv")
    return table.dropna(subset=[name for name in table if name == "rollout/rms_z"])


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    return point_demonstrations(tmp_path / "demos.hdf5", (40, 20))


def test_all_figures_are_those_of_the_steered_chunks(tmp_path: Path, demos: Path) -> None:
    seen: list[tuple[Any, Any]] = []

    def note(local: dict[str, Any], _: Any) -> bool:
        seen.append((model._last_obs, local["actions"]))
        return True

    model = tiny_model()  # 10 chunks of warm-up
    callback = CallbackList([ConvertCallback(note), SteeringDiagnostics(demos, log_freq=60)])
    table = logged(model, tmp_path / "log", 80, callback)
    assert len(table) == 1
    row = table.iloc[0]
    steered = [(obs, delta) for obs, delta in seen[:30] if delta.any()]
    assert len(steered) == 25
    c, z = (np.concatenate([obs[key] for obs, _ in steered]) for key in ("c", "z"))
    delta = np.concatenate([delta for _, delta in steered])
    policy = model.env.steering.policy  # type: ignore[union-attr]
    for name, value in steering_diagnostics(model.env.steering, {"c": c, "z": z}, delta).items():  # type: ignore[union-attr]
        assert row[f"rollout/{name}"] == pytest.approx(value, rel=1e-4)
    assert row["rollout/rms_delta"] == pytest.approx(np.sqrt((delta**2).mean()), rel=1e-4)
    assert row["rollout/rms_step"] == pytest.approx(0.5 * row["rollout/rms_delta"], rel=1e-4)
    assert row["rollout/saturation"] == pytest.approx((np.abs(delta) >= 0.95).mean(), abs=1e-6)
    distance = LatentGaussian(offline_latents(demos, policy).z).distance(z + 0.5 * delta).mean()
    assert row["rollout/mahalanobis"] == pytest.approx(distance, rel=1e-4)
    assert row["rollout/q_error"] == pytest.approx(row["rollout/q_first"] - row["rollout/return_first"], abs=1e-5)
    assert 0 <= row["rollout/return_first"] <= 1
    assert {"train/entropy", "train/ent_coef"} <= set(table)


def test_tensorboard_shows_them(tmp_path: Path) -> None:
    logged(tiny_model(), tmp_path, 60, SteeringDiagnostics(log_freq=20))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    names = {f"rollout/{name}" for name in (*OF_STEERING, *OF_CRITICS)}
    assert names <= set(events.Tags()["scalars"])
    assert "rollout/mahalanobis" not in events.Tags()["scalars"]


def test_the_return_is_what_the_critics_should_have_learned(tmp_path: Path) -> None:
    """Every env step is rewarded and no episode ends sooner than another: the return is a sum that is known."""

    def rewarded(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
        return TransformReward(env, lambda _: 0.05)

    env = steered_points(env_kwargs={"reach": 0.0}, layer=rewarded)
    settings = {"policy_kwargs": {"bounded_critic": False}, "replay_buffer_kwargs": {"n_steps": 3}}
    model = tiny_model(env, qf_learning_rate=5e-3, tau=0.1, **settings)
    table = logged(model, tmp_path, 240, SteeringDiagnostics(log_freq=30))
    whole = 0.05 * sum(0.9**k for k in range(12))  # 12 env steps
    assert table["rollout/return_first"].tolist() == pytest.approx([whole] * len(table), rel=1e-4)
    assert abs(table["rollout/q_error"].iloc[0]) > 0.15 > 0.1 > abs(table["rollout/q_error"].iloc[-1])


def test_watching_does_not_change_training(tmp_path: Path, demos: Path) -> None:
    def train(callback: BaseCallback | None) -> SteeringSAC:
        return tiny_model(steered_points(sample_latent=True), bootstrap_timeouts=True).learn(100, callback)

    assert same(everything(train(None)), everything(train(SteeringDiagnostics(demos, log_freq=10))))


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_stock_algorithms_are_watched_and_a_single_environment_too(tmp_path: Path, algorithm: Any, demos: Path) -> None:
    arguments = {"n_steps": 20, "batch_size": 20} if algorithm is PPO else {"learning_starts": 5}
    env = LatentSteeringWrapper(gym.make(POINT), tiny_policy(env_id=None), scale=0.5, gamma=0.9)
    model = algorithm("MultiInputPolicy", env, device="cpu", seed=0, **arguments)
    row = logged(model, tmp_path / "log", 60, SteeringDiagnostics(demos, log_freq=30)).iloc[-1]
    assert all(np.isfinite(row[f"rollout/{name}"]) for name in (*OF_STEERING, "mahalanobis"))
    assert ("rollout/q_first" in row) is (algorithm is SAC)


def test_other_steerings_have_no_decoder_and_no_guideline(tmp_path: Path, capsys: Any) -> None:
    env = make_vec_steering(POINT, ActionSteering(tiny_policy(), scale=5.0), 2, 0.9)
    row = logged(tiny_model(env), tmp_path, 60, SteeringDiagnostics(log_freq=20, patience=20)).iloc[-1]
    assert "rollout/displacement" not in row
    assert row["rollout/rms_ratio"] > 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("scale", "advice"), [(50.0, "train with a λ of about"), (1e-3, "of about"), (0.0, "")])
def test_advice_comes_once_where_the_guideline_is_left_for_long(
    tmp_path: Path, demos: Path, capsys: Any, scale: float, advice: str
) -> None:
    policy = tiny_policy(env_id=POINT)
    z = offline_latents(demos, policy).z
    inside = 0.15 * float(np.sqrt(np.square(z).mean())) / 0.6
    # SB3's SAC begins with Δz that are uniform, and its actor with Δz of about the same size.
    model = SAC("MultiInputPolicy", steered_points(policy, scale=scale or inside), device="cpu", learning_starts=100)
    logged(model, tmp_path / "log", 160, SteeringDiagnostics(demos, log_freq=20, patience=60))
    lines = [line for line in capsys.readouterr().out.splitlines() if "RMS(λΔz)/RMS(z) is" in line]
    assert len(lines) == bool(advice)
    if advice:
        assert advice in lines[0]
        assert lines[0].startswith("Warning after ")
        events = EventAccumulator(str(tmp_path / "log"))
        events.Reload()
        assert "rollout/advice/text_summary" in events.Tags()["tensors"]


def test_demonstrations_of_another_task_are_refused_when_training_starts(demos: Path) -> None:
    model = tiny_model(steered_points(tiny_policy(latent_dim=3, seed=1)))
    model.env.steering.policy.env_id = "zprl/Can-v0"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="has demonstrations of"):
        model.learn(20, SteeringDiagnostics(demos))
