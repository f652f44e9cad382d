from __future__ import annotations

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zprl_sb3.networks import ConditionalUnet1d, ResidualBlock, TimeEmbedding, mlp

WIDTHS = st.lists(st.sampled_from([8, 16, 32, 48]), min_size=1, max_size=3)


def inputs(batch: int = 3, horizon: int = 8, actions: int = 2, condition: int = 5) -> tuple[th.Tensor, ...]:
    generator = th.Generator().manual_seed(0)
    return (
        th.randn(batch, horizon, actions, generator=generator),
        th.rand(batch, generator=generator),
        th.randn(batch, condition, generator=generator),
    )


@given(
    batch=st.integers(1, 3), widths=WIDTHS, multiple=st.integers(1, 4), actions=st.integers(1, 7), c=st.integers(1, 9)
)
@settings(max_examples=40, deadline=None)
def test_the_velocity_has_the_shape_of_the_chunk(
    batch: int, widths: list[int], multiple: int, actions: int, c: int
) -> None:
    horizon = multiple * 2 ** (len(widths) - 1)
    unet = ConditionalUnet1d(actions, c, widths, time_dim=8)
    velocity = unet(*inputs(batch, horizon, actions, c))
    assert velocity.shape == (batch, horizon, actions)
    assert velocity.isfinite().all()


def test_the_networks_of_the_paper_fit_its_horizon() -> None:
    unet = ConditionalUnet1d(10, 521, (128, 256, 512))
    assert unet(*inputs(2, 16, 10, 521)).shape == (2, 16, 10)
    convolutions = [module for module in unet.modules() if isinstance(module, nn.Conv1d) and module.kernel_size == (5,)]
    # Three levels down, the middle, two levels up with two blocks of two convolutions each, and the head.
    assert len(convolutions) == 4 * (3 + 1 + 2) + 1
    assert {module.num_groups for module in unet.modules() if isinstance(module, nn.GroupNorm)} == {8}


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_the_velocity_depends_on_actions_time_and_condition(changed: int) -> None:
    unet = ConditionalUnet1d(2, 5, (16, 32), time_dim=8)
    before = list(inputs())
    after = list(before)
    after[changed] = before[changed] + 0.1
    assert (unet(*before) - unet(*after)).abs().max() > 1e-5


def test_film_is_one_linear_layer_on_time_and_condition() -> None:
    unet = ConditionalUnet1d(2, 5, (16, 32, 48), time_dim=8)
    _, times, condition = inputs()
    both = th.cat([unet.time_embedding(times), condition], dim=1)
    seen = []

    def compare(block: nn.Module, given: tuple[th.Tensor, ...]) -> None:
        assert isinstance(block, ResidualBlock)
        _, time, of_condition = given
        found = of_condition + time @ block.film[1].weight[:, :8].t()
        th.testing.assert_close(found, block.film(both), rtol=1e-5, atol=1e-5)
        seen.append(block)

    for block in unet.modules():
        if isinstance(block, ResidualBlock):
            block.register_forward_pre_hook(compare)
    expected = unet(*inputs())
    assert len(seen) == 12
    th.testing.assert_close(unet(*inputs()[:2], unet.film(condition)), expected)


def test_each_row_of_a_batch_is_computed_for_itself() -> None:
    unet = ConditionalUnet1d(2, 5, (16, 32), time_dim=8)
    together = unet(*inputs())
    for row in range(3):
        alone = unet(*(x[row : row + 1] for x in inputs()))
        th.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


def test_every_weight_learns() -> None:
    unet = ConditionalUnet1d(2, 5, (16, 32, 48), time_dim=8)
    unet(*inputs()).square().sum().backward()
    for name, weight in unet.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_the_time_embedding_tells_neighbouring_levels_apart() -> None:
    levels = th.arange(1, 101) / 100
    embedded = TimeEmbedding(32)(levels)
    assert embedded.shape == (100, 32)
    distances = th.cdist(embedded, embedded) + th.eye(100)
    assert distances.min() > 1e-3


def test_an_mlp_has_gelu_between_its_layers_and_after_the_last_only_on_demand() -> None:
    plain, activated = mlp([3, 8, 8, 2]), mlp([3, 8, 2], activate_last=True)
    assert [type(layer) for layer in plain] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert [type(layer) for layer in activated] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU]
    assert plain(th.zeros(4, 3)).shape == (4, 2)
