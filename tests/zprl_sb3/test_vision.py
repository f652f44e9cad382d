"""Images against slices and against formulas written down by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch as th
from torch import nn
from torch.nn import functional as F

from helpers import image_policy, random_observations, same, tiny_policy
from zprl_sb3.checkpoint import load_policy, save_policy
from zprl_sb3.policy import IMAGE_SETTINGS
from zprl_sb3.vision import BasicBlock, ImageEncoder, SpatialEmbeddings, crop, resnet_trunk


def pictures(count: int, height: int = 9, width: int = 12) -> th.Tensor:
    return th.randint(0, 256, (count, height, width, 3), dtype=th.uint8)


def test_each_image_is_cut_at_its_own_place() -> None:
    images = pictures(4)
    where = th.tensor([[0.0, 0.0], [0.99, 0.99], [0.5, 0.1], [0.1, 0.7]])
    cut = crop(images, (6, 7), where)
    assert cut.dtype == th.uint8
    # Margins of 3 and 5: 4 and 6 places.
    for k, (top, left) in enumerate([(0, 0), (3, 5), (2, 0), (0, 4)]):
        assert th.equal(cut[k], images[k, top : top + 6, left : left + 7]), k


def test_without_a_place_the_centre_is_cut() -> None:
    images = pictures(2, 84, 84)
    assert th.equal(crop(images, (76, 76)), images[:, 4:80, 4:80])
    assert th.equal(crop(images, (80, 80)), images[:, 2:82, 2:82])
    assert th.equal(crop(images, (84, 84), th.rand(2, 2)), images)


def test_uniform_numbers_make_every_place_equally_likely() -> None:
    image = th.arange(16).reshape(1, 4, 4, 1).expand(8000, 4, 4, 3)
    corners = crop(image, (2, 2), th.rand(8000, 2, generator=th.Generator().manual_seed(0)))[:, 0, 0, 0]
    counts = corners.bincount(minlength=16).reshape(4, 4)
    assert (counts[3] == 0).all()
    assert (counts[:, 3] == 0).all()
    assert ((counts[:3, :3] - 8000 / 9).abs() < 150).all()


def test_a_number_that_was_rounded_up_to_one_stays_inside() -> None:
    images = pictures(1)
    assert th.equal(crop(images, (6, 7), th.ones(1, 2)), images[:, 3:, 5:])


def test_the_trunk_of_the_paper_is_a_resnet_18() -> None:
    trunk = resnet_trunk((64, 128, 256, 512))
    # torchvision's has 11,176,512 weights but for its last layer; a GroupNorm has as many as a BatchNorm.
    assert sum(weight.numel() for weight in trunk.parameters()) == 11_176_512
    for size in (76, 80):
        assert trunk(th.zeros(1, 3, size, size)).shape == (1, 512, 3, 3)
    norms = [layer for layer in trunk.modules() if isinstance(layer, nn.GroupNorm)]
    assert all(norm.num_channels == 16 * norm.num_groups for norm in norms)
    assert sum(isinstance(layer, nn.Conv2d) for layer in trunk.modules()) == 20


def test_a_block_adds_its_input() -> None:
    block = BasicBlock(16, 32, 2)
    x = th.randn(2, 16, 8, 8)
    first, norm, _, second, second_norm = block.body
    skip, skip_norm = block.skip
    inner = second_norm(
        F.conv2d(F.relu(norm(F.conv2d(x, first.weight, stride=2, padding=1))), second.weight, padding=1)
    )
    th.testing.assert_close(block(x), F.relu(inner + skip_norm(F.conv2d(x, skip.weight, stride=2))))
    assert isinstance(BasicBlock(16, 16, 1).skip, nn.Identity)


def test_spatial_embeddings_are_weighted_sums_over_the_places() -> None:
    pooling = SpatialEmbeddings((3, 2, 4), maps=5)
    x = th.randn(6, 3, 2, 4)
    pooled = pooling(x)
    assert pooled.shape == (6, 15)
    weight = pooling.weight.reshape(3, 2, 4, 5)
    for channel, number in ((0, 0), (2, 4)):
        expected = (x[:, channel] * weight[channel, :, :, number]).sum(dim=(1, 2))
        th.testing.assert_close(pooled[:, 5 * channel + number], expected)


def test_pixels_are_normalised_as_imagenet_is() -> None:
    encoder = ImageEncoder((16, 16, 3), (12, 12), (8, 16), 6)
    images = pictures(3, 16, 16)
    seen: list[th.Tensor] = []
    encoder.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = encoder(images)
    mean, std = th.tensor([0.485, 0.456, 0.406]), th.tensor([0.229, 0.224, 0.225])
    expected = ((images[:, 2:14, 2:14].float() / 255 - mean) / std).permute(0, 3, 1, 2)
    th.testing.assert_close(seen[0], expected)
    assert seen[0].is_contiguous(memory_format=th.channels_last)
    assert features.shape == (3, 6)
    assert features.abs().max() < 1


def test_a_history_is_cropped_alike_and_encoded_frame_by_frame() -> None:
    encoder = ImageEncoder((16, 16, 3), (12, 12), (8, 16), 6)
    images, where = pictures(6, 16, 16).reshape(2, 3, 16, 16, 3), th.tensor([[0.1, 0.9], [0.6, 0.3]])
    features = encoder(images, where)
    assert features.shape == (2, 3, 6)
    for frame in range(3):
        th.testing.assert_close(features[:, frame], encoder(images[:, frame], where))


def test_images_of_other_numbers_are_refused() -> None:
    policy = image_policy()
    obs = random_observations(policy, 2)
    obs["top_image"] = obs["top_image"] / 255
    with pytest.raises(TypeError, match=r"Images are uint8 from 0 to 255, not torch\.float32"):
        policy.embed(obs)


def test_the_context_is_the_images_by_key_and_then_the_vectors() -> None:
    policy = image_policy()
    policy.obs_normalizer.fit(th.tensor([[-2.0, -2.0], [2.0, 2.0]]))
    obs, where = random_observations(policy, 5), th.rand(5, 2, 2)
    context = policy.embed(obs, where)
    assert policy.context_dim == 14
    hand, top = policy.image_encoders
    th.testing.assert_close(context[:, :6], hand(obs["hand_image"][:, 0], where[:, 0]))
    th.testing.assert_close(context[:, 6:12], top(obs["top_image"][:, 0], where[:, 1]))
    th.testing.assert_close(context[:, 12:], obs["point"][:, 0] / 2)
    # In rollouts there is no axis for a history of one frame.
    single = {key: value[:, 0] for key, value in obs.items()}
    assert th.equal(policy.embed(single, where), context)
    assert not th.equal(policy.embed(single), context)


def test_several_frames_are_in_the_context_oldest_first() -> None:
    policy = image_policy(obs_steps=2)
    obs = random_observations(policy, 3)
    context = policy.embed(obs)
    assert context.shape == (3, policy.context_dim) == (3, 28)
    alone = image_policy(obs_steps=1)
    alone.load_state_dict(
        {n: x for n, x in policy.state_dict().items() if n.startswith(("image", "obs"))}, strict=False
    )
    for frame in range(2):
        mine = alone.embed({key: value[:, frame] for key, value in obs.items()})
        th.testing.assert_close(context[:, 14 * frame : 14 * frame + 14], mine)


def test_a_policy_may_see_nothing_but_images() -> None:
    policy = image_policy(observation_shapes={"top_image": (16, 16, 3)})
    assert policy.embed(random_observations(policy, 2)).shape == (2, 6)


def test_a_loaded_image_policy_equals_the_saved_one_bit_for_bit(tmp_path: Path) -> None:
    policy = image_policy()
    loaded = load_policy(save_policy(policy, tmp_path / "policy"))
    assert loaded.config == policy.config
    assert loaded.fingerprint() == policy.fingerprint()
    assert same(loaded.state_dict().values(), policy.state_dict().values())
    obs = random_observations(policy, 2)
    assert th.equal(loaded.embed(obs), policy.embed(obs))
    first = loaded.image_encoders[0].trunk[0]  # type: ignore[index,union-attr]
    assert first.weight.is_contiguous(memory_format=th.channels_last)


def test_the_fingerprint_of_an_image_policy_changes_with_its_settings() -> None:
    changes: dict[str, Any] = {"crop": (10, 12), "resnet_widths": (8, 24), "image_dim": 7}
    assert set(changes) == set(IMAGE_SETTINGS)
    policies = [image_policy(), *(image_policy(**{name: value}) for name, value in changes.items())]
    for policy in policies:  # the same numbers everywhere
        for weight in policy.parameters():
            weight.zero_()
    assert len({policy.fingerprint() for policy in policies}) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": (17, 12)}, r"crop must be \[height, width\] within 'hand_image', 16 by 16, not \(17, 12\)"),
        ({"crop": (0, 12)}, "crop must be"),
        ({"crop": (12,)}, "crop must be"),
        ({"observation_shapes": {"depth": (16, 16, 1)}}, r"'depth' is neither a vector nor an image .* \(16, 16, 1\)"),
        ({"observation_shapes": {"table": (4, 4)}}, r"'table' is neither a vector nor an image"),
    ],
)
def test_shapes_and_crops_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_policy(**changes)


def test_an_empty_crop_leaves_the_image_whole() -> None:
    policy = image_policy(crop=())
    obs = random_observations(policy, 2)
    assert th.equal(policy.embed(obs), policy.embed(obs, th.rand(2, 2, 2)))


def test_a_policy_without_images_has_the_fingerprint_of_the_first_format() -> None:
    """Computed by the version before images: models in the world that were trained on such policies name it."""
    policy = tiny_policy(by_key=True, encoder_sizes=(6,))
    with th.no_grad():
        for index, weight in enumerate(policy.parameters()):
            weight.copy_((th.arange(weight.numel()) % 7 - 3 + index).reshape(weight.shape) / 4)
    assert policy.fingerprint() == "831538c0a711652bd6ef631f0a696c18962a239187af57d4233a4a1acb145b18"
