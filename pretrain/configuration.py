"""The settings of ``zprl pretrain``: Hydra's YAML in ``hyperparams/pretrain/``, and what goes with the task."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zprl_sb3.robot_envs.real.tasks import task_settings
from zprl_sb3.settings import load_settings

CONFIG_MODULE = "zprl_sb3.hyperparams.pretrain"
ERRORS = (HydraException, OmegaConfBaseException)


def compose(config_name: str = "config", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the configuration that ``zprl pretrain`` would get, as plain containers.

    :raises ValueError: If an override does not fit
    """
    try:
        with hydra.initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            return plain(hydra.compose(config_name, list(overrides)))
    except ERRORS as error:
        raise readable_error(error) from error


def plain(config: DictConfig) -> dict[str, Any]:
    """Return a configuration without Hydra's own part, as plain containers."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items() if key != "hydra"}


def readable_error(error: Exception, program: str = "pretrain") -> ValueError:
    """Return what Hydra complains of in a line.

    :param error: Hydra's
    :param program: The program that was called
    """
    reasons = [str(each).splitlines()[0] for each in (error, error.__cause__) if each is not None]
    if isinstance(error, OverrideParseException):
        reasons.append("""a value with "=" or brackets in it needs quotes, as in "policy='a=1.ckpt'\"""")
    return ValueError(f"{': '.join(reasons)} (`zprl {program} --help` shows all settings)")


def run_program(name: str, program: Callable[[], None], argv: Sequence[str] | None) -> int:
    """Run a program whose arguments Hydra reads, and return its exit code.

    :param name: ``"pretrain"`` for ``zprl pretrain``
    :param program: Decorated by ``hydra.main``
    :param argv: Its arguments; None: those of this process
    :raises ValueError: What Hydra complains of, in a line
    """
    if argv is not None:
        sys.argv = [f"zprl {name}", *argv]  # Hydra reads its arguments there
    os.environ["HYDRA_FULL_ERROR"] = "1"  # otherwise Hydra prints a traceback of its own and exits
    try:
        program()
    except ERRORS as error:
        raise readable_error(error, name) from error
    return 0


def by_task(settings: dict[str, Any], env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return settings of model or training with what is null in them as ``hyperparams/tasks.yml`` has it for the task.

    A real robot's task has it in its own file.

    :param settings: As in ``hyperparams/pretrain/model/`` or ``hyperparams/pretrain/training/``
    :param env_id: Gymnasium id
    :param env_kwargs: What the environment is made with
    """
    task = load_settings("tasks.yml", env_id, own=task_settings(env_id, env_kwargs or {}, "policy"))
    return {key: task.get(key) if value is None else value for key, value in settings.items()}


def loop_settings(training: dict[str, Any], windows: int) -> dict[str, Any]:
    """Return settings of training as the loop takes them: in steps, also where they are given in epochs.

    :param training: As in ``hyperparams/pretrain/training/``
    :param windows: Training windows
    :raises ValueError: If there are neither steps nor epochs
    """
    settings = {key: value for key, value in training.items() if key != "epochs"}
    if settings["steps"] is None:
        settings["steps"] = steps_of(training["epochs"], windows, settings["batch_size"])
    return settings


def steps_of(epochs: Any, windows: int, batch_size: int) -> int:
    """Return the gradient steps of some passes over the training windows.

    :param epochs: Passes, for instance 1000 or 0.5
    :param windows: Training windows
    :param batch_size: Windows per step
    :raises ValueError: If the number of passes is none
    """
    if not isinstance(epochs, (int, float)) or epochs <= 0:
        raise ValueError(f"training.epochs must be positive where training.steps is null, not {epochs!r}")
    return max(1, round(epochs * windows / batch_size))
