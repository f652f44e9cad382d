import json
from pathlib import Path

import numpy as np
import pytest
import torch as th

from zprl_sb3.diffusion import Diffusion

GOLDEN = np.load(Path(__file__).parent / "adapters" / "fixtures" / "diffusion" / "chains.npz")
CASES = json.loads(str(GOLDEN["cases"]))


def network(x, t):
    """What made the chains, see make_diffusion.py."""
    return th.sin(2 * x + 0.03 * t.to(x.dtype)[:, None, None]) + 0.3 * x


def golden_noise(index, sampler, dtype=th.float64):
    """In our order: batch first."""
    noise = th.as_tensor(GOLDEN[f"{index}_noise"], dtype=dtype)
    return noise[0] if sampler == "ddim" else noise.transpose(0, 1)


@pytest.mark.parametrize("index", range(len(CASES)))
def test_every_step_is_that_of_diffusers(index):
    sampler, steps, settings = CASES[index]
    diffusion = Diffusion.of(settings, sampler, steps)
    seen = []

    def recorded(x, t):
        seen.append(x)
        return network(x, t)

    noise = golden_noise(index, sampler)
    assert noise.shape[1:] == diffusion.noise_shape(*noise.shape[-2:])
    seen.append(diffusion.sample(recorded, noise))
    expected = GOLDEN[f"{index}_chain"]
    assert len(seen) == len(expected) == steps + 1
    np.testing.assert_allclose(th.stack(seen), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("index", range(len(CASES)))
def test_in_single_precision_too(index):
    sampler, steps, settings = CASES[index]
    last = Diffusion.of(settings, sampler, steps).sample(network, golden_noise(index, sampler, th.float32))
    np.testing.assert_allclose(last, GOLDEN[f"{index}_chain32"], atol=1e-5)


@pytest.mark.parametrize("index", range(len(CASES)))
def test_the_loss_is_that_of_training(index):
    sampler, steps, settings = CASES[index]
    diffusion = Diffusion.of(settings, sampler, steps)
    noise = golden_noise(index, sampler)
    actions = th.as_tensor(GOLDEN[f"{index}_noise"][0]).tanh()
    times = th.tensor([1 / diffusion.num_train_timesteps, 1.0])

    def checked(x, t):
        assert t.tolist() == [0, diffusion.num_train_timesteps - 1]
        np.testing.assert_allclose(x, GOLDEN[f"{index}_noisy"], atol=1e-6)
        return th.as_tensor(GOLDEN[f"{index}_target"]) + 0.5

    assert float(diffusion.loss(checked, actions, noise, times)) == pytest.approx(0.25, abs=1e-5)


def test_gradients_pass_through_every_step():
    condition = th.zeros(2, 4, 3, requires_grad=True)
    noise = th.randn(2, 4, 3, generator=th.Generator().manual_seed(0))
    diffusion = Diffusion("ddim", 5, 100, prediction_type="sample", clip_sample=False)
    diffusion.sample(lambda x, t: 0.5 * x + condition, noise).sum().backward()
    assert (condition.grad > 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"beta_schedule": "sigmoid"},
            "beta_schedule is one of squaredcos_cap_v2, linear, scaled_linear, not 'sigmoid'",
        ),
        ({"thresholding": True}, "thresholding=True is not supported"),
        ({"variance_type": "learned"}, "variance_type='learned' is not supported"),
        ({"mystery": 1}, "mystery=1 is not supported"),
        ({"num_train_timesteps": 10}, "trained with 10 steps cannot be sampled in 20"),
        ({"num_train_timesteps": 20, "steps_offset": 1}, "beyond the 20 steps"),
    ],
)
def test_other_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Diffusion.of(settings, "ddim", 20)


def test_without_a_number_it_is_sampled_in_all_steps():
    assert Diffusion.of({"num_train_timesteps": 50, "variance_type": "fixed_small"}, "ddpm").steps == [
        *range(49, -1, -1)
    ]


@pytest.mark.parametrize("count", [3, 29, 58, 97])
def test_trailing_steps_are_as_many_as_asked_for(count):
    """Rounding makes one more of some numbers, at t = -1."""
    times = Diffusion("ddim", count, 100, timestep_spacing="trailing").steps
    assert len(set(times)) == count
    assert times == sorted(times, reverse=True)
    assert (times[0], times[-1] >= 0) == (99, True)
