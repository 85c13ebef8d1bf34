"""Missing values are left out of the likelihood: bounds, gradients and training are those of the observed values."""

import copy

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import vsc_pyro as vsc
from vsc_pyro.distributions import centre
from vsc_pyro.distributions.observed import Observed

D, J, SCALE = 7, 2, 0.5  # the scale has no rounding error in float32
NAN = torch.nan


def punched(x, share=0.3, seed=1):
    """The data with values missing at random, and True where they are observed."""
    observed = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) > share
    return torch.where(observed, x, NAN), observed


class ExactEncoder(torch.nn.Module):
    """The true posterior of a linear Gaussian model, given the values that are observed."""

    def __init__(self, observed, decoder):
        super().__init__()
        self.observed, self.decoder = observed, [decoder]

    def forward(self, x):
        layer = self.decoder[0].network[0]
        means, factors = [], []
        for row, observed in zip(x, self.observed, strict=False):
            atoms = layer.weight[observed]
            precision = torch.eye(J).to(x) + atoms.T @ atoms / SCALE**2
            means.append(torch.linalg.solve(precision, atoms.T @ (row - layer.bias)[observed] / SCALE**2))
            factors.append(torch.linalg.cholesky(precision.inverse()))
        return dist.MultivariateNormal(torch.stack(means), scale_tril=torch.stack(factors))


def linear(encoder, **settings):
    torch.manual_seed(0)
    decoder = vsc.NormalDecoder(J, D, hidden=(), scale=SCALE)
    return vsc.VAE(encoder(decoder), decoder, vsc.NormalPrior(J), missing=True, **settings).double()


def evidence(model, x, observed):
    layer = model.decoder.network[0]
    covariance = layer.weight @ layer.weight.T + SCALE**2 * torch.eye(D).double()
    return torch.stack(
        [
            dist.MultivariateNormal(layer.bias[on], covariance[on][:, on]).log_prob(row[on])
            if on.any()
            else torch.zeros(()).double()
            for row, on in zip(x, observed, strict=True)
        ]
    ).detach()


def test_bounds_of_the_true_posterior_are_the_evidence_of_the_observed_values():
    x, observed = punched(torch.randn(12, D).double())
    x[3], observed[3] = NAN, False  # nothing is observed of this one
    model = linear(lambda decoder: ExactEncoder(observed, decoder))
    found = vsc.bounds(model, x, num_draws=3, compile=False)
    expected = evidence(model, x, observed)
    torch.testing.assert_close(found.iwae, expected, rtol=1e-10, atol=1e-10)  # all weights are the evidence
    result = vsc.evaluate(model, x, num_draws=500, compile=False)
    assert result.iwae == pytest.approx(float(expected.mean()), abs=1e-10)
    # A datum's log-likelihood varies by about one nat between draws: 5 standard errors of 6,000 draws.
    assert result.elbo == pytest.approx(float(expected.mean()), abs=0.065)


def test_training_leaves_missing_values_out():
    torch.manual_seed(3)
    weight = torch.randn(D, J).double()
    x, observed = punched(1.0 + torch.randn(300, J).double() @ weight.T + SCALE * torch.randn(300, D).double())
    found = []
    for data in (x, torch.where(observed, x, x.nanmean(0))):
        model = linear(lambda decoder: vsc.NormalEncoder(D, J, hidden=(16,)))
        found.append(evidence(model, x, observed).mean())
        vsc.fit(model, data, epochs=60, batch_size=100, lr=1e-2, progress=False)
        found.append(evidence(model, x, observed).mean())
    start, left_out, _, filled = found
    assert left_out > start + 1
    assert left_out > filled + 0.1


@pytest.mark.parametrize("decoder", [vsc.NormalDecoder, vsc.BernoulliDecoder, vsc.ContinuousBernoulliDecoder])
@pytest.mark.parametrize("objective", ["analytic", "trace"])
def test_a_value_that_is_missing_has_no_part_in_loss_and_gradient(decoder, objective):
    x, observed = punched(torch.rand(9, D).round())

    def loss_and_gradient(fill):
        torch.manual_seed(0)
        model = vsc.VAE(
            vsc.SpikeSlabEncoder(D, J, hidden=(8,)),
            decoder(J, D, hidden=(8,)),
            vsc.SpikeSlabPrior(J),
            missing=True,
        )
        mean = torch.where(observed, x, 0).sum(0) / observed.sum(0)
        model.prepare(x)
        q = model.encoder(x if fill is None else torch.where(observed, x, mean))
        torch.manual_seed(1)
        likelihood = model.decoder(q.rsample())
        if fill is None:
            total = likelihood.log_prob(x).sum()
        else:
            filled = torch.where(observed, x, fill)
            total = torch.where(observed, likelihood.base_dist.values.log_prob(filled), 0).sum()
        parameters = [p for name, p in model.named_parameters()]
        return total, torch.autograd.grad(total, parameters, allow_unused=True)

    found, gradient = loss_and_gradient(None)
    for fill in (0.0, 1.0):
        total, expected = loss_and_gradient(fill)
        torch.testing.assert_close(found, total)
        for own, other in zip(gradient, expected, strict=True):
            torch.testing.assert_close(own, other)
    torch.manual_seed(0)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(D, J, hidden=(8,)), decoder(J, D, hidden=(8,)), vsc.SpikeSlabPrior(J), missing=True
    )
    assert np.isfinite(vsc.fit(model, x, objective=objective, epochs=2, progress=False).elbo).all()


def test_without_missing_values_nothing_changes():
    x = torch.rand(80, D)

    def run(missing):
        torch.manual_seed(0)
        model = vsc.VAE(
            vsc.SpikeSlabEncoder(D, J, hidden=(8,)),
            vsc.NormalDecoder(J, D, hidden=(8,)),
            vsc.SpikeSlabPrior(J),
            missing=missing,
        )
        elbo = vsc.fit(model, x, epochs=3, batch_size=20, progress=False).elbo
        return elbo, vsc.evaluate(model, x, num_draws=3)

    (elbo, result), (expected, other) = run(True), run(False)
    assert elbo == pytest.approx(expected, rel=1e-5)
    assert str(result) == str(other)


def test_missing_values_are_an_option_and_loud_without_it():
    x, _ = punched(torch.rand(20, D))
    model = vsc.VAE(vsc.SpikeSlabEncoder(D, J), vsc.NormalDecoder(J, D), vsc.SpikeSlabPrior(J))
    for measure in (vsc.fit, vsc.evaluate, vsc.codes):
        with pytest.raises(ValueError, match=r"data holds \d+ NaN .* build the model with VAE\(\.\.\., missing=True\)"):
            measure(model, x)
    model = vsc.VAE(vsc.SpikeSlabEncoder(D, J), vsc.NormalDecoder(J, D), vsc.SpikeSlabPrior(J), missing=True)
    x[4, 2] = torch.inf
    with pytest.raises(ValueError, match=r"data holds 1 NaN or infinite values .* in datum 4"):
        vsc.fit(model, x, epochs=1, progress=False)
    bounded = vsc.VAE(vsc.SpikeSlabEncoder(D, J), vsc.BernoulliDecoder(J, D), vsc.SpikeSlabPrior(J), missing=True)
    x[4, 2] = 2.0
    with pytest.raises(ValueError, match="data must lie in the support of the likelihood"):
        vsc.fit(bounded, x, epochs=1, progress=False)

    class Joint(torch.nn.Module):
        def forward(self, z):
            return dist.MultivariateNormal(torch.zeros(*z.shape[:-1], D), torch.eye(D))

    with pytest.raises(ValueError, match=r"values must be independent given a code, .* got MultivariateNormal"):
        vsc.VAE(vsc.SpikeSlabEncoder(D, J), Joint(), vsc.SpikeSlabPrior(J), missing=True)


def trained_on(x):
    torch.manual_seed(0)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(D, J, hidden=(8,)),
        vsc.NormalDecoder(J, D, hidden=(8,)),
        vsc.SpikeSlabPrior(J),
        missing=True,
    )
    return model, vsc.fit(model, x, epochs=2, progress=False)


def test_loaders_and_masked_arrays():
    x, observed = punched(torch.rand(40, D))
    model, history = trained_on(x)
    masked = np.ma.masked_array(torch.where(observed, x, 9.0).numpy(), ~observed.numpy())
    assert trained_on(masked.filled(np.nan))[1].elbo == history.elbo
    with pytest.raises(ValueError, match=r"under a mask, .* by \.filled\(nan\) for a model built with .*missing=True"):
        trained_on(masked)
    assert len(trained_on(DataLoader(TensorDataset(x), 10))[1].elbo) == 2
    loader = DataLoader(TensorDataset(x), 10)
    assert str(vsc.evaluate(model, loader, num_draws=3)) == str(vsc.evaluate(model, x, num_draws=3))


def test_encoders_see_the_mean_of_the_observed_values():
    x, observed = punched(5 + torch.rand(40, D))
    model, _ = trained_on(x)
    mean = torch.where(observed, x, 0).sum(0) / observed.sum(0)
    torch.testing.assert_close(model.missing.mean, mean)
    filled = torch.where(observed, x, mean)
    torch.testing.assert_close(vsc.codes(model, x).centre, vsc.codes(model, filled).centre)
    other = copy.deepcopy(model)
    other.missing.mean.fill_(-3.0)  # a copy is a model of its own
    torch.testing.assert_close(vsc.codes(model, x).centre, vsc.codes(model, filled).centre)
    assert not torch.equal(vsc.codes(other, x).centre, vsc.codes(model, x).centre)
    fresh, _ = trained_on(filled + 1)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(vsc.codes(fresh, x).centre, vsc.codes(model, x).centre)


def test_decoders_start_from_the_moments_of_the_observed_values():
    x, observed = punched(torch.randn(500, D) * 3 + 2, share=0.6)
    torch.manual_seed(0)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(D, J), vsc.NormalDecoder(J, D, scale="data"), vsc.SpikeSlabPrior(J), missing=True
    )
    model.prepare(x)
    mean = torch.where(observed, x, 0).sum(0) / observed.sum(0)
    variance = torch.where(observed, x - mean, 0).square().sum(0) / observed.sum(0)
    torch.manual_seed(0)
    whole = vsc.VAE(vsc.SpikeSlabEncoder(D, J), vsc.NormalDecoder(J, D, scale="data"), vsc.SpikeSlabPrior(J))
    whole.prepare(torch.stack([mean - variance.sqrt(), mean + variance.sqrt()]))  # the same moments
    scale, expected = (each.decoder(torch.zeros(1, J)) for each in (model, whole))
    torch.testing.assert_close(scale.base_dist.values.scale, expected.base_dist.scale)
    torch.testing.assert_close(scale.mean, expected.mean)


def test_shares_explained_are_of_the_observed_values():
    x, observed = punched(torch.randn(60, D))
    model, _ = trained_on(x)
    with model.evaluating():
        decoded = model.decoder(model.encoder(x).mean).mean
    error = torch.where(observed, x - decoded, 0).double().square().sum()
    mean = torch.where(observed, x, 0).double().sum(0) / observed.sum(0)
    total = torch.where(observed, x - mean, 0).square().sum()
    assert vsc.evaluate(model, x, num_draws=2).r2 == pytest.approx(float(1 - error / total), abs=1e-6)


def test_missing_values_are_imputed():
    x, observed = punched(torch.rand(6, D))
    model, _ = trained_on(x)
    found = model.impute(x, num_samples=4, num_steps=10)
    expected = model.impute(x, observed, num_samples=4, num_steps=10)
    assert torch.equal(found.samples, expected.samples)
    assert torch.equal(found.mean[observed], x[observed])
    assert found.samples.isfinite().all()


def test_a_prior_that_looks_at_data_sees_the_mean():
    x, observed = punched(torch.rand(60, D))
    encoder = vsc.SpikeSlabEncoder(D, J, hidden=(8,))
    model = vsc.VAE(encoder, vsc.NormalDecoder(J, D, hidden=(8,)), vsc.PseudoInputPrior(encoder, 4), missing=True)
    assert np.isfinite(vsc.fit(model, x, epochs=2, progress=False).elbo).all()
    filled = torch.where(observed, x, model.missing.mean)
    with model.evaluating():
        torch.testing.assert_close(model.prior(x).log_assignment, model.prior(filled).log_assignment)


def test_linear_models_have_no_exact_posterior():
    model = vsc.VAE(vsc.SpikeSlabEncoder(D, J), vsc.NormalDecoder(J, D, hidden=()), vsc.SpikeSlabPrior(J), missing=True)
    with pytest.raises(ValueError, match="got a model with missing=True; build it without"):
        vsc.exact_posterior(model, torch.zeros(1, D))
    with pytest.raises(ValueError, match="got a model with missing=True; build it without"):
        vsc.gibbs_posterior(model, torch.zeros(1, D))
    x, _ = punched(torch.rand(9, D))
    assert np.isfinite(vsc.fit(model, x, epochs=1, progress=False).elbo).all()  # "auto" takes no exact objective


def test_what_leaves_no_values_out_says_so():
    x, _ = punched(torch.rand(9, D))
    decoder, prior = vsc.DictionaryDecoder(J, D), vsc.SpikeSlabPrior(J)
    model = vsc.VAE(vsc.SpikeSlabEncoder(D, J), decoder, prior, missing=True)
    for objective in ("exact", "nested"):
        with pytest.raises(ValueError, match=f"objective='{objective}' leaves no values out, got .* use 'analytic'"):
            vsc.fit(model, x, objective=objective, epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"no missing values, got a likelihood of Observed; .* without missing=True"):
        vsc.VAE(vsc.RefinedEncoder(D, J), decoder, prior, missing=True)


def test_refined_and_stored_posteriors():
    x, _ = punched(torch.rand(6, D))
    model, _ = trained_on(x)
    refined = vsc.refine(model, x, steps=5)
    assert (refined.gain >= 0).all()
    inference = vsc.to_arviz(model, x, 3)
    assert bool(np.isfinite(inference["log_likelihood"]["x"].values).all())
    assert bool(np.isfinite(inference["posterior_predictive"]["x"].values).all())


def test_the_distribution_of_observed_values():
    values = dist.Gamma(torch.tensor([2.0, 3.0]), 1.5)
    p = Observed(values)
    x = torch.tensor([NAN, 0.7])
    assert p.support.check(torch.tensor([NAN, -1.0])).tolist() == [True, False]
    torch.testing.assert_close(p.log_prob(x), torch.tensor([0.0, float(values.log_prob(torch.tensor(0.7))[1])]))
    assert torch.equal(p.expand((3, 2)).log_prob(x), p.log_prob(x).expand(3, 2))
    assert torch.equal(centre(p), values.mean)
    assert torch.distributions.kl_divergence(p, p).tolist() == [0.0, 0.0]


def test_a_trunk_may_see_which_values_are_missing(tmp_path):
    torch.manual_seed(0)
    sign = torch.randn(400, 1).sign()
    x, _ = punched(sign + 0.1 * torch.randn(400, 6))
    encoder = vsc.NormalEncoder(6, 1, trunk=vsc.MaskTrunk(6, 16))
    model = vsc.VAE(encoder, vsc.NormalDecoder(1, 6, hidden=()), vsc.NormalPrior(1), missing=True)
    vsc.fit(model, x, epochs=60, lr=1e-2, device="cpu", progress=False)
    assert vsc.evaluate(model, x, num_draws=5).r2 > 0.9
    with torch.no_grad():
        codes, filled = (model.encoder(data).mean for data in (x, model.missing.filled(x)))
        assert model.encoder(torch.full((1, 6), NAN)).mean.isfinite().all()
    changed, punctured = (codes != filled).flatten(), x.isnan().any(1)
    assert torch.equal(changed, punctured)
    again = vsc.load(model.save(tmp_path / "kept"))
    assert torch.equal(again.encoder(x).mean, model.encoder(x).mean)
    assert vsc.impute(model, x[:3], num_samples=2, num_steps=2).samples.isfinite().all()
