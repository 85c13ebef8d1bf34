"""What is called a bound on the evidence, and what is not: a prior that depends on the datum makes none."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import vsc_pyro as vsc

D, J = 6, 3
EVERY = torch.tensor(list(itertools.product([0.0, 1.0], repeat=D)))
QUIET = {"progress": False, "device": "cpu"}


def normal(loc):
    return dist.Normal(loc, 1.0).to_event(1)


class Plain(nn.Module):
    """A prior of a user's own, by a function of x and a layer."""

    def __init__(self, forward, zero=False):
        super().__init__()
        self.layer = nn.Linear(D, J)
        if zero:
            nn.init.zeros_(self.layer.weight)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def checked(prior, x):
    assert ((x >= 0) & (x <= 1)).all()
    return normal(prior.layer.bias)


class Derived(vsc.NormalPrior):
    def forward(self, x):
        return normal(x[:, :J])


class Base(vsc.Prior):
    def forward(self, x):
        return normal(x[:, :J])


READS = {
    "each datum": lambda: Plain(lambda s, x: normal(s.layer(x))),
    "each datum, before training the same": lambda: Plain(lambda s, x: normal(s.layer(x)), zero=True),
    "the batch": lambda: Plain(lambda s, x: normal(s.layer(x.mean(0)))),
    "the batch, before training the same": lambda: Plain(lambda s, x: normal(s.layer(x.mean(0))), zero=True),
    "no gradient": lambda: Plain(lambda s, x: normal(s.layer.weight[:, (x.sum() > 10).long()])),
    "a row for each datum": lambda: Plain(lambda s, x: normal(x.new_zeros(len(x), J))),
    "in training only": lambda: Plain(lambda s, x: normal(s.layer(x.mean(0)) if s.training else s.layer.bias)),
    "between 0 and 1 only": lambda: Plain(lambda s, x: normal(torch.where((x > 0) & (x < 1), x, 0 * x).mean(0)[:J])),
    "a subclass": lambda: Derived(J),
    "a subclass of the base": Base,
}
BOUNDS = {
    "a constant": lambda: Plain(lambda s, x: normal(torch.zeros(J))),
    "learned": lambda: Plain(lambda s, x: normal(s.layer.bias)),
    "a random number": lambda: Plain(lambda s, x: normal(s.layer.bias + torch.randn(J))),
    "nothing times the datum": lambda: Plain(lambda s, x: normal(s.layer.bias + 0 * x[:1, :1].sum())),
    "data looked at": lambda: Plain(checked),
    "its device": lambda: Plain(lambda s, x: normal(x.new_zeros(J))),
    "spike-slab": lambda: vsc.SpikeSlabPrior(J, 0.2),
    "normal": lambda: vsc.NormalPrior(J),
    "mixture": lambda: vsc.NormalMixturePrior(J),
}


def vae(prior):
    torch.manual_seed(0)
    return vsc.VAE(vsc.NormalEncoder(D, J, hidden=16), vsc.BernoulliDecoder(J, D, hidden=16), prior)


@pytest.mark.parametrize("kind", READS)
def test_a_prior_that_depends_on_the_datum_is_labelled(kind):
    model = vae(READS[kind]())
    assert not model.is_bound
    with pytest.warns(
        UserWarning, match="the objective is no bound on the evidence; give the prior an attribute is_bound"
    ):
        vsc.fit(model, EVERY, epochs=1, **QUIET)
    result = vsc.evaluate(model, EVERY, num_draws=5)
    assert math.isnan(result.elbo)
    assert math.isnan(result.iwae)
    assert math.isfinite(result.objective)
    assert str(result).count("none: the prior depends on the datum") == 2
    assert "NOT a bound" in str(result)
    with pytest.warns(UserWarning, match="all bounds are NaN, because there is none: the prior depends on the datum"):
        each = vsc.bounds(model, EVERY, num_draws=5)
    assert each.elbo.isnan().all()
    assert each.iwae.isnan().all()
    with pytest.raises(ValueError, match="depends on the datum, and this needs the distribution of codes before"):
        model.impute(EVERY[:3], EVERY[:3] > 0)


@pytest.mark.parametrize("kind", BOUNDS)
def test_one_that_does_not_is_a_bound(kind):
    prior = BOUNDS[kind]()
    model = vae(prior)
    assert model.is_bound
    vsc.fit(model, EVERY, objective="trace", epochs=1, **QUIET)
    result = vsc.evaluate(model, EVERY, num_draws=5)
    assert result.elbo == result.objective
    assert result.no_bound is None


def test_why_exp_of_such_an_objective_sums_to_more_than_one_over_all_data():
    """Of a bound it is 1 at most; a prior that follows the posterior tells of the datum free of charge."""
    sums = []
    for prior in (Plain(lambda s, x: normal(s.layer(x))), vsc.NormalPrior(J)):
        prior.is_bound = True  # as whoever does not know of it says
        model = vae(prior)
        vsc.fit(model, EVERY, epochs=250, lr=2e-2, **QUIET)
        sums.append(float(vsc.bounds(model, EVERY, num_draws=50, compile=False).elbo.exp().sum()))
    assert sums[0] > 3
    assert sums[1] <= 1


def test_priors_may_say_what_they_are():
    for kind in READS:
        prior = READS[kind]()
        prior.is_bound = True
        assert vae(prior).is_bound
    prior = BOUNDS["a constant"]()
    prior.is_bound = False
    model = vae(prior)
    vsc.fit(model, EVERY, epochs=1, **QUIET)  # which says so itself
    result = vsc.evaluate(model, EVERY, num_draws=5)
    assert not model.is_bound
    assert math.isfinite(result.elbo)  # by what codes are distributed by before any datum
    assert not result.kl_is_exact


def test_a_marginal_bounds_the_evidence_where_the_objective_does_not():
    class Assigned(Plain):
        def marginal(self, x):
            return normal(torch.zeros(J))

    model = vae(Assigned(lambda s, x: normal(s.layer(x))))
    result = vsc.evaluate(model, EVERY, num_draws=50)
    free = vae(vsc.NormalPrior(J))
    free.load_state_dict(model.state_dict(), strict=False)
    expected = vsc.evaluate(free, EVERY, num_draws=50)
    assert not model.is_bound
    assert result.iwae == pytest.approx(expected.iwae, abs=1e-5)
    assert result.elbo == pytest.approx(expected.elbo, abs=0.2)  # 50 draws of its divergence instead of a closed form
    assert result.objective != result.elbo


def test_without_an_input_shape_the_first_data_tell():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = vsc.NormalEncoder(D, J, hidden=16)

        def forward(self, x):
            return self.inner(x)

    model = vsc.VAE(Inner(), vsc.BernoulliDecoder(J, D, hidden=16), READS["each datum"]())
    with pytest.warns(UserWarning, match="no bound on the evidence"):
        vsc.fit(model, EVERY, epochs=1, **QUIET)
    assert not model.is_bound


def test_looking_leaves_random_state_modes_and_statistics_alone():
    class Normalised(Plain):
        def __init__(self):
            super().__init__(lambda s, x: normal(s.norm(s.layer(x))))
            self.norm = nn.BatchNorm1d(J)

    model = vae(Normalised())
    before = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    assert not model.is_bound
    assert torch.equal(torch.get_rng_state(), before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_prior_that_reads_what_the_encoder_keeps_depends_on_the_datum():
    class Keeps(vsc.NormalEncoder):
        def forward(self, x):
            self.last = x
            return super().forward(x)

    encoder = Keeps(D, J, hidden=16)
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(J, D), Plain(lambda s, x: normal(s.layer(encoder.last.mean(0)))))
    kept = encoder.last
    assert not model.is_bound
    assert encoder.last is kept


def test_is_bound_is_no_method():
    class Asked(vsc.NormalPrior):
        def is_bound(self):
            return False

    with pytest.raises(ValueError, match="is_bound must be True, False or None, got <bound method"):
        vsc.evaluate(vae(Asked(J)), EVERY, num_draws=2)
