"""What the programs share."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

import pytest
import torch as th

from helpers import POINT, tiny_policy
from zprl_sb3.checkpoint import save_policy
from zprl_sb3.scripts.common import at_least, device_of, make_arguments, read_yaml, record_run, refuse_other_run

RUN = {"seed": 1, "settings": {"scale": 0.5, "algorithm": {"tau": 0.1}}, "device": "cpu"}


def test_auto_is_the_gpu_where_there_is_one() -> None:
    assert device_of("auto").type == ("cuda" if th.cuda.is_available() else "cpu")
    assert device_of("cpu") == th.device("cpu")


@pytest.mark.parametrize("name", ["warp", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"There is no device '{name}' here") as caught:
        device_of(name)
    assert "\n" not in str(caught.value)


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "run" / "run.yml"
    refuse_other_run(file, RUN)
    assert not file.exists()  # only a run that works claims its folder
    record_run(file, RUN)
    refuse_other_run(file, RUN)
    written = read_yaml(file)
    assert written.pop("versions")["torch"] == version("torch")
    assert written == RUN


def test_what_may_differ_may_lie_deeper_and_is_written_anew(tmp_path: Path) -> None:
    file = tmp_path / "run.yml"
    record_run(file, RUN)
    other = RUN | {"settings": {"scale": 0.7, "algorithm": {"tau": 0.3}}}
    refuse_other_run(file, other, ignore=["settings.scale", "settings.algorithm"])
    with pytest.raises(ValueError, match=r"settings.algorithm.tau \(0.1 there, 0.3 now\)"):
        refuse_other_run(file, other, ignore=["settings.scale", "settings.algo"])
    record_run(file, other)
    assert read_yaml(file)["settings"] == other["settings"]


def test_other_versions_are_no_other_run(tmp_path: Path) -> None:
    file = tmp_path / "run.yml"
    record_run(file, RUN)
    file.write_text(file.read_text().replace(version("torch"), "1.0"))
    refuse_other_run(file, RUN)


def test_what_differs_from_the_run_in_the_folder_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.yml"
    record_run(file, RUN)
    other = {"seed": 2, "settings": {"scale": 0.5, "algorithm": {"tau": 0.2}, "extra": True}, "device": "cuda"}
    with pytest.raises(ValueError, match="other settings") as caught:
        refuse_other_run(file, other, ignore=["device"])
    message = str(caught.value)
    assert "seed (1 there, 2 now)" in message
    assert "settings.algorithm.tau (0.1 there, 0.2 now)" in message
    assert "settings.extra (None there, True now)" in message
    assert "scale" not in message
    assert "device" not in message


@pytest.mark.parametrize("content", ["", "a: [", "3"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.yml").write_text(content)
    with pytest.raises(ValueError, match=r"run.yml is damaged"):
        refuse_other_run(tmp_path / "run.yml", RUN)


def test_whole_numbers_from_a_minimum_on() -> None:
    assert at_least(1)("3") == 3
    with pytest.raises(argparse.ArgumentTypeError, match="must be at least 1, not 0"):
        at_least(1)("0")
    with pytest.raises(ValueError, match="invalid literal"):
        at_least(1)("many")


def test_the_environment_has_the_arguments_of_the_demonstrations_then_those_of_the_settings(toy_policy: Path) -> None:
    assert make_arguments(toy_policy, {}) == {"reach": 0.3}
    assert make_arguments(toy_policy, {"by_key": True, "reach": 1}) == {"by_key": True, "reach": 1}


def test_what_the_policy_sees_may_not_change(tmp_path: Path) -> None:
    recorded = {"observation": "image", "render_quality": "fast", "reach": 0.3}
    policy = save_policy(tiny_policy(env_id=POINT), tmp_path / "policy", env_kwargs=recorded)
    assert make_arguments(policy, {"render_quality": "fast", "reach": 1}) == recorded | {"reach": 1}
    with pytest.raises(ValueError, match=r"with render_quality='fast' and .* with 'full'"):
        make_arguments(policy, {"render_quality": "full"})
