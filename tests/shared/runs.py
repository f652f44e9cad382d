"""Runs for a report, without any training: in memory, and as folders. Import it as ``runs``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from zprl_sb3.files import write_rows
from zprl_sb3.report import Run

ENV = "test/PointReach-v0"


def curve(successes: list[float], steps: list[int] | None = None, **columns: Any) -> pd.DataFrame:
    """Return evaluations every 100 env steps, as ``zprl train`` writes them."""
    rates = np.array(successes)
    table = {
        "chunks": np.arange(len(rates)) * 10.0,
        "env_steps": np.array(steps or [100 * index for index in range(len(rates))], float),
        "success_rate": rates,
        "ci_low": rates - 0.125,
        "ci_high": rates + 0.0625,
        "mean_length": 100 - 50 * rates,
        "mean_return": rates,
        "rms_z": 1.0,
        "rms_step": 0.2,
        "rms_ratio": 0.2,
        "context_distance": 1.5,
        "displacement": 0.5,
    }
    return pd.DataFrame(table | columns)


def run(
    successes: list[float],
    seed: int = 0,
    scale: float = 0.5,
    steps: list[int] | None = None,
    env_id: str = ENV,
    columns: dict[str, Any] | None = None,
    **facts: Any,
) -> Run:
    """Return a run with so many evaluations; ``facts`` beside its λ."""
    facts = {"base policy": "abc", "steering": "latent", "learner": "sac", "scale": scale} | facts
    return Run(Path(f"run-{seed}"), env_id, seed, facts, curve(successes, steps, **(columns or {})))


def run_folder(folder: Path, successes: list[float], seed: int = 0, env_id: str = ENV, **settings: Any) -> Path:
    """Write a run folder as ``zprl train`` does."""
    folder.mkdir(parents=True)
    about = {"env_id": env_id, "seed": seed, "policy": "abcdefghij", "settings": {"scale": 0.3} | settings}
    (folder / "run.yml").write_text(yaml.safe_dump(about))
    write_rows(folder / "evaluations.csv", curve(successes).to_dict("records"))
    return folder


def evaluation(success: float, env_id: str = ENV, **more: Any) -> dict[str, Any]:
    """Return what ``zprl evaluate`` writes of 200 episodes, as far as a report reads it."""
    interval = [success - 0.0625, success + 0.03125]
    return {"success_rate": success, "ci95": interval, "episodes": 200, "mean_length": 80.0, "env_id": env_id} | more


def write_evaluation(file: Path, content: dict[str, Any]) -> None:
    """Write JSON, with the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
