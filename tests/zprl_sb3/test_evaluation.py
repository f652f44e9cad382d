from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecMonitor

from helpers import POINT, steered_points, tiny_model, tiny_policy
from zprl_sb3.diagnostics import Recorder
from zprl_sb3.evaluation import Evaluation, NoSteering, evaluate, parallel_envs, wilson_interval
from zprl_sb3.wrappers import LatentSteeringWrapper, VecSteering

SEED, EPISODES = 300, 12


def evaluation_env(n_envs: int) -> VecSteering:
    return steered_points(n_envs=n_envs, seeded_episodes=True, env_kwargs={"reach": 0.5})


def one_by_one() -> Evaluation:
    """Run the episodes by hand, each in an environment of its own."""
    result = Evaluation()
    for seed in range(SEED, SEED + EPISODES):
        env = LatentSteeringWrapper(gym.make(POINT, reach=0.5), tiny_policy(), scale=0.5, gamma=0.9)
        env.reset(seed=seed)
        done = False
        while not done:
            _, _, terminated, truncated, info = env.step(np.zeros(3, np.float32))
            done = terminated or truncated
        result.seeds.append(seed)
        result.successes.append(info["is_success"])
        result.lengths.append(info["episode"]["l"])
        result.returns.append(info["episode"]["r"])
        result.commanded.append(None)  # the toy task tells nothing of hands
    return result


def test_an_evaluation_is_its_episodes_by_hand_however_many_run_side_by_side() -> None:
    expected = asdict(one_by_one())
    assert 0 < sum(expected["successes"]) < EPISODES
    assert len(set(expected["lengths"])) > 3
    for n_envs in (1, 3, 4):
        assert asdict(evaluate(NoSteering(), evaluation_env(n_envs), SEED, EPISODES)) == expected, f"{n_envs} at once"


def test_an_evaluation_repeats_exactly_in_the_same_environments() -> None:
    env, model = evaluation_env(2), tiny_model()
    first = evaluate(model, env, SEED, 6)
    evaluate(model, env, SEED + 50, 4)
    assert evaluate(model, env, SEED, 6) == first
    assert first.seeds == list(range(SEED, SEED + 6))


def test_episodes_are_run_with_the_mean_of_the_actor() -> None:
    model = tiny_model()
    recorder = Recorder(model, 4)
    evaluate(recorder, evaluation_env(2), SEED, 4)
    for c, z, delta in zip(recorder.contexts, recorder.latents, recorder.deltas, strict=True):
        np.testing.assert_array_equal(delta, model.predict({"c": c, "z": z}, deterministic=True)[0])


def test_episodes_that_do_not_divide_evenly_are_refused() -> None:
    with pytest.raises(ValueError, match="5 episodes cannot be divided evenly among 2 environments"):
        evaluate(NoSteering(), evaluation_env(2), SEED, 5)


def test_environments_without_named_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="seeded_episodes=True"):
        evaluate(NoSteering(), steered_points(), SEED, 4)


def test_a_monitor_that_counts_chunks_is_refused() -> None:
    with pytest.raises(ValueError, match="VecMonitor would count chunks"):
        evaluate(NoSteering(), VecMonitor(evaluation_env(2)), SEED, 4)


def test_an_environment_that_does_not_tell_success_is_refused() -> None:
    env = evaluation_env(2)

    def forget(local: Any) -> Any:
        obs, rewards, dones, infos = local
        return obs, rewards, dones, [{k: v for k, v in info.items() if k != "is_success"} for info in infos]

    env.step_wait = lambda: forget(VecSteering.step_wait(env))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="does not tell success: its info needs 'is_success'"):
        evaluate(NoSteering(), env, SEED, 4)


@pytest.mark.parametrize("quits", [False, True])
def test_aborted_episodes_are_run_again_unless_nobody_wants_to(quits: bool) -> None:
    env, ended = evaluation_env(1), list[int]()

    def abort() -> Any:
        obs, rewards, dones, infos = VecSteering.step_wait(env)
        if dones[0]:
            ended.append(infos[0]["episode_seed"])
            if len(ended) in (2, 3):
                infos = [infos[0] | {"aborted": True, "quit": quits}]
        return obs, rewards, dones, infos

    env.step_wait = abort  # type: ignore[method-assign]
    result = evaluate(NoSteering(), env, SEED, 4)
    assert result.aborted == 2
    assert ended == list(range(SEED, SEED + (4 if quits else 6)))
    assert result.seeds == [seed for k, seed in enumerate(ended) if k not in (1, 2)]
    assert len(result.lengths) == len(result.successes) == len(result.returns) == (2 if quits else 4)


def test_no_steering_answers_zeros() -> None:
    z = np.ones((5, 3), np.float32)
    delta, state = NoSteering().predict({"c": np.ones((5, 4), np.float32), "z": z}, deterministic=True)
    assert state is None
    assert delta.shape == (5, 3)
    assert delta.dtype == np.float32
    assert not delta.any()


def test_the_summary_by_hand() -> None:
    result = Evaluation([7, 8, 9, 10], [True, False, True, True], [10, 50, 20, 30], [1.0, 0.0, 1.0, 1.0])
    low, high = wilson_interval(3, 4)
    assert result.success_rate == 0.75
    assert result.summary() == {
        "success_rate": 0.75,
        "ci95": [low, high],
        "episodes": 4,
        "seeds": [7, 10],
        "mean_length": 27.5,
        "mean_length_of_successes": 20.0,
        "mean_return": 0.75,
    }


def test_without_a_success_there_is_no_length_of_successes() -> None:
    summary = Evaluation([0, 1], [False, False], [5, 7], [0.0, 0.0]).summary()
    assert summary["mean_length_of_successes"] is None
    assert summary["success_rate"] == 0


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    # scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    [
        (0, 50, (0.0, 0.0713476)),
        (1, 1, (0.2065493, 1.0)),
        (8, 10, (0.4901625, 0.9433178)),
        (25, 50, (0.3664451, 0.6335549)),
        (50, 50, (0.9286524, 1.0)),
    ],
)
def test_the_wilson_interval(successes: int, trials: int, expected: tuple[float, float]) -> None:
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("episodes", "expected"), [(50, 25), (20, 20), (26, 13), (29, 1), (1, 1), (100, 25)])
def test_as_many_environments_as_divide_the_episodes(episodes: int, expected: int) -> None:
    assert parallel_envs(episodes) == expected


def test_fewer_environments_on_demand() -> None:
    assert parallel_envs(50, at_most=9) == 5
