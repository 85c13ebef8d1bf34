import math

import pytest
import torch
from conftest import Z_BOUND, assert_mean_equals
from torch.distributions import kl_divergence

import vsc_pyro as vsc

LOCATIONS = [-300.0, -30.0, -3.0, -1e-6, 0.0, 1e-6, 2.0, 8.0, 30.0]


def integral(q, function):
    """E f(z) by quadrature in log z, float64."""
    log = torch.linspace(-40, 12, 100_001, dtype=torch.float64)
    weight = (q.log_prob(log.exp()) + log).exp()
    return torch.trapezoid(weight * function(log.exp()), log)


def truncated(loc, scale=1.0, dtype=torch.float64):
    return vsc.TruncatedNormal(torch.tensor(loc, dtype=dtype), torch.tensor(scale, dtype=dtype))


@pytest.mark.parametrize("loc", LOCATIONS)
def test_density_moments_and_entropy_by_quadrature(loc):
    q = truncated(loc)
    mean, square = integral(q, lambda z: z), integral(q, lambda z: z**2)
    torch.testing.assert_close(integral(q, torch.ones_like), torch.ones_like(mean))
    torch.testing.assert_close(q.mean, mean, rtol=1e-8, atol=0)
    torch.testing.assert_close(q.variance, square - mean**2, rtol=1e-7, atol=0)
    torch.testing.assert_close(q.entropy(), integral(q, lambda z: -q.log_prob(z)), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("loc", LOCATIONS)
def test_the_quantile_is_the_inverse_of_the_distribution_function(loc):
    q, u = truncated(loc, 0.7), torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    z = q.icdf(u)
    torch.testing.assert_close(q.cdf(z), u, rtol=1e-7, atol=1e-9)
    assert not q.cdf(-z).any()
    (density,) = torch.autograd.grad(q.cdf(z.requires_grad_()).sum(), z)
    torch.testing.assert_close(density, q.log_prob(z).exp(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loc", [-30.0, -2.0, 0.0, 0.5, 4.0])
def test_draws_and_their_gradients_have_the_moments(loc):
    torch.manual_seed(0)
    parameters = torch.tensor([loc, 1.5], dtype=torch.float64)
    q = vsc.TruncatedNormal(*parameters.requires_grad_())
    z = q.rsample((40_000,))
    assert z.min() > 0
    assert_mean_equals(z.detach(), q.mean.detach())
    assert_mean_equals((z.detach() - q.mean.detach()) ** 2, q.variance.detach())
    wide = parameters.detach().expand(40_000, 2).clone().requires_grad_()
    (gradients,) = torch.autograd.grad(vsc.TruncatedNormal(*wide.T).rsample().square().sum(), wide)
    (expected,) = torch.autograd.grad(q.mean**2 + q.variance, parameters)
    error = gradients.std(0) / len(gradients) ** 0.5
    assert ((gradients.mean(0) - expected).abs() / error.clamp(min=1e-12)).max() < Z_BOUND


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_everything_is_finite_and_close_to_float64_far_out_in_float32(scale):
    torch.manual_seed(0)
    cuts = torch.tensor([-1e4, -1000.0, -30.0, -5.0, 0.0, 5.0, 30.0, 1000.0])
    loc, width = (scale * cuts).requires_grad_(), torch.full_like(cuts, scale).requires_grad_()
    precise = vsc.TruncatedNormal(loc.double(), width.double())
    prior = vsc.TruncatedNormal(torch.full_like(cuts, -30.0), 1.0)
    terms = [lambda q: q.mean, lambda q: q.variance, lambda q: q.entropy(), lambda q: q.log_prob(q.mean.detach())]
    for term in terms:
        torch.testing.assert_close(term(vsc.TruncatedNormal(loc, width)).double(), term(precise), rtol=2e-5, atol=1e-4)
    for term in (*terms, lambda q: q.rsample(), lambda q: kl_divergence(q, prior)):
        found = term(vsc.TruncatedNormal(loc, width))
        gradients = torch.autograd.grad(found.sum(), (loc, width))
        assert all(torch.isfinite(t).all() for t in (found, *gradients))
    assert (precise.variance > 0).all()


def test_divergence_from_itself_is_zero():
    loc = torch.tensor(LOCATIONS)
    q, p = (vsc.TruncatedNormal(loc, torch.full_like(loc, 0.3)) for _ in range(2))
    torch.testing.assert_close(kl_divergence(q, p), torch.zeros_like(loc), rtol=0, atol=1e-4)


def test_at_zero_it_is_the_half_normal():
    q, z = truncated(0.0, 2.0), torch.linspace(0.1, 5, 20, dtype=torch.float64)
    half = torch.distributions.HalfNormal(torch.tensor(2.0, dtype=torch.float64))
    torch.testing.assert_close(q.log_prob(z), half.log_prob(z))
    torch.testing.assert_close(kl_divergence(q, half), torch.zeros_like(half.scale))


def test_has_no_density_at_or_below_zero():
    q = vsc.TruncatedNormal(torch.zeros(2), 1.0, validate_args=False)
    assert (q.log_prob(torch.tensor([0.0, -1.0])) == -math.inf).all()
    checked = vsc.TruncatedNormal(torch.zeros(2), 1.0, validate_args=True)
    with pytest.raises(ValueError, match="within the support"):
        checked.log_prob(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="scale"):
        vsc.TruncatedNormal(0.0, torch.tensor(-1.0), validate_args=True)
    assert q.expand((3, 2)).rsample((4,)).shape == (4, 3, 2)


@pytest.mark.parametrize("cut", [-8.0, -1.0, -1e-6, 1e-6, 2.0, 4.999, 5.0, 5.001, 8.0, 30.0, 1000.0])
def test_derivatives_are_those_of_the_moments(cut):
    cut = torch.tensor(cut, dtype=torch.float64, requires_grad=True)
    q = vsc.TruncatedNormal(-cut, torch.ones_like(cut))
    # In an exponential family the derivative of a mean is minus a covariance with the statistic of t, here z.
    with torch.no_grad():
        mean = integral(q, lambda z: z)
        variance, third = (integral(q, lambda z, n=n: (z - mean) ** n) for n in (2, 3))
        information = integral(q, lambda z: (z - mean) * q.log_prob(z))
    for term, expected in ((q.mean, -variance), (q.variance, -third), (q.entropy(), information)):
        (found,) = torch.autograd.grad(term, cut, retain_graph=True)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9 * float(mean) ** 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_seam_between_the_formulas(dtype):
    for start in (0.0, 2.5, 5.0):
        cut = torch.tensor([start, start], dtype=dtype)
        cut[0] = torch.nextafter(cut[0], cut[0] - 1)
        cut.requires_grad_()
        q = vsc.TruncatedNormal(-cut, torch.ones_like(cut))
        for term in (q.mean, q.variance, q.entropy()):
            (slopes,) = torch.autograd.grad(term.sum(), cut, retain_graph=True)
            # In float32, 1 - r h and the third cumulant lose a factor of 3,000 below t = 2.5.
            tolerance = 1e-9 if dtype == torch.float64 else 1e-3
            torch.testing.assert_close(term[0], term[1], rtol=tolerance, atol=0)
            torch.testing.assert_close(slopes[0], slopes[1], rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_of_low_precision_are_those_of_float32(dtype):
    loc = torch.tensor([-8.0, -2.4, -1.0, 0.5, 50.0], dtype=dtype)
    low, exact = (vsc.TruncatedNormal(x, torch.ones_like(x), validate_args=False) for x in (loc, loc.float()))
    for name in ("mean", "variance"):
        expected = getattr(exact, name)
        torch.testing.assert_close(getattr(low, name).float(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0)
