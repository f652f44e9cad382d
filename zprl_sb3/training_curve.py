"""The learning curve of a run without evaluations: of its training episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from zprl_sb3.evaluation import wilson_interval
from zprl_sb3.files import read_rows, write_rows

WINDOW = 20  # training episodes that one row of the curve sums up


class TrainingCurveCallback(BaseCallback):
    """Write a row for each training episode, and for every 20 of them (and the last ones) one as evaluations write it.

    Where there is one environment only, a robot, nothing else says how it does: these episodes explore. Episodes that a
    person has aborted do not count. Both files go on where a resumed run does; TensorBoard gets the same under
    ``eval/`` and ``episode/``.

    :param curve: CSV file of chunks, env steps, success rate with its 95 % interval, mean length and return
    :param episodes: CSV file of chunks, env steps, success, length in env steps, return, and the environment's timing
    """

    def __init__(self, curve: str | Path, episodes: str | Path) -> None:
        super().__init__()
        self.curve, self.episodes = Path(curve), Path(episodes)
        self.rows: list[dict[str, Any]] = []
        self._env_steps = 0

    def _init_callback(self) -> None:
        done = self.model.num_timesteps
        # Rows beyond the resumed snapshot belong to chunks that will be run again.
        rows = read_rows(self.episodes) if done and self.episodes.is_file() else []
        self.rows = [row for row in rows if row["chunks"] <= done]
        self._env_steps = getattr(self.model, "env_steps", int(self.rows[-1]["env_steps"]) if self.rows else 0)

    def _on_step(self) -> bool:
        self._env_steps += sum(info["env_steps"] for info in self.locals["infos"])
        for info, done in zip(self.locals["infos"], self.locals["dones"], strict=True):
            if done and not info.get("aborted"):
                self._note(info)
        return True

    def _on_training_end(self) -> None:
        if len(self.rows) % WINDOW:
            self._sum_up()

    def _note(self, info: dict[str, Any]) -> None:
        timing: dict[str, float] = info.get("timing", {})
        row = {
            "chunks": self.model.num_timesteps,
            "env_steps": self._env_steps,
            "success": float(info["is_success"]),
            "length": int(info["episode"]["l"]),
            "return": float(info["episode"]["r"]),
            **timing,
        }
        self.rows.append(row)
        write_rows(self.episodes, self.rows)
        for name, value in row.items():
            self.logger.record(f"episode/{name}", value)
        if len(self.rows) % WINDOW == 0:
            self._sum_up()

    def _sum_up(self) -> None:
        windows = [self.rows[start : start + WINDOW] for start in range(0, len(self.rows), WINDOW)]
        curve = [summary(window) for window in windows]
        write_rows(self.curve, curve)
        for name, value in curve[-1].items():
            self.logger.record(f"eval/{name}", value)
        self.logger.dump(self.model.num_timesteps)
        count, rate = len(windows[-1]), curve[-1]["success_rate"]
        print(f"{self._env_steps:>8} env steps: success {rate:.2f} in the last {count} episodes")


def summary(episodes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row of the curve.

    :param episodes: Rows of so many episodes
    """
    low, high = wilson_interval(int(sum(row["success"] for row in episodes)), len(episodes))
    return {
        "chunks": episodes[-1]["chunks"],
        "env_steps": episodes[-1]["env_steps"],
        "success_rate": float(np.mean([row["success"] for row in episodes])),
        "ci_low": low,
        "ci_high": high,
        "mean_length": float(np.mean([row["length"] for row in episodes])),
        "mean_return": float(np.mean([row["return"] for row in episodes])),
    }
