"""``zprl robot-server``: gives a robot and its cameras, under the task's limits, to the computer that trains."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from zprl_sb3.interrupts import TERMINATED
from zprl_sb3.robot_envs.real import ADDRESS, KEYS
from zprl_sb3.robot_envs.real.robots import RobotError
from zprl_sb3.robot_envs.real.tasks import load_task, local_station, part
from zprl_sb3.scripts import cli
from zprl_sb3.scripts.common import new_parser

if TYPE_CHECKING:
    from zprl_sb3.robot_envs.real.server import RobotServer

EVERY = 5.0  # seconds between two lines of status

EXAMPLES = """examples:
  zprl robot-server --make-keys ~/.config/zprl      # once: server.key, clients/robot.pub, and robot.key for the client
  zprl robot-server --task place_orange             # for clients on this computer
  zprl robot-server --task my_robot.yml --bind tcp://192.168.1.10:5560      # for those that reach this interface
  zprl robot-server --make-keys ~/.config/zprl --client laptop              # a key for one more client

Copy robot.key to ~/.config/zprl/ on the client's computer, over a channel that you trust, and remove it here.

While it runs: Enter, or stop and Enter, stops the robot until clear and Enter. Ctrl-C ends the server; the robot holds.
This does not replace the robot's own emergency stop: keep that within reach."""

KINDS = {"pose": "poses", "joints": "joint angles"}


def make_keys(folder: str, client: str) -> None:
    """Make the server's keys, where there are none, and those of a client; say where they belong."""
    file = part("keys", "pyzmq", "real").make_keys(folder, client)
    print(f"Wrote {file}: move it to ~/.config/zprl/ on the client's computer (robot.key is looked for by itself).")
    print(f"The server keeps {file.parent}/server.key and {file.parent}/clients/{client}.pub, by which it admits it.")


def serve(task: str, keys: str, bind: str, address: str | None = None, console: TextIO = sys.stdin) -> NoReturn:
    """Serve a task's robot until the program is interrupted.

    :param task: Name or path of a task
    :param keys: Folder of the keys
    :param bind: Address to bind to
    :param address: By which clients reach it, if that is another one
    :param console: Where a person types
    :raises TaskError: If the task's file cannot be used
    :raises RobotError: If robot or cameras cannot be connected, or the server fails later
    """
    served = load_task(task)
    listed = part("keys", "pyzmq", "real").read_server_keys(keys)
    server: RobotServer = part("server", "pyzmq and msgpack", "real").RobotServer(local_station(served), listed, bind)
    print(f"Connecting to the robot of {served.path}", flush=True)
    with server:
        for name, arm in served.arms.items():
            gripper = " and a gripper" if arm.gripper else ""
            print(
                f"Arm {name}: {arm.joints} joints{gripper}, is told {KINDS[arm.control]}; limits: {served.limits[name]}"
            )
        print(f"Cameras: {', '.join(served.drivers['cameras']) or 'none'}")
        print(f"Clients reach it by robot: {{driver: remote, address: {address or server.address}}}")
        print(f"Admitted are the keys of {', '.join(sorted(listed.clients.values())) or 'nobody: see --make-keys'}")
        print("Enter stops the robot, clear and Enter clears; Ctrl-C ends", flush=True)
        threading.Thread(target=_listen, args=(server, console), daemon=True).start()
        _report(server)


def _listen(server: RobotServer, console: TextIO) -> None:
    """Do what a person types, until there is nobody any more who could."""
    try:
        for line in console:
            _say(_answer(server, line.strip().lower()))
    except (OSError, ValueError) as error:  # bytes that are no text, too: whoever hits the keys wants it to stop
        server.stop(f"The console of the robot server cannot be read any more: {error}")
        _say("STOPPED: the console cannot be read any more. Start the server again")
    else:
        _say("The console is closed: nobody stops the robot here any more. Clients can, and its own emergency stop")


def _answer(server: RobotServer, said: str) -> str:
    if said in ("", "stop"):
        server.stop("Stopped by a person at the robot server")
        return "STOPPED; clear and Enter lets it move again"
    if said != "clear":
        return "Enter or stop: stop the robot. clear: let it move again"
    try:
        server.clear()
    except RobotError as error:
        return f"NOT cleared: {error}"
    return "Cleared"


def _say(text: str) -> None:
    with suppress(OSError):  # nobody may read that any more, but what is typed still counts
        print(text, flush=True)


def _report(server: RobotServer) -> NoReturn:
    shown, told = 0.0, None
    while server.failure is None:
        stopped = server.status().stopped
        if time.monotonic() - shown > EVERY or stopped != told:
            shown, told = time.monotonic(), stopped
            print(status_line(server), flush=True)
        time.sleep(0.2)
    raise RobotError(f"{server.failure}. The robot is stopped and let go of: start the server again")


def status_line(server: RobotServer) -> str:
    """Return who is there, how regular commands and loop are, and which limits were in the way."""
    status = server.status()
    commands = f"{status.commander} commands at {status.rate:.1f} Hz, jitter {status.jitter * 1000:.1f} ms"
    loop = f"jitter {status.loop.jitter_p99 * 1000:.1f} ms, {status.loop.missed} missed"
    limited = ", ".join(f"{name} {count}" for name, count in sorted(status.limited.items())) or "none"
    parts = [
        time.strftime("%H:%M:%S"),
        f"clients: {', '.join(status.clients) or 'none'}",
        commands if status.commander else "nobody commands",
        f"loop: {loop}",
        f"limits: {limited}",
        f"refused: {status.refused}",
        *([f"STOPPED: {status.stopped}"] if status.stopped else []),
    ]
    return " | ".join(parts)


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    arguments = new_parser("robot-server", __doc__, EXAMPLES)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--task", metavar="FILE", help="serve this task's drivers: a name in hyperparams/real/, or a path"
    )
    what.add_argument("--make-keys", metavar="DIR", help="make keys for the server and a client in this folder")
    arguments.add_argument("--client", default="robot", metavar="NAME", help="whose key is made; default: %(default)s")
    arguments.add_argument("--keys", default=KEYS, metavar="DIR", help="folder of the keys; default: %(default)s")
    arguments.add_argument(
        "--bind", default=ADDRESS, metavar="ADDRESS", help="where to listen; default: %(default)s, this computer only"
    )
    arguments.add_argument("--address", help="by which clients reach it, if that differs: printed for them")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""
    arguments = parser().parse_args(argv)
    if arguments.make_keys:
        make_keys(str(Path(arguments.make_keys)), arguments.client)
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):  # a scheduler, a terminal that is closed: hold before the end
        signal.signal(number, _end)
    serve(arguments.task, arguments.keys, arguments.bind, arguments.address)


def _end(*_: object) -> NoReturn:
    sys.exit(TERMINATED)


if __name__ == "__main__":
    sys.exit(cli.main(["robot-server", *sys.argv[1:]]))
