"""A person at a real terminal: a program in a process of its own, on the other side of a pty."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from zprl_sb3.robot_envs.real.decisions import Decisions
from zprl_sb3.robot_envs.real.keyboard import status_line
from zprl_sb3.robot_envs.real.robots import Status

# Prints each thing that was said. Its phases follow: a start begins an episode, an outcome ends it.
PROGRAM = """
import os, signal, sys, time
from zprl_sb3.robot_envs.real.keyboard import KeyboardSupervisor
from zprl_sb3.robot_envs.real.robots import Signal, Status

if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
if "worker" in sys.argv:  # a process of an environment: stdin is /dev/null there
    sys.stdin = open("/dev/null")
    os.dup2(sys.stdin.fileno(), 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
keyboard = KeyboardSupervisor()
episode, phase = 1, "reset"
PHASES = {Signal.STOP: "stopped", Signal.PAUSE: "paused", Signal.RESUME: "running"}

def show(new=None):
    global phase
    phase = new or phase
    keyboard.show(Status("toy", phase, "put the orange back", episode, 5, 2, 1.0), {})

show()
print("up", flush=True)
while True:
    said = keyboard.poll()
    if said is not None:
        print(said.value, flush=True)
        if said is Signal.QUIT:
            break
        if said is Signal.FAILURE:
            raise RuntimeError("a fault of the program")
        if said in PHASES:
            show(PHASES[said])
        else:
            episode += 1
            show("judging" if said is Signal.ABORT else "reset")
    if keyboard.ready():
        print("start", flush=True)
        show("running")
    if (verdict := keyboard.verdict()) is not None:
        print("verdict", verdict, flush=True)
        show("reset")
    if keyboard.cleared():
        print("cleared", flush=True)
        show("reset")
    time.sleep(0.01)
keyboard.close()
print("closed", flush=True)
"""


class Terminal:
    """A terminal of 100 columns, in which the program runs."""

    def __init__(self, *arguments: str) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.before = self.attributes()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=self.slave,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.screen = ""
        assert self.line() == "up"

    def attributes(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def line(self) -> str:
        """Return what the program says next, and read meanwhile what it shows."""
        assert self.process.stdout is not None
        end = time.monotonic() + 60
        while time.monotonic() < end:
            ready, _, _ = select.select([self.process.stdout, self.master], [], [], 1.0)
            if self.master in ready:
                self.screen += os.read(self.master, 65536).decode()
            if self.process.stdout in ready:
                return self.process.stdout.readline().strip()
        raise AssertionError("the program says nothing")

    def shows(self, text: str) -> bool:
        """Return whether the line that is shown within ten seconds has a text."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            if text in self.screen.rpartition("\r\x1b[K")[2]:
                return True
            if select.select([self.master], [], [], 0.1)[0]:
                self.screen += os.read(self.master, 65536).decode()
        return False

    def ends(self) -> int:
        return self.process.wait(20)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        for descriptor in (self.master, self.slave):
            os.close(descriptor)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_a_session_at_the_keyboard(terminal: Terminal) -> None:
    assert terminal.shows("RESET | put the orange back | ENTER start")
    terminal.type("\r")
    assert terminal.line() == "start"
    assert terminal.shows("s success  f failure  a abort  p pause  SPACE stop")
    # Neither what is no key, nor a key that asks for nothing now, nor an arrow (ESC [ A) is taken for something.
    terminal.type("x\x1b[A\r")
    assert terminal.shows("start was not taken")
    terminal.type("P")
    assert terminal.line() == "pause"
    terminal.type("r")
    assert terminal.line() == "resume"
    # Ctrl-S and Ctrl-Z would halt the program with the robot on its way.
    terminal.type("\x13\x1a")
    terminal.type("s")
    assert terminal.line() == "success"
    terminal.type("\r")
    assert terminal.line() == "start"
    terminal.type("s ")
    assert terminal.line() == "stop"
    assert terminal.shows("u unlock")
    terminal.type("c")
    assert terminal.shows("unlock it first")
    terminal.type("u")
    assert terminal.shows("c clear")
    time.sleep(1.1)
    terminal.type("c")
    assert terminal.line() == "cleared"
    terminal.type("\r")
    assert terminal.line() == "start"
    terminal.type("a")
    assert terminal.line() == "abort"
    terminal.type("s")
    assert terminal.line() == "verdict True"
    # One line, written over: never longer than the terminal is wide, and no other line begun.
    assert "\n" not in terminal.screen
    assert max(len(line) for line in terminal.screen.split("\r\x1b[K")) < 100
    terminal.type("q")
    assert terminal.line() == "quit"
    assert terminal.line() == "closed"
    assert terminal.ends() == 0
    assert terminal.attributes() == terminal.before


@pytest.mark.parametrize("how", ["exception", "Ctrl-C", "SIGTERM"])
def test_the_terminal_is_given_back(terminal: Terminal, how: str) -> None:
    assert terminal.attributes() != terminal.before
    if how == "exception":
        terminal.type("\r")
        assert terminal.line() == "start"
        terminal.type("f")
        assert terminal.line() == "failure"
    elif how == "Ctrl-C":
        terminal.type("\x03")
    else:
        terminal.process.send_signal(signal.SIGTERM)
    code = terminal.ends()
    assert terminal.attributes() == terminal.before
    _, errors = terminal.process.communicate()
    expected = {"exception": "a fault of the program", "Ctrl-C": "KeyboardInterrupt", "SIGTERM": ""}[how]
    assert expected in errors
    assert code == {"exception": 1, "Ctrl-C": -signal.SIGINT, "SIGTERM": 143}[how]


def test_a_terminal_that_goes_away_stops_the_robot() -> None:
    terminal = Terminal("nohup")
    os.close(terminal.slave)
    os.close(terminal.master)
    assert terminal.process.stdout is not None
    assert terminal.process.stdout.readline() == "stop\n"
    terminal.process.kill()
    terminal.process.communicate()


def test_an_environment_in_a_process_of_its_own_has_the_terminal_too() -> None:
    terminal = Terminal("worker")
    said = []
    for key in "\rs\r q":
        terminal.type(key)
        said.append(terminal.line())
    assert said == ["start", "success", "start", "stop", "quit"]
    assert terminal.line() == "closed"
    assert terminal.attributes() == terminal.before
    terminal.close()


def test_no_keyboard_without_a_terminal() -> None:
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True)
    assert result.returncode == 1
    assert "there is no terminal" in result.stderr
    assert "supervisor: {kind: page}" in result.stderr


def test_no_keyboard_in_the_background() -> None:
    """A job that a shell has started with ``&``: it could neither read nor change its terminal."""
    master, slave = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "-c", 'set -m; "$@" background & wait $!', "bash", sys.executable, "-c", PROGRAM],
        stdin=slave,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    _, errors = shell.communicate(timeout=60)
    assert "runs in the background" in errors
    os.close(master)
    os.close(slave)


def test_the_line_says_first_what_may_be_pressed() -> None:
    status = Status("toy", "stopped", "by a person", 3, 2, 1, 0.0)
    assert status_line(status, False, "") == (
        "STOPPED | by a person | u unlock  SPACE stop  q quit | toy, episode 3, 1 of 2 succeeded"
    )
    assert "c clear" in status_line(status, True, "")
    assert "unlock" not in status_line(status, True, "")
    assert re.match(r"RUNNING 5 s \| s success", status_line(Status("toy", "running", "", 1, 0, 0, 5.2), False, ""))
    assert "SPACE stop" in status_line(Decisions().status, False, "")
