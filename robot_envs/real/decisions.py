"""What a person has said, kept until the environment asks: shared by the page and the keyboard."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from zprl_sb3.robot_envs.real.robots import Signal, Status

# A stop is cleared by two acts: the second neither as part of a double click, nor long after the first.
CLEAR_AFTER, CLEAR_WITHIN = 1.0, 15.0


class Word(Enum):
    """What a person can say: the signals, and what episodes begin and stops end with."""

    START = "start"
    SUCCESS = "success"
    FAILURE = "failure"
    ABORT = "abort"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    UNLOCK = "unlock"  # the first of the two acts that clear a stop
    CLEAR = "clear"
    QUIT = "quit"


OUTCOMES = (Word.ABORT, Word.FAILURE, Word.SUCCESS)  # the most urgent one first
ALWAYS = (Word.STOP, Word.QUIT)
URGENT = (Word.STOP, *OUTCOMES, Word.PAUSE, Word.RESUME, Word.QUIT)
JUDGING = (Word.STOP, Word.ABORT, Word.QUIT)  # the others are the verdict
# What is asked for in each phase; a stop and the wish to end may be said in all of them.
ASKED: dict[str, tuple[Word, ...]] = {
    "preparing": (),
    "reset": (Word.START,),
    "running": (Word.SUCCESS, Word.FAILURE, Word.ABORT, Word.PAUSE),
    "paused": (Word.RESUME, Word.SUCCESS, Word.FAILURE, Word.ABORT),
    "judging": (Word.SUCCESS, Word.FAILURE, Word.ABORT),
    "stopped": (Word.UNLOCK, Word.CLEAR),
}
# What lets the robot move: it counts for the very phase that it was said in.
MOVING = (Word.START, Word.RESUME, Word.UNLOCK, Word.CLEAR)


@dataclass(frozen=True)
class Answer:
    """Whether something said was taken, and what a person should be told of it."""

    taken: bool
    text: str


class Decisions:
    """Keeps what was said until it is asked for, and nothing that came too late. For several threads.

    Phases are numbered (``turn``), and whoever speaks says which one they saw. What lets the robot move counts only for
    that very phase, what ends an episode for that episode, whatever its phase now is; stop and quit always count.

    Page and keyboard are such an object, with a way to speak to it: the questions of
    :class:`~zprl_sb3.robot_envs.real.robots.Supervisor` are answered here.
    """

    def __init__(self) -> None:
        self.on_stop: Callable[[], None] | None = None
        """Called at once when a stop is said, in the thread of who says it; the environment may be busy then (a home
        run, updates) and not ask for long. The signal waits for :meth:`poll` all the same."""
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._turn = 0  # grows with each phase
        self._episode_turn = 0  # the one that the present episode began with
        self._said: set[Word] = set()
        self._unlocked = -math.inf

    @property
    def turn(self) -> int:
        """Number of the present phase."""
        return self._turn

    @property
    def status(self) -> Status | None:
        """What was shown last."""
        return self._status

    @property
    def unlocked(self) -> bool:
        """Whether the first act of clearing a stop was done, and not too long ago for the second."""
        return time.monotonic() - self._unlocked <= CLEAR_WITHIN

    def turn_to(self, status: Status) -> None:
        """Take over how it stands. What was said for a phase that is over is forgotten."""
        with self._lock:
            before, self._status = self._status, status
            if before is not None and (before.phase, before.episode) == (status.phase, status.episode):
                return
            self._turn += 1
            self._unlocked = -math.inf
            kept = {*ALWAYS, *(OUTCOMES if status.phase in ("running", "paused", "judging") else ())}
            if status.phase in ("preparing", "reset") or before is None or before.episode != status.episode:
                self._episode_turn, kept = self._turn, {*ALWAYS}
            self._said &= kept

    def say(self, word: Word, turn: int) -> Answer:
        """Take what a person says.

        :param turn: :attr:`turn` of what they saw when they said it
        """
        with self._lock:
            answer = self._take(word, turn)
        if word is Word.STOP and self.on_stop is not None:
            try:
                self.on_stop()
            except Exception as error:  # whatever it is: who reads keys or answers a page must go on
                return Answer(False, f"Use the robot's own emergency stop: it did not confirm this one ({error})")
        return answer

    def _take(self, word: Word, turn: int) -> Answer:
        refusal = self._refusal(word, turn)
        if refusal is not None:
            return Answer(False, refusal)
        if word is Word.UNLOCK:
            self._unlocked = time.monotonic()
            return Answer(True, "unlocked")
        if word is Word.STOP:
            # It takes back all that would let the robot move or the episode count.
            self._said &= {*ALWAYS}
            self._unlocked = -math.inf
        if word is Word.CLEAR:
            # Later, and meant: it answers a stop that was said twice.
            self._said.discard(Word.STOP)
            self._unlocked = -math.inf
        self._said.add(word)
        return Answer(True, word.value)

    def _refusal(self, word: Word, turn: int) -> str | None:
        if word in ALWAYS:
            return None
        phase = self._status.phase if self._status else "starting"
        if word not in ASKED.get(phase, ()):
            return f"{word.value} was not taken: it is not asked for now ({phase})"
        if turn < self._episode_turn or (word in MOVING and turn != self._turn):
            return f"{word.value} was not taken: it was said for something that is over"
        if word is Word.CLEAR:
            return self._too_hasty()
        return None

    def _too_hasty(self) -> str | None:
        if not self.unlocked:
            return "The stop was not cleared: unlock it first"
        if time.monotonic() - self._unlocked < CLEAR_AFTER:
            return "The stop was not cleared: look whether the robot may move, then confirm"
        return None

    def ready(self) -> bool:
        """Return whether a start was said for this reset; True once."""
        return self._pop(Word.START)

    def cleared(self) -> bool:
        """Return whether this stop was cleared; True once."""
        return self._pop(Word.CLEAR)

    def verdict(self) -> bool | None:
        """Return what was said of an episode that ran out of time, FAILURE before SUCCESS; None: nothing."""
        if self._pop(Word.FAILURE):
            self._pop(Word.SUCCESS)
            return False
        return True if self._pop(Word.SUCCESS) else None

    def poll(self) -> Signal | None:
        """Return the most urgent signal that was said since the last call; the others wait, or mean nothing any more.

        While an episode is judged, success and failure are left to :meth:`verdict`.
        """
        with self._lock:
            judging = self._status is not None and self._status.phase == "judging"
            word = next((word for word in (JUDGING if judging else URGENT) if word in self._said), None)
            if word is None:
                return None
            # An outcome answers for all of the episode.
            self._said -= {word, *OUTCOMES, Word.PAUSE, Word.RESUME} if word in OUTCOMES else {word}
            return Signal(word.value)

    def _pop(self, word: Word) -> bool:
        with self._lock:
            said = word in self._said
            self._said.discard(word)
            return said
