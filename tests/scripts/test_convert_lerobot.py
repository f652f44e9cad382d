"""``zprl convert`` of LeRobot's data sets: from demonstrations, over a data set of them, to the same demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import POINT, POINT_IMAGES, image_demonstrations, point_demonstrations
from lerobot_folders import write_lerobot
from programs import image_pretrain_command, pretrain_command
from zprl_sb3.pretrain.demonstrations import Demonstrations, load_demonstrations, read_rewards
from zprl_sb3.pretrain.recording import read_collection
from zprl_sb3.scripts.convert import parse_keys

pytest.importorskip("av")
pytest.importorskip("pyarrow")


def to_lerobot(folder: Path, demos: Demonstrations, names: dict[str, str], fps: int = 20) -> Path:
    """Write demonstrations as a LeRobot data set.

    :param names: The feature that each key of the observation becomes
    """
    rewards = read_rewards(demos)
    episodes = [
        {names[key]: values[k][:] for key, values in demos.observations.items()}
        | {"action": demos.actions[k], "next.reward": rewards[k], "next.success": rewards[k] > 0}
        for k in range(len(demos))
    ]
    pictures = [names[key] for key, values in demos.observations.items() if values[0].ndim == 4]
    kinds = {name: "video" if "top" in name else "image" for name in pictures}
    return write_lerobot(folder, episodes, kinds, fps)


def same_demonstrations(first: Demonstrations, second: Demonstrations) -> None:
    assert first.observations.keys() == second.observations.keys()
    assert len(first) == len(second)
    for key in first.observations:
        for one, two in zip(first.observations[key], second.observations[key], strict=True):
            np.testing.assert_array_equal(one[:], two[:])
    for one, two in zip(first.actions, second.actions, strict=True):
        np.testing.assert_array_equal(one, two)
    for one, two in zip(read_rewards(first), read_rewards(second), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first.env_id, first.env_kwargs, first.successes) == (second.env_id, second.env_kwargs, second.successes)


@pytest.mark.slow
def test_demonstrations_of_a_simulator_come_back(push_demos: Path, tmp_path: Path, zprl: Any) -> None:
    originals = load_demonstrations(push_demos)
    keys = {"object": "observation.environment_state", "proprio": "observation.state"}
    folder = to_lerobot(tmp_path / "data", originals, keys, fps=80)
    output = tmp_path / "demos.hdf5"
    code, out, err = zprl(
        *("convert", folder, "--output", output, "--env", "zprl/Push-v0"),
        *("--env-kwargs", "max_episode_steps=60", "observation=state"),
        *("--keys", *(f"{key}={name}" for key, name in keys.items())),
    )
    assert code == 0, err
    assert "object is made of observation.environment_state" in out
    assert "Hz" not in out
    assert "4/4" in err  # the progress bar
    same_demonstrations(load_demonstrations(output), originals)
    assert read_collection(output)["converted"]["format"] == "lerobot"
    code, _, err = zprl(*pretrain_command(output, tmp_path / "base", "training.steps=2", "training.save_every=2"))
    assert code == 0, err


@pytest.mark.slow
def test_images_come_back_from_videos_and_tables(tmp_path: Path, zprl: Any) -> None:
    originals = load_demonstrations(image_demonstrations(tmp_path / "original.hdf5"))
    names = {"top_image": "observation.images.top", "hand_image": "observation.images.hand_image"}
    folder = to_lerobot(tmp_path / "data", originals, {"point": "observation.point", **names})
    output = tmp_path / "demos.hdf5"
    code, _, err = zprl("convert", folder, "--output", output, "--env", POINT_IMAGES)
    assert code == 0, err
    same_demonstrations(load_demonstrations(output), originals)
    changes = ("training.steps=2", "training.save_every=2")
    code, _, err = zprl(*image_pretrain_command(output, tmp_path / "base", *changes))
    assert code == 0, err


def test_a_failure_leaves_nothing(tmp_path: Path, zprl: Any) -> None:
    """Not even one that only decoding finds."""
    originals = load_demonstrations(image_demonstrations(tmp_path / "original.hdf5"))
    names = {"top_image": "observation.images.top", "hand_image": "observation.images.hand_image"}
    folder = to_lerobot(tmp_path / "data", originals, {"point": "observation.point", **names})
    video = folder / "videos/chunk-000/observation.images.top/episode_000002.mp4"
    content = bytearray(video.read_bytes())
    start = content.index(b"mdat")
    content[start + 4 : start + 800] = bytes(796)
    video.write_bytes(content)
    code, _, err = zprl("convert", folder, "--output", tmp_path / "out/demos.hdf5", "--env", POINT_IMAGES)
    assert code == 1
    assert "episode_000002.mp4" in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "belongs to no environment: name one with --env"),
        (["--env", POINT, "--observation", "image"], "--env-kwargs observation=image"),
        (["--env", POINT, "--absolute"], "--observation, --render and --absolute are not for LeRobot's"),
        (
            ["--keys", "state=observation.state"],
            "--keys, --env-kwargs and --action are for LeRobot's data sets: name the environment, --env",
        ),
        (["--env", POINT, "--keys", "state"], "--keys takes KEY=FEATURE, each key once, as proprio=observation.state"),
        (["--env", POINT, "--keys", "state=observation.speed"], "it has no feature 'observation.speed', but"),
        (["--env", POINT, "--env-kwargs", "speed=1"], "has no argument 'speed'"),
        (["--env", "test/Nothing-v0"], "Nothing"),
    ],
)
def test_what_cannot_be_converted_says_why(tmp_path: Path, zprl: Any, arguments: list[str], message: str) -> None:
    originals = load_demonstrations(point_demonstrations(tmp_path / "original.hdf5", (3, 5)))
    folder = to_lerobot(tmp_path / "data", originals, {"state": "observation.state"})
    code, _, err = zprl("convert", folder, "--output", tmp_path / "demos.hdf5", *arguments)
    assert code == 1
    assert message in err
    assert not (tmp_path / "demos.hdf5").exists()


def test_another_folder_says_what_a_data_set_is(tmp_path: Path, zprl: Any) -> None:
    for arguments in ([], ["--env", POINT]):
        code, _, err = zprl("convert", tmp_path, "--output", tmp_path / "demos.hdf5", *arguments)
        assert code == 1
        assert "meta/info.json" in err


def test_keys_may_have_several_features() -> None:
    assert parse_keys(["a=b.c", "d=e,f.g"]) == {"a": ["b.c"], "d": ["e", "f.g"]}
    assert parse_keys(None) is None
    for wrong in (["a"], ["=b"], ["a="], ["a=b,"], ["a=b", "a=c"]):
        with pytest.raises(ValueError, match="each key once"):
            parse_keys(wrong)


def test_help_shows_how(zprl: Any) -> None:
    code, out, _ = zprl("convert", "--help")
    assert code == 0
    assert "--keys proprio=observation.state corner2_image=observation.images.top" in out
