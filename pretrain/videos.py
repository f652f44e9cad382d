"""Reads frames of MP4 videos exactly, by their time stamps."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zprl_sb3.pretrain.demonstrations import DemonstrationError

Array = NDArray[Any]


def import_reader(name: str) -> ModuleType:
    """Import what reads LeRobot's files and only the extra ``lerobot`` installs: ``av`` or a module of pyarrow.

    :raises ImportError: If it cannot be imported; says how to install it
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"LeRobot's data sets are read with {name.partition('.')[0]}, which cannot be imported ({error}). Install "
            'it with: pip install "zprl-sb3[lerobot]"'
        ) from error


@dataclass(frozen=True)
class Video:
    """What a video file holds, found by :func:`scan_video` without decoding it.

    :param path: The file
    :param size: Height and width
    :param base: Seconds of a tick, in which all times are counted
    :param shown: When each frame is shown (N,), sorted
    :param starts: For each key frame when it is shown, and the decoder's time to look for it, (K, 2), sorted
    """

    path: Path
    size: tuple[int, int]
    base: Fraction
    shown: NDArray[np.int64]
    starts: NDArray[np.int64]

    def between(self, start: float, stop: float) -> NDArray[np.int64]:
        """Return when the frames from ``start`` to before ``stop``, in seconds, are shown, in ticks."""
        seconds = self.shown * float(self.base)
        return self.shown[(seconds >= start) & (seconds < stop)]


def scan_video(path: Path) -> Video:
    """Read when the frames of a video are shown.

    :raises DemonstrationError: If the file is missing or no video. Of a truncated one the frames that are left count
    :raises ImportError: If PyAV is not installed
    """
    with _opened(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.pts is not None and packet.size]
        shown = np.sort(np.array([packet.pts for packet in packets], np.int64))
        starts = sorted((packet.pts, packet.dts) for packet in packets if packet.is_keyframe)
        size = (int(stream.codec_context.height), int(stream.codec_context.width))
        return Video(path, size, Fraction(stream.time_base), shown, np.array(starts, np.int64).reshape(-1, 2))


def read_frames(video: Video, shown: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Decode frames (T, H, W, 3), in RGB; only what lies between the key frame before them and the last is decoded.

    :param video: As :func:`scan_video` returns it
    :param shown: When they are shown, (T,), sorted, of those in the video
    :raises DemonstrationError: If one of them cannot be decoded
    """
    frames = np.empty((len(shown), *video.size, 3), np.uint8)
    done = 0
    with _opened(video.path) as (container, stream):
        # To the key frame's own time for the decoder: looked for by when frames are shown, it may be the next one.
        before = video.starts[video.starts[:, 0] <= shown[0], 1]
        container.seek(int(before[-1]) if len(before) else 0, stream=stream)
        for frame in container.decode(stream):
            if frame.pts == shown[done]:
                frames[done] = frame.to_ndarray(format="rgb24")
                done += 1
            if done == len(shown):
                return frames
    raise DemonstrationError(
        f"{video.path}: the frame at {float(shown[done] * video.base):.3f} s cannot be decoded; the file is damaged"
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    if not path.is_file():
        raise DemonstrationError(f"{path}: no such file; the data set is not complete")
    av = import_reader("av")
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (av.FFmpegError, IndexError) as error:
        raise DemonstrationError(f"{path}: no video, or a damaged one ({error}); get it again") from error
