"""``zprl train --algo soe``: rounds that explore, keep successes and retrain, and go on where they were stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from helpers import POINT, point_demonstrations, point_episode, tiny_policy
from programs import pretrain_command
from zprl_sb3.checkpoint import load_policy
from zprl_sb3.files import read_rows
from zprl_sb3.pretrain.demonstrations import load_demonstrations
from zprl_sb3.pretrain.recording import save_demonstrations
from zprl_sb3.scripts import cli
from zprl_sb3.wrappers import LatentSteering

SMALL = ["n_timesteps=80", "n_envs=2", "eval_episodes=4", "algorithm.rounds=2", "gamma=0.9"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a base policy of the toy task that `zprl pretrain` made, beside its demonstrations."""
    folder = tmp_path_factory.mktemp("base")
    demos = point_demonstrations(folder / "demos.hdf5", range(5, 11))
    assert cli.main(pretrain_command(demos, folder / "base", "model.chunk=2")) == 0
    return folder / "base"


def command(base: Path, output: Path, *changes: str) -> list[str | Path]:
    return ["train", "--algo", "soe", "--policy", base / "policy", "--output", output, "--set", *SMALL, *changes]


def test_widening_multiplies_the_posteriors_deviation() -> None:
    policy = tiny_policy()
    obs = {"state": np.random.default_rng(0).normal(size=(1, 4)).astype(np.float32)}

    def latent(**kwargs: Any) -> Any:
        return LatentSteering(policy, 1.0, **kwargs).observe(obs, [np.random.default_rng(5)])["z"]

    mean, drawn = latent(), latent(sample_latent=True)
    assert np.abs(drawn - mean).max() > 1e-3
    np.testing.assert_allclose(latent(sample_latent=True, widening=2.0) - mean, 2 * (drawn - mean), rtol=1e-4)
    np.testing.assert_array_equal(latent(widening=2.0), mean)


@pytest.mark.slow
def test_each_round_explores_keeps_successes_and_retrains(base: Path, tmp_path: Path, zprl: Any) -> None:
    run = tmp_path / "soe"
    code, out, err = zprl(*command(base, run))
    assert (code, err.count("Error")) == (0, 0)
    rows = read_rows(run / "evaluations.csv")
    assert [row["chunks"] for row in rows] == [0, 40, 80]
    collected = [json.loads((run / f"round_{k}" / "collected.json").read_text()) for k in (1, 2)]
    assert [row["env_steps"] for row in rows] == [0, collected[0]["env_steps"], sum(c["env_steps"] for c in collected)]
    assert all(40 <= counts["env_steps"] <= 80 and counts["widening"] == 2.0 for counts in collected)
    original, names = load_demonstrations(base.parent / "demos.hdf5"), [6]
    for k, counts in enumerate(collected, start=1):
        names.append(names[-1] + counts["successes"])
        demos = load_demonstrations(run / f"round_{k}" / "demos.hdf5")
        assert len(demos) == names[-1]
        assert demos.env_id == POINT
        np.testing.assert_array_equal(demos.actions[0], original.actions[0])
        assert all(np.abs(actions).max() <= 1 for actions in demos.actions)
    assert names[-1] > 6  # something has succeeded, or there is nothing to see here
    final = load_policy(run / "retrained").fingerprint()
    assert final != load_policy(base / "policy").fingerprint()
    assert yaml.safe_load((run / "round_2" / "pretrain.yml").read_text())["demos"].endswith("round_2/demos.hdf5")
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    assert "is trained already" in zprl(*command(base, run))[1]
    assert before == {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    assert "settings.algorithm.widening" in zprl(*command(base, run, "algorithm.widening=3"))[2]
    assert zprl("evaluate", run, "--episodes", "4")[0] == 0
    result = json.loads((run / "evaluation.json").read_text())
    assert (result["route"], result["env_steps"]) == ("context", rows[-1]["env_steps"])
    assert result["policy"].endswith("retrained")
    assert result["scale"] is None
    # As if it had been killed while it explored in the second round, and before that round's evaluation.
    for name in ("retrained", "round_2/successes", "round_2/policy"):
        shutil.rmtree(run / name)
    for name in ("round_2/collected.json", "round_2/demos.hdf5", "round_2/pretrain.yml", "round_2/training_state.pt"):
        (run / name).unlink(missing_ok=True)
    (run / "evaluations.csv").write_text("".join((run / "evaluations.csv").read_text().splitlines(keepends=True)[:3]))
    assert zprl(*command(base, run))[0] == 0
    assert read_rows(run / "evaluations.csv") == rows
    assert load_policy(run / "retrained").fingerprint() == final
    assert f"exploring {POINT}" not in out


@pytest.mark.slow
def test_a_round_without_success_keeps_the_policy(base: Path, tmp_path: Path, zprl: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("zprl_sb3.scripts.soe.EpisodeRecorder", lambda env, folder: env)
    run = tmp_path / "soe"
    assert zprl(*command(base, run, "algorithm.rounds=1"))[0] == 0
    assert load_policy(run / "retrained").fingerprint() == load_policy(base / "policy").fingerprint()
    assert not (run / "round_1" / "policy").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["algorithm.rounds=0"], "algorithm.rounds must be a whole number from 1 to n_timesteps, not 0"),
        (["algorithm.rounds=81"], "algorithm.rounds must be a whole number from 1 to n_timesteps, not 81"),
        (["algorithm.widening=-1"], "algorithm.widening must be a positive number, not -1"),
        (["demonstrations=nowhere.hdf5"], "nowhere.hdf5 is missing, from which the policy was pretrained"),
        (["steering=action"], "leave steering and sample_latent as they are"),
        (["sample_latent=false"], "leave steering and sample_latent as they are"),
        (["env_kwargs.foo=1"], "foo"),
        (["train_env_kwargs.foo=1"], "foo"),
        (["gamma=2"], "gamma is a discount"),
        (["scale_by=demos.hdf5"], "scale_by: with steering latent and learner sac only"),
    ],
)
def test_what_does_not_fit_is_refused_first(
    base: Path, tmp_path: Path, zprl: Any, changes: list[str], message: str
) -> None:
    code, _, err = zprl(*command(base, tmp_path / "soe", *changes))
    assert (code, message in err) == (1, True)
    assert not (tmp_path / "soe").exists()


@pytest.mark.slow
def test_other_demonstrations_than_the_policys_are_refused(base: Path, tmp_path: Path, zprl: Any) -> None:
    file, kept = base.parent / "demos.hdf5", (base.parent / "demos.hdf5").read_bytes()
    try:
        point_demonstrations(file, range(5, 12))
        assert "demos.hdf5 is not what the policy was pretrained on" in zprl(*command(base, tmp_path / "soe"))[2]
        assert zprl(*command(base, tmp_path / "soe", f"demonstrations={file}", "algorithm.rounds=1"))[0] == 0
        # A finished run needs them no more.
        file.unlink()
        code, out, _ = zprl(*command(base, tmp_path / "soe", f"demonstrations={file}", "algorithm.rounds=1"))
        assert (code, "is trained already" in out) == (0, True)
    finally:
        file.write_bytes(kept)
    other = tmp_path / "other.hdf5"
    save_demonstrations(other, map(point_episode, range(5, 11)), POINT, {"reach": 0.5}, "0", {})
    err = zprl(*command(base, tmp_path / "there", f"demonstrations={other}"))[2]
    assert "other.hdf5 was recorded in" in err
    assert "the policy has learned in" in err


@pytest.mark.slow
def test_it_needs_to_know_how_the_policy_was_pretrained(base: Path, tmp_path: Path, zprl: Any) -> None:
    shutil.copytree(base / "policy", tmp_path / "alone" / "policy")
    code, _, err = zprl(*command(tmp_path / "alone", tmp_path / "soe"))
    assert (code, "pretrain.yml is missing, which says how the policy was pretrained" in err) == (1, True)
