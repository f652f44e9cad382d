"""``zprl pretrain``: demonstrations -> frozen flow policy with a bottleneck. Settings in ``hyperparams/pretrain/``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import hydra
import torch as th
from omegaconf import DictConfig

from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
from zprl_sb3.checkpoint import read_config, save_policy
from zprl_sb3.files import recovered, write_json
from zprl_sb3.locks import locked
from zprl_sb3.policy import FlowPolicy, FlowPolicyConfig, SteerablePolicy, image_keys
from zprl_sb3.pretrain.configuration import CONFIG_MODULE, by_task, loop_settings, plain, run_program
from zprl_sb3.pretrain.demonstrations import Demonstrations, load_demonstrations
from zprl_sb3.pretrain.loop import TrainingConfig
from zprl_sb3.pretrain.processes import Processes, local_device, processes
from zprl_sb3.pretrain.trainer import Trainer
from zprl_sb3.pretrain.windows import cut_windows, split_episodes
from zprl_sb3.robot_envs import is_real
from zprl_sb3.robot_envs.collection import check_version
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import device_of, record_run, refuse_other_run
from zprl_sb3.scripts.evaluate import base_evaluation, evaluate_base, table
from zprl_sb3.wrappers.chunking import chunked


def pretrain(config: dict[str, Any], group: Processes | None = None) -> Path:
    """Train a policy on demonstrations, evaluate it, and return its checkpoint's folder.

    :param config: As ``hyperparams/pretrain/config.yaml`` has it
    :param group: The processes that train together; only the first writes
    :raises DemonstrationError: If the demonstrations cannot be used
    :raises ValueError: If a setting does not fit, or the folder holds another run
    """
    group = group or Processes()
    output = Path(config["output"])
    demos = load_demonstrations(config["demos"], config["observation"])
    if config["mask"]:
        demos = demos.select(config["mask"])
    config = config | {part: by_task(config[part], demos.env_id, demos.env_kwargs) for part in ("model", "training")}
    # The hash says which demonstrations these are, wherever they lie.
    run = config | {"dataset_sha256": demos.sha256}
    refuse_other_run(output / "pretrain.yml", run, ignore=("demos", "output", "device", "evaluation"))
    checkpoint = recovered(output / "policy")
    if checkpoint.is_dir():
        print(f"{checkpoint} is trained already; remove {output} to train it anew")
        return checkpoint
    save = partial(
        save_policy,
        dataset_sha256=demos.sha256,
        demonstrations=len(demos),
        env_kwargs=demos.env_kwargs,
        training=config["training"],
    )
    latest = output / "policy_latest"
    what = f"{len(demos)} demonstrations of {demos.env_id}"
    trainer = _prepare(demos, config, output, lambda policy, step: save(policy, latest, step=step), group)
    del demos  # images fill the memory, and the trainer has its own
    if group.first:
        record_run(output / "pretrain.yml", run)
        print(f"Pretraining on {what}; checkpoint and TensorBoard go to {output}")
    policy = trainer.run()
    if group.first:
        save(policy, checkpoint)
        shutil.rmtree(latest)
        print(f"Wrote {checkpoint}")
    return checkpoint


def _prepare(
    demos: Demonstrations, config: dict[str, Any], output: Path, save: Callable[..., object], group: Processes
) -> Trainer:
    device = local_device(device_of(config["device"]))
    th.manual_seed(config["seed"])
    policy = _build(demos, dict(config["model"])).to(device)
    check_environment(demos, policy, needed=config["evaluation"]["episodes"] > 0)
    training, validation = split_episodes(len(demos), config["validation_ratio"], config["seed"])
    train, held_out = (
        cut_windows(demos, episodes, policy.obs_steps, policy.horizon, device) for episodes in (training, validation)
    )
    training_config = TrainingConfig(**loop_settings(config["training"], len(train)), seed=config["seed"])
    return Trainer(policy, train, held_out, training_config, output, save, group)


def _build(demos: Demonstrations, model: dict[str, Any]) -> FlowPolicy:
    shapes = {key: episodes[0].shape[1:] for key, episodes in demos.observations.items()}
    if (images := image_keys(shapes)) and "resnet_widths" not in model:
        raise ValueError(
            f"{demos.path} holds images ({', '.join(images)}), this model has no networks for them: choose another one "
            "(model=paper, or model=small_image)"
        )
    policy = build_policy(shapes, demos.actions[0].shape[1], model)
    policy.env_id = demos.env_id
    return policy


def check_environment(demos: Demonstrations, policy: SteerablePolicy, needed: bool) -> None:
    """Compare demonstrations with the environment that they name, before any training.

    :param demos: The demonstrations
    :param policy: Made for them
    :param needed: Whether an environment that cannot be made is an error, as it is where the policy will be evaluated
    :raises ValueError: If they differ, or were recorded with another release of the simulator
    :raises ImportError: If the simulator is needed and not installed
    :raises gymnasium.error.Error: If the environment is needed and there is none of this id
    """
    check_version(demos.env_id, demos.env_version)
    try:
        env = gym.make(demos.env_id, **demos.env_kwargs)
    except Exception as error:
        if needed:
            raise
        print(f"{demos.env_id} cannot be made here, so the demonstrations are not compared with it ({error})")
        return
    try:
        chunked(env, policy, gamma=1.0)
    except ValueError as error:
        raise ValueError(f"{demos.path} does not fit the environment that it names: {error}") from error
    finally:
        env.close()


def build_policy(shapes: dict[str, tuple[int, ...]], action_dim: int, model: dict[str, Any]) -> FlowPolicy:
    """Return an untrained policy with its bottleneck.

    :param shapes: Of the observations, by key
    :param action_dim: A
    :param model: As in ``hyperparams/pretrain/model/``, with all sizes
    """
    settings: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in model.items()}
    latent_dim = settings.pop("latent_dim")
    policy = FlowPolicy(FlowPolicyConfig(shapes, action_dim, **settings))
    policy.bottleneck = Bottleneck(policy.context_dim, BottleneckConfig(latent_dim))
    return policy


def evaluate_checkpoint(
    checkpoint: Path, episodes: int, seed: int, device: str = "auto", subprocess: bool = False
) -> dict[str, Any]:
    """Evaluate both paths (through c and through the bottleneck's mean), with and without flow noise.

    Writes ``base_evaluation.json`` beside the checkpoint, as ``zprl evaluate`` does, and returns its content.
    """
    results = evaluate_base(checkpoint, episodes, seed, device, subprocess=subprocess)
    write_json(base_evaluation(checkpoint), results)
    print(table(results))
    print(f"Wrote {base_evaluation(checkpoint)}")
    return results


@hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name="config")
def _program(config: DictConfig) -> None:
    settings = plain(config)
    with processes() as group, locked(settings["output"]) if group.first else nullcontext():
        checkpoint = pretrain(settings, group)
    if group.first and settings["evaluation"]["episodes"]:
        if is_real(read_config(checkpoint)["env_id"]):
            print(f"A real robot is evaluated with a person beside it: zprl evaluate {checkpoint} --episodes 20")
            return
        evaluate_checkpoint(checkpoint, **settings["evaluation"], device=settings["device"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl pretrain``."""
    return run_program("pretrain", _program, argv)


if __name__ == "__main__":
    sys.exit(cli.main(["pretrain", *sys.argv[1:]]))
