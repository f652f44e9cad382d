"""``zprl evaluate``: success on fixed, seeded episodes, as JSON. A steered model, or a base policy and its controls."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.type_aliases import PolicyPredictor

from zprl_sb3.diagnostics import Recorder
from zprl_sb3.evaluation import NoSteering, evaluate, parallel_envs
from zprl_sb3.files import read_rows, readable, write_json
from zprl_sb3.learners import RETRAINED, SOE, learner
from zprl_sb3.openvino import PRECISIONS
from zprl_sb3.policy import SteerablePolicy
from zprl_sb3.robot_envs import is_real
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import (
    add_device,
    add_seed,
    at_least,
    make_arguments,
    new_parser,
    read_yaml,
    run_policy,
)
from zprl_sb3.seeds import FINAL_SEED
from zprl_sb3.settings import AUTO, check_openvino
from zprl_sb3.wrappers import (
    EmbeddingSteering,
    EpisodeVideo,
    LatentSteering,
    Steering,
    WeightSteering,
    make_vec_steering,
)
from zprl_sb3.wrappers.baseline_steerings import STEERINGS
from zprl_sb3.wrappers.steering import NoiseKind

EXAMPLES = """examples:
  zprl evaluate runs/push/zprl-0 --episodes 200         # a steered model, from its run folder
  zprl evaluate runs/push/zprl-0 --noise zero           # the same without flow noise
  zprl evaluate runs/push/zprl-0 --video 4              # and videos of the first 4 episodes
  zprl evaluate runs/orange/zprl-0 --episodes 20        # on a real robot, with a person beside it
  zprl evaluate runs/push/policy                        # a base policy: through c and through the bottleneck's mean,
                                                        # each with sampled and with zero flow noise

In simulation, episode k starts from the layout and the flow noise of seed SEED + k, whatever is evaluated, so results
compare episode by episode. Training never uses these seeds."""


KEPT = "evaluated_episodes"
"""Folder, beside what was evaluated, of all episodes that a real robot has made of it."""

# The base policy and its controls: through the bottleneck's mean or through c, with and without flow noise.
WAYS: dict[str, tuple[type[Steering], NoiseKind]] = {
    "base through the bottleneck": (LatentSteering, "normal"),
    "base through c": (EmbeddingSteering, "normal"),
    "base through the bottleneck, zero noise": (LatentSteering, "zero"),
    "base through c, zero noise": (EmbeddingSteering, "zero"),
}


NONE = "none"  # for --openvino: PyTorch, whatever the run has


@dataclass(frozen=True)
class Videos:
    """Videos of the first episodes of an evaluation.

    :param folder: Where they go
    :param count: Of how many episodes
    """

    folder: Path
    count: int


def evaluate_base(
    checkpoint: str | Path,
    episodes: int,
    seed: int,
    device: str = "auto",
    chunk: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    videos: Videos | None = None,
    subprocess: bool = False,
    sampling_steps: int | None = None,
    openvino: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate a base policy in the ways of :data:`WAYS` and return the results by name.

    Without a bottleneck there are two ways, on a real robot there is the first one.

    Each is as :func:`evaluate_run` returns it, where there is something to tell.

    :param checkpoint: Its folder
    :param episodes: How many, for each way
    :param seed: First episode seed
    :param device: ``cpu``, ``cuda`` or ``auto``
    :param chunk: h; the checkpoint's own where None
    :param env_kwargs: Further arguments of ``gymnasium.make``, beside those of the demonstrations
    :param videos: Videos to write, those of the first way only
    :param subprocess: One process for each of up to 25 environments
    :param sampling_steps: K; the checkpoint's own where None
    :param openvino: Precision in which OpenVINO computes the policy; None: PyTorch does
    """
    openvino = None if openvino == NONE else openvino
    settings = {"chunk": chunk, "sampling_steps": sampling_steps, "openvino": openvino}
    policy = run_policy(checkpoint, settings, device)
    arguments = make_arguments(checkpoint, env_kwargs or {})
    results: dict[str, dict[str, Any]] = {}
    # A fine-tuned policy has no bottleneck. Somebody stands beside a real robot: only what steering starts from.
    ways = [way for way in WAYS.items() if policy.bottleneck is not None or way[1][0] is not LatentSteering]
    for name, (kind, noise) in ways[: 1 if is_real(policy.env_id) else None]:
        steering = kind(policy, scale=1.0, noise=noise)
        wanted = None if results else videos
        kept = Path(checkpoint).parent / KEPT
        result = _evaluate(NoSteering(), policy, steering, episodes, seed, arguments, wanted, subprocess, kept)
        results[name] = result | {"policy": str(checkpoint), "model": None, "scale": None, "openvino": openvino}
    return results


def evaluate_run(
    run: str | Path,
    episodes: int,
    seed: int,
    noise: NoiseKind = "normal",
    device: str = "auto",
    videos: Videos | None = None,
    subprocess: bool = False,
    openvino: str | None = None,
) -> dict[str, Any]:
    """Evaluate the final model of a run folder with the actor's mean and the posterior's mean.

    :param run: Folder made by ``zprl train``
    :param episodes: How many
    :param seed: First episode seed
    :param noise: Flow noise, ``"normal"`` or ``"zero"``
    :param device: ``cpu``, ``cuda`` or ``auto``
    :param videos: Videos to write
    :param subprocess: One process for each of up to 25 environments
    :param openvino: Precision in which OpenVINO computes the base policy, or ``"none"``; None: as in the run
    :return: success_rate, ci95, episodes, seeds, mean_length (env steps), policy, model, scale, steering diagnostics
    :raises FileNotFoundError: If the run has no final model
    :raises ValueError: For zero noise where the noise is what is steered, and for OpenVINO after fine-tuning
    """
    run = Path(run)
    recorded = read_yaml(run / "run.yml")
    if openvino is not None:
        recorded["settings"] |= {"openvino": None if openvino == NONE else openvino}
        check_openvino({"learner": "sac"} | recorded["settings"])
    load = _retrained if recorded["settings"].get("learner") == SOE else _steered
    model, policy, steering = load(run, recorded, noise, device)
    arguments = make_arguments(run / "policy", recorded["settings"]["env_kwargs"])
    recorder = Recorder(model, episodes)
    result = _evaluate(recorder, policy, steering, episodes, seed, arguments, videos, subprocess, run / KEPT)
    scale = recorded["settings"]["scale"]
    scale = steering.mean_scale if scale == AUTO else scale
    result |= {"policy": str(run / "policy"), "model": str(run / "model.zip"), "scale": scale}
    if load is _retrained:
        result |= {"policy": str(run / RETRAINED), "model": None, "scale": None}
    result["openvino"] = recorded["settings"].get("openvino")
    return result | {"steering": recorder.diagnose(steering), "env_steps": _env_steps(run)}


Loaded = tuple[PolicyPredictor, SteerablePolicy, Steering]


def _steered(run: Path, recorded: dict[str, Any], noise: NoiseKind, device: str) -> Loaded:
    if not (run / "model.zip").is_file():
        raise FileNotFoundError(f"{run} has no model.zip: it is not a finished run (continue it with `zprl train`)")
    return load_steered(run / "model.zip", run / "policy", recorded, noise, device)


def load_steered(file: Path, checkpoint: Path, recorded: dict[str, Any], noise: NoiseKind, device: str) -> Loaded:
    """Return a model, its base policy, and what it steers, as it is evaluated.

    :param file: The model
    :param checkpoint: Of the base policy
    :param recorded: ``run.yml`` of its run
    :param noise: Flow noise
    :param device: ``cpu``, ``cuda`` or ``auto``
    :raises ValueError: If the file is damaged, or the model learned with another policy or λ
    """
    settings = recorded["settings"]
    policy = run_policy(checkpoint, settings, device)
    with readable(file):
        model = learner(settings.get("learner", "sac")).load(file, device=device)
    learned = getattr(model, "steering_spec", None)  # sb3-contrib's know of none
    found = settings["scale"] == AUTO or settings.get("scale_by") is not None
    scale = learned.scale if found and learned is not None else settings["scale"]
    steering = STEERINGS[settings.get("steering", LatentSteering.kind)](policy, scale, noise=noise)
    spec = steering.spec(settings["gamma"])
    (learned or replace(spec, policy=recorded["policy"])).require_same(spec)
    return model, policy, steering


def _retrained(run: Path, recorded: dict[str, Any], noise: NoiseKind, device: str) -> Loaded:
    if not (run / RETRAINED).is_dir():
        raise FileNotFoundError(f"{run} has no {RETRAINED}/: it is not a finished run (continue it with `zprl train`)")
    settings = recorded["settings"]
    policy = run_policy(run / RETRAINED, settings, device)
    return NoSteering(), policy, EmbeddingSteering(policy, scale=1.0, noise=noise)


def _env_steps(run: Path) -> int:
    return int(read_rows(run / "evaluations.csv")[-1]["env_steps"])


def _evaluate(
    predictor: NoSteering | Recorder,
    policy: SteerablePolicy,
    steering: Steering,
    episodes: int,
    seed: int,
    arguments: dict[str, Any],
    videos: Videos | None,
    subprocess: bool,
    kept: Path,
) -> dict[str, Any]:
    assert policy.env_id is not None
    layer = None
    if videos is not None:
        arguments = arguments | {"render_mode": "rgb_array"}
        layer = partial(EpisodeVideo, folder=videos.folder, seeds=range(seed, seed + videos.count))
    if is_real(policy.env_id):  # nobody is to set the scene after the last episode
        arguments = arguments | {"stop_after": episodes, "episodes": str(kept)}
    env = make_vec_steering(
        policy.env_id,
        steering,
        1 if is_real(policy.env_id) else parallel_envs(episodes),
        env_kwargs=arguments,
        subprocess=subprocess,
        seeded_episodes=True,
        layer=layer,
    )
    try:
        result = evaluate(predictor, env, seed, episodes).summary()
    finally:
        env.close()
    route = "context" if isinstance(steering, (EmbeddingSteering, WeightSteering)) else "bottleneck"
    return result | {"env_id": policy.env_id, "route": route, "noise": steering.noise, "chunk": policy.chunk}


def base_evaluation(checkpoint: str | Path) -> Path:
    """Return where the results of :func:`evaluate_base` are kept."""
    return Path(checkpoint).parent / "base_evaluation.json"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return results as a Markdown table: success with its 95 % interval, and lengths in env steps."""
    lines = ["| policy | success | 95 % interval | mean length | of successes |", "|---|---|---|---|---|"]
    for name, result in results.items():
        low, high = result["ci95"]
        successes = result["mean_length_of_successes"]
        lines.append(
            f"| {name} | {result['success_rate']:.3f} | {low:.3f} – {high:.3f} | {result['mean_length']:.1f} | "
            f"{'–' if successes is None else f'{successes:.1f}'} |"
        )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser("evaluate", __doc__, EXAMPLES)
    parser.add_argument("what", help="run folder of `zprl train`, or checkpoint folder of a base policy")
    parser.add_argument("--episodes", type=at_least(1), default=200, help="how many; default: %(default)s")
    add_seed(parser, FINAL_SEED, "first episode seed")
    parser.add_argument("--noise", choices=("normal", "zero"), default="normal", help="flow noise of a steered model")
    parser.add_argument(
        "--video",
        type=at_least(1),
        metavar="N",
        help="write videos of the first N episodes into videos/ beside the JSON file (of a base policy: the first way; "
        "without noise: videos_zero_noise/)",
    )
    parser.add_argument(
        "--subprocess",
        action="store_true",
        help="one process for each of up to 25 environments, where there are cores and memory (robosuite 0.5 GB each)",
    )
    parser.add_argument("--chunk", type=at_least(1), help="h of a base policy; default: the checkpoint's own")
    parser.add_argument("--sampling-steps", type=at_least(1), help="K of a base policy; default: the checkpoint's own")
    parser.add_argument(
        "--openvino",
        choices=(*PRECISIONS, NONE),
        help="let OpenVINO compute the base policy, or not; default: as in the run, or not",
    )
    parser.add_argument(
        "--output",
        help="JSON file; default: evaluation.json or evaluation_zero_noise.json in a run's folder, "
        "base_evaluation.json beside a base policy's",
    )
    add_device(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl evaluate``."""
    args = parser().parse_args(argv)
    what = Path(args.what)
    is_run, zero = (what / "run.yml").is_file(), args.noise == "zero"
    default = what / f"evaluation{'_zero_noise' * zero}.json" if is_run else base_evaluation(what)
    output = Path(args.output or default)
    videos = Videos(output.parent / ("videos_zero_noise" if zero else "videos"), args.video) if args.video else None
    if is_run:
        content = evaluate_run(
            what, args.episodes, args.seed, args.noise, args.device, videos, args.subprocess, args.openvino
        )
        results = {"steered, zero noise" if zero else "steered": content}
    else:
        names = ("chunk", "sampling_steps", "subprocess", "openvino")
        given = {name: getattr(args, name) for name in names}
        results = content = evaluate_base(what, args.episodes, args.seed, args.device, videos=videos, **given)
    write_json(output, content)
    print(table(results))
    print(f"Wrote {output}{f' and videos to {videos.folder}' if videos else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["evaluate", *sys.argv[1:]]))
