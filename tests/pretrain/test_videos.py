"""Frames of videos by their time stamps, against what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lerobot_folders import write_video
from zprl_sb3.pretrain.demonstrations import DemonstrationError
from zprl_sb3.pretrain.videos import read_frames, scan_video

av = pytest.importorskip("av")

FRAMES = np.random.default_rng(0).integers(0, 256, (23, 16, 32, 3)).astype(np.uint8)
# Few frames to start from, and frames between those that they are predicted from.
PREDICTED = {"x264-params": "bframes=3:b-adapt=0:keyint=7:scenecut=0:open-gop=1"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video that loses nothing."""
    path = tmp_path_factory.mktemp("videos") / "video.mp4"
    write_video(path, FRAMES, 10)
    return path


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video whose frames are decoded in another order than they are shown in."""
    path = tmp_path_factory.mktemp("predicted") / "video.mp4"
    write_video(path, FRAMES, 10, "libx264", **PREDICTED)
    return path


def test_scanning_finds_every_frame_without_decoding(predicted: Path) -> None:
    video = scan_video(predicted)
    assert video.size == (16, 32)
    np.testing.assert_allclose(video.shown * float(video.base), np.arange(23) / 10)
    assert len(video.starts) == 4
    assert (video.starts[:, 1] < video.starts[:, 0]).all()
    np.testing.assert_array_equal(video.between(0.35, 0.75), video.shown[4:8])


def test_frames_are_those_that_were_written(path: Path) -> None:
    video = scan_video(path)
    np.testing.assert_array_equal(read_frames(video, video.shown), FRAMES)


def test_frames_from_anywhere_are_those_of_the_whole_video(predicted: Path) -> None:
    with av.open(str(predicted)) as container:
        whole = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    video = scan_video(predicted)
    for start in range(23):
        np.testing.assert_array_equal(read_frames(video, video.shown[start : start + 5]), whole[start : start + 5])


def test_single_frames_of_an_episode_can_be_left_out(path: Path) -> None:
    video = scan_video(path)
    np.testing.assert_array_equal(read_frames(video, video.shown[2:20:6]), FRAMES[2:20:6])


def test_a_frame_that_cannot_be_decoded_is_named(path: Path) -> None:
    video = scan_video(path)
    with pytest.raises(DemonstrationError, match=r"video.mp4: the frame at 99.000 s cannot be decoded"):
        read_frames(video, np.array([video.shown[20], round(99 / video.base)]))


def test_what_is_no_video_is_named(tmp_path: Path, path: Path) -> None:
    with pytest.raises(DemonstrationError, match=r"none.mp4: no such file; the data set is not complete"):
        scan_video(tmp_path / "none.mp4")
    broken = tmp_path / "broken.mp4"
    for content in (b"", b"no video at all", path.read_bytes()[:2000]):
        broken.write_bytes(content)
        with pytest.raises(DemonstrationError, match=r"broken.mp4: no video, or a damaged one \(.*get it again"):
            scan_video(broken)
