import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vsc_pyro.distributions import SpikeSlab, TruncatedNormal
from vsc_pyro.distributions.elementwise import squared_distance, unexpanded


def test_copies_are_left_out():
    once = torch.randn(3, 1, 4)
    copied = once.expand(5, 3, 2, 4)
    assert unexpanded(copied).shape == (1, 3, 1, 4)
    assert unexpanded(once) is once
    torch.testing.assert_close(unexpanded(copied)[0], once)


@pytest.mark.parametrize("family", [Normal, TruncatedNormal])
def test_each_copy_of_an_expanded_parameter_has_its_own_gradient(family):
    copies = [torch.full((1,), n, dtype=torch.float64).expand(3).requires_grad_() for n in (0.3, 0.7, -1.0)]
    apart = [copy.detach().clone().requires_grad_() for copy in copies]
    weight = torch.tensor([1.0, 2.0, 4.0])

    def total(loc, scale, logits):
        slab, zeros = family(loc, scale), torch.zeros(3, dtype=torch.float64)
        posterior, prior = SpikeSlab(slab, logits=logits), SpikeSlab(family(zeros, 2 * scale), logits=2 * logits)
        return (weight * (kl_divergence(posterior, prior) + posterior.variance)).sum()

    found, expected = (torch.autograd.grad(total(*parameters), parameters) for parameters in (copies, apart))
    torch.testing.assert_close(found, expected)


def test_squared_distances_broadcast_and_promote():
    a, b = torch.randn(4, 3, requires_grad=True), torch.randn(3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(squared_distance(a, b), (a - b) ** 2)
    for found, expected in zip(
        torch.autograd.grad(squared_distance(a, b).sum(), (a, b)),
        torch.autograd.grad(((a - b) ** 2).sum(), (a, b)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", [Normal, TruncatedNormal])
def test_divergences_of_expanded_slabs_and_their_two_derivatives(family):
    torch.manual_seed(0)
    loc, logits, scale, prior_loc, prior_logits = (
        torch.randn(shape, dtype=torch.float64) for shape in ((4, 3), (4, 3), (3,), (3,), (3,))
    )

    def divergence(loc, logits, scale, prior_loc, prior_logits):
        posterior = SpikeSlab(family(loc, scale.exp()), logits=logits)
        prior = SpikeSlab(family(prior_loc, 1.5), logits=prior_logits).expand((4, 3))
        return kl_divergence(posterior, prior)

    def by_hand(loc, logits, scale, prior_loc, prior_logits):
        slabs = kl_divergence(family(loc, scale.exp()), family(prior_loc, 1.5))
        on, prior_on = logits.sigmoid(), prior_logits.sigmoid()
        return on * (slabs + (on / prior_on).log()) + (1 - on) * ((1 - on) / (1 - prior_on)).log()

    parameters = [p.requires_grad_() for p in (loc, logits, scale, prior_loc, prior_logits)]
    torch.testing.assert_close(divergence(*parameters), by_hand(*parameters))
    assert torch.autograd.gradcheck(divergence, parameters)
    assert torch.autograd.gradgradcheck(divergence, parameters)


def test_a_divergence_has_the_shape_of_both_distributions():
    posterior, prior = (SpikeSlab(Normal(torch.zeros(3), 1.0), logits=torch.zeros(3)) for _ in range(2))
    assert kl_divergence(posterior, prior.expand((4, 3))).shape == (4, 3)
    assert kl_divergence(posterior.expand((4, 3)), prior).shape == (4, 3)
