"""Keys of a robot's server and of its clients (CURVE): whose key is not listed gets no further than the handshake."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import zmq

from zprl_sb3.files import atomic_path

SERVER, CLIENTS = "server.key", "clients"


@dataclass(frozen=True)
class ServerKeys:
    """What the server needs: its own key pair, and which clients it admits. All keys are Z85 text.

    :param public: Its public key
    :param secret: Its secret key
    :param clients: Public keys of the clients that are admitted, with their names
    """

    public: str
    secret: str
    clients: dict[str, str]


@dataclass(frozen=True)
class ClientKeys:
    """What a client needs: its own key pair and the server's public key."""

    public: str
    secret: str
    server: str


def make_keys(folder: str | Path, client: str = "robot") -> Path:
    """Make keys for a server, where it has none yet, and for one more client.

    Writes ``server.key`` and ``clients/CLIENT.pub``, which stay with the server, and ``CLIENT.key``, which belongs on
    the client's computer. Files with secrets can be read by their owner only.

    :param folder: Made where it is missing
    :param client: The client's name
    :return: The client's file
    :raises ValueError: If the name is no file name
    :raises FileExistsError: If there is a client of that name
    """
    if not re.fullmatch(r"[\w-]{1,50}", client) or f"{client}.key" == SERVER:
        raise ValueError(f"A client's name consists of letters, digits, - and _ and is not 'server', unlike {client!r}")
    folder = Path(folder).expanduser()
    for path in (folder / f"{client}.key", folder / CLIENTS / f"{client}.pub"):
        if path.exists():
            raise FileExistsError(f"{path} exists: choose another name with --client, or remove it")
    if not (folder / SERVER).exists():
        public, secret = (key.decode() for key in zmq.curve_keypair())
        _write(folder / SERVER, {"public": public, "secret": secret})
    server = _read(folder / SERVER, ("public", "secret"))
    public, secret = (key.decode() for key in zmq.curve_keypair())
    _write(folder / f"{client}.key", {"public": public, "secret": secret, "server": server["public"]})
    _write(folder / CLIENTS / f"{client}.pub", {"public": public})
    return folder / f"{client}.key"


def read_server_keys(folder: str | Path) -> ServerKeys:
    """Return what :func:`make_keys` has written for the server.

    :raises FileNotFoundError: If it has not
    :raises ValueError: If a file is damaged, or others can read a secret
    """
    folder = Path(folder).expanduser()
    own = _read(folder / SERVER, ("public", "secret"))
    files = sorted((folder / CLIENTS).glob("*.pub"))
    clients = {_read(file, ("public",), secret=False)["public"]: file.stem for file in files}
    return ServerKeys(own["public"], own["secret"], clients)


def read_client_keys(file: str | Path) -> ClientKeys:
    """Return what :func:`make_keys` has written for a client.

    :raises FileNotFoundError: If there is no such file
    :raises ValueError: If it is damaged, or others can read it
    """
    return ClientKeys(**_read(Path(file).expanduser(), ("public", "secret", "server")))


def _write(path: Path, keys: dict[str, str]) -> None:
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w") as file:
            file.write(json.dumps(keys, indent=2) + "\n")


def _read(path: Path, names: tuple[str, ...], secret: bool = True) -> dict[str, str]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no key {path}: make it with zprl robot-server --make-keys {path.parent}")
    if secret and path.stat().st_mode & 0o077:
        raise ValueError(f"{path} can be read by others than its owner: chmod 600 {path}")
    try:
        keys = json.loads(path.read_text())
        found = {name: keys[name] for name in names}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of keys ({type(error).__name__}: {error}): make new ones") from error
    if not all(isinstance(key, str) and re.fullmatch(r"[!-~]{40}", key) for key in found.values()):
        raise ValueError(f"{path} has a key that is none: make new ones")
    return found
