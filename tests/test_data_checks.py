import pyro.distributions as dist
import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro.data_checks import as_events, check_finite, check_support


def test_data_are_judged_in_the_models_precision():
    vae = vsc.VAE(vsc.NormalEncoder(4, 2), vsc.NormalDecoder(2, 4), vsc.NormalPrior(2))
    x = torch.rand(9, 4, dtype=torch.float64)
    x[7, 1] = 1e300
    with pytest.raises(ValueError, match=r"data holds 1 NaN or infinite .* torch.float32, the first .* datum 7"):
        vsc.fit(vae, x, epochs=1, progress=False)
    vae.double().check_data(x)


@pytest.mark.parametrize("fit", [(3, 8, 6), (8, 6, 3), (144,), (3, 1, 8, 6), (3, 48)])
def test_values_in_another_order_are_refused(fit):
    images = (3, 8, 6)
    vae = vsc.VAE(vsc.NormalEncoder(images, 2), vsc.NormalDecoder(2, images), vsc.NormalPrior(2))
    flat = vsc.VAE(vsc.NormalEncoder(144, 2), vsc.NormalDecoder(2, 144), vsc.NormalPrior(2))
    x = torch.rand(5, *fit)
    flat.check_data(x)
    if fit in ((8, 6, 3), (3, 48)):
        with pytest.raises(ValueError, match=r"values in another order than a decoder of shape \(3, 8, 6\) .* permute"):
            vae.check_data(x)
        half = vsc.VAE(vsc.NormalEncoder(images, 2), vsc.NormalDecoder(2, 144), vsc.NormalPrior(2))
        with pytest.raises(ValueError, match="values in another order than an encoder of shape"):
            half.check_data(x)
    else:
        vae.check_data(x)


def test_events_have_the_likelihoods_shape():
    likelihood = dist.Bernoulli(0.5 * torch.ones(1, 2, 3)).to_event(2)
    x = torch.arange(12.0).reshape(2, 6)
    assert torch.equal(as_events(x, likelihood), x.reshape(2, 2, 3))
    with pytest.raises(ValueError, match=r"data of shape \(N, 7\) do not fit a decoder of shape \(2, 3\)"):
        as_events(torch.zeros(2, 7), likelihood)
    with pytest.raises(ValueError, match=r"data of shape \(N, 3, 2\) have their values in another order"):
        as_events(torch.zeros(2, 3, 2), likelihood)


def test_data_beyond_the_first_chunk_are_looked_at(monkeypatch):
    monkeypatch.setattr("vsc_pyro.data_checks._ROWS_AT_ONCE", 10)
    likelihood = dist.Bernoulli(0.5 * torch.ones(1, 3)).to_event(1)
    x = torch.rand(25, 3)
    check_finite(x, torch.float32)
    check_support(x.round(), likelihood, x)
    x[[13, 24], [0, 1]] = torch.tensor([torch.inf, torch.nan])
    with pytest.raises(ValueError, match=r"data holds 2 NaN or infinite values .* the first of them in datum 13"):
        check_finite(x, torch.float32)
    x[[13, 24], [0, 1]] = torch.tensor([0.5, 2.0])
    with pytest.raises(ValueError, match=r"support of the likelihood, .*, got values from 0\.\d+ to 2; rescale them"):
        check_support(x, likelihood, x)
