"""Divergences that are infinite or do not exist are refused in a user's own program; those at a limit are right."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta
from torch.distributions import biject_to, kl_divergence

from vsc_pyro.distributions import AssignedMixture, SpikeSlab, ThresholdedSpikeSlab, is_atom_free
from vsc_pyro.objectives import AnalyticELBO, ImportanceWeightedELBO, TraceELBO


def number(value):
    return torch.tensor(value, dtype=torch.float64)


NORMAL = dist.Normal(number(0.3), 0.8)
SPIKE_SLAB = SpikeSlab(NORMAL, logits=number(0.2))


def mixture(component):
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2).double()), component.expand((2,)))


class Clamp(torch.distributions.Transform):
    domain = codomain = torch.distributions.constraints.real
    bijective = True  # which it is not

    def _call(self, x):
        return x.clamp(-1, 1)

    def _inverse(self, y):
        return y

    def log_abs_det_jacobian(self, x, y):
        return torch.zeros_like(x)


class HonestClamp(Clamp):
    bijective = False


class HardGumbel(dist.RelaxedBernoulli):
    def rsample(self, sample_shape=()):
        soft = super().rsample(sample_shape)
        return soft.round() + soft - soft.detach()


class Cubed(dist.Normal):
    def rsample(self, sample_shape=()):
        return super().rsample(sample_shape) ** 3


RELAXED = dist.RelaxedBernoulliStraightThrough(number(0.5), probs=number(0.4))
HIDDEN = {
    "straight-through": RELAXED,
    "masked": RELAXED.mask(torch.tensor(True)),
    "expanded": RELAXED.expand((3,)),
    "event": RELAXED.expand((3,)).to_event(1),
    "transformed": dist.TransformedDistribution(RELAXED, dist.transforms.AffineTransform(1.0, 2.0)),
    "mixture": mixture(RELAXED),
    "hard-gumbel": HardGumbel(number(0.5), probs=number(0.4)),
    "one-hot": dist.RelaxedOneHotCategoricalStraightThrough(number(0.5), probs=torch.ones(3).double()),
    "clamp": dist.TransformedDistribution(NORMAL, HonestClamp()),
    "clamp-that-says-it-is-bijective": dist.TransformedDistribution(NORMAL, Clamp()),
    "clamp-composed": dist.TransformedDistribution(NORMAL, dist.transforms.ComposeTransform([HonestClamp()])),
    "empirical": dist.Empirical(torch.zeros(2), torch.zeros(2)),
    "masked-mixture": dist.MaskedMixture(torch.tensor(True), NORMAL, SPIKE_SLAB),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_atoms_are_found(name):
    assert not is_atom_free(HIDDEN[name])
    if HIDDEN[name].has_rsample:
        with pytest.raises(ValueError, match="free of atoms"):
            SpikeSlab(HIDDEN[name], probs=0.5)


@pytest.mark.parametrize(
    "slab",
    [
        dist.LogNormal(number(0.0), 1.0),
        dist.FoldedDistribution(NORMAL),
        Cubed(number(0.0), 1.0),
        dist.TransformedDistribution(
            NORMAL, [dist.transforms.TanhTransform(), dist.transforms.AffineTransform(1.0, 2.0)]
        ),
        dist.RelaxedBernoulli(number(0.5), probs=number(0.4)),
    ],
    ids=["lognormal", "folded", "own", "transformed", "relaxed"],
)
def test_slabs_without_atoms_are_taken_and_leave_the_random_state_alone(slab):
    state = torch.get_rng_state()
    SpikeSlab(slab, probs=number(0.5))
    assert torch.equal(state, torch.get_rng_state())


def programs(q, p):
    def model():
        with pyro.plate("data", 50):
            z = pyro.sample("z", p.expand((50,)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(50).double())

    def guide():
        with pyro.plate("data", 50):
            pyro.sample("z", q.expand((50,)))

    return model, guide


ATOM, TAILS, SUPPORT = (
    "at site 'z', .*has (an atom|atoms).* and .* has none",
    "tails of .* are lighter",
    "outside of the",
)
POSITIVE = dist.Exponential(number(1.0))
REFUSED = {
    "spike-normal": (SPIKE_SLAB, NORMAL, ATOM),
    "threshold-normal": (ThresholdedSpikeSlab(NORMAL, number(0.5)), NORMAL, ATOM),
    "score-cauchy": (SpikeSlab(NORMAL, logits=number(0.0), gate="score"), dist.Cauchy(number(0.0), 1.0), ATOM),
    "masked-normal": (SPIKE_SLAB.mask(torch.tensor(True)), NORMAL, ATOM),
    "spike-masked": (SPIKE_SLAB, NORMAL.mask(torch.tensor(True)), ATOM),
    "mixture-normal": (mixture(SPIKE_SLAB), NORMAL, ATOM),
    "spike-mixture": (SPIKE_SLAB, mixture(NORMAL), ATOM),
    "points-normal": (mixture(dist.Delta(number(1.0))), NORMAL, ATOM),
    "bernoulli-normal": (dist.Bernoulli(number(0.5)), NORMAL, ATOM),
    "hard-relaxed": (RELAXED, dist.RelaxedBernoulli(number(0.5), probs=number(0.4)), ATOM),
    "normal-poisson": (NORMAL, dist.Poisson(number(1.0)), "continuous and Poisson discrete"),
    "spike-inflated": (SPIKE_SLAB, dist.ZeroInflatedDistribution(NORMAL, gate=number(0.3)), "use SpikeSlab"),
    "inflated-spike": (dist.ZeroInflatedDistribution(NORMAL, gate=number(0.3)), SPIKE_SLAB, "use SpikeSlab"),
    "inflated-mixture": (dist.ZeroInflatedDistribution(NORMAL, gate=number(0.3)), mixture(NORMAL), "use SpikeSlab"),
    "cauchy-normal": (dist.Cauchy(number(0.0), 1.0), NORMAL, TAILS),
    "cauchy-spike": (dist.Cauchy(number(0.0), 1.0), SPIKE_SLAB, TAILS),
    "cauchy-mixture": (dist.Cauchy(number(0.0), 1.0), mixture(dist.Laplace(number(0.0), 1.0)), TAILS),
    "cauchy-slabs": (SpikeSlab(dist.Cauchy(number(0.0), 1.0), logits=number(0.0)), SPIKE_SLAB, TAILS),
    "student-normal": (dist.StudentT(number(2.0)), NORMAL, TAILS),
    "student-laplace": (dist.StudentT(number(1.0)), dist.Laplace(number(0.0), 1.0), TAILS),
    "half-cauchy-exponential": (dist.HalfCauchy(number(1.0)), POSITIVE, TAILS),
    "normal-exponential": (NORMAL, POSITIVE, SUPPORT),
    "spike-of-exponential": (SPIKE_SLAB, SpikeSlab(POSITIVE, logits=number(0.0)), SUPPORT),
    "normal-beta": (NORMAL, dist.ContinuousBernoulli(number(0.3)), SUPPORT),
    "uniforms": (dist.Uniform(number(0.0), 2.0), dist.Uniform(number(0.0), 1.0), SUPPORT),
    "lognormal-beta": (dist.LogNormal(number(0.0), 1.0), dist.ContinuousBernoulli(number(0.3)), SUPPORT),
    "poisson-binomial": (dist.Poisson(number(3.0)), dist.Binomial(5, number(0.3)), SUPPORT),
    "point-spike": (dist.Delta(number(1.0)), SPIKE_SLAB, "a point"),
    "point-mixture": (dist.Delta(number(1.0)), mixture(SPIKE_SLAB), "a point"),
}


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_an_infinite_divergence_is_refused_by_every_objective(name, validate):
    q, p, match = REFUSED[name]
    importance_weighted = [] if match == TAILS else [ImportanceWeightedELBO(2, max_plate_nesting=1)]
    with pyro.validation_enabled(validate):
        for elbo in (TraceELBO(), *importance_weighted):
            with pytest.raises(ValueError, match=None if validate else match):  # Pyro's own checks may come first
                elbo.loss(*programs(q, p))
        try:
            loss = AnalyticELBO().loss(*programs(q, p))
        except ValueError:
            return
    assert loss == math.inf  # where torch has a closed form that says so


TAKEN = {
    "normal-spike": (NORMAL, SPIKE_SLAB),
    "spikes": (SPIKE_SLAB, mixture(SPIKE_SLAB)),
    "points": (dist.Delta(number(1.0)), NORMAL),
    "normal-inflated": (NORMAL, dist.ZeroInflatedDistribution(NORMAL, gate=number(0.3))),
    "student": (dist.StudentT(number(3.0)), NORMAL),
    "cauchy-student": (dist.Cauchy(number(0.0), 1.0), dist.StudentT(number(1.0))),
    "positive": (dist.LogNormal(number(0.0), 1.0), POSITIVE),
    "rescaled": (dist.TransformedDistribution(POSITIVE, dist.transforms.AffineTransform(0.0, 2.0)), POSITIVE),
    # torch composes the bijection to an interval of several transforms, of which the last maps all reals to all reals.
    "composed": (
        dist.TransformedDistribution(NORMAL, biject_to(dist.constraints.interval(2.0, 5.0))),
        dist.Uniform(number(2.0), 5.0),
    ),
    "beta": (dist.Beta(number(1.0), number(2.0)), POSITIVE),
    "categories": (dist.Bernoulli(number(0.3)), dist.Poisson(number(1.0))),
    "inflated-counts": (dist.Poisson(number(1.0)), dist.ZeroInflatedPoisson(number(1.0), gate=number(0.3))),
}


@pytest.mark.filterwarnings("ignore:the KL divergence at site 'z' has no closed form", "ignore:.*is not linear")
@pytest.mark.parametrize("name", TAKEN)
def test_a_finite_divergence_is_taken(name):
    for elbo in (TraceELBO(), AnalyticELBO(), ImportanceWeightedELBO(2, max_plate_nesting=1)):
        assert math.isfinite(elbo.loss(*programs(*TAKEN[name])))


def test_several_draws_under_one_logarithm_have_lighter_tails():
    """E min_k |z_k| is finite for two Cauchy draws, and E min_k z_k^2 for three."""
    cauchy, laplace = dist.Cauchy(number(0.0), 1.0), dist.Laplace(number(0.0), 1.0)
    assert math.isfinite(ImportanceWeightedELBO(2, max_plate_nesting=1).loss(*programs(cauchy, laplace)))
    assert math.isfinite(ImportanceWeightedELBO(3, max_plate_nesting=1).loss(*programs(cauchy, NORMAL)))
    with pytest.raises(ValueError, match=TAILS):
        ImportanceWeightedELBO(2, max_plate_nesting=1).loss(*programs(cauchy, NORMAL))


def test_points_of_an_automatic_guide_are_refused_and_copies_of_a_draw_are_not():
    model, _ = programs(SPIKE_SLAB, SPIKE_SLAB)

    def point():
        with pyro.plate("data", 50):
            pyro.sample("z", dist.Delta(torch.zeros(50)))

    for elbo in (TraceELBO(), AnalyticELBO()):
        with pytest.raises(ValueError, match="a point"):
            elbo.loss(model, point)
        with pytest.raises(NotImplementedError, match="would lose its atom"):
            elbo.loss(model, AutoDelta(model))

    def guide():
        with pyro.plate("data", 50):
            value = pyro.sample("whole", SPIKE_SLAB.expand((50,)), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(value))

    for elbo in (TraceELBO(), AnalyticELBO()):
        assert math.isfinite(elbo.loss(model, guide))
        with pytest.raises(ValueError, match="a copy of a draw with an atom"):
            elbo.loss(programs(NORMAL, NORMAL)[0], guide)


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("gate", ["concrete", "score"])
@pytest.mark.parametrize("size", [1, 50])
def test_a_copy_of_a_draw_with_an_atom_is_found_whatever_else_is_drawn(size, gate, beside):
    logits = torch.zeros(size, requires_grad=True)

    def model():
        with pyro.plate("data", size):
            pyro.sample("z", dist.Normal(torch.zeros(size), 1.0))

    def guide():
        with pyro.plate("data", size):
            if beside:
                pyro.sample("other", dist.Normal(torch.zeros(size), 1.0), infer={"is_auxiliary": True})
            loc = torch.zeros(size, requires_grad=True)
            whole = SpikeSlab(dist.Normal(loc, 1.0), logits=logits, gate=gate)
            pyro.sample("z", dist.Delta(pyro.sample("whole", whole, infer={"is_auxiliary": True})))

    elbo = TraceELBO()

    def several_steps():  # a copy of a score gate's draw is known by its zeros alone
        for _ in range(30):
            elbo.loss_and_grads(model, guide)

    with pytest.raises(ValueError, match="a copy of a draw with an atom"):
        several_steps()


def test_a_pair_is_looked_at_once(monkeypatch):
    elbo, calls = TraceELBO(), []
    import vsc_pyro.objectives.elbo as module

    why = module.why_infinite
    monkeypatch.setattr(module, "why_infinite", lambda *args: calls.append(args) or why(*args))
    for _ in range(3):
        elbo.loss(*programs(NORMAL, SPIKE_SLAB))
    assert len(calls) == 1
    with pytest.raises(ValueError, match=ATOM):
        elbo.loss(*programs(SPIKE_SLAB, NORMAL))


# Spikes that are certain, and few bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_limits_of_certain_spikes(dtype):
    slabs = kl_divergence(dist.Normal(0.7, 0.5), dist.Normal(0.0, 1.0)).to(dtype)
    inf = math.inf
    limits = {
        (inf, 0.0): slabs + math.log(2), (inf, inf): slabs, (-inf, 0.0): math.log(2), (-inf, -inf): 0.0,
        (0.0, inf): inf, (0.0, -inf): inf, (inf, -inf): inf, (-inf, inf): inf,
    }  # fmt: skip
    for (own, others), expected in limits.items():
        logits, prior_logits, loc = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in (own, others, 0.7))
        q = SpikeSlab(dist.Normal(loc, torch.tensor(0.5, dtype=dtype)), logits=logits)
        p = SpikeSlab(dist.Normal(torch.zeros((), dtype=dtype), 1.0), logits=prior_logits)
        components = SpikeSlab(p.slab.expand((2, 1)), logits=prior_logits.expand(2, 1)).to_event(1)
        half = torch.full((3, 2), 0.5, dtype=dtype).log()
        assigned = AssignedMixture(components, half[0], half)
        for kl in (kl_divergence(q, p), kl_divergence(q.expand((3, 1)).to_event(1), assigned).mean()):
            torch.testing.assert_close(kl, torch.as_tensor(expected, dtype=dtype))
            gradients = torch.autograd.grad(kl, [logits, prior_logits, loc], retain_graph=True)
            assert all(map(torch.isfinite, gradients))
            if math.isfinite(expected):
                assert gradients[0] == 0
                torch.testing.assert_close(gradients[1], prior_logits.sigmoid() - logits.sigmoid())


def test_moments_of_certain_spikes():
    slab = dist.Normal(number(0.7), number(0.5))
    never, always = (SpikeSlab(slab, logits=number(sign * math.inf).requires_grad_()) for sign in (-1, 1))
    for q, mean, variance, entropy in ((never, 0.0, 0.0, 0.0), (always, 0.7, 0.25, slab.entropy())):
        assert q.mean == mean
        assert q.variance == variance
        assert q.entropy() == entropy
        assert torch.autograd.grad(q.entropy(), q.logits)[0] == 0
        assert q.cdf(number(0.1)) == (1 if mean == 0 else slab.cdf(number(0.1)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace, dist.Cauchy])
def test_divergences_of_few_bits_are_those_of_float64(family, dtype):
    logits, scale = torch.linspace(-12, 12, 97).to(dtype), torch.tensor([1e-3, 0.1, 3.0]).to(dtype)[:, None]
    prior_logits = torch.tensor([-8.0, 0.0, 5.0]).to(dtype)[:, None, None]

    def divergences(dtype):
        loc = torch.tensor(0.25, dtype=dtype)
        slab = family(loc, scale.to(dtype))
        q, p = SpikeSlab(slab, logits=logits.to(dtype)), SpikeSlab(family(0 * loc, loc), logits=prior_logits.to(dtype))
        shape = (3, 3, 97)
        q, p = q.expand(shape), p.expand(shape)
        return kl_divergence(q, p), kl_divergence(q.to_event(1), p.to_event(1)), kl_divergence(q.slab, p)

    for few, many in zip(divergences(dtype), divergences(torch.float64), strict=True):
        assert few.isfinite().all()
        torch.testing.assert_close(few.double(), many, rtol=2e-3, atol=2e-3)
