"""SOE: explore with a widened bottleneck, keep what succeeds, retrain the base policy. ``zprl train --algo soe``.

arXiv 2509.19292, as ZPRL's authors ran it as their baseline: no critic and no update while it explores. The retrained
policy acts through c, as it did in pretraining.
"""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from zprl_sb3.checkpoint import copy_policy, read_config
from zprl_sb3.diagnostics import evaluation_row, in_words
from zprl_sb3.evaluation import NoSteering
from zprl_sb3.files import read_rows, recovered, write_json, write_rows
from zprl_sb3.learners import RETRAINED
from zprl_sb3.locks import locked
from zprl_sb3.pretrain.demonstrations import Demonstrations, load_demonstrations
from zprl_sb3.pretrain.recording import extend_demonstrations, load_episode
from zprl_sb3.scripts.common import (
    evaluation_envs,
    make_arguments,
    pretraining,
    record_run,
    refuse_other_run,
    run_policy,
)
from zprl_sb3.scripts.pretrain import pretrain
from zprl_sb3.seeds import EVAL_SEED, training_seed
from zprl_sb3.settings import AUTO, MAY_CHANGE
from zprl_sb3.wrappers import EmbeddingSteering, LatentSteering, VecSteering, make_vec_steering
from zprl_sb3.wrappers.episode_recording import EpisodeRecorder

DEMOS = "demos.hdf5"
FREE = tuple(name for name in MAY_CHANGE if name != "n_timesteps")  # which says how long a round is


def explore(
    policy_path: str | Path, output: str | Path, seed: int, settings: dict[str, Any], device: str = "auto"
) -> Path:
    """Run the rounds that are left, and return the folder of the final policy.

    Each round is a folder ``round_<k>``: ``collected.json``, ``demos.hdf5`` (all demonstrations and successes so far)
    and what ``zprl pretrain`` leaves. A round without any success keeps the policy that it has.

    :param policy_path: Checkpoint of the base policy, with ``pretrain.yml`` beside it
    :param output: The run's folder
    :param seed: Of layouts, latents and retraining
    :param settings: As ``hyperparams/soe.yml`` has them
    :param device: ``cpu``, ``cuda`` or ``auto``
    :raises CheckpointError: If the policy cannot be read
    :raises DemonstrationError: If its demonstrations cannot
    :raises ValueError: If a setting does not fit, the folder holds another run, or nothing says how it was pretrained
    :raises InUse: If another process is at this run
    """
    output = Path(output)
    _check(settings)
    policy = run_policy(policy_path, settings, device)
    run = {"env_id": policy.env_id, "seed": seed, "policy": policy.fingerprint(), "settings": settings}
    refuse_other_run(output / "run.yml", run, ignore=[f"settings.{name}" for name in FREE])
    if recovered(output / RETRAINED).is_dir():
        print(f"{output / RETRAINED} is trained already; choose another --output to train anew")
        return output / RETRAINED
    config = _pretraining(Path(policy_path), settings) | {"seed": seed, "device": device}
    demos = None if (output / "round_1" / DEMOS).is_file() else _demonstrations(Path(policy_path), config, settings)
    changes: tuple[dict[str, Any], ...] = ({}, settings["train_env_kwargs"])
    for kwargs in changes:  # what cannot be run must not claim the folder
        _make_env(LatentSteering(policy, 1.0), Path(policy_path), settings, kwargs, 1).close()
    with locked(output):
        record_run(output / "run.yml", run)
        copy_policy(policy_path, output / "policy")
        rounds = settings["algorithm"]["rounds"]
        print(f"Exploring {policy.env_id} in {rounds} rounds with seed {seed}; everything goes to {output}")
        current = _rounds(output, demos, config, settings, seed, device)
        copy_policy(current, output / RETRAINED)
    print(f"Wrote {output / RETRAINED} and {output / 'evaluations.csv'}")
    return output / RETRAINED


def _rounds(
    output: Path, demos: Demonstrations | None, config: dict[str, Any], settings: dict[str, Any], seed: int, device: str
) -> Path:
    """Return the checkpoint after the last round.

    :param demos: Of the base policy; None where the first round has them already
    """
    current, rounds = output / "policy", settings["algorithm"]["rounds"]
    budget = -(-settings["n_timesteps"] // rounds)
    _note(output, 0, current, settings, device)
    for number in range(1, rounds + 1):
        folder = output / f"round_{number}"
        _collect(current, folder, settings, budget, training_seed(seed, number), device)
        demos = _extended(demos, folder, config)
        if any(folder.glob("successes/*.npz")):
            current = pretrain(config | {"demos": str(demos.path), "output": str(folder), "mask": None})
        _note(output, number, current, settings, device)
    return current


def _check(settings: dict[str, Any]) -> None:
    rounds, widening = settings["algorithm"]["rounds"], settings["algorithm"]["widening"]
    if not isinstance(rounds, int) or not 1 <= rounds <= settings["n_timesteps"]:
        raise ValueError(f"algorithm.rounds must be a whole number from 1 to n_timesteps, not {rounds!r}")
    if not isinstance(widening, (int, float)) or not 0 < widening < np.inf:
        raise ValueError(f"algorithm.widening must be a positive number, not {widening!r}")
    if settings["steering"] != LatentSteering.kind or not settings["sample_latent"]:
        raise ValueError("SOE explores by sampling the latent: leave steering and sample_latent as they are")


def _pretraining(policy_path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration that the base policy was pretrained with."""
    recorded = pretraining(policy_path)
    if "model" not in recorded:
        raise ValueError(
            f"SOE retrains the base policy, but {policy_path} was attached to one that others have trained"
        )
    config = {key: value for key, value in recorded.items() if key not in ("dataset_sha256", "versions")}
    return config | ({"demos": settings["demonstrations"]} if settings["demonstrations"] not in (None, AUTO) else {})


def _demonstrations(policy_path: Path, config: dict[str, Any], settings: dict[str, Any]) -> Demonstrations:
    """Return the base policy's demonstrations, or those that the settings have instead of them."""
    if not Path(config["demos"]).is_file():
        raise ValueError(
            f"{config['demos']} is missing, from which the policy was pretrained: say where with "
            "--set demonstrations=FILE"
        )
    demos, about = load_demonstrations(config["demos"], config.get("observation")), read_config(policy_path)
    here, there = (demos.env_id, demos.env_kwargs), (about["env_id"], about.get("env_kwargs", {}))
    if here != there:
        raise ValueError(f"{demos.path} was recorded in {here}, the policy has learned in {there}")
    if settings["demonstrations"] in (None, AUTO) and demos.sha256 != about["dataset_sha256"]:
        raise ValueError(
            f"{demos.path} is not what the policy was pretrained on: it has changed since. To use it all the same, "
            f"--set demonstrations={demos.path}"
        )
    return demos.select(config["mask"]) if config["mask"] else demos


def _collect(checkpoint: Path, folder: Path, settings: dict[str, Any], budget: int, seed: int, device: str) -> None:
    """Act for so many chunks, with z = μ + widening · σ · ε, and keep the successes; unless it has been done."""
    if (folder / "collected.json").is_file():
        return
    shutil.rmtree(folder / "successes", ignore_errors=True)
    (folder / "successes").mkdir(parents=True)
    policy = run_policy(checkpoint, settings, device)
    widening = settings["algorithm"]["widening"]
    steering = LatentSteering(policy, 1.0, sample_latent=True, widening=widening)
    layer = partial(EpisodeRecorder, folder=folder / "successes")
    changes, n_envs = settings["train_env_kwargs"], settings["n_envs"]
    with closing(_make_env(steering, checkpoint, settings, changes, n_envs, layer)) as env:
        counts = _run(env, budget, seed, policy.env_id or "")
    write_json(folder / "collected.json", counts | {"widening": widening, "first_seed": seed})


def _make_env(
    steering: LatentSteering | EmbeddingSteering,
    checkpoint: Path,
    settings: dict[str, Any],
    kwargs: dict[str, Any],
    n_envs: int,
    layer: Any = None,
) -> VecSteering:
    env_id = steering.policy.env_id
    assert env_id is not None
    arguments, subprocess = make_arguments(checkpoint, settings["env_kwargs"] | kwargs), settings["subprocess"]
    return make_vec_steering(
        env_id, steering, n_envs, settings["gamma"], arguments, subprocess, seeded_episodes=True, layer=layer
    )


def _run(env: VecSteering, budget: int, seed: int, name: str) -> dict[str, int]:
    """Return how much was collected. Episodes that the last chunk leaves unfinished are lost."""
    counts = {"chunks": 0, "env_steps": 0, "episodes": 0, "successes": 0}
    env.seed(seed)
    env.reset()
    still = np.zeros((env.num_envs, env.steering.anchor_dim), np.float32)
    with tqdm(total=budget, unit="chunk", desc=f"exploring {name}", dynamic_ncols=True) as bar:
        while counts["chunks"] < budget:
            _, _, dones, infos = env.step(still)
            counts["chunks"] += env.num_envs
            counts["env_steps"] += sum(info["env_steps"] for info in infos)
            counts["episodes"] += int(dones.sum())
            counts["successes"] += sum(
                bool(info["is_success"]) for info, done in zip(infos, dones, strict=True) if done
            )
            bar.update(env.num_envs)
            bar.set_postfix(episodes=counts["episodes"], successes=counts["successes"], refresh=False)
    return counts


def _extended(demos: Demonstrations | None, folder: Path, config: dict[str, Any]) -> Demonstrations:
    """Return the demonstrations with this round's successes behind them."""
    if not (folder / DEMOS).is_file():
        assert demos is not None
        files = sorted(folder.glob("successes/*.npz"))
        extend_demonstrations(folder / DEMOS, demos, map(load_episode, files))
    return load_demonstrations(folder / DEMOS, config.get("observation"))


def _note(output: Path, number: int, checkpoint: Path, settings: dict[str, Any], device: str) -> None:
    """Evaluate the policy after a round, through c, and add a row to ``evaluations.csv``; unless it is there."""
    file = output / "evaluations.csv"
    rows = read_rows(file) if file.is_file() else []
    if len(rows) > number:
        return
    collected = [json.loads((output / f"round_{k}" / "collected.json").read_text()) for k in range(1, number + 1)]
    row: dict[str, Any] = {name: sum(counts[name] for counts in collected) for name in ("chunks", "env_steps")}
    steering = EmbeddingSteering(run_policy(checkpoint, settings, device), 1.0)
    with closing(_make_env(steering, checkpoint, settings, {}, evaluation_envs(settings))) as env:
        row |= evaluation_row(NoSteering(), env, EVAL_SEED, settings["eval_episodes"])
    write_rows(file, [*rows, row])
    print(in_words(row, settings["eval_episodes"]))
