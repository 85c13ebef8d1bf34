"""Weights at the start follow from torch's random numbers alone: `torch.manual_seed` before building settles them."""

import pytest
import torch
from problems.parts import MODELS, J, bernoulli, spike_slab

import vsc_pyro as vsc


def built(make, seed):
    torch.manual_seed(seed)
    return make().state_dict()


@pytest.mark.filterwarnings("ignore:no closed-form KL")
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_seed_settles_all_weights(make):
    first = built(make, 3)
    torch.rand(7)
    second, other = built(make, 3), built(make, 4)
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_every_part_has_a_row():
    parts = [name for name in vsc.__all__ if name.endswith(("Encoder", "Decoder", "Prior", "Trunk"))]
    models = {type(module).__name__ for make in MODELS.values() for module in make().modules()}
    assert set(parts) - models == {"Prior"}


def test_joining_the_parts_draws_nothing():
    encoder, decoder, prior = spike_slab(), bernoulli(), vsc.SpikeSlabPrior(J)
    state = torch.get_rng_state()
    vsc.VAE(encoder, decoder, prior)
    assert torch.equal(torch.get_rng_state(), state)
