"""Weights at the start follow from torch's random numbers alone: `torch.manual_seed` before building settles them."""

import pytest
import torch

import vsc_pyro as vsc

SHAPE, J = (1, 8, 8), 4


def spike_slab():
    return vsc.SpikeSlabEncoder(SHAPE, J, (8,))


def normal():
    return vsc.NormalEncoder(SHAPE, J, (8,))


def bernoulli():
    return vsc.BernoulliDecoder(J, SHAPE, (8,))


def of_encoder(encoder, prior=vsc.NormalPrior):
    return lambda: vsc.VAE(encoder(), bernoulli(), prior(J))


def of_decoder(decoder):
    return lambda: vsc.VAE(spike_slab(), decoder(), vsc.SpikeSlabPrior(J))


def of_prior(prior, encoder=normal):
    return lambda: vsc.VAE(encoder(), bernoulli(), prior())


def of_pseudo_inputs():
    encoder = spike_slab()
    return vsc.VAE(encoder, bernoulli(), vsc.PseudoInputPrior(encoder, 3, hidden=(8,)))


def of_trunks():
    encoder = vsc.SpikeSlabEncoder(SHAPE, J, trunk=vsc.ConvTrunk(SHAPE, (4, 6), 10))
    decoder = vsc.NormalDecoder(J, SHAPE, trunk=vsc.DeconvTrunk(SHAPE, (6, 4), 10), variance="per-pixel")
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(J))


def of_counts(decoder):
    encoder = vsc.SpikeSlabEncoder(SHAPE, J, trunk=vsc.CountTrunk(64, 10))
    return vsc.VAE(encoder, decoder(J, 64, (8,)), vsc.SpikeSlabPrior(J))


MODELS = {
    "NormalEncoder": of_encoder(normal),
    "LaplaceEncoder": of_encoder(lambda: vsc.LaplaceEncoder(SHAPE, J, (8,)), vsc.LaplacePrior),
    "CauchyEncoder": lambda: vsc.VAE(
        vsc.CauchyEncoder(SHAPE, J, (8,)), vsc.BernoulliDecoder(J, SHAPE, (8,), "tanh"), vsc.CauchyPrior(J)
    ),
    "DeltaEncoder": of_encoder(lambda: vsc.DeltaEncoder(SHAPE, J, (8,)), vsc.FlatPrior),
    "SpikeSlabEncoder": of_encoder(spike_slab, vsc.SpikeSlabPrior),
    "ThresholdEncoder": of_encoder(lambda: vsc.ThresholdEncoder(SHAPE, J, (8,)), vsc.SpikeSlabPrior),
    "JumpReLUEncoder": of_encoder(lambda: vsc.JumpReLUEncoder(SHAPE, J), vsc.SpikeSlabPrior),
    "SparseDictionary": lambda: vsc.SparseDictionary(SHAPE, J, expected_active=2),
    "BernoulliDecoder": of_decoder(bernoulli),
    "ContinuousBernoulliDecoder": of_decoder(lambda: vsc.ContinuousBernoulliDecoder(J, SHAPE, (8,))),
    "NormalDecoder": of_decoder(lambda: vsc.NormalDecoder(J, SHAPE, (8,))),
    "NormalDecoder, linear": of_decoder(lambda: vsc.NormalDecoder(J, SHAPE, (), variance="shared")),
    "PoissonDecoder": lambda: of_counts(vsc.PoissonDecoder),
    "NegativeBinomialDecoder": lambda: of_counts(vsc.NegativeBinomialDecoder),
    "NormalMixturePrior": of_prior(lambda: vsc.NormalMixturePrior(J)),
    "SpikeSlabPrior, learned": of_prior(lambda: vsc.SpikeSlabPrior(J, learn_inclusion=True), spike_slab),
    "SpikeSlabPrior, hyperprior": of_prior(
        lambda: vsc.SpikeSlabPrior(J, learn_inclusion="global", hyperprior=(1, 9)), spike_slab
    ),
    "PseudoInputPrior": of_pseudo_inputs,
    "trunks": of_trunks,
    "VSC": lambda: vsc.VSC(SHAPE, J, num_pseudo_inputs=3, hidden=(8,)),
}


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
    parts = [name for name in vsc.__all__ if name.endswith(("Encoder", "Decoder", "Prior"))]
    models = {type(module).__name__ for make in MODELS.values() for module in make().modules()}
    assert set(parts) - models == {"Prior"}
    assert {"ConvTrunk", "CountTrunk", "DeconvTrunk"} <= models


def test_joining_the_parts_draws_nothing():
    encoder, decoder, prior = spike_slab(), bernoulli(), vsc.SpikeSlabPrior(J)
    state = torch.get_rng_state()
    vsc.VAE(encoder, decoder, prior)
    assert torch.equal(torch.get_rng_state(), state)
