"""SteeringSAC as a whole: warm-up, seeds, clocks, logs, saving, and what it asks of an environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import ConvertCallback, EvalCallback
from stable_baselines3.common.vec_env import VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from helpers import (
    POINT,
    POINT_DICT,
    TIME_LIMIT,
    contents,
    everything,
    same,
    same_contents,
    steered_points,
    stored,
    tiny_model,
    tiny_policy,
)
from zprl_sb3.callbacks import SnapshotCallback, load_snapshot
from zprl_sb3.replay import SteeringReplayBuffer
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.wrappers import LatentSteeringWrapper, VecSteering

GAMMA, CHUNK, LATENT, SCALE = 0.9, 2, 3, 0.5


# --- Warm-up and the frozen policy


def test_the_warm_up_executes_and_stores_no_steering() -> None:
    model = tiny_model(steered_points(n_envs=1, sample_latent=True), learning_starts=15, seed=3).learn(15)
    assert model._n_updates == 0
    samples = stored(model)
    assert len(samples.actions) == 15
    assert not samples.actions.any()
    # The same environment, driven by zeros, shows the same contexts and latents bit for bit.
    env = steered_points(n_envs=1, sample_latent=True)
    env.seed(3)
    observation: Any = env.reset()
    for step in range(15):
        for key in ("c", "z"):
            np.testing.assert_array_equal(samples.observations[key][step].numpy(), observation[key][0])
        observation = env.step(np.zeros((1, LATENT), np.float32))[0]
    model.learn(5, reset_num_timesteps=False)
    assert stored(model).actions[15:].any(dim=1).all()


def test_the_stored_latent_is_the_one_that_was_steered() -> None:
    model = tiny_model(steered_points(n_envs=1, sample_latent=True), learning_starts=5).learn(40)
    samples = stored(model)
    inside = samples.dones[:-1, 0] == 0
    # z is drawn once per observation: it ends one row and begins the next.
    assert th.equal(samples.next_observations["z"][:-1][inside], samples.observations["z"][1:][inside])
    mean = tiny_policy().bottleneck.encode(samples.observations["c"])[0]  # type: ignore[union-attr]
    assert not th.allclose(samples.observations["z"], mean, atol=1e-3)


@pytest.mark.parametrize("frozen", [True, False])
def test_training_does_not_touch_the_base_policy(frozen: bool) -> None:
    policy = tiny_policy().requires_grad_(not frozen)
    fingerprint = policy.fingerprint()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    model = tiny_model(steered_points(policy, sample_latent=True)).learn(50)
    assert model._n_updates == 40
    assert policy.fingerprint() == fingerprint
    for name, tensor in policy.state_dict().items():
        assert th.equal(tensor, before[name]), name
    assert all(weight.grad is None for weight in policy.parameters())


# --- Seeds


def test_the_same_seed_gives_the_same_run_bit_for_bit_and_another_seed_another() -> None:
    first, again, other = (tiny_model(steered_points(sample_latent=True), seed=seed).learn(80) for seed in (1, 1, 2))
    assert first._n_updates == 70
    assert same(everything(first), everything(again))
    assert not same(everything(first), everything(other))
    assert same_contents(first.replay_buffer, again.replay_buffer)
    assert not same_contents(first.replay_buffer, other.replay_buffer)


# --- Updates while the environments step


@pytest.mark.parametrize(("train_freq", "gradient_steps"), [(1, -1), (4, -1), (3, 7)])
def test_overlapped_and_sequential_runs_have_as_many_data_and_updates(train_freq: int, gradient_steps: int) -> None:
    counts = []
    for overlap in (False, True):
        model = tiny_model(overlap=overlap, train_freq=train_freq, gradient_steps=gradient_steps).learn(100)
        assert isinstance(model.replay_buffer, SteeringReplayBuffer)
        counts.append((model.num_timesteps, model.replay_buffer.size(), model._n_updates))
    assert counts[0] == counts[1]
    assert counts[0][2] > 50


def test_updates_are_made_between_the_start_and_the_end_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    for name in ("step_async", "step_wait"):
        method = getattr(VecSteering, name)

        def noted(self: Any, *args: Any, name: str = name, method: Any = method) -> Any:
            events.append(name)
            return method(self, *args)

        monkeypatch.setattr(VecSteering, name, noted)
    update = SteeringSAC._update_critic
    monkeypatch.setattr(SteeringSAC, "_update_critic", lambda *args: events.append("update") or update(*args))
    tiny_model(overlap=True, learning_starts=4, train_freq=2).learn(16)
    text = " ".join(events).replace("step_", "")
    # Two environments, so 4 chunks a rollout, whose updates are shared out among the two steps of the next one.
    assert text == " ".join(["async wait"] * 4 + ["async update update wait"] * 4 + ["update"] * 4)


def test_the_first_updates_see_the_same_data(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[th.Tensor]] = []
    update = SteeringSAC._update_critic
    monkeypatch.setattr(
        SteeringSAC, "_update_critic", lambda self, batch: seen[-1].append(batch.rewards) or update(self, batch)
    )
    for overlap in (False, True):
        seen.append([])
        tiny_model(overlap=overlap, learning_starts=20, train_freq=10).learn(40)
    assert len(seen[0]) == 40 - 20
    assert same(seen[0][:20], seen[1][:20])


def test_nothing_is_owed_in_a_snapshot(tmp_path: Path) -> None:
    model = tiny_model(overlap=True)
    owed: list[int] = []

    class Look(SnapshotCallback):
        def _on_rollout_start(self) -> None:
            owed.append(model._owed)
            super()._on_rollout_start()

    model.learn(60, Look(tmp_path / "snapshot", save_freq=20))
    assert max(owed) > 0
    loaded = load_snapshot(SteeringSAC, tmp_path / "snapshot", steered_points())
    assert isinstance(loaded, SteeringSAC)
    assert loaded._owed == 0
    assert loaded._n_updates == loaded.num_timesteps - 10


# --- Clocks and logs


def steps_of(env: VecSteering) -> int:
    """Return the env steps that the environments have counted themselves."""
    return sum(map(sum, env.get_attr("length_queue"))) + sum(env.get_attr("episode_lengths"))


def test_env_steps_counts_the_executed_steps_and_timesteps_the_chunks() -> None:
    # A wide goal ends many episodes in the middle of a chunk.
    env = steered_points(n_envs=2, env_kwargs={"reach": 0.6})
    model = tiny_model(env).learn(101)
    assert model.num_timesteps == 102, "whole steps of two environments"
    assert model.env_steps == steps_of(env)
    assert model.num_timesteps < model.env_steps < CHUNK * model.num_timesteps
    executed = model.env_steps
    model.learn(20, reset_num_timesteps=False)
    assert model.env_steps == steps_of(env) > executed
    # SB3 starts its own counter anew; ours goes with it.
    model.learn(2)
    assert model.num_timesteps == 2
    assert 2 <= model.env_steps <= CHUNK * 2


def test_the_tensorboard_log_has_env_steps_and_the_losses(tmp_path: Path) -> None:
    model = tiny_model(tensorboard_log=str(tmp_path)).learn(120, log_interval=1)
    events = EventAccumulator(str(next(tmp_path.iterdir())))
    events.Reload()
    assert tmp_path.joinpath("SteeringSAC_1").is_dir()
    points = events.Scalars("time/env_steps")
    assert len(points) > 3
    assert all(earlier.value < later.value for earlier, later in zip(points[:-1], points[1:], strict=True))
    assert all(point.step < point.value <= CHUNK * point.step for point in points), "the axis counts chunks"
    assert points[-1].value <= model.env_steps
    names = ("critic_loss", "actor_loss", "ent_coef", "entropy", "q_mean", "q_target", "delta_rms", "learning_rate")
    assert {f"train/{name}" for name in names} <= set(events.Tags()["scalars"])


def test_the_progress_bar_runs(capfd: pytest.CaptureFixture[str]) -> None:
    tiny_model().learn(30, progress_bar=True)
    assert "30/30" in "".join(capfd.readouterr())


def test_the_evaluation_of_sb3_runs_on_a_steered_environment(tmp_path: Path) -> None:
    callback = EvalCallback(
        steered_points(n_envs=1), n_eval_episodes=3, eval_freq=10, best_model_save_path=str(tmp_path), verbose=0,
        log_path=str(tmp_path),
    )  # fmt: skip
    tiny_model().learn(40, callback)
    assert (tmp_path / "best_model.zip").is_file()
    results = np.load(tmp_path / "evaluations.npz")
    assert results["results"].shape == (2, 3)
    # Monitor is below the chunk: lengths are env steps.
    assert results["ep_lengths"].max() > TIME_LIMIT // CHUNK


# --- Saving and attaching


def test_a_loaded_model_predicts_without_an_environment(tmp_path: Path) -> None:
    model = tiny_model(policy_kwargs={"n_critics": 3, "layer_norm": True, "bounded_critic": False}).learn(60)
    model.save(tmp_path / "model")
    loaded = SteeringSAC.load(tmp_path / "model")
    assert loaded.env is None
    assert loaded.steering_spec == model.steering_spec
    assert same(everything(model), everything(loaded))
    batch: Any = model.replay_buffer.sample(16)  # type: ignore[union-attr]
    observation = {key: value.numpy() for key, value in batch.observations.items()}
    for deterministic in (True, False):
        th.manual_seed(1)
        expected = model.predict(observation, deterministic=deterministic)[0]
        th.manual_seed(1)
        np.testing.assert_array_equal(loaded.predict(observation, deterministic=deterministic)[0], expected)
    # λ came along: the critic judges the same.
    assert th.equal(loaded.critic(batch.observations, batch.actions), model.critic(batch.observations, batch.actions))


def test_the_base_policy_is_not_in_the_saved_model(tmp_path: Path) -> None:
    big = tiny_policy(unet_widths=(64, 128))
    sizes = []
    for policy in (tiny_policy(), big):
        tiny_model(steered_points(policy)).save(tmp_path / "model")
        sizes.append((tmp_path / "model.zip").stat().st_size)
    assert sum(weight.numel() for weight in big.parameters()) * 4 > 3 * sizes[0]
    assert abs(sizes[0] - sizes[1]) < 2000


def test_the_replay_buffer_is_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny_model().learn(60)
    model.save_replay_buffer(tmp_path / "buffer")
    other = tiny_model(steered_points())
    other.load_replay_buffer(tmp_path / "buffer")
    assert isinstance(other.replay_buffer, SteeringReplayBuffer)
    assert other.replay_buffer.size() == 60
    assert same_contents(model.replay_buffer, other.replay_buffer)
    other.learn(20)
    assert other.replay_buffer.size() == 80
    assert other._n_updates == 10


def test_a_model_from_before_there_was_a_reach_has_all_of_it() -> None:
    model = tiny_model()
    state = model.policy.state_dict()
    del state["actor.reach"]
    model.policy.set_reach(0.5)
    model.policy.load_state_dict(state)
    assert model.policy.actor.reach == 1


@pytest.mark.parametrize("argument", [{"utd": 0}, {"anneal": -1}, {"progressive": -5}])
def test_counts_below_their_least_are_refused(argument: dict[str, Any]) -> None:
    with pytest.raises(
        ValueError, match=f"{next(iter(argument))} is at least [01], not {next(iter(argument.values()))}"
    ):
        tiny_model(**argument)


def test_the_reach_rises_from_a_tenth_after_the_warm_up() -> None:
    model = tiny_model(anneal=40)  # 10 chunks of warm-up
    reach = [model.policy.actor.reach.item()]
    note = ConvertCallback(lambda *_: bool(reach.append(model.policy.actor.reach.item())) or True)
    model.learn(60, note)
    assert reach[0] == pytest.approx(0.1)
    assert reach[:6] == [reach[0]] * 6
    assert np.diff(reach[6:26]) == pytest.approx([0.9 * 2 / 40] * 19, abs=1e-5)
    assert reach[-1] == 1
    assert model.replay_buffer is not None
    stored = contents(model.replay_buffer).actions.abs().amax(dim=1)  # type: ignore[arg-type]
    assert (stored[10:30] <= 0.1 + 0.9 * 20 / 40).all()


DIFFERENT: dict[str, tuple[Callable[[], VecSteering], str]] = {
    "scale": (lambda: steered_points(scale=0.4), r"scale \(λ\) 0.5, the environment has 0.4"),
    "chunk": (lambda: steered_points(tiny_policy(chunk=4)), "chunk length 2, the environment has 4"),
    "gamma": (lambda: steered_points(gamma=0.95), "gamma per env step 0.9, the environment has 0.95"),
    "policy": (lambda: steered_points(tiny_policy(seed=1)), r"base policy \(fingerprint\) [0-9a-f]+, the env"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_an_environment_that_differs_is_refused_by_name(tmp_path: Path, what: str) -> None:
    make, message = DIFFERENT[what]
    model = tiny_model()
    model.save(tmp_path / "model")
    before = model.get_env()
    with pytest.raises(ValueError, match=message):
        SteeringSAC.load(tmp_path / "model", env=make())
    with pytest.raises(ValueError, match=message):
        model.set_env(make())
    assert model.get_env() is before
    loaded = SteeringSAC.load(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        loaded.set_env(make())


def test_an_equal_environment_is_accepted(tmp_path: Path) -> None:
    model = tiny_model().learn(60)
    model.save(tmp_path / "model")
    model.set_env(steered_points())
    model.learn(10, reset_num_timesteps=False)
    loaded = SteeringSAC.load(tmp_path / "model", env=steered_points(n_envs=3))
    loaded.learn(30)
    single = LatentSteeringWrapper(gym.make(POINT), tiny_policy(), SCALE, GAMMA)
    SteeringSAC.load(tmp_path / "model", env=single).learn(30)


def test_a_gamma_of_its_own_is_refused() -> None:
    assert tiny_model(gamma=GAMMA).gamma == GAMMA
    with pytest.raises(ValueError, match=r"gamma=0.99 per env step, but the wrapper .* 0.9"):
        tiny_model(gamma=0.99)


@pytest.mark.parametrize("env_id", [POINT, POINT_DICT])
def test_an_environment_that_is_not_steered_is_refused(env_id: str) -> None:
    with pytest.raises(ValueError, match=r"is not steered: wrap it in LatentSteeringWrapper"):
        tiny_model(gym.make(env_id))


def test_normalised_observations_are_refused_and_rewards_for_bounded_critics() -> None:
    with pytest.raises(ValueError, match="norm_obs=False"):
        tiny_model(VecNormalize(steered_points()))
    with pytest.raises(ValueError, match="norm_reward=False"):
        tiny_model(VecNormalize(steered_points(), norm_obs=False))
    tiny_model(VecNormalize(steered_points(), norm_obs=False, norm_reward=False))
    model = tiny_model(VecNormalize(steered_points(), norm_obs=False), policy_kwargs={"bounded_critic": False})
    model.learn(20)
    with pytest.raises(ValueError, match="norm_obs=False"):
        model.set_env(VecNormalize(steered_points()))


class Dense(gym.RewardWrapper[Any, Any]):
    """Rewards that bounded critics cannot know."""

    def reward(self, reward: SupportsFloat) -> float:
        return float(reward) - 1


def test_dense_rewards_are_refused_by_bounded_critics_only() -> None:
    env = LatentSteeringWrapper(Dense(gym.make(POINT)), tiny_policy(), SCALE, GAMMA)
    with pytest.raises(ValueError, match=r"from -1.9 to -1.9, bounded critics .*'bounded_critic': False"):
        tiny_model(env).learn(20)
    tiny_model(env, policy_kwargs={"bounded_critic": False}).learn(20)


def test_a_model_is_loaded_with_the_arguments_that_made_it(tmp_path: Path) -> None:
    tiny_model(policy_kwargs={"n_critics": 3}).save(tmp_path / "model")
    networks = {"net_arch": [16, 16], "n_critics": 3, "use_sde": False}  # the last one is SB3's addition
    model = SteeringSAC.load(tmp_path / "model", env=steered_points(), policy_kwargs=networks)
    assert len(model.critic.q_networks) == 3
    assert model.critic.scale == model.critic_target.scale == SCALE


def test_time_outs_may_be_handled_otherwise_after_loading(tmp_path: Path) -> None:
    tiny_model().save(tmp_path / "model")
    for bootstrap in (True, False):
        model = SteeringSAC.load(tmp_path / "model", env=steered_points(), bootstrap_timeouts=bootstrap)
        assert isinstance(model.replay_buffer, SteeringReplayBuffer)
        assert model.replay_buffer.handle_timeout_termination is bootstrap


def test_losses_are_logged_as_means_over_the_burst() -> None:
    model = tiny_model().learn(20)
    burst: list[float] = []
    update = model._update_critic

    def noted(batch: Any) -> dict[str, th.Tensor]:
        losses = update(batch)
        burst.append(losses["critic_loss"].item())
        return losses

    model._update_critic = noted  # type: ignore[method-assign]
    model.train(5, 16)
    assert len(set(burst)) == 5
    assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(np.mean(burst))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_bfloat16_is_advised_against_where_the_processor_does_not_multiply_it(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, has_bfloat16: bool
) -> None:
    monkeypatch.setattr("zprl_sb3.sac.multiplies_bfloat16", lambda _: has_bfloat16)
    tiny_model(steered_points(), autocast=True).learn(8)
    told = [str(each.message) for each in recwarn if "does not multiply bfloat16" in str(each.message)]
    assert len(told) == (0 if has_bfloat16 else 1)


@pytest.mark.parametrize(
    "ignored", [{"target_update_interval": 5}, {"use_sde": True}, {"n_steps": 3}, {"optimize_memory_usage": True}]
)
def test_arguments_of_sac_that_would_have_no_effect_are_refused(ignored: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(ignored))):
        tiny_model(**ignored)


def test_one_environment_trains_like_a_vector_of_one() -> None:
    single = LatentSteeringWrapper(gym.make(POINT), tiny_policy(), SCALE, GAMMA)
    first, second = (tiny_model(env, seed=4).learn(60) for env in (single, steered_points(n_envs=1)))
    # Not bit for bit: a vector encodes the last and the new observation together, and a batch of 2 rounds otherwise.
    for one, other in zip(everything(first), everything(second), strict=True):
        th.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    observation: dict[str, NDArray[np.float32]] = single.reset(seed=0)[0]
    assert first.predict(observation)[0].shape == (LATENT,)
