"""Every method of ``zprl train --algo`` on a real simulator: it trains, evaluates, and leaves a run folder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from programs import TINY, pretrain_command
from zprl_sb3.files import read_rows
from zprl_sb3.learners import ALGORITHMS, CONTRIB
from zprl_sb3.scripts import cli

# What TINY changes of an algorithm is SteeringSAC's. Half the chunks and fewer evaluations will do.
RUN = [change for change in TINY if not change.startswith("algorithm.")]
RUN += ["n_timesteps=30", "eval_freq=30", "eval_episodes=1"]
OWN = {
    "soe": ["algorithm.rounds=2"],
    "reinflow": ["algorithm.n_steps=10", "algorithm.batch_size=20", "algorithm.critic_warmup=0"],
    "dppo": ["algorithm.n_steps=10", "algorithm.batch_size=20", "algorithm.critic_warmup=0"],
    "tqc": ["algorithm.learning_starts=8", "algorithm.batch_size=8"],
    "trpo": ["algorithm.n_steps=10", "algorithm.batch_size=20"],
    "po_dec": [*TINY, "algorithm.progressive=15"],
    "dsrl": [*TINY, "sampling_steps=2"],
    "dsrl_na": [*TINY, "sampling_steps=2", "algorithm.gradient_steps=1"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, push_demos: Path) -> Path:
    """Return a base policy for Meta-World's push that has learned a little from 4 demonstrations."""
    folder = tmp_path_factory.mktemp("methods") / "base"
    assert cli.main(pretrain_command(push_demos, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory, push_demos: Path) -> Path:
    """Return one that denoises."""
    folder = tmp_path_factory.mktemp("methods") / "diffusion"
    command = [part for part in pretrain_command(push_demos, folder) if part != "model=state"]
    assert cli.main([*command, "model=state_diffusion", "model.sampling_steps=2"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("algo", ALGORITHMS)
def test_it_runs_on_meta_world(base: Path, diffusion: Path, tmp_path: Path, algo: str) -> None:
    if algo in CONTRIB:
        pytest.importorskip("sb3_contrib")
    run, base = tmp_path / algo, diffusion if algo == "dppo" else base
    changes = [*OWN.get(algo, TINY), *RUN]
    command = ["train", "--algo", algo, "--policy", str(base / "policy"), "--output", str(run), "--set", *changes]
    assert cli.main(command) == 0
    rows = read_rows(run / "evaluations.csv")
    assert rows[0]["chunks"] == 0
    assert rows[-1]["chunks"] >= 30
    # A chunk is at most 8 env steps of the 60 of an episode.
    assert 7 * rows[-1]["chunks"] < rows[-1]["env_steps"] <= 8 * rows[-1]["chunks"]
    assert all(math.isfinite(row[name]) for row in rows for name in ("success_rate", "rms_z", "rms_step"))
    assert cli.main(["evaluate", str(run), "--episodes", "1"]) == 0
    result = json.loads((run / "evaluation.json").read_text())
    assert (result["env_id"], result["env_steps"]) == ("zprl/Push-v0", rows[-1]["env_steps"])
