"""Policies computed by OpenVINO: the same numbers as PyTorch's, and clear errors."""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from torch import nn

from helpers import POINT, TIME_LIMIT, image_policy, random_observations, steered_points, tiny_model, tiny_policy
from zprl_sb3 import openvino
from zprl_sb3.checkpoint import save_policy
from zprl_sb3.normalizer import Normalizer
from zprl_sb3.openvino import MOST, with_openvino
from zprl_sb3.policy import FlowPolicy, missing_members
from zprl_sb3.scripts.common import run_policy
from zprl_sb3.settings import check_options, load_settings
from zprl_sb3.vision import resnet_trunk
from zprl_sb3.wrappers import LatentSteeringWrapper

POLICIES = {
    "vectors": lambda: tiny_policy(by_key=True, encoder_sizes=(8, 8)),
    "wide": lambda: tiny_policy(unet_widths=(32, 64, 128), horizon=8),
    "history": lambda: tiny_policy(obs_steps=2),
    "images": image_policy,
    "diffusion": lambda: tiny_policy(objective="diffusion", sampling_steps=5),
}


def assert_same(found: th.Tensor, expected: th.Tensor, tolerance: float = 1e-4) -> None:
    assert not found.requires_grad
    th.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", POLICIES)
def test_all_that_a_policy_computes_is_the_same(kind: str) -> None:
    policy = POLICIES[kind]()
    assert policy.bottleneck is not None
    for normalizer in (policy.obs_normalizer, policy.action_normalizer):
        fit(normalizer)
    compiled = with_openvino(policy)
    assert not missing_members(compiled)
    assert compiled.bottleneck is not None
    for count in (2, 3, 4, 1):
        obs = random_observations(policy, count)
        context, noise = policy.embed(obs), th.randn(count, *policy.noise_shape)
        mean, std = policy.bottleneck.encode(context)
        condition = policy.bottleneck.decode(mean)
        assert_same(compiled.embed(obs), context)
        for found, expected in zip(compiled.bottleneck.encode(context), (mean, std), strict=True):
            assert_same(found, expected)
        assert_same(compiled.bottleneck.decode(mean), condition)
        assert_same(compiled.act(condition, noise), policy.act(condition, noise))
    graphs: Any = compiled
    assert sizes(graphs._embed) == sizes(graphs._act) == sizes(graphs.bottleneck._encode) == [2, 1]


def sizes(graph: Any) -> list[int]:
    """Return the numbers of rows that something is compiled for."""
    return [rows for compiled in graph.compiled.values() for rows in compiled]


def test_environments_have_it_compiled_before_anyone_waits_for_a_chunk() -> None:
    policies: list[Any] = [with_openvino(tiny_policy()) for _ in range(2)]
    alone = LatentSteeringWrapper(gym.make(POINT), policies[0], 0.1)
    both = steered_points(policy=policies[1], seeded_episodes=True)
    before = [all_sizes(policy) for policy in policies]
    assert before == [[1] * 4, [2] * 4]
    alone.reset()
    both.reset()
    dones = []
    for _ in range(TIME_LIMIT):  # chunks of 2: until all episodes have ended
        dones.append(both.step(np.zeros((2, 3), np.float32))[2])
        if any(alone.step(np.zeros(3, np.float32))[2:4]):
            alone.reset()
    assert np.any(dones)
    assert [all_sizes(policy) for policy in policies] == before


def all_sizes(policy: Any) -> list[int]:
    graphs = policy._embed, policy.bottleneck._encode, policy.bottleneck._decode, policy._act
    return [rows for graph in graphs for rows in sizes(graph)]


def fit(normalizer: Normalizer) -> None:
    size = len(normalizer.center)
    if size:
        normalizer.fit(th.stack([th.linspace(-1, 0, size), th.linspace(0.5, 3, size)]))


def test_images_are_cropped_where_they_are_asked_to_be() -> None:
    policy = image_policy()
    compiled, obs, where = with_openvino(policy), random_observations(policy, 3), th.rand(3, len(policy.image_keys), 2)
    assert_same(compiled.embed(obs, where), policy.embed(obs, where))
    assert not th.allclose(policy.embed(obs, where), policy.embed(obs))


@pytest.mark.slow
def test_a_whole_resnet_compiles() -> None:
    # With GroupNorm as it is, OpenVINO ended the process.
    trunk = resnet_trunk((32, 32, 64, 64)).eval().requires_grad_(False)
    x = th.randn(1, 3, 64, 64)
    (found,) = openvino._Graph(lambda x: (trunk(x),), "float32")(x)
    assert_same(found, trunk(x), 1e-3)


def test_bfloat16_is_close() -> None:
    if "bfloat16" not in openvino.precisions():
        pytest.skip("this processor does not multiply bfloat16")
    policy = tiny_policy(unet_widths=(64, 128), horizon=8)
    context, noise = policy.embed(random_observations(policy, 2)), th.randn(2, *policy.noise_shape)
    expected = policy.act(context, noise)
    error = (with_openvino(policy, "bfloat16").act(context, noise) - expected).abs().max()
    assert 1e-4 < error < 0.05 * expected.abs().max()


def test_the_same_noise_is_drawn() -> None:
    policy = tiny_policy()
    context = policy.embed(random_observations(policy, 2))
    drawn = [each.act(context, generator=th.Generator().manual_seed(3)) for each in (with_openvino(policy), policy)]
    assert_same(*drawn)


def test_it_is_the_same_policy_to_all_others() -> None:
    policy = tiny_policy(env_id="zprl/Push-v0")
    compiled: Any = with_openvino(policy)
    assert (compiled.fingerprint(), compiled.chunk, compiled.env_id) == (policy.fingerprint(), 2, "zprl/Push-v0")
    context = compiled.embed(random_observations(policy, 1))
    for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert other.horizon == policy.horizon
        assert_same(other.bottleneck.encode(context)[0], compiled.bottleneck.encode(context)[0])
    assert compiled.eval() is compiled
    with pytest.raises(AttributeError, match="nonsense"):
        _ = compiled.nonsense


def test_a_model_learns_on_it_and_goes_on_with_pytorch() -> None:
    env = steered_points(policy=with_openvino(tiny_policy()))
    model = tiny_model(env)
    model.learn(40)
    model.set_env(steered_points(policy=tiny_policy()))
    model.learn(20, reset_num_timesteps=False)


def test_many_rows_are_pytorch_s() -> None:
    policy = tiny_policy()
    compiled: Any = with_openvino(policy)
    obs = random_observations(policy, MOST + 1)
    assert th.equal(compiled.embed(obs), policy.embed(obs))
    assert not compiled._embed.compiled
    compiled.embed({key: values[:MOST] for key, values in obs.items()})
    assert compiled._embed.compiled


def test_results_are_one_s_own() -> None:
    policy = tiny_policy()
    compiled = with_openvino(policy)
    first, second = (random_observations(policy, 1) for _ in range(2))
    context = compiled.embed(first)
    kept = context.clone()
    compiled.embed(second)
    assert th.equal(context, kept)


class Undecided(nn.Module):
    """Draws numbers of its own."""

    def forward(self, x: th.Tensor) -> tuple[th.Tensor]:
        return (x + th.rand_like(x),)


def test_what_draws_numbers_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"differ from this policy's by up to .*use it without"):
        openvino._Graph(Undecided(), "float32")(th.zeros(4, 100))


@pytest.mark.parametrize(
    "decides", [lambda x: (x / 255 if x.max() > 1 else x,), lambda x: (th.from_numpy(2 * x.numpy()),)]
)
def test_what_decides_by_values_is_refused(decides: Any) -> None:
    with pytest.raises(RuntimeError, match="use it without"):
        openvino._Graph(decides, "float32")(th.full((2, 3), 200.0))


def test_zeros_are_no_proof() -> None:
    # Environments are made with them. What decides by values is refused at the first observation then.
    graph = openvino._Graph(lambda x: (x / 255 if x.max() > 1 else x,), "float32")
    graph(th.zeros(2, 3))
    with pytest.raises(RuntimeError, match="differ from this policy's"):
        graph(th.full((2, 3), 200.0))


def test_values_without_a_meaning_are_not_compared() -> None:
    graph = openvino._Graph(lambda x: (x / x.norm(dim=1, keepdim=True),), "float32")
    graph(th.zeros(1, 4))  # a quaternion that there is not
    x = th.tensor([[3.0, 0, 0, 4]])
    for _ in range(3):
        assert_same(graph(x)[0], x / 5)


def test_numbers_in_double_precision_are_not_compiled_anew() -> None:
    policy = tiny_policy()
    compiled: Any = with_openvino(policy)
    obs = random_observations(policy, 2)
    for each in (obs, {key: values.double() for key, values in obs.items()}):
        assert_same(compiled.embed(each), policy.embed(obs))
    assert sizes(compiled._embed) == [2]


def test_what_cannot_be_compiled_is_refused() -> None:
    level = logging.root.level

    def odd(x: th.Tensor) -> tuple[th.Tensor]:
        return (th.special.airy_ai(x),)

    with pytest.raises(RuntimeError, match="OpenVINO cannot compile this policy, use it without"):
        openvino._Graph(odd, "float32")(th.zeros(2, 3))
    assert logging.root.level == level


def test_bfloat16_is_refused_where_it_would_be_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def core(capabilities: list[str]) -> Any:
        return SimpleNamespace(get_property=lambda device, name: capabilities)

    monkeypatch.setattr(openvino, "_core", lambda: core(["FP32", "INT8"]))
    with pytest.raises(ValueError, match="does not multiply bfloat16, OpenVINO would compute in float32"):
        with_openvino(tiny_policy(), "bfloat16")
    with_openvino(tiny_policy(), "float32")
    monkeypatch.setattr(openvino, "_core", lambda: core(["FP32", "BF16"]))
    with_openvino(tiny_policy(), "bfloat16")


def test_wrong_arguments_are_refused() -> None:
    policy = tiny_policy()
    with pytest.raises(ValueError, match="in float32 or bfloat16, not in 'int8'"):
        with_openvino(policy, "int8")
    policy.to("meta")
    with pytest.raises(ValueError, match="the policy is on meta: load it with device='cpu'"):
        with_openvino(policy)


def test_steps_are_set_before() -> None:
    compiled: Any = with_openvino(tiny_policy())
    assert compiled.freeze() is compiled
    with pytest.raises(ValueError, match=r"load_policy\(sampling_steps=8\)"):
        compiled.set_sampling_steps(8)


def test_without_openvino_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'zprl-sb3\[openvino\]'"):
        with_openvino(tiny_policy())


PROGRAM = """
import signal
import torch as th
from zprl_sb3 import openvino
graphs = [openvino._Graph(lambda x, k=k: (x + k,), "float32") for k in range(2)]
for graph in graphs:
    graph(th.zeros(1))
del graph
graphs.pop(0)
graphs.pop()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("arrived")
"""


def test_signals_arrive_after_policies_came_and_went() -> None:
    program = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (program.stdout, program.returncode) == ("arrived\n", 0)  # not: the process ends


def test_nothing_is_reported_to_anyone() -> None:
    with_openvino(tiny_policy())
    assert sys.modules["openvino_telemetry"] is None


def test_a_run_s_settings_ask_for_it(tmp_path: Any) -> None:
    policy = tiny_policy(by_key=True, env_id="zprl/Push-v0")
    path = save_policy(policy, tmp_path / "policy")
    compiled: Any = run_policy(path, {"chunk": 3, "openvino": "float32"}, "cpu")
    assert (compiled.chunk, isinstance(compiled.inner, FlowPolicy)) == (3, True)
    assert isinstance(run_policy(path, {"chunk": 3, "openvino": None}, "cpu"), FlowPolicy)


def test_fine_tuning_refuses_it() -> None:
    settings = load_settings("reinflow.yml", "zprl/BoxClose-v0", ["openvino=float32"], "state")
    with pytest.raises(ValueError, match="openvino=float32: for policies that stay as they are"):
        check_options(settings)
