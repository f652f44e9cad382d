"""``zprl benchmark``: what a plan asks for, that failures stay alone, and that nothing is run twice or lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import psutil
import pytest
import torch as th
import yaml

from experts import expert_arrays
from programs import TINY, TINY_BASE
from zprl_sb3.benchmark import PlanError, read_plan
from zprl_sb3.checkpoint import CheckpointError, read_config
from zprl_sb3.files import read_rows
from zprl_sb3.jobs import Job, JobFailed
from zprl_sb3.learners import ALGORITHMS
from zprl_sb3.locks import holder
from zprl_sb3.report import read_run
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.benchmark import Slots, benchmark

PUSH = {"env": "zprl/Push-v0"}


@pytest.fixture
def plan(tmp_path: Path, toy_policy: Path) -> Any:
    """Write a plan, changed as asked, and return its path."""

    def write(**changes: Any) -> Path:
        table = {
            "tasks": {"reach": {"policy": str(toy_policy)}},
            "methods": {"zprl": {}, "po_dec": {"set": ["algorithm.progressive=10"]}},
            "seeds": [0, 1],
            "set": TINY,
            "episodes": 2,
        }
        (tmp_path / "plan.yml").write_text(yaml.safe_dump(table | changes, sort_keys=False))
        return tmp_path / "plan.yml"

    return write


def test_a_plan_is_every_task_with_every_method_and_seed(plan: Any, tmp_path: Path, toy_policy: Path) -> None:
    methods = {"zprl": {}, "mine": {"algo": "dsrl", "set": ["scale=0.7"]}}
    jobs = read_plan(plan(methods=methods, zero_noise=True), tmp_path / "out")
    assert [job.name for job in jobs] == ["reach/base", "reach/zprl-0", "reach/zprl-1", "reach/mine-0", "reach/mine-1"]
    base, zprl, *_, mine = jobs
    assert base.results == (tmp_path / "out" / "reach" / "base" / "base_evaluation.json",)
    folder = str(tmp_path / "out" / "reach" / "zprl-0")
    train = ("train", "--algo", "zprl", "--policy", str(toy_policy), "--output", folder, "--seed", "0", "--set", *TINY)
    assert zprl.commands == (
        train,
        ("evaluate", folder, "--episodes", "2"),
        ("evaluate", folder, "--episodes", "2", "--noise", "zero"),
    )
    assert zprl.n_timesteps == 60
    assert mine.commands[0][:3] == ("train", "--algo", "dsrl")
    assert mine.commands[0][-1] == "scale=0.7"
    assert len(mine.results) == 1  # without noise there is nothing that it steers
    assert len(read_plan(plan(zero_noise=False), tmp_path)[1].results) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"seed": [0]}, PlanError, "needs tasks, methods and seeds, and knows episodes, methods"),
        ({"tasks": {"reach": {}}}, PlanError, "task reach needs a policy, or a base to make one of"),
        ({"tasks": {"reach": {"policy": "x", "base": {}}}}, PlanError, "and not both"),
        ({"tasks": {"reach": {"base": {}}}}, PlanError, "task reach: base needs an env"),
        ({"tasks": {"reach": {"base": {"enf": "x"}}}}, PlanError, "base has no enf; known are collect, demos, env"),
        ({"tasks": {"reach": {"base": PUSH | {"demos": "x"}}}}, PlanError, "task reach: base: .*'demos' is a whole"),
        ({"tasks": {"reach": {"base": PUSH | {"collect": "x"}}}}, PlanError, "collect is a list of changes"),
        ({"tasks": {"reach": {"base": PUSH | {"collect": ["x=1"]}}}}, PlanError, "unknown setting 'x'"),
        ({"tasks": {"reach": {"base": PUSH | {"pretrain": ["model.d=1"]}}}}, PlanError, "base: Could not override"),
        ({"tasks": {"reach": {"base": {"env": "zprl/Pish-v0"}}}}, PlanError, "base: .*Pish"),
        ({"tasks": {"reach": {"base": {"env": "CartPole-v1"}}}}, PlanError, "no scripted demonstrator for CartPole"),
        ({"tasks": ["reach"]}, PlanError, "tasks is a table of tables"),
        ({"methods": {"best": {}}}, PlanError, "method best is none of zprl, po_dec"),
        ({"methods": {"zprl": {"sets": []}}}, PlanError, "zprl has no sets; known are algo, pretrain, set"),
        ({"methods": {"zprl": {"set": ["scales=1"]}}}, KeyError, "unknown setting 'scales'"),
        ({"tasks": {"reach": {"policy": "nowhere"}}}, CheckpointError, "nowhere"),
    ],
)
def test_a_plan_that_cannot_be_run_is_refused_before_anything_runs(
    plan: Any, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_plan(plan(**changes), tmp_path / "out")
    (tmp_path / "plan.yml").write_text("tasks: [")
    with pytest.raises(PlanError, match="is not YAML"):
        read_plan(tmp_path / "plan.yml", tmp_path / "out")


def test_what_makes_a_base_policy_is_shared_and_waited_for(plan: Any, tmp_path: Path) -> None:
    few = PUSH | {"demos": 5, "collect": ["max_episode_steps=60"]}
    tasks = {
        "d8": {"base": few | {"pretrain": ["model.latent_dim=8"]}},
        "d4": {"base": few | {"pretrain": ["model.latent_dim=4"]}},
        "again": {"base": few | {"pretrain": ["model.latent_dim=4"]}},
        "usual": {"base": PUSH},
    }
    out = tmp_path / "out"
    jobs = {job.name: job for job in read_plan(plan(tasks=tasks, methods={"zprl": {}}, seeds=[0]), out)}
    demos, usual = "demonstrations/Push-v0-5-max_episode_steps-60", "demonstrations/Push-v0-100"
    policies = {task: f"policies/Push-v0-5-max_episode_steps-60-model.latent_dim-{task[1]}" for task in ("d8", "d4")}
    policies |= {"again": policies["d4"], "usual": "policies/Push-v0-100"}
    runs = [f"{task}/{run}" for task in tasks for run in ("base", "zprl-0")]
    assert {*jobs} == {demos, usual, *policies.values(), *runs}
    assert {name: job.needs for name, job in jobs.items()} == {
        demos: (),
        usual: (),
        **{name: (usual if name.endswith("100") else demos,) for name in policies.values()},
        **{run: (policies[run.partition("/")[0]],) for run in runs},
    }
    places = list(jobs)
    assert all(places.index(need) < places.index(name) for name, job in jobs.items() for need in job.needs)

    file, folder = out / demos / "demos.hdf5", out / policies["d8"]
    numbers = ("--env", "zprl/Push-v0", "--episodes", "5", "--seed", "0")
    assert jobs[demos].commands == (("collect", *numbers, "--output", str(file), "--set", "max_episode_steps=60"),)
    places_and_seed = ("seed=0", f"demos='{file}'", f"output='{folder}'", "evaluation.episodes=0")
    changes = ("model=state", "training=short", "model.latent_dim=8", *places_and_seed)
    assert jobs[policies["d8"]].commands == (("pretrain", *changes),)
    assert jobs["d8/zprl-0"].commands[0][3:5] == ("--policy", str(folder / "policy"))
    assert jobs["d8/base"].commands[0][1] == str(folder / "policy")


def test_a_base_policy_without_an_entry_in_the_quickstart_has_its_default(plan: Any, tmp_path: Path) -> None:
    jobs = read_plan(plan(tasks={"drawer": {"base": {"env": "zprl/DrawerOpen-v0"}}}), tmp_path)
    assert jobs[0].commands[0][1:5] == ("--env", "zprl/DrawerOpen-v0", "--episodes", "100")


@pytest.mark.parametrize(
    ("name", "runs"), [("scale", 15), ("latent_dim", 18), ("demos", 12), ("beta", 9), ("resemb", 9), ("options", 54)]
)
def test_ablations_have_names(name: str, runs: int, tmp_path: Path) -> None:
    jobs = read_plan(f"ablations/{name}", tmp_path)
    trainings = [job for job in jobs if job.n_timesteps]
    assert len(trainings) == runs
    assert len({job.commands[0] for job in trainings}) == runs
    assert {job.name[-2:] for job in trainings} == {"-0", "-1", "-2"}


def test_a_method_may_have_a_base_policy_of_its_own(plan: Any, tmp_path: Path) -> None:
    tasks = {"push": {"base": PUSH | {"pretrain": ["training.steps=50"]}}}
    methods = {
        "zprl": {},
        "dppo": {"pretrain": ["+model.objective=diffusion"], "set": ["n_envs=3", "algorithm.n_steps=5"]},
    }
    changes = [change for change in TINY if not change.startswith("algorithm.")]
    file = plan(tasks=tasks, methods=methods, seeds=[0], set=changes)
    jobs = {job.name: job for job in read_plan(file, tmp_path / "out")}
    flow, diffusion = (name for name in jobs if name.startswith("policies/"))
    assert jobs[flow].needs == jobs[diffusion].needs == ("demonstrations/Push-v0-100",)
    assert {jobs[name].needs for name in ("push/base", "push/zprl-0")} == {(flow,)}
    assert jobs["push/dppo-0"].needs == (diffusion,)
    commands = [jobs[name].commands[0] for name in (flow, diffusion)]
    assert set(commands[1]) - set(commands[0]) >= {"+model.objective=diffusion"}
    assert "training.steps=50" in commands[1]
    with pytest.raises(PlanError, match=r"push, dppo: base: .*pretrain is a list"):
        read_plan(plan(tasks=tasks, methods={"dppo": {"pretrain": "x"}}), tmp_path / "out")
    with pytest.raises(PlanError, match="reach, dppo pretrains a policy of its own, which needs a task with a base"):
        read_plan(plan(methods={"dppo": {"pretrain": []}}), tmp_path / "out")


def test_a_method_for_another_kind_of_policy_is_refused_at_once(plan: Any, tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match="reach/dppo-0: dppo tunes a policy with objective diffusion, not flow; a method"
    ):
        read_plan(plan(methods={"dppo": {}}, set=["n_envs=2"]), tmp_path / "out")


def test_the_papers_figure_3_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match=r"door: base: There is no expert policy downloads/door-v0\.pickle"):
        read_plan("benchmarks/figure3", tmp_path)
    (tmp_path / "downloads").mkdir()
    for task in ("door", "hammer", "pen"):
        with open(f"downloads/{task}-v0.pickle", "wb") as file:
            np.savez(file, **expert_arrays())  # type: ignore[arg-type]
    jobs = read_plan("benchmarks/figure3", tmp_path)
    runs = {job.name: job for job in jobs if job.n_timesteps}
    tasks, methods = ({name.split("/")[1 - k].removesuffix("-0").removesuffix("-1") for name in runs} for k in (1, 0))
    assert len(tasks) == 8
    assert methods == set(ALGORITHMS) - {"tqc", "trpo"}
    assert len(runs) == 2 * len(tasks) * len(methods)
    needed = {method: runs[f"can/{method}-0"].needs for method in methods}
    assert all((needs != needed["zprl"]) == (method == "dppo") for method, needs in needed.items())


def test_a_path_goes_before_a_name_of_the_packages(plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ablations").mkdir()
    plan().rename(tmp_path / "ablations" / "scale.yml")
    assert read_plan("ablations/scale.yml", "out")[0].name == "reach/base"
    assert read_plan("ablations/demos.yml", "out")[0].name == "demonstrations/Can-v0-25"
    with pytest.raises(FileNotFoundError, match="No settings file ablations/gamma"):
        read_plan("ablations/gamma", "out")


def _write_result(job: Job) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    for result in job.results:
        result.write_text("{}")


def test_jobs_wait_for_what_they_need_and_fail_with_it(tmp_path: Path) -> None:
    def job(name: str, *needs: str) -> Job:
        return Job(name, tmp_path / name, (), (tmp_path / name / "result.json",), needs=needs)

    jobs = [job("demos"), job("good", "demos"), job("bad", "demos"), job("a", "good"), job("b", "bad"), job("c", "b")]
    started: list[str] = []

    def run(job: Job, stop: Event) -> None:
        assert all((tmp_path / need / "result.json").is_file() for need in job.needs)
        started.append(job.name)
        if job.name == "bad" and broken:
            raise JobFailed("it broke")
        _write_result(job)

    broken = True
    assert benchmark(jobs, run, at_once=4) == {
        "bad": "it broke",
        "b": "not started, because bad failed",
        "c": "not started, because b failed",
    }
    assert started[0] == "demos"
    assert sorted(started) == ["a", "bad", "demos", "good"]
    # The same again: only what failed, and no demonstrations, which nobody needs who is done.
    broken, _ = False, started.clear()
    assert benchmark(jobs, run, at_once=4) == {}
    assert started == ["bad", "b", "c"]
    (tmp_path / "demos" / "result.json").unlink()
    started.clear()
    assert benchmark(jobs, run, at_once=4) == {}
    assert not started


@pytest.mark.slow
def test_an_ablation_of_the_base_policy_from_one_command(plan: Any, tmp_path: Path, zprl: Any) -> None:
    pytest.importorskip("metaworld")
    small = [*TINY_BASE, "training.steps=20"]
    few = PUSH | {"demos": 3, "collect": ["max_episode_steps=40"]}
    tasks = {
        "d2": {"base": few | {"pretrain": [*small, "model.latent_dim=2"]}},
        "broken": {"base": few | {"pretrain": [*small, "model.horizon=7"]}},
    }
    short = [*TINY, "n_timesteps=20", "n_envs=1", "eval_episodes=1"]
    settings = plan(tasks=tasks, methods={"zprl": {}}, seeds=[0], set=short, episodes=1, zero_noise=False)
    command, out = ["benchmark", settings, "--output", tmp_path / "out", "--jobs", "2"], tmp_path / "out"
    code, text, err = zprl(*command)
    assert code == 1
    assert err.count("not started, because policies/") == 2
    assert "horizon 7 must be a multiple of 2" in err
    unfinished = [job.name for job in read_plan(settings, out) if not job.finished()]
    assert [name.partition("/")[0] for name in unfinished] == ["policies", "broken", "broken"]
    assert text.count("demonstrations/Push-v0-3-max_episode_steps-40: running") == 1
    assert read_config(out / "d2" / "zprl-0" / "policy")["bottleneck"]["latent_dim"] == 2
    assert read_run(out / "d2" / "zprl-0").base_facts["demonstrations"] == 3
    assert (out / "report" / "report.html").is_file()
    code, text, _ = zprl(*command)
    assert (code, text.count(": running")) == (1, 1)


def results(folder: Path) -> dict[str, Any]:
    """Return what the runs of a benchmark have left, without their place."""
    return {
        str(file.relative_to(folder)): read_rows(file)
        if file.suffix == ".csv"
        else file.read_text().replace(str(folder), "")
        for file in sorted([*folder.rglob("evaluations.csv"), *folder.rglob("*evaluation*.json")])
    }


def assert_as_uninterrupted(settings: Path, out: Path, whole: Path) -> None:
    """Compare with the same commands, one after another, in this process: it has imported everything already."""
    for job in read_plan(settings, whole):
        for command in job.commands:
            assert cli.main(list(command)) == 0
    there, expected = results(out), results(whole)
    assert there.keys() == expected.keys()
    for job in read_plan(settings, out):
        assert job.finished()
        mine = [name for name in there if name.startswith(f"{job.name}/")]
        if "Going on from" not in (job.folder / "log.txt").read_text():
            assert {name: there[name] for name in mine} == {name: expected[name] for name in mine}
            continue
        rows, wanted = (each[f"{job.name}/evaluations.csv"] for each in (there, expected))
        assert [row["chunks"] for row in rows] == [row["chunks"] for row in wanted]
        assert rows[0] == wanted[0]  # from the snapshot on it has had other episodes


def training(folder: Path) -> psutil.Process:
    """Return the process that trains in a folder, once it has left a snapshot."""
    _wait_for((folder / "snapshot").is_dir)
    return next(
        process
        for process in psutil.process_iter(["cmdline"])
        if {"zprl_sb3.scripts.cli", "train", str(folder)} <= set(process.info["cmdline"] or ())
    )


FOUR = {"set": [*TINY, "n_timesteps=120", "eval_freq=60"], "seeds": [0, 1], "zero_noise": False}


@pytest.mark.slow
@pytest.mark.usefixtures("with_toy_task")
def test_what_was_killed_or_crashed_is_finished_by_the_same_command(
    plan: Any, tmp_path: Path, zprl: Any, start: Any
) -> None:
    settings, out = plan(**FOUR), tmp_path / "out"
    command = ["benchmark", settings, "--output", out, "--jobs", "2"]
    jobs = read_plan(settings, out)

    def finished() -> set[str]:
        return {job.name for job in jobs if job.finished()}

    process = start(*command)
    _wait_for((out / "reach" / "zprl-1" / "snapshot").is_dir)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=300)
    assert not alive
    first, before = finished(), results(out)
    assert 0 < len(first) < len(jobs)

    crash = Thread(target=lambda: training(out / "reach" / "po_dec-1").kill())
    crash.start()
    code, text, err = zprl(*command)
    crash.join()
    assert code == 1
    assert "reach/po_dec-1 failed: zprl train ended with -9: " in err
    assert finished() == {job.name for job in jobs} - {"reach/po_dec-1"}
    assert not [name for name in first if f"{name}: running" in text]
    assert (out / "report" / "report.png").is_file()

    code, text, _ = zprl(*command)
    assert (code, text.count(": running")) == (0, 1)
    assert {name: what for name, what in results(out).items() if str(Path(name).parent) in first} == {
        name: what for name, what in before.items() if str(Path(name).parent) in first
    }
    assert_as_uninterrupted(settings, out, tmp_path / "whole")


# In a process of its own: Ray forks, which Linux refuses to a process that has asked for more memory than there is. The
# simulations of other tests, most of whose memory is never touched, add up to 40 GB.
CLUSTER = """
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
cluster.add_node(**node)
print(cluster.address, flush=True)
input()
cluster.shutdown()
"""


@pytest.fixture
def cluster(with_toy_task: None) -> Iterator[str]:
    """Start two nodes of Ray with one CPU each, and return their address."""
    pytest.importorskip("ray")
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate("\n", timeout=300)


@pytest.mark.slow
def test_a_killed_worker_of_ray_loses_nothing(plan: Any, tmp_path: Path, cluster: str, start: Any) -> None:
    settings, out = plan(**FOUR, methods={"zprl": {}}), tmp_path / "out"
    process = start("benchmark", settings, "--output", out, "--engine", "ray", "--ray-address", cluster)
    run = training(out / "reach" / "zprl-1")
    worker = run.parent()
    assert worker is not None
    assert worker.name().startswith("ray::")
    worker.kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "Going on from" in (out / "reach" / "zprl-1" / "log.txt").read_text()
    assert "SystemExit; the same command goes on" in (out / "reach" / "zprl-1" / "log.txt").read_text()
    assert_as_uninterrupted(settings, out, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.usefixtures("with_toy_task")
@pytest.mark.parametrize(("number", "engine"), [(signal.SIGINT, "local"), (signal.SIGTERM, "ray")])
def test_a_signal_lets_the_runs_save_and_end(
    plan: Any, tmp_path: Path, start: Any, number: int, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = plan(set=[*TINY, "n_timesteps=100000"], methods={"zprl": {}}, seeds=[0])
    process = start("benchmark", settings, "--output", tmp_path / "out", "--jobs", "2", "--engine", engine)
    run = tmp_path / "out" / "reach" / "zprl-0"
    _wait_for((run / "snapshot").is_dir)
    os.kill(process.pid, number)
    assert process.wait(timeout=300) == (143 if number == signal.SIGTERM else 130)
    assert "goes on from" in (run / "log.txt").read_text()
    assert holder(run) is None


@pytest.mark.parametrize(
    ("visible", "gpus"), [(None, ["0", "1"]), ("3,5", ["3", "5"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])]
)
def test_gpus_are_those_that_a_scheduler_has_given(
    visible: str | None, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(th.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Slots(3)._gpus == gpus


def test_an_address_needs_the_engine_that_it_is_of(plan: Any, tmp_path: Path, zprl: Any) -> None:
    code, _, err = zprl("benchmark", plan(), "--output", tmp_path / "out", "--ray-address", "auto")
    assert (code, err) == (1, "zprl benchmark: --ray-address goes with --engine ray\n")


def _wait_for(condition: Any) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
