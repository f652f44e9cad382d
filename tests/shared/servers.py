"""Robot servers, here and as processes to be killed, and a network between them and their clients that can fail.

Run it (``python servers.py KEYS ADDRESS``) to serve a kinematic robot until it is ended.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arms import ONE_ARM, KinematicRobot, SyntheticCamera
from zprl_sb3.robot_envs.real.guard import Guard
from zprl_sb3.robot_envs.real.keys import read_server_keys
from zprl_sb3.robot_envs.real.remote import remote_station
from zprl_sb3.robot_envs.real.robots import Camera, Robot, Station, Values
from zprl_sb3.robot_envs.real.safety import Limits, described
from zprl_sb3.robot_envs.real.server import RobotServer

HOME: dict[str, tuple[float, ...]] = {
    "arm/position": (0.3, 0.0, 0.2),
    "arm/rotation": (np.pi, 0.0, 0.0),
    "arm/gripper": (1.0,),
}
LIMITS = {
    "arm": Limits(
        workspace=((0.2, -0.3, 0.0), (0.6, 0.3, 0.4)),
        speed=0.2,
        acceleration=2.0,
        rotation_speed=2.0,
        rotation_acceleration=8.0,
    )
}
WATCHDOG = 0.3
ENFORCED = described(LIMITS, 100.0, WATCHDOG, HOME)


def command(x: float, y: float = 0.0, z: float = 0.2) -> Values:
    """Return a command to a place, turned and opened as at home."""
    return {name: np.array(value) for name, value in HOME.items()} | {"arm/position": np.array([x, y, z])}


def guarded_station(robot: Robot | None = None, cameras: Mapping[str, Camera] | None = None) -> Station:
    """Return what a server serves, not connected."""
    guard = Guard(robot or KinematicRobot(), LIMITS, watchdog=WATCHDOG, home=HOME)
    return Station(guard, {"front": SyntheticCamera()} if cameras is None else cameras)


def client(address: str, keys: Path, name: str = "robot", **changes: Any) -> Station:
    """Return a client's station, not connected."""
    arguments: dict[str, Any] = {"arms": ONE_ARM, "cameras": ("front",), "enforced": ENFORCED, "timeout": 0.5}
    return remote_station(address, keys / f"{name}.key", **(arguments | changes))


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "It did not happen"
        time.sleep(0.005)


def free_port() -> int:
    """Return a port that nobody listens to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def start_process(repository: Path, keys: Path, address: str) -> subprocess.Popen[str]:
    """Serve a kinematic robot in a process of its own, and return when it does."""
    command = [sys.executable, __file__, str(keys), address]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{address}\n"
    return process


class Network:
    """Passes TCP connections on to a server, and can be cut: what is sent then waits, as it does in a real one.

    :param port: The server's, on this computer
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._up = threading.Event()
        self._up.set()
        self._sockets: list[socket.socket] = []
        self.sent = bytearray()
        """All that clients have sent."""
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        self._up.clear()

    def mend(self) -> None:
        self._up.set()

    def close(self) -> None:
        self._up.set()
        for each in (self._listener, *self._sockets):
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._server))
            except OSError:
                return
            self._sockets += [near, far]
            threading.Thread(target=self._pass, args=(near, far, self.sent), daemon=True).start()
            threading.Thread(target=self._pass, args=(far, near, bytearray()), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, record: bytearray) -> None:
        try:
            while data := source.recv(1 << 16):
                record += data
                self._up.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


if __name__ == "__main__":
    with RobotServer(guarded_station(), read_server_keys(sys.argv[1]), sys.argv[2]) as server:
        print(server.address, flush=True)
        time.sleep(600)
