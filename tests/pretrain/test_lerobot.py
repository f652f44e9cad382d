"""LeRobot's data sets: those that its own classes wrote and read, and what is wrong with others."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from lerobot_folders import change_info, write_lerobot, write_video
from zprl_sb3.pretrain.demonstrations import DemonstrationError
from zprl_sb3.pretrain.lerobot import open_lerobot
from zprl_sb3.pretrain.lerobot_files import BATCH, LeRobotFiles, looks_like_lerobot

pytest.importorskip("av")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

FIXTURES = Path(__file__).parent / "fixtures" / "lerobot"
TOP, HAND = "observation.images.top", "observation.images.hand"
NAMES = {"state": "observation.state", "top": TOP, "hand_image": HAND}
ARM, STATE, MISSING = "test/LeRobotArm-v0", "test/LeRobotState-v0", "test/LeRobotMissing-v0"
TABLE, VIDEO = "data/chunk-000/episode_000001.parquet", f"videos/chunk-000/{TOP}/episode_000001.mp4"


class Arm(gym.Env[Any, Any]):
    """What the data sets in ``fixtures/`` are demonstrations of."""

    metadata: dict[str, Any] = {"render_modes": [], "render_fps": 20}

    def __init__(self, boxed: bool = False, broken: bool = False) -> None:
        if broken:
            raise OSError("no robot is connected")
        state, image = spaces.Box(-9, 9, (4,)), spaces.Box(0, 255, (32, 32, 3), np.uint8)
        pictures = {"top": image, "hand_image": image}
        self.observation_space = state if boxed else spaces.Dict({"state": state, **pictures})
        self.action_space = spaces.Box(-1, 1, (2,))


for _id, _kwargs in ((ARM, {}), (STATE, {"boxed": True}), (MISSING, {"broken": True})):
    if _id not in gym.registry:
        gym.register(_id, Arm, kwargs=_kwargs)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Return what LeRobot's own class reads, rows of all episodes."""
    with np.load(FIXTURES / "expected.npz") as stored:
        return dict(stored)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a copy of the data set of version 2.1, to be broken."""
    return shutil.copytree(FIXTURES / "old", tmp_path / "old")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Return a copy of a data set of version 3.0, to be broken."""
    return shutil.copytree(FIXTURES / "recorded", tmp_path / "new")


@pytest.fixture
def walks(tmp_path: Path) -> Callable[..., Path]:
    """Write a data set of version 2.1 without pictures for ``STATE``: three episodes of 4 steps, with more features."""

    def write(count: int = 3, steps: int = 4, tasks: tuple[str, ...] = (), **features: Any) -> Path:
        rng = np.random.default_rng(0)
        episodes = [
            {"observation.state": rng.normal(size=(steps, 4)), "action": rng.uniform(-1, 1, (steps, 2))}
            | {name: np.asarray(values[k]) for name, values in features.items()}
            for k in range(count)
        ]
        return write_lerobot(tmp_path / "walks", episodes, tasks=tasks)

    return write


def rewrite(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change a table."""
    parquet.write_table(change(parquet.read_table(folder / name)), folder / name)


def refused(folder: Path, message: str, env_id: str = ARM, **arguments: Any) -> None:
    with pytest.raises(DemonstrationError, match=message):
        open_lerobot(folder, env_id, **arguments)


@pytest.mark.parametrize("name", ["recorded", "converted", "old"])
def test_episodes_are_what_lerobot_reads(name: str, expected: dict[str, Any]) -> None:
    recording = open_lerobot(FIXTURES / name, ARM)
    episodes = list(recording.episodes)
    assert [len(episode.actions) for episode in episodes] == [5, 6, 3]
    assert recording.count == 3
    for key, feature in NAMES.items():
        values = np.concatenate([episode.observations[key] for episode in episodes])
        there = expected[TOP if name == "recorded" else "converted"] if key == "top" else expected[feature]
        assert values.dtype == there.dtype
        np.testing.assert_array_equal(values, there)
    np.testing.assert_array_equal(np.concatenate([episode.actions for episode in episodes]), expected["action"])
    rewards = np.concatenate([episode.rewards for episode in episodes])
    np.testing.assert_array_equal(rewards, expected["next.success"].astype(float))
    assert [episode.success for episode in episodes] == [True, False, True]
    assert recording.masks == {"Walk-0.": [0, 2], "Walk-1.": [1]}
    assert (recording.env_id, recording.env_version, recording.env_kwargs) == (ARM, "", {})
    assert recording.origin["codebase_version"] == ("v2.1" if name == "old" else "v3.0")
    assert not any("success" in note or "Hz" in note for note in recording.notes)


def test_a_plain_box_is_the_state_and_pictures_that_nobody_wants_are_not_read(new: Path) -> None:
    shutil.rmtree(new / "videos")
    recording = open_lerobot(new, STATE)
    assert recording.notes == ("state is made of observation.state",)
    assert list(next(recording.episodes).observations) == ["state"]


def test_one_key_of_several_features(walks: Any) -> None:
    parts = {"a": np.arange(12.0).reshape(3, 4), "observation.rest": np.arange(36.0).reshape(3, 4, 3)}
    recording = open_lerobot(walks(**parts), STATE, keys={"state": ["a", "observation.rest"]})
    for k, episode in enumerate(recording.episodes):
        joined = np.concatenate([parts["a"][k][:, None], parts["observation.rest"][k]], axis=1)
        np.testing.assert_array_equal(episode.observations["state"], joined)


def test_an_action_of_another_name(walks: Any) -> None:
    commands = np.random.default_rng(1).normal(size=(3, 4, 2))
    recording = open_lerobot(walks(commands=commands), STATE, action="commands")
    np.testing.assert_allclose(np.stack([episode.actions for episode in recording.episodes]), commands, rtol=1e-6)


@pytest.mark.parametrize(
    ("features", "rewards", "successes", "note"),
    [
        ({}, [[0, 0, 0, 1]] * 3, [True] * 3, "no next.success: every episode counts as a success"),
        (
            {"next.reward": [[0, 0, 1, 0], [0] * 4, [0, 0, 0, 1]]},
            [[0, 0, 1, 0], [0] * 4, [0, 0, 0, 1]],
            [True, False, True],
            "no next.success: a next.reward of 1 counts as success",
        ),
        ({"next.reward": [[0, 0.5, 1, 0]] * 3}, [[0, 0.5, 1, 0]] * 3, [True] * 3, "every episode counts as a success"),
        ({"next.reward": [[0, 0, 0, 0]] * 3}, [[0, 0, 0, 0]] * 3, [True] * 3, "every episode counts as a success"),
        (
            {"next.success": [[False] * 4, [False, True, False, False], [False] * 4]},
            [[0] * 4, [0, 1, 0, 0], [0] * 4],
            [False, True, False],
            "",
        ),
        (
            {"next.success": [[False] * 4] * 3, "next.reward": [[0, 0, 1, 0]] * 3},
            [[0, 0, 1, 0]] * 3,
            [False] * 3,
            "",
        ),
    ],
)
def test_rewards_and_success(walks: Any, features: Any, rewards: Any, successes: Any, note: str) -> None:
    recording = open_lerobot(walks(**features), STATE)
    notes = [each for each in recording.notes if "success" in each]
    assert len(notes) == bool(note)
    assert note in "".join(notes)
    episodes = list(recording.episodes)
    np.testing.assert_array_equal([episode.rewards for episode in episodes], rewards)
    assert [episode.success for episode in episodes] == successes


def test_episodes_may_be_longer_than_what_is_read_at_once(walks: Any, tmp_path: Path) -> None:
    """Episodes of a file, of more rows than a batch and with borders within batches, with one that was deleted."""
    folder = walks(count=4, steps=BATCH + 40)
    names = [folder / f"data/chunk-000/episode_{k:06d}.parquet" for k in range(4)]
    whole = [parquet.read_table(name) for name in names]
    parquet.write_table(pyarrow.concat_tables(whole), folder / "data/all.parquet")
    change_info(folder, data_path="data/all.parquet")
    lines = (folder / "meta/episodes.jsonl").read_text().splitlines(keepends=True)
    (folder / "meta/episodes.jsonl").write_text("".join(lines[:2] + lines[3:]))
    episodes = list(open_lerobot(folder, STATE).episodes)
    assert len(episodes) == 3
    for episode, table in zip(episodes, (whole[0], whole[1], whole[3]), strict=True):
        np.testing.assert_allclose(episode.actions, np.stack(table["action"].to_pylist()), rtol=1e-6)


def test_what_is_lerobots(tmp_path: Path) -> None:
    assert looks_like_lerobot(FIXTURES / "old")
    assert not looks_like_lerobot(FIXTURES)
    (tmp_path / "meta_data").mkdir()
    (tmp_path / "meta_data/info.json").write_text('{"codebase_version": "v1.6", "fps": 20}')
    assert looks_like_lerobot(tmp_path)
    refused(
        tmp_path, "LeRobot's version v1.6; v2.1 and v3.0 can be read. Convert it with .*v2.convert_dataset_v1_to_v2"
    )


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            "v2.0",
            r"version v2.0; v2.1 and v3.0 can be read. Convert it with LeRobot 0.3.3, .*convert_dataset_v20_to_v21",
        ),
        ("v3.1", r"version v3.1; v2.1 and v3.0 can be read.$"),
        (None, r"version None; v2.1 and v3.0 can be read.$"),
    ],
)
def test_other_versions_are_refused(old: Path, version: str | None, message: str) -> None:
    change_info(old, codebase_version=version)
    refused(old, message)


def test_damaged_descriptions_are_named(old: Path, new: Path, tmp_path: Path) -> None:
    refused(tmp_path, r"no data set of LeRobot, which is a folder with meta/info.json")
    for change, message in (
        ({"features": {"action": {}}}, r"info.json: it must say fps and features \(KeyError\('shape'\)\)"),
        ({"fps": None}, "info.json: it must say fps and features"),
        ({"chunks_size": None}, r"episodes.jsonl: it does not say where the episodes are"),
        ({"data_path": "data/{place}"}, r"episodes.jsonl: it does not say where .*KeyError\('place'\)"),
        ({"video_path": "videos/none.mp4"}, r"videos/none.mp4: no such file"),
    ):
        before = (old / "meta/info.json").read_text()
        change_info(old, **change)
        refused(old, message)
        (old / "meta/info.json").write_text(before)
    (old / "meta/episodes.jsonl").write_text('{"episode_index": 0')
    refused(old, "episodes.jsonl: missing or damaged")
    (old / "meta/episodes.jsonl").write_text("")
    refused(old, "it holds no episode")
    (old / "meta/info.json").write_text("{")
    refused(old, "info.json: not JSON, or damaged")
    rewrite(new, "meta/episodes/chunk-000/file-000.parquet", lambda table: table.drop_columns("data/file_index"))
    refused(new, r"meta/episodes: it does not say where the episodes are \(KeyError\('data/file_index'\)\)")
    shutil.rmtree(new / "meta/episodes")
    refused(new, "it holds no episode")


@pytest.mark.parametrize(
    "template",
    [
        "../data/{episode_chunk}",
        "/etc/{episode_index:06d}.parquet",
        "data/{episode_index:9999999999d}",
        "data/{episode_index.__class__}",
        "data/{nothing}.parquet",
        "{",
    ],
)
def test_paths_that_lead_elsewhere_are_refused(old: Path, template: str) -> None:
    change_info(old, data_path=template)
    refused(old, "data_path .* does not lead to files of the folder|does not say where the episodes are")


def test_a_feature_cannot_lead_elsewhere(old: Path) -> None:
    info = json.loads((old / "meta/info.json").read_text())
    change_info(old, features=info["features"] | {"../../x": info["features"][TOP]})
    refused(old, "video_path .* does not lead to files of the folder")


def test_missing_and_damaged_tables_are_named(old: Path, new: Path) -> None:
    content = (old / TABLE).read_bytes()
    (old / TABLE).write_bytes(content[: len(content) // 2])
    refused(old, rf"{TABLE}: not a Parquet file, or a damaged one \(.*get it again")
    (old / TABLE).unlink()
    refused(old, rf"{TABLE}: no such file; the data set is not complete")
    meta = new / "meta/episodes/chunk-000/file-000.parquet"
    meta.write_bytes(meta.read_bytes()[:1000])
    refused(new, r"file-000.parquet: not a Parquet file, or a damaged one")


def test_rows_that_are_missing_are_named(old: Path, new: Path) -> None:
    rewrite(old, TABLE, lambda table: table.slice(0, 4))
    refused(old, rf"{TABLE}: episode 1 has 4 rows, but .*meta says 6")
    rewrite(new, "data/chunk-000/file-000.parquet", lambda table: table.slice(0, 5))
    refused(new, r"file-000.parquet: the rows of episode 1 are missing, or out of order")


def test_missing_columns_wrong_sizes_and_nan_are_named(old: Path) -> None:
    before = (old / TABLE).read_bytes()

    def column(name: str, values: list[Any]) -> Callable[[Any], Any]:
        return lambda table: table.drop_columns(name).append_column(name, pyarrow.array(values))

    for change, message in (
        (lambda table: table.drop_columns("action"), "episode 1: the column 'action' is missing"),
        (column("action", [[1.0, 2.0]] * 5 + [[1.0]]), r"episode 1, action: not numbers of the shape \(2,\) a row"),
        (column("action", ["go"] * 6), "episode 1, action: not numbers"),
        (column("action", [[0.0, 0.0]] * 4 + [[0.0, float("nan")]] * 2), "action: NaN or infinite in row 4"),
    ):
        rewrite(old, TABLE, change)
        refused(old, message)
        (old / TABLE).write_bytes(before)


def test_missing_and_damaged_videos_are_named_before_any_work(old: Path, new: Path) -> None:
    content = (old / VIDEO).read_bytes()
    (old / VIDEO).write_bytes(content[: len(content) // 2])
    refused(old, r"episode_000001.mp4: no video, or a damaged one")
    (old / VIDEO).unlink()
    refused(old, r"episode_000001.mp4: no such file")
    # Its table of contents in front, as LeRobot writes them: it opens, but the last frames are not there.
    video = new / f"videos/{TOP}/chunk-000/file-000.mp4"
    video.write_bytes(video.read_bytes()[:-200])
    refused(new, r"file-000.mp4: \d frames of episode 1, which has 6 rows; the video is truncated")


def test_a_video_of_other_frames_is_named(old: Path) -> None:
    frames = np.zeros((7, 32, 32, 3), np.uint8)
    write_video(old / VIDEO, frames, 20)
    refused(old, r"episode_000001.mp4: 7 frames of episode 1, which has 6 rows")
    write_video(old / VIDEO, frames[:6], 10)
    refused(old, r"episode_000001.mp4: frame 5 of episode 1 is shown 0.250 s away from the time stamp")
    write_video(old / VIDEO, frames[:6, :16], 20)
    refused(old, r"episode_000001.mp4: images of \(16, 32, 3\), not of \(32, 32, 3\) as meta/info.json says")


def test_a_damaged_image_is_named(old: Path) -> None:
    def without(table: Any) -> Any:
        images = [*table[HAND].to_pylist()[:-1], {"bytes": b"no image", "path": None}]
        return table.drop_columns(HAND).append_column(HAND, pyarrow.array(images))

    rewrite(old, TABLE, without)
    with pytest.raises(DemonstrationError, match=f"episode 1, {HAND}: an image is missing or damaged"):
        list(open_lerobot(old, ARM).episodes)


def test_images_of_another_size_or_kind_are_not_decoded(old: Path) -> None:
    for kind, size, message in (("PNG", (64, 64), "images of"), ("EPS", (32, 32), "missing or damaged")):
        stored = io.BytesIO()
        Image.new("RGB", size).save(stored, kind)

        def other(table: Any, content: bytes = stored.getvalue()) -> Any:
            images = [{"bytes": content, "path": None}] * table.num_rows
            return table.drop_columns(HAND).append_column(HAND, pyarrow.array(images))

        rewrite(old, TABLE, other)
        with pytest.raises(DemonstrationError, match=f"episode 1, {HAND}: .*{message}"):
            list(open_lerobot(old, ARM).episodes)


def test_features_and_keys_that_are_not_there_are_listed(walks: Any) -> None:
    folder = walks()
    refused(folder, "no feature 'speed', but observation.state, action, timestamp", STATE, keys={"state": ["speed"]})
    refused(folder, "no feature 'command', but observation.state", STATE, action="command")
    refused(folder, "test/LeRobotState-v0 observes no 'eyes', but state", STATE, keys={"eyes": ["observation.state"]})
    refused(folder, r"named like hand_image, top of .*--keys hand_image=FEATURE. The data set has observation.state")


def test_sizes_are_compared_with_the_environment(walks: Any) -> None:
    folder = walks(wide=np.zeros((3, 4, 5)))
    refused(folder, r"wide: the shape is \(5,\), but 'state' of .* has \(4,\)", STATE, keys={"state": ["wide"]})
    both = {"state": ["wide", "observation.state"]}
    refused(folder, r"wide and observation.state: the shape is \(9,\)", STATE, keys=both)
    refused(folder, r"wide: the shape is \(5,\), but the action of .* has \(2,\)", STATE, action="wide")
    refused(FIXTURES / "old", f"top: {TOP}, {HAND}: only vectors", keys={"top": [TOP, HAND]})


def test_images_with_the_channels_first_are_images(old: Path) -> None:
    """As many describe them; the pictures are the same."""
    features = json.loads((old / "meta/info.json").read_text())["features"]
    features[TOP] |= {"shape": [3, 32, 32], "names": ["channels", "height", "width"]}
    features[HAND] |= {"shape": [3, 32, 32], "names": None}
    change_info(old, features=features)
    assert len(list(open_lerobot(old, ARM).episodes)) == 3


def test_another_rate_is_a_warning(walks: Any) -> None:
    folder = walks()
    change_info(folder, fps=50)
    notes = open_lerobot(folder, STATE).notes
    assert any("Warning: recorded at 50 Hz, but test/LeRobotState-v0 says 20 Hz" in note for note in notes)


def test_an_environment_that_cannot_be_made_needs_keys(walks: Any) -> None:
    folder = walks()
    refused(folder, r"cannot be made here, .*\(no robot is connected\).*--keys KEY=FEATURE", MISSING)
    recording = open_lerobot(folder, MISSING, keys={"joints": ["observation.state"]})
    assert "not compared with it (no robot is connected)" in recording.notes[0]
    assert next(recording.episodes).observations["joints"].shape == (4, 4)


def test_unknown_environments_and_arguments_are_refused(walks: Any) -> None:
    folder = walks()
    with pytest.raises(gym.error.Error, match="LeRobotStates"):
        open_lerobot(folder, "test/LeRobotStates-v0")
    with pytest.raises(ValueError, match="no argument 'colour'; it has boxed, broken"):
        open_lerobot(folder, STATE, {"colour": "red"})
    with pytest.raises(ImportError, match="no_such_module"):
        open_lerobot(folder, "no_such_module:Task-v0")


@pytest.mark.parametrize(("module", "name"), [("pyarrow.parquet", "pyarrow"), ("av", "av")])
def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{name}, which cannot be .*pip install "zprl-sb3\[lerobot\]"'):
        open_lerobot(FIXTURES / "recorded", ARM)


def test_only_what_is_needed_of_a_table_is_read(new: Path) -> None:
    files = LeRobotFiles(new)
    (_, table), *others = files.tables(["action"])
    assert table.column_names == ["episode_index", "action"]
    assert [episode.index for episode, _ in others] == [1, 2]
