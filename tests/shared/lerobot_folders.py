"""Data sets in LeRobot's layout of version 2.1, as its converter to 3.0 documents it. Import as ``lerobot_folders``."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

FPS = 20
STANDARD = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def write_lerobot(
    folder: Path,
    episodes: Sequence[Mapping[str, Array]],
    kinds: Mapping[str, str] | None = None,
    fps: int = FPS,
    tasks: Sequence[str] = (),
    codec: str = "libx264rgb",
) -> Path:
    """Write a data set of version 2.1.

    :param folder: To make
    :param episodes: For each its features, (T, ...) each
    :param kinds: ``"video"`` or ``"image"`` for those of them that are pictures
    :param fps: Frames a second
    :param tasks: Of each episode; default: all the same
    :param codec: Of the videos; the default one loses nothing
    """
    kinds = dict(kinds or {})
    tasks = list(tasks) or ["Reach the goal."] * len(episodes)
    known, first = sorted(set(tasks)), 0
    features = {name: _feature(values, kinds.get(name)) for name, values in episodes[0].items()}
    features |= {name: {"dtype": _type(name), "shape": [1], "names": None} for name in STANDARD}
    for k, episode in enumerate(episodes):
        columns = _standard(k, len(episode["action"]), first, known.index(tasks[k]), fps)
        for name, values in episode.items():
            if kinds.get(name) == "video":
                write_video(folder / f"videos/chunk-000/{name}/episode_{k:06d}.mp4", values, fps, codec)
            else:
                columns[name] = values
        _write_table(folder / f"data/chunk-000/episode_{k:06d}.parquet", columns, kinds)
        first += len(episode["action"])
    info = {
        "codebase_version": "v2.1",
        "robot_type": "point",
        "total_episodes": len(episodes),
        "total_frames": first,
        "total_tasks": len(known),
        "total_videos": len(episodes) * list(kinds.values()).count("video"),
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(episodes)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps(info, indent=4))
    lines = {
        "tasks": [{"task_index": k, "task": task} for k, task in enumerate(known)],
        "episodes": [
            {"episode_index": k, "tasks": [tasks[k]], "length": len(each["action"])} for k, each in enumerate(episodes)
        ],
        "episodes_stats": [
            {"episode_index": k, "stats": {name: _stats(name, each[name], kinds) for name in each}}
            for k, each in enumerate(episodes)
        ],
    }
    for name, rows in lines.items():
        (folder / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def change_info(folder: Path, **changes: Any) -> None:
    """Change entries of ``meta/info.json``."""
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_video(path: Path, frames: Array, fps: int, codec: str = "libx264rgb", **options: str) -> None:
    """Write frames (T, H, W, 3) as a video."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    lossless = {"qp": "0", "preset": "ultrafast"} if codec == "libx264rgb" else {"crf": "23"}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, fps, options={"g": "2", **lossless, **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def _feature(values: Array, kind: str | None) -> dict[str, Any]:
    shape = values.shape[1:] or (1,)
    names = ["height", "width", "channels"] if kind else None
    return {"dtype": kind or str(values.dtype), "shape": list(shape), "names": names}


def _type(name: str) -> str:
    return "float32" if name == "timestamp" else "int64"


def _standard(k: int, steps: int, first: int, task: int, fps: int) -> dict[str, Array]:
    frame = np.arange(steps)
    return {
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.full(steps, k),
        "index": first + frame,
        "task_index": np.full(steps, task),
    }


def _write_table(path: Path, columns: Mapping[str, Array], kinds: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {}
    for name, values in columns.items():
        if kinds.get(name) == "image":
            arrays[name] = pa.array(
                [{"bytes": _png(image), "path": f"frame-{k:06d}.png"} for k, image in enumerate(values)]
            )
        elif values.size == len(values):  # single numbers are no lists
            arrays[name] = pa.array(values.reshape(-1))
        else:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path)


def _png(image: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def _stats(name: str, values: Array, kinds: Mapping[str, str]) -> dict[str, Any]:
    if name in kinds:  # by channel, in [0, 1]
        values = values.reshape(-1, 3) / 255
    values = values.astype(np.float64).reshape(len(values), -1)
    stats = {kind: getattr(np, kind)(values, axis=0) for kind in ("min", "max", "mean", "std")}
    if name in kinds:
        stats = {kind: value.reshape(3, 1, 1) for kind, value in stats.items()}
    return {**{kind: value.tolist() for kind, value in stats.items()}, "count": [len(values)]}
