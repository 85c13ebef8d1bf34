"""Covariates and given sizes: bounds of p(x | c), values that are missing beside them, and everything made of them."""

import numpy as np
import pytest
import torch
from conftest import Z_BOUND, assert_mean_equals
from matplotlib.figure import Figure
from pyro.distributions import MultivariateNormal, Normal, Poisson
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro.distributions import given, is_bernoulli, noise_scale
from vsc_pyro.evaluation.survey import survey

QUIET = {"progress": False, "compile": False}
D, K, J = 6, 2, 3
EFFECTS = torch.tensor([[1.5, -1.0], [0.0, 2.0], [-2.0, 0.5], [1.0, 1.0], [0.3, 0.0], [0.0, -0.7]]).double()
DECODERS = {
    "linear": (vsc.NormalDecoder, ()),
    "normal": (vsc.NormalDecoder, (16,)),
    "bernoulli": (vsc.BernoulliDecoder, ()),
    "continuous": (vsc.ContinuousBernoulliDecoder, (16,)),
}


def twins(encoder=vsc.SpikeSlabEncoder):
    """A model with covariates and its data x, and the same model without them, of the data x minus their effects."""
    models = []
    for num in (K, 0):
        torch.manual_seed(0)
        decoder = vsc.NormalDecoder(J, D, (), scale=0.5, variance="shared", num_covariates=num)
        models.append(vsc.VAE(encoder(D + num, J, hidden=(8,)), decoder, vsc.SpikeSlabPrior(J, 0.4)).double())
    model, plain = models
    with torch.no_grad():
        model.decoder.effect_weight.copy_(EFFECTS)
        model.decoder.own_layer.load_state_dict(plain.decoder.own_layer.state_dict())
        own, other = (part.encoder.state_dict() for part in models)
        first = "network.1.weight"
        same = {name: value for name, value in other.items() if own[name].shape == value.shape}
        seeing_no_effect = torch.cat([other[first], -other[first] @ EFFECTS], 1)
        model.encoder.load_state_dict({**own, **same, first: seeing_no_effect})
        y = plain.decoder(plain.prior(None).sample((40,)).double()).sample()
    c = torch.randn(40, K).double()
    return (model, vsc.Dataset(y + c @ EFFECTS.T, context=c).images), (plain, y)


def test_densities_and_draws_are_those_of_the_values_given_the_context():
    (model, rows), _ = twins()
    z = torch.randn(5, 1, J).double()
    likelihood, layer, scale = model.decoder(z), model.decoder.own_layer, model.decoder.scale.detach()
    mean = z @ layer.weight.T + layer.bias + rows[:, D:] @ EFFECTS.T
    torch.testing.assert_close(likelihood.log_prob(rows), Normal(mean, scale).log_prob(rows[:, :D]).sum(-1))
    own = given(likelihood, rows)
    torch.testing.assert_close(own.mean, torch.cat([mean, rows[:, D:].expand(5, -1, K)], -1))
    drawn = own.sample((2,))
    assert torch.equal(drawn[..., D:], rows[:, D:].expand(2, 5, 40, K))
    assert likelihood.expand((5, 40)).sample().shape == (5, 40, D + K)
    assert not is_bernoulli(likelihood)
    assert torch.equal(noise_scale(likelihood).unique(), scale.reshape(1))
    assert is_bernoulli(vsc.BernoulliDecoder(J, D, num_covariates=K)(z.float()))


@pytest.mark.parametrize("encoder", [vsc.SpikeSlabEncoder, vsc.RefinedEncoder])
def test_a_model_of_data_with_effects_is_that_of_data_without_them(encoder):
    pairs = twins(encoder)
    for objective in (vsc.ExactELBO, vsc.NestedELBO, vsc.AnalyticELBO):
        found = []
        for model, x in pairs:
            torch.manual_seed(1)
            loss = objective(max_plate_nesting=1).differentiable_loss(model.model, model.guide, x)
            found.append((loss, torch.autograd.grad(loss, [*model.decoder.network.parameters()])))
        torch.testing.assert_close(*found)
    found, expected = (vsc.exact_posterior(*pair) for pair in pairs)
    torch.testing.assert_close(found.log_evidence, expected.log_evidence)
    torch.testing.assert_close(found.mean, expected.mean)
    found, expected = (vsc.bounds(*pair, num_draws=20, compile=False) for pair in pairs)
    torch.testing.assert_close(found.elbo, expected.elbo)
    torch.testing.assert_close(found.iwae, expected.iwae)
    found, expected = (survey(model, vsc.Dataset(x)) for model, x in pairs)
    for figure in ("r2", "hard_r2", "residual", "noise", "baseline"):
        assert getattr(found, figure) == pytest.approx(getattr(expected, figure))
    holes = torch.rand(40, D, generator=torch.Generator().manual_seed(0)) < 0.3
    for _, x in pairs:
        x[:, :D][holes] = torch.nan
    found, expected = (vsc.impute(*pair, num_samples=3, num_steps=20) for pair in pairs)
    torch.testing.assert_close(found.codes, expected.codes)
    context = pairs[0][1][:, D:]
    torch.testing.assert_close(found.samples[..., :D], expected.samples + context @ EFFECTS.T)
    torch.testing.assert_close(found.mean[:, :D], expected.mean + context @ EFFECTS.T)
    assert torch.equal(found.samples[..., D:], context.expand(3, 40, K))


class ExactEncoder(nn.Module):
    """The true posterior of a linear Gaussian model with covariates."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = [decoder]

    def forward(self, x):
        (decoder,) = self.decoder
        atoms, scale = decoder.dictionary, decoder.scale
        precision = torch.eye(J).to(x) + atoms @ atoms.T / scale**2
        values = x[:, :D] - x[:, D:] @ decoder.effects.T - decoder.unit * decoder.own_layer.bias
        mean = torch.linalg.solve(precision, atoms @ values.T / scale**2).T
        return MultivariateNormal(mean, precision_matrix=precision.expand(len(x), J, J))


def factors_and_batches(num, seed):
    """Gaussian factors of 6 values, with a batch that shifts them, and the log-evidence of the truth."""
    random = torch.Generator().manual_seed(seed)
    atoms = torch.randn(J, D, generator=torch.Generator().manual_seed(5))
    batch = torch.arange(num) % 2
    values = torch.randn(num, J, generator=random) @ atoms + 0.5 * torch.randn(num, D, generator=random)
    evidence = MultivariateNormal(torch.zeros(D), atoms.T @ atoms + 0.25 * torch.eye(D)).log_prob(values)
    shifted = values + torch.eye(2)[batch] @ EFFECTS.float().T
    return vsc.Dataset(shifted, batch, context=torch.eye(2)[batch]), atoms, evidence


def evidence_of(decoder, data):
    """The log-evidence of each datum, which every weight of the true posterior is."""
    model = vsc.VAE(ExactEncoder(decoder), decoder, vsc.NormalPrior(J)).double()
    return vsc.bounds(model, data.images.double(), num_draws=3, compile=False).iwae


def test_bounds_of_the_true_posterior_are_the_evidence_without_the_effect():
    data, *_ = factors_and_batches(30, 0)
    decoder = vsc.NormalDecoder(J, D, (), num_covariates=2)
    decoder.prepare(data.images)
    decoder.effect_weight.data.normal_()
    found = evidence_of(decoder, data)
    x, atoms = data.images.double(), decoder.dictionary.flatten(1)
    covariance = atoms.T @ atoms + decoder.scale**2 * torch.eye(D).double()
    without = MultivariateNormal(decoder.unit * decoder.own_layer.bias, covariance)
    expected = without.log_prob(x[:, :D] - x[:, D:] @ decoder.effects.T).detach()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_training_finds_the_effect_and_codes_do_not_know_the_batch():
    num = 1000
    train, atoms, _ = factors_and_batches(num, 0)
    test, _, truth = factors_and_batches(num, 1)
    correlations = []
    for columns in (D, D + 2):  # without the batch, and with it as context
        torch.manual_seed(0)
        decoder = vsc.NormalDecoder(J, D, (), num_covariates=columns - D)
        model = vsc.VAE(vsc.NormalEncoder(columns, J, hidden=()), decoder, vsc.NormalPrior(J))
        vsc.fit(model, train.images[:, :columns], epochs=40, batch_size=100, lr=3e-2, **QUIET)
        code = vsc.codes(model, test.images[:, :columns]).centre
        correlations.append(float(torch.corrcoef(torch.cat([code.T, test.labels[None]]))[-1, :-1].abs().max()))
    assert correlations[1] < Z_BOUND / num**0.5 < correlations[0]
    learnt = (decoder.effects[:, 1] - decoder.effects[:, 0]).detach()
    # A difference of two batch means has this standard error.
    error = 2 * (atoms.square().sum(0) + 0.25).sqrt() / num**0.5
    assert ((learnt - (EFFECTS[:, 1] - EFFECTS[:, 0])).abs() < Z_BOUND * error).all()
    # On average, new data are less probable than under the truth, and more than under a model of both batches.
    found = evidence_of(decoder, test)
    x = test.images[:, :D]
    both = MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x)
    excess, gain = found - truth, found - both
    assert excess.mean() < Z_BOUND * excess.std() / num**0.5
    assert gain.mean() > Z_BOUND * gain.std() / num**0.5


def real(kind):
    """Breast tumours: five measurements whose context is the radius, in the form that the decoder takes."""
    x = torch.from_numpy(load_breast_cancer().data).float()[:, [0, 1, 4, 5, 8, 9]]
    x = (x - x.mean(0)) / x.std(0)
    values = {"bernoulli": (x > 0).float(), "continuous": (x / 4 + 0.5).clamp(0, 1)}.get(kind, x)[:, 1:]
    return vsc.Dataset(values, torch.from_numpy(load_breast_cancer().target), context=x[:, 0])


def model_of(kind, **settings):
    cls, hidden = DECODERS[kind]
    torch.manual_seed(0)
    decoder = cls(J, 5, hidden, num_covariates=1)
    return vsc.VAE(vsc.SpikeSlabEncoder(6, J, hidden=(16,)), decoder, vsc.SpikeSlabPrior(J, 0.4), **settings)


@pytest.mark.parametrize("kind", ["linear", "bernoulli", "continuous"])
@pytest.mark.usefixtures("unpainted")
def test_all_paths_on_a_real_table(kind, tmp_path):
    data = real(kind)
    train, test = data[:400], data[400:]
    model = model_of(kind)
    history = vsc.fit(model, train, epochs=12, batch_size=50, lr=1e-2, **QUIET)
    assert history.elbo[-1] > history.elbo[0] + 0.2
    assert model.decoder.effects.abs().min() > 0
    torch.testing.assert_close(model.decoder.typical, train.images[:, 5:].mean(0))
    result = vsc.evaluate(model, test, num_draws=10, compile=False)
    found = vsc.bounds(model, DataLoader(test, batch_size=50), num_draws=10, compile=False)
    assert float(found.elbo.mean()) == pytest.approx(result.elbo, rel=1e-5)
    assert 0 < result.r2 < 1
    some = test.images[:4]
    inference = vsc.to_arviz(model, some, 20)
    drawn = torch.from_numpy(inference["posterior_predictive"]["x"].values)
    assert torch.equal(drawn[..., 5:], some[:, 5:].expand(1, 20, 4, 1))
    assert vsc.refine(model, some, steps=3).gain.isfinite().all()
    assert vsc.linear_probe(model, train, test, num_labels=400) > 0.5
    figures = [
        plots.reconstructions(model, test, num=3),
        plots.prior_samples(model, test, num=3),
        plots.explanation(model, some[0]),
        plots.traversals(model, test, num=2),
    ]
    assert all(isinstance(figure, Figure) for figure in figures)
    again = vsc.load(model.save(tmp_path / "kept", data=train))
    assert torch.equal(again.decoder(torch.ones(1, J)).mean, model.decoder(torch.ones(1, J)).mean)
    assert "num_covariates=1" in repr(again)
    holed = some.clone()
    holed[:, 2] = torch.nan
    imputed = vsc.impute(model, holed, num_samples=4, num_steps=5)
    assert torch.equal(imputed.samples[..., [0, 1, 3, 4, 5]], some[:, [0, 1, 3, 4, 5]].expand(4, 4, 5))


@pytest.mark.parametrize("kind", ["linear", "normal"])
def test_a_code_of_nothing_explains_nothing(kind):
    data, model = real(kind), model_of(kind)
    model.prepare(data.images)
    model.decoder.effect_weight.data.normal_()
    model.decoder.own_layer.weight.data.zero_()
    assert survey(model, data).r2 == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["normal", "bernoulli"])
def test_training_leaves_missing_values_out(kind):
    data = real(kind)
    holes = torch.rand(len(data), 5, generator=torch.Generator().manual_seed(0)) < 0.3
    x = data.images.clone()
    x[:, :5][holes] = torch.nan
    model = model_of(kind, missing=True)
    history = vsc.fit(model, x, epochs=5, batch_size=50, lr=1e-2, **QUIET)
    assert history.elbo[-1] > history.elbo[0]
    with model.evaluating():
        z = torch.randn(len(x), J)
        whole = given(model.decoder(z), x).values.values.log_prob(data.images[:, :5])
        torch.testing.assert_close(model.decoder(z).log_prob(x), torch.where(holes, 0, whole).sum(1))
    assert np.isfinite(vsc.evaluate(model, x, num_draws=5, compile=False).iwae)
    assert torch.equal(model.impute(x[:3], num_samples=2, num_steps=3).samples[..., 5], x[:3, 5].expand(2, 3))


def counts_model(**settings):
    """Four counts with a given size and a covariate, of one latent."""
    torch.manual_seed(0)
    encoder = vsc.NormalEncoder(6, 1, trunk=vsc.CountTrunk(4, 8, num_covariates=1))
    decoder = vsc.PoissonDecoder(1, 4, (), size="given", num_covariates=1)
    model = vsc.VAE(encoder, decoder, vsc.NormalPrior(1), **settings)
    with torch.no_grad():
        decoder.own_layer.weight.copy_(torch.tensor([[0.8], [-0.6], [1.0], [-1.0]]))
        decoder.own_layer.bias.fill_(-2)
        decoder.effect_weight.copy_(torch.tensor([[0.5], [0.0], [1.0], [-1.0]]))
    counts = torch.tensor([[3.0, 1.0], [2.0, 9.0]])
    return model, torch.cat([counts, torch.full((2, 2), torch.nan), torch.tensor([[20.0, 0.0], [40.0, 1.0]])], 1)


def test_missing_counts_have_their_distribution_given_the_observed():
    """Against a quadrature over the code."""
    model, x = counts_model()
    chains, z = 1500, torch.linspace(-6, 6, 2001)[:, None]
    with torch.no_grad():
        rate = given(model.decoder(z[:, None]), x).mean[..., :4]
        observed = Poisson(rate[..., :2]).log_prob(x[:, :2]).sum(-1)
        weights = (observed + Normal(0.0, 1.0).log_prob(z)).softmax(0).double()
    found = vsc.impute(model, x, num_samples=chains, num_steps=60)
    assert_mean_equals(found.samples[..., 2:4].double(), (weights[..., None] * rate[..., 2:].double()).sum(0))
    assert_mean_equals(found.codes[..., 0].double(), (weights * z).sum(0))
    assert (found.acceptance > 0.1).all()


def test_training_leaves_missing_counts_out():
    model, x = counts_model(missing=True)
    z = torch.randn(2, 1)
    rate = given(model.decoder(z), x).mean[:, :2]
    torch.testing.assert_close(model.decoder(z).log_prob(x), Poisson(rate).log_prob(x[:, :2]).sum(1))
    history = vsc.fit(model, x.repeat(30, 1), epochs=3, **QUIET)
    assert np.isfinite(history.elbo).all()
    assert np.isfinite(vsc.evaluate(model, x, num_draws=5, compile=False).iwae)
    assert model.impute(x, num_samples=2, num_steps=3).samples.isfinite().all()


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"num_covariates=2 are columns .* got \(2, 3\); flatten the data"):
        vsc.NormalDecoder(J, (2, 3), num_covariates=2)
    x = real("normal").images[:9].clone()
    with pytest.raises(ValueError, match=r"data of shape \(N, 5\)"):
        vsc.evaluate(model_of("normal"), x[:, :5])
    with pytest.raises(ValueError, match=r"support of the likelihood, rows of 5 values .* got values from -5 to -0"):
        vsc.evaluate(model_of("bernoulli"), -x.abs().round())
    x[3, 5] = torch.nan
    for refuse in (
        lambda: vsc.fit(model_of("normal", missing=True), x, epochs=1, **QUIET),
        lambda: vsc.codes(model_of("normal", missing=True), x),
        lambda: vsc.impute(model_of("linear"), x),
        lambda: vsc.impute(*counts_model()[:1], torch.full((2, 6), torch.nan)),
    ):
        with pytest.raises(ValueError, match="never missing"):
            refuse()
    with pytest.raises(ValueError, match=r"NormalDecoder\(hidden=\(\)\) without covariates"):
        vsc.sae.export(model_of("linear"), "unused")
