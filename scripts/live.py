"""How many runs at once are shown: a table on a terminal, elsewhere a line when one starts or ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table


@contextmanager
def shown(
    states: Mapping[str, str], left: Callable[[], str], table: Callable[[], Table], initial: str = "waiting"
) -> Iterator[Callable[[], None]]:
    """Yield what shows the runs as they are now, to be called again and again.

    :param states: Of the runs by name; new names may come
    :param left: Says what is left to do, behind each line
    :param table: Draws them for a terminal
    :param initial: The state that needs no line
    """
    console, told = Console(), dict[str, str]()
    if console.is_terminal:
        with Live(table(), console=console, refresh_per_second=1) as live:
            yield lambda: live.update(table())
            live.update(table())
        return

    def tell() -> None:
        for name, state in states.items():
            if state != told.get(name, initial):
                print(f"{time.strftime('%H:%M:%S')} {name}: {state} ({left()})", flush=True)
                told[name] = state

    tell()
    yield tell
    tell()
