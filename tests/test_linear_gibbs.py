import pytest
import torch
from conftest import Z_BOUND
from problems.linear import linear_model

import vsc_pyro as vsc
from vsc_pyro.inference.linear_exact import exact_posterior
from vsc_pyro.inference.linear_gibbs import gibbs_posterior


@pytest.mark.parametrize("block_size", [1, 3])
def test_agrees_with_enumeration(block_size):
    model, x, _ = linear_model(7, 10)
    truth = exact_posterior(model, x[:30])
    found = gibbs_posterior(model, x[:30], num_samples=600, burn_in=50, block_size=block_size)
    # 80 batches of sweeps make the tails of Student's t a little longer than the normal's.
    z = (found.inclusion - truth.inclusion) / found.inclusion_error
    assert z.abs().max() < Z_BOUND + 1
    assert 0.8 < z.std() < 1.25  # the standard errors are what they say
    assert found.inclusion_error.mean() < 0.015
    assert (found.mean - truth.mean).abs().max() < 0.15
    assert found.r_hat.max() < 1.1
    assert found.draws.shape == (4, 60, 30, 7)
    kept = found.draws.flatten(0, 1)
    assert ((kept != 0).double().mean(0) - truth.inclusion).abs().mean() < 0.05
    assert found.sample((5,)).shape == (5, 30, 7)


def test_agrees_with_enumeration_for_slabs_away_from_zero():
    model, _, _ = linear_model(6, 10)
    model.prior = vsc.SpikeSlabPrior(6, 0.3, slab_loc=torch.linspace(-2, 3, 6), slab_scale=torch.linspace(0.1, 2, 6))
    with torch.no_grad():
        x = model.decoder(model.prior(None).sample((30,))).sample()
    truth = exact_posterior(model, x)
    found = gibbs_posterior(model, x, num_samples=600, burn_in=50)
    z = (found.inclusion - truth.inclusion) / found.inclusion_error.clamp(min=1e-6)
    assert z.abs().max() < Z_BOUND + 1
    assert (found.mean - truth.mean).abs().max() < 0.15


def test_agrees_with_the_closed_form_of_an_orthogonal_dictionary_of_30_atoms():
    model, x, _ = linear_model(30, 40, inclusion=0.2)
    with torch.no_grad():
        lengths = torch.linspace(0.5, 2, 30)
        model.decoder.dictionary.copy_(lengths.unsqueeze(1) * torch.linalg.qr(torch.randn(40, 30))[0].T)
        x = model.decoder(model.prior(None).sample((100,))).sample()
        h = (x - model.decoder.network[0].bias) @ model.decoder.network[0].weight / 0.25
    precision = 1 + lengths.square() / 0.25
    inclusion = torch.sigmoid(torch.logit(torch.tensor(0.2)) - 0.5 * precision.log() + 0.5 * h.square() / precision)
    found = gibbs_posterior(model, x, num_samples=50, burn_in=2, chains=2)
    # Independent latents: each conditional is the marginal, and Rao-Blackwellised there is nothing to average.
    torch.testing.assert_close(found.inclusion.float(), inclusion, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.mean.float(), inclusion * h / precision, atol=1e-4, rtol=1e-4)
    assert (found.r_hat < 1.01).all()


def test_chains_that_have_not_mixed_are_told():
    model, x, _ = linear_model(2, 6, noise=0.01)
    with torch.no_grad():
        model.decoder.dictionary.copy_(torch.nn.functional.normalize(torch.ones(2, 6) + 0.01 * torch.eye(2, 6), dim=1))
        x = model.decoder(torch.tensor([[1.0, 0.0]]).expand(20, 2)).sample()
    start = torch.zeros(2, 20, 2)
    start[0, :, 0] = start[1, :, 1] = 1.0
    settings = {"num_samples": 100, "burn_in": 0, "chains": 2, "start": start}
    alone = gibbs_posterior(model, x, block_size=1, **settings)
    together = gibbs_posterior(model, x, block_size=2, **settings)
    truth = exact_posterior(model, x).inclusion
    assert alone.r_hat.max() > 1.5
    assert together.r_hat.max() < 1.01
    torch.testing.assert_close(together.inclusion, truth)
    assert (alone.inclusion - truth).abs().max() > 0.1


def test_seeded_chunked_and_leaves_the_callers_state(monkeypatch):
    model, x, _ = linear_model()
    settings = {"num_samples": 20, "burn_in": 5, "thin": 5}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = gibbs_posterior(model, x[:10], **settings)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(gibbs_posterior(model, x[:10], **settings).inclusion, first.inclusion)
    assert not torch.equal(gibbs_posterior(model, x[:10], seed=1, **settings).inclusion, first.inclusion)
    monkeypatch.setattr("vsc_pyro.inference.linear_gibbs.NUMBERS_AT_ONCE", 4000)
    chunked = gibbs_posterior(model, x[:10], **settings)
    assert chunked.draws.shape == first.draws.shape == (4, 4, 10, 5)
    assert not torch.equal(chunked.inclusion, first.inclusion)
    assert gibbs_posterior(model, x[:10], chains=1, **settings).r_hat.isnan().all()


def test_refuses_bad_arguments():
    model, x, _ = linear_model()
    with pytest.raises(ValueError, match=r"start must be finite codes of shape \(300, 5\), or \(4, 300, 5\)"):
        gibbs_posterior(model, x, start=torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"block_size must be at most 12, .* got 40"):
        gibbs_posterior(model, x, block_size=40)
    with pytest.raises(ValueError, match="num_samples must be at least 2"):
        gibbs_posterior(model, x, num_samples=1)
    with pytest.raises(ValueError, match="thin must be at most num_samples=5"):
        gibbs_posterior(model, x, num_samples=5)
    deep = vsc.VAE(vsc.SpikeSlabEncoder(9, 3), vsc.NormalDecoder(3, 9, hidden=(8,)), vsc.SpikeSlabPrior(3))
    with pytest.raises(ValueError, match="only a linear decoder"):
        gibbs_posterior(deep, x)
