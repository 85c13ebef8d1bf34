"""A family of posteriors that the library does not know is one class, and works everywhere."""

import math

import pytest
import torch
from conftest import Z_BOUND
from pyro.distributions import Beta, StudentT
from torch import nn
from torch.distributions import Bernoulli, transform_to

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro.distributions import SpikeSlab, centre, inclusion_of, is_proper, scale_of, slab_of
from vsc_pyro.distributions.families import changed
from vsc_pyro.inference.refine import FreePosterior

SHAPE, J = (1, 8, 8), 4


class StudentSlabEncoder(nn.Module):
    """Spike-and-slab posteriors whose slabs are Student's t of learned degrees of freedom."""

    network_precision = "float32"

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.SiLU(), nn.Linear(20, 3 * J))
        self.log_freedom = nn.Parameter(torch.zeros(J))

    def forward(self, x):
        loc, log_scale, logits = self.network(x).chunk(3, -1)
        freedom = 4 + self.log_freedom.exp().expand_as(loc)
        return SpikeSlab(StudentT(freedom, loc, log_scale.exp()), logits=logits).to_event(1)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    train, test = vsc.datasets.load("digits")
    model = vsc.VAE(StudentSlabEncoder(), vsc.BernoulliDecoder(J, SHAPE), vsc.SpikeSlabPrior(J, 0.3, slab="cauchy"))
    with pytest.warns(UserWarning, match="no closed form and is sampled"):
        history = vsc.fit(model, train, epochs=40, lr=3e-3, batch_size=100, device="cpu", progress=False)
    return model, history, test.binarized("static")


@pytest.mark.slow
def test_it_is_trained_and_evaluated(trained):
    model, history, test = trained
    result = vsc.evaluate(model, test, num_draws=20)
    assert result.r2 > 0.05  # the share that an untrained code explains is 0
    assert history.elbo[0] < result.elbo < result.iwae
    codes = vsc.codes(model, test.images[:9])
    assert (codes.scale > 0).all()
    with model.evaluating():
        posterior = model.encoder(test.images[:9])
        torch.testing.assert_close(codes.centre, posterior.base_dist.slab.loc)
        torch.testing.assert_close(centre(posterior), inclusion_of(posterior) * posterior.base_dist.slab.loc)
        torch.testing.assert_close(scale_of(slab_of(posterior)), posterior.base_dist.slab.scale)


def test_it_is_refined(trained):
    model, _, test = trained
    result = vsc.refine(model, test.images[:300], steps=60, num_draws=5)
    # A sign test, for bounds whose divergence is sampled have heavy tails: half would gain by chance.
    assert (result.gain > 0).sum() > 150 + Z_BOUND * math.sqrt(300) / 2
    before, after = (p.base_dist.slab.df for p in (model.encoder(test.images[:300]), result.posterior))
    assert (after != before.detach()).any()
    assert (after > 0).all()


def test_arviz_and_plots_take_it(trained):
    model, _, test = trained
    drawn = vsc.to_arviz(model, test.images[:3], num_samples=10, seed=0)
    assert drawn["posterior"]["z"].shape == (1, 10, 3, J)
    for figure in (
        plots.code(model, test.images[0]),
        plots.inclusion_usage(model, test),
        plots.traversals(model, test),
    ):
        assert figure.axes


def test_parameters_of_any_constraint_move_in_their_space():
    torch.manual_seed(0)
    start = Beta(torch.rand(5, 3) + 0.5, torch.rand(5, 3) + 0.5).to_event(1)
    free = FreePosterior(start)
    torch.testing.assert_close(free(None).mean, start.mean)
    loss = -free(None).log_prob(torch.full((5, 3), 0.9)).sum()
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in free.parameters())
    spikes = FreePosterior(SpikeSlab(start.base_dist, logits=torch.zeros(5, 3)).to_event(1))
    assert {name for name, _ in spikes.named_parameters()} == {
        "moved_logits", "moved_slab_concentration0", "moved_slab_concentration1",
    }  # fmt: skip


def test_changed_rebuilds_a_family_from_its_parameters():
    names = []

    def doubled(name, value, constraint):
        names.append(name)
        return transform_to(constraint)(2 * transform_to(constraint).inv(value))

    rebuilt = changed(Bernoulli(probs=torch.tensor(0.8)), doubled)
    torch.testing.assert_close(rebuilt.logits, 2 * Bernoulli(probs=torch.tensor(0.8)).logits)
    assert names == ["logits"]
    assert is_proper(rebuilt)
