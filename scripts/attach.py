"""``zprl attach``: a frozen policy of any kind -> the same with a bottleneck. Settings in ``hyperparams/pretrain/``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from zprl_sb3.adapters import FrozenPolicy, adapter_of
from zprl_sb3.attached import TRUSTED, Base, save_attached, trust
from zprl_sb3.files import recovered
from zprl_sb3.locks import locked
from zprl_sb3.pretrain.attaching import attach_bottleneck, check_demonstrations, default_training
from zprl_sb3.pretrain.configuration import CONFIG_MODULE, by_task, plain, run_program
from zprl_sb3.pretrain.demonstrations import Demonstrations, load_demonstrations
from zprl_sb3.rollouts import record_rollouts
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import device_of, record_run, refuse_other_run
from zprl_sb3.scripts.pretrain import check_environment, evaluate_checkpoint


def attach(config: dict[str, Any]) -> Path:
    """Train a bottleneck on a frozen policy and return the folder of the checkpoint that refers to it.

    A checkpoint that holds a bottleneck keeps it, unless a ``latent_dim`` asks for another (but those of this package,
    which need no attaching: there it is always another).

    :param config: As ``hyperparams/pretrain/attach.yaml`` has it
    :raises DemonstrationError: If the demonstrations cannot be used
    :raises ValueError: If policy, demonstrations and environment do not fit each other, a setting does not fit, or the
        folder holds another run
    """
    output = Path(config["output"])
    options = {name: value for name, value in config["options"].items() if value is not None}
    config = config | {"options": options}
    base = Base(config["policy"], config["adapter"] or adapter_of(config["policy"]), options)
    trust(base)  # whoever names code in this command wants it to be run
    policy, fingerprint = _frozen(base, config["device"])
    demos, config = _demonstrations(policy, config)
    keeps = policy.bottleneck is not None and config["latent_dim"] is None
    settled = by_task({"latent_dim": config["latent_dim"]}, demos.env_id, demos.env_kwargs) | {"adapter": base.adapter}
    config = config | settled | {"training": by_task(config["training"], demos.env_id, demos.env_kwargs)}
    run = config | {"fingerprint": fingerprint, "dataset_sha256": demos.sha256}
    refuse_other_run(output / "pretrain.yml", run, ignore=("policy", "demos", "output", "device", "evaluation"))
    checkpoint = recovered(output / "policy")
    if checkpoint.is_dir():
        print(f"{checkpoint} is trained already; remove {output} to train it anew")
        return checkpoint
    check_demonstrations(demos, policy)
    policy.env_id = demos.env_id
    check_environment(demos, policy, needed=config["evaluation"]["episodes"] > 0)
    training = default_training(demos, config)
    record_run(output / "pretrain.yml", run)
    what = f"{base.path} ({base.adapter})"
    if keeps:
        print(f"{what} keeps the bottleneck that it was trained with (latent_dim=D trains another)")
    else:
        print(f"Attaching a bottleneck to {what} with {len(demos)} demonstrations; TensorBoard goes to {output}")
        attach_bottleneck(policy, demos, config["latent_dim"], training, output, config["validation_ratio"])
    facts = {"dataset_sha256": demos.sha256, "demonstrations": len(demos), "env_kwargs": demos.env_kwargs}
    save_attached(policy, checkpoint, base, fingerprint, **facts, training=config["training"])
    print(f"Wrote {checkpoint}, which needs {base.path} to stay where it is")
    if base.code() is not None:
        print(f"Other programs run your code only if you say so: export {TRUSTED}='{base.code()}'")
    return checkpoint


def _frozen(base: Base, device: str) -> tuple[FrozenPolicy, str]:
    """Return the policy, and its fingerprint before anything is attached."""
    policy = base.load()
    fingerprint = policy.fingerprint()
    if base.code() is not None and base.load().fingerprint() != fingerprint:  # a file's weights are always the same
        raise ValueError(f"{base.path} makes another policy each time: load its weights, or seed what it draws")
    return policy.to(device_of(device)), fingerprint


def _demonstrations(policy: FrozenPolicy, config: dict[str, Any]) -> tuple[Demonstrations, dict[str, Any]]:
    """Return the demonstrations, and the settings with the file that they are in."""
    config = config | {"demos": config["demos"] or str(_own_episodes(policy, config))}
    demos = load_demonstrations(config["demos"], config["observation"])
    return demos.select(config["mask"]) if config["mask"] else demos, config


def _own_episodes(policy: FrozenPolicy, config: dict[str, Any]) -> Path:
    """Return a file of episodes in which the policy acts itself; recorded now, unless that was done before."""
    if config["env"] is None:
        raise ValueError("Give demonstrations (demos=FILE), or an environment for the policy to act in (env=ID)")
    file = Path(config["output"]) / "rollouts.hdf5"
    if not recovered(file).is_file():
        print(f"Recording {config['rollouts']} episodes of the policy in {config['env']} into {file}", flush=True)
        record_rollouts(policy, config["env"], config["env_kwargs"], config["rollouts"], file)
    return file


@hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name="attach")
def _program(config: DictConfig) -> None:
    settings = plain(config)
    with locked(settings["output"]):
        checkpoint = attach(settings)
    if settings["evaluation"]["episodes"]:
        evaluate_checkpoint(checkpoint, **settings["evaluation"], device=settings["device"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl attach``."""
    return run_program("attach", _program, argv)


if __name__ == "__main__":
    sys.exit(cli.main(["attach", *sys.argv[1:]]))
