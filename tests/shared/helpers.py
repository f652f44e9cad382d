"""A toy task and tiny policies, for tests where exactness and speed matter more than the simulator.

Import it as ``helpers``. Environments of the toy task are made by :data:`POINT`, an id with the module in front, so
that a process of its own finds the registration too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.type_aliases import DictReplayBufferSamples

from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
from zprl_sb3.fine_tuning import FineTuning
from zprl_sb3.policy import FlowPolicy, FlowPolicyConfig
from zprl_sb3.pretrain.recording import Episode, save_demonstrations
from zprl_sb3.replay import SteeringReplayBuffer
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.wrappers import LatentSteering, VecSteering, WeightSteering, make_vec_steering

Tuning = TypeVar("Tuning", bound=FineTuning)
POINT_ID = "test/PointReach-v0"
POINT_DICT_ID = "test/PointReachDict-v0"
POINT_IMAGES_ID = "test/PointReachImages-v0"
POINT, POINT_DICT = f"{__name__}:{POINT_ID}", f"{__name__}:{POINT_DICT_ID}"
POINT_IMAGES = f"{__name__}:{POINT_IMAGES_ID}"
PUSH = "zprl/Push-v0"
TIME_LIMIT = 12
REACH = 0.25


class PointReach(gym.Env[Any, NDArray[np.float32]]):
    """A point in the plane reaches a goal: reward 1 and the end on success, 0 before it. Only its start is random.

    Observed are the point and the goal, as one box (4,) or as {"goal": (2,), "point": (2,)}. An action moves the point
    by up to 0.2 along each axis. It holds only arrays, so it can be copied and pickled in the middle of an episode.

    :param by_key: Observe a dictionary
    :param reach: Distance at which the goal counts as reached
    """

    def __init__(self, by_key: bool = False, reach: float = REACH) -> None:
        self.by_key, self.reach = by_key, reach
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        flat = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        half = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = spaces.Dict({"goal": half, "point": half}) if by_key else flat
        self.point = self.goal = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.point, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        return self._observe(), {"is_success": False}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.point = self.point + 0.2 * np.clip(action, -1, 1)
        success = bool(np.linalg.norm(self.point - self.goal) < self.reach)
        return self._observe(), float(success), success, False, {"is_success": success}

    def _observe(self) -> Any:
        point, goal = self.point.astype(np.float32), self.goal.astype(np.float32)
        return {"goal": goal, "point": point} if self.by_key else np.concatenate([point, goal])


class PointReachImages(PointReach):
    """The same task seen by two cameras: one shows point and goal, the other the goal from the point."""

    def __init__(self, reach: float = REACH) -> None:
        super().__init__(by_key=True, reach=reach)
        point = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        image = spaces.Box(0, 255, (16, 16, 3), np.uint8)
        self.observation_space = spaces.Dict({"point": point, "top_image": image, "hand_image": image})

    def _observe(self) -> Any:
        top = np.maximum(drawn(self.point, 0), drawn(self.goal, 1))
        return {
            "point": self.point.astype(np.float32),
            "top_image": top,
            "hand_image": drawn(self.goal - self.point, 2),
        }


def drawn(place: NDArray[np.float64], color: int) -> NDArray[np.uint8]:
    """Return an image of 16 by 16 pixels with a blot where a place in [-2, 2]^2 is."""
    axis = np.linspace(-2, 2, 16)
    distance = np.hypot(axis[:, None] - place[1], axis[None] - place[0])
    image = np.full((16, 16, 3), 30, np.uint8)
    image[..., color] = 30 + 200 * np.exp(-(distance**2) / 0.2)
    return image


for _id, _entry, _kwargs in (
    (POINT_ID, "PointReach", {"by_key": False}),
    (POINT_DICT_ID, "PointReach", {"by_key": True}),
    (POINT_IMAGES_ID, "PointReachImages", {}),
):
    if _id not in gym.registry:
        gym.register(_id, f"{__name__}:{_entry}", max_episode_steps=TIME_LIMIT, kwargs=_kwargs)


def image_demonstrations(path: Path, count: int = 6) -> Path:
    """Write demonstrations of the toy task with images, by somebody who walks straight to the goal."""

    def episode(seed: int) -> Episode:
        env: Any = PointReachImages()
        obs, steps, success = env.reset(seed=seed)[0], [], False
        while not success:
            action = np.clip((env.goal - env.point) / 0.2, -1, 1)
            after, reward, success, _, _ = env.step(action)
            steps.append((obs, after, action, reward))
            obs = after
        before, after, actions, rewards = zip(*steps, strict=True)
        observations, later = ({key: np.stack([each[key] for each in all_]) for key in obs} for all_ in (before, after))
        states = np.zeros((len(steps), 1))
        return Episode(observations, later, np.stack(actions), np.array(rewards), states, seed, "better", True)

    save_demonstrations(path, [episode(seed) for seed in range(count)], POINT_IMAGES, {}, "0", {})
    return path


def point_episode(length: int) -> Episode:
    """Return an episode of the toy task's shapes that nobody has acted."""
    rng = np.random.default_rng(length)
    states = rng.normal(size=(length + 1, 4)).astype(np.float32)
    return Episode(
        observations={"state": states[:-1]},
        next_observations={"state": states[1:]},
        actions=rng.uniform(-1, 1, (length, 2)),
        rewards=rng.uniform(0, 1, length),
        states=np.zeros((length, 0)),
        seed=length,
        quality="okay",
        success=True,
    )


def point_demonstrations(path: Path, lengths: Iterable[int]) -> Path:
    """Write such episodes."""
    save_demonstrations(path, map(point_episode, lengths), POINT, {}, "0", {})
    return path


def tiny_policy(
    by_key: bool = False, latent_dim: int | None = 3, seed: int = 0, env_id: str | None = None, **config: Any
) -> FlowPolicy:
    """Return a frozen policy with random weights for the toy task: horizon 4, chunk 2.

    :param by_key: For the dictionary observation
    :param latent_dim: d; None leaves the bottleneck out
    :param seed: Of the weights; torch's global generator is left as it was
    :param env_id: What the policy says it was trained for
    :param config: Changes of the :class:`FlowPolicyConfig`
    """
    settings: dict[str, Any] = {
        "observation_shapes": {"goal": (2,), "point": (2,)} if by_key else {"state": (4,)},
        "action_dim": 2,
        "horizon": 4,
        "chunk": 2,
        "unet_widths": (8, 16),
        "time_dim": 8,
    }
    with th.random.fork_rng():
        th.manual_seed(seed)
        policy = FlowPolicy(FlowPolicyConfig(**(settings | config)))
        if latent_dim is not None:
            policy.bottleneck = Bottleneck(policy.context_dim, BottleneckConfig(latent_dim, hidden=16))
    policy.env_id = env_id
    return policy.freeze()


def image_policy(**config: Any) -> FlowPolicy:
    """Return a frozen policy with random weights for the toy task as :class:`PointReachImages` shows it."""
    settings: dict[str, Any] = {
        "observation_shapes": {"point": (2,), "top_image": (16, 16, 3), "hand_image": (16, 16, 3)},
        "crop": (12, 12),
        "resnet_widths": (8, 16),
        "image_dim": 6,
    }
    return tiny_policy(**(settings | config))


def random_observations(policy: FlowPolicy, count: int) -> dict[str, th.Tensor]:
    """Return observations as they come from demonstrations, (B, n, ...) for each key."""
    return {
        key: th.randint(0, 256, (count, policy.obs_steps, *shape), dtype=th.uint8)
        if len(shape) == 3
        else th.randn(count, policy.obs_steps, *shape)
        for key, shape in policy.observation_shapes.items()
    }


def push_policy(**config: Any) -> FlowPolicy:
    """Return a frozen policy with random weights that fits the simulator's tasks (``zprl/Push-v0``)."""
    return tiny_policy(observation_shapes={"object": (17,), "proprio": (9,)}, action_dim=4, env_id=PUSH, **config)


def steered_points(
    policy: FlowPolicy | None = None,
    n_envs: int = 2,
    scale: float | tuple[float, ...] = 0.5,
    gamma: float = 0.9,
    sample_latent: bool = False,
    **kwargs: Any,
) -> VecSteering:
    """Return the toy task in ``n_envs`` environments, steered in the latent of a tiny policy.

    :param kwargs: Further arguments of :func:`make_vec_steering`
    """
    steering = LatentSteering(policy or tiny_policy(), scale, sample_latent)
    return make_vec_steering(POINT, steering, n_envs, gamma, **kwargs)


def tuned_points(policy: FlowPolicy | None = None, n_envs: int = 2, gamma: float = 0.9, **kwargs: Any) -> VecSteering:
    """Return the toy task in ``n_envs`` environments, as those who tune a tiny policy's weights see it.

    :param kwargs: Further arguments of :func:`make_vec_steering`
    """
    return make_vec_steering(POINT, WeightSteering(policy or tiny_policy()), n_envs, gamma, **kwargs)


def tiny_tuning(cls: type[Tuning], env: Any, **kwargs: Any) -> Tuning:
    """Return ReinFlow or DPPO with small networks on :func:`tuned_points`.

    :param cls: Which
    :param env: The environment
    :param kwargs: Further arguments; ``policy_kwargs`` are added to these
    """
    settings: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "n_epochs": 2, "seed": 0, "device": "cpu"}
    settings |= kwargs
    settings["policy_kwargs"] = {"net_arch": [16]} | kwargs.get("policy_kwargs", {})
    return cls("MultiInputPolicy", env, **settings)


def tiny_model(env: Any = None, **kwargs: Any) -> SteeringSAC:
    """Return a SteeringSAC with small networks, and targets over one chunk, on :func:`steered_points`.

    :param env: A steered environment; None makes one
    :param kwargs: Arguments of :class:`SteeringSAC`; ``policy_kwargs`` and ``replay_buffer_kwargs`` are added to these
    """
    settings: dict[str, Any] = {"learning_starts": 10, "batch_size": 16, "buffer_size": 500, "seed": 0, "device": "cpu"}
    settings |= kwargs
    settings["policy_kwargs"] = {"net_arch": [16, 16]} | kwargs.get("policy_kwargs", {})
    settings["replay_buffer_kwargs"] = {"n_steps": 1} | kwargs.get("replay_buffer_kwargs", {})
    return SteeringSAC("MultiInputPolicy", steered_points() if env is None else env, **settings)


def stored(model: SteeringSAC) -> DictReplayBufferSamples:
    """Return the replay buffer of a model with **one** environment in the order of time."""
    assert isinstance(model.replay_buffer, SteeringReplayBuffer)
    assert model.replay_buffer.n_envs == 1
    return contents(model.replay_buffer)


def contents(buffer: SteeringReplayBuffer) -> DictReplayBufferSamples:
    """Return all that is in a replay buffer, as it came."""
    return buffer._get_samples(np.arange(buffer.size()))


def same_contents(first: Any, second: Any) -> bool:
    """Whether two replay buffers hold the same, bit for bit."""
    assert isinstance(first, SteeringReplayBuffer)
    assert isinstance(second, SteeringReplayBuffer)
    one, two = contents(first), contents(second)
    tables = [(one.observations[key], two.observations[key]) for key in ("c", "z")]
    tables += [(one.next_observations[key], two.next_observations[key]) for key in ("c", "z")]
    tables += [(one.actions, two.actions), (one.rewards, two.rewards), (one.dones, two.dones)]
    return first.size() == second.size() and all(th.equal(a, b) for a, b in tables)


def values(weights: Iterable[th.Tensor]) -> list[th.Tensor]:
    """Return copies of tensors, for a later comparison."""
    return [weight.detach().clone() for weight in weights]


def same(first: Iterable[th.Tensor], second: Iterable[th.Tensor]) -> bool:
    """Whether two lists of tensors are equal bit for bit."""
    return all(th.equal(a, b) for a, b in zip(first, second, strict=True))


def everything(model: SteeringSAC) -> list[th.Tensor]:
    """Return copies of all that a model learns: actor, critics, their targets and the temperature."""
    assert model.log_ent_coef is not None
    return values([*model.policy.parameters(), model.log_ent_coef])
