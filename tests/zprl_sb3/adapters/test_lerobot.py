"""Checkpoints that LeRobot's own classes wrote (fixtures/make_lerobot.py), loaded without it: what these did, we do."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch as th
from safetensors.torch import load_file, save_file

from zprl_sb3.adapters import AdaptedPolicy, AdapterError, open_policy
from zprl_sb3.adapters.resnet import FrozenBatchNorm, map_shape, resnet
from zprl_sb3.attached import Base, save_attached
from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig
from zprl_sb3.checkpoint import load_policy
from zprl_sb3.policy import missing_members
from zprl_sb3.pretrain.attaching import attach_bottleneck
from zprl_sb3.pretrain.demonstrations import Demonstrations
from zprl_sb3.pretrain.loop import TrainingConfig
from zprl_sb3.wrappers.steering import LatentSteering

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = ["act_state", "act_old", "diffusion_state", "diffusion_old"]
IMAGES = ["act_image", "act_deep", "diffusion_image", "diffusion_old_image"]


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


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in IMAGES)])
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


@pytest.mark.parametrize("name", ["diffusion_state", "diffusion_old"])
def test_the_loss_is_that_of_lerobots_training(folders, name):
    policy, case = open_policy(folders(name), "lerobot"), read_case(folders(name))
    assert [*policy.target_steps] == list(range(1 - policy.obs_steps, policy.horizon))
    context = policy.embed(observed(policy, case, 2 * policy.chunk - 1))
    noise = th.zeros(MAKE.BATCH, *policy.noise_shape)
    noise.view(MAKE.BATCH, -1, *case["loss/noise"].shape[1:])[:, 0] = case["loss/noise"]
    times = (case["loss/steps"] + 1) / policy.config["num_train_timesteps"]
    loss = policy.imitation_loss(context, context, case["loss/actions"], noise, times)
    th.testing.assert_close(loss, case["loss/value"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_all_of_the_context_and_no_weight(folders, name):
    policy, case = open_policy(folders(name), "lerobot"), read_case(folders(name))
    context = policy.embed(observed(policy, case, 0)).requires_grad_()
    noise = drawn(policy, case, 0)
    policy.generate(context, noise).square().sum().backward()
    assert context.grad is not None
    assert (context.grad != 0).all()
    assert all(weight.grad is None for weight in policy.parameters())
    context.grad = None
    actions = th.rand(MAKE.BATCH, len(policy.target_steps), 2)
    policy.imitation_loss(context, context.detach() + 0.1, actions, noise, th.full((MAKE.BATCH,), 0.6)).backward()
    assert (context.grad != 0).all()


@pytest.mark.parametrize("name", SMALL)
def test_normalised_actions_are_lerobots(folders, name):
    policy = open_policy(folders(name), "lerobot")
    limits = MAKE.statistics(MAKE.VECTORS)["action"]
    mean_std = "MEAN_STD" in policy.config["normalization_mapping"]["ACTION"]
    low, wanted = (limits["mean"], 0.0) if mean_std else (limits["min"], -1.0)
    th.testing.assert_close(policy.action_normalizer(low), th.full((2,), wanted))
    high, wanted = (low + limits["std"], 1.0) if mean_std else (limits["max"], 1.0)
    th.testing.assert_close(policy.action_normalizer(high)[0], th.tensor(wanted))
    # The last dimension was constant in the demonstrations: other actions do not explode.
    assert policy.action_normalizer(high + 1)[1].abs() < 3


@pytest.mark.parametrize("name", ["act_state", "diffusion_old"])
def test_is_steered_through_a_bottleneck(folders, name):
    policy, case = open_policy(folders(name), "lerobot"), read_case(folders(name))
    policy.bottleneck = Bottleneck(policy.context_dim, BottleneckConfig(latent_dim=3, hidden=8))
    policy.freeze()
    steering = LatentSteering(policy, scale=0.5)
    obs = {key: value.numpy() for key, value in observed(policy, case, 0).items()}

    def acted(delta: float) -> np.ndarray:
        rngs = [np.random.default_rng(row) for row in range(MAKE.BATCH)]
        return steering.act(steering.observe(obs, rngs), np.full((MAKE.BATCH, 3), delta, np.float32), rngs)

    assert acted(0.0).shape == (MAKE.BATCH, policy.chunk, 2)
    assert np.array_equal(acted(1.0), acted(1.0))
    assert np.abs(acted(1.0) - acted(0.0)).max() > 1e-6


@pytest.mark.slow
def test_a_bottleneck_is_attached_by_distillation(folders, tmp_path):
    """Observations on a line, which two dimensions of z can tell; what is imitated is the policy, not the actions."""
    keys = {"observation.state": ["hand", "grip"], "observation.environment_state": ["object"]}
    base = Base(str(folders("act_state")), "lerobot", {"keys": keys, "shapes": {"hand": [1], "grip": [2]}})
    policy = base.load()
    fingerprint = policy.fingerprint()
    places = [np.linspace(0, 1, 30, dtype=np.float32)[:, None] ** power for power in (0.5, 1, 2)]
    observations = {
        key: [np.linspace(-1, 1, size, dtype=np.float32) * place for place in places]
        for key, (size,) in policy.observation_shapes.items()
    }
    actions = [np.zeros((30, 2), np.float32) for _ in places]
    facts = (Path("demos.hdf5"), "", "Task-v0", {}, "", ["demo_0", "demo_1", "demo_2"])
    demos = Demonstrations(*facts, observations, actions, [True] * 3, [""] * 3, {})
    seen = {key: th.as_tensor(np.concatenate(episodes)) for key, episodes in observations.items()}
    own = policy.act(policy.embed(seen))
    steps = {"steps": 60, "warmup_steps": 5, "validate_every": 60, "save_every": 60}
    fixed = {"betas": (0.95, 0.999), "weight_decay": 1e-6, "ema_power": 0.8, "ema_max": 0.9, "seed": 0}
    weights = {"beta": 1e-6, "reconstruction": 1.0}
    training = TrainingConfig(**steps, **fixed, **weights, batch_size=32, learning_rate=3e-3, compile=False)
    attached = attach_bottleneck(policy, demos, 2, training, tmp_path, validation_ratio=0.4).freeze()
    context = attached.embed(seen)
    assert context.abs().max() < 1.5
    th.testing.assert_close(attached.act(context), own, atol=1e-5, rtol=0)  # scaled, but the same policy
    through = attached.act(attached.bottleneck.decode(attached.bottleneck.encode(context)[0]))
    assert (through - own).square().mean() < 0.1 * own.var(dim=0).mean()
    again = load_policy(save_attached(attached, tmp_path / "policy", base, fingerprint))
    assert again.fingerprint() == attached.fingerprint()
    assert th.equal(again.embed(seen), context)


def test_inputs_may_be_made_of_several_keys(folders):
    keys = {"observation.state": ["hand", "grip"], "observation.environment_state": ["object"]}
    shapes = {"hand": [1], "grip": [2]}
    policy = open_policy(folders("diffusion_state"), "lerobot", keys=keys, shapes=shapes)
    assert policy.observation_shapes == {"hand": (1,), "grip": (2,), "object": (4,)}
    plain, case = open_policy(folders("diffusion_state"), "lerobot"), read_case(folders("diffusion_state"))
    obs = observed(plain, case, 3)
    state = obs["observation.state"]
    split = {"hand": state[..., :1], "grip": state[..., 1:], "object": obs["observation.environment_state"]}
    assert th.equal(policy.embed(split), plain.embed(obs))


def test_options(folders):
    folder = folders("diffusion_old")
    plain = open_policy(folder, "lerobot")
    assert plain.fingerprint() == open_policy(folder, "lerobot", chunk=2).fingerprint()
    assert open_policy(folder, "lerobot", chunk=2).chunk == 2
    fewer = open_policy(folder, "lerobot", sampling_steps=2)
    assert fewer.noise_shape == (2, 8, 2)
    assert fewer.fingerprint() != plain.fingerprint()
    with pytest.raises(AdapterError, match="cannot be sampled in 6"):
        open_policy(folder, "lerobot", sampling_steps=6)
    with pytest.raises(ValueError, match="chunk of 7 actions"):
        open_policy(folder, "lerobot", chunk=7)
    with pytest.raises(AdapterError, match="does not sample in steps"):
        open_policy(folders("act_old"), "lerobot", sampling_steps=2)
    with pytest.raises(AdapterError, match=r"\['agent_pos'\].*only \['observation"):
        open_policy(folder, "lerobot", keys={"agent_pos": ["state"]})
    with pytest.raises(AdapterError, match=r"'observation.state' is of shape \(3,\), not made of .*\(5,\)"):
        open_policy(folder, "lerobot", shapes={"observation.state": [5]})


def test_the_fingerprint_knows_weights_and_settings(folders, copied):
    policy = open_policy(folders("act_state"), "lerobot")
    before = policy.fingerprint()
    with th.no_grad():
        policy.network.action_head.bias[0] += 0.1
    assert policy.fingerprint() != before
    folder = copied("act_state")
    rewrite(folder / "config.json", n_heads=4)  # the weights fit any number of heads
    assert open_policy(folder, "lerobot").fingerprint() != before
    folder = copied("diffusion_state")
    before = open_policy(folder, "lerobot").fingerprint()
    assert open_policy(folder, "lerobot", chunk=1).fingerprint() == before
    rewrite(folder / "config.json", horizon=16)  # and convolutions any horizon
    assert open_policy(folder, "lerobot").fingerprint() != before


@pytest.mark.slow
def test_images_may_be_smaller_than_those_it_was_trained_with(folders):
    key, shapes = "observation.images.front", {"observation.images.front": [20, 70, 3]}
    policy = open_policy(folders("act_image"), "lerobot", shapes=shapes)
    case = read_case(folders("act_image"))
    obs = observed(policy, case, 0)
    smaller = obs | {key: obs[key][:, :20].repeat(1, 1, 2, 1)[:, :, :70]}
    assert policy.embed(smaller).shape == (2, (2 + 1 * 3 + 2 * 2) * 8)
    assert policy.act(policy.embed(smaller)).shape == (2, 5, 2)
    with pytest.raises(AdapterError, match="one image of a shape"):
        open_policy(folders("act_image"), "lerobot", shapes={key: [20, 70, 4]})
    with pytest.raises(AdapterError, match="of one size"):
        open_policy(folders("diffusion_image"), "lerobot", shapes=shapes)
    with pytest.raises(AdapterError, match=r"crops images to .* are smaller than"):
        open_policy(folders("diffusion_old_image"), "lerobot", shapes={"observation.image": [20, 70, 3]})


@pytest.mark.slow
def test_contexts_that_are_too_large_to_steer(folders):
    large = {"observation.images.front": [1600, 1632, 3]}
    with pytest.raises(AdapterError, match=r"20448 dimensions, 2556 tokens of 8.*1600, 1632.*option shapes"):
        open_policy(folders("act_image"), "lerobot", shapes=large)
    policy = open_policy(folders("act_image"), "lerobot", shapes=large, steer="chunk")
    assert policy.context_dim < 200


@pytest.mark.parametrize("name", ["act_state", pytest.param("act_image", marks=pytest.mark.slow)])
def test_the_chunk_of_act_can_be_steered_instead(folders, name):
    whole, policy = (open_policy(folders(name), "lerobot", steer=steer) for steer in (None, "chunk"))
    obs = observed(policy, read_case(folders(name)), 0)
    context, nothing = policy.embed(obs), th.zeros(MAKE.BATCH, 0)
    states = sum(policy.inputs.vectors.values())
    assert context.shape == (MAKE.BATCH, policy.horizon * policy.action_dim + states)
    actions = policy.act(context, nothing)
    assert th.equal(actions, whole.act(whole.embed(obs), nothing))
    moved = context.clone()
    moved[:, -states:] += 1
    assert th.equal(policy.act(moved, nothing), actions)
    moved[:, 0] += 1
    assert (policy.act(moved, nothing) != actions).sum() == MAKE.BATCH
    assert policy.fingerprint() != whole.fingerprint()
    with pytest.raises(AdapterError, match="steer is 'tokens' or 'chunk', not 'latent'"):
        open_policy(folders(name), "lerobot", steer="latent")
    with pytest.raises(AdapterError, match=r"steer"):
        open_policy(folders("diffusion_state"), "lerobot", steer="chunk")


def test_temporal_ensembling_is_not_used(copied):
    folder = copied("act_state")
    rewrite(folder / "config.json", temporal_ensemble_coeff=0.01, n_action_steps=1)
    with pytest.warns(UserWarning, match="temporal ensembling, which is not used"):
        assert open_policy(folder, "lerobot", chunk=4).chunk == 4


def test_paths(folders, tmp_path):
    """Of a training's checkpoint, and of a repository in huggingface_hub's cache."""
    source = folders("act_old")
    wanted = open_policy(source, "lerobot").fingerprint()
    shutil.copytree(source, tmp_path / "last" / "pretrained_model")
    assert open_policy(tmp_path / "last", "lerobot").fingerprint() == wanted
    cached = tmp_path / "models--someone--act"
    shutil.copytree(source, cached / "snapshots" / "0123")
    assert open_policy(cached, "lerobot").fingerprint() == wanted
    (cached / "snapshots" / "4567").mkdir()
    with pytest.raises(AdapterError, match=r"no config\.json"):
        open_policy(cached, "lerobot")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    assert open_policy(cached, "lerobot").fingerprint() == wanted
    with pytest.raises(AdapterError, match="is no folder"):
        open_policy(tmp_path / "nowhere", "lerobot")


def rewrite(file: Path, **settings) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        open_policy(folder, "lerobot")


def test_other_kinds_of_policies(copied):
    folder = copied("act_old")
    rewrite(folder / "config.json", type="smolvla")
    refused(folder, "type 'smolvla'; supported are act and diffusion")
    (folder / "config.json").write_text("[]")
    refused(folder, "no settings by name")
    (folder / "config.json").write_text('{"type": "act"')
    refused(folder, r"config\.json is damaged")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dim_model": 16},
            r"model\.safetensors does not hold the weights of ACT.*another shape.*\(2, 8\), not \(2, 16\)",
        ),
        ({"dim_feedforward": 1 << 42}, r"another shape: .* not \(4398046511104, 8\)"),  # 140 TB
        ({"n_encoder_layers": 3}, r"missing: encoder\.layers\.2\.linear1\.bias.* and 7 more"),
        ({"n_decoder_layers": 0}, r"not part of it: decoder\.layers\.0"),
        ({"feedforward_activation": "glu"}, r"config\.json lacks or mistakes a setting: KeyError: 'glu'"),
        (
            {"output_features": {"action": {"type": "ACTION", "shape": [7]}}},
            r"another shape: action_head\.bias \(2,\), not \(7,\)",
        ),
        ({"normalization_mapping": {"STATE": "LOG"}}, "'LOG' of 'observation.state' is none of IDENTITY"),
        ({"input_features": {}}, "sees neither an image nor"),
    ],
)
def test_configurations_that_do_not_fit(copied, settings, message):
    folder = copied("act_old")
    rewrite(folder / "config.json", **settings)
    refused(folder, message)


def test_a_missing_setting_is_named(copied):
    folder = copied("diffusion_old")
    config = json.loads((folder / "config.json").read_text())
    del config["kernel_size"]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "KeyError: 'kernel_size'")


def test_another_robots_state(copied):
    folder = copied("diffusion_old")
    features = json.loads((folder / "config.json").read_text())["input_features"]
    features["observation.state"]["shape"] = [6]
    rewrite(folder / "config.json", input_features=features)
    refused(folder, r"another shape: unet\.down_modules\.0\.0\.cond_encoder\.1\.weight \(16, 29\), not \(16, 38\)")


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "policy_preprocessor_step_3_normalizer_processor.safetensors", "policy_preprocessor.json"],
)
def test_truncated_files(copied, name):
    folder = copied("act_state")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    refused(folder, f"{name} is (truncated|damaged)")


def test_pickles_are_not_read(copied, tmp_path):
    class Malicious:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    folder = copied("act_state")
    (folder / "model.safetensors").unlink()
    th.save({"weights": Malicious()}, folder / "pytorch_model.bin")
    refused(folder, r"model\.safetensors is missing.*pickles are not read")
    th.save({"weights": Malicious()}, folder / "model.safetensors")
    refused(folder, "no safetensors file")
    assert not (tmp_path / "executed").exists()


def test_missing_statistics(copied):
    folder = copied("act_state")
    (folder / "policy_postprocessor.json").unlink()
    refused(folder, r"neither in policy_preprocessor\.json and policy_postprocessor\.json .* nor as normalize_inputs")
    shutil.rmtree(folder)

    folder = copied("act_state")  # LeRobot itself would go on without
    steps = json.loads((folder / "policy_postprocessor.json").read_text())["steps"]
    del steps[0]["state_file"]
    rewrite(folder / "policy_postprocessor.json", steps=steps)
    refused(folder, r"policy_postprocessor\.json lacks the mean and std of 'action', which MEAN_STD needs")
    rewrite(folder / "policy_postprocessor.json", steps=[steps[0] | {"state_file": "../../other.safetensors"}])
    refused(folder, r"names '\.\./\.\./other\.safetensors', which is not in the same folder")
    rewrite(folder / "policy_postprocessor.json", steps=[])
    refused(folder, "no step 'unnormalizer_processor'")
    rewrite(folder / "policy_postprocessor.json", steps=[{"registry_name": "delta_action_processor"}, *steps])
    refused(folder, "'delta_action_processor', which is not supported")

    folder = copied("act_old")
    tensors = load_file(folder / "model.safetensors")
    tensors["normalize_inputs.buffer_observation_state.min"].fill_(th.inf)  # as LeRobot makes it
    save_file(tensors, folder / "model.safetensors")
    refused(folder, r"lacks the min and max of 'observation\.state', which MIN_MAX needs")


def test_without_normalisation_no_statistics_are_needed(copied):
    folder = copied("act_old")
    rewrite(folder / "config.json", normalization_mapping={"STATE": "IDENTITY"})
    tensors = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in tensors.items() if "ormalize_" not in key}, folder / "model.safetensors")
    policy = open_policy(folder, "lerobot")
    obs = {key: th.rand(1, *shape) for key, shape in policy.observation_shapes.items()}
    assert th.equal(policy.vector(obs, "observation.state")[:, 0], obs["observation.state"])
    assert th.equal(policy.action_normalizer(th.ones(2)), th.ones(2))


@pytest.mark.parametrize(("name", "dilated"), [("resnet18", False), ("resnet34", False), ("resnet50", True)])
def test_feature_maps_are_as_large_as_said(name, dilated):
    with th.device("meta"):  # which only knows shapes
        network = resnet(name, dilated, FrozenBatchNorm)
    for size in [(84, 84), (33, 65), (480, 640)]:
        assert tuple(network(th.zeros(1, 3, *size, device="meta")).shape[1:]) == map_shape(name, dilated, size)
    assert map_shape("resnet18", False, (480, 640)) == (512, 15, 20)


def test_other_backbones_are_named():
    with pytest.raises(ValueError, match="no ResNet 'vit_b_16' here, only resnet18"):
        resnet("vit_b_16", False, FrozenBatchNorm)
    with pytest.raises(ValueError, match="resnet34 has no dilation"):
        resnet("resnet34", True, FrozenBatchNorm)
