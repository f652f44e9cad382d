"""A SAC agent that is stopped before it has learned its task: the base policy of docs/results/attach.md.

    python train_sac.py zprl/DrawerOpen-v0 20000 runs/sac/agent.zip

The environments here have a sparse reward, which SAC alone does not learn from; it gets Meta-World's dense one.
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
from stable_baselines3 import SAC


class DenseReward(gym.Wrapper[Any, Any, Any, Any]):
    """Meta-World's own reward in place of ours; episodes end at success all the same."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step, and ask the simulation."""
        obs, _, terminated, truncated, info = self.env.step(action)
        env: Any = self.unwrapped
        reward, _ = env._simulation.evaluate_state(env.raw_observation, action)
        return obs, float(reward) + 200.0 * terminated, terminated, truncated, info


def main(env_id: str, steps: str, output: str) -> None:
    """Train for so many env steps and write the agent."""
    env = DenseReward(gym.make(env_id))
    model = SAC("MultiInputPolicy", env, batch_size=256, learning_starts=1000, seed=0, device="cpu", verbose=0)
    model.learn(int(steps), progress_bar=True)
    model.save(output)
    print(f"Wrote {output}")


if __name__ == "__main__":
    main(*sys.argv[1:])
