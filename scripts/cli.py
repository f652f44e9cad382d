"""``zprl``: the programs under one name."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym

from zprl_sb3.interrupts import INTERRUPTED, end_with_parent
from zprl_sb3.robot_envs.real.robots import RobotError

PROGRAMS = {
    "quickstart": "the whole way on one task, in minutes: collect, pretrain, train, evaluate, report",
    "collect": "demonstrations from imperfect scripted demonstrators -> HDF5 in robomimic's layout",
    "record": "demonstrations on a real robot, by whoever moves a leader arm -> HDF5 in robomimic's layout",
    "robot-server": "a robot and its cameras, under limits -> clients on the network that have a key",
    "convert": "robomimic's, Minari's or LeRobot's data sets -> demonstrations for pretrain",
    "pretrain": "demonstrations -> frozen flow policy with a bottleneck",
    "attach": "a frozen policy of any kind and demonstrations -> the same policy with a bottleneck",
    "calibrate": "a base policy and its demonstrations -> a λ to start from, as a table and a picture",
    "train": "frozen policy -> steered policy, with SteeringSAC",
    "evaluate": "success of a base or steered policy on fixed episodes, as JSON",
    "tune": "search for λ and other settings with Optuna: several workers on one study, pruning, resumable",
    "analyse": "what steering does to a policy: maps, distances by λ, traces and smoothness, as pictures",
    "benchmark": "tasks x methods x seeds from one file, queued on this machine or with Ray",
    "report": "runs -> one HTML page: curves, tables, statistics over seeds and tasks, videos",
}

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TUNABLE = "glibc.malloc.hugetlb"

# What a user can mend. Anything else is a fault of ours and shows its traceback.
MENDABLE = (ValueError, KeyError, OSError, ImportError, FloatingPointError, RobotError, gym.error.Error)


def usage() -> str:
    """Return the text of ``zprl --help``."""
    lines = [f"  {name:12} {text}" for name, text in PROGRAMS.items()]
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
        program = importlib.import_module(f"zprl_sb3.scripts.{name.replace('-', '_')}")
        return int(program.main(rest))
    except KeyboardInterrupt:
        return INTERRUPTED
    except MENDABLE as error:
        if os.environ.get("ZPRL_TRACEBACK"):
            raise
        print(f"zprl {name}: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 1


def entry() -> int:
    """Run what the command line asks for, as the command ``zprl``."""
    end_with_parent()
    _use_huge_pages()
    return main()


def _use_huge_pages() -> None:
    """Start anew with memory in huge pages, where Linux gives them to programs that ask.

    With small ones a processor looks for addresses for a third of an update's time: 19 ms instead of 13, of 5 critics
    of 128 in a virtual machine. glibc reads its tunables only when a program starts. ``GLIBC_TUNABLES`` that name this
    one stay as they are (``glibc.malloc.hugetlb=0`` for small pages).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if TUNABLE in tunables or not HUGE_PAGES.is_file() or "[madvise]" not in HUGE_PAGES.read_text():
        return
    os.environ["GLIBC_TUNABLES"] = f"{tunables}:{TUNABLE}=1".lstrip(":")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    sys.exit(entry())
