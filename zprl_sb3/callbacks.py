"""SB3 callbacks: evaluation on fixed episodes against env steps, and snapshots that a run resumes from."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from zprl_sb3.background import BackgroundEvaluation
from zprl_sb3.diagnostics import STEERING_COLUMNS, evaluation_row, in_words
from zprl_sb3.files import atomic_path, read_rows, recovered, to_disk, write_rows
from zprl_sb3.interrupts import Interrupts
from zprl_sb3.sac import SteeringSAC
from zprl_sb3.wrappers import VecSteering

COUNTERS = ("num_timesteps", "env_steps")  # those of an algorithm that a rollout raises
MODEL, BUFFER, RNG = "model.zip", "replay_buffer.pkl", "rng.pt"


class SteeringEvalCallback(BaseCallback):
    """Evaluate on the same seeded episodes every ``eval_freq`` **chunks** (all environments), and before the first.

    Appends to a CSV file, one row per evaluation: chunks, env steps, and what
    :func:`~zprl_sb3.diagnostics.evaluation_row` says. The same goes to the logger under ``eval/`` and ``steering/``.
    Picks up where the file ends when a run is resumed; a new run starts a new file. Works with every SB3 algorithm.

    With a :class:`~zprl_sb3.background.BackgroundEvaluation` training goes on meanwhile. Its row comes when it is
    ready, at the latest when the next evaluation is due or training ends; one that was lost in between is made anew,
    from where the run is resumed.

    :param eval_env: Steered environments made with ``seeded_episodes=True``, or a process that has such
    :param path: The CSV file
    :param eval_freq: Chunks between evaluations
    :param episodes: Episodes per evaluation
    :param seed: First episode seed
    :param verbose: 1 prints a line per evaluation
    """

    def __init__(
        self,
        eval_env: VecSteering | BackgroundEvaluation,
        path: str | Path,
        eval_freq: int,
        episodes: int,
        seed: int,
        verbose: int = 1,
    ) -> None:
        super().__init__(verbose)
        self.eval_env, self.path, self.eval_freq = eval_env, Path(path), eval_freq
        self.episodes, self.seed = episodes, seed
        self.rows: list[dict[str, Any]] = []
        self._latest = -1  # chunks after which the latest evaluation was begun
        self._env_steps = 0

    def _init_callback(self) -> None:
        # Rows beyond the resumed snapshot belong to chunks that will be run again.
        done = self.model.num_timesteps
        rows = read_rows(self.path) if done and self.path.is_file() else []
        self.rows = [row for row in rows if row["chunks"] <= done]
        self._latest = int(self.rows[-1]["chunks"]) if self.rows else -1
        last = int(self.rows[-1]["env_steps"]) if self.rows else 0
        # Our algorithms keep count; with the others what lies between last row and snapshot is not known.
        self._env_steps = getattr(self.model, "env_steps", last)

    def _on_rollout_start(self) -> None:
        self._fetch()
        if self.model.num_timesteps // self.eval_freq > self._latest // self.eval_freq:
            self._evaluate()

    def _on_step(self) -> bool:
        self._env_steps += sum(info["env_steps"] for info in self.locals["infos"])
        return True

    def _on_training_end(self) -> None:
        if self._latest < self.model.num_timesteps:
            self._evaluate()
        self._fetch(wait=True)

    def _evaluate(self) -> None:
        _finish_updates(self.model)
        self._latest = self.model.num_timesteps
        when = {"chunks": self.model.num_timesteps, "env_steps": self._env_steps}
        if isinstance(self.eval_env, BackgroundEvaluation):
            self._fetch(wait=True)  # the one before: not more than one beside training
            self.eval_env.submit(self.model.policy, self.seed, self.episodes, when)
        else:
            self._note(when | evaluation_row(self.model, self.eval_env, self.seed, self.episodes))

    def _fetch(self, wait: bool = False) -> None:
        if isinstance(self.eval_env, BackgroundEvaluation):
            for row in self.eval_env.finished(wait):
                self._note(row)

    def _note(self, row: dict[str, Any]) -> None:
        if row["chunks"] < self.model.num_timesteps:  # what others have recorded since is not of then
            self.logger.dump(self.model.num_timesteps)
        for name, value in row.items():
            self.logger.record(f"{'steering' if name in STEERING_COLUMNS else 'eval'}/{name}", value)
        # At once, as SB3's own callback does: after the last evaluation nothing else would write them.
        self.logger.dump(row["chunks"])
        self.rows.append(row)
        write_rows(self.path, self.rows)
        if self.verbose:
            print(
                f"{in_words(row, self.episodes)}, mean length {row['mean_length']:.0f}, "
                f"RMS(λΔz) {row['rms_step']:.2f}, RMS(z) {row['rms_z']:.2f}"
            )


def _finish_updates(model: BaseAlgorithm) -> None:
    if isinstance(model, SteeringSAC):  # others owe none
        model.finish_updates()


class SnapshotCallback(BaseCallback):
    """Save everything that a run needs to go on: model, optimisers, replay buffer, counters, random states.

    On-policy algorithms do not wait for their rollout to end, which may take minutes: without it they are where it
    began. Also once an environment says ``quit`` at an episode's end, as a real robot's does for the person beside it:
    then training stops like after Ctrl-C.

    :param folder: Replaced as a whole, so that a kill leaves the previous snapshot
    :param save_freq: **Chunks** (all environments) between snapshots; 0: one after every episode
    :param interrupts: Of :func:`~zprl_sb3.interrupts.interrupts_wait`; once one has come, save and stop
    """

    def __init__(self, folder: str | Path, save_freq: int, interrupts: Interrupts | None = None) -> None:
        super().__init__()
        self.folder, self.save_freq, self.interrupts = Path(folder), save_freq, interrupts
        self._next = 0
        self._begun: dict[str, int] = {}  # the counters when the rollout began
        self._ended = self._quit = False

    def _init_callback(self) -> None:
        self._next = self.model.num_timesteps + self.save_freq

    def _on_rollout_start(self) -> None:
        # Between two rollouts nothing is half done: all transitions are stored, all their updates made.
        if self.interrupts or self._quit or self._due():
            save_snapshot(self.model, self.folder)
            self._next, self._ended = self.model.num_timesteps + self.save_freq, False
        if self.interrupts:
            raise self.interrupts.exception()
        if self._quit:
            raise KeyboardInterrupt
        self._begun = {name: vars(self.model)[name] for name in COUNTERS if name in vars(self.model)}

    def _due(self) -> bool:
        return self.model.num_timesteps >= self._next if self.save_freq else self._ended

    def _on_step(self) -> bool:
        dones, infos = self.locals["dones"], self.locals["infos"]
        self._ended |= bool(dones.any())
        self._quit |= any(done and info.get("quit", False) for done, info in zip(dones, infos, strict=True))
        if self.interrupts and isinstance(self.model, OnPolicyAlgorithm):
            vars(self.model).update(self._begun)
            self._on_rollout_start()  # where it is again, which saves and stops
        return True


def save_snapshot(model: BaseAlgorithm, folder: str | Path) -> None:
    """Write a model, its replay buffer and the random states as a folder, atomically.

    :raises FloatingPointError: If a weight is not finite; a previous snapshot stays
    """
    _finish_updates(model)
    if not all(bool(th.isfinite(weight).all()) for weight in model.policy.parameters()):
        raise FloatingPointError(f"The model has weights that are not finite; {folder} stays as it was")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        model.save(temporary / MODEL)
        if isinstance(model, OffPolicyAlgorithm):
            model.save_replay_buffer(temporary / BUFFER)
        name, keys, position, has_gauss, gauss = np.random.get_state()
        numpy_state = [name, th.as_tensor(np.asarray(keys, np.int64)), position, has_gauss, gauss]
        with open(temporary / RNG, "wb") as file:
            torch_states = [th.get_rng_state(), *th.cuda.get_rng_state_all()]
            th.save({"torch": torch_states, "numpy": numpy_state, "python": random.getstate()}, file)
        to_disk(temporary)


def load_snapshot(cls: type[BaseAlgorithm], folder: str | Path, env: Any, **kwargs: Any) -> BaseAlgorithm:
    """Load what :func:`save_snapshot` wrote, random states included.

    :param cls: Class of the algorithm
    :param folder: The snapshot
    :param env: A steered environment like the one before
    :param kwargs: Further arguments of SB3's ``load``
    :raises ValueError: If the environment's λ, chunk, gamma or base policy differ from the model's
    """
    folder = recovered(folder)
    model = cls.load(folder / MODEL, env=env, **kwargs)
    if isinstance(model, OffPolicyAlgorithm):
        model.load_replay_buffer(folder / BUFFER, truncate_last_traj=False)
    state = th.load(folder / RNG, weights_only=True)
    cpu, *gpus = state["torch"]
    th.set_rng_state(cpu)
    th.cuda.set_rng_state_all(gpus[: th.cuda.device_count()])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    return model
