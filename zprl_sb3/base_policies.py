"""Base policies of a benchmark: one that is there, or demonstrations and pretraining as jobs that others wait for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from zprl_sb3.checkpoint import CONFIG, read_config
from zprl_sb3.files import slug
from zprl_sb3.jobs import Job
from zprl_sb3.policy import FlowPolicyConfig
from zprl_sb3.pretrain.configuration import compose
from zprl_sb3.robot_envs.collection import family_of
from zprl_sb3.robot_envs.dapg import load_expert
from zprl_sb3.settings import load_settings

LONGEST = 120  # characters of a folder's name
KEYS = {"env", "demos", "collect", "pretrain"}


@dataclass(frozen=True)
class BasePolicy:
    """A task's base policy.

    :param checkpoint: Its folder, which may be still to be made
    :param env_id: Gymnasium id
    :param observation: ``state``, ``image`` or None
    :param objective: ``flow`` or ``diffusion``; None of a checkpoint that is not of ``zprl pretrain``
    :param jobs: What makes it, in this order
    """

    checkpoint: str
    env_id: str
    observation: str | None
    objective: str | None
    jobs: tuple[Job, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The job that whoever uses the policy has to wait for."""
        return tuple(job.name for job in self.jobs[-1:])


def given(checkpoint: str) -> BasePolicy:
    """Return a policy that is there.

    :raises CheckpointError: If it cannot be read
    """
    config = read_config(checkpoint)
    observation = config.get("env_kwargs", {}).get("observation")
    objective = config["policy"].get("objective", FlowPolicyConfig.objective) if "policy" in config else None
    return BasePolicy(checkpoint, config["env_id"], observation, objective)


def to_be_made(how: Mapping[str, Any], output: Path) -> BasePolicy:
    """Return a policy that ``zprl collect`` and ``zprl pretrain`` make below a benchmark's folder.

    What is not said is as ``hyperparams/quickstart.yml`` has it for the environment. The folders are named after what
    is said, so that tasks with the same demonstrations share these, and tasks with the same policy that.

    :param how: ``env``, and perhaps ``demos`` (how many), ``collect`` and ``pretrain`` (changes of settings)
    :param output: The benchmark's folder
    :raises ValueError: If a value is of another kind, a setting is unknown, or a file holds no expert policy
    :raises FileNotFoundError: If the demonstrations need an expert policy that is not there
    :raises gymnasium.error.Error: If there is no such environment
    """
    env_id = str(how["env"])
    family_of(env_id)
    own = {key: _changes(how.get(key, []), key) for key in ("collect", "pretrain")}
    settings = load_settings("quickstart.yml", env_id, [f"demos={how['demos']}"] if "demos" in how else [])
    collect, pretrain = ([*settings[key], *own[key]] for key in own)
    collection = load_settings("collect.yml", env_id, collect)
    if "expert" in collection:  # the one thing that a collection needs and the package does not have
        load_expert(collection["expert"])
    name = _folder([env_id.rpartition("/")[2], str(settings["demos"]), *own["collect"]])
    seed = str(settings["base_seed"])
    demos = _demonstrations(name, output, [env_id, str(settings["demos"]), seed], collect)
    policy, objective = _policy(_folder([name, *own["pretrain"]]), output, demos, [*pretrain, f"seed={seed}"])
    return BasePolicy(str(policy.results[0].parent), env_id, collection["observation"], objective, (demos, policy))


def _folder(parts: Sequence[str]) -> str:
    """Return a name of some parts, as long as file systems take."""
    name = slug("-".join(parts))
    return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{sha256(name.encode()).hexdigest()[:8]}"


def _changes(value: Any, key: str) -> Sequence[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{key} is a list of changes of settings, as in [key=value], not {value!r}")
    return value


def _demonstrations(name: str, output: Path, what: Sequence[str], changes: Sequence[str]) -> Job:
    name = f"demonstrations/{name}"
    file = output / name / "demos.hdf5"
    options = [text for pair in zip(("--env", "--episodes", "--seed"), what, strict=True) for text in pair]
    command = ("collect", *options, "--output", str(file), *(("--set", *changes) if changes else ()))
    return Job(name, file.parent, (command,), (file,))


def _policy(name: str, output: Path, demos: Job, changes: Sequence[str]) -> tuple[Job, str]:
    """Return the job, and the objective of what it makes."""
    name = f"policies/{name}"
    folder = output / name
    # Evaluated as all base policies are, by a job of the task: what only needs the policy does not wait for that.
    overrides = [*changes, f"demos='{demos.results[0]}'", f"output='{folder}'", "evaluation.episodes=0"]
    objective = compose(overrides=overrides)["model"].get("objective", FlowPolicyConfig.objective)
    job = Job(name, folder, (("pretrain", *overrides),), (folder / "policy" / CONFIG,), needs=(demos.name,))
    return job, objective
