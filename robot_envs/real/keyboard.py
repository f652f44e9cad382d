"""The person in the loop at a terminal: single keys, and one line that says how it stands."""

from __future__ import annotations

import atexit
import os
import re
import select
import signal
import termios
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.interrupts import TERMINATED
from zprl_sb3.robot_envs.real.decisions import ASKED, Answer, Decisions, Word
from zprl_sb3.robot_envs.real.robots import Status

KEYS = {
    " ": Word.STOP,
    "\n": Word.START,
    "s": Word.SUCCESS,
    "f": Word.FAILURE,
    "a": Word.ABORT,
    "p": Word.PAUSE,
    "r": Word.RESUME,
    "u": Word.UNLOCK,
    "c": Word.CLEAR,
    "q": Word.QUIT,
}
NAMES = {" ": "SPACE", "\n": "ENTER"}
# Arrows and function keys send several characters, letters among them.
SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?", re.DOTALL)
TERMINAL = "/dev/tty"  # of the process, whatever its stdin is
PERIOD, NOTE_SECONDS = 0.1, 4.0
LOCAL, CHARACTERS, INPUT = 3, 6, 0  # of what termios calls attributes


class KeyboardSupervisor(Decisions):
    """A :class:`~zprl_sb3.robot_envs.real.robots.Supervisor` at the terminal that the program was started from.

    That terminal is opened by its name, because an environment may live in a process whose stdin is none.
    Keys are read by a thread of its own, at once, so that a key pressed while the program is busy counts for what was
    shown when it was pressed. Ctrl-C still interrupts the program; Ctrl-Z and Ctrl-S, which would halt it in the middle
    of a motion, do nothing. The terminal is given back at :meth:`close`, at the end of the program, after an exception
    and SIGTERM (after SIGKILL, ``stty sane`` does). If the terminal goes away, the robot is stopped: nobody else could.

    :raises ValueError: If there is no terminal, or the program runs in its background
    """

    def __init__(self) -> None:
        super().__init__()
        self._terminal = _opened()
        self._before = termios.tcgetattr(self._terminal)
        self._wake, self._waker = os.pipe()
        self._open = True
        self._note, self._note_until, self._drawn = "", 0.0, ""
        atexit.register(self.close)
        self._take_terminal()
        self._restores_at_sigterm = _at_sigterm(self._terminated)
        self._thread = threading.Thread(target=self._run, name="keyboard", daemon=True)
        self._thread.start()

    def show(self, status: Status, frames: Mapping[str, NDArray[np.uint8]]) -> None:
        """Take over how it stands; the thread shows it within a tenth of a second. Images are not shown."""
        self.turn_to(status)

    def close(self) -> None:
        """Give back the terminal. May be called twice."""
        if not self._open:
            return
        self._open = False
        self._give_back()
        os.write(self._waker, b"x")
        self._thread.join()
        if self._restores_at_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        atexit.unregister(self.close)
        for descriptor in (self._terminal, self._wake, self._waker):
            os.close(descriptor)

    def _take_terminal(self) -> None:
        now = termios.tcgetattr(self._terminal)
        now[LOCAL] &= ~(termios.ICANON | termios.ECHO)
        now[INPUT] &= ~termios.IXON
        now[CHARACTERS] = list(now[CHARACTERS])
        now[CHARACTERS][termios.VMIN], now[CHARACTERS][termios.VTIME] = 1, 0
        for key in (termios.VSUSP, termios.VQUIT):
            now[CHARACTERS][key] = os.fpathconf(self._terminal, "PC_VDISABLE").to_bytes(1, "little")
        termios.tcsetattr(self._terminal, termios.TCSANOW, now)

    def _give_back(self) -> None:
        with suppress(termios.error, OSError):  # it may be gone
            termios.tcflush(self._terminal, termios.TCIFLUSH)
            termios.tcsetattr(self._terminal, termios.TCSANOW, self._before)
            os.write(self._terminal, b"\r\n")

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        self.close()
        raise SystemExit(TERMINATED)

    def _run(self) -> None:
        try:
            self._listen()
        except Exception:
            self.say(Word.STOP, self.turn)  # no key would be heard any more
            raise

    def _listen(self) -> None:
        while self._open:
            with suppress(OSError):
                self._draw()
            readable, _, _ = select.select([self._terminal, self._wake], [], [], PERIOD)
            if self._terminal in readable and self._open and not self._read():
                return

    def _read(self) -> bool:
        try:
            typed = os.read(self._terminal, 1024).decode(errors="replace")
        except BlockingIOError:
            return True
        except OSError:
            typed = ""
        if not typed:
            self.say(Word.STOP, self.turn)
            return False
        for key in SEQUENCE.sub("", typed).lower().replace("\r", "\n").replace(" ", ""):
            self._press(key)
        if " " in typed:  # wherever: nothing hides a stop, and it goes before what was said with it
            self._press(" ")
        return True

    def _press(self, key: str) -> None:
        word = KEYS.get(key)
        answer = Answer(False, f"{key!r} is no key here") if word is None else self.say(word, self.turn)
        self._note, self._note_until = ("" if answer.taken else answer.text), time.monotonic() + NOTE_SECONDS
        if word is Word.QUIT:
            self._note = "quits after this episode"

    def _draw(self) -> None:
        note = self._note if time.monotonic() < self._note_until else ""
        line = status_line(self.status, self.unlocked, note)[: os.get_terminal_size(self._terminal).columns - 1]
        if line != self._drawn:
            self._drawn = line
            os.write(self._terminal, f"\r\x1b[K{line}".encode())


def status_line(status: Status | None, unlocked: bool, note: str) -> str:
    """Return the line that says how it stands and which keys may be pressed, the most important first."""
    if status is None:
        return "starting | SPACE stop  q quit"
    words = [*ASKED.get(status.phase, ()), Word.STOP, Word.QUIT]
    if status.phase == "stopped":
        words.remove(Word.UNLOCK if unlocked else Word.CLEAR)
    names = {word: NAMES.get(key, key) for key, word in KEYS.items()}
    parts = [
        f"{status.phase.upper()} {status.seconds:.0f} s" if status.phase == "running" else status.phase.upper(),
        note or status.message,
        "  ".join(f"{names[word]} {word.value}" for word in words),
        f"{status.task}, episode {status.episode}, {status.successes} of {status.episodes} succeeded",
    ]
    return " | ".join(part.replace("\n", " ") for part in parts if part)


def _opened() -> int:
    page = "let people supervise by the page (supervisor: {kind: page})"
    try:
        # Not waiting: a terminal that nobody looks at may take no more text.
        terminal = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise ValueError(
            f"The keyboard cannot supervise: there is no terminal ({error.strerror}). Start it in one, or {page}"
        ) from error
    if os.tcgetpgrp(terminal) != os.getpgrp():
        os.close(terminal)
        raise ValueError(
            f"The keyboard cannot supervise: the program runs in the background. Bring it to the foreground, or {page}"
        )
    return terminal


def _at_sigterm(handler: Any) -> bool:
    """Have SIGTERM handled, where nobody does so yet and Python can."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return False
    signal.signal(signal.SIGTERM, handler)
    return True
