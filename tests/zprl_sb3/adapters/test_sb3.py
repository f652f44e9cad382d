"""Real models of Stable-Baselines3 and sb3-contrib, saved, read without their pickles, and asked the same questions."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TQC, TRPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from zprl_sb3.adapters import AdapterError, open_policy
from zprl_sb3.adapters.sb3 import load

LOW, HIGH = np.array([-0.7, -1.25, 0.1], np.float32), np.array([0.4, 1 / 3, 2.8973], np.float32)
BOX = spaces.Box(-np.inf, np.inf, (4,), np.float32)
# Gymnasium sorts a dictionary's keys; SB3's extractor goes by that order.
DICT = spaces.Dict({"object": spaces.Box(-5, 5, (3,), np.float32), "hand": spaces.Box(LOW, HIGH), "grip": BOX})
IMAGE = spaces.Box(0, 255, (40, 36, 3), np.uint8)
SMALL = {"net_arch": [16, 12]}
ROWS = 32


class Task(gym.Env):
    """Only has spaces."""

    def __init__(self, observations, actions=None):
        self.observation_space = observations
        self.action_space = actions or spaces.Box(LOW, HIGH)

    def reset(self, *, seed=None, options=None):
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


def made(algorithm, observations=BOX, kwargs=SMALL, **settings):
    """A model whose weights are large enough for actions all over their range, and beyond it."""
    images = observations is IMAGE
    policy = "MultiInputPolicy" if isinstance(observations, spaces.Dict) else "CnnPolicy" if images else "MlpPolicy"
    model = algorithm(policy, Task(observations), policy_kwargs={**kwargs}, seed=3, device="cpu", **settings)
    generator = th.Generator().manual_seed(5)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter += 0.3 * th.randn(parameter.shape, generator=generator)
    return model


def observed(space, rows=ROWS):
    space.seed(7)
    samples = [space.sample() for _ in range(rows)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([sample[key] for sample in samples]) for key in space}
    return np.stack(samples)


def tensors(obs):
    by_key = obs if isinstance(obs, dict) else {"state": obs}
    return {key: th.as_tensor(values) for key, values in by_key.items()}


def acted(policy, obs):
    assert policy.noise_shape == (0,)
    chunk = policy.act(policy.embed(tensors(obs)))
    assert chunk.shape == (ROWS, 1, policy.action_dim)
    return chunk[:, 0].numpy()


def check_same(model, path, **options):
    space = model.observation_space
    if getattr(space, "shape", None) == (3, 40, 36):
        space = IMAGE
    obs = observed(space)
    expected, _ = model.predict(obs, deterministic=True)
    np.testing.assert_allclose(acted(open_policy(path, "sb3", **options), obs), expected, atol=1e-5)
    assert expected.std(axis=0).min() > 0.02
    return expected


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.zip"


@pytest.mark.parametrize("algorithm", [PPO, A2C, TRPO, SAC, TQC, TD3, DDPG])
@pytest.mark.parametrize("space", [BOX, DICT], ids=["box", "dict"])
def test_acts_as_predict_does(algorithm, space, path):
    model = made(algorithm, space)
    model.save(path)
    expected = check_same(model, path)
    if algorithm is PPO:  # which is clipped
        assert (np.isclose(expected, LOW) | np.isclose(expected, HIGH)).mean() > 0.1


@pytest.mark.parametrize(
    ("algorithm", "kwargs", "settings"),
    [
        (PPO, {"net_arch": {"pi": [9], "vf": [5, 5]}, "activation_fn": th.nn.ELU}, {}),
        (PPO, {**SMALL, "share_features_extractor": False}, {}),
        (PPO, {**SMALL, "squash_output": True}, {"use_sde": True}),
        (PPO, {"net_arch": []}, {}),
        (SAC, {"net_arch": {"pi": [9, 8, 7], "qf": [5]}, "activation_fn": th.nn.SiLU}, {}),
        (SAC, {**SMALL, "clip_mean": 0.4}, {"use_sde": True}),
        (SAC, {**SMALL, "clip_mean": 0.0}, {"use_sde": True}),
        (TQC, SMALL, {"use_sde": True}),
        (SAC, {"net_arch": []}, {}),
        (TD3, {"net_arch": [], "activation_fn": th.nn.Tanh}, {}),
    ],
)
def test_architectures(algorithm, kwargs, settings, path):
    model = made(algorithm, kwargs=kwargs, **settings)
    model.save(path)
    check_same(model, path)


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_images(algorithm, path):
    settings = {"buffer_size": 10} if algorithm is SAC else {}
    small = SMALL | {"features_extractor_kwargs": {"features_dim": 6}}
    model = algorithm("CnnPolicy", Task(IMAGE), policy_kwargs={**small}, device="cpu", **settings)
    model.save(path)
    obs = observed(IMAGE)
    policy = open_policy(path, "sb3", keys={"state": ["front_image"]})
    assert (policy.observation_shapes, policy.context_dim) == ({"front_image": (40, 36, 3)}, 6)
    with pytest.raises(AdapterError, match=r"not made of front_image \(36, 40, 3\)"):
        load(path, keys={"state": ["front_image"]}, shapes={"front_image": [36, 40, 3]})
    chunk = policy.act(policy.embed({"front_image": th.as_tensor(obs)}))
    np.testing.assert_allclose(chunk[:, 0], model.predict(obs, deterministic=True)[0], atol=1e-5)


def test_images_beside_vectors(path):
    space = spaces.Dict({"b_image": IMAGE, "a": BOX, "c": BOX})
    small = SMALL | {"features_extractor_kwargs": {"cnn_output_dim": 6}}
    model = PPO("MultiInputPolicy", Task(space), policy_kwargs={**small}, device="cpu")
    model.save(path)
    obs = observed(space)
    np.testing.assert_allclose(
        acted(open_policy(path, "sb3"), obs), model.predict(obs, deterministic=True)[0], atol=1e-5
    )


@pytest.mark.parametrize("space", [BOX, DICT], ids=["box", "dict"])
@pytest.mark.parametrize("protocol", [4, 5])
def test_vec_normalize(space, protocol, path, tmp_path):
    # One key is left alone; large means, small deviations and clipping.
    some = {"norm_obs_keys": ["object", "grip"]} if space is DICT else {}
    env = VecNormalize(DummyVecEnv([lambda: Task(space)]), clip_obs=1.5, epsilon=1e-3, **some)
    env.seed(0)
    env.reset()
    moments = env.obs_rms if space is DICT else {"state": env.obs_rms}
    for k, each in enumerate(moments.values()):
        each.mean, each.var = each.mean + 100.0 * k, np.full_like(each.var, 10.0**-k)
    policy = "MultiInputPolicy" if space is DICT else "MlpPolicy"
    model = SAC(policy, env, policy_kwargs={**SMALL}, seed=3, device="cpu")
    model.save(path)
    (tmp_path / "vecnormalize.pkl").write_bytes(pickle.dumps(env, protocol))
    obs = observed(space)
    if space is DICT:
        obs["grip"] += 100.0
    expected, _ = model.predict(env.normalize_obs(obs), deterministic=True)
    normalized = open_policy(path, "sb3", normalize=str(tmp_path / "vecnormalize.pkl"))
    np.testing.assert_allclose(acted(normalized, obs), expected, atol=1e-5)
    limit = 1.5 if space is BOX else np.abs(obs["hand"]).max()
    assert normalized.embed(tensors(obs)).abs().max() == pytest.approx(limit)
    assert np.abs(acted(open_policy(path, "sb3"), obs) - expected).max() > 0.01
    assert normalized.fingerprint() != open_policy(path, "sb3").fingerprint()


def test_an_input_made_of_several_keys(path):
    model = made(TD3)
    model.save(path)
    keys, shapes = {"state": ["proprio", "object"]}, {"proprio": [3], "object": [1]}
    policy = open_policy(path, "sb3", keys=keys, shapes=shapes)
    assert policy.observation_shapes == {"proprio": (3,), "object": (1,)}
    obs = observed(BOX)
    parts = {"proprio": th.as_tensor(obs[:, :3]), "object": th.as_tensor(obs[:, 3:])}
    np.testing.assert_allclose(
        policy.act(policy.embed(parts))[:, 0], model.predict(obs, deterministic=True)[0], atol=1e-5
    )
    with pytest.raises(AdapterError, match=r"the option shapes must tell those of \['proprio', 'object'\]"):
        load(path, keys=keys)
    with pytest.raises(
        AdapterError, match=r"input 'state' is of shape \(4,\), not made of proprio \(3,\) \+ object \(2"
    ):
        load(path, keys=keys, shapes={"proprio": [3], "object": [2]})
    with pytest.raises(AdapterError, match=r"keys gives each input a list, \[proprio\] and not proprio"):
        load(path, keys={"state": "proprio"})
    with pytest.raises(AdapterError, match=r"keys names \['stat'\], there is only \['state'\]"):
        load(path, keys={"stat": ["proprio"]})


def test_the_context_is_what_the_actor_sees_and_gets_gradients(path):
    made(SAC).save(path)
    policy = open_policy(path, "sb3")
    obs = observed(BOX)
    context = policy.embed(tensors(obs))
    np.testing.assert_array_equal(context, obs)
    context.requires_grad_(True)
    policy.generate(context, th.zeros(ROWS, 0)).sum().backward()
    assert (context.grad.abs().sum(dim=1) > 0).all()
    assert not any(parameter.requires_grad for parameter in policy.parameters())


def test_limits_and_activation_can_be_said(path):
    model = made(SAC)
    model.save(path)
    obs = observed(BOX)
    raw = model.policy.scale_action(model.predict(obs, deterministic=True)[0])
    policy = open_policy(path, "sb3", action_low=-2, action_high=[2, 2, 4])
    np.testing.assert_allclose(acted(policy, obs), raw * [2, 2, 3] + [0, 0, 1], atol=1e-5)
    original = open_policy(path, "sb3")
    assert np.abs(acted(open_policy(path, "sb3", activation="Tanh"), obs) - acted(original, obs)).max() > 0.01
    prints = {each.fingerprint() for each in (policy, original, open_policy(path, "sb3", activation="Tanh"))}
    assert len(prints) == 3
    assert original.fingerprint() == open_policy(path, "sb3").fingerprint()
    rewritten(path, {}, lambda weights: {**weights, "actor.mu.bias": weights["actor.mu.bias"] + 1})
    assert original.fingerprint() != open_policy(path, "sb3").fingerprint()
    with pytest.raises(AdapterError, match="'Swish' is none of CELU"):
        load(path, activation="Swish")
    with pytest.raises(AdapterError, match="2 limits of its 3 actions"):
        load(path, action_low=[0, 1])
    with pytest.raises(ValueError, match="chunk of 4 actions"):
        load(path, chunk=4)
    with pytest.raises(ValueError, match="no such option"):
        open_policy(path, "sb3", sampling_steps=4)


def rewritten(path: Path, changes, weights=None):
    """Change what a file says in plain text, and its weights."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(members["data"])
    for key, change in changes.items():
        data[key].update(change)
    members["data"] = json.dumps(data).encode()
    if weights is not None:
        buffer = io.BytesIO()
        th.save(weights(th.load(io.BytesIO(members["policy.pth"]), weights_only=True)), buffer)
        members["policy.pth"] = buffer.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_pickles_in_the_file_are_not_run(path, tmp_path):
    model = made(PPO)
    model.save(path)
    trace = tmp_path / "executed"
    bomb = {":serialized:": base64.b64encode(pickle.dumps(Evil(trace))).decode()}
    names = ["policy_class", "observation_space", "action_space", "policy_kwargs", "lr_schedule", "clip_range"]
    rewritten(path, dict.fromkeys(names, bomb))
    check_same(model, path)
    assert not trace.exists()


def test_a_bomb_in_the_weights_is_refused(path, tmp_path):
    made(PPO).save(path)
    trace = tmp_path / "executed"
    rewritten(path, {}, lambda weights: {**weights, "log_std": Evil(trace)})
    with pytest.raises(AdapterError, match=r"model.zip is damaged, or no model"):
        load(path)
    assert not trace.exists()


def test_compressed_files_are_refused(path):
    made(PPO).save(path)
    packed = path.with_name("packed.zip")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
    with pytest.raises(AdapterError, match=r"packed.zip is damaged.* data is compressed, which neither"):
        load(packed)


def test_a_bomb_in_the_statistics_is_refused(path, tmp_path):
    made(PPO).save(path)
    trace, statistics = tmp_path / "executed", tmp_path / "vecnormalize.pkl"
    statistics.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(AdapterError, match=r"vecnormalize.pkl is refused: it asks for pathlib"):
        load(path, normalize=str(statistics))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there are no statistics"),
        (pickle.dumps({"mean": 0}), "holds no VecNormalize"),
        (pickle.dumps([1, 2])[:-4], "cannot be read as a pickle"),
        ("other", r"has statistics of \['grip', 'hand', 'object'\], the policy the inputs \['state'\]"),
        ("larger", "statistics are of 5 values, the policy's input has 4"),
    ],
)
def test_statistics_that_do_not_serve(content, message, path, tmp_path):
    made(PPO).save(path)
    file = tmp_path / "vecnormalize.pkl"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        space = DICT if content == "other" else spaces.Box(-1, 1, (5,))
        VecNormalize(DummyVecEnv([lambda: Task(space)])).save(file)
    with pytest.raises(AdapterError, match=message):
        load(path, normalize=str(file))


@pytest.mark.parametrize(
    ("changes", "weights", "message"),
    [
        ({"policy_class": {"__module__": "mine.policies"}}, None, "class of mine.policies, not of Stable-Baselines3"),
        (
            {"policy_kwargs": {"features_extractor_class": "<class 'm.Net'>"}},
            None,
            "features extractor is <class 'm.Net'>",
        ),
        ({"policy_kwargs": {"activation_fn": "<class 'm.Snake'>"}}, None, "activation is <class 'm.Snake'>. Say"),
        ({"action_space": {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>"}}, None, "not continuous"),
        ({"action_space": {"low": "[-1. ... -1.]"}}, None, "does not tell the limits of its actions.*Say action_low"),
        ({"action_space": {"high": "[inf 1. 1.]"}}, None, "limits that are not finite"),
        ({"action_space": {"_shape": [3, 2]}}, None, "not flat"),
        ({"action_space": {"_shape": [2], "low": "[0. 0.]", "high": "[1. 1.]"}}, None, "2 dimensions, its network 3"),
        ({"observation_space": {":type:": "<class 'gymnasium.spaces.discrete.Discrete'>"}}, None, "neither a box nor"),
        (
            {"observation_space": {"_shape": [5]}},
            None,
            r"actor.latent_pi.0 is \(16, 4\), not the linear layer \(16, 5\)",
        ),
        ({"observation_space": {"_shape": None}}, None, "lacks or mistakes an entry"),
        ({"observation_space": {"_shape": [1 << 50]}}, None, "may have at most 20000"),
        (
            {},
            lambda weights: {**weights, "actor.lstm.weight": th.zeros(2)},
            "linear layers only, this one also actor.lstm",
        ),
        ({}, lambda weights: {**weights, "actor.latent_pi.1.weight": th.zeros(16)}, r"it has weights at \[0, 1, 2\]"),
        ({}, lambda weights: {**weights, "actor.mu.bias": th.zeros(2)}, "2"),
        ({}, lambda weights: {k: v for k, v in weights.items() if k != "actor.mu.bias"}, "lacks .*actor.mu.bias"),
        ({}, lambda weights: {}, "it is no policy of PPO"),
        ({}, lambda weights: [1, 2], "data or policy.pth holds something else"),
    ],
)
def test_other_models_are_refused(changes, weights, message, path):
    made(SAC).save(path)
    rewritten(path, changes, weights)
    with pytest.raises(AdapterError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_dictionaries_of_other_spaces_are_refused(path):
    made(SAC, DICT).save(path)
    boxes = {"grip": "-inf, inf, (4,)", "hand": "[-1.\n 0.], [1. 1.], (3,)", "object": "-1, 1, (3,)"}
    older = f"OrderedDict([{', '.join(f'({key!r}, Box({box}, float32))' for key, box in boxes.items())}])"
    rewritten(path, {"observation_space": {"spaces": older}})
    assert load(path).observation_shapes == {"grip": (4,), "hand": (3,), "object": (3,)}
    rewritten(path, {"observation_space": {"spaces": "{'a': Discrete(3), 'b': Box(-1, 1, (3,), float32)}"}})
    with pytest.raises(AdapterError, match="no dictionary of boxes, there is also 'a':Discrete3"):
        load(path)


def test_other_algorithms_and_damaged_files(path, tmp_path):
    with pytest.raises(AdapterError, match="There is no"):
        load(path)
    DQN("MlpPolicy", Task(BOX, spaces.Discrete(3)), policy_kwargs={**SMALL}, buffer_size=10, device="cpu").save(path)
    with pytest.raises(AdapterError, match=r"no policy of PPO.*its weights are q_net"):
        load(path)
    PPO("MlpPolicy", Task(BOX, spaces.Discrete(3)), policy_kwargs={**SMALL}, device="cpu").save(path)
    with pytest.raises(AdapterError, match="not continuous"):
        load(path)
    made(PPO).save(path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"no zip", b""):
        path.write_bytes(damaged)
        with pytest.raises(AdapterError, match=r"model.zip is damaged, or no model of Stable-Baselines3"):
            load(path)
