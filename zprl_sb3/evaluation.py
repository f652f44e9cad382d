"""Evaluation on fixed episodes: the same seeds give the same layouts and the same flow noise to every policy."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, is_vecenv_wrapped
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from zprl_sb3.smoothness import smoothness


@dataclass
class Evaluation:
    """Results by episode, in the order of the seeds. Lengths are in **env steps**, returns are undiscounted.

    ``commanded`` are the positions (length, hands, 3) that the hands were sent to, every ``dt`` seconds, or None where
    the environment does not tell. ``aborted`` episodes, which a person beside a robot did not want to count, are in
    none.
    """

    seeds: list[int] = field(default_factory=list)
    successes: list[bool] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    commanded: list[NDArray[Any] | None] = field(default_factory=list)
    dt: float = 1.0
    aborted: int = 0

    @property
    def success_rate(self) -> float:
        """Share of successful episodes."""
        return float(np.mean(self.successes))

    def summary(self) -> dict[str, Any]:
        """Return success_rate, ci95 (Wilson), episodes, seeds (first and last), mean lengths and return.

        Where the environment tells where it sends the hands, also :meth:`smoothness`.
        """
        lengths = np.array(self.lengths)
        succeeded = lengths[np.array(self.successes)]
        return {
            "success_rate": self.success_rate,
            "ci95": list(wilson_interval(sum(self.successes), len(self.successes))),
            "episodes": len(self.successes),
            "seeds": [min(self.seeds), max(self.seeds)],
            "mean_length": float(lengths.mean()),
            "mean_length_of_successes": float(succeeded.mean()) if len(succeeded) else None,
            "mean_return": float(np.mean(self.returns)),
            **({"aborted": self.aborted} if self.aborted else {}),
        } | self.smoothness()

    def smoothness(self) -> dict[str, float | None]:
        """Return velocity, acceleration and jerk of the successful episodes; None where there is none, {} if not told.

        Of the successful ones only, as the paper's authors do: a hand that is stuck is smooth, too.
        """
        told = [positions for positions in self.commanded if positions is not None]
        if len(told) < len(self.successes):
            return {}
        succeeded = [positions for positions, success in zip(told, self.successes, strict=True) if success]
        means = smoothness(succeeded, self.dt)
        return {name: value if math.isfinite(value) else None for name, value in means.items()}


class NoSteering:
    """A predictor that always answers Δz = 0: the base policy."""

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[np.float32], None]:
        """Return zeros (n, d) for observations {"c": (n, C), "z": (n, d)}."""
        assert isinstance(observation, dict)
        return np.zeros_like(observation["z"]), None


def evaluate(model: PolicyPredictor, env: VecEnv, seed: int, episodes: int) -> Evaluation:
    """Run episodes with the actor's mean and return their results.

    :param model: An SB3 algorithm, or :class:`NoSteering` for the base policy
    :param env: Steered environments made with ``seeded_episodes=True``
    :param seed: First seed; with n environments and N episodes, a multiple of n, the seeds are seed ... seed + N - 1
    :param episodes: N, without those that were aborted, unless whoever aborted them wants no further one
    :raises ValueError: If N is not a multiple of n, or the environments do not name their episodes' seeds, tell no
        success, or are in a VecMonitor; or all episodes were aborted
    """
    if is_vecenv_wrapped(env, VecMonitor):
        raise ValueError("VecMonitor would count chunks where env steps are meant: leave it out, those are counted")
    if episodes % env.num_envs:
        raise ValueError(
            f"{episodes} episodes cannot be divided evenly among {env.num_envs} environments; the seeds would have gaps"
        )
    result = Evaluation(dt=_seconds_per_step(env))
    under_way: defaultdict[int, list[Any]] = defaultdict(list)

    def note(local: dict[str, Any], _: dict[str, Any]) -> None:
        info = local["info"]
        if "episode_seed" not in info:
            raise ValueError("These environments are not for evaluation: make them with seeded_episodes=True")
        if local["done"] and "is_success" not in info:
            raise ValueError("The environment does not tell success: its info needs 'is_success' at an episode's end")
        under_way[local["i"]].append(info.get("commanded"))
        if info.get("aborted", False):
            del under_way[local["i"]]
            result.aborted += 1
        elif local["done"]:
            parts = under_way.pop(local["i"])
            result.commanded.append(None if parts[0] is None else np.concatenate(parts))
            result.seeds.append(info["episode_seed"])
            result.successes.append(bool(info["is_success"]))
            result.lengths.append(int(info["episode"]["l"]))
            result.returns.append(float(info["episode"]["r"]))

    env.seed(seed)
    evaluate_policy(model, _Repeated(env), episodes, deterministic=True, callback=note, warn=False)
    if not result.seeds:
        raise ValueError(f"There is nothing to evaluate: all {episodes} episodes were aborted")
    order = np.argsort(result.seeds)
    for name in ("seeds", "successes", "lengths", "returns", "commanded"):
        values = getattr(result, name)
        setattr(result, name, [values[k] for k in order])
    return result


class _Repeated(VecEnvWrapper):
    """Hides the ends of aborted episodes, so that as many others are run; not where nobody wants any more."""

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        repeated = [info.get("aborted", False) and not info.get("quit", False) for info in infos]
        return obs, rewards, dones & ~np.array(repeated), infos


def _seconds_per_step(env: VecEnv) -> float:
    return 1.0 / float(env.get_attr("metadata")[0].get("render_fps") or 1.0)


def parallel_envs(episodes: int, at_most: int = 25) -> int:
    """Return the largest number of environments up to ``at_most`` that divides the episodes."""
    return max(n for n in range(1, at_most + 1) if episodes % n == 0)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a success rate."""
    z = 1.959964
    rate, spread = successes / trials, z * z / trials
    center = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    return max(0.0, center - half), min(1.0, center + half)
