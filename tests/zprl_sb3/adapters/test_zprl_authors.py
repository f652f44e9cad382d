import math
from pathlib import Path

import pytest
import torch as th

from zprl_sb3.adapters import AdapterError
from zprl_sb3.adapters.diffusion_policy_file import Checkpoint
from zprl_sb3.adapters.zprl_authors import Flow, read_bottleneck, renamed_encoder
from zprl_sb3.bottleneck import Bottleneck, BottleneckConfig

FILE = Path("x.ckpt")


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("conv1.weight", "key_model_map.front.conv1.weight"),
        ("backbone.layer3.1.bn2.bias", "key_model_map.front.layer3.1.bn2.bias"),
        ("trunk.0.weight", "key_model_map.front.conv1.weight"),
        ("1.bias", "key_model_map.front.bn1.bias"),
        ("backbone.4.0.conv1.weight", "key_model_map.front.layer1.0.conv1.weight"),
        ("7.0.downsample.1.weight", "key_model_map.front.layer4.0.downsample.1.weight"),
        ("spatial_embed.kernel", "heads.front.0.weight"),
        ("pool.weight", "heads.front.0.weight"),
        ("fc.weight", "heads.front.1.weight"),
        ("proj.bias", "heads.front.1.bias"),
        ("layer_norm.weight", "heads.front.2.weight"),
    ],
)
def test_names_in_the_encoder_that_are_understood(name, ours):
    assert list(renamed_encoder({f"key_model_map.front.{name}": th.zeros(2)}, FILE)) == [ours]


def test_spatial_embeddings_of_rows_and_columns_are_flattened():
    kernel = th.arange(48.0).reshape(2, 3, 4, 2)
    (ours,) = renamed_encoder({"key_model_map.front.spatial_embed.kernel": kernel}, FILE).values()
    assert th.equal(ours, kernel.reshape(2, 12, 2))


@pytest.mark.parametrize(
    "name", ["key_model_map.front.attention.weight", "token.weight", "key_model_map.front.8.weight"]
)
def test_other_names_are_listed(name):
    with pytest.raises(AdapterError, match=rf"x\.ckpt: these weights are not understood: {name}"):
        renamed_encoder({name: th.zeros(1), "key_model_map.front.conv1.weight": th.zeros(1)}, FILE)


def checkpoint(tensors, **settings):
    return Checkpoint(FILE, settings, tensors, {})


def named(bottleneck, trunk, mean, log_var, decoder, step=2):
    """The weights under other names; ``step`` is between the numbers of linear layers."""
    names = {"trunk": trunk, "mean": mean, "log_var": log_var, "decoder": decoder}
    tensors = {}
    for name, value in bottleneck.state_dict().items():
        part, *number, leaf = name.split(".")
        numbers = [str(step * int(k) // 2) for k in number]
        tensors[".".join([names[part], *numbers, leaf])] = value
    return tensors


@pytest.mark.parametrize(
    "names",
    [
        ("vib.encoder", "vib.fc_mu", "vib.fc_logvar", "vib.decoder"),
        ("vib_encoder.trunk", "vib_encoder.mean", "vib_encoder.logvar", "vib_decoder"),
        ("bottleneck.encoder.net", "bottleneck.mu_head", "bottleneck.log_var_head", "bottleneck.decoder.net"),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_bottleneck_is_read_by_the_names_that_are_understood(names, step):
    own = Bottleneck(5, BottleneckConfig(latent_dim=3, hidden=8))
    read = read_bottleneck(checkpoint({"model.x": th.zeros(1)} | named(own, *names, step)), 5)
    context = th.randn(2, 5)
    for expected, found in zip(own.posterior(context), read.posterior(context), strict=True):
        assert th.equal(expected, found)
    assert th.equal(own.decode(context[:, :3]), read.decode(context[:, :3]))


def test_a_weight_of_the_log_variance_is_kept():
    own = Bottleneck(5, BottleneckConfig(latent_dim=3, hidden=8))
    tensors = named(own, "vib.encoder", "vib.mean", "vib.logvar", "vib.decoder")
    read = read_bottleneck(checkpoint(tensors, vib_alpha=0.5), 5)
    context = th.randn(2, 5)
    assert th.allclose(read.posterior(context)[1], own.posterior(context)[1] + 2 * math.log(0.5))


def test_bottlenecks_that_do_not_fit_are_refused():
    own = Bottleneck(5, BottleneckConfig(latent_dim=3, hidden=8))
    tensors = named(own, "vib.encoder", "vib.mean", "vib.logvar", "vib.decoder")
    with pytest.raises(AdapterError, match=r"does not hold the weights of a bottleneck of 3 for 6 numbers"):
        read_bottleneck(checkpoint(tensors), 6)
    with pytest.raises(AdapterError, match=r"not understood: vib\.prior"):
        read_bottleneck(checkpoint(tensors | {"vib.prior": th.zeros(1)}), 5)
    without = {name: value for name, value in tensors.items() if "mean" not in name}
    with pytest.raises(AdapterError, match="has no mean"):
        read_bottleneck(checkpoint(without), 5)
    deeper = tensors | {f"vib.encoder.6.{leaf}": tensors[f"vib.encoder.4.{leaf}"] for leaf in ("weight", "bias")}
    with pytest.raises(AdapterError, match=r"not part of it: trunk\.6"):
        read_bottleneck(checkpoint(deeper), 5)
    assert read_bottleneck(checkpoint({"model.x": th.zeros(1), "obs_encoder.y": th.zeros(1)}), 5) is None


def test_flows_on_other_levels_are_refused():
    assert Flow.of({"num_train_timesteps": 100, "shift": 1.0}, None).sampling_steps == 2
    for settings in ({"num_train_timesteps": 1000}, {"num_train_timesteps": 100, "shift": 3.0}, {}):
        with pytest.raises(ValueError, match="not 100 equal levels"):
            Flow.of(settings, None)
