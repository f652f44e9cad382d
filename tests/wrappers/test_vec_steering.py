"""VecSteering does to n environments what n single wrappers do, with one forward of the policy."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from helpers import POINT, POINT_DICT, PUSH, PointReach, push_policy, steered_points, tiny_model, tiny_policy
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.wrappers import (
    LatentSteering,
    LatentSteeringWrapper,
    SeededEpisodes,
    VecSteering,
    find_spec,
    make_vec_steering,
)

N = 3
ATOL = 1e-6  # the sums in a batch of n may run in another order than in n batches of one


def deltas(steps: int, n_envs: int = N) -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (steps, n_envs, 3)).astype(np.float32)


def compare_with_singles(
    env: VecSteering, singles: list[LatentSteeringWrapper], steps: int, seed: int, atol: float = ATOL
) -> int:
    """Step both side by side and return how many episodes ended."""

    def assert_close(mine: dict[str, NDArray[Any]], theirs: dict[str, NDArray[Any]]) -> None:
        for key in ("c", "z"):
            np.testing.assert_allclose(mine[key], theirs[key], rtol=0, atol=atol, err_msg=key)

    env.seed(seed)
    shown: Any = env.reset()
    for k, single in enumerate(singles):
        assert_close({key: value[k] for key, value in shown.items()}, single.reset(seed=seed + k)[0])
    ended = 0
    for delta in deltas(steps, env.num_envs):
        shown, rewards, dones, infos = env.step(delta)
        for k, single in enumerate(singles):
            obs, reward, terminated, truncated, info = single.step(delta[k])
            assert (rewards[k], dones[k]) == (pytest.approx(float(reward)), terminated or truncated)
            assert infos[k]["env_steps"] == info["env_steps"]
            if dones[k]:
                ended += 1
                assert infos[k]["TimeLimit.truncated"] == (truncated and not terminated)
                assert infos[k]["episode"]["l"] == info["episode"]["l"]
                assert_close(infos[k]["terminal_observation"], obs)
                obs, _ = single.reset()
            assert_close({key: value[k] for key, value in shown.items()}, obs)
    return ended


@pytest.mark.parametrize("seeded_episodes", [False, True])
@pytest.mark.parametrize("sample_latent", [False, True])
@pytest.mark.parametrize("config", [{}, {"obs_steps": 2}])
def test_it_does_what_single_wrappers_do(config: dict[str, Any], sample_latent: bool, seeded_episodes: bool) -> None:
    policy = tiny_policy(**config)
    env = steered_points(policy, N, 0.5, sample_latent=sample_latent, seeded_episodes=seeded_episodes)

    def single() -> LatentSteeringWrapper:
        inner = gym.make(POINT)
        inner = SeededEpisodes(inner, N) if seeded_episodes else inner
        return LatentSteeringWrapper(inner, policy, 0.5, gamma=0.9, sample_latent=sample_latent)

    assert compare_with_singles(env, [single() for _ in range(N)], steps=60, seed=11) > 3 * N


@pytest.mark.parametrize("obs_steps", [1, 3])
def test_it_does_so_by_key_too(obs_steps: int) -> None:
    policy = tiny_policy(by_key=True, obs_steps=obs_steps)
    env = make_vec_steering(POINT_DICT, LatentSteering(policy, 0.5), N, 0.9)
    singles = [LatentSteeringWrapper(gym.make(POINT_DICT), policy, 0.5, gamma=0.9) for _ in range(N)]
    assert compare_with_singles(env, singles, steps=30, seed=2) > N


def test_environments_may_be_seeded_before_they_are_steered() -> None:
    """As SB3's make_vec_env does it."""
    env = steered_points(n_envs=N, sample_latent=True)
    env.venv.seed(5)
    early = VecSteering(env.venv, env.steering, 0.9).reset()
    env.seed(5)
    np.testing.assert_array_equal(early["z"], env.reset()["z"])  # type: ignore[index,call-overload]


def row_by_row(policy: FlowPolicy) -> FlowPolicy:
    """Let a policy compute each row of a batch alone, so that it gives the same bits in every batch."""
    assert policy.bottleneck is not None
    embed, act, encode, decode = policy.embed, policy.act, policy.bottleneck.encode, policy.bottleneck.decode

    def embed_rows(obs: dict[str, th.Tensor]) -> th.Tensor:
        rows = zip(*(value.split(1) for value in obs.values()), strict=True)
        return th.cat([embed(dict(zip(obs, row, strict=True))) for row in rows])

    def act_rows(condition: th.Tensor, noise: th.Tensor) -> th.Tensor:
        return th.cat([act(*row) for row in zip(condition.split(1), noise.split(1), strict=True)])

    def encode_rows(context: th.Tensor) -> tuple[th.Tensor, ...]:
        return tuple(map(th.cat, zip(*(encode(row) for row in context.split(1)), strict=True)))

    policy.embed, policy.act = embed_rows, act_rows  # type: ignore[method-assign,assignment]
    policy.bottleneck.encode = encode_rows  # type: ignore[method-assign,assignment]
    policy.bottleneck.decode = lambda latent: th.cat([decode(row) for row in latent.split(1)])  # type: ignore[method-assign]
    return policy


# Batches differ from single rows in the last bits, and contacts amplify these exponentially, by 1e4 and more within
# 30 chunks, in float64 too. So the batched policy is compared before the first contact, and whole episodes with a
# policy whose batches are exact: all else that VecSteering does is, too.
@pytest.mark.parametrize(("exact", "limit", "chunks", "atol"), [(False, 15, 20, ATOL), (True, 100, 60, 0.0)])
def test_it_does_so_in_the_simulator(exact: bool, limit: int, chunks: int, atol: float) -> None:
    pytest.importorskip("metaworld")
    policy = row_by_row(push_policy()) if exact else push_policy()
    kwargs = {"max_episode_steps": limit}
    env = make_vec_steering(PUSH, LatentSteering(policy, 0.5, sample_latent=True), 2, env_kwargs=kwargs)
    singles = [LatentSteeringWrapper(gym.make(PUSH, **kwargs), policy, 0.5, sample_latent=True) for _ in range(2)]
    assert compare_with_singles(env, singles, chunks, seed=20, atol=atol) == (2 if exact else 4)


def test_processes_of_their_own_change_nothing() -> None:
    here, there = (
        steered_points(n_envs=2, sample_latent=True, seeded_episodes=True, subprocess=subprocess)
        for subprocess in (False, True)
    )
    try:
        for env in (here, there):
            env.seed(3)
        np.testing.assert_equal(there.reset(), here.reset())
        ended = 0
        for delta in deltas(25, 2):
            mine, theirs = here.step(delta), there.step(delta)
            np.testing.assert_equal(theirs[:3], mine[:3])
            for a, b in zip(mine[3], theirs[3], strict=True):
                np.testing.assert_equal(b.get("terminal_observation"), a.get("terminal_observation"))
                assert (a["env_steps"], a["episode_seed"]) == (b["env_steps"], b["episode_seed"])
            ended += int(mine[2].sum())
        assert ended > 2
    finally:
        there.close()


def count_calls(policy: FlowPolicy) -> list[tuple[str, int]]:
    """Note the name and the batch size of every forward of the policy."""
    calls: list[tuple[str, int]] = []
    embed, act = policy.embed, policy.act

    def noting_embed(obs: dict[str, th.Tensor]) -> th.Tensor:
        calls.append(("embed", len(obs["state"])))
        return embed(obs)

    def noting_act(condition: th.Tensor, noise: th.Tensor) -> th.Tensor:
        calls.append(("act", len(condition)))
        return act(condition, noise)

    policy.embed, policy.act = noting_embed, noting_act  # type: ignore[method-assign,assignment]
    return calls


class Drawing(FlowPolicy):
    """Draws numbers that are nobody else's business, and fails where it is told to."""

    fails = False

    def embed(self, obs: dict[str, th.Tensor], where: th.Tensor | None = None) -> th.Tensor:
        if self.fails:
            raise RuntimeError("it cannot be compiled")
        return super().embed(obs, where) + 0 * th.rand(1)


def test_a_first_chunk_when_they_are_made_touches_no_seed() -> None:
    policy = Drawing(tiny_policy().config, tiny_policy().bottleneck)
    th.manual_seed(3)
    expected = th.rand(2)
    th.manual_seed(3)
    made = steered_points(policy=policy)
    assert th.equal(th.rand(2), expected)
    made.close()


def test_environments_are_closed_where_a_policy_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[Any] = []
    monkeypatch.setattr(PointReach, "close", lambda env: closed.append(env))
    policy = Drawing(tiny_policy().config, tiny_policy().bottleneck)
    policy.fails = True
    with pytest.raises(RuntimeError, match="it cannot be compiled"):
        steered_points(policy=policy)
    assert len(closed) == 2


def test_a_step_is_one_forward_for_all_environments() -> None:
    policy = tiny_policy()
    env = steered_points(policy, n_envs=4)
    calls = count_calls(policy)
    env.seed(0)
    env.reset()
    assert calls == [("embed", 4)]
    for delta in deltas(20, 4):
        calls.clear()
        _, _, dones, _ = env.step(delta)
        # The last observations of episodes that ended ride along.
        assert calls == [("act", 4), ("embed", 4 + int(dones.sum()))]


def test_what_is_done_to_the_shown_z_does_not_matter() -> None:
    traces = []
    for spoil in (False, True):
        env = steered_points(n_envs=2, sample_latent=True)
        env.seed(8)
        shown: Any = env.reset()
        trace = []
        for delta in deltas(10, 2):
            if spoil:
                shown["z"][:] = 77
                shown["c"][:] = -77
            shown, rewards, dones, _ = env.step(delta)
            trace.append((shown["z"].copy(), shown["c"].copy(), rewards, dones))
        traces.append(trace)
    np.testing.assert_equal(traces[1], traces[0])


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
def test_the_steering_is_found_under_other_wrappers() -> None:
    policy = tiny_policy()
    expected = LatentSteering(policy, 0.5).spec(0.9)
    single = DummyVecEnv([lambda: LatentSteeringWrapper(gym.make(POINT), policy, 0.5, 0.9)])
    for env in (steered_points(policy), VecMonitor(steered_points(policy)), single, VecMonitor(single)):
        assert find_spec(env) == expected
    with pytest.raises(ValueError, match="not steered: wrap it in LatentSteeringWrapper"):
        find_spec(DummyVecEnv([lambda: gym.make(POINT)]))


@pytest.mark.parametrize("batched", [True, False])
def test_a_saved_model_holds_nothing_of_the_policy(tmp_path: Path, batched: bool) -> None:
    policy = tiny_policy(unet_widths=(128, 256))  # megabytes, so that it would show
    assert sum(weight.numel() for weight in policy.parameters()) > 1_000_000
    env = steered_points(policy) if batched else LatentSteeringWrapper(gym.make(POINT), policy, 0.5)
    model = tiny_model(env, policy_kwargs={"n_critics": 2})
    model.learn(20)
    model.save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").stat().st_size < 100_000
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        state = th.load(io.BytesIO(file.read("policy.pth")), weights_only=True)
        data = file.read("data").decode()
    assert {name.split(".")[0] for name in state} == {"actor", "critic", "critic_target"}
    assert "FlowPolicy" not in data
    loaded = SteeringSAC.load(tmp_path / "model.zip")
    assert loaded.steering_spec == find_spec(model.env) if model.env else False
