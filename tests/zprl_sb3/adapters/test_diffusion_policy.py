import importlib.util
import json
import os
import pickle
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from omegaconf import OmegaConf

from helpers import POINT, point_demonstrations
from zprl_sb3.adapters import AdapterError, open_policy
from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
from zprl_sb3.foreign_pickles import UnsafePickleError
from zprl_sb3.pretrain.attaching import attach_bottleneck
from zprl_sb3.pretrain.demonstrations import load_demonstrations
from zprl_sb3.pretrain.loop import TrainingConfig
from zprl_sb3.wrappers import LatentSteeringWrapper

FIXTURES = Path(__file__).parent / "fixtures"
FILE = FIXTURES / "diffusion_policy" / "lowdim.ckpt"
CASES = ("lowdim", "lowdim_other", "lowdim_only", "image", "image_shared", "hybrid", "zprl")
TRAINING = {"steps": 40, "batch_size": 32, "learning_rate": 3e-3, "warmup_steps": 4, "betas": (0.95, 0.999)}
TRAINING |= {"weight_decay": 1e-6, "ema_power": 0.8, "ema_max": 0.9999, "beta": 1e-4, "reconstruction": 0.01}
TRAINING |= {"validate_every": 40, "save_every": 40, "seed": 0}


def _maker():
    spec = importlib.util.spec_from_file_location("make_diffusion_policy", FIXTURES / "make_diffusion_policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = _maker()


class Case:
    def __init__(self, name):
        self.arrays = np.load(FIXTURES / "diffusion_policy" / f"{name}.npz")
        about = json.loads(str(self.arrays["about"]))
        self.settings, self.shapes = about["policy"], about["shapes"]

    def __getitem__(self, name):
        return th.from_numpy(self.arrays[name])

    def tensors(self):
        kept = {name.removeprefix("kept/"): self[name] for name in self.arrays.files if name.startswith("kept/")}
        return kept | {name: maker.seeded(name, shape) for name, shape in self.shapes.items()}

    def write(self, path, tensors=None, **settings):
        states = {"model": self.tensors() if tensors is None else tensors}
        th.save({"cfg": OmegaConf.create({"policy": self.settings | settings}), "state_dicts": states}, path)
        return path

    def observation(self):
        """As an environment gives it: (B, n, ...), without n where that is 1; images of uint8."""
        obs = {}
        for name in self.arrays.files:
            if name.startswith("obs/"):
                key, values = name.removeprefix("obs/"), self.arrays[name]
                values = maker.enlarged(values, maker.SIZE) if values.dtype == np.uint8 else values
                obs["state" if key == "obs" else key] = th.from_numpy(values if values.shape[1] > 1 else values[:, 0])
        return obs

    def noise(self, policy):
        noise = self["noise"].transpose(0, 1)
        return noise if noise.shape[1:] == policy.noise_shape else noise[:, 0]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("checkpoints"), {}

    def write(name):
        if name not in found:
            found[name] = FILE if name == "lowdim" else Case(name).write(folder / f"{name}.ckpt")
        return found[name]

    return write


@pytest.mark.parametrize("name", CASES)
def test_it_embeds_and_acts_as_the_original(written, name):
    case, policy = Case(name), open_policy(written(name), "diffusion_policy")
    obs, noise = case.observation(), case.noise(policy)
    assert noise.shape[1:] == policy.noise_shape
    frames = 1 if policy.obs_steps == 1 else 2
    assert policy.observation_shapes == {key: tuple(values.shape[frames:]) for key, values in obs.items()}
    context = policy.embed(obs)
    np.testing.assert_allclose(context, case["condition"], atol=1e-5)
    actions = policy.act(context, noise)
    start = len(case["predicted"][0]) - policy.horizon
    np.testing.assert_allclose(actions, case["predicted"][:, start:], atol=1e-5)
    np.testing.assert_allclose(actions[:, : policy.chunk], case["executed"], atol=1e-5)
    assert policy.target_steps == range(-start, policy.horizon)


def test_the_bottleneck_of_its_authors_comes_with_a_policy(written):
    case, policy = Case("zprl"), open_policy(written("zprl"), "diffusion_policy")
    mean, _ = policy.bottleneck.encode(policy.embed(case.observation()))
    decoded = policy.bottleneck.decode(mean)
    np.testing.assert_allclose(decoded, case["decoded"], atol=1e-5)
    np.testing.assert_allclose(policy.act(decoded, case.noise(policy)), case["through"], atol=1e-5)


def test_a_flow_has_steps_but_no_other_sampler(written):
    assert open_policy(written("zprl"), "diffusion_policy", sampling_steps=5).generator.sampling_steps == 5
    with pytest.raises(AdapterError, match="it is a flow, which has no sampler 'ddim'"):
        open_policy(written("zprl"), "diffusion_policy", sampler="ddim")


def test_it_takes_the_averaged_weights_unless_told_otherwise():
    case = Case("lowdim")
    own, ema, model = (open_policy(FILE, "diffusion_policy", weights=name) for name in (None, "ema", "model"))
    assert own.fingerprint() == ema.fingerprint() != model.fingerprint()
    names = dict(model.unet.named_parameters())
    for name, values in ema.unet.named_parameters():
        assert th.allclose(names[name], values + 0.1)
    condition, noise = case["condition"], case.noise(ema)
    assert (model.act(condition, noise) - ema.act(condition, noise)).abs().max() > 1e-3


def test_gradients_of_actions_and_of_the_loss_reach_the_context():
    case, policy = Case("lowdim"), open_policy(FILE, "diffusion_policy", sampler="ddim", sampling_steps=3)
    noise = case["noise"][0]
    assert policy.noise_shape == noise.shape[1:]
    context = case["condition"].clone().requires_grad_()
    policy.generate(context, noise).sum().backward()
    assert (context.grad != 0).all()
    actions = th.randn(2, len(policy.target_steps), 2, generator=th.Generator().manual_seed(0))
    condition = case["condition"].clone().requires_grad_()
    loss = policy.imitation_loss(condition, case["condition"], actions, noise, th.tensor([0.5, 1.0]))
    loss.backward()
    assert (condition.grad != 0).all()
    assert not any(parameter.requires_grad for parameter in policy.parameters())


def test_the_loss_is_that_of_denoising():
    case, policy = Case("lowdim"), open_policy(FILE, "diffusion_policy")
    times, epsilon = th.tensor([0.25, 0.85]), case["noise"][0]
    actions = th.randn(2, 8, 2, generator=th.Generator().manual_seed(0))
    found = policy.imitation_loss(case["condition"], case["condition"], actions, case.noise(policy), times)
    # Ho et al., algorithm 1, with the definition of the cosine schedule written out.
    normalized = actions * case["kept/normalizer.params_dict.action.scale"]
    normalized = normalized + case["kept/normalizer.params_dict.action.offset"]
    t = th.tensor([4, 16])
    bars = th.cos(((t + 1) / 20 + 0.008) / 1.008 * th.pi / 2) ** 2 / th.cos(th.tensor(0.008 / 1.008 * th.pi / 2)) ** 2
    noisy = bars.sqrt()[:, None, None] * normalized + (1 - bars).sqrt()[:, None, None] * epsilon
    expected = ((policy.unet(noisy, t, case["condition"]) - epsilon) ** 2).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_a_flow_is_attached_by_the_loss_of_flow_matching(written):
    case, policy = Case("zprl"), open_policy(written("zprl"), "diffusion_policy")
    times, noise, condition = th.tensor([0.01, 0.5]), case.noise(policy), case["condition"]
    actions = th.randn(2, 8, 2, generator=th.Generator().manual_seed(0))
    found = policy.imitation_loss(condition, condition, actions, noise, times)
    clean = policy.action_normalizer(actions)
    k = times[:, None, None]
    velocity = policy.unet((1 - k) * clean + k * noise, th.tensor([1.0, 50.0]), condition)
    assert float(found) == pytest.approx(float(((velocity - (noise - clean)) ** 2).mean()), rel=1e-5)


def test_a_bottleneck_that_copies_c_leaves_the_actions_alone(written):
    case, policy = Case("lowdim"), open_policy(FILE, "diffusion_policy", sampler="ddim")
    expected = policy.act(policy.embed(case.observation()), case["noise"][0])
    policy.fit_context(policy.embed(case.observation()))
    policy.bottleneck = Bottleneck(policy.context_dim, BottleneckConfig(4))
    context = policy.embed(case.observation())
    assert float(context.abs().max()) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(policy.act(context, case["noise"][0]), expected, atol=1e-5)


def test_the_fingerprint_changes_with_weights_and_settings(tmp_path):
    case = Case("lowdim_other")
    tensors = case.tensors()
    changed = tensors | {"model.final_conv.1.bias": tensors["model.final_conv.1.bias"] + 1}
    scaled = tensors | {"normalizer.params_dict.obs.scale": tensors["normalizer.params_dict.obs.scale"] + 1}
    paths = [case.write(tmp_path / f"{k}.ckpt", own) for k, own in enumerate((tensors, tensors, changed, scaled))]
    paths.append(
        case.write(tmp_path / "noise.ckpt", noise_scheduler=case.settings["noise_scheduler"] | {"beta_end": 0.1})
    )
    first, again, *others = (open_policy(path, "diffusion_policy").fingerprint() for path in paths)
    options = [{"sampling_steps": 4}, {"sampler": "ddpm"}]
    others += [open_policy(paths[0], "diffusion_policy", **option).fingerprint() for option in options]
    assert first == again
    assert len({first, *others}) == 1 + len(others)
    assert open_policy(paths[0], "diffusion_policy", chunk=1).fingerprint() == first


def test_options_change_chunk_and_sampler():
    policy = open_policy(FILE, "diffusion_policy", chunk=5, sampling_steps=4)
    assert (policy.chunk, policy.horizon, policy.obs_steps, policy.noise_shape) == (5, 7, 2, (4, 8, 2))
    policy.set_sampling_steps(10)
    assert policy.noise_shape == (10, 8, 2)
    assert policy.act(th.zeros(3, policy.context_dim)).shape == (3, 7, 2)


def test_inputs_are_made_of_the_environments_keys():
    keys, shapes = {"obs": ["object", "proprio"]}, {"object": [2], "proprio": [3]}
    case, policy = Case("lowdim"), open_policy(FILE, "diffusion_policy", keys=keys, shapes=shapes)
    assert policy.observation_shapes == {"object": (2,), "proprio": (3,)}
    whole = case.observation()["state"]
    parts = {"proprio": whole[..., 2:], "object": whole[..., :2]}
    np.testing.assert_allclose(policy.embed(parts), case["condition"], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "pndm"}, "sampler is one of ddpm, ddim, not 'pndm'"),
        ({"weights": "best"}, "weights is one of ema, model"),
        ({"sampling_steps": 200}, "trained with 20 steps cannot be sampled in 200"),
        ({"chunk": 8}, "the policy predicts 7"),
        ({"keys": {"obs": ["object", "proprio"]}}, "shapes must tell"),
        ({"shapes": {"state": [7]}}, r"input 'obs' is of shape \(5,\)"),
        ({"keys": {"image": ["a"]}}, "keys names"),
        ({"mystery": 1}, "no such option"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        open_policy(FILE, "diffusion_policy", **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_target_": "diffusion_policy.policy.diffusion_transformer_lowdim_policy.X"}, "holds a X. Supported are"),
        ({"obs_as_global_cond": False}, "obs_as_global_cond"),
        ({"noise_scheduler": {"_target_": "diffusers.PNDMScheduler"}}, "its noise scheduler is PNDMScheduler"),
        ({"n_obs_steps": 3}, "does not hold the weights of a U-Net.*for a context of 15"),
        ({"obs_dim": 6}, r"normaliser of 'obs' is of \(5,\), not of \(6,\)"),
        ({"action_dim": 7}, "does not hold the weights|normaliser of 'action'"),
        ({"horizon": None}, "lack or mistake something"),
        ({"horizon": "${nowhere}"}, "cannot be resolved"),
        ({"n_action_steps": 9}, "cannot be executed"),
    ],
)
def test_another_policy_is_refused(tmp_path, settings, message):
    path = Case("lowdim_other").write(tmp_path / "x.ckpt", **settings)
    with pytest.raises(AdapterError, match=message) as refusal:
        open_policy(path, "diffusion_policy")
    assert "x.ckpt" in str(refusal.value)


def test_missing_weights_and_statistics_are_named(tmp_path):
    case = Case("lowdim_other")
    whole = case.tensors()
    for name, message in {
        "model.mid_modules.0.blocks.0.block.0.weight": "missing: mid_modules.0.conv1.block.0.weight",
        "normalizer.params_dict.action.scale": "no normaliser of 'action'",
    }.items():
        path = case.write(tmp_path / "x.ckpt", {key: value for key, value in whole.items() if key != name})
        with pytest.raises(AdapterError, match=rf"x\.ckpt.*{message}"):
            open_policy(path, "diffusion_policy")
    for name in ("model.extra.weight", "predictor.weight"):
        path = case.write(tmp_path / "x.ckpt", {**whole, name: th.zeros(1)})
        with pytest.raises(AdapterError, match=r"x\.ckpt.*(extra|predictor)\.weight"):
            open_policy(path, "diffusion_policy")


def test_hybrid_policies_that_crop_at_random_are_refused(tmp_path):
    path = Case("hybrid").write(tmp_path / "x.ckpt", tensors={}, eval_fixed_crop=False)
    with pytest.raises(AdapterError, match="crops images at random when it is evaluated"):
        open_policy(path, "diffusion_policy")


def test_images_smaller_than_the_crop_and_other_networks_are_refused(tmp_path):
    case = Case("image")
    encoder = case.settings["obs_encoder"]
    other = {"_target_": "diffusion_policy.model.vision.model_getter.get_r3m", "name": "resnet18"}
    for change, message in (({"crop_shape": [76, 76]}, "crops images to"), ({"rgb_model": other}, "get_r3m")):
        path = case.write(tmp_path / "x.ckpt", tensors={}, obs_encoder=encoder | change)
        with pytest.raises(AdapterError, match=message):
            open_policy(path, "diffusion_policy")


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_in_the_file_is_run(tmp_path):
    case, trace = Case("lowdim_other"), tmp_path / "trace"
    payload = {"cfg": OmegaConf.create({"policy": case.settings}), "state_dicts": {"model": case.tensors()}}
    path = tmp_path / "x.ckpt"
    th.save(payload | {"pickles": {"step": pickle.dumps(Evil(f"touch {trace}"))}}, path)
    open_policy(path, "diffusion_policy")  # bytes that nobody opens
    th.save(payload | {"pickles": Evil(f"touch {trace}")}, path)
    with pytest.raises(UnsafePickleError, match=r"x\.ckpt is refused"):
        open_policy(path, "diffusion_policy")
    assert not trace.exists()


def test_functions_of_other_programs_are_not_called_for_settings(tmp_path):
    called = []
    OmegaConf.register_new_resolver("test_eval", called.append)
    case = Case("lowdim_other")
    for setting in ("${test_eval:1}", "${${name}:1}", "${horizon_of_task}"):
        cfg = {"policy": {**case.settings, "horizon": setting}, "name": "test_eval", "horizon_of_task": "${test_eval:}"}
        path = tmp_path / "x.ckpt"
        th.save({"cfg": OmegaConf.create(cfg), "state_dicts": {"model": case.tensors()}}, path)
        with pytest.raises(AdapterError, match=r"cannot be resolved: .*computed_by_a_function"):
            open_policy(path, "diffusion_policy")
    assert not called


def test_other_files_are_named(tmp_path):
    path = tmp_path / "x.ckpt"
    with pytest.raises(AdapterError, match="no such file"):
        open_policy(path, "diffusion_policy")
    path.write_bytes(FILE.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"x\.ckpt cannot be read"):
        open_policy(path, "diffusion_policy")
    th.save({"state_dict": {}}, path)
    with pytest.raises(AdapterError, match=r"x\.ckpt is no checkpoint of a workspace"):
        open_policy(path, "diffusion_policy")


def test_a_bottleneck_is_attached_and_steered(tmp_path):
    case = Case("lowdim_only")
    size = 4  # PointReach's numbers, one less than the policy's in each of its two frames
    for name, shape in case.shapes.items():
        case.shapes[name] = [shape[0], shape[1] - 2] if name.endswith("cond_encoder.1.weight") else shape
    normalizer = {f"normalizer.params_dict.obs.{kind}": th.ones(size) for kind in ("scale", "offset")}
    path = case.write(tmp_path / "point.ckpt", case.tensors() | normalizer, obs_dim=size)
    policy = open_policy(path, "diffusion_policy", sampler="ddim", sampling_steps=3)
    demos = load_demonstrations(point_demonstrations(tmp_path / "demos.hdf5", (12, 9, 11)))
    attach_bottleneck(policy, demos, 4, TrainingConfig(**TRAINING), tmp_path / "run")
    env = LatentSteeringWrapper(gym.make(POINT), policy, scale=0.5)
    obs, _ = env.reset(seed=0)
    assert {key: len(values) for key, values in obs.items()} == {"c": policy.context_dim, "z": 4}
    chunks = []
    for delta in (np.zeros(4), np.ones(4)):
        env.reset(seed=0)
        chunks.append(env.step(delta.astype(np.float32))[0]["c"])
    assert np.abs(chunks[0] - chunks[1]).max() > 1e-4
