"""``zprl report``: learning curves, tables, statistics over seeds and tasks, and videos of runs, on one HTML page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from zprl_sb3.files import atomic_path
from zprl_sb3.report import ReportError, Run, read_bases, read_run
from zprl_sb3.report_contents import collect_figures, sections, write_figures
from zprl_sb3.report_groups import by_environment, group
from zprl_sb3.report_page import html, markdown
from zprl_sb3.report_text import group_text
from zprl_sb3.report_text import markdown as table_as_markdown
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import new_parser

EXAMPLES = """examples:
  zprl report runs/push/zprl-0 runs/push/zprl-1 runs/push/zprl-2 --output runs/push/report
  zprl report runs/push/zprl-* --output runs/push/report

Runs that differ in their seed only become one curve with a 95 % band; others are told apart by method and by what
differs. Runs that still train can be reported too. A folder that cannot be reported is named and left out.

report.html holds its pictures, and videos (of `zprl evaluate RUN --video N`) up to 5 MB; it opens without a server.
Beside it are the same as report.md, report.png and other pictures, and CSV files with every figure."""


def report(runs: Sequence[str | Path], output: str | Path) -> tuple[Path, str]:
    """Write ``report.html``, ``report.md``, their pictures and CSV files; return the page's path and the table.

    :param runs: Run folders
    :param output: Folder to write to
    :raises ReportError: If no folder is a run that has evaluated
    """
    output, read = Path(output), _readable(runs)
    bases, groups = read_bases(read), group(read)
    figures = collect_figures(groups, bases)
    contents = sections(groups, bases, figures, output)
    files = write_figures(figures, output)
    environments = list(by_environment(groups))
    title = f"{', '.join(environments[:3])}{', ...'[: 5 * (len(environments) > 3)]}: {len(read)} runs"
    pages = {"report.md": markdown(title, contents, output), "report.html": html(title, contents, files, output)}
    for name, page in pages.items():
        with atomic_path(output / name) as temporary:
            temporary.write_text(page, encoding="utf-8")
    return output / "report.html", table_as_markdown(group_text(figures["table"]))


def _readable(runs: Sequence[str | Path]) -> list[Run]:
    read: list[Run] = []
    for folder in {Path(each).resolve(): each for each in runs}.values():  # twice the same would be two seeds
        try:
            read.append(read_run(folder))
        except (ReportError, OSError) as error:
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
    parser.add_argument("--output", required=True, help="folder for report.html and the files beside it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zprl report``."""
    args = parser().parse_args(argv)
    page, table = report(args.runs, args.output)
    print(table)
    print(f"Wrote {page}, and beside it report.md, pictures and CSV files")
    return 0


if __name__ == "__main__":
    sys.exit(cli.main(["report", *sys.argv[1:]]))
