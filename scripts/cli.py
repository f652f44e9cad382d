"""``zprl``: the programs under one name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import gymnasium as gym

PROGRAMS = {
    "quickstart": "the whole way on one task, in minutes: collect, pretrain, train, evaluate, report",
    "collect": "demonstrations from imperfect scripted demonstrators -> HDF5 in robomimic's layout",
    "convert": "robomimic's or Minari's data sets -> demonstrations for pretrain",
    "pretrain": "demonstrations -> frozen flow policy with a bottleneck",
    "train": "frozen policy -> steered policy, with SteeringSAC",
    "evaluate": "success of a base or steered policy on fixed episodes, as JSON",
    "report": "runs -> learning curves, table and steering diagnostics",
}

# What a user can mend. Anything else is a fault of ours and shows its traceback.
MENDABLE = (ValueError, KeyError, OSError, ImportError, FloatingPointError, gym.error.Error)


def usage() -> str:
    """Return the text of ``zprl --help``."""
    lines = [f"  {name:10} {text}" for name, text in PROGRAMS.items()]
    head = ["usage: zprl PROGRAM [arguments]", "", "programs (each explains itself with --help):"]
    return "\n".join([*head, *lines, "", "With ZPRL_TRACEBACK=1 in the environment, errors show where they come from."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program named by the first argument; errors that a user can mend are printed without a traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in PROGRAMS:
        print(f"zprl: no program {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        # Imported only now: collecting needs no torch, and `zprl --help` needs nothing.
        program = importlib.import_module(f"zprl_sb3.scripts.{name}")
        return int(program.main(rest))
    except KeyboardInterrupt:
        return 130
    except MENDABLE as error:
        if os.environ.get("ZPRL_TRACEBACK"):
            raise
        print(f"zprl {name}: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
