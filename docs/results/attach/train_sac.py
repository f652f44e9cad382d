"""A SAC agent that is stopped before it has learned its task: the base policy of docs/results/attach.md.

``python train_sac.py 6000 agent.zip``
"""

from __future__ import annotations

import sys

import gymnasium as gym
import gymnasium_robotics  # registers FetchReachDense-v4
from stable_baselines3 import SAC

gym.register_envs(gymnasium_robotics)


def main(steps: str, output: str) -> None:
    """Train for so many env steps and write the agent."""
    env = gym.make("FetchReachDense-v4")
    settings = {"learning_starts": 500, "learning_rate": 2e-3, "gamma": 0.95, "policy_kwargs": {"net_arch": [64, 64]}}
    model = SAC("MultiInputPolicy", env, seed=0, device="cpu", **settings)
    model.learn(int(steps), progress_bar=True)
    model.save(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
