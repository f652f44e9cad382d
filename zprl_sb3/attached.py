"""Checkpoints of a bottleneck that was attached to another checkpoint: a folder that refers to that one.

The other one may be a function of the user's own (adapter ``module``), which loading runs. A folder that somebody else
made could name any function of any module, so such a one is loaded only where the user has said that it is trusted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from zprl_sb3.adapters import CODE, FILES, AdaptedPolicy, FrozenPolicy, open_policy
from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
from zprl_sb3.checkpoint import ATTACHED, CONFIG, CheckpointError, read_weights, write_checkpoint

TRUSTED = "ZPRL_TRUSTED_CODE"
"""Environment variable: which functions attached checkpoints may run, each as it is named in errors, with commas."""


@dataclass(frozen=True)
class Base:
    """The checkpoint that a bottleneck is attached to.

    :param path: Where it is, as the user names it
    :param adapter: One of :data:`zprl_sb3.adapters.ADAPTERS`
    :param options: Of the adapter
    """

    path: str
    adapter: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self, near: Path | None = None) -> FrozenPolicy:
        """Return the frozen policy, without a bottleneck.

        :param near: A relative path is looked for from here and from every folder above this one
        :raises ValueError: If it cannot be read
        """
        root = self._root(near)
        files = {name: str(root / self.options[name]) for name in FILES if self.options.get(name)}
        return open_policy(str(root / self.path), self.adapter, **{**self.options, **files})

    def code(self, near: Path | None = None) -> str | None:
        """Return the function that loading runs, by its full path if it is in a file; None where there is none.

        :param near: As in :meth:`load`
        """
        if self.adapter not in CODE:
            return None
        path = self._root(near) / self.path
        if _exists(path):
            return str(path.resolve())
        missing = self.path.rpartition(":")[0].endswith(".py")  # a file that is not there runs nothing
        return None if missing else self.path

    def _root(self, near: Path | None) -> Path:
        """Return the folder that relative paths are from."""
        above = [] if near is None else near.resolve().parents
        return next((folder for folder in (Path(), *above) if _exists(folder / self.path)), Path())


def _exists(path: Path) -> bool:
    return path.exists() or Path(str(path).rpartition(":")[0] or path).is_file()  # my_policy.py:make is a file, too


def trust(base: Base) -> None:
    """Let checkpoints run the function that a policy is made by, in this process and those that it starts."""
    if (code := base.code()) is not None:
        os.environ[TRUSTED] = ",".join(filter(None, [os.environ.get(TRUSTED), code]))


def _check_trust(path: Path, base: Base) -> None:
    code = base.code(near=path)
    if code is not None and code not in os.environ.get(TRUSTED, "").split(","):
        raise CheckpointError(
            f"{path} was attached to what a function makes, and loading it would run that. Look at {code}, and if you "
            f"trust it: export {TRUSTED}='{code}'"
        )


def save_attached(policy: FrozenPolicy, path: str | Path, base: Base, fingerprint: str, **metadata: Any) -> Path:
    """Write what was attached to a policy, and which policy that is: ``weights.safetensors`` and ``config.json``.

    :param policy: The policy with its bottleneck
    :param path: The folder; replaced as a whole if it exists
    :param base: The policy's own checkpoint
    :param fingerprint: Of the policy before anything was attached, by which another one is refused later
    :param metadata: JSON-able facts to keep, e.g. ``dataset_sha256``, ``env_kwargs``
    :return: The folder
    """
    assert policy.bottleneck is not None
    about = {
        "format": ATTACHED,
        "env_id": policy.env_id,
        "base": asdict(base) | {"fingerprint": fingerprint},
        "bottleneck": asdict(policy.bottleneck.config),
    }
    return write_checkpoint(path, _parts(policy, policy.bottleneck).state_dict(), about | metadata)


def load_attached(path: Path, config: Mapping[str, Any]) -> FrozenPolicy:
    """Return the policy that a checkpoint refers to, with the bottleneck of the checkpoint.

    :param path: The folder
    :param config: Its ``config.json``
    :raises CheckpointError: If a file is missing or damaged, the policy is not the one it was, or comes from code that
        is not trusted
    """
    base = _base(path, config["base"])
    _check_trust(path, base)
    try:
        policy = base.load(near=path)
    except (OSError, RecursionError, ValueError) as error:
        raise CheckpointError(
            f"{path} is a bottleneck attached to {base.path}, which cannot be read: {error}"
        ) from error
    if policy.fingerprint() != config["base"]["fingerprint"]:
        raise CheckpointError(
            f"{base.path} is not the policy any more that the bottleneck in {path} was attached to: it has changed. "
            "Put the old one back, or attach a bottleneck to this one (`zprl attach`)"
        )
    tensors = read_weights(path, config)
    try:
        bottleneck = Bottleneck(policy.context_dim, BottleneckConfig(**config["bottleneck"]))
        _parts(policy, bottleneck).load_state_dict(tensors)
    except (TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: weights and {CONFIG} do not fit each other: {error}") from error
    policy.bottleneck = bottleneck
    return policy


def _base(path: Path, about: Mapping[str, Any]) -> Base:
    try:
        return Base(about["path"], about["adapter"], about["options"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path / CONFIG} does not say what it was attached to ({error})") from error


def _parts(policy: FrozenPolicy, bottleneck: Bottleneck) -> nn.ModuleDict:
    """Return what attaching adds to a policy."""
    parts: dict[str, nn.Module] = {"bottleneck": bottleneck}
    if isinstance(policy, AdaptedPolicy):
        parts["context_normalizer"] = policy.context_normalizer
    return nn.ModuleDict(parts)
