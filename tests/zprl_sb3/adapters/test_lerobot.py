"""Checkpoints that LeRobot's own classes wrote (fixtures/make_lerobot.py), loaded without it, against what these did."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch as th
from safetensors.torch import load_file, save_file

from zprl_sb3.adapters import AdaptedPolicy, open_policy
from zprl_sb3.policy import missing_members

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = ["act_state", "act_old", "diffusion_state", "diffusion_old"]
IMAGES = ["act_image", "diffusion_image", "diffusion_old_image"]


def recipe() -> ModuleType:
    """The script that made the fixtures, for the weights that it has not kept."""
    spec = importlib.util.spec_from_file_location("make_lerobot", FIXTURES / "make_lerobot.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = recipe()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of the images' policies, with their weights, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        source = FIXTURES / "lerobot" / name
        if name not in IMAGES:
            return source
        if name not in made:
            made[name] = tmp_path_factory.mktemp("lerobot") / name
            shutil.copytree(source, made[name])
            weights = MAKE.seeded_weights(json.loads((source / "shapes.json").read_text()))
            kept = load_file(source / "case.safetensors")
            weights |= {key.removeprefix("kept/"): value for key, value in kept.items() if key.startswith("kept/")}
            save_file(weights, made[name] / "model.safetensors")
        return made[name]

    return folder


@pytest.fixture
def copied(tmp_path):
    """Copy a small case, to damage it."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(FIXTURES / "lerobot" / name, tmp_path / name))

    return copy


def read_case(folder: Path) -> dict[str, th.Tensor]:
    case = load_file(folder / "case.safetensors")
    images = {key: MAKE.enlarged(value) for key, value in case.items() if "observation.image" in key}
    return case | images


def observed(policy: AdaptedPolicy, case: dict[str, th.Tensor], step: int) -> dict[str, th.Tensor]:
    """What the policy sees at a step; before the first there is only more of the first."""
    frames = [max(0, step - past) for past in reversed(range(policy.obs_steps))]
    stacked = {key: case[f"obs/{key}"][frames].transpose(0, 1) for key in policy.observation_shapes}
    return stacked if policy.obs_steps > 1 else {key: value[:, 0] for key, value in stacked.items()}


def drawn(policy: AdaptedPolicy, case: dict[str, th.Tensor], prediction: int) -> th.Tensor:
    if "noise" not in case:
        return th.zeros(MAKE.BATCH, 0)
    return case["noise"][prediction].reshape(MAKE.BATCH, *policy.noise_shape)


@pytest.mark.parametrize("name", SMALL + IMAGES)
def test_acts_as_lerobot_did(folders, name):
    policy, case = open_policy(folders(name), "lerobot"), read_case(folders(name))
    assert not missing_members(policy)
    assert len(case["actions"]) == 2 * policy.chunk
    for prediction, step in enumerate([0, policy.chunk]):
        context = policy.embed(observed(policy, case, step))
        assert context.shape == (MAKE.BATCH, policy.context_dim)
        actions = policy.act(context, drawn(policy, case, prediction))
        assert actions.shape == (MAKE.BATCH, policy.horizon, policy.action_dim)
        wanted = case["actions"][step : step + policy.chunk].transpose(0, 1)
        th.testing.assert_close(actions[:, : policy.chunk], wanted, atol=1e-5, rtol=0)
    # The two differ by more than what they agree by, and so do the two rows.
    assert (case["actions"][0] - case["actions"][policy.chunk]).abs().max() > 1e-3
    assert (case["actions"][:, 0] - case["actions"][:, 1]).abs().max() > 1e-3
