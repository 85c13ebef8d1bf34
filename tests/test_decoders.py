import math

import numpy as np
import pytest
import torch
from conftest import assert_mean_equals
from pyro.distributions import Independent, Laplace, Normal
from torch import nn
from torch.distributions import kl_divergence

import vsc_pyro as vsc
from vsc_pyro.models.decoders import (
    BernoulliDecoder,
    ContinuousBernoulliDecoder,
    CrossEntropyBernoulli,
    NormalDecoder,
    StableContinuousBernoulli,
)
from vsc_pyro.models.networks import ConvTrunk, DeconvTrunk

DECODERS = [
    (BernoulliDecoder, {}),
    (ContinuousBernoulliDecoder, {}),
    (NormalDecoder, {}),
    (NormalDecoder, {"variance": "shared"}),
    (NormalDecoder, {"variance": "per-pixel", "scale": 0.3}),
]
LOGITS = [-1000.0, -50.0, -16.0, -3.0, -2.0, -0.61, -0.59, -0.02, -0.0041, -0.0011, -0.0009, -1e-6, 0.0]
LOGITS += [-logit for logit in LOGITS[:-1]]
VARIANCES = ["fixed", "shared", "per-pixel"]


@pytest.mark.parametrize(("cls", "options"), DECODERS)
@pytest.mark.parametrize("trunk", [False, True])
def test_likelihood_has_the_shape_of_the_data(cls, options, trunk):
    network = {"trunk": DeconvTrunk((1, 8, 8), (4, 4), 6)} if trunk else {"hidden": (16,)}
    decoder = cls(5, (1, 8, 8), **network, **options)
    z = torch.randn(3, 6, 5)
    p = decoder(z)
    assert (p.batch_shape, p.event_shape) == ((3, 6), (1, 8, 8))
    assert p.support.check(p.sample()).all()
    torch.testing.assert_close(decoder(z[2, 1]).mean, p.mean[2, 1])
    assert cls(5, 64, **options)(z[0]).event_shape == (64,)


def test_bernoulli_draws_are_binary_and_arguments_are_positional():
    p = BernoulliDecoder(5, (1, 8, 8), (16,), "tanh")(torch.randn(3, 6, 5))
    assert set(p.sample().unique().tolist()) == {0.0, 1.0}


def test_grey_levels_are_scored_by_their_cross_entropy():
    logits, x = torch.randn(50), torch.rand(50)
    expected = x * logits.sigmoid().log() + (1 - x) * (1 - logits.sigmoid()).log()
    torch.testing.assert_close(CrossEntropyBernoulli(logits=logits).log_prob(x), expected)
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="within the support"):
            CrossEntropyBernoulli(logits=logits).log_prob(torch.full((50,), bad))


@pytest.mark.parametrize("cls", [BernoulliDecoder, ContinuousBernoulliDecoder, NormalDecoder])
def test_bad_arguments(cls):
    with pytest.raises(ValueError, match="latent_dim must be"):
        cls(0, 64)
    with pytest.raises(ValueError, match="output_shape must be"):
        cls(5, (8, -8))
    with pytest.raises(ValueError, match="unknown activation 'relu6'"):
        cls(5, 64, activation="relu6", trunk=DeconvTrunk((1, 8, 8)))
    with pytest.raises(ValueError, match=r"hidden=\(400,\) are widths of the MLP that a trunk replaces"):
        cls(5, (1, 8, 8), (400,), trunk=DeconvTrunk((1, 8, 8)))


def test_trunks_that_do_not_fit():
    with pytest.raises(ValueError, match=r"to \(2, 1, 1, 9, 8\), which does not fit output_shape=\(1, 8, 8\)"):
        BernoulliDecoder(5, (1, 8, 8), trunk=DeconvTrunk((1, 9, 8)))
    with pytest.raises(ValueError, match=r"does not fit output_shape=\(8, 8, 3\)"):  # as many pixels, channels last
        BernoulliDecoder(5, (8, 8, 3), trunk=DeconvTrunk((3, 8, 8)))
    with pytest.raises(ValueError, match=r"trunk.in_features must be a whole number of at least 1, got None"):
        BernoulliDecoder(5, (1, 8, 8), trunk=ConvTrunk((1, 8, 8)))
    for body, problem in (
        (nn.Flatten(), "keep all leading dimensions"),
        (nn.Conv2d(6, 1, 1), "does not take features"),
    ):
        trunk = nn.Sequential(body, nn.Linear(6, 64))
        trunk.in_features = 6
        with pytest.raises(ValueError, match=problem):
            BernoulliDecoder(5, 64, trunk=trunk)


def test_checking_a_trunk_leaves_it_as_it_was():
    trunk = DeconvTrunk((1, 8, 8), (4, 4), 6)
    trunk.layers.append(nn.BatchNorm2d(1))
    state = {name: value.clone() for name, value in trunk.state_dict().items()}
    decoder = BernoulliDecoder(5, 64, trunk=trunk)
    assert all(module.training for module in decoder.modules())
    torch.testing.assert_close(trunk.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize(("cls", "options"), DECODERS)
def test_models_of_convolutions_train(cls, options, digits, device):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = ConvTrunk((1, 8, 8), (8, 16), 32)
            self.heads = nn.Sequential(nn.ReLU(), nn.Linear(32, 8))

        def forward(self, x):
            loc, scale = self.heads(self.trunk(x)).chunk(2, -1)
            return Normal(loc, scale.exp()).to_event(1)

    decoder = cls(4, (1, 8, 8), trunk=DeconvTrunk((1, 8, 8), (16, 8), 32), **options)
    model = vsc.VAE(Encoder(), decoder, vsc.NormalPrior(4))
    data = digits.train.images[:400]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    history = vsc.fit(model, data, epochs=4, batch_size=50, lr=3e-3, device=device, progress=False)
    assert history.elbo[-1] > history.elbo[0] + 1
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter.cpu(), before[name]), name
    assert math.isfinite(vsc.evaluate(model, digits.test, num_draws=3).iwae)


def test_linear_decoders_have_a_dictionary():
    decoder = NormalDecoder(3, (2, 4), hidden=(), scale=0.5)
    z = torch.randn(5, 6, 3)
    atoms = torch.einsum("kbj,jhw->kbhw", z, decoder.dictionary)
    torch.testing.assert_close(decoder(z).mean, atoms + decoder.network[0].bias.view(2, 4))
    with torch.no_grad():
        decoder.dictionary.div_(decoder.dictionary.flatten(1).norm(dim=1)[:, None, None])
    torch.testing.assert_close(decoder.network[0].weight.norm(dim=0), torch.ones(3))
    for other in (NormalDecoder(3, 8), NormalDecoder(3, (1, 8, 8), trunk=DeconvTrunk((1, 8, 8)))):
        with pytest.raises(ValueError, match=r"build the decoder with hidden=\(\)"):
            _ = other.dictionary


@pytest.mark.parametrize("variance", VARIANCES)
def test_linear_normal_is_the_independent_normal_that_knows_its_code(variance):
    decoder = NormalDecoder(3, (2, 4), hidden=(), variance=variance, scale=0.3)
    z = torch.randn(5, 1, 3)
    p, plain = decoder(z), Normal(decoder.pixels(z), decoder.scale).to_event(2)
    x, v = torch.randn(5, 6, 2, 4), torch.rand(5, 1, 3)
    wide, plain_wide = p.expand((5, 6)), plain.expand((5, 6))
    for own, other in ((p, plain), (wide, plain_wide), (p.to_event(1), plain.to_event(1))):
        assert (own.batch_shape, own.event_shape) == (other.batch_shape, other.event_shape)
        assert (own.support.event_dim, own.has_rsample) == (other.support.event_dim, True)
        for name in ("mean", "variance", "stddev"):
            assert torch.equal(getattr(own, name), getattr(other, name))
        assert torch.equal(own.log_prob(x), other.log_prob(x))
        draws = []
        for each in (own, other):
            torch.manual_seed(0)
            draws.append(each.rsample((2,)))
        assert torch.equal(*draws)
        assert isinstance(own, Independent)
        assert type(own.base_dist) is Normal
    torch.testing.assert_close(kl_divergence(p, plain), torch.zeros(5, 1))
    for own in (p, wide):
        assert own.code is z
        torch.testing.assert_close(own.expected_log_prob(x, 0 * v), p.log_prob(x))
    torch.testing.assert_close(wide.expected_log_prob(x, v), p.expected_log_prob(x, v))
    assert type(decoder(z).to_event(1)) is Independent
    assert type(NormalDecoder(3, 8, hidden=(4,))(z)) is Independent


def test_expected_log_prob_is_that_of_any_independent_code():
    decoder = NormalDecoder(3, (2, 4), hidden=(), scale=0.5)
    q, x = Laplace(torch.randn(3), torch.rand(3) + 0.2), torch.randn(2, 4)
    draws = decoder(q.sample((20_000,))).log_prob(x)
    assert_mean_equals(draws, decoder(q.mean).expected_log_prob(x, q.variance).detach())


@pytest.mark.parametrize("variance", VARIANCES)
def test_scales_start_where_they_are_asked_to_and_are_saved(variance):
    decoder = NormalDecoder(3, (2, 4), variance=variance, scale=0.3)
    z = torch.randn(5, 3)
    torch.testing.assert_close(decoder(z).stddev, torch.full((5, 2, 4), 0.3))
    assert decoder.scale.shape == ((2, 4) if variance == "per-pixel" else ())
    assert f"variance='{variance}', scale=0.3" in repr(decoder)
    other = NormalDecoder(3, (2, 4), variance=variance, scale=2.0)
    other.load_state_dict(decoder.state_dict())
    torch.testing.assert_close(other(z).log_prob(torch.zeros(2, 4)), decoder(z).log_prob(torch.zeros(2, 4)))


def fit_scales(log_prob, parameters, steps, lr):
    """Maximise `log_prob` by Adam and return its last value."""
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        value = log_prob()
        (-value.mean(0).sum()).backward()
        optimizer.step()
    return value.detach().mean(0)


@pytest.mark.parametrize("unit", [1.0, 255.0])
def test_constant_pixels_earn_no_more_than_is_stated(unit):
    deviations = torch.tensor([0.15, 0.3, 0.6, 1.5])
    x = unit * torch.cat([deviations * torch.randn(2000, 4), torch.zeros(2000, 4)], 1)
    z = torch.zeros(1, 1)
    decoder = NormalDecoder(1, 8, hidden=(), variance="per-pixel", scale=unit)
    for parameter in decoder.network.parameters():
        parameter.data.zero_()
        parameter.requires_grad_(False)
    limit = -math.log(0.1 * unit * math.sqrt(2 * math.pi))

    def floored():
        return decoder(z).base_dist.log_prob(x)

    first = fit_scales(floored, [decoder.amplitude], 300, 0.02)
    later = fit_scales(floored, [decoder.amplitude], 300, 0.02)
    # The constant half is at its limit and stays there, at a finite parameter; the other half is estimated as if
    # there were no floor.
    torch.testing.assert_close(later[4:], torch.full((4,), limit), atol=1e-3, rtol=0)
    torch.testing.assert_close(first, later, atol=2e-3, rtol=0)
    assert (decoder.amplitude[4:].abs() < 0.01).all()
    torch.testing.assert_close(decoder.scale[:4], x[:, :4].square().mean(0).sqrt(), rtol=5e-3, atol=0)

    # What the floor is for: a bare log-scale earns more with every step, and the gradients of the mean with it.
    log_scale = torch.full((8,), math.log(unit), requires_grad=True)

    def bare():
        return torch.distributions.Normal(0.0, log_scale.exp()).log_prob(x)

    first = fit_scales(bare, [log_scale], 300, 0.02)
    later = fit_scales(bare, [log_scale], 300, 0.02)
    assert (later[4:] - first[4:] > 5).all()
    assert (later[4:] > limit + 5).all()
    torch.testing.assert_close(first[:4], later[:4], atol=1e-2, rtol=0)


@pytest.mark.slow
def test_learned_scales_are_the_residuals_of_trained_means(digits):
    # Real data with constant pixels, means and scales trained together: the bound of constant pixels is the stated
    # one, and pixels that vary by more than the floor have the scale of what the mean leaves over.
    x = digits.train.images[:500].flatten(1)
    constant = x.std(0) == 0
    assert constant.sum() >= 3
    decoders = {variance: NormalDecoder(64, 64, (), variance=variance, scale=0.5) for variance in VARIANCES[1:]}
    z = torch.linalg.svd(x - x.mean(0)).U[:, :64] * len(x) ** 0.5
    z[:, 8:] = 0
    for decoder in decoders.values():
        fit_scales(lambda decoder=decoder: decoder(z).base_dist.log_prob(x), decoder.parameters(), 600, 0.01)
    p = decoders["per-pixel"](z).base_dist
    residual = (x - p.mean).square().mean(0).sqrt().detach()
    assert (p.log_prob(x)[:, constant] <= -math.log(0.05 * math.sqrt(2 * math.pi)) + 1e-5).all()
    vary = residual > 0.06
    assert vary.sum() > 30
    torch.testing.assert_close(p.stddev[0, vary], residual[vary], rtol=0.02, atol=0)
    p = decoders["shared"](z).base_dist
    torch.testing.assert_close(p.stddev[0, 0], (x - p.mean).square().mean().sqrt(), rtol=0.02, atol=0)


def test_bad_arguments_of_scales():
    with pytest.raises(ValueError, match="unknown variance 'learned'; known are 'fixed', 'per-pixel', 'shared'"):
        NormalDecoder(5, 64, variance="learned")
    with pytest.raises(ValueError, match="scale must be a finite number above 0, got 0"):
        NormalDecoder(5, 64, scale=0)
    with pytest.raises(ValueError, match="min_scale must be a finite number above 0, got -1"):
        NormalDecoder(5, 64, variance="shared", min_scale=-1)
    with pytest.raises(ValueError, match=r"min_scale must be below scale, .* got 0\.5 and 0\.5"):
        NormalDecoder(5, 64, variance="shared", scale=0.5, min_scale=0.5)
    with pytest.raises(ValueError, match=r"min_scale=0\.1 is the floor of a learned scale, and variance='fixed'"):
        NormalDecoder(5, 64, scale=1.0, min_scale=0.1)


def by_quadrature(logits):
    """Normalising constant, mean and variance of exp(l (x - 1/2)), by Gauss-Legendre panels in double precision."""
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(40))
    edges = torch.cat([torch.zeros(1), torch.logspace(-4, -0.30103, 12)]).double()
    edges = torch.cat([edges, 1 - edges[:-1].flip(0)])  # fine near both ends, where the density may fall steeply
    width = edges.diff()[:, None] / 2
    x = (edges[:-1, None] + width * (1 + nodes)).flatten()
    w = (width * weights).flatten()
    exponent = logits.double()[:, None] * (x - 0.5)
    top = exponent.amax(1, keepdim=True)
    mass = w * torch.exp(exponent - top)
    total = mass.sum(1)
    mean = (mass * x).sum(1) / total
    variance = (mass * (x - mean[:, None]) ** 2).sum(1) / total
    return total.log() + top[:, 0], mean, variance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_continuous_bernoulli_is_exact_for_all_logits(dtype):
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    p = StableContinuousBernoulli(logits=logits)
    log_total, mean, variance = by_quadrature(logits.detach())
    tolerance = {"rtol": 2e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-9}
    for x in (0.0, 0.3, 0.5, 1.0):
        log_prob = p.log_prob(torch.full_like(logits, x))
        torch.testing.assert_close(log_prob.double(), logits.double() * (x - 0.5) - log_total, **tolerance)
        (gradient,) = torch.autograd.grad(log_prob.sum(), logits)
        torch.testing.assert_close(gradient.double(), x - mean, **tolerance)
    torch.testing.assert_close(p.mean.double(), mean, **tolerance)
    torch.testing.assert_close(p.variance.double(), variance, **tolerance)
    torch.testing.assert_close(p.entropy().double(), log_total - logits.double() * (mean - 0.5), **tolerance)


def test_continuous_bernoulli_draws():
    p = StableContinuousBernoulli(logits=torch.tensor(LOGITS))
    x = p.sample((20_000,))
    assert p.support.check(x).all()
    assert_mean_equals(x, p.mean)
    assert_mean_equals((x - p.mean) ** 2, p.variance)
    u = torch.linspace(0.05, 0.95, 7)[:, None].double()
    p = StableContinuousBernoulli(logits=torch.tensor(LOGITS, dtype=torch.float64))
    torch.testing.assert_close(p.cdf(p.icdf(u)), u.expand(7, len(LOGITS)), atol=1e-6, rtol=0)
    assert (p.icdf(u).diff(dim=0) > 0).all()
    # The distribution function's derivative is the density.
    x = torch.linspace(0.1, 0.9, 5)[:, None].double().expand(5, len(LOGITS)).clone().requires_grad_()
    (density,) = torch.autograd.grad(p.cdf(x).sum(), x)
    torch.testing.assert_close(density, p.log_prob(x).exp(), rtol=1e-5, atol=1e-12)


def test_continuous_bernoulli_in_a_decoder_is_finite_at_the_ends():
    decoder = ContinuousBernoulliDecoder(1, len(LOGITS), hidden=())
    with torch.no_grad():
        decoder.network[0].weight[:, 0] = torch.tensor(LOGITS)
        decoder.network[0].bias.zero_()
    for x in (0.0, 1.0):
        log_prob = decoder(torch.ones(2, 1)).log_prob(torch.full((2, len(LOGITS)), x))
        assert torch.isfinite(log_prob).all()
        gradients = torch.autograd.grad(log_prob.sum(), decoder.parameters())
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
    with pytest.raises(ValueError, match="within the support"):
        decoder(torch.ones(2, 1)).log_prob(torch.full((2, len(LOGITS)), 1.1))
    expanded = StableContinuousBernoulli(logits=torch.tensor(3.0)).expand((2, 3))
    assert isinstance(expanded, StableContinuousBernoulli)
    assert expanded.log_prob(torch.tensor(0.3)).shape == (2, 3)


def test_memory_of_a_new_decoder_does_not_grow_with_the_square_of_its_latents():
    assert vsc.NormalDecoder(200_000, 2, hidden=()).dictionary.shape == (200_000, 2)  # the square would be 160 GB
