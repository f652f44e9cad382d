"""``zprl analyse``: from a run folder to pictures with their numbers, and what cannot be analysed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch as th
import yaml

from helpers import point_demonstrations
from programs import train_command
from zprl_sb3 import analysis
from zprl_sb3.analysis_page import PICTURES
from zprl_sb3.files import read_rows, write_rows

pytestmark = pytest.mark.filterwarnings("ignore:rich is experimental")


@pytest.fixture
def run(toy_run: Path, tmp_path: Path) -> Path:
    """Return a copy of a finished run whose evaluations tell of motion, which the toy task does not."""
    shutil.copytree(toy_run, tmp_path / "run", ignore=shutil.ignore_patterns("logs"))
    file = tmp_path / "run" / "evaluations.csv"
    motion = {"velocity": 0.2, "acceleration": 4.0, "jerk": 90.0}
    write_rows(file, [row | motion for row in read_rows(file)])
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_run_is_drawn_with_its_numbers(run: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("umap")
    demos, output = point_demonstrations(tmp_path / "demos.hdf5", (20, 20)), tmp_path / "out"
    arguments = ["analyse", run, "--demonstrations", demos, "--episodes", "2", "--scales", "0.2", "1000"]
    code, text, _ = zprl(*arguments, "--output", output)
    assert code == 0
    assert f"Wrote {output / 'analysis.md'}" in text
    drawn = {"maps", "shift", "smoothness"}
    assert {file.name for file in output.iterdir()} == {
        *(f"{name}.{end}" for name in drawn for end in ("png", "csv")),
        "analysis.md",
        "analysis.json",
    }
    page = (output / "analysis.md").read_text()
    assert all(f"({name}.png)" in page for name in drawn)
    assert "Left out: " in page
    assert "does not tell where an action sends the hands" in page
    facts = json.loads((output / "analysis.json").read_text())
    assert facts["observations"] == facts["mapped"] == 40
    assert (facts["scale"], facts["scales"]) == (0.5, [0.2, 1000.0])
    assert facts["rollouts"]["steered"]["seeds"] == [100_000, 100_001]
    curves = pd.read_csv(output / "shift.csv")
    assert {0.0, 0.2, 0.5, 1000.0} <= set(curves["scale"])
    own = curves[(curves["scale"] == 0.5) & (curves["delta"] == "trained actor")]
    assert own["displacement"].item() == pytest.approx(facts["steering"]["displacement"], rel=1e-3)

    # The maps tell what is apart, and repeat. All of it in one test: UMAP compiles for many seconds in each process.
    maps = pd.read_csv(output / "maps.csv")
    assert maps.groupby(["space", "scale"]).size().to_dict() == {
        (space, scale): 40 for space in ("actions", "context") for scale in (0.0, 0.2, 1000.0)
    }
    contexts = maps[maps["space"] == "context"]
    before, far = (contexts.loc[contexts["scale"] == scale, ["x", "y"]].to_numpy() for scale in (0.0, 1000.0))
    assert np.linalg.norm(before.mean(0) - far.mean(0)) > before.std(0).max() + far.std(0).max()
    assert th.get_num_threads() == 1
    assert zprl(*arguments, "--output", tmp_path / "again")[0] == 0
    assert (tmp_path / "again" / "maps.csv").read_bytes() == (output / "maps.csv").read_bytes()
    monkeypatch.setattr(analysis, "POINTS", 45)
    assert zprl(*arguments, "--output", tmp_path / "again")[0] == 0
    assert len(pd.read_csv(tmp_path / "again" / "maps.csv")) == 2 * 3 * 15

    # Without demonstrations, and from a snapshot: nothing of the first analysis stays.
    (run / "model.zip").unlink()
    code, _, _ = zprl("analyse", run, "--output", output, "--episodes", "2")
    assert code == 0
    assert not {f"{name}.png" for name in ("maps", "shift")} & {file.name for file in output.iterdir()}
    facts = json.loads((output / "analysis.json").read_text())
    assert facts["model"] == str(run / "snapshot" / "model.zip")
    assert facts["missing"].keys() == set(PICTURES) - {"smoothness"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"learner": "soe"}, "of SOE, which retrains"), ({}, "has neither model.zip nor a snapshot yet")],
)
def test_a_run_without_a_steered_model_is_refused(
    run: Path, tmp_path: Path, zprl: Any, settings: dict[str, str], message: str
) -> None:
    recorded = yaml.safe_load((run / "run.yml").read_text())
    recorded["settings"] |= settings
    (run / "run.yml").write_text(yaml.safe_dump(recorded))
    (run / "model.zip").unlink()
    shutil.rmtree(run / "snapshot")
    code, _, err = zprl("analyse", run, "--output", tmp_path / "out")
    assert code == 1
    assert message in err
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_is_refused(toy_policy: Path, tmp_path: Path, zprl: Any) -> None:
    code, _, err = zprl("analyse", toy_policy, "--output", tmp_path / "out")
    assert (code, "has no run.yml" in err) == (1, True)
    code, _, err = zprl("analyse", toy_policy, "--output", tmp_path / "out", "--scales", "0")
    assert (code, "must be positive" in err) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_without_a_latent_has_no_maps(tiny_action_run: Path, tmp_path: Path, zprl: Any) -> None:
    demos, output = point_demonstrations(tmp_path / "demos.hdf5", (5,)), tmp_path / "out"
    code, _, err = zprl("analyse", tiny_action_run, "--demonstrations", demos, "--output", output)
    assert (code, "steers the action, not the latent" in err) == (1, True)
    assert not output.exists()
    assert zprl("analyse", tiny_action_run, "--output", output, "--episodes", "1")[0] == 0
    assert json.loads((output / "analysis.json").read_text())["rollouts"]["steered"]["episodes"] == 1


@pytest.fixture
def tiny_action_run(toy_policy: Path, tmp_path: Path, zprl: Any) -> Path:
    """Return a run of another steering."""
    output = tmp_path / "po_dec-0"
    command = train_command(toy_policy, output, "n_timesteps=20", "algorithm.progressive=10")
    assert zprl(command[0], "--algo", "po_dec", *command[1:])[0] == 0
    return output
