"""Videos of chosen episodes: a large view beside the policy's own cameras, marked by how the episode ended."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from zprl_sb3.robot_envs import import_simulator

Frame = NDArray[np.uint8]
SUCCESS, FAILURE, GOING_ON = (40, 160, 80), (200, 50, 40), (70, 70, 70)
BORDER = 6  # pixels
HOLD = 0.7  # seconds that the last frame stays, in the colour of the outcome


class EpisodeVideo(gym.Wrapper[Any, Any, Any, Any]):
    """Write ``episode_<seed>_success.mp4`` or ``…_failure.mp4`` for chosen episodes, one frame an **env step**.

    Belongs directly around the environment, below every chunk. The large view is ``env.render()``; beside it, where the
    environment has a method ``images()``, is what its cameras see. A green border is a success, a red one a failure.

    :param env: With ``render_mode="rgb_array"``
    :param folder: Where the files go
    :param seeds: Seeds of ``reset`` to record
    :raises ValueError: If the environment does not render
    :raises ImportError: At the first video, if imageio or PyAV is not installed
    :raises OSError: If it cannot be written
    """

    def __init__(self, env: gym.Env[Any, Any], folder: str | Path, seeds: Container[int]) -> None:
        if env.render_mode != "rgb_array":
            raise ValueError(f"{env} renders {env.render_mode!r}: make it with render_mode='rgb_array' for videos")
        super().__init__(env)
        self.folder, self.seeds = Path(folder), seeds
        self._fps = float(env.metadata.get("render_fps", 30))
        self._seed: int | None = None
        self._writer: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and begin a video if this episode is to be recorded."""
        self._drop()
        obs, info = self.env.reset(seed=seed, options=options)
        if seed is not None and seed in self.seeds:
            self._begin(seed)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, add a frame, and finish the video with the episode."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._writer is not None:
            self._add(GOING_ON)
            if terminated or truncated:
                self._finish(bool(info.get("is_success", False)))
        return obs, reward, terminated, truncated, info

    def close(self) -> None:
        """Close; an unfinished video is dropped."""
        self._drop()
        super().close()

    @property
    def _part(self) -> Path:
        return self.folder / f".episode_{self._seed}.part.mp4"

    def _begin(self, seed: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._seed = seed
        import_simulator("av")
        # PyAV: imageio's other way forks, which Linux refuses to a process with many of robosuite's models.
        self._writer = import_simulator("imageio.v3").imopen(self._part, "w", plugin="pyav")
        self._writer.init_video_stream("libx264", fps=self._fps)
        self._add(GOING_ON)

    def _add(self, color: tuple[int, int, int]) -> None:
        with self._named_error():
            self._writer.write_frame(bordered(even(self._frame()), color))

    @contextmanager
    def _named_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # a full disk
            raise OSError(f"The video {self._part} cannot be written: {error}") from error

    def _frame(self) -> Frame:
        view: Frame = np.asarray(self.env.render())
        cameras = self.env.get_wrapper_attr("images")() if self.env.has_wrapper_attr("images") else {}
        return beside(view, list(cameras.values()))

    def _finish(self, success: bool) -> None:
        for _ in range(round(HOLD * self._fps)):
            self._add(SUCCESS if success else FAILURE)
        with self._named_error():
            self._writer.close()
        self._writer = None
        outcome, other = ("success", "failure") if success else ("failure", "success")
        os.replace(self._part, self.folder / f"episode_{self._seed}_{outcome}.mp4")
        (self.folder / f"episode_{self._seed}_{other}.mp4").unlink(missing_ok=True)  # of an earlier evaluation

    def _drop(self) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer = None
            self._part.unlink(missing_ok=True)


def beside(view: Frame, images: list[Frame]) -> Frame:
    """Return the view (H, W, 3) with the images in a column on its right, each as high as the column allows."""
    if not images:
        return view
    size = len(view) // len(images)
    column = [
        image[np.arange(size) * len(image) // size][:, np.arange(size) * image.shape[1] // size] for image in images
    ]
    padding = np.zeros((len(view) - size * len(images), size, 3), np.uint8)
    return np.concatenate([view, np.concatenate([*column, padding])], axis=1)


def even(frame: Frame) -> Frame:
    """Return the frame without its last row or column where their number is odd, which H.264 does not take."""
    return frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]


def bordered(frame: Frame, color: tuple[int, int, int]) -> Frame:
    """Return the frame with a border of one colour drawn over its edge."""
    result = frame.copy()
    result[:BORDER] = result[-BORDER:] = color
    result[:, :BORDER] = result[:, -BORDER:] = color
    return result
