"""``zprl collect``: let imperfect scripted demonstrators act and write what they did as an HDF5 file."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from zprl_sb3.files import sha256, write_json
from zprl_sb3.pretrain.demonstrations import DemonstrationError, Demonstrations, load_demonstrations
from zprl_sb3.pretrain.recording import load_episode, read_collection, save_demonstrations, stored_success
from zprl_sb3.robot_envs.collection import check_settings, env_kwargs, family_of, record_episodes
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import add_seed, add_settings, at_least, new_parser
from zprl_sb3.settings import load_settings

EXAMPLES = """examples:
  zprl collect --env zprl/Push-v0 --output runs/push/demos.hdf5
  zprl collect --env zprl/Push-v0 --episodes 300 --seed 7 --jobs 4 --output runs/push/many.hdf5
  zprl collect --env zprl/Can-v0 --jobs 2 --output runs/can/images.hdf5 --set observation=image
  zprl collect --env zprl/BoxClose-v0 --output runs/box/demos.hdf5 --set keep_failures=false
  zprl collect --env zprl/Push-v0 --output runs/push/demos.hdf5 --set 'operators.worse.object_offset=[0, 0.03]'

An interrupted or killed run goes on where it stopped when the same command is given again. The same seed and settings
give the same file, whatever --jobs is and however often the run was interrupted."""


def collect(
    env_id: str,
    episodes: int,
    seed: int,
    output: str | Path,
    jobs: int = 1,
    settings: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Collect demonstrations into an HDF5 file, going on with what an interrupted run has left.

    Finished episodes wait in the folder ``<output>.partial``; episode k depends on ``seed`` and k only.

    :param env_id: Gymnasium id, e.g. ``"zprl/Push-v0"``
    :param episodes: How many to write
    :param seed: Seed of the whole collection
    :param output: The file to write
    :param jobs: Processes
    :param settings: As ``hyperparams/collect.yml`` has them; None for those of this environment
    :param overwrite: Replace an existing file, and drop an unfinished collection with another seed or other settings
    :return: The file
    :raises ValueError: If a setting is wrong or another collection is in the way
    :raises ImportError: If the simulator is not installed
    """
    output = Path(output)
    settings = load_settings("collect.yml", env_id) if settings is None else settings
    check_settings(env_id, settings)
    # As it is read back: lists where there were tuples. An empty table says nothing, and older files have none.
    settings = {key: value for key, value in json.loads(json.dumps(settings)).items() if value != {}}
    identity: dict[str, Any] = {"env_id": env_id, "seed": seed, "settings": _identity(settings)}
    identity["env_version"] = version(family_of(env_id).simulator)
    if output.exists() and not overwrite:
        _check_same(output, identity, episodes)
        print(f"{output} is complete already; --overwrite collects it anew")
        return output
    partial = output.with_name(output.name + ".partial")
    _claim(partial, identity, overwrite)
    print(f"Collecting {episodes} episodes of {env_id} with seed {seed} into {output}")
    try:
        _collect_missing(partial, episodes, env_id, seed, settings, jobs)
    except KeyboardInterrupt:
        done = sum(_episode_path(partial, k).exists() for k in range(episodes))
        print(
            f"\nInterrupted: {done} of {episodes} episodes are kept in {partial}. The same command goes on from there."
        )
        raise
    finished = (load_episode(_episode_path(partial, k)) for k in range(episodes))
    save_demonstrations(output, finished, env_id, env_kwargs(settings), identity["env_version"], identity)
    shutil.rmtree(partial)
    print(f"Wrote {output}")
    return output


def _identity(settings: dict[str, Any]) -> dict[str, Any]:
    # An expert is what its file holds, wherever that lies.
    return settings | ({"expert": sha256(Path(settings["expert"]))} if settings.get("expert") else {})


def _check_same(output: Path, identity: dict[str, Any], episodes: int) -> None:
    found = read_collection(output)
    different = [key for key, value in {**identity, "episodes": episodes}.items() if found.get(key) != value]
    if different:
        raise DemonstrationError(
            f"{output} exists and differs in {', '.join(different)}; choose another --output or add --overwrite"
        )


def _claim(partial: Path, identity: dict[str, Any], overwrite: bool) -> None:
    path = partial / "collection.json"
    if path.exists():
        found = json.loads(path.read_text())
        different = [key for key, value in identity.items() if found.get(key) != value]
        if different and not overwrite:
            raise DemonstrationError(
                f"{partial} holds an unfinished collection that differs in {', '.join(different)}; give the same "
                "command as then, choose another --output, or add --overwrite to drop it"
            )
        if different:
            shutil.rmtree(partial)
    write_json(path, identity)


def _episode_path(partial: Path, k: int) -> Path:
    return partial / f"episode_{k:06d}.npz"


def _collect_missing(partial: Path, episodes: int, env_id: str, seed: int, settings: dict[str, Any], jobs: int) -> None:
    paths = {k: _episode_path(partial, k) for k in range(episodes)}
    done = [stored_success(path) for path in paths.values() if path.exists()]
    missing = {k: path for k, path in paths.items() if not path.exists()}
    # Closed at once when Ctrl-C comes in here: it waits for the episodes under way.
    with (
        tqdm(total=episodes, initial=len(done), unit="episode", desc=env_id, dynamic_ncols=True) as bar,
        closing(record_episodes(missing, env_id, seed, settings, jobs)) as successes,
    ):
        for success in successes:
            done.append(success)
            bar.set_postfix(success=f"{np.mean(done):.0%}", refresh=False)
            bar.update()


def summary(demonstrations: Demonstrations) -> str:
    """Return a table of success rate and length in environment steps by quality."""
    lengths = np.array([len(actions) for actions in demonstrations.actions])
    successes, qualities = np.array(demonstrations.successes), np.array(demonstrations.qualities)
    lines = [f"{'quality':8} {'episodes':>8} {'success':>8} {'mean steps':>10}"]
    for quality in dict.fromkeys(("better", "okay", "worse", *demonstrations.qualities, "all")):
        chosen = np.full(len(lengths), True) if quality == "all" else qualities == quality
        if chosen.any():
            rate, steps = successes[chosen].mean(), lengths[chosen].mean()
            lines.append(f"{quality:8} {chosen.sum():8d} {rate:8.0%} {steps:10.1f}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser(
        "collect",
        "Collect demonstrations of mixed quality from scripted demonstrators (HDF5, robomimic's layout).",
        EXAMPLES,
    )
    parser.add_argument("--env", required=True, help="environment id, e.g. zprl/Push-v0")
    parser.add_argument("--output", required=True, type=Path, help="the HDF5 file to write, e.g. runs/push/demos.hdf5")
    parser.add_argument("--episodes", type=at_least(1), default=100, help="how many to write; default: %(default)s")
    add_seed(parser)
    parser.add_argument("--jobs", type=at_least(1), default=1, help="processes; default: %(default)s")
    add_settings(parser, "collect.yml")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl collect``."""
    args = parser().parse_args(argv)
    settings = load_settings(args.config, args.env, args.set)
    path = collect(args.env, args.episodes, args.seed, args.output, args.jobs, settings, args.overwrite)
    print(summary(load_demonstrations(path)))
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["collect", *sys.argv[1:]]))
