"""Parts of a model that are none, or that return something else than one distribution for each datum and draw."""

import pyro.distributions as dist
import pytest
import torch

import vsc_pyro as vsc


class Decoder(torch.nn.Module):
    """Return `likelihood` of a linear map of the codes."""

    def __init__(self, likelihood):
        super().__init__()
        self.map = torch.nn.Linear(3, 6)
        self.likelihood = likelihood

    def forward(self, z):
        return self.likelihood(self.map, z)


def with_decoder(likelihood):
    return vsc.VAE(vsc.NormalEncoder(6, 3), Decoder(likelihood), vsc.NormalPrior(3))


def normal(mean, num=1):
    return dist.Normal(mean, 1.0).to_event(num)


def test_a_decoder_may_take_codes_of_any_batch_shape():
    model = with_decoder(lambda layer, z: normal(layer(z)))
    assert vsc.evaluate(model, torch.rand(4, 6), num_draws=3).elbo < 0


BAD = {
    "too many event dimensions": (lambda layer, z: normal(layer(z), 2), r"let \.to_event\(\) take those of one datum"),
    "no batch": (lambda layer, z: normal(torch.zeros(6)), r"batch_shape \(1,\) for z .* got batch_shape \(\)"),
    "draws flattened": (lambda layer, z: normal(layer(z.reshape(-1, 3))), r"batch_shape \(2, 1\) for z .*got .*\(2,\)"),
    "no draws": (
        lambda layer, z: normal(layer(z.view(1, 3))),
        r"the decoder must take codes of shape \(\*, J\), .* and refuses \(2, 1, 3\)",
    ),
    "no distribution": (lambda layer, z: layer(z), "the decoder must return a Pyro distribution, got torch.Tensor"),
}


@pytest.mark.parametrize("kind", BAD)
def test_decoders_of_another_shape_are_refused_at_construction(kind):
    likelihood, message = BAD[kind]
    with pytest.raises(ValueError, match=message):
        with_decoder(likelihood)


def test_an_encoder_without_a_batch_is_refused():
    class Encoder(torch.nn.Module):
        def forward(self, x):
            return normal(x[0, :3])

    model = vsc.VAE(Encoder(), vsc.NormalDecoder(3, 6), vsc.NormalPrior(3))
    with pytest.raises(ValueError, match=r"the encoder must return a distribution of batch_shape \(1,\) for x"):
        vsc.encode(model, torch.rand(4, 6))


@pytest.mark.parametrize("part", [None, "normal", vsc.NormalPrior, lambda x: normal(torch.zeros(3))])
@pytest.mark.parametrize("place", range(3))
def test_parts_must_be_modules(part, place):
    parts = [vsc.NormalEncoder(6, 3), vsc.NormalDecoder(3, 6), vsc.NormalPrior(3)]
    parts[place] = part
    with pytest.raises(ValueError, match=rf"{('encoder', 'decoder', 'prior')[place]} must be a torch\.nn\.Module"):
        vsc.VAE(*parts)
