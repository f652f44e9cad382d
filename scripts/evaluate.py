"""``zprl evaluate``: success on fixed, seeded episodes, as JSON. A steered model, or a base policy and its controls."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zprl_sb3.checkpoint import load_policy, read_config
from zprl_sb3.diagnostics import Recorder
from zprl_sb3.evaluation import NoSteering, evaluate, parallel_envs
from zprl_sb3.files import write_json
from zprl_sb3.policy import FlowPolicy
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import add_device, add_seed, at_least, device_of, new_parser, read_yaml
from zprl_sb3.wrappers import EmbeddingSteering, LatentSteering, Steering, make_vec_steering
from zprl_sb3.wrappers.steering import NoiseKind

EXAMPLES = """examples:
  zprl evaluate runs/push/zprl-0 --episodes 200         # a steered model, from its run folder
  zprl evaluate runs/push/zprl-0 --noise zero           # the same without flow noise
  zprl evaluate runs/push/policy                        # a base policy: through c and through the bottleneck's mean,
                                                        # each with sampled and with zero flow noise

Episode k starts from the layout and the flow noise of seed SEED + k, whatever is evaluated, so results compare
episode by episode. Training never uses these seeds."""


def base_policies() -> dict[str, dict[str, Any]]:
    """Return the four ways to run a base policy, by name: arguments of :func:`evaluate_base`."""
    return {
        "base through the bottleneck": {"path": "bottleneck", "noise": "normal"},
        "base through c": {"path": "context", "noise": "normal"},
        "base through the bottleneck, zero noise": {"path": "bottleneck", "noise": "zero"},
        "base through c, zero noise": {"path": "context", "noise": "zero"},
    }


def evaluate_base(
    checkpoint: str | Path,
    episodes: int,
    seed: int,
    path: str = "bottleneck",
    noise: NoiseKind = "normal",
    device: str = "auto",
    chunk: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluate a base policy and return the result as :func:`evaluate_run` does, with the ``path`` that was taken.

    :param checkpoint: Its folder
    :param episodes: How many
    :param seed: First episode seed
    :param path: ``"bottleneck"`` (through its mean, z) or ``"context"`` (through c)
    :param noise: Flow noise, ``"normal"`` or ``"zero"``
    :param device: ``cpu``, ``cuda`` or ``auto``
    :param chunk: h; the checkpoint's own where None
    :param env_kwargs: Arguments of ``gymnasium.make``; those of the demonstrations where None
    """
    policy = load_policy(checkpoint, chunk, device_of(device))
    kwargs = read_config(checkpoint).get("env_kwargs", {}) if env_kwargs is None else env_kwargs
    steering: Steering
    if path == "bottleneck":
        steering = LatentSteering(policy, scale=1.0, noise=noise)
    else:
        steering = EmbeddingSteering(policy, scale=1.0, noise=noise)
    result = _evaluate(NoSteering(), policy, steering, episodes, seed, kwargs)
    return result | {"policy": str(checkpoint), "model": None, "scale": None, "path": path}


def evaluate_run(
    run: str | Path, episodes: int, seed: int, noise: NoiseKind = "normal", device: str = "auto"
) -> dict[str, Any]:
    """Evaluate the final model of a run folder with the actor's mean and the posterior's mean.

    :param run: Folder made by ``zprl train``
    :param episodes: How many
    :param seed: First episode seed
    :param noise: Flow noise, ``"normal"`` or ``"zero"``
    :param device: ``cpu``, ``cuda`` or ``auto``
    :return: success_rate, ci95, episodes, seeds, mean_length (env steps), policy, model, scale, steering diagnostics
    :raises FileNotFoundError: If the run has no final model
    """
    run = Path(run)
    if not (run / "model.zip").is_file():
        raise FileNotFoundError(f"{run} has no model.zip: it is not a finished run (continue it with `zprl train`)")
    settings = read_yaml(run / "run.yml")["settings"]
    policy = load_policy(run / "policy", settings["chunk"], device_of(device))
    kwargs = read_config(run / "policy").get("env_kwargs", {}) | settings["env_kwargs"]
    model = _load_model(run / "model.zip", device)
    assert model.steering_spec is not None
    steering = LatentSteering(policy, settings["scale"], noise=noise)
    model.steering_spec.require_same(steering.spec(settings["gamma"]))
    recorder = Recorder(model)
    result = _evaluate(recorder, policy, steering, episodes, seed, kwargs)
    result |= {"policy": str(run / "policy"), "model": str(run / "model.zip"), "scale": steering.scale}
    return result | {"path": "bottleneck", "steering": recorder.diagnose(steering), "env_steps": model.env_steps}


def _load_model(file: Path, device: str) -> SteeringSAC:
    try:
        return SteeringSAC.load(file, device=device)
    except (AssertionError, KeyError, ValueError) as error:  # an empty, a foreign, a truncated file
        raise ValueError(f"{file} is damaged ({error}): delete it and run the same `zprl train` again") from error


def _evaluate(
    predictor: NoSteering | Recorder,
    policy: FlowPolicy,
    steering: Steering,
    episodes: int,
    seed: int,
    env_kwargs: dict[str, Any],
) -> dict[str, Any]:
    assert policy.env_id is not None
    env = make_vec_steering(
        policy.env_id, steering, parallel_envs(episodes), env_kwargs=env_kwargs, seeded_episodes=True
    )
    try:
        result = evaluate(predictor, env, seed, episodes).summary()
    finally:
        env.close()
    return result | {"env_id": policy.env_id, "noise": steering.noise, "chunk": policy.chunk}


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
    add_seed(parser, 100_000, "first episode seed")
    parser.add_argument("--noise", choices=("normal", "zero"), default="normal", help="flow noise of a steered model")
    parser.add_argument("--output", help="JSON file; default: evaluation.json in, or beside, the folder")
    add_device(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl evaluate``."""
    args = parser().parse_args(argv)
    what = Path(args.what)
    if (what / "run.yml").is_file():
        name = "steered" if args.noise == "normal" else "steered, zero noise"
        results = {name: evaluate_run(what, args.episodes, args.seed, args.noise, args.device)}
        output, content = what / "evaluation.json", results[name]
    else:
        read_config(what)
        results = {
            name: evaluate_base(what, args.episodes, args.seed, device=args.device, **kwargs)
            for name, kwargs in base_policies().items()
        }
        output, content = what.parent / "evaluation.json", results
    output = Path(args.output or output)
    write_json(output, content)
    print(table(results))
    print(f"Wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["evaluate", *sys.argv[1:]]))
