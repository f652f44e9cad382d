"""``zprl analyse``: what steering does to a policy, in pictures with their numbers (Figures 5 and 11 of the paper)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from stable_baselines3.common.type_aliases import PolicyPredictor
from tqdm import tqdm

from zprl_sb3 import analysis
from zprl_sb3 import analysis_figures as figures
from zprl_sb3.analysis_page import Analysis, write
from zprl_sb3.callbacks import MODEL
from zprl_sb3.diagnostics import steering_diagnostics
from zprl_sb3.evaluation import NoSteering, evaluate, parallel_envs
from zprl_sb3.files import recovered
from zprl_sb3.latents import OfflineLatents, offline_latents
from zprl_sb3.learners import SOE
from zprl_sb3.report import read_run
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import add_device, add_seed, at_least, make_arguments, new_parser, read_yaml
from zprl_sb3.scripts.evaluate import Loaded, load_steered
from zprl_sb3.seeds import FINAL_SEED
from zprl_sb3.smoothness import SMOOTHNESS
from zprl_sb3.wrappers import LatentSteering, make_vec_steering

FACTORS = (0.5, 1.0, 2.5)  # of the run's λ, as the paper's 0.1, 0.2 and 0.5 on square
CURVE = np.linspace(0.0, 3.0, 25)  # likewise

EXAMPLES = """examples:
  zprl analyse runs/can/zprl-0 --demonstrations runs/can/demos.hdf5 --output runs/can/analysis
  zprl analyse runs/can/zprl-0 --demonstrations runs/can/demos.hdf5 --scales 0.1 0.2 0.5 --output runs/can/analysis
  zprl analyse runs/can/zprl-0 --output runs/can/analysis    # without what needs demonstrations

Pictures (PNG), each with its numbers in a CSV file, and analysis.md, which shows them:
  maps        UMAP of c̃ and of actions, before and after steering at several λ (with demonstrations; extra `analysis`)
  shift       how far z̃ is from the demonstrations' z, and c̃ from c, against λ (with demonstrations)
  traces      where the base policy and the steered one send the hands from the same layouts
  smoothness  velocity, acceleration and jerk of these by checkpoint, from evaluations.csv
What cannot be drawn of a run is named in analysis.md, with the reason. A run that still trains is analysed as its last
snapshot has it."""


def analyse(
    run: str | Path,
    output: str | Path,
    demonstrations: str | Path | None = None,
    scales: Sequence[float] | None = None,
    episodes: int = figures.SHOWN,
    seed: int = FINAL_SEED,
    device: str = "auto",
) -> Path:
    """Write pictures of what steering does, their numbers, and ``analysis.md``, which is returned.

    :param run: Folder of ``zprl train``, finished or with a snapshot
    :param output: Folder to write to
    :param demonstrations: Those that the base policy learned from; None leaves out what needs them
    :param scales: λ of the maps; None: :data:`FACTORS` times the run's
    :param episodes: Layouts in which base and steered policy are traced
    :param seed: Of the first layout
    :param device: ``cpu``, ``cuda`` or ``auto``
    :raises FileNotFoundError: If there is no run, or no model in it yet
    :raises ReportError: If it has not evaluated yet
    :raises ImportError: If UMAP is needed and not installed
    :raises ValueError: If the run has no latent to analyse, or the demonstrations are of another task
    """
    run, output = Path(run), Path(output)
    if not (run / "run.yml").is_file():
        raise FileNotFoundError(f"{run} has no run.yml: it is not a run of `zprl train`")
    recorded, curve = read_yaml(run / "run.yml"), read_run(run).curve
    loaded, file = _load(run, recorded, device)
    if demonstrations is not None:
        _check_latent(loaded, recorded)
    found = Analysis(facts={"run": str(run), "model": str(file), "env_id": recorded["env_id"]})
    with _stages(2 if demonstrations is None else 5) as stage:
        if demonstrations is None:
            found.missing |= dict.fromkeys(("maps", "shift"), "no demonstrations were given (--demonstrations FILE)")
        else:
            stage("latents of the demonstrations")
            latents = offline_latents(demonstrations, loaded[1])
            found.facts |= {"demonstrations": str(demonstrations), "observations": len(latents)}
            _analyse_latents(loaded, latents, scales, found, stage)
        stage("rollouts")
        _trace(loaded, make_arguments(run / "policy", recorded["settings"]["env_kwargs"]), episodes, seed, found)
        stage("pictures")
        _add_smoothness(curve, found)
        return write(found, output)


def _load(run: Path, recorded: dict[str, Any], device: str) -> tuple[Loaded, Path]:
    if recorded["settings"].get("learner") == SOE:
        raise ValueError(f"{run} is of SOE, which retrains the base policy and steers nothing")
    files = run / "model.zip", recovered(run / "snapshot") / MODEL
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{run} has neither model.zip nor a snapshot yet (go on with it: `zprl train`)")
    return load_steered(file, run / "policy", recorded, "normal", device), file


def _check_latent(loaded: Loaded, recorded: dict[str, Any]) -> None:
    if not isinstance(loaded[2], LatentSteering):
        kind = recorded["settings"]["steering"]
        raise ValueError(
            f"This run steers the {kind}, not the latent: leave --demonstrations out for the other pictures"
        )
    analysis.check_umap()


@contextmanager
def _stages(count: int) -> Iterator[Any]:
    """Show a bar of so many stages; what is yielded names the one that begins."""
    begun = 0
    with tqdm(total=count, unit="stage", dynamic_ncols=True) as bar:

        def stage(name: str) -> None:
            nonlocal begun
            bar.update(begun - bar.n)
            bar.set_description(name)
            begun += 1

        yield stage
        bar.update(count - bar.n)


def _analyse_latents(
    loaded: Loaded, latents: OfflineLatents, scales: Sequence[float] | None, found: Analysis, stage: Any
) -> None:
    model, _, steering = loaded
    assert isinstance(steering, LatentSteering)
    own = steering.mean_scale
    scales = sorted(scales or [factor * own for factor in FACTORS])
    curve = sorted({0.0, own, *scales, *(float(each) for each in CURVE * max(own, scales[-1] / CURVE[-1]))})
    moves = analysis.deltas(model, latents, seed=0)
    stage("distances by λ")
    found.tables["shift"] = analysis.shift_curves(steering, latents, moves, curve)
    stage("maps (UMAP)")
    found.tables["maps"] = analysis.maps(steering, latents, moves[analysis.TRAINED], scales, seed=0)
    mapped = len(found.tables["maps"].query("space == 'context' and scale == 0"))
    found.facts |= {"scale": own, "scales": scales, "mapped": mapped}
    found.facts["steering"] = steering_diagnostics(steering, {"c": latents.c, "z": latents.z}, moves[analysis.TRAINED])


def _trace(loaded: Loaded, arguments: dict[str, Any], episodes: int, seed: int, found: Analysis) -> None:
    model, policy, steering = loaded
    assert policy.env_id is not None
    n_envs = parallel_envs(episodes)
    env = make_vec_steering(policy.env_id, steering, n_envs, env_kwargs=arguments, seeded_episodes=True)
    predictors: dict[str, PolicyPredictor] = {"base policy": NoSteering(), "steered": model}
    try:
        results = {name: evaluate(predictor, env, seed, episodes) for name, predictor in predictors.items()}
    finally:
        env.close()
    found.facts |= {"seed": seed, "shown": min(episodes, figures.SHOWN)}
    found.facts["rollouts"] = {name: result.summary() for name, result in results.items()}
    table = analysis.traces(results)
    if len(table):
        found.tables["traces"] = table
    else:
        found.missing["traces"] = f"{policy.env_id} does not tell where an action sends the hands"


def _add_smoothness(curve: pd.DataFrame, found: Analysis) -> None:
    columns = [name for name in SMOOTHNESS if name in curve and curve[name].notna().any()]
    if len(columns) == len(SMOOTHNESS):
        found.tables["smoothness"] = curve[["env_steps", "success_rate", *SMOOTHNESS]]
    else:
        found.missing["smoothness"] = "its evaluations.csv holds no velocity, acceleration and jerk"


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser("analyse", __doc__, EXAMPLES)
    parser.add_argument("run", help="run folder of `zprl train`")
    parser.add_argument("--demonstrations", metavar="FILE", help="those that the base policy learned from (HDF5)")
    parser.add_argument("--output", required=True, help="folder for pictures, numbers and analysis.md")
    parser.add_argument(
        "--scales", type=_positive, nargs="+", metavar="λ", help="of the maps; default: 0.5, 1 and 2.5 times the run's"
    )
    parser.add_argument(
        "--episodes", type=at_least(1), default=figures.SHOWN, help="layouts to trace; default and drawn: %(default)s"
    )
    add_seed(parser, FINAL_SEED, "of the first layout")
    add_device(parser)
    return parser


def _positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"λ must be positive and finite, not {text}")
    return float(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl analyse``."""
    args = parser().parse_args(argv)
    page = analyse(args.run, args.output, args.demonstrations, args.scales, args.episodes, args.seed, args.device)
    print(f"Wrote {page}, and beside it pictures, CSV files and analysis.json")
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["analyse", *sys.argv[1:]]))
