"""``zprl attach``: from a policy of somebody else to one that is steered, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from helpers import POINT, point_demonstrations, same
from programs import train_command
from zprl_sb3.attached import TRUSTED
from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
from zprl_sb3.checkpoint import load_policy
from zprl_sb3.pretrain.demonstrations import load_demonstrations
from zprl_sb3.scripts.common import find_demonstrations

pytestmark = pytest.mark.filterwarnings("ignore:rich is experimental")

MINE = """
import torch as th
from torch import nn
from zprl_sb3.adapters.module import SplitPolicy

def make(goal=1.0):
    network = nn.Linear(1, 1, bias=False)
    with th.no_grad():
        network.weight.fill_(goal)
    act = lambda c: (network.weight * (c[:, 2:] - c[:, :2])).view(-1, 1, 2).expand(-1, 3, 2)
    return SplitPolicy(network, lambda obs: obs["state"], act, {"state": (4,)}, chunk=2)
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the command that attaches a bottleneck of 60 steps to a user's own policy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(TRUSTED, "")  # and as it was afterwards
    Path("mine.py").write_text(MINE)
    point_demonstrations(Path("demos.hdf5"), (12, 9, 11))
    settings = ["latent_dim=3", "training.steps=60", "training.batch_size=8", "training.save_every=20", "device=cpu"]
    return ["attach", "policy=mine.py:make", "demos=demos.hdf5", "output=runs/mine", *settings]


def test_attached_calibrated_trained_and_evaluated(command: list[str], zprl: Any) -> None:
    code, out, err = zprl(*command, "evaluation.episodes=4")
    assert code == 0, err
    assert "Attaching a bottleneck to mine.py:make (module) with 3 demonstrations; TensorBoard" in out
    assert "| base through the bottleneck |" in out
    checkpoint = Path("runs/mine/policy")
    policy = load_policy(checkpoint)
    assert policy.bottleneck is not None
    assert policy.bottleneck.latent_dim == 3
    assert find_demonstrations(checkpoint)[0].name == "demos.hdf5"
    before = (checkpoint / "config.json").read_bytes()
    code, out, _ = zprl(*command, "evaluation.episodes=0")
    assert code == 0
    assert "is trained already" in out
    assert (checkpoint / "config.json").read_bytes() == before
    assert zprl("calibrate", checkpoint)[0] == 0
    assert json.loads(Path("runs/mine/calibration.json").read_text())["scale"] > 0
    code, _, err = zprl(*train_command(checkpoint, Path("runs/steered"), "scale=auto"))
    assert code == 0, err
    code, _, err = zprl("evaluate", "runs/steered", "--episodes", "4")
    assert code == 0, err
    assert json.loads(Path("runs/steered/evaluation.json").read_text())["episodes"] == 4
    code, _, err = zprl("train", "--algo", "soe", "--policy", checkpoint, "--output", "runs/soe")
    assert code == 1
    assert "SOE retrains the base policy, but runs/mine/policy was attached to one that others have trained" in err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("policy=nothing.ckpt", "nothing.ckpt"),
        ("policy=nothing", "there is no such file or folder. Policies that can be read .*lerobot: LeRobot's folders"),
        ("adapter=onnx", "There is no adapter 'onnx'"),
        ("+options.speed=3", "has no such option|unexpected"),
        ("demos=none.hdf5", "none.hdf5: no such file"),
        ("latent=3", "zprl attach --help"),
    ],
)
def test_what_does_not_fit_is_said_before_any_work(command: list[str], zprl: Any, change: str, words: str) -> None:
    code, _, err = zprl(*command, "evaluation.episodes=0", change)
    assert code == 1
    assert re.search(words, err), err
    assert not Path("runs/mine/pretrain.yml").exists()


def test_a_bottleneck_that_comes_with_the_policy_is_kept(command: list[str], zprl: Any) -> None:
    own = MINE.replace("    return SplitPolicy(", "    policy = SplitPolicy(") + (
        "    from zprl_sb3 import Bottleneck, BottleneckConfig\n"
        "    th.manual_seed(1)\n"
        "    policy.bottleneck = Bottleneck(4, BottleneckConfig(2, 8))\n"
        "    return policy\n"
    )
    Path("mine.py").write_text(own)
    kept = [part for part in command if not part.startswith("latent_dim")]
    code, out, err = zprl(*kept, "evaluation.episodes=0")
    assert code == 0, err
    assert "keeps the bottleneck that it was trained with" in out
    th.manual_seed(1)
    expected, policy = Bottleneck(4, BottleneckConfig(2, 8)), load_policy("runs/mine/policy")
    assert policy.bottleneck is not None
    assert same(policy.bottleneck.state_dict().values(), expected.state_dict().values())
    code, out, err = zprl(*command, "evaluation.episodes=0", "output=runs/other")
    assert code == 0, err
    policy = load_policy("runs/other/policy")
    assert policy.bottleneck is not None
    assert policy.bottleneck.latent_dim == 3


def test_a_function_that_makes_another_policy_each_time_is_refused(command: list[str], zprl: Any) -> None:
    Path("mine.py").write_text(MINE.replace("network.weight.fill_(goal)", "pass"))
    code, _, err = zprl(*command, "evaluation.episodes=0")
    assert code == 1
    assert "mine.py:make makes another policy each time" in err


def test_another_policy_or_setting_does_not_go_on_with_a_run(command: list[str], zprl: Any) -> None:
    assert zprl(*command, "evaluation.episodes=0")[0] == 0
    code, _, err = zprl(*command, "evaluation.episodes=0", "training.beta=0.5")
    assert code == 1
    assert "training.beta (0.0001 there, 0.5 now)" in err
    code, _, err = zprl(*command, "evaluation.episodes=0", "+options.goal=2.0")
    assert code == 1
    assert "holds a run with other settings" in err


def test_without_demonstrations_it_learns_from_episodes_of_its_own(command: list[str], zprl: Any) -> None:
    without = [part for part in command if not part.startswith("demos=")]
    code, _, err = zprl(*without, "evaluation.episodes=0")
    assert code == 1
    assert "Give demonstrations (demos=FILE), or an environment for the policy to act in (env=ID)" in err
    own = [*without, "evaluation.episodes=0", f"env={POINT}", "rollouts=4", "+env_kwargs.max_episode_steps=9"]
    code, out, err = zprl(*own)
    assert code == 0, err
    assert "Recording 4 episodes of the policy in" in out
    demos, mask = find_demonstrations("runs/mine/policy")
    assert (demos.name, mask) == ("rollouts.hdf5", None)
    recorded = load_demonstrations(demos)
    # It walks straight to the goal, so its actions are the way that is left.
    for seen, actions in zip(recorded.observations["state"], recorded.actions, strict=True):
        way = np.asarray(seen)[:, 2:] - np.asarray(seen)[:, :2]
        np.testing.assert_allclose(actions[::2], np.clip(way, -1, 1)[::2], atol=1e-6)
    assert recorded.successes == [False, False, True, True]  # failures are kept too
    assert "is trained already" in zprl(*own)[1]
