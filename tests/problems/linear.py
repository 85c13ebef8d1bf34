"""A linear-Gaussian model with spikes, whose posterior is known exactly."""

import torch

import vsc_pyro as vsc


def linear_model(latent_dim=5, pixels=9, variance="fixed", inclusion=0.3, overlap=1.0, noise=0.5):
    """A linear-Gaussian model with atoms of unit norm that share a direction, and 300 data of its own."""
    torch.manual_seed(0)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(pixels, latent_dim, hidden=(32,)),
        vsc.NormalDecoder(latent_dim, pixels, hidden=(), scale=noise, variance=variance),
        vsc.SpikeSlabPrior(latent_dim, inclusion),
    )
    with torch.no_grad():
        atoms = torch.randn(latent_dim, pixels) + overlap * torch.randn(pixels)
        model.decoder.dictionary.copy_(torch.nn.functional.normalize(atoms, dim=1))
        if variance == "per-pixel":
            model.decoder.amplitude.copy_(torch.linspace(0.5, 2, pixels))
        z = model.prior(None).sample((300,))
        return model, model.decoder(z).sample(), z
