"""Videos: one frame per env step, marked by the outcome, whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import pytest

from helpers import POINT, PointReach
from zprl_sb3.wrappers.episode_video import BORDER, FAILURE, GOING_ON, SUCCESS, EpisodeVideo, beside, bordered


class Drawn(PointReach):
    """The toy task with a picture of 64 × 96 pixels and two cameras."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"

    def render(self) -> Any:
        return np.full((64, 96, 3), 200, np.uint8)

    def images(self) -> dict[str, Any]:
        return {"one": np.full((84, 84, 3), 30, np.uint8), "two": np.full((84, 84, 3), 90, np.uint8)}


def video(folder: Path, reach: float) -> EpisodeVideo:
    return EpisodeVideo(gym.wrappers.TimeLimit(Drawn(reach=reach), 5), folder, seeds={3, 4})


def run(env: EpisodeVideo, seed: int) -> int:
    env.reset(seed=seed)
    steps, done = 0, False
    while not done:
        *_, terminated, truncated, _ = env.step(np.zeros(2, np.float32))
        done, steps = terminated or truncated, steps + 1
    return steps


def test_another_outcome_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    for reach, outcome in ((0.0, "failure"), (9.0, "success"), (0.0, "failure")):
        run(video(tmp_path, reach), 3)
        assert [file.name for file in tmp_path.iterdir()] == [f"episode_3_{outcome}.mp4"]


@pytest.mark.parametrize(("reach", "outcome", "color"), [(0.0, "failure", FAILURE), (9.0, "success", SUCCESS)])
def test_an_episode_becomes_a_video_that_ends_in_its_outcome(
    tmp_path: Path, reach: float, outcome: str, color: tuple[int, int, int]
) -> None:
    env = video(tmp_path / "videos", reach)
    steps = run(env, 3)
    run(env, 5)  # is not asked for
    assert [file.name for file in (tmp_path / "videos").iterdir()] == [f"episode_3_{outcome}.mp4"]
    frames = imageio.imread(tmp_path / "videos" / f"episode_3_{outcome}.mp4", plugin="pyav")
    assert len(frames) == 1 + steps + 7
    assert frames[0].shape == (64, 96 + 32, 3)
    for frame, expected in ((frames[0], GOING_ON), (frames[-1], color)):
        np.testing.assert_allclose(frame[2, 40], expected, atol=25)  # compressed
    assert frames[0][30, 50] == pytest.approx([200, 200, 200], abs=8)
    assert frames[0][16, 110] == pytest.approx([30, 30, 30], abs=8)
    assert frames[0][48, 110] == pytest.approx([90, 90, 90], abs=8)


def test_an_episode_that_is_left_leaves_no_half_video(tmp_path: Path) -> None:
    env = video(tmp_path, reach=0.0)
    env.reset(seed=3)
    env.step(np.zeros(2, np.float32))
    env.reset(seed=4)
    env.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / ".episode_3.part.mp4").symlink_to("/dev/full")
    env = video(tmp_path, reach=0.0)
    with pytest.raises(OSError, match=r"episode_3\.part\.mp4 cannot be written: .*No space left"):
        run(env, 3)
    env.close()
    assert not list(tmp_path.iterdir())


def test_an_environment_that_does_not_render_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="render_mode='rgb_array'"):
        EpisodeVideo(gym.make(POINT), tmp_path, {0})


def test_images_fill_the_column_and_a_border_the_edge() -> None:
    view = np.zeros((50, 70, 3), np.uint8)
    images = [np.full((84, 84, 3), value, np.uint8) for value in (10, 20, 30)]
    frame = beside(view, images)
    assert frame.shape == (50, 70 + 16, 3)
    assert [frame[row, 80, 0] for row in (0, 15, 16, 32, 47, 48)] == [10, 10, 20, 30, 30, 0]
    assert beside(view, []) is view
    marked = bordered(frame, (1, 2, 3))
    assert (marked[0] == (1, 2, 3)).all()
    assert (marked[:, -1] == (1, 2, 3)).all()
    assert (marked[BORDER:-BORDER, BORDER:-BORDER] == frame[BORDER:-BORDER, BORDER:-BORDER]).all()
