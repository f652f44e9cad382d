"""Finds the episodes of LeRobot's data sets, versions 2.1 and 3.0, in their files and reads their tables.

2.1 has a table and a video of each camera for every episode, 3.0 many episodes in each.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.pretrain.demonstrations import DemonstrationError
from zprl_sb3.pretrain.videos import import_reader

Array = NDArray[Any]

INFO, OLD_INFO = "meta/info.json", "meta_data/info.json"
EPISODES = {"v2.1": "meta/episodes.jsonl", "v3.0": "meta/episodes"}
EPISODE, TIME = "episode_index", "timestamp"
PICTURES = ("image", "video")
TEMPLATE = re.compile(r"(?:[^{}]|\{\w+(?::0?\dd)?\})+")  # of paths, as data/chunk-{chunk_index:03d}/{video_key}.mp4
BATCH = 128  # rows that are read at once; of images in a table these are some megabytes
CONVERTERS = {
    "v1": "with LeRobot 0.3.3 to 2.0, `python -m lerobot.datasets.v2.convert_dataset_v1_to_v2`, and then to 2.1, "
    "`python -m lerobot.datasets.v21.convert_dataset_v20_to_v21`",
    "v2.0": "with LeRobot 0.3.3, `python -m lerobot.datasets.v21.convert_dataset_v20_to_v21`",
}


@dataclass(frozen=True)
class Clip:
    """Where an episode is in a video.

    :param path: The file
    :param start: Seconds
    :param stop: Seconds; infinite where the rest of the video is the episode's
    """

    path: Path
    start: float = 0.0
    stop: float = math.inf


@dataclass(frozen=True)
class StoredEpisode:
    """Where an episode is in the files.

    :param index: The data set's number for it
    :param length: T, its rows
    :param tasks: What was to be done, in words
    :param table: The file with its rows
    :param clips: For each feature that is a video
    """

    index: int
    length: int
    tasks: tuple[str, ...]
    table: Path
    clips: dict[str, Clip]


def looks_like_lerobot(source: str | Path) -> bool:
    """Whether something is the folder of a LeRobot data set, of any version."""
    return any((Path(source) / name).is_file() for name in (INFO, OLD_INFO))


class LeRobotFiles:
    """The folder of a data set.

    :param folder: With ``meta/``, ``data/`` and ``videos/``
    :raises DemonstrationError: If it is none, of a version that is not read, or its descriptions are damaged
    :raises ImportError: If pyarrow is not installed
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info = self._read_info()
        self.version = self._known_version()
        try:
            self.fps = float(self.info["fps"])
            self.features: dict[str, dict[str, Any]] = dict(self.info["features"])
            self._shapes = {name: _frame_shape(feature) for name, feature in self.features.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DemonstrationError(f"{folder / INFO}: it must say fps and features ({error!r})") from error
        self.episodes = self._read_episodes()
        if not self.episodes:
            raise DemonstrationError(f"{folder}: it holds no episode")

    def kind(self, name: str) -> str:
        """Return what a feature is: ``"video"``, ``"image"``, or the type of its numbers.

        :raises DemonstrationError: If there is no such feature; names those that there are
        """
        if name not in self.features:
            raise DemonstrationError(f"{self.folder}: it has no feature {name!r}, but {', '.join(self.features)}")
        return str(self.features[name].get("dtype"))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a feature in a frame: (D,), or (H, W, 3) of a picture.

        :raises DemonstrationError: If there is no such feature
        """
        self.kind(name)
        return self._shapes[name]

    def tables(self, columns: Sequence[str]) -> Iterator[tuple[StoredEpisode, Any]]:
        """Yield every episode with its rows, a table of pyarrow; one episode is in memory at a time.

        :param columns: The features that it shall hold
        :raises DemonstrationError: If a file is missing or damaged, or holds other rows than the descriptions say
        """
        for path, group in itertools.groupby(self.episodes, key=lambda episode: episode.table):
            waiting = list(group)
            for index, table in _by_episode(path, columns):
                if waiting and index == waiting[0].index:
                    episode = waiting.pop(0)
                    if table.num_rows != episode.length:
                        raise DemonstrationError(
                            f"{path}: episode {index} has {table.num_rows} rows, but {self.folder / 'meta'} says "
                            f"{episode.length}"
                        )
                    yield episode, table
            if waiting:
                raise DemonstrationError(f"{path}: the rows of episode {waiting[0].index} are missing, or out of order")

    def _read_info(self) -> dict[str, Any]:
        path = next((path for path in (self.folder / INFO, self.folder / OLD_INFO) if path.is_file()), None)
        if path is None:
            raise DemonstrationError(f"{self.folder}: no data set of LeRobot, which is a folder with {INFO}")
        try:
            return dict(json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise DemonstrationError(f"{path}: not JSON, or damaged ({error})") from error

    def _known_version(self) -> str:
        version = str(self.info.get("codebase_version"))
        if version not in EPISODES:
            how = next((text for start, text in CONVERTERS.items() if version.startswith(start)), "")
            raise DemonstrationError(
                f"{self.folder}: a data set of LeRobot's version {version}; {' and '.join(EPISODES)} can be read."
                + (f" Convert it {how}" if how else "")
            )
        return version

    def _read_episodes(self) -> list[StoredEpisode]:
        videos = [name for name in self.features if self.kind(name) == "video"]
        where = self.folder / EPISODES[self.version]
        if self.version == "v2.1":
            rows, make = _json_lines(where), self._episode_of_2_1
        else:
            paths = sorted(where.glob("*/*.parquet"))
            rows, make = [row for path in paths for row in _rows(path, videos)], self._episode_of_3_0
        try:
            return sorted((make(row, videos) for row in rows), key=lambda episode: episode.index)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise DemonstrationError(f"{where}: it does not say where the episodes are ({error!r})") from error

    def _episode_of_2_1(self, row: dict[str, Any], videos: list[str]) -> StoredEpisode:
        index = int(row[EPISODE])
        place = {EPISODE: index, "episode_chunk": index // int(self.info["chunks_size"])}
        clips = {name: Clip(self._path("video_path", video_key=name, **place)) for name in videos}
        return StoredEpisode(index, int(row["length"]), tuple(row["tasks"]), self._path("data_path", **place), clips)

    def _episode_of_3_0(self, row: dict[str, Any], videos: list[str]) -> StoredEpisode:
        def path(kind: str, prefix: str, **more: str) -> Path:
            place = {key: int(row[f"{prefix}/{key}"]) for key in ("chunk_index", "file_index")}
            return self._path(kind, **place, **more)

        clips = {}
        for name in videos:
            start, stop = (float(row[f"videos/{name}/{end}_timestamp"]) for end in ("from", "to"))
            clips[name] = Clip(path("video_path", f"videos/{name}", video_key=name), start, stop)
        index, length = int(row[EPISODE]), int(row["length"])
        return StoredEpisode(index, length, tuple(row["tasks"]), path("data_path", "data"), clips)

    def _path(self, kind: str, **place: Any) -> Path:
        template = str(self.info[kind])
        path = Path(template.format(**place)) if TEMPLATE.fullmatch(template) else None
        # Not resolved: in the cache of huggingface_hub the files are links that lead out of the folder.
        if path is None or path.is_absolute() or ".." in path.parts:
            raise DemonstrationError(f"{self.folder / INFO}: {kind} {template!r} does not lead to files of the folder")
        return self.folder / path


def _frame_shape(feature: dict[str, Any]) -> tuple[int, ...]:
    shape = tuple(map(int, feature["shape"]))
    if feature["dtype"] not in PICTURES or len(shape) != 3:
        return shape
    # Both orders are common, for images and for videos.
    names = feature.get("names")
    first = str(names[0]).startswith("channel") if isinstance(names, list) and names else shape[2] not in (1, 3, 4)
    return (*shape[1:], shape[0]) if first else shape


def _json_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DemonstrationError(f"{path}: missing or damaged ({error})") from error


def _rows(path: Path, videos: list[str]) -> list[dict[str, Any]]:
    names = [EPISODE, "length", "tasks", "data/chunk_index", "data/file_index"]
    kinds = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    names += [f"videos/{video}/{kind}" for video in videos for kind in kinds]
    with _readable(path):
        rows: list[dict[str, Any]] = import_reader("pyarrow.parquet").ParquetFile(path).read(names).to_pylist()
    return rows


def _by_episode(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Yield the episodes of a file in its order, without holding more of it."""
    from_batches = import_reader("pyarrow").Table.from_batches
    current = -1
    parts: list[Any] = []
    with _readable(path):
        file = import_reader("pyarrow.parquet").ParquetFile(path, memory_map=True)  # not all of it copied
        for batch in file.iter_batches(BATCH, columns=[EPISODE, *columns]):
            indices = np.asarray(batch.column(EPISODE))
            starts = np.flatnonzero(np.diff(indices, prepend=-1)).tolist()
            for start, stop in zip(starts, [*starts[1:], len(indices)], strict=True):
                if parts and indices[start] != current:
                    yield current, from_batches(parts)
                    parts = []
                current = int(indices[start])
                parts.append(batch.slice(start, stop - start))
        if parts:
            yield current, from_batches(parts)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise DemonstrationError(f"{path}: no such file; the data set is not complete")
    broken = import_reader("pyarrow").ArrowException
    try:
        yield
    except (broken, OSError) as error:
        raise DemonstrationError(f"{path}: not a Parquet file, or a damaged one ({error}); get it again") from error


def column(where: str, table: Any, name: str) -> Any:
    """Return a feature's column of a table of pyarrow.

    :param where: For messages
    :raises DemonstrationError: If it is missing
    """
    if name not in table.column_names:
        raise DemonstrationError(f"{where}: the column {name!r} is missing in the table")
    return table.column(name)


def numbers(where: str, table: Any, name: str, shape: tuple[int, ...]) -> Array:
    """Return a column of numbers, (T, *shape) in float64.

    :param where: For messages
    :param table: Of pyarrow
    :param name: The feature
    :param shape: Of a frame
    :raises DemonstrationError: If it is missing, of another shape, no numbers, or holds NaN or infinite values
    """
    stored = column(where, table, name).combine_chunks()
    while _is_list(stored.type):
        stored = stored.flatten()
    values: Array = stored.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "fiub" or values.size != table.num_rows * math.prod(shape):
        raise DemonstrationError(f"{where}, {name}: not numbers of the shape {shape} a row, as {INFO} says")
    values = values.reshape(table.num_rows, *shape).astype(np.float64)
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0][0])
        raise DemonstrationError(f"{where}, {name}: NaN or infinite in row {row}")
    return values


def _is_list(kind: Any) -> bool:
    types = import_reader("pyarrow.types")
    return bool(types.is_list(kind) or types.is_fixed_size_list(kind) or types.is_large_list(kind))
