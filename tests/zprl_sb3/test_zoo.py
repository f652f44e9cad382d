"""rl-zoo3's own commands train, evaluate and replay our methods, and stock algorithms on a steered policy."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from sb3_contrib import TQC, TRPO
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

import helpers
from helpers import POINT, tiny_policy
from zprl_sb3.checkpoint import CheckpointError, load_policy, save_policy
from zprl_sb3.dsrl_na import DSRLNA
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.settings import load_settings

LIMIT = 8  # env steps, four chunks, of the policy's demonstrations; the task's own is 12
CLASSES = {"zprl": SteeringSAC, "po_dec": SteeringSAC, "dsrl": SteeringSAC, "resemb": SteeringSAC, "dsrl_na": DSRLNA}
OTHERS = {"sac": SAC, "tqc": TQC, "trpo": TRPO}
SMALL = ["n_envs:2", "policy_kwargs:{'net_arch':[8]}", "batch_size:8"]
TINY = ["-n", "48", "--eval-freq", "16", "--eval-episodes", "2", "--seed", "0", "--device", "cpu"]

Command = Callable[..., str]
Run = Callable[..., None]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "policy"
    return save_policy(tiny_policy(env_id=POINT), path, env_kwargs={"max_episode_steps": LIMIT})


@pytest.fixture(scope="module")
def zoo() -> Iterator[Any]:
    """The plug-in. rl_zoo3 replaces Gymnasium's TimeLimit when it is imported; here only for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (gym.wrappers, gym.wrappers.common):
            patch.setattr(module, "TimeLimit", gym.wrappers.TimeLimit)
        yield importlib.import_module("zprl_sb3.zoo")


def arguments(algo: str, folder: Path, *more: str) -> list[str]:
    starts = "n_steps:8" if algo == "trpo" else "learning_starts:8"
    where = ["--algo", algo, "--env", f"test/PointReach-{algo}-v0", "-f", str(folder)]
    return [*where, "--conf-file", "zprl_sb3.zoo", *TINY, "-params", *SMALL, starts, *more]


@pytest.fixture
def run(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run rl_zoo3's train in this process."""
    program = importlib.import_module("rl_zoo3.train")

    def train(*rest: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py", *rest])
        program.train()

    return train


@pytest.fixture
def train(zoo: Any, policy: Path, tmp_path: Path, run: Run) -> Callable[..., Path]:
    """Train a method; returns the run's folder."""
    zoo.register(policy)

    def train(algo: str, *more: str, number: int = 1) -> Path:
        run(*arguments(algo, tmp_path, *more))
        return tmp_path / algo / f"test-PointReach-{algo}-v0_{number}"

    return train


@pytest.fixture
def command(policy: Path, tmp_path: Path) -> Command:
    """Run ``python -m rl_zoo3.PROGRAM`` in a folder with a ``custom_envs.py``; returns its output."""
    (tmp_path / "custom_envs.py").write_text(f"from zprl_sb3 import zoo\n\nzoo.register({str(policy)!r})\n")
    toys = os.pathsep.join([str(Path(helpers.__file__).parent), os.environ.get("PYTHONPATH", "")])

    def run(program: str, *rest: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", f"rl_zoo3.{program}", *rest],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": toys},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    return run


def check_run(run: Path, algo: str) -> Any:
    """Check what rl_zoo3 leaves of a tiny run, and return the model."""
    model: Any = (CLASSES | OTHERS)[algo].load(run / f"{run.name.removesuffix('_1')}.zip")
    assert model.num_timesteps == 48
    evaluations = np.load(run / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [16, 32, 48]
    assert evaluations["successes"].shape == (3, 2)
    lengths = [float(line.split(",")[1]) for line in (run / "0.monitor.csv").read_text().splitlines()[2:]]
    assert lengths
    assert max(lengths) == LIMIT  # env steps, and the policy's limit
    return model


@pytest.mark.slow
def test_the_plain_commands_train_and_replay_zprl(command: Command, tmp_path: Path) -> None:
    printed = command("train", *arguments("zprl", tmp_path / "logs", "--tensorboard-log", "tb"))
    assert "success_rate" in printed
    model = check_run(tmp_path / "logs" / "zprl" / "test-PointReach-zprl-v0_1", "zprl")
    assert model.env_steps > 48
    assert model.steering_spec.gamma == 0.99
    assert list((tmp_path / "tb").rglob("events.out.tfevents.*"))
    where = ["--algo", "zprl", "--env", "test/PointReach-zprl-v0", "-f", "logs", "--no-render", "-n", "40"]
    assert "Success rate: " in command("enjoy", *where, "--device", "cpu")


@pytest.mark.parametrize("algo", CLASSES | OTHERS)
def test_every_method_runs(algo: str, zoo: Any, train: Callable[..., Path], policy: Path) -> None:
    assert set(zoo.FILES) == set(CLASSES | OTHERS)
    model = check_run(train(algo), algo)
    if algo in CLASSES:
        settings = load_settings(zoo.FILES[algo], POINT)
        spec = model.steering_spec
        assert (spec.kind, spec.scale) == (settings["steering"], settings["scale"])
        assert spec.policy == load_policy(policy, sampling_steps=settings["sampling_steps"]).fingerprint()
    else:
        assert type(model) is OTHERS[algo]
        assert model.gamma == pytest.approx(0.99**2)  # of a chunk of two


def test_a_wrapper_works_in_a_yaml_file_of_one_s_own(zoo: Any, policy: Path, tmp_path: Path, run: Run) -> None:
    steering = {"policy": str(policy), "scale": 0.4, "noise": "zero"}
    mine = {"policy": "MultiInputPolicy", "n_timesteps": 12, "learning_starts": 4, "n_envs": 1}
    mine["env_wrapper"] = [{"zprl_sb3.wrappers.LatentSteeringWrapper": steering}]
    (tmp_path / "mine.yml").write_text(yaml.safe_dump({helpers.POINT_ID: mine}))
    run("--algo", "sac", "--env", helpers.POINT_ID, "--conf-file", str(tmp_path / "mine.yml"), "-f", str(tmp_path))
    model = SAC.load(next(tmp_path.glob("sac/*/*.zip")))
    assert (model.num_timesteps, model.action_space.shape) == (12, (3,))


def test_the_settings_are_those_of_zprl_train(zoo: Any, policy: Path) -> None:
    ids = zoo.register(policy)
    assert ids == [f"test/PointReach-{algo}-v0" for algo in zoo.FILES]
    for algo, env_id in zip(zoo.FILES, ids, strict=True):
        settings, found = load_settings(zoo.FILES[algo], POINT), zoo.hyperparams[env_id]
        assert {key: found[key] for key in settings["algorithm"]} == settings["algorithm"]
        assert (found["n_envs"], found["n_timesteps"]) == (settings["n_envs"], settings["n_timesteps"])
        steered = found["vec_env_wrapper"]["zprl_sb3.zoo.Steered"]
        names = ("steering", "scale", "gamma", "sampling_steps")
        assert {name: steered[name] for name in names} == {name: settings[name] for name in names}
        assert found.get("gamma") == (None if algo in CLASSES else pytest.approx(0.99**2))
        assert yaml.safe_load(yaml.safe_dump(found)) == found  # what goes into config.yml


def test_overrides_change_the_algorithms_that_are_named(zoo: Any, policy: Path) -> None:
    zoo.register(policy)
    zoo.register(policy, ["scale=0.3", "algorithm.utd=2", "chunk=1", "env_kwargs.reach=0.5"], ["zprl"])
    found = zoo.hyperparams["test/PointReach-zprl-v0"]
    assert found["vec_env_wrapper"]["zprl_sb3.zoo.Steered"]["scale"] == 0.3
    assert (found["utd"], found["env_wrapper"]["zprl_sb3.zoo.in_chunks"]["chunk"]) == (2, 1)
    env: Any = gym.make("test/PointReach-zprl-v0")
    assert (env.unwrapped.reach, env.spec.max_episode_steps) == (0.5, LIMIT)
    assert zoo.hyperparams["test/PointReach-po_dec-v0"]["utd"] == 1


@pytest.mark.parametrize(
    ("env_id", "expected"),
    [("zprl/Push-v0", "zprl/Push-dsrl_na-v0"), ("module:my/Task-v12", "my/Task-dsrl_na-v12"), ("T", "T-dsrl_na")],
)
def test_ids_name_the_algorithm(zoo: Any, env_id: str, expected: str) -> None:
    assert zoo.steered_id(env_id, "dsrl_na") == expected


def test_what_cannot_be_registered_is_named(zoo: Any, policy: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No policy checkpoint at"):
        zoo.register(tmp_path / "none")
    with pytest.raises(ValueError, match="does not say which environment it is for"):
        zoo.register(save_policy(tiny_policy(), tmp_path / "taskless"))
    with pytest.raises(ValueError, match="No algorithm td3 here; there are zprl, "):
        zoo.register(policy, algos=["td3"])
    with pytest.raises(KeyError, match="unknown setting 'scael'"):
        zoo.register(policy, ["scael=1"])
    with pytest.raises(ValueError, match="cannot follow demonstrations: use `zprl train`"):
        zoo.register(policy, ["demonstrations=some.hdf5"], ["zprl"])
    with pytest.raises(ValueError, match="cannot follow scale=auto: use `zprl train`"):
        zoo.register(policy, ["scale=auto"], ["zprl"])
    with pytest.raises(ValueError, match="has no argument 'raech'"):
        zoo.register(policy, ["env_kwargs.raech=1"])
    with pytest.raises(ValueError, match="eval_freq: rl_zoo3 has arguments of its own for that"):
        zoo.register(policy, ["eval_freq=10"])


def test_what_only_some_algorithms_have_registers_nothing(zoo: Any, policy: Path) -> None:
    before = dict(zoo.hyperparams)
    with pytest.raises(KeyError, match=r"^\"?.*: .*unknown setting 'utd'.*register only those that have it"):
        zoo.register(policy, ["algorithm.utd=2"])
    assert dict(zoo.hyperparams) == before
    assert zoo.register(policy, ["algorithm.utd=2"], algos=["zprl", "dsrl"])


def test_a_run_goes_on_and_another_scale_is_refused(
    zoo: Any, train: Callable[..., Path], policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("zprl", "--save-replay-buffer")
    first = run / "test-PointReach-zprl-v0.zip"
    updates = SteeringSAC.load(first)._n_updates
    again = train("zprl", "-i", str(first), number=2)
    assert "Loading replay buffer" in capsys.readouterr().out
    assert SteeringSAC.load(again / first.name)._n_updates > updates
    zoo.register(policy, ["scale=0.3"], ["zprl"])
    with pytest.raises(ValueError, match=r"trained with scale \(λ\) 0\.5, the environment has 0\.3"):
        train("zprl", "-i", str(first))


@pytest.mark.parametrize("obs_steps", [1, 2])
def test_z_is_drawn_in_training_and_its_mean_is_used_in_evaluation(zoo: Any, tmp_path: Path, obs_steps: int) -> None:
    zoo.register(save_policy(tiny_policy(env_id=POINT, obs_steps=obs_steps), tmp_path / "policy"))
    found = zoo.hyperparams["test/PointReach-zprl-v0"]
    make, chunks = gym.spec("test/PointReach-zprl-v0").make, found["env_wrapper"]["zprl_sb3.zoo.in_chunks"]
    venv = make_vec_env(make, 2, wrapper_class=zoo.in_chunks, wrapper_kwargs=chunks)
    env = zoo.Steered(venv, **found["vec_env_wrapper"]["zprl_sb3.zoo.Steered"])
    model = SteeringSAC("MultiInputPolicy", env, policy_kwargs={"net_arch": [8]}, device="cpu")
    assert not env.steering.sample_latent
    mode = zoo.TrainingMode(**found["callback"]["zprl_sb3.zoo.TrainingMode"])
    model.learn(4, mode)
    assert env.steering.sample_latent
    assert env.steering.spec(0.99) == env.steering_spec


def test_without_rl_zoo3_the_plug_in_says_how_to_install_it(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rl_zoo3.utils", None)
    monkeypatch.delitem(sys.modules, "zprl_sb3.zoo")
    with pytest.raises(ImportError, match=r"pip install 'zprl-sb3\[zoo\]'"):
        importlib.import_module("zprl_sb3.zoo")
