"""Models of sparse sums of positive features, as sparse autoencoders are trained on."""

import torch
from torch.nn.functional import normalize

import vsc_pyro as vsc

D, J = 6, 9


def data(num=400):
    """Sparse sums of positive features, far from the origin, in units of their own."""
    random = torch.Generator().manual_seed(0)
    atoms = normalize(torch.randn(J, D, generator=random))
    on = torch.rand(num, J, generator=random) < 0.2
    values = on * (1 + torch.randn(num, J, generator=random).abs())
    return 50 + 7 * (values @ atoms + 0.1 * torch.randn(num, D, generator=random))


def built(encoder, prior=None, shape=D, **decoder):
    """A model whose parts have seen data and whose parameters are random, with atoms of different norms."""
    decoder = vsc.NormalDecoder(J, shape, hidden=(), **decoder)
    model = vsc.VAE(encoder, decoder, prior or vsc.SpikeSlabPrior(J, 0.3, learn_slab=True))
    model.prepare(data().reshape(-1, *encoder.input_shape))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
        decoder.own_layer.weight.mul_(torch.linspace(0.3, 3, J))
    return model


def slab_prior(slab):
    return vsc.SpikeSlabPrior(J, 0.3, slab=slab, learn_slab=True)


def posterior(model, x):
    with model.evaluating():
        return model.encoder(x.reshape(-1, *model.encoder.input_shape))
