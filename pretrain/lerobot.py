"""Turns LeRobot's data sets (versions 2.1 and 3.0) into demonstrations of any Gymnasium environment.

Which environment a data set belongs to it does not say, so that is given, with the features that its observation is
made of. Statistics are not read: ``zprl pretrain`` computes its own.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from zprl_sb3.files import sha256, slug
from zprl_sb3.pretrain.demonstrations import DemonstrationError
from zprl_sb3.pretrain.lerobot_files import INFO, PICTURES, TIME, LeRobotFiles, StoredEpisode, column, numbers
from zprl_sb3.pretrain.lerobot_matching import Keys, Matching
from zprl_sb3.pretrain.recording import Episode, Recording
from zprl_sb3.pretrain.videos import Video, read_frames, scan_video

Array = NDArray[Any]

ACTION, REWARD, SUCCESS = "action", "next.reward", "next.success"
FORMATS = ("PNG", "JPEG", "WEBP")  # others' readers call programs, Ghostscript for one


class LeRobotFolder:
    """A data set of LeRobot as an environment has it; made by :func:`open_lerobot`.

    :param files: The data set
    :param matching: Its features that the environment's observation and action are made of
    :raises DemonstrationError: If it is damaged
    """

    def __init__(self, files: LeRobotFiles, matching: Matching) -> None:
        self.files, self.matching = files, matching
        names = [*matching.features, *(name for name in (REWARD, SUCCESS) if name in files.features)]
        self.videos = [name for name in names if files.kind(name) == "video"]
        self.images = [name for name in names if files.kind(name) == "image"]
        self.numbers = [name for name in names if files.kind(name) not in PICTURES] + [TIME] * bool(self.videos)
        self.scanned: dict[Path, Video] = {}
        self.rewards: list[Array] = []
        self._check()

    def notes(self) -> tuple[str, ...]:
        """Return what a user should know of the conversion, in sentences."""
        if SUCCESS in self.numbers:
            return tuple(self.matching.notes)
        what = f"a {REWARD} of 1 counts as success" if self._sparse else "every episode counts as a success"
        return (*self.matching.notes, f"The data set has no {SUCCESS}: {what}")

    def masks(self) -> dict[str, list[int]]:
        """Return the episodes of each task, where there are several."""
        episodes = self.files.episodes
        tasks = sorted({task for episode in episodes for task in episode.tasks})
        masks = {slug(task): [k for k, episode in enumerate(episodes) if task in episode.tasks] for task in tasks}
        return masks if len(tasks) > 1 else {}

    def episodes(self) -> Iterator[Episode]:
        """Yield all episodes; one is in memory at a time."""
        for episode, table in self.files.tables([*self.numbers, *self.images]):
            rewards, success = self._outcome(episode, table)
            yield Episode(
                observations={key: self._observation(episode, table, key) for key in self.matching.keys},
                next_observations={},  # What came after the last action is not in the data set.
                actions=self._numbers(episode, table, self.matching.action).astype(np.float32),
                rewards=rewards,
                states=np.zeros((episode.length, 0)),
                seed=-1,
                quality="",
                success=success,
            )

    def _check(self) -> None:
        """Read all numbers, and when the frames of all videos are shown, now and not after an hour of work."""
        tables = self.files.tables(self.numbers)
        count = len(self.files.episodes)
        for episode, table in tqdm(tables, total=count, unit="episode", desc="checking", dynamic_ncols=True):
            values = {name: self._numbers(episode, table, name) for name in self.numbers}
            for name in self.videos:
                self._shown(episode, name, values[TIME])
            if REWARD in values:
                self.rewards.append(np.unique(values[REWARD]))

    @cached_property
    def _sparse(self) -> bool:
        """Whether the reward tells success: it is 0 or 1, and not always 0."""
        values = np.concatenate([np.zeros(0), *self.rewards])
        return bool(np.isin(values, (0, 1)).all() and values.any())

    def _outcome(self, episode: StoredEpisode, table: Any) -> tuple[Array, bool]:
        """Return rewards (T,) and success."""
        given = {name: self._numbers(episode, table, name) for name in (REWARD, SUCCESS) if name in self.numbers}
        given = {name: values.reshape(episode.length) for name, values in given.items()}
        if SUCCESS in given:
            reached = given[SUCCESS] > 0
        elif self._sparse:
            reached = given[REWARD] > 0
        else:
            reached = np.arange(1, episode.length + 1) == episode.length
        return given.get(REWARD, reached.astype(np.float64)), bool(reached.any())

    def _observation(self, episode: StoredEpisode, table: Any, key: str) -> Array:
        names = self.matching.keys[key]
        if names[0] in self.videos:
            shown = self._shown(episode, names[0], self._numbers(episode, table, TIME))
            return read_frames(self._video(episode, names[0]), shown)
        if names[0] in self.images:
            stored = column(_where(episode), table, names[0]).to_pylist()
            return np.stack([self._decoded(episode, names[0], each) for each in stored])
        return np.concatenate([self._numbers(episode, table, name) for name in names], axis=1).astype(np.float32)

    def _numbers(self, episode: StoredEpisode, table: Any, name: str) -> Array:
        return numbers(_where(episode), table, name, self.files.shape(name))

    def _decoded(self, episode: StoredEpisode, name: str, stored: Any) -> Array:
        where = f"{_where(episode)}, {name}"
        try:
            image = Image.open(io.BytesIO(stored["bytes"]), formats=FORMATS)
            self._check_shape(where, name, (image.height, image.width, 3))  # before it is decoded
            return np.asarray(image.convert("RGB"))
        except (KeyError, OSError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
            raise DemonstrationError(f"{where}: an image is missing or damaged ({error!r})") from error

    def _check_shape(self, where: str, name: str, shape: tuple[int, ...]) -> None:
        if shape != self.files.shape(name):
            raise DemonstrationError(f"{where}: images of {shape}, not of {self.files.shape(name)} as {INFO} says")

    def _video(self, episode: StoredEpisode, name: str) -> Video:
        path = episode.clips[name].path
        if path not in self.scanned:
            self.scanned[path] = scan_video(path)
            self._check_shape(str(path), name, (*self.scanned[path].size, 3))
        return self.scanned[path]

    def _shown(self, episode: StoredEpisode, name: str, times: Array) -> NDArray[np.int64]:
        """Return when the frames of an episode are shown in its video, one for each row.

        :param times: Of the rows, from the start of the episode, (T, 1) in seconds
        """
        clip, video = episode.clips[name], self._video(episode, name)
        half = 0.5 / self.files.fps
        shown = video.between(clip.start - half, clip.stop - half)
        if len(shown) != len(times):
            raise DemonstrationError(
                f"{clip.path}: {len(shown)} frames of episode {episode.index}, which has {len(times)} rows; the video "
                "is truncated, or another one"
            )
        away = np.abs(shown * float(video.base) - clip.start - times[:, 0])
        if away.max() > half:
            raise DemonstrationError(
                f"{clip.path}: frame {int(away.argmax())} of episode {episode.index} is shown {away.max():.3f} s away "
                "from the time stamp of its row"
            )
        return shown


def _where(episode: StoredEpisode) -> str:
    return f"{episode.table}, episode {episode.index}"


def open_lerobot(
    folder: str | Path,
    env_id: str,
    env_kwargs: Mapping[str, Any] | None = None,
    keys: Keys | None = None,
    action: str = ACTION,
) -> Recording:
    """Return a data set of LeRobot as demonstrations of an environment.

    An episode counts as a success where ``next.success`` says so at any step. Where there is no such feature, a
    ``next.reward`` of 1 says it if all are 0 or 1, and else every episode counts as one. Without ``next.reward``
    success is the reward. Each task of a data set of several is a mask. Simulator states are not stored.

    :param folder: Of the data set, with ``meta/info.json``; version 2.1 or 3.0
    :param env_id: Gymnasium id of any environment
    :param env_kwargs: What ``gym.make`` needs besides the id
    :param keys: For each key of the environment's observation (``"state"`` of a plain box) the features that it is made
        of, several side by side; None: ``KEY``, ``observation.KEY`` or ``observation.images.KEY``, for all of them
    :param action: The feature that is the action
    :raises DemonstrationError: If the data set is damaged, of another version, or does not fit the environment
    :raises ValueError: If the environment does not take an argument
    :raises gymnasium.error.Error: If there is no such environment
    :raises ImportError: If pyarrow, or PyAV where videos are needed, is not installed
    """
    files = LeRobotFiles(Path(folder))
    matching = Matching(files, env_id, env_kwargs or {}, keys, action)
    data = LeRobotFolder(files, matching)
    origin = {
        "format": "lerobot",
        "folder": files.folder.resolve().name,
        "codebase_version": files.version,
        "info_sha256": sha256(files.folder / INFO),
        "keys": matching.keys,
        "action": action,
    }
    return Recording(
        env_id=env_id,
        env_kwargs=dict(env_kwargs or {}),
        env_version="",
        origin=origin,
        masks=data.masks(),
        count=len(files.episodes),
        episodes=data.episodes(),
        notes=data.notes(),
    )
