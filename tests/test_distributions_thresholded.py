"""Thresholded draws of a base and the spike-and-slab that they are, by quadrature and by thresholding real draws."""

import math

import pyro
import pytest
import torch
from conftest import assert_mean_equals
from pyro.distributions import Cauchy, Laplace, Normal
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import kl_divergence

from vsc_pyro.distributions import (
    ShiftedNormalTails,
    SpikeSlab,
    StraightThroughThreshold,
    ThresholdedSpikeSlab,
    inclusion_logits,
)
from vsc_pyro.distributions.normal_tails import _FAR, excess_moments
from vsc_pyro.gates import GATES
from vsc_pyro.objectives import AnalyticELBO, TraceELBO

CUTS = [0.0, 0.4, 2.3, 4.99, 5.01, 8.0, 30.0]
BASES = {"laplace": Laplace, "normal": Normal}
LOC, SCALE, THRESHOLD = 0.7, 0.8, 1.1


def number(value):
    return torch.tensor(value, dtype=torch.float64)


def tails(cut, scale=SCALE):
    return ShiftedNormalTails(number(LOC), number(scale), number(cut * scale))


def thresholded(base, gate="threshold"):
    return ThresholdedSpikeSlab(BASES[base](number(LOC), number(SCALE)), number(THRESHOLD), gate)


def integral(function, q):
    """Over the line, with points of its own on either side of the kink and a step that follows the tails' width."""
    width = 40 * q.variance.sqrt()
    grid = width * torch.linspace(0, 1, 50_001, dtype=torch.float64)
    return sum(torch.trapezoid(function(q.loc + sign * grid), grid) for sign in (1, -1))


# The slab of a Normal base


@pytest.mark.parametrize("cut", CUTS)
def test_moments_entropy_and_cdf_are_those_of_the_density(cut):
    q = tails(cut)

    def expected(function):
        return float(integral(lambda z: q.log_prob(z).exp() * function(z), q))

    assert expected(torch.ones_like) == pytest.approx(1, rel=1e-6)
    assert q.mean == LOC
    assert expected(lambda z: (z - LOC) ** 2) == pytest.approx(float(q.variance), rel=1e-6)
    assert expected(lambda z: -q.log_prob(z)) == pytest.approx(float(q.entropy()), rel=1e-6)
    for step in (-1.5, -0.2, 0.0, 0.7):
        point = LOC + step * q.variance.sqrt()
        below = expected(lambda z, point=point: (z <= point).double())
        assert below == pytest.approx(float(q.cdf(point)), abs=1e-3)
        assert expected(lambda z, point=point: (z - point).abs()) == pytest.approx(
            float(q.absolute_deviation(point)), rel=1e-6
        )


@pytest.mark.parametrize("cut", CUTS)
def test_quantiles_invert_the_cdf(cut):
    q, levels = tails(cut), torch.tensor([0.001, 0.2, 0.5, 0.7, 0.975], dtype=torch.float64)
    torch.testing.assert_close(q.cdf(q.icdf(levels)), levels)
    assert q.icdf(levels)[2] == LOC


def test_without_a_threshold_it_is_the_normal_distribution():
    z = torch.linspace(-3, 3, 7, dtype=torch.float64)
    q, normal = tails(0.0), Normal(number(LOC), number(SCALE))
    torch.testing.assert_close(q.log_prob(z), normal.log_prob(z))
    torch.testing.assert_close(q.entropy(), normal.entropy())
    assert kl_divergence(q, normal).abs() < 1e-12


def test_density_is_that_of_the_tails():
    q, normal = tails(2.3), Normal(number(LOC), number(SCALE))
    excess = torch.linspace(0.01, 3, 50, dtype=torch.float64)
    threshold = 2.3 * SCALE
    tail = normal.log_prob(LOC + threshold + excess) - (2 * normal.cdf(number(LOC - threshold))).log()
    for sign in (1, -1):
        torch.testing.assert_close(q.log_prob(LOC + sign * excess), tail)


@pytest.mark.parametrize("cut", CUTS)
def test_draws_have_the_distribution(cut):
    q = tails(cut)
    z = q.sample((100_000,))
    assert_mean_equals(z, q.mean)
    assert_mean_equals((z - LOC) ** 2, q.variance)
    assert_mean_equals(-q.log_prob(z), q.entropy())
    for step in (-1.5, -0.2, 0.0, 0.7):
        point = LOC + step * q.variance.sqrt()
        assert_mean_equals((z <= point).double(), q.cdf(point))


@pytest.mark.parametrize("cut", CUTS[1:])
def test_draws_are_pathwise_in_every_parameter(cut):
    parameters = [number(value).requires_grad_() for value in (LOC, SCALE, cut * SCALE)]
    q = ShiftedNormalTails(*parameters)
    exact = torch.autograd.grad(
        integral(lambda z: q.log_prob(z).exp() * torch.sin(z + (z - LOC) ** 2), q.expand(())), parameters
    )
    many = [p.detach().expand(200_000).clone().requires_grad_() for p in parameters]
    z = ShiftedNormalTails(*many).rsample()
    torch.sin(z + (z - LOC) ** 2).sum().backward()
    for estimated, gradient in zip(many, exact, strict=True):
        assert_mean_equals(estimated.grad, gradient)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    "p",
    [Normal(number(-0.3), 1.2), Laplace(number(-0.3), 1.2), ShiftedNormalTails(number(0.9), 1.3, 2.0)],
    ids=["normal", "laplace", "tails"],
)
def test_divergences_are_closed(p, cut):
    q = tails(cut)
    exact = integral(lambda z: q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z)), q)
    assert float(kl_divergence(q, p)) == pytest.approx(float(exact), rel=1e-6)


def test_a_divergence_that_is_not_closed_asks_to_be_sampled():
    with pytest.raises(NotImplementedError):
        kl_divergence(tails(1.0), Cauchy(number(0.0), 1.0))


@pytest.mark.parametrize("base", BASES)
def test_single_precision_is_enough_far_out(base):
    cuts = torch.tensor([1e-4, 1e-2, 0.5, 4.9, 5.1, 8.0, 12.0, 100.0, 47_496.0], dtype=torch.float64)
    results = {}
    for dtype in (torch.float32, torch.float64):
        theta = [value.to(dtype).requires_grad_() for value in (torch.zeros(9), torch.ones(9), cuts.clone())]
        q = ThresholdedSpikeSlab(BASES[base](*theta[:2]), theta[2], "threshold")
        p = SpikeSlab(Laplace(torch.zeros(9, dtype=dtype), 1.0), probs=torch.full((9,), 0.1, dtype=dtype))
        kl = kl_divergence(q, p)
        gradients = torch.autograd.grad(kl.sum(), theta[1:], retain_graph=True)
        z = q((50,))
        more = torch.autograd.grad((z + q.log_prob(z)).sum() + q.entropy().sum() + q.variance.sum(), theta)
        assert all(torch.isfinite(t).all() for t in (q.logits, q.probs, z, *more))
        results[dtype] = [t.double().detach() for t in (q.logits, kl, *gradients)]
    for low, high in zip(*results.values(), strict=True):
        torch.testing.assert_close(low, high, rtol=2e-3, atol=1e-5)


# What the threshold makes of a base


def by_hand(base, shape):
    """The construction itself: draw, and threshold."""
    deviation = BASES[base](number(0.0), SCALE).sample(shape)
    kept = deviation.sign() * (deviation.abs() - THRESHOLD)
    return torch.where(deviation.abs() > THRESHOLD, LOC + kept, torch.zeros_like(kept))


@pytest.mark.parametrize("base", BASES)
def test_it_is_the_distribution_of_thresholded_draws(base):
    q, z = thresholded(base), by_hand(base, (400_000,))
    cut = THRESHOLD / SCALE
    gamma = math.exp(-cut) if base == "laplace" else math.erfc(cut / math.sqrt(2))
    assert float(q.probs) == pytest.approx(gamma, rel=1e-12)
    assert_mean_equals((z != 0).double(), gamma)
    assert_mean_equals(z, q.mean)
    assert_mean_equals((z - q.mean) ** 2, q.variance)
    assert_mean_equals(-q.log_prob(z), q.entropy())
    for point in (-1.0, 0.0, 0.3, 0.7, 1.0, 2.0):
        assert_mean_equals((z <= point).double(), q.cdf(number(point)))
        assert_mean_equals((q.sample((100_000,)) <= point).double(), q.cdf(number(point)))


def exact_loss(base, theta, likelihood):
    """KL(q || p) of the code, and the toy's expected loss, by quadrature of the base's own density."""
    loc, scale, threshold = theta
    family = BASES[base](torch.zeros_like(loc), scale)
    grid = torch.linspace(0, 40, 400_001, dtype=torch.float64)
    log_on = family.log_prob(threshold + grid)
    gamma = 2 * family.cdf(-threshold)
    loss = (1 - gamma) * ((1 - gamma) / (1 - 0.2)).log()
    for sign in (1, -1):
        z = loc + sign * grid
        loss = loss + torch.trapezoid(log_on.exp() * (log_on - toy_prior().log_prob(z)), grid)
        if likelihood:
            loss = loss - torch.trapezoid(log_on.exp() * toy_likelihood(z), grid)
    return loss - (1 - gamma) * toy_likelihood(torch.zeros_like(loc)) if likelihood else loss


def toy_prior():
    return SpikeSlab(Normal(number(0.0), 1.0), probs=number(0.2))


def toy_likelihood(z):
    return Normal(z, 0.6).log_prob(number(1.1))


@pytest.mark.parametrize("base", BASES)
def test_divergence_is_that_of_the_code(base):
    q, z = thresholded(base), by_hand(base, (400_000,))
    kl = kl_divergence(q, toy_prior())
    torch.testing.assert_close(kl, exact_loss(base, (q.base.loc, q.base.scale, q.threshold), likelihood=False))
    assert_mean_equals(q.log_prob(z) - toy_prior().log_prob(z), kl)


@pytest.mark.parametrize("base", BASES)
def test_divergence_of_the_draw_before_the_threshold_is_another(base):
    family = BASES[base]
    standard = family(number(0.0), 1.0)

    def divergences(loc, threshold):
        draw = family(number(loc), 1.0)
        p = SpikeSlab(standard, probs=number(0.1))
        return kl_divergence(draw, standard), kl_divergence(ThresholdedSpikeSlab(draw, number(threshold)), p)

    before, code = divergences(loc=0.0, threshold=0.01)  # always on, and free of charge
    assert before == 0
    assert code > 2
    before, code = divergences(loc=5.0, threshold=8.0)  # always off, and charged for
    assert before > 4
    assert code < 0.2


# The gate that is named after it


def test_published_gradient_reaches_the_code():
    for base in BASES:
        estimated = [torch.full((200_000,), v, dtype=torch.float64).requires_grad_() for v in (LOC, SCALE, THRESHOLD)]
        z = ThresholdedSpikeSlab(BASES[base](*estimated[:2]), estimated[2], "threshold")()
        torch.sin(z).sum().backward()

        loc, scale, threshold = by_definition = [p.detach().clone().requires_grad_() for p in estimated]
        noise = BASES[base](torch.zeros_like(loc), 1.0).sample()
        straight = loc + noise.sign() * (scale * noise.abs() - threshold)
        hard = torch.where(scale * noise.abs() > threshold, straight, torch.zeros_like(straight)).detach()
        torch.sin(hard + straight - straight.detach()).sum().backward()
        for ours, published in zip(estimated, by_definition, strict=True):
            assert_mean_equals(ours.grad - published.grad, 0.0)
        assert_mean_equals((z.detach() == 0).double(), (hard == 0).double().mean())


def test_the_value_is_the_slab_or_zero_exactly():
    q = thresholded("normal").expand((1000,))
    z = q.rsample()
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.detach().clone()))
    assert 0 < (z == 0).double().mean() < 1


def gradients(elbo, base, gate, likelihood, num=100_000):
    """Those of independent replicas of the toy with parameters of their own, shape ``(num,)`` each."""
    start = {"loc": LOC, "scale": SCALE, "threshold": THRESHOLD}

    def model():
        with pyro.plate("replicas", num):
            z = pyro.sample("z", toy_prior().expand((num, 1)).to_event(1))
            if likelihood:
                pyro.sample("x", Normal(z, 0.6).to_event(1), obs=torch.full((num, 1), 1.1, dtype=torch.float64))

    def guide():
        theta = {k: pyro.param(k, torch.full((num, 1), v, dtype=torch.float64)) for k, v in start.items()}
        with pyro.plate("replicas", num):
            draw = BASES[base](theta["loc"], theta["scale"])
            pyro.sample("z", ThresholdedSpikeSlab(draw, theta["threshold"], gate).to_event(1))

    elbo.loss_and_grads(model, guide)
    return [pyro.param(name).grad.squeeze(-1) for name in start]


def exact_gradients(base, likelihood):
    theta = [number(value).requires_grad_() for value in (LOC, SCALE, THRESHOLD)]
    return torch.autograd.grad(exact_loss(base, theta, likelihood), theta)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceELBO])
@pytest.mark.parametrize("gate", ["threshold", "concrete"])
@pytest.mark.parametrize("base", BASES)
def test_kl_part_of_the_gradient_is_exact_where_it_is_sampled(base, gate, elbo):
    estimated = gradients(elbo(), base, gate, likelihood=False)
    for gradient, exact in zip(estimated, exact_gradients(base, likelihood=False), strict=True):
        assert_mean_equals(gradient, exact)


@pytest.mark.parametrize("elbo", [AnalyticELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("base", BASES)
def test_kl_part_of_the_gradient_is_exact_where_it_is_closed(base, elbo):
    estimated = gradients(elbo(), base, "threshold", likelihood=False, num=3)
    for gradient, exact in zip(estimated, exact_gradients(base, likelihood=False), strict=True):
        torch.testing.assert_close(gradient, exact.expand(3), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceELBO, AnalyticELBO])
@pytest.mark.parametrize("base", BASES)
def test_score_function_is_exact(base, elbo):
    estimated = gradients(elbo(), base, "score", likelihood=True)
    for gradient, exact in zip(estimated, exact_gradients(base, likelihood=True), strict=True):
        assert_mean_equals(gradient, exact)


# Plumbing


@pytest.mark.parametrize("base", BASES)
def test_shapes_and_expand(base):
    q = ThresholdedSpikeSlab(BASES[base](torch.zeros(4, 1), 1.0), torch.ones(3), gate="concrete")
    assert q.batch_shape == q.slab.batch_shape == q.logits.shape == (4, 3)
    wide = q.expand((5, 4, 3))
    assert type(wide) is ThresholdedSpikeSlab
    assert wide.batch_shape == wide.base.batch_shape == wide.threshold.shape == (5, 4, 3)
    assert wide.gate == q.gate
    code = wide.to_event(1)
    assert code().shape == code.sample().shape == (5, 4, 3)
    assert code.log_prob(code.sample((2,))).shape == (2, 5, 4)
    assert inclusion_logits(code.expand((6, 5, 4))).shape == (6, 5, 4, 3)


def test_gates_and_bad_arguments():
    normal = Normal(torch.zeros(3), 1.0)
    assert isinstance(ThresholdedSpikeSlab(normal, 1.0, "threshold").gate, StraightThroughThreshold)
    for name, gate in GATES.items():
        assert type(ThresholdedSpikeSlab(normal, 1.0, name).gate) is gate
        assert type(ThresholdedSpikeSlab(normal, 1.0, gate()).gate) is gate
    with pytest.raises(ValueError, match=r"unknown gate 'hard'; known are .*'threshold'"):
        ThresholdedSpikeSlab(normal, 1.0, "hard")
    with pytest.raises(ValueError, match="base must be Laplace or Normal, got Cauchy"):
        ThresholdedSpikeSlab(Cauchy(torch.zeros(3), 1.0), 1.0)
    for family in (Normal, Laplace):
        with pytest.raises(ValueError, match="threshold"):
            ThresholdedSpikeSlab(family(torch.zeros(3), 1.0), -1.0)
    with pytest.raises(ValueError, match="threshold"):
        ShiftedNormalTails(torch.zeros(3), 1.0, -1.0)
    with pytest.raises(ValueError, match="within the support"):
        ShiftedNormalTails(torch.zeros(3), 1.0, 1.0).log_prob(torch.full((3,), math.nan))


@pytest.mark.parametrize("part", [0, 1])
def test_moments_have_their_gradient_where_the_formula_changes(part):
    def slope(cut):
        t = torch.tensor(cut, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(excess_moments(t)[part], t)[0].item()

    assert slope(_FAR) == pytest.approx((slope(_FAR - 1e-6) + slope(_FAR + 1e-6)) / 2, rel=1e-6)
