"""Tasks x methods x seeds from one file: which runs there are, and what each takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from zprl_sb3.checkpoint import read_config
from zprl_sb3.jobs import Job
from zprl_sb3.learners import ALGORITHMS
from zprl_sb3.settings import check_options, load_settings

KEYS = {"tasks", "methods", "seeds", "set", "episodes", "zero_noise"}


class PlanError(ValueError):
    """A benchmark's file that cannot be run; the message says why and where."""


@dataclass(frozen=True)
class _Plan:
    """What all runs have in common."""

    output: Path
    changes: list[str]
    episodes: str
    zero_noise: bool

    def base(self, task: str, policy: str) -> Job:
        """Return the evaluation of a task's base policy."""
        result = self.output / task / "base" / "base_evaluation.json"
        command = ("evaluate", policy, "--episodes", self.episodes, "--output", str(result))
        return Job(f"{task}/base", result.parent, (command,), (result,))

    def job(self, name: str, algo: str, policy: str, seed: int, changes: list[str]) -> Job:
        """Return a run, if its settings fit."""
        config = read_config(policy)
        observation = config.get("env_kwargs", {}).get("observation")
        settings = load_settings(f"{algo}.yml", config["env_id"], changes, observation)
        check_options(settings)
        folder = self.output / name
        train = ("train", "--algo", algo, "--policy", policy, "--output", str(folder), "--seed", str(seed))
        evaluate = ("evaluate", str(folder), "--episodes", self.episodes)
        commands = [(*train, *(("--set", *changes) if changes else ())), evaluate]
        results = [folder / "evaluation.json"]
        if self.zero_noise and settings["steering"] != "noise":
            commands.append((*evaluate, "--noise", "zero"))
            results.append(folder / "evaluation_zero_noise.json")
        return Job(name, folder, tuple(commands), tuple(results), settings["n_timesteps"])


def read_plan(file: str | Path, output: str | Path) -> list[Job]:
    """Return the runs of a benchmark, with everything checked that can be before the first is started.

    :param file: YAML: ``tasks`` (name: {policy, set}), ``methods`` (name: {algo, set}; where there is no algo, the name
        is one), ``seeds``, ``set`` (settings of all runs), ``episodes`` of the final evaluations, ``zero_noise`` for a
        second one without flow noise
    :param output: Folder of the benchmark
    :raises PlanError: If a key, method or setting is unknown, or something is missing
    :raises CheckpointError: If a policy cannot be read
    :raises ValueError: If a setting is not for the method
    """
    table = _read(Path(file))
    common = table.get("set", []), str(table.get("episodes", 200)), table.get("zero_noise", True)
    plan = _Plan(Path(output), *common)
    tasks = _tables(table["tasks"], f"{file}: tasks", {"policy", "set"})
    methods = _tables(table["methods"], f"{file}: methods", {"algo", "set"})
    jobs: list[Job] = []
    for task, about in tasks.items():
        if "policy" not in about:
            raise PlanError(f"{file}: task {task} has no policy")
        jobs.append(plan.base(task, about["policy"]))
        for method, how in methods.items():
            algo = how.get("algo", method)
            if algo not in ALGORITHMS:
                raise PlanError(f"{file}: method {method} is none of {', '.join(ALGORITHMS)}: say which as its algo")
            changes = [*plan.changes, *about.get("set", []), *how.get("set", [])]
            for seed in table["seeds"]:
                jobs.append(plan.job(f"{task}/{method}-{seed}", algo, about["policy"], seed, changes))
    return jobs


def _read(file: Path) -> dict[str, Any]:
    try:
        table = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise PlanError(f"{file} is not YAML: {error}") from error
    if not isinstance(table, dict) or not KEYS >= set(table) >= {"tasks", "methods", "seeds"}:
        raise PlanError(f"{file} needs tasks, methods and seeds, and knows {', '.join(sorted(KEYS))} only")
    return table


def _tables(value: Any, where: str, keys: set[str]) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(table or {}, dict) for table in value.values()):
        raise PlanError(f"{where} is a table of tables, as in `zprl: {{}}`")
    for name, table in value.items():
        if unknown := set(table or {}) - keys:
            raise PlanError(f"{where}: {name} has no {', '.join(sorted(unknown))}; known are {', '.join(sorted(keys))}")
    return {str(name): table or {} for name, table in value.items()}
