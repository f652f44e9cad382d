"""``zprl train``: steer a frozen policy with SteeringSAC. Settings in ``hyperparams/zprl.yml`` by environment id."""

from __future__ import annotations

import argparse
import copy
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.logger import configure
from stable_baselines3.common.save_util import load_from_zip_file

from zprl_sb3.background import BackgroundEvaluation
from zprl_sb3.callbacks import MODEL, SnapshotCallback, SteeringEvalCallback, load_snapshot, save_snapshot
from zprl_sb3.checkpoint import load_policy, read_config
from zprl_sb3.evaluation import parallel_envs
from zprl_sb3.files import atomic_path, readable, recovered
from zprl_sb3.interrupts import interrupts_wait
from zprl_sb3.offline import demonstration_buffer, scale_by_spread
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.replay import SteeringReplayBuffer
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import (
    add_device,
    add_seed,
    add_settings,
    device_of,
    make_arguments,
    new_parser,
    record_run,
    refuse_other_run,
)
from zprl_sb3.settings import NOT_IDENTITY, load_settings
from zprl_sb3.wrappers import LatentSteering, SteeringSpec, VecSteering, make_vec_steering
from zprl_sb3.wrappers.steering import Scale

EVAL_SEED = 50_000  # of the episodes of the learning curve; `zprl evaluate` uses others
FIRST_TRAINING_SEED = 2**32  # evaluations use smaller ones
COUNTS = ("n_envs", "n_timesteps", "eval_freq", "eval_episodes", "save_freq")
EXAMPLES = """examples:
  zprl train --policy runs/push/policy --output runs/push/zprl-0
  zprl train --policy runs/push/policy --output runs/push/zprl-1 --seed 1 --set scale=0.3 algorithm.batch_size=512

The run folder holds the settings, a copy of the policy, snapshots, evaluations.csv, TensorBoard and CSV logs, and at
the end model.zip. The same command again goes on from the last snapshot after a kill or Ctrl-C; with a larger
n_timesteps it goes on with a finished run, too."""


def train(
    policy_path: str | Path, output: str | Path, seed: int, settings: dict[str, Any], device: str = "auto"
) -> Path:
    """Train, or go on with, a run, and return the path of the final model.

    :param policy_path: Checkpoint of the frozen policy
    :param output: The run's folder
    :param seed: Of networks, environments, noise and replay
    :param settings: As ``hyperparams/zprl.yml`` has them
    :param device: ``cpu``, ``cuda`` or ``auto``
    :raises CheckpointError: If the policy cannot be read
    :raises ValueError: If a setting does not fit, or the folder holds another run
    """
    output, model_path = Path(output), Path(output) / "model.zip"
    _check(settings)
    policy = load_policy(policy_path, settings["chunk"], device_of(device))
    if policy.env_id is None:
        raise ValueError(f"{policy_path} does not say which environment it is for")
    run = {"env_id": policy.env_id, "seed": seed, "policy": policy.fingerprint(), "settings": settings}
    refuse_other_run(output / "run.yml", run, ignore=[f"settings.{name}" for name in NOT_IDENTITY])
    if model_path.is_file() and _trained_chunks(model_path) >= settings["n_timesteps"]:
        print(f"{model_path} is trained already; choose another --output to train anew, or a larger n_timesteps")
        return model_path
    scale = _scale(policy, settings, recovered(output / "snapshot"))
    with (
        closing(_evaluation(policy, policy_path, scale, settings)) as evaluation,
        closing(_make_env(policy, policy_path, scale, settings)) as env,
    ):
        if isinstance(evaluation, BackgroundEvaluation):
            evaluation.wait_ready()
        model, evaluations = _prepare(env, evaluation, output, seed, settings, device)
        _add_demonstrations(model, env, settings)
        record_run(output / "run.yml", run)
        if not (output / "policy").is_dir():
            with atomic_path(output / "policy") as temporary:
                shutil.copytree(policy_path, temporary)
        print(f"Steering {policy.env_id} with λ = {settings['scale']} and seed {seed}; everything goes to {output}")
        _learn(model, evaluations, settings, output)
    with atomic_path(model_path) as temporary:
        model.save(temporary)
    print(f"Wrote {model_path} and {output / 'evaluations.csv'}")
    return model_path


def _trained_chunks(model_path: Path) -> int:
    with readable(model_path):
        return int(_saved_data(model_path)["num_timesteps"])


def _saved_data(model_path: Path) -> dict[str, Any]:
    data, _, _ = load_from_zip_file(model_path, device="cpu")
    assert data is not None
    return data


def _check(settings: dict[str, Any]) -> None:
    counts = {name: settings[name] for name in COUNTS}
    if settings["chunk"] is not None:  # the checkpoint's own
        counts["chunk"] = settings["chunk"]
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def _scale(policy: FlowPolicy, settings: dict[str, Any], snapshot: Path) -> Scale:
    scale: float = settings["scale"]
    if settings["scale_by"] is None:
        return scale
    if (snapshot / MODEL).is_file():  # as it was, to the last bit, whatever has become of the demonstrations
        with readable(snapshot):
            spec: SteeringSpec = _saved_data(snapshot / MODEL)["steering_spec"]
            return spec.scale
    return scale_by_spread(settings["scale_by"], policy, scale)


def _make_env(policy: FlowPolicy, policy_path: str | Path, scale: Scale, settings: dict[str, Any]) -> VecSteering:
    """Return the environments to train in."""
    assert policy.env_id is not None
    kwargs = make_arguments(policy_path, settings["env_kwargs"] | settings["train_env_kwargs"])
    # As in pretraining, images are cropped at random places while it learns, and at the centre when it is judged.
    steering = LatentSteering(policy, scale, settings["sample_latent"], random_crop=True)
    return make_vec_steering(
        policy.env_id, steering, settings["n_envs"], settings["gamma"], kwargs, settings["subprocess"]
    )


def _make_eval_env(policy: FlowPolicy, policy_path: str | Path, scale: Scale, settings: dict[str, Any]) -> VecSteering:
    """Return the environments to evaluate in."""
    assert policy.env_id is not None
    kwargs, subprocess = make_arguments(policy_path, settings["env_kwargs"]), settings["subprocess"]
    # In processes of their own each takes memory: no more of them than there are to train in.
    n_envs = parallel_envs(settings["eval_episodes"], *([settings["n_envs"]] if subprocess else []))
    steering = LatentSteering(policy, scale)
    return make_vec_steering(
        policy.env_id, steering, n_envs, settings["gamma"], kwargs, subprocess, seeded_episodes=True
    )


def _make_eval_env_beside(policy_path: str | Path, scale: Scale, settings: dict[str, Any], device: str) -> VecSteering:
    """Return the same in another process, with a policy of its own."""
    return _make_eval_env(load_policy(policy_path, settings["chunk"], device), policy_path, scale, settings)


def _evaluation(
    policy: FlowPolicy, policy_path: str | Path, scale: Scale, settings: dict[str, Any]
) -> VecSteering | BackgroundEvaluation:
    if not settings["eval_beside"]:
        return _make_eval_env(policy, policy_path, scale, settings)
    return BackgroundEvaluation(partial(_make_eval_env_beside, policy_path, scale, settings, str(policy.device)))


def _prepare(
    env: VecSteering,
    eval_env: VecSteering | BackgroundEvaluation,
    output: Path,
    seed: int,
    settings: dict[str, Any],
    device: str,
) -> tuple[SteeringSAC, SteeringEvalCallback]:
    snapshot = recovered(output / "snapshot")
    if snapshot.is_dir():
        with readable(snapshot):
            model = load_snapshot(SteeringSAC, snapshot, env, device=device)
        assert isinstance(model, SteeringSAC)
        _resize_buffer(model, settings)
        env.seed(training_seed(seed, model.num_timesteps))  # new episodes, not those from the beginning again
        print(f"Going on from {model.env_steps} env steps, saved in {snapshot}")
    else:
        model = _new_model(env, seed, settings, device)
        env.seed(training_seed(seed))
    # A resumed run gets log files of its own: SB3 opens them for writing anew.
    model.set_logger(configure(str(output / "logs" / f"from_{model.num_timesteps}"), ["csv", "tensorboard"]))
    return model, SteeringEvalCallback(
        eval_env, output / "evaluations.csv", settings["eval_freq"], settings["eval_episodes"], seed=EVAL_SEED
    )


def _add_demonstrations(model: SteeringSAC, env: VecSteering, settings: dict[str, Any]) -> None:
    if settings["demonstrations"] is not None:
        kwargs = settings["algorithm"]["replay_buffer_kwargs"]
        sparse = model.critic.bounded
        model.learn_from(
            demonstration_buffer(
                settings["demonstrations"], env.steering, settings["gamma"], sparse, model.device, **kwargs
            )
        )


def _capacity(settings: dict[str, Any]) -> int:
    # A larger buffer would never be filled, and every snapshot would write it.
    return int(min(settings["algorithm"]["buffer_size"], settings["n_timesteps"] + settings["n_envs"]))


def _resize_buffer(model: SteeringSAC, settings: dict[str, Any]) -> None:
    """Make room for a run that goes on for longer than it was meant to."""
    buffer, capacity = model.replay_buffer, _capacity(settings)
    if isinstance(buffer, SteeringReplayBuffer) and buffer.buffer_size < capacity:
        model.replay_buffer = buffer.moved(buffer.device, capacity)
        model.buffer_size = capacity


def training_seed(seed: int, chunks: int = 0) -> int:
    """Return the seed of the first environment to train in; the k-th one's is larger by k.

    Other runs, and a run that goes on, get seeds far from these: neighbours would share nearly all layouts.

    :param seed: Of the run
    :param chunks: After which it goes on
    """
    return FIRST_TRAINING_SEED + int(np.random.SeedSequence((seed, chunks)).generate_state(1)[0])


def _new_model(env: VecSteering, seed: int, settings: dict[str, Any], device: str) -> SteeringSAC:
    algorithm: dict[str, Any] = copy.deepcopy(settings["algorithm"])  # SB3 adds to policy_kwargs
    algorithm["buffer_size"] = _capacity(settings)
    try:
        return SteeringSAC("MultiInputPolicy", env, seed=seed, device=device, **algorithm)
    except TypeError as error:  # policy_kwargs are open: a mistake in them shows only here
        raise ValueError(f"algorithm: {error}") from error


def _learn(model: SteeringSAC, evaluations: SteeringEvalCallback, settings: dict[str, Any], output: Path) -> None:
    snapshot = output / "snapshot"
    # Where nothing remains, only the last evaluation may be missing.
    remaining = max(0, settings["n_timesteps"] - model.num_timesteps)
    try:
        with interrupts_wait() as interrupts:
            callbacks = [SnapshotCallback(snapshot, settings["save_freq"], interrupts), evaluations]
            model.learn(remaining, callbacks, reset_num_timesteps=False, progress_bar=True)
            save_snapshot(model, snapshot)
    except BaseException as error:
        # A NaN from the simulator, a full disk: what was learned so far must not be lost. After Ctrl-C it is saved.
        if isinstance(error, Exception):
            _rescue(model, snapshot)
        goes_on = f"; the same command goes on from {snapshot}" if snapshot.is_dir() else ""
        print(f"\nStopped at {model.env_steps} env steps by {type(error).__name__}{goes_on}", file=sys.stderr)
        raise


def _rescue(model: SteeringSAC, snapshot: Path) -> None:
    try:
        save_snapshot(model, snapshot)
    except Exception as error:  # The one that stopped the run is to be seen, not this one.
        print(f"\nNot saved: {error}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser("train", __doc__, EXAMPLES)
    parser.add_argument("--policy", required=True, help="checkpoint folder of the frozen policy")
    parser.add_argument("--output", required=True, help="folder of the run")
    add_seed(parser, text="of networks, environments, noise and replay")
    add_settings(parser, "zprl.yml")
    add_device(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl train``."""
    args = parser().parse_args(argv)
    config = read_config(args.policy)
    observation = config.get("env_kwargs", {}).get("observation")
    settings = load_settings(args.config, config["env_id"], args.set, observation)
    train(args.policy, args.output, args.seed, settings, args.device)
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
