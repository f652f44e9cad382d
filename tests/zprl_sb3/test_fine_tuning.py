"""ReinFlow and DPPO as algorithms: advantages, losses and schedules by hand; saving, resuming, refusals."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecNormalize

from helpers import POINT, same, steered_points, tiny_policy, tiny_tuning, tuned_points, values
from zprl_sb3.callbacks import SnapshotCallback, SteeringEvalCallback, load_snapshot
from zprl_sb3.chain_buffer import Chain
from zprl_sb3.dppo import DPPO
from zprl_sb3.evaluation import evaluate
from zprl_sb3.files import read_rows
from zprl_sb3.fine_tuning import FineTuning, clipped_surrogate
from zprl_sb3.flow import sample_times
from zprl_sb3.interrupts import Interrupts
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.reinflow import ReinFlow
from zprl_sb3.wrappers import EmbeddingSteering, VecSteering, WeightSteering, make_vec_steering

GAMMA, CHUNK = 0.9, 2
METHODS: list[type[FineTuning]] = [ReinFlow, DPPO]


def base(cls: type[FineTuning], steps: int = 2, **config: Any) -> Any:
    return tiny_policy(objective=cls.objective, sampling_steps=steps, **config)


def tuning(cls: type[FineTuning] = ReinFlow, steps: int = 2, env: Any = None, **kwargs: Any) -> Any:
    own = {"noise_arch": [8]} if cls is ReinFlow else {}
    kwargs["policy_kwargs"] = own | kwargs.get("policy_kwargs", {})
    return tiny_tuning(cls, env or tuned_points(base(cls, steps)), **kwargs)


class Record(BaseCallback):
    """Keeps what the environments returned."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[Any] = []
        self.dones: list[Any] = []
        self.finals: list[Any] = []

    def _on_step(self) -> bool:
        self.rewards.append(self.locals["rewards"].copy())
        self.dones.append(self.locals["dones"].copy())
        ends = [info.get("terminal_observation") for info in self.locals["infos"]]
        timeouts = [info.get("TimeLimit.truncated", False) for info in self.locals["infos"]]
        self.finals.append([end if timeout else None for end, timeout in zip(ends, timeouts, strict=True)])
        return True


# --- Advantages


def test_advantages_end_at_a_time_out_and_go_on_with_the_last_observation_s_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An episode is six chunks of two env steps; the rollout of 16 chunks holds two of them, and ends in a third."""
    env = tuned_points(base(ReinFlow), n_envs=1, env_kwargs={"reach": 1e-6})  # nobody succeeds
    model = tuning(env=env, n_steps=16, gae_lambda=0.8)
    with th.no_grad():
        model.policy.value_net[-1].weight.mul_(20)
    record, seen = Record(), {}
    monkeypatch.setattr(ReinFlow, "train", lambda self: seen.update(buffer=self.rollout_buffer, last=self._last_obs))
    model.learn(16, record)
    buffer = seen["buffer"]

    def value(obs: Any) -> float:
        return float(model.policy.predict_values(model.policy.obs_to_tensor(obs)[0]).detach())

    starts = [value({key: rows[step] for key, rows in buffer.observations.items()}) for step in range(16)]
    after = [*starts[1:], value(seen["last"])]
    dones = [bool(done[0]) for done in record.dones]
    assert dones == [step % 6 == 5 for step in range(16)]
    assert len({round(each, 3) for each in starts}) > 10
    discount, advantage = GAMMA**CHUNK, 0.0
    for step in reversed(range(16)):
        final = record.finals[step][0]
        assert (final is not None) == dones[step]
        following = value(final) if final is not None else after[step]
        error = 0.0 + discount * following - starts[step]
        advantage = error + (0.0 if dones[step] else discount * 0.8 * advantage)
        assert buffer.advantages[step, 0] == pytest.approx(advantage, abs=1e-5)
        # The first observation of the next episode would have led elsewhere.
        if final is not None:
            assert abs(value(final) - after[step]) > 1e-3


def test_a_time_out_may_be_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    env = tuned_points(base(ReinFlow), n_envs=1, env_kwargs={"reach": 1e-6})
    model, record, seen = tuning(env=env, n_steps=12, gae_lambda=1.0, bootstrap_timeouts=False), Record(), {}
    monkeypatch.setattr(ReinFlow, "train", lambda self: seen.update(buffer=self.rollout_buffer))
    model.learn(12, record)
    assert sum(bool(done[0]) for done in record.dones) == 2
    np.testing.assert_allclose(seen["buffer"].returns, 0.0, atol=1e-6)


def test_after_a_success_nothing_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    env = tuned_points(base(ReinFlow), n_envs=1, env_kwargs={"reach": 5.0})  # everybody does, at once
    model, record, seen = tuning(env=env), Record(), {}
    monkeypatch.setattr(ReinFlow, "train", lambda self: seen.update(buffer=self.rollout_buffer))
    model.learn(8, record)
    assert [float(reward[0]) for reward in record.rewards] == [1.0] * 8
    np.testing.assert_allclose(seen["buffer"].returns, 1.0, atol=1e-6)
    assert model.env_steps == 8  # the first step of each chunk


# --- Losses


def test_the_surrogate_is_clipped_group_by_group() -> None:
    ratio = th.tensor([[1.05, 1.05], [0.8, 0.8], [1.3, 1.3]])
    advantages = th.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 2.0]])
    mean, beyond = clipped_surrogate(ratio.log(), advantages, th.tensor([0.01, 0.2]))
    expected = [1.01, 1.05, 0.8, -0.8, -1.3, 2.4]
    assert float(mean) == pytest.approx(sum(expected) / 6)
    assert float(beyond) == pytest.approx(4 / 6)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_reinflow_s_ratio_is_of_the_whole_chain_per_number(steps: int) -> None:
    model = tuning(steps=steps, clip_range=0.03)
    new, old = th.randn(5, steps), th.randn(5, steps)
    numbers = (steps - 1) * 8 + 4
    for row, got in enumerate(model._log_ratio(new, old)):
        assert got.tolist() == pytest.approx(
            [sum(float(new[row, k] - old[row, k]) for k in range(steps)) / numbers], rel=1e-4
        )
    assert model._clip_ranges().tolist() == pytest.approx([0.03])
    assert model._discounts().tolist() == [1.0]


def test_dppo_s_schedules_rise_towards_the_action() -> None:
    model = tuning(DPPO, 5, clip_range=0.02, first_clip_range=0.002, clip_rate=2.0, denoising_discount=0.9)
    rise = [(math.exp(2.0 * i / 4) - 1) / (math.exp(2.0) - 1) for i in range(5)]
    assert model._clip_ranges().tolist() == pytest.approx([0.002 + 0.018 * part for part in rise], rel=1e-5)
    assert model._clip_ranges()[[0, -1]].tolist() == pytest.approx([0.002, 0.02])
    assert model._discounts().tolist() == pytest.approx([0.9**4, 0.9**3, 0.9**2, 0.9, 1.0])
    new, old = th.randn(3, 5), th.randn(3, 5)
    numbers = th.tensor([8.0, 8.0, 8.0, 8.0, 4.0])
    th.testing.assert_close(model._log_ratio(new, old), (new - old) / numbers)
    last_two = tuning(DPPO, 5, clip_range=0.02, policy_kwargs={"tuned_steps": 2})
    assert last_two._clip_ranges().tolist() == pytest.approx([0.001, 0.02])
    assert last_two._discounts().tolist() == pytest.approx([0.99, 1.0])
    assert tuning(DPPO, 1, clip_range=0.02)._clip_ranges().tolist() == pytest.approx([0.02])


@pytest.mark.parametrize("cls", METHODS)
def test_in_the_first_minibatch_the_ratio_is_one(cls: type[FineTuning], monkeypatch: pytest.MonkeyPatch) -> None:
    model, ratios = tuning(cls, 4, n_epochs=1), []
    log_ratio = cls._log_ratio

    def noted(self: Any, new: th.Tensor, old: th.Tensor) -> th.Tensor:
        ratios.append((new - old).detach().exp())
        return log_ratio(self, new, old)

    monkeypatch.setattr(cls, "_log_ratio", noted)
    model.learn(16)
    assert len(ratios) == 2
    th.testing.assert_close(ratios[0], th.ones(8, 4), rtol=0, atol=2e-4)
    assert (ratios[1] - 1).abs().max() > 1e-3  # after an update it is not


@pytest.mark.parametrize("cls", METHODS)
def test_the_losses_are_those_of_the_paper(cls: type[FineTuning], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of PPO, chunk by chunk and group by group; of V, the squared error of the returns."""
    own: dict[str, Any] = (
        {"ent_coef": 0.3} if cls is ReinFlow else {"first_clip_range": 0.01, "denoising_discount": 0.7}
    )
    model = tuning(cls, 4, clip_range=0.02, n_epochs=1, **own)
    model.learn(16)  # after which the ratios are not 1
    batch, descended = next(iter(model.rollout_buffer.get(6))), []
    batch = batch._replace(advantages=th.tensor([3.0, -1.0, 0.5, 2.0, -2.0, 0.0]))
    monkeypatch.setattr(model, "_descend", lambda optimizer, loss: descended.append((optimizer, float(loss.detach()))))
    with th.no_grad():
        log_prob, entropy = model.policy.evaluate(batch.observations, batch.chain.latents)
        ratios = model._log_ratio(log_prob, batch.chain.log_prob).exp()
        errors = model.policy.predict_values(batch.observations)[:, 0] - batch.returns
    assert (ratios - 1).abs().max() > 0.02
    advantages = (batch.advantages - batch.advantages.mean()) / batch.advantages.std()
    terms = []
    for k, (clip, discount) in enumerate(zip(model._clip_ranges().tolist(), model._discounts().tolist(), strict=True)):
        for ratio, advantage in zip(ratios[:, k].tolist(), (advantages * discount).tolist(), strict=True):
            terms.append(min(ratio * advantage, min(max(ratio, 1 - clip), 1 + clip) * advantage))
    expected = -sum(terms) / len(terms) - own.get("ent_coef", 0.0) * float(entropy.mean())
    model._update_policy(batch)
    model._update_value(batch)
    assert [optimizer for optimizer, _ in descended] == [model.policy.optimizer, model.policy.value_optimizer]
    assert [loss for _, loss in descended] == pytest.approx([expected, float(errors.square().mean())], rel=1e-4)


def test_each_network_has_its_learning_rate_and_clipped_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model, norms = tuning(learning_rate=1e-4, vf_learning_rate=0.02, max_grad_norm=1e-3), []
    optimizers = (model.policy.optimizer, model.policy.value_optimizer)
    for optimizer in optimizers:
        step = optimizer.step

        def noted(optimizer: Any = optimizer, step: Any = step) -> None:
            gradients = [weight.grad for weight in optimizer.param_groups[0]["params"] if weight.grad is not None]
            norms.append(float(th.stack([gradient.norm() for gradient in gradients]).norm()))
            step()

        monkeypatch.setattr(optimizer, "step", noted)
    model.learn(16)
    assert [optimizer.param_groups[0]["lr"] for optimizer in optimizers] == [1e-4, 0.02]
    assert max(norms) == pytest.approx(1e-3, rel=1e-2)


def test_the_regulariser_is_the_distance_of_executed_actions_for_the_same_noise() -> None:
    model = tuning(w2_coef=0.5, batch_size=16)
    model.learn(16)  # which has changed the weights
    batch = next(iter(model.rollout_buffer.get(16)))
    frozen, obs = base(ReinFlow), batch.observations
    state = {"state": obs["obs/state"][:, 0]}
    with th.no_grad():
        before = frozen.act(frozen.embed(state), obs["noise"])[:, :CHUNK]
        after = model.policy.tuned().act(model.policy.tuned().embed(state), obs["noise"])[:, :CHUNK]
    penalty, logged = model._penalty(batch)
    expected = float((after - before).square().mean())
    assert expected > 1e-6
    assert penalty.item() == pytest.approx(0.5 * expected, rel=1e-3)
    assert logged["w2"].item() == pytest.approx(expected, rel=1e-3)


def test_the_regulariser_keeps_the_policy_where_it_was() -> None:
    free, held = (tuning(w2_coef=weight, learning_rate=0.003, n_epochs=4).learn(32) for weight in (0.0, 1000.0))
    obs: Any = free.env.reset()
    distances = [float(np.abs(model.predict(obs, deterministic=True)[0]).mean()) for model in (free, held)]
    assert distances[1] < 0.5 * distances[0]


def test_only_values_learn_at_first_and_where_the_policy_has_gone_too_far() -> None:
    model = tuning(critic_warmup=2)
    weights, first = values(model.policy.flow.parameters()), values(model.policy.value_net.parameters())
    model.learn(32)
    assert same(weights, model.policy.flow.parameters())
    assert not same(first, model.policy.value_net.parameters())
    model.learn(16, reset_num_timesteps=False)
    assert not same(weights, model.policy.flow.parameters())
    steps = [tuning(target_kl=limit, learning_rate=0.01).learn(16).policy.optimizer for limit in (1e-9, None)]
    counts = [int(next(iter(optimizer.state.values()))["step"]) for optimizer in steps]
    assert counts[0] < counts[1] == 4


def test_a_warm_up_that_is_over_is_over() -> None:
    model = tuning(critic_warmup=1).learn(32)
    weights = values(model.policy.flow.parameters())
    assert not same(weights, model.learn(16).policy.flow.parameters())  # which counts chunks from 0 again


def test_models_do_not_share_what_they_were_made_with() -> None:
    shared: dict[str, Any] = {"net_arch": [16], "noise_arch": [8]}
    models = [ReinFlow("MultiInputPolicy", tuned_points(base(ReinFlow, k)), policy_kwargs=shared) for k in (2, 4)]
    assert [model.policy_kwargs["config"]["sampling_steps"] for model in models] == [2, 4]


class Exploring:
    """Acts as the model does while it learns: with noise, which is what its loss is about."""

    def __init__(self, model: FineTuning) -> None:
        self.model = model

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        return self.model.predict(observation)


def off_course(cls: type[FineTuning]) -> FlowPolicy:
    """Return a policy that has learned to walk 45 degrees off the way to the goal."""
    th.manual_seed(0)
    policy = base(cls, unet_widths=(16, 32)).requires_grad_(True)
    optimizer = th.optim.Adam(policy.unet.parameters(), 3e-3)
    for _ in range(250):
        state = th.rand(128, 4) * 2 - 1
        x, y = (state[:, 2:] - state[:, :2]).T
        way = (th.stack([x - y, x + y], dim=1) / 2**0.5).clamp(-0.6, 0.6)  # DPPO's clipped x_0 learns nothing from 1
        actions = way[:, None] + 0.05 * th.randn(128, 4, 2)
        times = sample_times(128, state.device)
        loss = policy.objective.loss(policy.unet, actions, th.randn(128, 4, 2), times, policy.context({"state": state}))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.freeze()


@pytest.mark.slow
@pytest.mark.parametrize("cls", METHODS)
def test_a_policy_that_is_off_course_is_put_right(cls: type[FineTuning]) -> None:
    policy = off_course(cls)
    judge = make_vec_steering(POINT, WeightSteering(policy), 40, GAMMA, seeded_episodes=True)
    settings: dict[str, Any] = {"n_steps": 12, "batch_size": 96, "vf_learning_rate": 3e-3}
    settings |= {"clip_range": 0.05, "bootstrap_timeouts": False}
    settings |= {"learning_rate": 1e-3, "n_epochs": 5} if cls is DPPO else {"learning_rate": 5e-4, "n_epochs": 10}
    model = tuning(cls, env=tuned_points(policy, n_envs=16), seed=1, **settings)
    before = evaluate(Exploring(model), judge, 3, 80).success_rate
    model.learn(2880 if cls is DPPO else 1920)
    after = evaluate(Exploring(model), judge, 3, 80).success_rate
    assert after > before + 0.1, (before, after)


# --- Runs


def test_the_exported_policy_does_what_the_model_does() -> None:
    model = tuning(learning_rate=0.01, n_epochs=5).learn(64)
    judges = [
        make_vec_steering(POINT, steering, 2, GAMMA, seeded_episodes=True, env_kwargs={"reach": 0.5})
        for steering in (WeightSteering(base(ReinFlow)), EmbeddingSteering(model.policy.tuned().freeze(), 1.0))
    ]
    mine, exported = (evaluate(actor, judge, 7, 8) for actor, judge in zip((model, Still()), judges, strict=True))
    frozen = evaluate(Still(), judges[0], 7, 8)
    assert (mine.successes, mine.lengths) == (exported.successes, exported.lengths)
    assert mine.lengths != frozen.lengths


class Still:
    """Answers Δ = 0."""

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[Any, None]:
        return np.zeros_like(observation["z"]), None


@pytest.mark.parametrize("cls", METHODS)
def test_a_saved_model_predicts_alone_and_is_the_same(cls: type[FineTuning], tmp_path: Path) -> None:
    more = {"policy_kwargs": {"tuned_steps": 2}} if cls is DPPO else {}
    model = tuning(cls, 4, learning_rate=0.01, **more).learn(32)
    model.save(tmp_path / "model")
    loaded: Any = cls.load(tmp_path / "model.zip", device="cpu")
    assert same(model.policy.state_dict().values(), loaded.policy.state_dict().values())
    obs: Any = model.env.reset()
    np.testing.assert_array_equal(*(each.predict(obs, deterministic=True)[0] for each in (model, loaded)))
    assert (loaded.env_steps, loaded.num_timesteps) == (model.env_steps, 32)
    for name in ("optimizer", "value_optimizer"):
        mine, theirs = (getattr(each.policy, name).state_dict() for each in (model, loaded))
        assert mine["state"].keys() == theirs["state"].keys() != set()
    model.policy.save(tmp_path / "policy")
    alone = type(model.policy).load(str(tmp_path / "policy"))
    np.testing.assert_array_equal(alone.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("cls", METHODS)
def test_a_resumed_run_equals_an_uninterrupted_one(cls: type[FineTuning], tmp_path: Path) -> None:
    """An episode is one chunk, so that what begins anew after a resume begins anew anyway."""
    config = {"horizon": 12, "chunk": 12, "unet_widths": (8,)}

    def env() -> VecSteering:
        return tuned_points(base(cls, **config), env_kwargs={"reach": 1e-6})

    class Reseed(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.training_env.seed(self.model.num_timesteps)
            self.model._last_obs = self.training_env.reset()

        def _on_step(self) -> bool:
            return True

    whole = tuning(cls, env=env()).learn(64, [Reseed()])
    tuning(cls, env=env()).learn(32, [SnapshotCallback(tmp_path / "snapshot", 16), Reseed()])
    resumed: Any = load_snapshot(cls, tmp_path / "snapshot", env(), device="cpu")
    assert resumed.num_timesteps == 16
    resumed.learn(48, [Reseed()], reset_num_timesteps=False)
    assert resumed.num_timesteps == whole.num_timesteps == 64
    assert resumed.env_steps == whole.env_steps == 64 * 12
    assert same(whole.policy.state_dict().values(), resumed.policy.state_dict().values())


@pytest.mark.parametrize("cls", METHODS)
def test_a_stop_does_not_wait_for_the_end_of_a_rollout(cls: type[FineTuning], tmp_path: Path) -> None:
    interrupts, model = Interrupts(), tuning(cls, n_steps=20)

    class Signal(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps == 50:  # in the second rollout
                interrupts.receive(signal.SIGTERM)
            return True

    with pytest.raises(SystemExit, match="143"):
        model.learn(200, [Signal(), SnapshotCallback(tmp_path / "snapshot", 1000, interrupts)])
    saved: Any = load_snapshot(cls, tmp_path / "snapshot", tuned_points(base(cls)), device="cpu")
    assert saved.num_timesteps == 40
    assert 40 <= saved.env_steps <= 80
    assert saved._n_updates == model.n_epochs
    assert same(saved.policy.state_dict().values(), model.policy.state_dict().values())


def test_evaluations_count_env_steps_and_begin_with_the_base_policy(tmp_path: Path) -> None:
    judge = make_vec_steering(
        POINT, WeightSteering(base(ReinFlow)), 2, GAMMA, seeded_episodes=True, env_kwargs={"reach": 0.5}
    )
    model = tuning(learning_rate=0.01)
    model.learn(48, SteeringEvalCallback(judge, tmp_path / "evaluations.csv", 16, 4, seed=7, verbose=0))
    rows = read_rows(tmp_path / "evaluations.csv")
    assert [row["chunks"] for row in rows] == [0, 16, 32, 48]
    assert rows[-1]["env_steps"] == model.env_steps > 48
    assert rows[0]["rms_step"] < 1e-5 < rows[1]["rms_step"]
    assert rows[0]["mean_length"] == evaluate(Still(), judge, 7, 4).summary()["mean_length"]


@pytest.mark.parametrize("cls", METHODS)
def test_the_frozen_policy_stays(cls: type[FineTuning]) -> None:
    policy = base(cls)
    before = policy.fingerprint()
    tuning(cls, env=tuned_points(policy), learning_rate=0.01).learn(32)
    assert policy.fingerprint() == before
    assert all(weight.grad is None for weight in policy.parameters())


# --- Refusals


def test_what_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(ValueError, match="ReinFlow tunes weights, this environment steers with 'latent'"):
        tuning(env=steered_points())
    with pytest.raises(ValueError, match="DPPO tunes a policy with objective diffusion, not flow: pretrain one with"):
        tuning(DPPO, env=tuned_points(base(ReinFlow)))
    with pytest.raises(ValueError, match="The policy normalises what it sees itself"):
        tuning(env=VecNormalize(tuned_points(base(ReinFlow))))
    with pytest.raises(ValueError, match="is not steered"):
        tuning(env=gym.make("Pendulum-v1"))
    with pytest.raises(TypeError, match="ReinFlow does not support these arguments of PPO: gamma, vf_coef"):
        tuning(gamma=0.9, vf_coef=1.0)
    with pytest.raises(TypeError, match="DPPO does not support this argument of PPO: ent_coef"):
        tuning(DPPO, ent_coef=0.1)
    with pytest.raises(ValueError, match="clip_rate is positive, not 0"):
        tuning(DPPO, clip_rate=0.0)


def test_another_discount_or_policy_is_refused(tmp_path: Path) -> None:
    tuning().save(tmp_path / "model")
    for env, words in (
        (tuned_points(base(ReinFlow), gamma=0.8), "gamma per env step 0.9, the environment has 0.8"),
        (tuned_points(base(ReinFlow, seed=5)), "base policy"),
    ):
        with pytest.raises(ValueError, match=words):
            ReinFlow.load(tmp_path / "model.zip", env=env, device="cpu")
        with pytest.raises(ValueError, match=words):
            ReinFlow.load(tmp_path / "model.zip", device="cpu").set_env(env)


def test_the_buffer_keeps_chains_with_their_observations() -> None:
    model = tuning(n_steps=5)
    buffer, rows = model.rollout_buffer, []
    for step in range(5):
        obs = {key: np.full((2, *space.shape), step, space.dtype) for key, space in buffer.observation_space.items()}
        latents = th.arange(2.0)[:, None, None, None] + 10 * step + th.zeros(2, 3, 4, 2)
        chain = Chain(latents, latents[:, 1:, 0, 0] + 0.5)
        buffer.add(obs, np.zeros((2, 4)), np.zeros(2), np.zeros(2), th.zeros(2), chain)
    for batch in buffer.get(3):
        for obs_row, latents, log_prob in zip(batch.observations["c"], *batch.chain, strict=True):
            rows.append(float(latents[0, 0, 0]))
            assert rows[-1] // 10 == float(obs_row[0])
            assert log_prob.tolist() == [rows[-1] + 0.5] * 2
    assert sorted(rows) == sorted(10.0 * step + env for step in range(5) for env in range(2))
