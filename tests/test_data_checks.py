import pyro
import pyro.distributions as dist
import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro.models.data_checks import as_events, check_figure, check_finite, check_support


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


def test_the_remedy_for_a_size_is_that_of_the_data():
    model = vsc.SparseDictionary(8, 16, expected_active=2)
    with pytest.raises(
        ValueError, match=r"\(N, 4, 8\): it takes data of shape \(8,\); pass x.flatten\(0, 1\), one row"
    ):
        model.check_data(torch.rand(5, 4, 8))
    with pytest.raises(ValueError, match=r"\(N, 7\): .*; build the model with the shape of one datum, 7"):
        model.check_data(torch.rand(5, 7))


@pytest.mark.parametrize(
    ("build", "advised"),
    [
        (lambda: vsc.VAE(vsc.SpikeSlabEncoder(8, 2), vsc.NormalDecoder(2, 8), vsc.SpikeSlabPrior(2)), True),
        (lambda: vsc.VAE(vsc.RefinedEncoder(8, 2), vsc.NormalDecoder(2, 8, ()), vsc.SpikeSlabPrior(2)), False),
        (lambda: vsc.SparseDictionary(8, 16, refine_steps=0), False),
    ],
)
def test_missing_values_are_for_models_that_take_them(build, advised):
    with pytest.raises(ValueError, match="in datum 0; remove these data") as caught:
        build().check_data(torch.full((5, 8), torch.nan))
    assert ("missing=True" in str(caught.value)) == advised


def test_data_beyond_the_first_chunk_are_looked_at(monkeypatch):
    monkeypatch.setattr("vsc_pyro.models.data_checks._ROWS_AT_ONCE", 10)
    likelihood = dist.Bernoulli(0.5 * torch.ones(1, 3)).to_event(1)
    x = torch.rand(25, 3)
    check_support(torch.tensor([[0.5, 1.5, 2.5]]), dist.Uniform(torch.zeros(3), torch.arange(1.0, 4)).to_event(1), x)
    check_finite(x, torch.float32)
    check_support(x.round(), likelihood, x)
    x[[13, 24], [0, 1]] = torch.tensor([torch.inf, torch.nan])
    with pytest.raises(ValueError, match=r"data holds 2 NaN or infinite values .* the first of them in datum 13"):
        check_finite(x, torch.float32)
    x[[13, 24], [0, 1]] = torch.tensor([0.5, 2.0])
    with pytest.raises(ValueError, match=r"support of the likelihood, .*, got values from 0\.\d+ to 2; rescale them"):
        check_support(x, likelihood, x)


@pytest.mark.parametrize(
    ("likelihood", "good", "bad"),
    [
        (dist.Bernoulli(torch.tensor(0.5)), [0.0, 1.0], [-1.0, 0.3, torch.nan]),
        (dist.ContinuousBernoulli(torch.tensor(0.5)), [0.0, 0.3, 1.0], [-0.1, 1.1, torch.nan]),
        (dist.Normal(0.0, 1.0), [-9.0, 0.0, 9.0], [torch.nan]),
        (dist.Gamma(1.0, 1.0), [0.1, 7.0], [-1.0]),
        (dist.Poisson(1.0), [0.0, 1.0, 3.0], [0.5, -1.0]),
        (dist.Categorical(torch.ones(3)), [0.0, 1.0, 2.0], [1.5, 3.0]),
        (dist.Uniform(torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])), [0.5, 0.9], [1.5, -0.1, 4.0]),
    ],
)
def test_supports_of_all_kinds(likelihood, good, bad):
    likelihood = likelihood.expand((1, 3)).to_event(1)
    for value in good:
        check_support(torch.full((5, 3), value), likelihood, torch.empty(0))
    for value in bad:
        x = torch.full((5, 3), good[0])
        x[4, 0] = value
        with pytest.raises(ValueError, match="data must lie in the support of the likelihood"):
            check_support(x, likelihood, torch.empty(0))


def test_a_figure_is_of_a_datum():
    values = torch.zeros(4, 2, 2)
    check_figure("code", values)
    values[2, 1, 0], values[3, 0, 0] = -torch.inf, torch.nan
    with pytest.raises(ValueError, match=r"the code of datum 2 is -inf \(2 of 4 data are not finite\); rescale"):
        check_figure("code", values)


def huge():
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(6, 3, hidden=(8,)), vsc.NormalDecoder(3, 6, hidden=(8,)), vsc.SpikeSlabPrior(3)
    )
    x = torch.rand(5, 6)
    x[3, 2] = 1e30
    return model, x


def diverged():
    model, _ = huge()
    with torch.no_grad():
        model.encoder.network[-1].bias.fill_(torch.nan)
    return model


@pytest.mark.parametrize(
    ("infer", "message"),
    [
        (lambda model, x: vsc.refine(model, x, steps=2), "the bound of datum 3 is"),
        (lambda model, x: vsc.elpd(vsc.to_arviz(model, x, num_samples=3)), "log predictive density of datum 3 is"),
        (lambda model, x: vsc.check_calibration(diverged(), num_data=5), "inclusion probability of datum 0 is nan"),
    ],
)
def test_who_infers_says_whose_figures_are_not_finite(infer, message):
    model, x = huge()
    with pyro.validation_enabled(False), pytest.raises(ValueError, match=message):  # which would speak of parameters
        infer(model, x)
