"""What several programs share: arguments, devices, and run folders that hold one run each. Imports no torch itself."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from importlib.metadata import distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from zprl_sb3.files import atomic_path, sha256
from zprl_sb3.settings import differences

SEEN = ("observation", "render_quality", "cameras")  # arguments of an environment that decide what a policy sees
PACKAGES = ("zprl-sb3", "torch", "stable-baselines3", "gymnasium", "numpy", "mujoco")

if TYPE_CHECKING:
    import torch as th

    from zprl_sb3.policy import SteerablePolicy


def new_parser(program: str, description: str | None, examples: str = "") -> argparse.ArgumentParser:
    """Return an empty argument parser.

    :param program: ``"train"`` for ``zprl train``
    :param description: What it does
    :param examples: Printed below the arguments as they are
    """
    return argparse.ArgumentParser(
        f"zprl {program}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_settings(parser: argparse.ArgumentParser, default: str) -> None:
    """Add ``--config`` and ``--set``.

    :param parser: To this parser
    :param default: The file in ``hyperparams/``
    """
    parser.add_argument(
        "--config", default=default, metavar="FILE", help="file in hyperparams/, or a path; default: %(default)s"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings to change, dots for nested keys",
    )


def add_seed(parser: argparse.ArgumentParser, default: int = 0, text: str = "seed of everything") -> None:
    """Add ``--seed``."""
    parser.add_argument("--seed", type=at_least(0), default=default, help=f"{text}; default: %(default)s")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto; default: %(default)s")


def at_least(minimum: int) -> Callable[[str], int]:
    """Return an argument type: whole numbers from ``minimum`` on."""

    def whole_number(text: str) -> int:
        if int(text) < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, not {text}")
        return int(text)

    return whole_number


def cores() -> int:
    """Return how many cores of the processor this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_of(name: str) -> th.device:
    """Return the device of a name; ``auto`` is the GPU where there is one.

    :raises ValueError: If there is no such device
    """
    import torch as th

    if name == "auto":
        name = "cuda" if th.cuda.is_available() else "cpu"
    try:
        device = th.device(name)
        th.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # how torch says that it was built without CUDA
        raise ValueError(f"There is no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


def make_arguments(checkpoint: str | Path, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``gymnasium.make``: those of the policy's demonstrations, then the changes.

    :param checkpoint: The policy's
    :param changes: Further arguments
    :raises ValueError: If they change what the policy sees
    """
    from zprl_sb3.checkpoint import read_config

    recorded: dict[str, Any] = read_config(checkpoint).get("env_kwargs", {})
    for key in SEEN:
        if key in recorded and changes.get(key, recorded[key]) != recorded[key]:
            raise ValueError(
                f"The policy in {checkpoint} learned with {key}={recorded[key]!r} and would see other things with "
                f"{changes[key]!r}: leave {key} out, or pretrain on demonstrations made with it"
            )
    return {**recorded, **changes}


def run_policy(checkpoint: str | Path, settings: dict[str, Any], device: str) -> SteerablePolicy:
    """Return a policy as the settings of a run want it.

    :param checkpoint: The policy's
    :param settings: As ``hyperparams/zprl.yml`` has them; older runs have no ``sampling_steps`` and no ``openvino``
    :param device: ``cpu``, ``cuda`` or ``auto``
    :raises CheckpointError: If it cannot be read
    :raises ImportError: If OpenVINO is to compute it, which is not installed
    """
    from zprl_sb3.checkpoint import load_policy
    from zprl_sb3.openvino import with_openvino

    precision = settings.get("openvino")
    where = "cpu" if precision is not None and device == "auto" else device
    policy = load_policy(checkpoint, settings["chunk"], device_of(where), settings.get("sampling_steps"))
    return policy if precision is None else with_openvino(policy, precision)


def evaluation_envs(settings: dict[str, Any]) -> int:
    """Return in how many environments at once the settings of a run evaluate."""
    from zprl_sb3.evaluation import parallel_envs

    # In processes of their own each takes memory: no more of them than there are to train in.
    return parallel_envs(settings["eval_episodes"], *([settings["n_envs"]] if settings["subprocess"] else []))


def pretraining(checkpoint: str | Path) -> dict[str, Any]:
    """Return what ``zprl pretrain`` recorded beside a checkpoint, with ``demos`` where they are now.

    A relative path is looked for from here and from every folder above the checkpoint: runs may be moved as a whole.

    :raises ValueError: If nothing is recorded there
    """
    file = Path(checkpoint).resolve().parent / "pretrain.yml"
    if not file.is_file():
        raise ValueError(
            f"{file} is missing, which says how the policy was pretrained: give the folder that `zprl pretrain` made"
        )
    config = read_yaml(file)
    places = (folder / config["demos"] for folder in (Path(), *file.parents))
    return config | {"demos": str(next((place for place in places if place.is_file()), config["demos"]))}


def find_demonstrations(checkpoint: str | Path) -> tuple[Path, str | None]:
    """Return the file that a policy was pretrained on, and the mask of the episodes that were used, if any.

    :raises ValueError: If nothing says which it is, it is not there any more, or it has changed since
    """
    from zprl_sb3.checkpoint import read_config

    config = pretraining(checkpoint)
    demos = Path(config["demos"])
    if not demos.is_file():
        raise ValueError(f"{demos} is missing, from which the policy in {checkpoint} was pretrained")
    if sha256(demos) != read_config(checkpoint).get("dataset_sha256"):
        raise ValueError(f"{demos} is not what the policy in {checkpoint} was pretrained on: it has changed since")
    return demos, config["mask"]


def refuse_other_run(file: Path, settings: dict[str, Any], ignore: Sequence[str] = ()) -> None:
    """Check that the run that may be in a folder has the same settings.

    :param file: The YAML file in the run's folder that :func:`record_run` writes
    :param settings: All that determines the run
    :param ignore: Keys that may differ, dots for nested ones
    :raises ValueError: If another run is there, naming the settings that differ
    """
    if not file.is_file():
        return
    if changes := differences(read_yaml(file), settings, (*ignore, "versions")):
        raise ValueError(f"{file.parent} holds a run with other settings: {changes}. Choose another output folder")


def record_run(file: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a run, and the versions it runs with, into its folder.

    To be called once they have proved to work: a typing error must not claim the folder.
    """
    content = settings | {"versions": {name: version(name) for name in PACKAGES if _installed(name)}}
    with atomic_path(file) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def _installed(name: str) -> bool:
    return any(distributions(name=name))


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    :raises ValueError: If it is none
    """
    try:
        return dict(yaml.safe_load(file.read_text()))
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is damaged: not a YAML table") from error
