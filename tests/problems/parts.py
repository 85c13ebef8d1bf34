"""A small model of every part of the library: encoders, decoders, priors and trunks."""

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


def of_gated_trunks():
    encoder = vsc.SpikeSlabEncoder(SHAPE, J, trunk=vsc.GatedTrunk(64, (8, 6)))
    decoder = vsc.BernoulliDecoder(J, SHAPE, trunk=vsc.GatedTrunk(J, (6, 8), SHAPE))
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(J))


def of_counts(decoder):
    encoder = vsc.SpikeSlabEncoder(SHAPE, J, trunk=vsc.CountTrunk(64, 10))
    return vsc.VAE(encoder, decoder(J, 64, (8,)), vsc.SpikeSlabPrior(J))


def of_covariates():
    context = {"size": "given", "num_covariates": 2}
    encoder = vsc.SpikeSlabEncoder(67, J, trunk=vsc.CountTrunk(64, 10, num_covariates=2))
    decoder = vsc.NegativeBinomialDecoder(J, 64, (8,), zero_inflated=True, dispersion="shared", **context)
    return vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(J))


def of_missing():
    encoder = vsc.SpikeSlabEncoder(SHAPE, J, trunk=vsc.MaskTrunk(64, 10))
    return vsc.VAE(encoder, bernoulli(), vsc.SpikeSlabPrior(J), missing=True)


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
    "SparseDictionary, positive": lambda: vsc.SparseDictionary(9, J, expected_active=2, slab="truncated-normal"),
    "BernoulliDecoder": of_decoder(bernoulli),
    "ContinuousBernoulliDecoder": of_decoder(lambda: vsc.ContinuousBernoulliDecoder(J, SHAPE, (8,))),
    "NormalDecoder": of_decoder(lambda: vsc.NormalDecoder(J, SHAPE, (8,))),
    "NormalDecoder, linear": of_decoder(lambda: vsc.NormalDecoder(J, SHAPE, (), variance="shared")),
    "PoissonDecoder": lambda: of_counts(vsc.PoissonDecoder),
    "NegativeBinomialDecoder": lambda: of_counts(vsc.NegativeBinomialDecoder),
    "NegativeBinomialDecoder, covariates": of_covariates,
    "missing": of_missing,
    "NormalMixturePrior": of_prior(lambda: vsc.NormalMixturePrior(J)),
    "SpikeSlabPrior, learned": of_prior(lambda: vsc.SpikeSlabPrior(J, learn_inclusion=True), spike_slab),
    "SpikeSlabPrior, hyperprior": of_prior(
        lambda: vsc.SpikeSlabPrior(J, learn_inclusion="global", hyperprior=(1, 9)), spike_slab
    ),
    "PseudoInputPrior": of_pseudo_inputs,
    "trunks": of_trunks,
    "trunks, gated": of_gated_trunks,
    "VSC": lambda: vsc.VSC(SHAPE, J, num_pseudo_inputs=3, hidden=(8,)),
}
