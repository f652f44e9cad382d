"""Which adapter a checkpoint is for, and what options it takes."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest

from zprl_sb3.adapters import ADAPTERS, AdapterError, adapter_of, open_policy
from zprl_sb3.pretrain.configuration import compose

FOLDER = Path(__file__).parent / "fixtures/lerobot/act_state"


def test_the_adapter_follows_from_what_there_is(tmp_path: Path) -> None:
    for name in ("train/pretrained_model", "cache/snapshots/0"):
        (tmp_path / name).mkdir(parents=True)
    found = {name: adapter_of(tmp_path / name) for name in ("x.ckpt", "x.pth", "x.zip", "x.py:make", "train", "cache")}
    assert [*found.values()] == ["diffusion_policy", "robomimic", "sb3", "module", "lerobot", "lerobot"]
    assert adapter_of(FOLDER) == "lerobot"
    (tmp_path / "x.bin").touch()
    for name, words in {"x.bin": "adapter=NAME does", "": "no config.json", "y": "no such file or folder"}.items():
        with pytest.raises(AdapterError, match=words):
            adapter_of(tmp_path / name)


def test_the_settings_name_the_options_of_all_adapters() -> None:
    options = compose("attach", ["policy=", "output="])["options"]
    loads = [import_module(f"zprl_sb3.adapters.{name}").load for name in ADAPTERS if name != "module"]
    assert set(options) == {name for load in loads for name in [*inspect.signature(load).parameters][1:]}
    assert not any(options.values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "ddim"}, "no such option: 'sampler'. It has keys, shapes, chunk, sampling_steps, steer"),
        ({"keys": {"observation.state": "state"}}, r"The option keys gives each name a list, \{INPUT: \[KEY, KEY\]\}"),
        ({"keys": ["state"]}, "The option keys gives each name a list"),
        ({"shapes": {"state": 3}}, "The option shapes gives each name a list"),
        ({"chunk": "three"}, "The option chunk is a whole number, not 'three'"),
        ({"sampling_steps": 0.5}, "The option sampling_steps is a whole number, not 0.5"),
    ],
)
def test_options_of_another_kind_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_policy(FOLDER, "lerobot", **options)
