"""``zprl train``: what a run leaves, and that nothing is lost when it ends early."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch as th

from helpers import POINT_IMAGES, TIME_LIMIT, PointReach, image_policy, point_demonstrations, tiny_policy
from programs import train_command
from zprl_sb3.callbacks import save_snapshot
from zprl_sb3.checkpoint import CONFIG, WEIGHTS, load_policy, save_policy
from zprl_sb3.files import read_rows
from zprl_sb3.learners import learner
from zprl_sb3.locks import locked
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.scripts import train as program
from zprl_sb3.scripts.common import read_yaml
from zprl_sb3.seeds import EVAL_SEED, FIRST_TRAINING_SEED, training_seed
from zprl_sb3.wrappers import VecSteering

pytestmark = pytest.mark.filterwarnings("ignore:rich is experimental")


def chunks(output: Path) -> list[float]:
    return [row["chunks"] for row in read_rows(output / "evaluations.csv")]


def assert_complete(output: Path, n_timesteps: int = 60) -> None:
    """Check that a run ended as one that nobody interrupted."""
    assert chunks(output) == list(range(0, n_timesteps + 1, 20))
    env_steps = [row["env_steps"] for row in read_rows(output / "evaluations.csv")]
    assert env_steps == sorted(env_steps)
    model = SteeringSAC.load(output / "model.zip")
    assert model.num_timesteps == n_timesteps
    assert model.env_steps == env_steps[-1] > n_timesteps


def test_a_run_folder_holds_all_that_is_needed(toy_run: Path, toy_policy: Path) -> None:
    assert_complete(toy_run)
    run = read_yaml(toy_run / "run.yml")
    assert run["seed"] == 0
    assert run["settings"]["gamma"] == 0.9
    assert load_policy(toy_run / "policy").fingerprint() == run["policy"] == load_policy(toy_policy).fingerprint()
    assert {path.name for path in (toy_run / "snapshot").iterdir()} == {"model.zip", "replay_buffer.pkl", "rng.pt"}
    assert (toy_run / "logs" / "from_0" / "progress.csv").stat().st_size > 0
    assert list((toy_run / "logs" / "from_0").glob("events.out.tfevents.*"))
    assert not list(toy_run.rglob(".*"))  # nothing half-written


def test_a_run_that_another_process_is_at_is_left_alone(toy_policy: Path, tmp_path: Path, zprl: Any) -> None:
    with locked(tmp_path / "run"):
        code, _, err = zprl(*train_command(toy_policy, tmp_path / "run"))
    assert code == 1
    assert "run is in use by process" in err
    assert not (tmp_path / "run" / "run.yml").exists()


def test_the_same_seed_gives_the_same_run(toy_run: Path, toy_policy: Path, tmp_path: Path, zprl: Any) -> None:
    zprl(*train_command(toy_policy, tmp_path / "again"))
    assert read_rows(tmp_path / "again" / "evaluations.csv") == read_rows(toy_run / "evaluations.csv")
    states = [SteeringSAC.load(folder / "model.zip").policy.state_dict() for folder in (tmp_path / "again", toy_run)]
    assert all(th.equal(states[0][name], states[1][name]) for name in states[1])


def test_evaluations_beside_training_leave_the_same_run(
    toy_run: Path, toy_policy: Path, tmp_path: Path, zprl: Any
) -> None:
    output = tmp_path / "beside"
    assert zprl(*train_command(toy_policy, output, "eval_beside=true"))[0] == 0
    assert_complete(output)
    for row, alone in zip(*(read_rows(run / "evaluations.csv") for run in (output, toy_run)), strict=True):
        assert row == pytest.approx(alone, rel=1e-5)
    states = [SteeringSAC.load(run / "model.zip").policy.state_dict() for run in (output, toy_run)]
    assert all(th.equal(states[0][name], states[1][name]) for name in states[1])
    assert "is trained already" in zprl(*train_command(toy_policy, output))[1]  # how it is watched is not what it is


def test_a_run_with_demonstrations_goes_on_and_is_evaluated(toy_policy: Path, tmp_path: Path, zprl: Any) -> None:
    demos = point_demonstrations(tmp_path / "demos.hdf5", (12,) * 5)
    output, changes = tmp_path / "run", [f"demonstrations={demos}", f"scale_by={demos}", "algorithm.anneal=45"]
    changes.append("algorithm.replay_buffer_kwargs.n_steps=2")
    assert zprl(*train_command(toy_policy, output, *changes, "n_timesteps=40"))[0] == 0
    reach = SteeringSAC.load(output / "model.zip").policy.actor.reach.item()
    assert zprl(*train_command(toy_policy, output, *changes))[0] == 0
    assert_complete(output)
    model = SteeringSAC.load(output / "model.zip")
    assert model.policy.actor.reach.item() == 1 > 0.95 > reach
    assert model.steering_spec is not None
    assert isinstance(model.steering_spec.scale, tuple)
    assert zprl("evaluate", str(output), "--episodes", "2")[0] == 0
    assert zprl(*train_command(toy_policy, output, *changes[1:]))[0] == 1  # without them it would be another run


@pytest.mark.parametrize(
    ("algo", "kind"), [("po_dec", "action"), ("dsrl", "noise"), ("dsrl_na", "noise"), ("resemb", "embedding")]
)
def test_a_baseline_is_trained_resumed_and_evaluated(
    algo: str, kind: str, toy_policy: Path, tmp_path: Path, zprl: Any
) -> None:
    output = tmp_path / algo
    changes = ["n_timesteps=40", "algorithm.progressive=20", "algorithm.gradient_steps=1"]
    command = [*train_command(toy_policy, output, *changes), "--algo", algo]
    assert zprl(*command, "--set", "n_timesteps=20")[0] == 0
    assert zprl(*command)[0] == 0
    assert chunks(output) == [0, 20, 40]
    model: Any = learner("dsrl_na" if algo == "dsrl_na" else "sac").load(output / "model.zip")
    assert model.steering_spec is not None
    assert model.steering_spec.kind == kind
    assert model.progressive == 20
    assert zprl("evaluate", str(output), "--episodes", "2")[0] == 0
    code, _, err = zprl("evaluate", str(output), "--episodes", "2", "--noise", "zero")
    assert (code, "leaves nothing to steer" in err) == ((1, True) if kind == "noise" else (0, False))
    steps = load_policy(toy_policy, sampling_steps=8).fingerprint()
    assert (read_yaml(output / "run.yml")["policy"] == steps) == (kind == "noise")


@pytest.mark.parametrize(("algo", "own"), [("tqc", ["learning_starts=8"]), ("trpo", ["n_steps=10", "batch_size=20"])])
def test_an_algorithm_of_sb3_contrib_is_trained_resumed_and_evaluated(
    algo: str, own: list[str], toy_policy: Path, tmp_path: Path, zprl: Any
) -> None:
    output = tmp_path / algo
    command = [each for each in train_command(toy_policy, output) if not each.startswith("algorithm.")]
    command += [*(f"algorithm.{each}" for each in own), "--algo", algo]
    assert zprl(*command, "--set", "n_timesteps=40")[0] == 0
    code, out, _ = zprl(*command)
    assert code == 0
    assert "Going on from 40 chunks" in out
    assert chunks(output) == [0, 20, 40, 60]
    model = learner(algo).load(output / "model.zip")
    assert model.num_timesteps == 60
    assert model.gamma == pytest.approx(0.9**2)  # of a chunk
    assert zprl("evaluate", str(output), "--episodes", "2")[0] == 0
    (output / "policy").rename(output / "gone")
    save_policy(tiny_policy(seed=5, env_id=load_policy(toy_policy).env_id), output / "policy")
    code, _, err = zprl("evaluate", str(output), "--episodes", "2")
    assert code == 1
    assert "base policy (fingerprint)" in err


def test_without_sb3_contrib_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ImportError, match=r"TQC is of sb3-contrib, .*: pip install 'zprl-sb3\[contrib\]'"):
        learner("tqc")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["steering=latents"], "steering is one of latent, action, noise, embedding, weights, not 'latents'"),
        (["steering=action", "scale_by=demos.hdf5"], "scale_by: with steering latent and learner sac only"),
        (["learner=ppo"], "learner is one of sac, dsrl_na, reinflow, dppo, tqc, trpo, soe, not 'ppo'"),
        (["learner=dsrl_na"], "DSRL-NA steers the noise, but in this environment latent is steered"),
        (["sampling_steps=0"], "The sampler needs at least one step, not 0"),
    ],
)
def test_settings_of_steering_that_mean_nothing_are_refused(
    changes: list[str], message: str, toy_policy: Path, tmp_path: Path, zprl: Any
) -> None:
    code, _, err = zprl(*train_command(toy_policy, tmp_path / "run", *changes))
    assert code == 1
    assert message in err


def test_a_finished_run_says_so(toy_run: Path, toy_policy: Path, zprl: Any) -> None:
    before = (toy_run / "model.zip").read_bytes()
    code, out, err = zprl(*train_command(toy_policy, toy_run))
    assert (code, err) == (0, "")
    assert "is trained already; choose another --output" in out
    assert (toy_run / "model.zip").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "seed", "named"),
    [
        (["scale=0.3"], 0, "settings.scale (0.5 there, 0.3 now)"),
        (["algorithm.tau=0.1"], 0, "settings.algorithm.tau (0.005 there, 0.1 now)"),
        ([], 4, "seed (0 there, 4 now)"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    toy_run: Path, toy_policy: Path, zprl: Any, changes: list[str], seed: int, named: str
) -> None:
    code, _, err = zprl(*train_command(toy_policy, toy_run, *changes, seed=seed))
    assert code == 1
    assert named in err
    assert err.count("\n") == 1


def test_another_policy_in_the_same_folder_is_refused(toy_run: Path, tmp_path: Path, zprl: Any) -> None:
    other = save_policy(tiny_policy(seed=1, env_id=load_policy(toy_run / "policy").env_id), tmp_path / "other")
    code, _, err = zprl(*train_command(other, toy_run))
    assert code == 1
    assert "other settings: policy (" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("scale=0", "scale (λ) must be a positive number, not 0"),
        ("scale=-0.5", "scale (λ) must be a positive number, not -0.5"),
        ("scale=.nan", "scale (λ) must be a positive number, not nan"),
        ("scale=much", "'scale' is a number or auto, not 'much'"),
        ("gamma=1.5", "gamma is a discount per env step"),
        ("chunk=9", "the policy predicts 4 (choose 1 to 4)"),
        ("chunk=0", "chunk must be a whole number of at least 1, not 0"),
        ("n_envs=0", "n_envs must be a whole number of at least 1, not 0"),
        ("eval_episodes=2.5", "'eval_episodes' is a whole number, not 2.5"),
        ("algorithm=fast", "'algorithm' is a table of settings, not 'fast'"),
        ("sample_latent=often", "'sample_latent' is true or false, not 'often'"),
        ("lambda=0.5", "unknown setting 'lambda'"),
        ("algorithm.speed=3", "unknown setting 'speed'"),
        ("scale", "key=value"),
        ("algorithm.policy_kwargs.n_critcs=3", "unexpected keyword argument 'n_critcs'"),
    ],
)
def test_a_wrong_setting_is_one_line_and_claims_no_folder(
    toy_policy: Path, tmp_path: Path, zprl: Any, change: str, message: str
) -> None:
    code, _, err = zprl(*train_command(toy_policy, tmp_path / "run", change))
    assert code == 1
    assert message in err
    assert err.startswith("zprl train: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_numbers_may_be_written_with_an_exponent(toy_policy: Path, tmp_path: Path, zprl: Any) -> None:
    changes = ["algorithm.learning_rate=1e-4", "n_timesteps=2e1", "scale=5e-1"]
    assert zprl(*train_command(toy_policy, tmp_path / "run", *changes))[0] == 0
    settings = read_yaml(tmp_path / "run" / "run.yml")["settings"]
    assert (settings["algorithm"]["learning_rate"], settings["n_timesteps"], settings["scale"]) == (1e-4, 20, 0.5)
    assert chunks(tmp_path / "run") == [0, 20]


def test_a_missing_or_damaged_policy_is_one_line(toy_policy: Path, tmp_path: Path, zprl: Any) -> None:
    def refused(policy: Path, words: str) -> None:
        code, _, err = zprl(*train_command(policy, tmp_path / "run"))
        assert code == 1
        assert words in err
        assert err.count("\n") == 1
        assert not (tmp_path / "run").exists()

    refused(tmp_path / "nowhere", f"No policy checkpoint at {tmp_path / 'nowhere'}")
    for damage, words in (
        (
            lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8]),
            "is truncated or changed",
        ),
        (lambda folder: (folder / WEIGHTS).unlink(), "is missing"),
        (lambda folder: (folder / CONFIG).write_text("{"), "is damaged"),
    ):
        folder = tmp_path / "damaged"
        shutil.copytree(toy_policy, folder)
        damage(folder)
        refused(folder, words)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("env_id", "words"), [("test/Nowhere-v0", "test/Nowhere"), (None, "does not say which environment it is for")]
)
def test_a_policy_of_an_environment_that_is_not_there_is_refused(
    tmp_path: Path, zprl: Any, env_id: str | None, words: str
) -> None:
    code, _, err = zprl(*train_command(save_policy(tiny_policy(env_id=env_id), tmp_path / "policy"), tmp_path / "run"))
    assert code == 1
    assert words.rpartition("/")[2] in err


class TurnsSick(PointReach):
    """Returns NaN after 150 steps of all environments, until it is healed."""

    steps, healthy = 0, False

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        TurnsSick.steps += 1
        if TurnsSick.steps > 150 and not TurnsSick.healthy:
            obs[1] = float("nan")
        return obs, reward, terminated, truncated, info


@pytest.fixture
def sick_policy(tmp_path: Path) -> Path:
    """The policy of an environment that falls ill on the way."""
    TurnsSick.steps, TurnsSick.healthy = 0, False
    if "test/TurnsSick-v0" not in gym.registry:
        gym.register("test/TurnsSick-v0", TurnsSick, max_episode_steps=TIME_LIMIT)
    return save_policy(tiny_policy(env_id="test/TurnsSick-v0"), tmp_path / "policy")


@pytest.mark.filterwarnings("ignore:.*The obs returned")
def test_a_nan_from_the_simulator_costs_nothing_learned(sick_policy: Path, tmp_path: Path, zprl: Any) -> None:
    output = tmp_path / "run"
    code, _, err = zprl(*train_command(sick_policy, output, "save_freq=1000"))
    assert code == 1
    assert "Traceback" not in err
    assert f"by SimulationError; the same command goes on from {output / 'snapshot'}" in err
    last = err.splitlines()[-1]
    assert last.startswith("zprl train: ")
    assert "TurnsSick" in last
    assert "returned a observation that is not finite" in last
    saved = SteeringSAC.load(output / "snapshot" / "model.zip").env_steps
    assert saved > 0
    TurnsSick.healthy = True
    code, out, _ = zprl(*train_command(sick_policy, output, "save_freq=1000"))
    assert code == 0
    assert f"Going on from {saved} env steps" in out
    assert_complete(output)


@pytest.mark.filterwarnings("ignore:.*The obs returned")
def test_what_stopped_a_run_is_told_even_if_it_cannot_be_saved(
    sick_policy: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: Any, folder: Path) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(program, "save_snapshot", fail)
    code, _, err = zprl(*train_command(sick_policy, tmp_path / "run", "save_freq=1000"))
    assert code == 1
    assert "Not saved: the disk is gone" in err
    assert "returned a observation that is not finite" in err.splitlines()[-1]


def test_a_full_disk_is_one_clear_line_and_the_run_goes_on_afterwards(
    toy_policy: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, replace = tmp_path / "run", os.replace
    full = False

    def replace_unless_full(source: Any, target: Any) -> None:
        if full and Path(target).name == "evaluations.csv":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    original = program.SnapshotCallback._on_rollout_start

    def fill(callback: Any) -> None:
        nonlocal full
        full = callback.model.num_timesteps >= 20
        original(callback)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_unless_full)
        patch.setattr(program.SnapshotCallback, "_on_rollout_start", fill)
        code, _, err = zprl(*train_command(toy_policy, output))
    assert code == 1
    assert "Traceback" not in err
    assert f"The disk is full: {output / 'evaluations.csv'} was not written" in err.splitlines()[-1]
    assert not list(output.glob(".*"))
    assert zprl(*train_command(toy_policy, output))[0] == 0
    assert_complete(output)


def test_a_run_that_is_cut_in_its_last_evaluation_makes_it_up(
    toy_policy: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"

    def cut(callback: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(program.SteeringEvalCallback, "_on_training_end", cut)
        assert zprl(*train_command(toy_policy, output))[0] == 130
    assert chunks(output) == [0, 20, 40]
    assert zprl(*train_command(toy_policy, output))[0] == 0
    assert_complete(output)


def test_a_run_that_is_cut_while_its_model_is_written_is_not_finished(
    toy_policy: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, save = tmp_path / "run", SteeringSAC.save

    def half(model: Any, path: Any, **kwargs: Any) -> None:
        if "snapshot" in str(path):
            return save(model, path, **kwargs)
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SteeringSAC, "save", half)
        assert zprl(*train_command(toy_policy, output))[0] == 130
    assert not (output / "model.zip").exists()
    assert zprl(*train_command(toy_policy, output))[0] == 0
    assert_complete(output)


def test_a_damaged_snapshot_is_named(
    toy_policy: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(program, "_learn", stop)
        assert zprl(*train_command(toy_policy, output))[0] == 130
    for name in ("model.zip", "replay_buffer.pkl", "rng.pt"):
        file = output / "snapshot" / name
        whole = file.read_bytes()
        for damage in (b"", whole[: len(whole) // 2]):
            file.write_bytes(damage)
            code, _, err = zprl(*train_command(toy_policy, output))
            assert code == 1
            assert f"{output / 'snapshot'} cannot be loaded" in err
            assert "If it is damaged, remove it" in err
            assert err.count("\n") == 1
        file.write_bytes(whole)
    assert zprl(*train_command(toy_policy, output))[0] == 0
    assert (output / "model.zip").is_file()


def stop(model: SteeringSAC, evaluations: Any, settings: dict[str, Any], output: Path) -> None:
    """Learn for a while, save, and be interrupted."""
    model.learn(30, evaluations, reset_num_timesteps=False)
    save_snapshot(model, output / "snapshot")
    raise KeyboardInterrupt


def wait_for(file: Path, process: Any) -> None:
    deadline = time.monotonic() + 180
    while not file.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def a_little_further(saved: SteeringSAC) -> int:
    """Return up to how many chunks a run is to go on that began with far more, for which a test has no time."""
    return saved.num_timesteps // 20 * 20 + 40


def test_a_killed_run_goes_on_from_its_snapshot(toy_policy: Path, tmp_path: Path, zprl: Any, start: Any) -> None:
    output = tmp_path / "run"

    def command(n_timesteps: int) -> list[str]:
        # Evaluations are far more frequent than snapshots: some rows belong to chunks that are run again.
        return train_command(toy_policy, output, f"n_timesteps={n_timesteps}", "save_freq=70")

    process = start(*command(100_000))
    wait_for(output / "snapshot" / "rng.pt", process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (output / "model.zip").exists()
    saved = SteeringSAC.load(output / "snapshot" / "model.zip")
    assert saved.num_timesteps >= 70
    after = [str(saved.num_timesteps + 10), "1000000"]
    with open(output / "evaluations.csv", "a") as file:  # as if one more had been made before the kill
        file.write(",".join([*after, *["0"] * (len(read_rows(output / "evaluations.csv")[0]) - 2)]) + "\n")
    end = a_little_further(saved)
    code, out, _ = zprl(*command(end))
    assert code == 0
    assert f"Going on from {saved.env_steps} env steps, saved in {output / 'snapshot'}" in out
    assert_complete(output, end)
    assert {path.name for path in (output / "logs").iterdir()} == {"from_0", f"from_{saved.num_timesteps}"}


@pytest.mark.parametrize(
    ("number", "code", "subprocess"),
    [(signal.SIGINT, 130, "false"), (signal.SIGTERM, 143, "false"), (signal.SIGINT, 130, "true")],
)
def test_an_interrupt_saves_everything_and_says_how_to_go_on(
    toy_policy: Path, tmp_path: Path, zprl: Any, start: Any, number: int, code: int, subprocess: str
) -> None:
    output = tmp_path / "run"

    def command(n_timesteps: int) -> list[str]:
        changes = [f"n_timesteps={n_timesteps}", "save_freq=1000", f"subprocess={subprocess}"]
        return train_command(toy_policy, output, *changes)

    process = start(*command(100_000))
    wait_for(output / "evaluations.csv", process)
    os.killpg(process.pid, number)
    text, _ = process.communicate(timeout=180)
    assert process.returncode == code, text
    assert f"; the same command goes on from {output / 'snapshot'}" in text
    assert "Traceback" not in text
    saved = SteeringSAC.load(output / "snapshot" / "model.zip")
    assert saved.num_timesteps < 100_000
    end = a_little_further(saved)
    code, out, _ = zprl(*command(end))
    assert code == 0
    assert f"Going on from {saved.env_steps} env steps" in out
    assert_complete(output, end)


def test_ctrl_c_waits_until_the_update_is_done(
    toy_policy: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, update = tmp_path / "run", SteeringSAC._update_actor

    def interrupted(model: SteeringSAC, batch: Any) -> Any:
        if model.num_timesteps == 30:
            signal.raise_signal(signal.SIGINT)
        return update(model, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SteeringSAC, "_update_actor", interrupted)
        assert zprl(*train_command(toy_policy, output, "save_freq=1000"))[0] == 130
    # A progress bar that is left open draws on in a thread, for which Python may wait for ever when it ends.
    drawing = [thread for thread in threading.enumerate() if type(thread).__name__ == "_RefreshThread"]
    for thread in drawing:
        thread.join(5)  # nobody waits for those that have been told to end
    assert not [thread for thread in drawing if thread.is_alive()]
    saved = SteeringSAC.load(output / "snapshot" / "model.zip")
    assert saved.num_timesteps == 30
    # All updates of the 20 chunks after the warm-up are in the snapshot, and the actor's are half as many.
    steps = {int(state["step"]) for state in saved.critic.optimizer.state.values()}
    assert steps == {saved._n_updates}
    assert {int(state["step"]) for state in saved.actor.optimizer.state.values()} == {saved._n_updates // 2}
    assert zprl(*train_command(toy_policy, output, "save_freq=1000"))[0] == 0
    assert_complete(output)


def test_a_finished_run_goes_on_with_more_chunks(toy_run: Path, toy_policy: Path, tmp_path: Path, zprl: Any) -> None:
    output = tmp_path / "run"
    shutil.copytree(toy_run, output)
    before = read_rows(output / "evaluations.csv")
    code, out, _ = zprl(*train_command(toy_policy, output, "n_timesteps=100", "openvino=float32"))
    assert code == 0
    assert f"Going on from {int(before[-1]['env_steps'])} env steps" in out
    assert_complete(output, 100)
    assert read_rows(output / "evaluations.csv")[: len(before)] == before
    assert read_yaml(output / "run.yml")["settings"]["n_timesteps"] == 100
    assert SteeringSAC.load(output / "model.zip").buffer_size == 102
    assert "is trained already" in zprl(*train_command(toy_policy, output, "n_timesteps=80"))[1]


@pytest.mark.parametrize("seed", [0, EVAL_SEED, 100_000])
def test_training_never_meets_the_layouts_of_evaluations(
    toy_policy: Path, tmp_path: Path, zprl: Any, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    seeds: list[int] = []
    reset = PointReach.reset

    def noted(env: Any, *, seed: int | None = None, options: Any = None) -> Any:
        seeds.append(-1 if seed is None else seed)
        return reset(env, seed=seed, options=options)

    monkeypatch.setattr(PointReach, "reset", noted)
    assert zprl(*train_command(toy_policy, tmp_path / "run", "n_timesteps=20", seed=seed))[0] == 0
    training = {each for each in seeds if each >= FIRST_TRAINING_SEED}
    assert training == {training_seed(seed), training_seed(seed) + 1}
    # All others are evaluations or follow in the generator of a training seed.
    assert all(each == -1 or each in training or 0 <= each - EVAL_SEED < 1000 for each in seeds)


def test_no_two_runs_train_on_the_same_layouts() -> None:
    starts = sorted(training_seed(seed, chunks) for seed in range(30) for chunks in (0, 1000, 2000))
    assert min(later - earlier for earlier, later in pairwise(starts)) > 1000  # environments


def test_the_environments_are_closed_after_an_error(sick_policy: Path, tmp_path: Path, zprl: Any) -> None:
    closed: list[Any] = []
    TurnsSick.close = lambda env: closed.append(env)  # type: ignore[method-assign]
    try:
        assert zprl(*train_command(sick_policy, tmp_path / "run"))[0] == 1
    finally:
        del TurnsSick.close
    assert len(closed) > 2


SETTINGS: dict[str, Any] = {
    "steering": "latent",
    "chunk": None,
    "scale": 0.5,
    "sample_latent": True,
    "n_envs": 2,
    "gamma": 0.9,
    "subprocess": False,
    "eval_episodes": 6,
    "env_kwargs": {},
    "train_env_kwargs": {},
}


def make_envs(policy: Path, **changes: Any) -> tuple[VecSteering, VecSteering]:
    """Return the environments to train and to evaluate in."""
    settings = SETTINGS | changes
    arguments = (load_policy(policy), policy, settings["scale"], settings)
    return program._make_env(*arguments, policy.parent / "run"), program._make_eval_env(*arguments)


def test_evaluations_use_the_mean_and_training_samples(toy_policy: Path) -> None:
    training, evaluation = make_envs(toy_policy)
    samples = [env.steering.sample_latent for env in (training, evaluation)]  # type: ignore[attr-defined]
    assert samples == [True, False]
    assert (training.num_envs, evaluation.num_envs) == (2, 6)


def test_processes_that_evaluate_are_no_more_than_those_that_train(toy_policy: Path) -> None:
    envs = make_envs(toy_policy, subprocess=True)
    try:
        assert [env.num_envs for env in envs] == [2, 2]
    finally:
        for env in envs:
            env.close()


def test_some_arguments_are_for_training_only(toy_policy: Path) -> None:
    envs = make_envs(toy_policy, train_env_kwargs={"reach": 0.1})
    assert [env.get_attr("reach")[0] for env in envs] == [0.1, 0.3]


def test_what_the_policy_sees_is_the_same_in_training(tmp_path: Path) -> None:
    policy = tiny_policy(env_id="zprl/Push-v0")
    save_policy(policy, tmp_path / "policy", env_kwargs={"observation": "state"})
    with pytest.raises(ValueError, match="learned with observation='state' and would see other things with 'image'"):
        make_envs(tmp_path / "policy", train_env_kwargs={"observation": "image"})


def test_images_are_cropped_at_random_in_training_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = image_policy(env_id=POINT_IMAGES)
    save_policy(policy, tmp_path / "policy")
    places: list[Any] = []
    embed = FlowPolicy.embed
    monkeypatch.setattr(
        FlowPolicy, "embed", lambda self, obs, where=None: places.append(where) or embed(self, obs, where)
    )
    envs = make_envs(tmp_path / "policy")
    places.clear()  # of their first chunks
    for env in envs:
        env.reset()
    training, evaluation = places
    assert training.shape == (2, len(policy.image_keys), 2)
    assert evaluation is None


def test_the_buffer_is_no_larger_than_the_run(toy_run: Path) -> None:
    assert SteeringSAC.load(toy_run / "model.zip").buffer_size == 62
