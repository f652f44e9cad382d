import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from experts import expert_arrays
from zprl_sb3.foreign_pickles import UnsafePickleError, read_foreign_pickle
from zprl_sb3.pretrain.demonstrations import DemonstrationError, load_demonstrations
from zprl_sb3.robot_envs import adroit_id
from zprl_sb3.robot_envs.collection import check_settings, demonstrate, family_of
from zprl_sb3.robot_envs.dapg import ExpertDemonstrator, Operator, load_expert
from zprl_sb3.robot_envs.demonstrators import sample_operator
from zprl_sb3.scripts.collect import collect
from zprl_sb3.settings import load_settings

pytest.importorskip("gymnasium_robotics")

# Data of the project's workplace, which are not part of it: where they lie beside the repository, more is tested.
EXPERTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "adroit_experts"
needs_experts = pytest.mark.skipif(not EXPERTS.is_dir(), reason=f"there are no expert policies in {EXPERTS}")
TASKS = ["door", "hammer", "pen"]
PERFECT = Operator("better", noise=0, random=0)


def mean_action(arrays, observation):
    """The network as the experts' README writes it down."""
    x = (observation - arrays["in_shift"]) / (arrays["in_scale"] + 1e-8)
    h = np.tanh(arrays["w0"] @ x + arrays["b0"])
    h = np.tanh(arrays["w1"] @ h + arrays["b1"])
    return (arrays["w2"] @ h + arrays["b2"]) * arrays["out_scale"] + arrays["out_shift"]


@pytest.fixture
def archive(tmp_path):
    np.savez(tmp_path / "expert.npz", **expert_arrays())
    return tmp_path / "expert.npz"


@pytest.fixture
def mjrl(monkeypatch):
    """A module with the two classes that a public pickle is made of."""
    module = types.ModuleType("mjrl.policies.gaussian_mlp")
    for name, base in {"MLP": object, "MuNet": th.nn.Module}.items():
        setattr(module, name, type(name, (base,), {"__module__": module.__name__}))
    for name in ("mjrl", "mjrl.policies", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    return module


def pickled(module, arrays, protocol, listed=True):
    network = module.MuNet()
    layers = [th.nn.Linear(arrays[f"w{k}"].shape[1], len(arrays[f"b{k}"])) for k in range(3)]
    for k, layer in enumerate(layers):
        layer.load_state_dict({"weight": th.as_tensor(arrays[f"w{k}"]), "bias": th.as_tensor(arrays[f"b{k}"])})
        if not listed:
            network.add_module(f"fc{k}", layer)
    if listed:
        network.fc_layers = th.nn.ModuleList(layers)
    network.nonlinearity = th.tanh
    for name in ("in_shift", "in_scale", "out_shift", "out_scale"):
        setattr(network, name, th.as_tensor(arrays[name]))
    policy = module.MLP()
    policy.n, policy.m, policy.min_log_std = 39, 28, -3
    policy.model = network
    policy.log_std = th.nn.Parameter(th.as_tensor(arrays["log_std"]))
    policy.log_std_val = np.float64(arrays["log_std"])
    policy.trainable_params = [*network.parameters(), policy.log_std]
    policy.param_sizes = [np.int64(len(arrays["b0"])), {1, 2}]
    return pickle.dumps(policy, protocol)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_of_torch_modules_is_read_without_its_classes(mjrl, tmp_path, monkeypatch, protocol, listed):
    arrays = expert_arrays()
    content = pickled(mjrl, arrays, protocol, listed)
    assert protocol == 4 or b"getattr" in content
    path = tmp_path / "door-v0.pickle"
    path.write_bytes(content)
    with monkeypatch.context() as without:
        for name in ("mjrl", "mjrl.policies", "mjrl.policies.gaussian_mlp", "torch"):
            without.setitem(sys.modules, name, None)
        expert = load_expert(path)
    observation = np.random.default_rng(1).normal(0, 1, 39)
    np.testing.assert_allclose(expert.mean(observation), mean_action(arrays, observation), rtol=1e-5)
    np.testing.assert_allclose(expert.log_std, arrays["log_std"])


def test_weights_in_an_archive_are_the_same_policy(archive):
    observation = np.random.default_rng(1).normal(0, 1, 39)
    np.testing.assert_allclose(
        load_expert(archive).mean(observation), mean_action(expert_arrays(), observation), rtol=1e-5
    )


def test_storages_written_as_lists_by_old_versions_of_torch_are_read(tmp_path):
    # Torch 0.4 pickled a storage as its class, called with a list.
    content = (
        b"ctorch._utils\n_rebuild_tensor\n"
        b"(ctorch\nFloatStorage\n((lF0.0\naF1.0\naF2.0\naF3.0\naF4.0\natRI0\n(I2\nI2\nt(I2\nI1\nttR."
    )
    path = tmp_path / "tensor.pickle"
    path.write_bytes(content)
    np.testing.assert_array_equal(read_foreign_pickle(path), [[0, 1], [2, 3]])


class Evil:
    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments, state)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_malicious_pickle_is_refused(tmp_path, protocol):
    trace = tmp_path / "trace"
    path = tmp_path / "door-v0.pickle"
    for evil in (Evil(os.system, f"touch {trace}"), Evil(eval, f"open({str(trace)!r}, 'w')"), Evil(open, trace, "w")):
        path.write_bytes(pickle.dumps({"model": evil}, protocol))
        with pytest.raises(UnsafePickleError, match=r"door-v0\.pickle is refused: it asks for"):
            load_expert(path)
        assert not trace.exists()


def forged(dtype, state):
    """A type whose state is not what NumPy would have written."""
    return Evil(np.dtype, dtype, False, True, state=(3, *state))


def array_of(dtype, shape=(4,), content=b"A" * 32):
    return Evil(np.zeros(1).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, shape, dtype, False, content))


NO_FIELDS = ("|", None, None, None, -1, -1, 0)


# Each of them makes NumPy's own functions follow a pointer that the pickle has written.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "evil",
    [
        lambda: array_of(forged("O", NO_FIELDS)),
        lambda: array_of(np.dtype("O"), content=[1, 2, 3, 4]),
        lambda: array_of(forged("V8", ("|", None, ("a",), {"a": (np.dtype("O"), 4096)}, 8, 1, 0))),
        lambda: array_of(forged("8", ("f", None, None, None, -1, -1, 63))),
        lambda: Evil(np.float64(0).__reduce__()[0], forged("O", NO_FIELDS), b"A" * 8),
    ],
)
def test_arrays_of_anything_but_numbers_are_refused(tmp_path, evil):
    path = tmp_path / "door-v0.pickle"
    path.write_bytes(pickle.dumps(evil(), 2))
    with pytest.raises(UnsafePickleError, match=r"door-v0\.pickle is refused: it holds an array of"):
        read_foreign_pickle(path)


def test_arrays_cannot_be_made_of_memory_nor_change_what_they_are_read_with(tmp_path):
    path = tmp_path / "array.pickle"
    path.write_bytes(pickle.dumps(Evil(np.ndarray, (4,), np.dtype("O"), b"A" * 32), 2))
    assert type(read_foreign_pickle(path)).origin == "numpy.ndarray"
    # Pretended flags are not taken over: to NumPy these values would be objects.
    path.write_bytes(pickle.dumps(array_of(forged("f8", ("<", None, None, None, -1, -1, 63))), 2))
    np.testing.assert_array_equal(np.asarray(read_foreign_pickle(path)), np.frombuffer(b"A" * 32))
    for shape in ((5,), (-1,), (-2, -2), (2**40, 2**40)):
        path.write_bytes(pickle.dumps(array_of(np.dtype("f8"), shape), 2))
        with pytest.raises(ValueError, match=r"array\.pickle cannot be read"):
            read_foreign_pickle(path)
    path.write_bytes(b"c_codecs\nencode\n(N}S'__defaults__'\n(S'utf8'\ntstb.")
    read_foreign_pickle(path)
    path.write_bytes(b"c_codecs\nencode\n(S'a'\ntR.")
    assert read_foreign_pickle(path) == b"a"


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_arrays_of_numbers_are_read_as_they_were(tmp_path, protocol):
    values = np.arange(6.0).reshape(2, 3)
    arrays = [values, np.asfortranarray(values), values.astype(">f4"), values.astype("u1"), values > 2, np.array(7)]
    path = tmp_path / "arrays.pickle"
    path.write_bytes(pickle.dumps([*arrays, np.float32(0.5)], protocol))
    for array, expected in zip(read_foreign_pickle(path), [*arrays, np.float32(0.5)], strict=True):
        np.testing.assert_array_equal(np.asarray(array), expected)
        assert np.asarray(array).dtype == expected.dtype


def test_what_a_policy_may_mention_is_not_called(tmp_path):
    path = tmp_path / "door-v0.pickle"
    # getattr(torch.hub, "load")("somebody/code"), as far as the pickle is concerned.
    path.write_bytes(b"cbuiltins\ngetattr\n(ctorch\nhub\nS'load'\ntRp0\n.")
    assert type(read_foreign_pickle(path)).origin == "builtins.getattr"
    path.write_bytes(b"ctorch.hub\nload\n(S'somebody/code'\ntR.")
    stub = read_foreign_pickle(path)
    assert (type(stub).origin, stub.arguments) == ("torch.hub.load", ("somebody/code",))


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path):
    path = tmp_path / "tensor.pickle"
    for size, stride in ((b"I9\n", b"I1\n"), (b"I2\n", b"I900\n"), (b"I-2\n", b"I1\n")):
        tensor = b"(ctorch\nFloatStorage\n((lF0.0\naF1.0\natRI0\n(" + size + b"t(" + stride + b"ttR."
        path.write_bytes(b"ctorch._utils\n_rebuild_tensor\n" + tensor)
        with pytest.raises(ValueError, match=r"tensor\.pickle cannot be read"):
            read_foreign_pickle(path)


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"\x80\x04", pickle.dumps([1, 2]), pickle.dumps({})])
def test_other_files_are_named(tmp_path, content):
    path = tmp_path / "hammer-v0.pickle"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"hammer-v0\.pickle"):
        load_expert(path)


def test_an_archive_of_objects_or_of_other_sizes_is_named(tmp_path):
    path = tmp_path / "expert.npz"
    for change in ({"w0": np.array([None])}, {"w1": np.zeros((32, 31))}):
        np.savez(path, **{**expert_arrays(), **change})
        with pytest.raises(ValueError, match=r"expert\.npz holds no expert policy of DAPG"):
            load_expert(path)


def test_an_archive_that_lacks_something_is_named(tmp_path):
    np.savez(tmp_path / "expert.npz", **{name: values for name, values in expert_arrays().items() if name != "log_std"})
    with pytest.raises(ValueError, match=r"expert\.npz holds no expert policy of DAPG.*log_std"):
        load_expert(tmp_path / "expert.npz")


@pytest.mark.parametrize("expert", [None, "nowhere/door-v0.pickle"])
def test_a_missing_expert_says_where_to_get_it(expert):
    settings = load_settings("collect.yml", "zprl/AdroitDoor-v0", [] if expert is None else [f"expert={expert}"])
    assert settings["expert"] == expert
    with pytest.raises(FileNotFoundError, match=r"dapg/policies of the DAPG authors' repository aravindr93/hand_dapg"):
        check_settings("zprl/AdroitDoor-v0", settings)


def test_an_expert_of_another_task_is_named(archive):
    settings = load_settings("collect.yml", "zprl/AdroitPen-v0", [f"expert={archive}"])
    with pytest.raises(ValueError, match=r"39 inputs and 28 actions; pen has 45 and 24"):
        check_settings("zprl/AdroitPen-v0", settings)


@pytest.mark.parametrize("task", [*TASKS, "relocate"])
def test_the_settings_describe_operators(task):
    settings = load_settings("collect.yml", adroit_id(task))
    for quality, entry in settings["operators"].items():
        operator = sample_operator({quality: {**entry, "share": 1}}, np.random.default_rng(0), Operator)
        assert isinstance(operator, Operator)
    assert settings["max_episode_steps"] == gym.spec(adroit_id(task)).max_episode_steps


def test_other_environments_have_no_expert(archive):
    with pytest.raises(ValueError, match="Adroit hand's tasks only"):
        ExpertDemonstrator(gym.make("CartPole-v1"), PERFECT, np.random.default_rng(0), archive)


def test_a_perfect_operator_acts_as_the_expert_and_others_with_faults(archive):
    env = gym.make("zprl/AdroitDoor-v0")
    env.reset(seed=0)
    raw = env.unwrapped.raw_observation
    expected = np.clip(mean_action(expert_arrays(), raw), -1, 1)

    def act(noise, random, seed=0):
        demonstrator = ExpertDemonstrator(env, Operator("okay", noise, random), np.random.default_rng(seed), archive)
        return np.stack([demonstrator.act() for _ in range(500)])

    perfect = act(0, 0)
    assert perfect.dtype == np.float32
    np.testing.assert_allclose(perfect, np.tile(expected, (500, 1)), atol=1e-5)
    inner = np.abs(expected) < 0.3
    np.testing.assert_allclose(
        act(0.5, 0).std(axis=0)[inner], 0.5 * np.exp(expert_arrays()["log_std"])[inner], rtol=0.2
    )
    np.testing.assert_allclose(act(0, 1).std(), 1 / np.sqrt(3), rtol=0.05)
    assert (act(0, 0.5) == perfect).all(axis=1).mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(act(1, 0.3, seed=4), act(1, 0.3, seed=4))
    assert np.abs(act(9, 0)).max() == 1


@pytest.mark.parametrize("task", TASKS)
@needs_experts
def test_the_experts_succeed(task):
    settings = load_settings("collect.yml", adroit_id(task), [f"expert={EXPERTS / task}.npz"])
    family = family_of(adroit_id(task)).configured(settings)
    env = gym.make(adroit_id(task), max_episode_steps=settings["max_episode_steps"])
    operators = {"better": {"share": 1, "noise": 0, "random": 0}}
    episodes = [demonstrate(env, operators, np.random.default_rng(k), family) for k in range(8)]
    assert sum(episode.success for episode in episodes) >= {"door": 8, "hammer": 8, "pen": 5}[task]
    assert {len(episode.actions) for episode in episodes} == {settings["max_episode_steps"]}


@needs_experts
def test_episodes_with_images_are_collected(tmp_path):
    changes = [f"expert={EXPERTS / 'hammer'}.npz", "observation=image", "max_episode_steps=40"]
    settings = load_settings("collect.yml", "zprl/AdroitHammer-v0", changes)
    path = collect("zprl/AdroitHammer-v0", 2, 0, tmp_path / "demos.hdf5", settings=settings)
    demonstrations = load_demonstrations(path)
    env = gym.make(demonstrations.env_id, **demonstrations.env_kwargs)
    assert set(demonstrations.observations) == set(env.observation_space) == {"proprio", "top_image"}
    assert [len(actions) for actions in demonstrations.actions] == [40, 40]


@needs_experts
def test_an_expert_is_what_its_file_holds_wherever_that_lies(tmp_path, capsys):
    output, copy = tmp_path / "demos.hdf5", tmp_path / "copy.npz"
    shutil.copy(EXPERTS / "hammer.npz", copy)

    def again(expert):
        settings = load_settings("collect.yml", "zprl/AdroitHammer-v0", [f"expert={expert}", "max_episode_steps=4"])
        return collect("zprl/AdroitHammer-v0", 1, 0, output, settings=settings)

    again(EXPERTS / "hammer.npz")
    again(copy)
    assert "is complete already" in capsys.readouterr().out
    arrays = dict(np.load(copy))
    arrays["log_std"] = arrays["log_std"] + 1
    np.savez(copy, **arrays)
    with pytest.raises(DemonstrationError, match="exists and differs in settings"):
        again(copy)
