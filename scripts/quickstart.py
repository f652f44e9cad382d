"""``zprl quickstart``: the whole way on one task. Demonstrations, base policy, steered policy, evaluation, report."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zprl_sb3.files import atomic_path, write_json
from zprl_sb3.pretrain.configuration import compose
from zprl_sb3.report import EVALUATIONS
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.collect import collect
from zprl_sb3.scripts.common import add_device, add_seed, add_settings, new_parser
from zprl_sb3.scripts.evaluate import base_evaluation, evaluate_base, evaluate_run, table
from zprl_sb3.scripts.pretrain import pretrain
from zprl_sb3.scripts.report import report
from zprl_sb3.scripts.train import train
from zprl_sb3.settings import load_settings

DEFAULT_ENV = "zprl/Push-v0"

EXAMPLES = """examples:
  zprl quickstart
  zprl quickstart --env zprl/BoxClose-v0 --output runs/box
  zprl quickstart --env zprl/DrawerOpen-v0 --output runs/drawer --set demos=50
  zprl quickstart --output runs/trial --set 'train=[n_timesteps=20000, scale=0.3]' 'collect=[keep_failures=false]'

Settings come from the environment's entries in quickstart.yml, collect.yml, tasks.yml and zprl.yml. Stages that are
finished are not run again; an unfinished one goes on where it stopped."""

NEXT = """
What to type next (`zprl` is in .venv/bin):
  zprl evaluate {run} --episodes 500 --seed 200000                          # other episodes
  zprl train --policy {policy} --output {root}/zprl-{next} --seed {next}   # another seed
  zprl train --policy {policy} --output {root}/small-step --set scale=0.2   # another λ
  zprl report {root}/zprl-* --output {root}/report                          # curves, tables and statistics over seeds
  tensorboard --logdir {root}
"""


def quickstart(
    output: str | Path,
    seed: int,
    settings: dict[str, Any] | None = None,
    device: str = "auto",
    env_id: str = DEFAULT_ENV,
) -> dict[str, Any]:
    """Run every stage that is not finished yet and return the evaluations by policy.

    Settings: the entries of ``env_id`` in ``hyperparams/``; nothing is decided here.

    :param output: Folder for everything
    :param seed: Of the steering; demonstrations and base policy have the settings' ``base_seed``
    :param settings: As ``hyperparams/quickstart.yml`` has them, which is where None takes them from
    :param device: ``cpu``, ``cuda`` or ``auto``
    :param env_id: The task
    """
    root, start = Path(output), time.monotonic()
    settings = settings or load_settings("quickstart.yml", env_id)
    episodes, eval_seed = settings["eval_episodes"], settings["eval_seed"]
    _stage("1/5 demonstrations", start)
    collection = load_settings("collect.yml", env_id, settings["collect"])
    base_seed = settings["base_seed"]
    demos = collect(env_id, settings["demos"], base_seed, root / "demos.hdf5", settings["jobs"], collection)
    _stage("2/5 base policy", start)
    files = [f"demos='{demos}'", f"output='{root / 'base'}'", f"seed={base_seed}", f"device={device}"]
    policy = pretrain(compose(overrides=[*settings["pretrain"], *files]))
    _stage("3/5 base policy, four ways", start)
    results = evaluate_base(policy, episodes, eval_seed, device)
    write_json(base_evaluation(policy), results)
    _stage("4/5 steering", start)
    steering = load_settings("zprl.yml", env_id, settings["train"], collection["observation"])
    run = train(policy, root / f"zprl-{seed}", seed, steering, device).parent
    _stage("5/5 evaluation", start)
    results["steered"] = evaluate_run(run, episodes, eval_seed, device=device)
    results["steered, zero noise"] = evaluate_run(run, episodes, eval_seed, noise="zero", device=device)
    write_json(root / "quickstart.json", results)
    for name, file in EVALUATIONS.items():
        write_json(run / file, results[name])
    page, _ = report([run], root / "report")
    _finish(root, table(results), run, page, policy, seed, start)
    return results


def _stage(name: str, start: float) -> None:
    print(f"\n== {name} ({(time.monotonic() - start) / 60:.1f} min) ==", flush=True)


def _finish(root: Path, text: str, run: Path, page: Path, policy: Path, seed: int, start: float) -> None:
    with atomic_path(root / "quickstart.md") as temporary:
        temporary.write_text(text + "\n")
    print(f"\n{text}\n")
    print(f"report   {page}\nmodel    {run / 'model.zip'}\nfigures  {root / 'quickstart.json'}")
    print(f"took     {(time.monotonic() - start) / 60:.1f} min")
    print(NEXT.format(run=run, policy=policy, root=root, next=seed + 1))


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser("quickstart", __doc__, EXAMPLES)
    parser.add_argument("--env", default=DEFAULT_ENV, help="environment id; default: %(default)s")
    parser.add_argument("--output", default="runs/quickstart", help="folder for everything; default: %(default)s")
    add_seed(parser, text="of the steering (of demonstrations and base policy: --set base_seed=...)")
    add_settings(parser, "quickstart.yml")
    add_device(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl quickstart``."""
    args = parser().parse_args(argv)
    settings = load_settings(args.config, args.env, args.set)
    quickstart(args.output, args.seed, settings, args.device, args.env)
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["quickstart", *sys.argv[1:]]))
