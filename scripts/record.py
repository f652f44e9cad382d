"""``zprl record``: demonstrations on a real robot, through the environment that a policy will act in."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from tqdm import tqdm

from zprl_sb3.robot_envs.real.env import RealRobotEnv
from zprl_sb3.robot_envs.real.episodes import LEARNED, ending_of, episode_files, join
from zprl_sb3.robot_envs.real.recorder import follow
from zprl_sb3.robot_envs.real.robots import Robot
from zprl_sb3.robot_envs.real.tasks import load_task, make_teleoperator
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import at_least, new_parser

EXAMPLES = """examples:
  zprl record --task place_orange --episodes 100 --output runs/orange/demos     # then also runs/orange/demos.hdf5
  zprl record --task my_robot.yml --episodes 20 --output runs/mine/demos --keep success
  zprl record --join runs/orange/demos runs/orange/more --output runs/orange/all.hdf5

The task's file names robot, cameras, limits and, under teleoperator:, what is demonstrated with: any driver of a robot,
whose observation is where the arms are to be (a leader arm). The person beside it starts each episode and says what
became of it, at a page or at the keyboard, as the task's file has it.

Every episode is a file in the folder from the moment it begins: nothing that happened is lost by a crash, a power cut
or a full disk. The same command goes on until there are enough; those that were aborted or interrupted do not count."""


def record(task: str, episodes: int, folder: str | Path, keep: Sequence[str] = LEARNED) -> Path:
    """Record episodes until a folder holds enough of them, and join them to a file of demonstrations beside it.

    :param task: Name or path of a task
    :param episodes: How many
    :param folder: Of the episodes
    :param keep: Endings of those that count
    :return: The file; it is not there yet if the person did not want to go on
    :raises TaskError: If the task's file cannot be used
    :raises RobotError: If robot or leader cannot be connected
    """
    folder, demonstrated = Path(folder), load_task(task)
    output = folder.with_name(f"{folder.name}.hdf5")
    leader = make_teleoperator(demonstrated)
    missing = episodes - _counted(folder, keep)
    if missing > 0:
        print(f"Recording {missing} of {episodes} episodes of {demonstrated.name} into {folder}")
        with closing(RealRobotEnv(task, episodes=folder)) as env:
            _record(env, leader, missing, keep)
    if (have := _counted(folder, keep)) < episodes:
        print(f"{have} of {episodes} episodes are in {folder}; the same command goes on")
        return output
    joined = join([folder], output, keep)
    print(f"Wrote {output} with {len(joined)} episodes")
    return output


def _counted(folder: Path, keep: Sequence[str]) -> int:
    return sum(ending_of(path) in keep for path in episode_files(folder))


def _record(env: RealRobotEnv, leader: Robot, missing: int, keep: Sequence[str]) -> None:
    leader.connect()
    try:
        with tqdm(total=missing, unit="episode", desc=env.task.name, dynamic_ncols=True) as bar:
            while bar.n < missing:
                ending = follow(env, leader)
                if ending is None:
                    return
                bar.update(ending in keep)
                bar.set_postfix(last=ending)
    finally:
        leader.disconnect()


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser("record", __doc__, EXAMPLES)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--task", help="name of a task in hyperparams/real/, or the path of a file")
    what.add_argument("--join", nargs="+", metavar="FOLDER", help="only join the episodes of these folders to one file")
    parser.add_argument("--output", required=True, type=Path, help="folder of the episodes; with --join the HDF5 file")
    parser.add_argument("--episodes", type=at_least(1), default=100, help="how many to have; default: %(default)s")
    parser.add_argument(
        "--keep", nargs="+", choices=LEARNED, default=LEARNED, help="endings of episodes that count; default: all three"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl record``."""
    args = parser().parse_args(argv)
    if args.join:
        joined = join(args.join, args.output, args.keep)
        print(f"Wrote {args.output} with {len(joined)} episodes")
    else:
        record(args.task, args.episodes, args.output, args.keep)
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["record", *sys.argv[1:]]))
