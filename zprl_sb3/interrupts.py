"""Ctrl-C and SIGTERM that wait until the work at hand is done."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # from a person, and from a scheduler (Slurm, Docker) before it kills
PARENT = "ZPRL_PARENT"  # an environment variable: process with which :func:`end_with_parent` ends this one
PR_SET_PDEATHSIG = 1  # of prctl(2)
# 130 and 143, the exit statuses that shells and schedulers expect
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class Interrupts:
    """The signals that have arrived. True from the first one on."""

    def __init__(self) -> None:
        self._received: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._received)

    def exception(self) -> KeyboardInterrupt | SystemExit:
        """Return what the first signal asks for, to be raised: KeyboardInterrupt, or SystemExit(143) after SIGTERM."""
        return SystemExit(TERMINATED) if self._received[0] == signal.SIGTERM else KeyboardInterrupt()

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Note a signal.

        :param number: SIGINT or SIGTERM
        :param frame: Where it fell; signal handlers get it
        :raises KeyboardInterrupt: At the second Ctrl-C. A second SIGTERM waits like the first: schedulers repeat it
        """
        again = signal.SIGINT in self._received
        self._received.append(number)
        if number == signal.SIGINT:
            if again:
                raise KeyboardInterrupt
            _say("\nStopping as soon as the work at hand is done. Ctrl-C again stops at once\n")


@contextmanager
def interrupts_wait() -> Iterator[Interrupts]:
    """Collect Ctrl-C and SIGTERM inside the block, so that neither falls into the middle of an update.

    The block looks at what this yields wherever it may stop. A second Ctrl-C stops at once, for a block that hangs. A
    signal that the block has not answered when it ends is raised there, so that none is lost; an error goes before it.
    Signals that the process was told to ignore (``nohup``, a job in the background) stay ignored. In other threads
    than the main one, where Python handles no signals, nothing is collected::

        with interrupts_wait() as pending:
            for unit in work:
                do(unit)
                if pending:
                    save()
                    raise pending.exception()

    :raises KeyboardInterrupt: For Ctrl-C
    :raises SystemExit: With 143, for SIGTERM
    """
    pending = Interrupts()
    previous = {number: signal.signal(number, pending.receive) for number in SIGNALS if _handled(number)}
    try:
        yield pending
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if pending:
        raise pending.exception()


def _handled(number: signal.Signals) -> bool:
    # None stands for a handler that is not Python's, and that Python could not put back.
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(number) not in (signal.SIG_IGN, None)


def _say(text: str) -> None:
    # Past Python's buffers: a handler that runs in the middle of another print may not use them.
    with suppress(OSError):  # Ctrl-C has ended the program behind a pipe, too
        os.write(2, text.encode())


def end_with_parent() -> None:
    """Get SIGTERM when the process that started this one ends, if that asked for it by ``ZPRL_PARENT`` (Linux).

    So a benchmark that is killed leaves no runs that a new one would run beside. The process asks for itself: what
    Python calls between fork and exec needs a copy of the starting process's memory, and may hang among threads.

    :raises SystemExit: If that process has ended already
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        raise SystemExit(TERMINATED)
