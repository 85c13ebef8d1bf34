"""Free bits, as examples/studies/collapse.py trains with them, against the bound and its gradient."""

import collapse
import pytest
import torch

import vsc_pyro as vsc
from vsc_pyro._seeding import seeded


def gradients(model, objective, x):
    model.zero_grad()
    with seeded(0, x.device):
        loss = objective.loss_and_grads(model.model, model.guide, x)
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=["learned", "pseudo-input"])
def model_and_x(request):
    model = collapse.build({"prior": request.param, "seed": 0, "latent_dim": 5, "hidden": 20}, (16,))
    x = torch.rand(30, 16).round()
    model.prepare(x)
    return model, x


def test_without_a_floor_free_bits_are_the_bound(model_and_x):
    model, x = model_and_x
    (loss, plain), (free_loss, free) = (
        gradients(model, objective, x)
        for objective in (vsc.AnalyticELBO(max_plate_nesting=1), collapse.FreeBitsELBO(0.0))
    )
    assert free.keys() == plain.keys()
    torch.testing.assert_close(free_loss, loss)
    for name, gradient in plain.items():
        torch.testing.assert_close(free[name], gradient, rtol=1e-4, atol=1e-4)


def test_below_the_floor_nothing_pulls_at_the_prior(model_and_x):
    model, x = model_and_x
    _, found = gradients(model, collapse.FreeBitsELBO(100.0), x)
    pulled = {name for name, gradient in found.items() if gradient.any()}
    assert any(name.startswith("encoder.") for name in pulled)
    assert not pulled & {"prior.inclusion_logits", "prior._unconstrained"}
