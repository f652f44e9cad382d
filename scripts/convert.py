"""``zprl convert``: a data set of robomimic, Minari or LeRobot -> demonstrations that ``zprl pretrain`` takes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zprl_sb3.pretrain.demonstrations import DemonstrationError, load_demonstrations
from zprl_sb3.pretrain.lerobot import ACTION, open_lerobot
from zprl_sb3.pretrain.lerobot_files import looks_like_lerobot
from zprl_sb3.pretrain.minari import looks_like_minari, open_minari
from zprl_sb3.pretrain.recording import Recording, save_demonstrations
from zprl_sb3.pretrain.robomimic import open_robomimic
from zprl_sb3.robot_envs.base import OBSERVATIONS
from zprl_sb3.robot_envs.rendering import QUALITIES
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.collect import summary
from zprl_sb3.scripts.common import new_parser
from zprl_sb3.settings import parse_override

EXAMPLES = """sources:
  a robomimic file of robosuite's Lift, PickPlaceCan, NutAssemblySquare or TwoArmTransport, recorded with Panda arms and
  OSC_POSE controllers at 20 Hz, with relative or absolute actions, by robosuite 1.5 or before
  a Minari data set of the Adroit hand, as D4RL's door, hammer, pen, relocate: its folder, or its id once
  `minari download` has got it
  the folder of a LeRobot data set, version 2.1 or 3.0, of any robot (install the extra `lerobot`). It does not say
  which environment it belongs to: --env names the one to steer in, --keys what that one's observation is made of

examples:
  zprl convert downloads/can/mh/low_dim_v141.hdf5 --output runs/can/demos.hdf5
  zprl convert downloads/can/mh/image_v141.hdf5 --output runs/can/images.hdf5 --observation image
  zprl convert downloads/can/mh/demo_v141.hdf5 --output runs/can/images.hdf5 --observation image --render fast
  zprl convert downloads/square_abs.hdf5 --absolute --output runs/square/demos.hdf5
  zprl convert D4RL/door/human-v2 --output runs/door/demos.hdf5
  zprl convert downloads/push --env zprl/Push-v0 --output runs/push/demos.hdf5 \\
      --keys proprio=observation.state object=observation.environment_state
  zprl convert downloads/box --env zprl/BoxClose-v0 --output runs/box/images.hdf5 \\
      --env-kwargs observation=image render_quality=fast \\
      --keys proprio=observation.state corner2_image=observation.images.top
  zprl convert downloads/arm --env my_robot:MyRobot-v0 --output runs/arm/demos.hdf5 \\
      --keys state=observation.state,observation.effort
  zprl pretrain demos=runs/can/demos.hdf5 output=runs/can mask=better

The masks of a robomimic file (train, valid, better, worse, ...) are kept; where a LeRobot data set has several tasks,
each becomes one. Minari's 100 Hz become the 50 Hz of the environment here: each two actions become their mean. An
episode of LeRobot succeeds where next.success says so; else where next.reward, if it is 0 or 1, reaches 1; where there
is neither, each does."""


def convert(
    source: str | Path,
    output: str | Path,
    observation: str = "state",
    render: str | None = None,
    absolute: bool = False,
    overwrite: bool = False,
    lerobot: Mapping[str, Any] | None = None,
) -> Path:
    """Convert a data set of robomimic, Minari or LeRobot into a demonstration file.

    :param source: robomimic's HDF5 file, Minari's folder or id, or LeRobot's folder
    :param output: The file to write
    :param observation: ``"state"`` or ``"image"``; of LeRobot's data sets the environment's arguments say it
    :param render: ``"fast"`` or ``"full"`` renders images anew; None takes the recorded ones
    :param absolute: Actions are poses in the world, whatever robomimic's file says of its controller
    :param overwrite: Replace an existing file
    :param lerobot: Arguments of :func:`~zprl_sb3.pretrain.lerobot.open_lerobot`, for a LeRobot data set: ``env_id`` …
    :return: The file
    :raises ValueError: If the data set cannot be converted, an argument does not fit it, or the output exists
    :raises ImportError: If the simulator is not installed
    """
    output = Path(output)
    if output.exists() and not overwrite:
        raise DemonstrationError(f"{output} exists already; choose another --output or add --overwrite")
    recording = _open(source, observation, render, absolute, lerobot)
    for note in recording.notes:
        print(note)
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


def _open(
    source: str | Path, observation: str, render: str | None, absolute: bool, lerobot: Mapping[str, Any] | None
) -> Recording:
    if lerobot is not None or looks_like_lerobot(source):
        if observation == "image" or render is not None or absolute:
            raise ValueError(
                "--observation, --render and --absolute are not for LeRobot's data sets: what the policy shall see the "
                "environment's arguments say, e.g. --env-kwargs observation=image"
            )
        if lerobot is None:
            raise ValueError(f"{source} is a LeRobot data set, which belongs to no environment: name one with --env")
        return open_lerobot(source, **lerobot)
    if render is not None and observation != "image":
        raise ValueError("--render is about images: add --observation image, or leave it out")
    if looks_like_minari(source):
        if observation == "image" or absolute:
            raise ValueError("Minari's data sets have no images and no poses: leave --observation and --absolute out")
        return open_minari(source)
    if not Path(source).is_file():
        raise DemonstrationError(f"{source}: no such file, and no id of a Minari data set, as D4RL/door/human-v2")
    return open_robomimic(source, observation, render, absolute)


def parse_keys(texts: Sequence[str] | None) -> dict[str, list[str]] | None:
    """Turn ``["state=observation.state,observation.effort"]`` into ``{"state": ["observation.state", …]}``.

    :raises ValueError: If a text is something else, or names a key twice
    """
    if texts is None:
        return None
    keys: dict[str, list[str]] = {}
    for text in texts:
        key, _, names = text.partition("=")
        features = names.split(",")
        if not key or not all(features) or key in keys:
            raise ValueError(
                f"--keys takes KEY=FEATURE, each key once, as proprio=observation.state, or KEY=FEATURE,FEATURE; not "
                f"{text!r}"
            )
        keys[key] = features
    return keys


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser(
        "convert", "Convert a data set of robomimic, Minari or LeRobot into demonstrations for zprl pretrain.", EXAMPLES
    )
    parser.add_argument("source", help="robomimic's HDF5 file, Minari's folder or id, or LeRobot's folder")
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
    lerobot = parser.add_argument_group("of a LeRobot data set")
    lerobot.add_argument("--env", metavar="ID", help="Gymnasium id of the environment that it belongs to")
    lerobot.add_argument(
        "--env-kwargs", nargs="+", default=[], metavar="KEY=VALUE", help="what gymnasium.make needs besides the id"
    )
    lerobot.add_argument(
        "--keys",
        nargs="+",
        metavar="KEY=FEATURE",
        help="keys of the environment's observation (`state` of a plain box) that the policy shall see, and the "
        "features that they are made of, several vectors with commas between them; default: all keys, each with the "
        "feature KEY, observation.KEY or observation.images.KEY",
    )
    lerobot.add_argument(
        "--action", default=ACTION, metavar="FEATURE", help="the feature that is the action; default: %(default)s"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl convert``."""
    args = parser().parse_args(argv)
    path = convert(
        args.source, args.output, args.observation, args.render, args.absolute, args.overwrite, _lerobot(args)
    )
    print(summary(load_demonstrations(path)))
    return 0


def _lerobot(args: argparse.Namespace) -> dict[str, Any] | None:
    if args.env is None:
        if args.keys or args.env_kwargs or args.action != ACTION:
            raise ValueError(
                "--keys, --env-kwargs and --action are for LeRobot's data sets: name the environment, --env"
            )
        return None
    env_kwargs = {key: value for text in args.env_kwargs for key, value in parse_override(text).items()}
    return {"env_id": args.env, "env_kwargs": env_kwargs, "keys": parse_keys(args.keys), "action": args.action}


if __name__ == "__main__":
    sys.exit(cli.main(["convert", *sys.argv[1:]]))
