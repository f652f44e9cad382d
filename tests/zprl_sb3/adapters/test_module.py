"""Networks of a user's own, split in files of his own."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from torch import nn

from helpers import POINT_DICT
from zprl_sb3.adapters import AdapterError, open_policy
from zprl_sb3.adapters.module import SplitPolicy, load, zeros
from zprl_sb3.wrappers import EmbeddingSteeringWrapper

SHAPES = {"goal": (2,), "point": (2,)}

NETWORK = """
from __future__ import annotations

from dataclasses import dataclass

import torch as th
from torch import nn


@dataclass
class Sizes:  # dataclasses look for their module
    hidden: int = 8


class Network(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, sizes.hidden), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(sizes.hidden, 6), nn.Unflatten(1, (3, 2)))
"""

SPLIT = """
from pathlib import Path

import torch as th
from beside import Network, Sizes

from zprl_sb3.adapters.module import SplitPolicy


def make(gain=1.0):
    network = Network(Sizes())
    network.load_state_dict(th.load(Path(__file__).with_name("network.pt"), weights_only=True))
    return SplitPolicy(
        network,
        embed=lambda obs: network.encoder(th.cat([obs["point"], obs["goal"]], dim=1)),
        act=lambda context: gain * network.head(context),
        observation_shapes={"goal": (2,), "point": (2,)},
        details={"gain": gain},
    )


def number():
    return 7


def fails():
    raise KeyError("mine")
"""


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.head = nn.Sequential(nn.Linear(8, 6), nn.Unflatten(1, (3, 2)))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a network, its weights and the function; and the network."""
    monkeypatch.delitem(__import__("sys").modules, "beside", raising=False)
    (tmp_path / "beside.py").write_text(NETWORK)
    (tmp_path / "my_policy.py").write_text(SPLIT)
    th.manual_seed(0)
    network = Network()
    th.save(network.state_dict(), tmp_path / "network.pt")
    return tmp_path, network


def split(network=None, **arguments):
    network = network or Network()
    parts = {
        "embed": lambda obs: network.encoder(th.cat([obs["point"], obs["goal"]], dim=1)),
        "act": network.head,
        "observation_shapes": SHAPES,
    }
    return SplitPolicy(network, **parts | arguments)


def test_a_file_acts_as_its_network(project):
    folder, network = project
    policy = open_policy(f"{folder}/my_policy.py:make", "module")
    assert (policy.context_dim, policy.horizon, policy.chunk, policy.action_dim) == (8, 3, 3, 2)
    obs = {key: th.rand(5, 2, dtype=th.float64) for key in SHAPES}  # as many environments have them
    expected = network.head(network.encoder(th.cat([obs["point"], obs["goal"]], dim=1).float()))
    th.testing.assert_close(policy.act(policy.embed(obs)), expected.detach())
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    assert not policy.network.training


def test_options_and_fingerprint(project):
    folder, _ = project
    path = f"{folder}/my_policy.py:make"
    policy = open_policy(path, "module", chunk=2)
    assert policy.chunk == 2
    assert policy.fingerprint() == open_policy(path, "module").fingerprint()
    louder = open_policy(path, "module", gain=2.0)
    context = th.rand(4, 8)
    th.testing.assert_close(louder.act(context), 2 * policy.act(context))
    assert louder.fingerprint() != policy.fingerprint()
    th.save(Network().state_dict(), folder / "network.pt")
    assert open_policy(path, "module").fingerprint() != policy.fingerprint()
    with pytest.raises(ValueError, match="chunk of 4 actions"):
        open_policy(path, "module", chunk=4)
    with pytest.raises(ValueError, match=r"cannot be called with the options.*volume"):
        open_policy(path, "module", volume=2.0)


def test_a_module_in_the_working_folder(project, monkeypatch):
    folder, _ = project
    (folder / "a_package").mkdir()
    (folder / "a_package" / "policies.py").write_text(SPLIT.replace("Path(__file__)", "Path(__file__).parent"))
    monkeypatch.chdir(folder)
    policy = open_policy("a_package.policies:make", "module")
    assert policy.fingerprint() == open_policy("my_policy.py:make", "module").fingerprint()


def test_it_is_steered():
    env = EmbeddingSteeringWrapper(gym.make(POINT_DICT), split(chunk=2).freeze(), scale=0.1)
    observation, _ = env.reset(seed=0)
    assert observation["c"].shape == (8,)
    observation, *_ = env.step(np.ones(8, np.float32))
    assert np.isfinite(observation["c"]).all()


def test_noise_and_images():
    shapes = {"image": (8, 6, 3), "point": (2,)}
    network = nn.Linear(8 * 6 * 3 * 2 + 4, 5)
    flat = lambda obs: th.cat([obs["image"].flatten(1) / 255, obs["point"].flatten(1)], dim=1)  # noqa: E731
    policy = SplitPolicy(
        network,
        embed=lambda obs: network(flat(obs)),
        act=lambda context, noise: context[:, None, :2] + noise,
        observation_shapes=shapes,
        noise_shape=(4, 2),
        obs_steps=2,
    )
    assert (policy.noise_shape, policy.horizon, policy.context_dim) == ((4, 2), 4, 5)
    obs = {"image": th.randint(0, 256, (3, 2, 8, 6, 3), dtype=th.uint8), "point": th.rand(3, 2, 2)}
    context, noise = policy.embed(obs), th.randn(3, 4, 2)
    th.testing.assert_close(context, network(flat(obs)).detach())
    th.testing.assert_close(policy.act(context, noise), context[:, None, :2] + noise)
    assert zeros(shapes, 2, th.device("cpu"))["image"].dtype == th.uint8


def tried(monkeypatch, policy):
    """What ``load`` says of a policy that a function returns."""
    module = type("Module", (), {"make": staticmethod(lambda: policy), "__name__": "own"})
    monkeypatch.setitem(__import__("sys").modules, "own", module)
    return load("own:make")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"embed": lambda obs: obs["point"][:1]},
            r"embed must return a tensor \(B, C\); for B = 2 it returned \(1, 2\)",
        ),
        ({"embed": lambda obs: obs["point"].numpy()}, "embed must return .* returned ndarray"),
        ({"act": lambda context: context}, r"act must return a tensor \(B, T, A\); for B = 2 it returned \(2, 8\)"),
        ({"act": lambda context: context[:, None, :0]}, r"it returned \(2, 1, 0\)"),
        ({"network": nn.Tanh()}, "network Tanh of a SplitPolicy has no weights"),
    ],
)
def test_wrong_shapes_are_found_at_once(arguments, message):
    with pytest.raises(AdapterError, match=message):
        split(**arguments) if "network" not in arguments else SplitPolicy(arguments["network"], len, len, SHAPES)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda context: context[:, None, :2].detach(), "no gradient to the context"),
        (lambda context: context[:, None, :2] + th.rand(1), "differ from call to call: let it take noise"),
        (lambda context: context[:, None, :2] / 0.0, "not finite"),
    ],
)
def test_what_cannot_be_trained_on_is_found_before(monkeypatch, act, message):
    with pytest.raises(AdapterError, match=f"own:make: .*{message}"):
        tried(monkeypatch, split(act=act))


def test_sizes_that_are_not_so(monkeypatch):
    policy = split()
    policy.horizon = 4
    with pytest.raises(AdapterError, match=r"its actions are \(2, 3, 2\), not \(2, 4, 2\)"):
        tried(monkeypatch, policy)


def test_paths_that_lead_nowhere(project):
    folder, _ = project
    file = folder / "my_policy.py"
    for path, message in {
        f"{file}": "neither file.py:function nor package.module:function",
        f"{file}:": "neither file.py:function",
        f"{folder}/other.py:make": "There is no file .*other.py",
        f"{file}:male": "no function male in .*my_policy.py, only make, number, fails",
        f"{file}:Path": "returned a .*Path, not a policy: put it into a zprl_sb3.adapters.module.SplitPolicy",
        f"{file}:number": "returned a int, not a policy",
        "no_such_package.policies:make": "There is no module no_such_package",
        "json.no_such_module:make": "There is no module json.no_such_module",
    }.items():
        with pytest.raises(AdapterError, match=message):
            load(path)


def test_what_the_users_code_raises_is_left_as_it_is(project):
    folder, _ = project
    with pytest.raises(KeyError, match="mine"):
        load(f"{folder}/my_policy.py:fails")
    (folder / "my_policy.py").write_text("import no_such_dependency")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load(f"{folder}/my_policy.py:make")
