"""``zprl calibrate``: how far each λ moves a base policy, measured on its demonstrations, and a λ to start from.

Before any rollout, and without an environment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zprl_sb3.calibration import RMS_DELTA, Calibration, calibrate
from zprl_sb3.checkpoint import load_policy
from zprl_sb3.files import write_json
from zprl_sb3.guideline import DISPLACEMENT, RMS_RATIO
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import add_device, add_seed, device_of, find_demonstrations, new_parser

EXAMPLES = """examples:
  zprl calibrate runs/push/policy                              # on the demonstrations that it was pretrained on
  zprl calibrate runs/push/policy --demonstrations runs/push/demos.hdf5
  zprl calibrate runs/push/policy --by-spread                  # a λ for each dimension of z, by its spread
  zprl train --policy runs/push/policy --output runs/push/zprl-0 --set scale=auto

Writes calibration.json, with all numbers, and calibration.png. `scale: auto` in the settings of `zprl train` is the
recommended λ; with `scale_by: FILE` it is one for each dimension."""


def summary(found: Calibration) -> str:
    """Return what was found as two Markdown tables, and a recommendation in words."""
    return "\n\n".join([_dimensions(found), _curves(found), _advice(found)])


def _dimensions(found: Calibration) -> str:
    own = found.by_spread
    lines = [f"| dimension of z | RMS | spread | posterior std |{' λ |' * own}", f"|---|---|---|---|{'---|' * own}"]
    columns = (found.dimensions[name] for name in ("rms", "spread", "posterior_std"))
    for k, (rms, spread, std) in enumerate(zip(*columns, strict=True)):
        scale = f" {found.scale * found.weights[k]:.3f} |" if own else ""
        lines.append(f"| {k} | {rms:.2f} | {spread:.2f} | {std:.3f} |{scale}")
    return "\n".join(lines)


def _curves(found: Calibration) -> str:
    names = ("rms_ratio", "displacement", "context_distance", "mahalanobis", "action_change")
    lines = [
        "| λ | RMS(λΔz)/RMS(z) | displacement ‖c̃ − g(z)‖ | ‖c̃ − c‖ | Mahalanobis distance of z̃ | change of actions |",
        "|---|---|---|---|---|---|",
    ]
    for row in zip(found.curves["scale"], *(found.curves[name] for name in names), strict=True):
        scale, ratio, displacement, distance, mahalanobis, action = row
        lines.append(
            f"| {scale:.3f} | {ratio:.2f} | {displacement:.3f} | {distance:.3f} | {mahalanobis:.1f} | {action:.3f} |"
        )
    return "\n".join(lines)


def _advice(found: Calibration) -> str:
    scale, (least, most), (median, _) = found.scale, found.scale_range, found.mahalanobis_offline
    end = f"where the displacement is {DISPLACEMENT}" if found.limited_by == "displacement" else f"{RMS_RATIO[1]}"
    there = {name: found.at(name, scale) for name in ("displacement", "mahalanobis", "action_change")}
    return (
        f"λ = {scale:g} to start from, {least:g} to {most:g} to choose from{' (means)' * found.by_spread}: "
        f"RMS(λΔz)/RMS(z) from {RMS_RATIO[0]} to {end}, with RMS(z) = {found.rms_z:.2f} on {found.observations} "
        f"observations and RMS(Δz) = {RMS_DELTA:.2f}, as trained actors have it.\n"
        f"At {scale:g}: displacement {there['displacement']:.2f}, Mahalanobis distance {there['mahalanobis']:.1f} (the "
        f"demonstrations' own: {median:.1f}), change of the normalised actions {there['action_change']:.3f} (by other "
        f"flow noise: {found.noise_change:.3f})."
    )


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser("calibrate", __doc__, EXAMPLES)
    parser.add_argument("policy", help="checkpoint folder of a base policy")
    parser.add_argument(
        "--demonstrations",
        metavar="FILE",
        help="its demonstrations; default: what it was pretrained on, as pretrain.yml beside the checkpoint says",
    )
    parser.add_argument("--mask", help="only the episodes of this mask of --demonstrations")
    parser.add_argument("--by-spread", action="store_true", help="a λ for each dimension of z, by its spread")
    parser.add_argument("--output", metavar="FOLDER", help="default: the folder that the checkpoint is in")
    add_seed(parser, text="of the draws of observations, z, Δz and flow noise")
    add_device(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl calibrate``."""
    args = parser().parse_args(argv)
    if args.mask and not args.demonstrations:
        raise ValueError("--mask goes with --demonstrations: the policy's own mask is known")
    policy = load_policy(args.policy, device=device_of(args.device))
    try:
        demos, mask = (
            (Path(args.demonstrations), args.mask) if args.demonstrations else find_demonstrations(args.policy)
        )
    except ValueError as error:
        raise ValueError(f"{error}. Or say which demonstrations to take with --demonstrations FILE") from error
    print(f"Calibrating λ for {args.policy} on {demos}", flush=True)
    found = calibrate(policy, demos, args.by_spread, mask, args.seed)
    output = Path(args.output) if args.output else Path(args.policy).resolve().parent
    write_json(
        output / "calibration.json",
        {"policy": args.policy, "demonstrations": str(demos), "mask": mask} | found.as_dict(),
    )
    from zprl_sb3.calibration_figure import draw_calibration  # matplotlib takes a second

    picture = draw_calibration(found, output / "calibration.png", title=policy.env_id or str(args.policy))
    print(f"{summary(found)}\n\nWrote {output / 'calibration.json'} and {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["calibrate", *sys.argv[1:]]))
