"""``zprl report``: learning curves against env steps, a table and the steering diagnostics of runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zprl_sb3.files import atomic_path
from zprl_sb3.report import ReportError, Run, draw, markdown_table, read_run
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import new_parser

EXAMPLES = """examples:
  zprl report runs/push/zprl-0 runs/push/zprl-1 runs/push/zprl-2 --output runs/push/report
  zprl report runs/push/zprl-* --output runs/push/report

Runs that differ in their seed only become one curve with a 95 % band; others are told apart by what differs. Runs that
still train can be reported too. A folder that cannot be reported is named and left out."""


def report(runs: Sequence[str | Path], output: str | Path) -> tuple[Path, str]:
    """Write ``report.png`` and ``report.md`` and return the picture's path and the table.

    :param runs: Run folders
    :param output: Folder to write to
    :raises ReportError: If no folder is a run that has evaluated
    """
    read = _readable(runs)
    picture = draw(read, Path(output) / "report.png")
    table = markdown_table(read)
    with atomic_path(Path(output) / "report.md") as temporary:
        temporary.write_text(f"{table}\n\n![learning curves](report.png)\n")
    return picture, table


def _readable(runs: Sequence[str | Path]) -> list[Run]:
    read: list[Run] = []
    for folder in runs:
        try:
            read.append(read_run(folder))
        except ReportError as error:
            if len(runs) == 1:
                raise
            print(f"zprl report: left out: {error}", file=sys.stderr)
    if not read:
        raise ReportError(f"None of these {len(runs)} folders can be reported")
    return read


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = new_parser("report", __doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", help="run folders of `zprl train`")
    parser.add_argument("--output", required=True, help="folder for report.png and report.md")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl report``."""
    args = parser().parse_args(argv)
    picture, table = report(args.runs, args.output)
    print(table)
    print(f"Wrote {picture} and {picture.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["report", *sys.argv[1:]]))
