"""Episodes are on disk as they happen, and survive whatever ends the program."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from zprl_sb3.pretrain.demonstrations import DemonstrationError, load_demonstrations
from zprl_sb3.robot_envs.real.episodes import (
    Archive,
    convert,
    ending_of,
    episode_files,
    join,
    read_episode,
    recover,
)
from zprl_sb3.robot_envs.real.journal import Journal, Source, read_journal

SOURCE = Source("zprl/RealRobot-v0", {"task": "place_orange"})


def observation(k: int) -> dict[str, np.ndarray]:
    image = np.full((4, 6, 3), k, np.uint8)
    return {"proprio": np.full(3, k, np.float32), "front_image": image}


def write(folder: Path, steps: int, ending: str | None = "success", number: int = 0) -> Path:
    """Write a journal of some steps; without an ending as a crash leaves it."""
    path = folder / f"episode_{number:06d}.journal"
    journal = Journal(path, SOURCE, observation(0), 2)
    for k in range(1, steps + 1):
        journal.add(observation(k), np.array([k, -k]), float(k == steps and ending == "success"))
    if ending is not None:
        journal.end(ending, {"reason": "told so"})
    return path


def test_an_episode_comes_back_as_it_was(tmp_path: Path) -> None:
    recorded = read_journal(write(tmp_path, 3))
    assert recorded.source == SOURCE
    assert (recorded.ending, recorded.facts["reason"]) == ("success", "told so")
    episode = recorded.episode
    np.testing.assert_array_equal(episode.observations["proprio"][:, 0], [0, 1, 2])
    np.testing.assert_array_equal(episode.next_observations["front_image"][:, 0, 0, 0], [1, 2, 3])
    np.testing.assert_array_equal(episode.actions, [[1, -1], [2, -2], [3, -3]])
    np.testing.assert_array_equal(episode.rewards, [0, 0, 1])
    assert episode.observations["proprio"].dtype == np.float32
    assert episode.success


def test_its_file_is_demonstrations(tmp_path: Path) -> None:
    path = convert(write(tmp_path, 3))
    assert path is not None
    assert [each.name for each in tmp_path.iterdir()] == ["episode_000000.hdf5"]
    demos = load_demonstrations(path)
    assert (demos.env_id, demos.env_kwargs) == ("zprl/RealRobot-v0", {"task": "place_orange"})
    assert demos.successes == [True]
    recorded = read_episode(path)
    np.testing.assert_array_equal(recorded.episode.actions, [[1, -1], [2, -2], [3, -3]])
    assert (recorded.ending, recorded.facts["reason"]) == ("success", "told so")


def test_what_a_crash_leaves_is_interrupted(tmp_path: Path) -> None:
    write(tmp_path, 3, ending=None)
    (path,) = recover(tmp_path)
    assert ending_of(path) == "interrupted"
    assert len(read_episode(path).episode.actions) == 3


@pytest.mark.parametrize("lost", [1, 20, 100])
def test_half_a_record_at_the_end_costs_that_step_only(tmp_path: Path, lost: int) -> None:
    path = write(tmp_path, 3, ending=None)
    os.truncate(path, path.stat().st_size - lost)
    assert len(read_journal(path).episode.actions) == 2


def test_a_flipped_bit_ends_what_is_believed(tmp_path: Path) -> None:
    path = write(tmp_path, 3)
    data = bytearray(path.read_bytes())
    data[-250] ^= 1
    path.write_bytes(bytes(data))
    recorded = read_journal(path)
    assert recorded.ending == "interrupted"
    assert len(recorded.episode.actions) < 3


def test_an_episode_without_a_step_is_nothing(tmp_path: Path) -> None:
    write(tmp_path, 0, ending=None)
    assert recover(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "episode_000000.journal"
    path.write_bytes(b"something else")
    with pytest.raises(DemonstrationError, match="not a journal"):
        read_journal(path)


@pytest.mark.parametrize("place", [3, 30])  # in the line that names the format; in the header
def test_what_cannot_be_read_is_kept_and_its_number_with_it(tmp_path: Path, place: int) -> None:
    path = write(tmp_path, 3)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with closing(Archive(tmp_path, SOURCE)) as archive:
        assert archive.recovered == []
        assert (tmp_path / "episode_000000.damaged").read_bytes() == bytes(data)
        archive.begin(observation(0), 2)
        assert (tmp_path / "episode_000001.journal").exists()


def test_a_journal_goes_when_the_disk_holds_what_it_became(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, held = write(tmp_path, 3), list[tuple[str, bool]]()

    def note(descriptor: int) -> None:
        held.append((os.readlink(f"/proc/self/fd/{descriptor}"), path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    assert convert(path) == tmp_path / "episode_000000.hdf5"
    assert held == [(str(tmp_path / "episode_000000.hdf5"), True)]
    assert not path.exists()


def test_an_archive_goes_on_where_a_killed_one_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "episodes"
    code = f"""
import numpy as np, time, sys
from zprl_sb3.robot_envs.real.episodes import Archive
from zprl_sb3.robot_envs.real.journal import Source
archive = Archive({str(folder)!r}, Source("zprl/RealRobot-v0", {{"task": "place_orange"}}))
for episode in range(2):
    archive.begin({{"proprio": np.zeros(3, np.float32)}}, 2)
    for k in range(5):
        archive.add({{"proprio": np.full(3, k, np.float32)}}, np.ones(2), 0.0)
    if episode == 0:
        archive.end("failure")
print("written", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    archive = Archive(folder, SOURCE)
    assert [path.name for path in archive.recovered] == ["episode_000001.hdf5"]
    archive.begin({"proprio": np.zeros(3, np.float32)}, 2)
    archive.add({"proprio": np.zeros(3, np.float32)}, np.ones(2), 1.0)
    archive.end("success")
    archive.close()
    assert [ending_of(path) for path in episode_files(folder)] == ["failure", "interrupted", "success"]
    assert [len(read_episode(path).episode.actions) for path in episode_files(folder)] == [5, 5, 1]


def test_what_runs_at_the_end_is_interrupted(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "episodes", SOURCE)
    archive.begin(observation(0), 2)
    archive.add(observation(1), np.ones(2), 0.0)
    archive.close()
    assert [ending_of(path) for path in episode_files(tmp_path / "episodes")] == ["interrupted"]


def test_joined_episodes_are_one_file_of_demonstrations(tmp_path: Path) -> None:
    for number, ending in enumerate(["success", "failure", "aborted", "timeout", None]):
        write(tmp_path, 3, ending, number)
    output = tmp_path / "demos.hdf5"
    assert len(join([tmp_path], output)) == 3
    demos = load_demonstrations(output)
    assert demos.successes == [True, False, False]
    assert demos.masks["success"] == [0]
    assert demos.observations["front_image"][0].shape == (3, 4, 6, 3)
    assert len(join([tmp_path], output, ("success",))) == 1


def test_only_one_tasks_episodes_are_joined(tmp_path: Path) -> None:
    convert(write(tmp_path, 2))
    other = Journal(
        tmp_path / "episode_000001.journal", Source("zprl/RealRobot-v0", {"task": "other"}), observation(0), 2
    )
    other.add(observation(1), np.zeros(2), 0.0)
    other.end("success")
    with pytest.raises(DemonstrationError, match="join one task's episodes only"):
        join([tmp_path], tmp_path / "demos.hdf5")
    assert not (tmp_path / "demos.hdf5").exists()
    with pytest.raises(DemonstrationError, match="no episode that ended in timeout"):
        join([tmp_path], tmp_path / "demos.hdf5", ("timeout",))


def test_a_full_disk_loses_nothing_that_was_written(tmp_path: Path, limit_file_size: Callable[[int], None]) -> None:
    path = tmp_path / "episode_000000.journal"
    journal = Journal(path, SOURCE, observation(0), 2)
    journal.add(observation(1), np.ones(2), 0.0)
    limit_file_size(path.stat().st_size + 50)
    with pytest.raises(OSError, match="too large") as caught:
        journal.add(observation(2), np.ones(2), 0.0)
    assert caught.value.errno == errno.EFBIG
    limit_file_size(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    journal.end("aborted")
    recorded = read_journal(path)
    assert len(recorded.episode.actions) == 1
    assert recorded.ending == "aborted"


def test_a_step_is_written_within_a_period(tmp_path: Path) -> None:
    images = {name: np.zeros((128, 128, 3), np.uint8) for name in ("a_image", "b_image", "c_image")}
    journal = Journal(tmp_path / "episode_000000.journal", SOURCE, images, 16)
    seconds = []
    for _ in range(60):
        began = time.perf_counter()
        journal.add(images, np.zeros(16), 0.0)
        seconds.append(time.perf_counter() - began)
    journal.end("success")
    assert np.median(seconds) < 0.01  # of 0.05
