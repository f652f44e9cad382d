"""``zprl convert``: a data set of robomimic or Minari -> demonstrations that ``zprl pretrain`` takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from zprl_sb3.pretrain.demonstrations import DemonstrationError, load_demonstrations
from zprl_sb3.pretrain.minari import looks_like_minari, open_minari
from zprl_sb3.pretrain.recording import Recording, save_demonstrations
from zprl_sb3.pretrain.robomimic import open_robomimic
from zprl_sb3.robot_envs.base import OBSERVATIONS
from zprl_sb3.robot_envs.rendering import QUALITIES
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.collect import summary
from zprl_sb3.scripts.common import new_parser

EXAMPLES = """sources:
  a robomimic file of robosuite's Lift, PickPlaceCan, NutAssemblySquare or TwoArmTransport, recorded with Panda arms and
  OSC_POSE controllers at 20 Hz, with relative or absolute actions, by robosuite 1.5 or before
  a Minari data set of the Adroit hand, as D4RL's door, hammer, pen, relocate: its folder, or its id once
  `minari download` has got it

examples:
  zprl convert downloads/can/mh/low_dim_v141.hdf5 --output runs/can/demos.hdf5
  zprl convert downloads/can/mh/image_v141.hdf5 --output runs/can/images.hdf5 --observation image
  zprl convert downloads/can/mh/demo_v141.hdf5 --output runs/can/images.hdf5 --observation image --render fast
  zprl convert downloads/square_abs.hdf5 --absolute --output runs/square/demos.hdf5
  zprl convert D4RL/door/human-v2 --output runs/door/demos.hdf5
  zprl pretrain demos=runs/can/demos.hdf5 output=runs/can mask=better

The masks of a robomimic file (train, valid, better, worse, ...) are kept. Minari's 100 Hz become the 50 Hz of the
environment here: each two actions become their mean."""


def convert(
    source: str | Path,
    output: str | Path,
    observation: str = "state",
    render: str | None = None,
    absolute: bool = False,
    overwrite: bool = False,
) -> Path:
    """Convert a data set of robomimic or Minari into a demonstration file.

    :param source: robomimic's HDF5 file, or Minari's folder or id
    :param output: The file to write
    :param observation: ``"state"`` or ``"image"``
    :param render: ``"fast"`` or ``"full"`` renders images anew; None takes the recorded ones
    :param absolute: Actions are poses in the world, whatever robomimic's file says of its controller
    :param overwrite: Replace an existing file
    :return: The file
    :raises ValueError: If the data set cannot be converted, an argument does not fit it, or the output exists
    :raises ImportError: If the simulator is not installed
    """
    output = Path(output)
    if output.exists() and not overwrite:
        raise DemonstrationError(f"{output} exists already; choose another --output or add --overwrite")
    recording = _open(source, observation, render, absolute)
    print(f"Converting {recording.count} episodes of {recording.env_id} into {output}")
    episodes = tqdm(
        recording.episodes, total=recording.count, unit="episode", desc=recording.env_id, dynamic_ncols=True
    )
    save_demonstrations(
        output,
        episodes,
        recording.env_id,
        recording.env_kwargs,
        recording.env_version,
        {"env_id": recording.env_id, "converted": recording.origin},
        recording.masks,
    )
    print(f"Wrote {output}")
    return output


def _open(source: str | Path, observation: str, render: str | None, absolute: bool) -> Recording:
    if render is not None and observation != "image":
        raise ValueError("--render is about images: add --observation image, or leave it out")
    if looks_like_minari(source):
        if observation == "image" or absolute:
            raise ValueError("Minari's data sets have no images and no poses: leave --observation and --absolute out")
        return open_minari(source)
    if not Path(source).is_file():
        raise DemonstrationError(f"{source}: no such file, and no id of a Minari data set, as D4RL/door/human-v2")
    return open_robomimic(source, observation, render, absolute)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser(
        "convert", "Convert a data set of robomimic or Minari into demonstrations for zprl pretrain.", EXAMPLES
    )
    parser.add_argument("source", help="robomimic's HDF5 file, or Minari's folder or id")
    parser.add_argument("--output", required=True, type=Path, help="the HDF5 file to write, e.g. runs/can/demos.hdf5")
    parser.add_argument(
        "--observation", choices=OBSERVATIONS, default="state", help="what the policy shall see; default: %(default)s"
    )
    parser.add_argument(
        "--render",
        choices=tuple(QUALITIES),
        help="render images anew from the stored states, as our environments do; default: take the recorded images",
    )
    parser.add_argument(
        "--absolute",
        action="store_true",
        help="actions are poses in the world whatever the file says, as in those converted for Diffusion Policy",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl convert``."""
    args = parser().parse_args(argv)
    path = convert(args.source, args.output, args.observation, args.render, args.absolute, args.overwrite)
    print(summary(load_demonstrations(path)))
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["convert", *sys.argv[1:]]))
