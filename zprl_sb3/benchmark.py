"""Tasks x methods x seeds from one file: which runs there are, and what each takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml

from zprl_sb3 import base_policies
from zprl_sb3.base_policies import BasePolicy
from zprl_sb3.jobs import Job
from zprl_sb3.learners import ALGORITHMS, OURS
from zprl_sb3.settings import check_options, find_file, load_settings

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

    def base(self, task: str, policy: BasePolicy) -> Job:
        """Return the evaluation of a task's base policy."""
        result = self.output / task / "base" / "base_evaluation.json"
        command = ("evaluate", policy.checkpoint, "--episodes", self.episodes, "--output", str(result))
        return Job(f"{task}/base", result.parent, (command,), (result,), needs=policy.needs)

    def run(self, name: str, algo: str, policy: BasePolicy, seed: int, changes: list[str]) -> Job:
        """Return a run, if its settings fit."""
        settings = load_settings(f"{algo}.yml", policy.env_id, changes, policy.observation)
        check_options(settings)
        wanted = getattr(OURS.get(settings["learner"]), "objective", policy.objective)
        if policy.objective != wanted:
            how = "; a method may pretrain a policy of its own, see docs/benchmarks.md" if wanted == "diffusion" else ""
            raise PlanError(f"{name}: {algo} tunes a policy with objective {wanted}, not {policy.objective}{how}")
        folder = self.output / name
        train = ("train", "--algo", algo, "--policy", policy.checkpoint, "--output", str(folder), "--seed", str(seed))
        evaluate = ("evaluate", str(folder), "--episodes", self.episodes)
        commands = [(*train, *(("--set", *changes) if changes else ())), evaluate]
        results = [folder / "evaluation.json"]
        if self.zero_noise and settings["steering"] != "noise":
            commands.append((*evaluate, "--noise", "zero"))
            results.append(folder / "evaluation_zero_noise.json")
        return Job(name, folder, tuple(commands), tuple(results), settings["n_timesteps"], policy.needs)


def read_plan(file: str | Path, output: str | Path) -> list[Job]:
    """Return the runs of a benchmark, with everything checked that can be before the first is started.

    :param file: A path, or one of the package's (``ablations/scale``). YAML: ``tasks`` (name: {policy or base, set},
        with ``base`` as :func:`zprl_sb3.base_policies.to_be_made` takes it), ``methods`` (name: {algo, set, pretrain};
        where there is no algo, the name is one; with ``pretrain``, changes of how the task's base policy is pretrained,
        a method has a base policy of its own), ``seeds``, ``set`` (settings of all runs), ``episodes`` of the final
        evaluations, ``zero_noise`` for a second one without flow noise
    :param output: Folder of the benchmark
    :return: Each after those that it needs
    :raises FileNotFoundError: If there is no such file
    :raises PlanError: If a key, method or setting is unknown, or something is missing
    :raises CheckpointError: If a policy cannot be read
    :raises ValueError: If a setting is not for the method
    """
    file = find_file(file)
    table = _read(file)
    common = table.get("set", []), str(table.get("episodes", 200)), table.get("zero_noise", True)
    plan = _Plan(Path(output), *common)
    tasks = _tables(table["tasks"], f"{file}: tasks", {"policy", "base", "set"})
    methods = _tables(table["methods"], f"{file}: methods", {"algo", "set", "pretrain"})
    jobs: dict[str, Job] = {}
    for task, about in tasks.items():
        base = _policy(about, plan.output, f"{file}: task {task}")
        jobs |= {job.name: job for job in (*base.jobs, plan.base(task, base))}
        for method, how in methods.items():
            algo = how.get("algo", method)
            if algo not in ALGORITHMS:
                raise PlanError(f"{file}: method {method} is none of {', '.join(ALGORITHMS)}: say which as its algo")
            changes = [*plan.changes, *about.get("set", []), *how.get("set", [])]
            policy = base
            if "pretrain" in how:
                policy = _own_policy(about, how["pretrain"], plan.output, f"{file}: {task}, {method}")
                jobs |= {job.name: job for job in policy.jobs}
            runs = [plan.run(f"{task}/{method}-{seed}", algo, policy, seed, changes) for seed in table["seeds"]]
            jobs |= {job.name: job for job in runs}
    return list(jobs.values())


def _policy(about: dict[str, Any], output: Path, where: str) -> BasePolicy:
    if len({"policy", "base"} & set(about)) != 1:
        raise PlanError(f"{where} needs a policy, or a base to make one of (and not both)")
    if "policy" in about:
        return base_policies.given(about["policy"])
    base = _tables({"base": about["base"]}, where, base_policies.KEYS)["base"]
    if "env" not in base:
        raise PlanError(f"{where}: base needs an env, as in {{env: zprl/Can-v0}}")
    try:
        return base_policies.to_be_made(base, output)
    except (ValueError, KeyError, FileNotFoundError, gym.error.Error) as error:
        raise PlanError(f"{where}: base: {error.args[0] if error.args else error}") from error


def _own_policy(about: dict[str, Any], pretrain: Any, output: Path, where: str) -> BasePolicy:
    """Return a method's own base policy: the task's, pretrained otherwise on the same demonstrations."""
    if "base" not in about:
        raise PlanError(f"{where} pretrains a policy of its own, which needs a task with a base, not with a policy")
    base = dict(about["base"])
    return _policy({"base": base | {"pretrain": _joined(base.get("pretrain", []), pretrain)}}, output, where)


def _joined(first: Any, second: Any) -> Any:
    return [*first, *second] if isinstance(first, list) and isinstance(second, list) else second


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
