import itertools

import pytest
import torch
from problems.linear import linear_model
from torch.distributions import kl_divergence

import vsc_pyro as vsc
from vsc_pyro.distributions import inclusion_logits, slab_of


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def refined(steps, damping=1.0, variance="fixed", orthogonal=False, beta=1.0, **prior):
    """A linear model whose encoder ends in updates, and data of it."""
    model, x, _ = linear_model(variance=variance, noise=0.5)
    with torch.no_grad():
        if orthogonal:
            model.decoder.dictionary.copy_(torch.linalg.qr(torch.randn(9, 5)).Q.T)
    p = vsc.SpikeSlabPrior(5, 0.3, **prior)
    encoder = vsc.RefinedEncoder(9, 5, hidden=(8,), steps=steps, damping=damping, slab=p.slab)
    return vsc.VAE(encoder, model.decoder, p, beta), x[:50]


def bound(model, x, q=None):
    """The objective of each datum in closed form, of the encoder's posterior or another."""
    q = model.encoder(x) if q is None else q
    likelihood = model.decoder(q.mean)
    divergence = kl_divergence(q, model.prior(x).expand(q.batch_shape))
    return likelihood.expected_log_prob(x, q.variance) - model.beta * divergence


def test_one_update_is_the_exact_posterior_of_an_orthogonal_dictionary():
    model, x = refined(1, orthogonal=True)
    exact = vsc.exact_posterior(model, x)
    q = model.encoder(x)
    torch.testing.assert_close(inclusion_logits(q).sigmoid(), exact.inclusion)
    torch.testing.assert_close(q.mean, exact.mean)
    torch.testing.assert_close(q.variance, exact.variance)
    torch.testing.assert_close(bound(model, x), exact.log_evidence)


@pytest.mark.parametrize(
    ("prior", "variance"),
    [
        ({}, "fixed"),
        ({}, "per-pixel"),
        ({"learn_slab": True, "slab_loc": 1.0, "slab_scale": 0.5}, "fixed"),
        ({"learn_slab": True, "slab_loc": 1.0, "slab_scale": 0.5}, "per-pixel"),
        ({"slab": "truncated-normal", "slab_loc": 0.3}, "per-pixel"),  # takes ten times as long as the others
        ({"slab_loc": 1.0, "beta": 1.5}, "fixed"),
        ({"slab_loc": 1.0, "beta": 1.5}, "per-pixel"),
    ],
)
def test_small_updates_raise_the_mean_bound_until_it_is_stationary(prior, variance):
    models = [refined(steps, 0.05, variance, **prior)[0] for steps in (1, 2, 4, 4000)]
    x = refined(1)[1]
    for model in models:
        weights = models[0].encoder.state_dict() | {"damping": model.encoder.damping}
        model.encoder.load_state_dict(weights)
    with torch.no_grad():
        start = vsc.SpikeSlabEncoder.forward(models[0].encoder, x)
        bounds = [bound(models[0], x, start), *(bound(model, x) for model in models)]
        q = models[-1].encoder(x)
    means = [of_data.mean() for of_data in bounds]
    assert all(after > before for before, after in itertools.pairwise(means))
    assert (bounds[-1] > bounds[0]).all()
    slab = slab_of(q)
    parameters = [t.requires_grad_() for t in (inclusion_logits(q), slab.loc, slab.scale)]
    q = vsc.SpikeSlab(type(slab)(*parameters[1:]), logits=parameters[0]).to_event(1)
    for gradient in torch.autograd.grad(bound(models[-1], x, q).sum(), parameters):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-8, rtol=0)


@pytest.mark.parametrize("variance", ["fixed", "per-pixel"])
def test_an_update_that_would_overshoot_stops_near_the_error_of_a_code_of_zeros(variance):
    torch.manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(9), dim=0)
    decoder = vsc.NormalDecoder(40, 9, hidden=(), scale=0.5, variance=variance)
    encoder = vsc.RefinedEncoder(9, 40, hidden=(8,), damping=1.0)
    model = vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(40, 1 - 1e-12, slab_loc=1.0))  # all latents are always on
    with torch.no_grad():
        decoder.dictionary.copy_(direction + 0.01 * torch.randn(40, 9))  # and explain the same part
        decoder.own_layer.bias.zero_()
        encoder.own_layer.weight.zero_()
        encoder.own_layer.bias[:40] = 2.0  # the code that is updated explains 80 in that direction
        if variance == "per-pixel":
            decoder.amplitude.copy_(torch.rand(9) + 0.5)
    x = torch.tensor([[1.0], [30.0], [100.0], [1e8]]) * direction  # the last two are nearer to it than to zero

    def error(difference):
        return (difference / decoder(torch.zeros(1, 40)).base_dist.scale).square().sum(1)

    before = error(x - decoder(vsc.SpikeSlabEncoder.forward(encoder, x).mean).mean)
    largest = torch.maximum(before, error(x)) + 9  # noise makes an error of one for each of nine pixels
    posterior = encoder(x)
    torch.testing.assert_close(
        error(x - decoder(posterior.mean).mean), largest, rtol=1e-4, atol=0
    )  # all would overshoot
    scale = slab_of(posterior).scale
    assert torch.equal(scale, scale[:1].expand_as(scale))
    for gradient in torch.autograd.grad(bound(model, x[:3]).sum(), model.parameters(), allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


def test_codes_of_outliers_are_finite():
    torch.manual_seed(0)
    model = vsc.SparseDictionary(64, 256, expected_active=3, noise=0.3).float()
    x = vsc.datasets.features(512, 64).sample(300).images
    vsc.fit(model, x, objective="exact", steps=100, progress=False)
    with torch.no_grad():
        for factor in (1e3, 1e9, 1e12):
            assert model.encoder(x[:50] * factor).mean.isfinite().all()


@pytest.mark.parametrize("variance", ["shared", "per-pixel"])
def test_gradients_pass_through_the_updates(variance):
    model, x = refined(2, 0.3, variance, learn_inclusion=True, learn_slab=True, slab_loc=1.0)
    elbo = vsc.ExactELBO(max_plate_nesting=1)
    elbo.loss_and_grads(model.model, model.guide, x)
    for name, parameter in model.named_parameters():
        values, step = parameter.detach().view(-1), 1e-6
        for index in {0, len(values) // 2, len(values) - 1}:
            before, losses = float(values[index]), []
            for sign in (1, -1):
                values[index] = before + sign * step
                losses.append(elbo.loss(model.model, model.guide, x))
            values[index] = before
            expected = (losses[0] - losses[1]) / (2 * step)
            assert parameter.grad.view(-1)[index].item() == pytest.approx(expected, rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_gradients_do_not_depend_on_the_unit_of_data(unit):
    gradients = []
    for factor in (1.0, unit):
        torch.manual_seed(0)
        model = vsc.SparseDictionary(6, 8, expected_active=2).float()
        x = factor * torch.randn(50, 6, dtype=torch.float32)
        model.prepare(x)
        vsc.ExactELBO(max_plate_nesting=1).loss_and_grads(model.model, model.guide, x)
        gradients.append([parameter.grad for parameter in model.parameters()])
    for found, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_parameters_of_decoder_and_prior_are_registered_once():
    model, _ = refined(1)
    names = [name for name in model.state_dict() if name.startswith("encoder.")]
    assert names
    assert not any("decoder" in name or "prior" in name for name in names)


def test_other_models_are_refused():
    decoder, prior = vsc.NormalDecoder(2, 6, hidden=()), vsc.SpikeSlabPrior(2)
    for bad in ({"steps": 0}, {"damping": 0.0}, {"damping": 1.5}, {"damping": None}, {"slab": "laplace"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            vsc.RefinedEncoder(6, 2, **bad)
    for parts, reason in (
        ({"decoder": vsc.NormalDecoder(2, 6), "prior": prior}, "need a linear decoder"),
        ({"decoder": decoder, "prior": vsc.NormalPrior(2)}, "need a spike-and-slab prior"),
        ({"decoder": decoder, "prior": vsc.SpikeSlabPrior(2, slab="laplace")}, "got slabs of Laplace"),
    ):
        with pytest.raises(ValueError, match=reason):
            vsc.VAE(vsc.RefinedEncoder(6, 2), **parts)
