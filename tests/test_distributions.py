import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import assert_mean_equals
from pyro.infer import Predictive
from torch.distributions import kl_divergence

from vsc_pyro.distributions import SpikeSlab, centre, inclusion_logits, slab_of
from vsc_pyro.gates import GATES

SLABS = {
    "normal": dist.Normal(torch.tensor(0.7), 1.3),
    "laplace": dist.Laplace(torch.tensor(-0.4), 0.8),
    "cauchy": dist.Cauchy(torch.tensor(0.2), 0.5),
    "student": dist.StudentT(torch.tensor(5.0), 0.1, 1.2),
    "lognormal": dist.LogNormal(torch.tensor(0.1), 0.6),
    "uniform": dist.Uniform(torch.tensor(1.0), 3.0),
}


def spike_slab(slab="normal", gamma=0.3, gate="concrete"):
    return SpikeSlab(SLABS[slab], probs=torch.tensor(gamma), gate=gate)


@pytest.mark.parametrize("slab", SLABS)
def test_mass_at_zero_and_density_add_up_to_one(slab):
    q = spike_slab(slab)
    step = 1e-3
    grid = (torch.arange(-4_000_000, 4_000_000, dtype=torch.float64) + 0.5) * step  # midpoints, zero not among them
    grid = grid[q.slab.support.check(grid)]
    density = q.log_prob(grid).exp().sum() * step
    tail = 2 * 0.3 * 0.5 / (torch.pi * 4000) if slab == "cauchy" else 0.0  # the mass beyond the grid
    mass = float(q.log_prob(torch.tensor(0.0)).exp())
    assert mass == pytest.approx(0.7, rel=1e-6)
    assert mass + float(density) + tail == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("slab", ["normal", "laplace", "lognormal", "uniform"])
def test_moments_of_exact_draws(slab, gate):
    q = spike_slab(slab, gate=gate)
    z = q.sample((400_000,)).double()
    assert not z.requires_grad
    assert_mean_equals((z != 0).double(), 0.3)
    assert_mean_equals(z, q.mean.double())
    assert_mean_equals((z - q.mean) ** 2, q.variance.double())
    for point in (-1.0, 0.0, 0.5, 1.5, 5.0):
        assert_mean_equals((z <= point).double(), q.cdf(torch.tensor(point)).double())


@pytest.mark.parametrize("slab", ["normal", "laplace", "lognormal"])
def test_entropy_is_minus_the_mean_log_density(slab):
    q = spike_slab(slab)
    assert_mean_equals(-q.log_prob(q.sample((400_000,))), q.entropy().double())


def test_density_agrees_with_its_definition_where_pyros_zero_inflation_does_not():
    q = spike_slab("normal", 0.3)
    z = torch.tensor([0.0, 0.5, -2.0])
    expected = torch.stack([torch.tensor(0.7).log(), *(torch.tensor(0.3).log() + SLABS["normal"].log_prob(z[1:]))])
    torch.testing.assert_close(q.log_prob(z), expected)
    wrong = dist.ZeroInflatedDistribution(dist.Normal(0.0, 0.01), gate=torch.tensor(0.3))
    assert wrong.log_prob(torch.tensor(0.0)).exp() > 1  # a "probability" of zero far above one: why this class exists


def test_logits_and_probs_are_the_same_thing():
    probs = torch.tensor([0.01, 0.5, 0.9])
    by_probs, by_logits = SpikeSlab(SLABS["normal"], probs=probs), SpikeSlab(SLABS["normal"], logits=probs.logit())
    torch.testing.assert_close(by_probs.logits, by_logits.logits)
    torch.testing.assert_close(by_probs.probs, by_logits.probs)
    z = torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(by_probs.log_prob(z), by_logits.log_prob(z))
    assert torch.isfinite(SpikeSlab(SLABS["normal"], probs=torch.tensor([0.0, 1.0])).log_prob(torch.zeros(2))).all()


@pytest.mark.parametrize("gate", GATES)
def test_finite_with_gradients_at_extreme_logits(gate):
    logits = torch.tensor([-1e3, -100.0, 0.0, 100.0, 1e3]).expand(100, -1).clone().requires_grad_()
    loc = torch.zeros(5, requires_grad=True)
    q = SpikeSlab(dist.Normal(loc, 1.0), logits=logits, gate=gate)
    p = SpikeSlab(dist.Normal(0.0, 1.0), probs=torch.tensor(0.1))
    z = q()
    total = (
        q.log_prob(z)
        + p.log_prob(z)
        + kl_divergence(q, p.expand(q.batch_shape))
        + q.entropy()
        + q.expand(q.batch_shape).log_prob(torch.zeros_like(z))
    )
    assert torch.isfinite(total).all()
    total.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(loc.grad).all()


@pytest.mark.parametrize("gate", GATES)
def test_certain_spikes_are_drawn_and_scored(gate):
    logits = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64).repeat(50, 1).requires_grad_()
    loc = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    q = SpikeSlab(dist.Normal(loc, 1.0), logits=logits, gate=gate)
    z = q()
    copy = z.clone()
    for value in (z, copy, q.sample((50,))[:, 0]):
        log_prob = q.log_prob(value)
        assert (log_prob[:, 0] == 0).all()
        assert torch.isfinite(log_prob).all()
        if q.gate.hardened() == q.gate:  # a soft value is not its slab
            torch.testing.assert_close(log_prob[:, 1], q.slab.log_prob(value)[:, 1])
        for gradient in torch.autograd.grad(log_prob.sum(), (logits, loc), retain_graph=True):
            assert torch.isfinite(gradient).all()


def test_shapes_expand_and_to_event():
    q = SpikeSlab(dist.Normal(torch.zeros(3), 1.0), logits=torch.zeros(4, 1))
    assert (q.batch_shape, q.event_shape) == ((4, 3), ())
    assert q.sample((2,)).shape == q.rsample((2,)).shape == (2, 4, 3)
    wide = q.expand((5, 4, 3))
    assert wide.batch_shape == wide.slab.batch_shape == wide.logits.shape == (5, 4, 3)
    assert wide.gate == q.gate
    code = wide.to_event(1)
    assert (code.batch_shape, code.event_shape) == ((5, 4), (3,))
    assert code.log_prob(code.sample((2,))).shape == (2, 5, 4)
    deeper = code.to_event(1)
    assert type(deeper) is type(code)
    assert deeper.event_shape == (4, 3)
    assert type(code.expand((6, 5, 4))) is type(code)
    assert code.to_event(-1).event_shape == ()
    assert code.mean.shape == code.variance.shape == (5, 4, 3)
    assert code.entropy().shape == (5, 4)
    assert inclusion_logits(code).shape == (5, 4, 3)
    assert inclusion_logits(dist.Normal(0.0, 1.0)) is None


def test_a_draw_is_scored_like_any_other_value_of_the_same_number():
    q = SpikeSlab(dist.Normal(torch.tensor([1.0, -1.0, 0.3]), 0.5), logits=torch.tensor([0.0, 1.0, -1.0]))
    z = q.rsample((1000,))
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.detach().clone()))


@pytest.mark.parametrize("slabs", [("normal", "normal"), ("normal", "laplace"), ("laplace", "laplace")])
def test_kl_equals_its_sampled_value(slabs):
    q, p = spike_slab(slabs[0], 0.3), SpikeSlab(dist.Normal(0.0, 1.0), probs=torch.tensor(0.1))
    p = SpikeSlab(dist.Laplace(0.0, 1.0) if slabs[1] == "laplace" else dist.Normal(0.0, 1.0), probs=torch.tensor(0.1))
    z = q.sample((400_000,))
    assert_mean_equals(q.log_prob(z) - p.log_prob(z), kl_divergence(q, p).double())


def test_kl_of_cauchy_slabs():
    q, p = spike_slab("cauchy"), SpikeSlab(dist.Cauchy(0.0, 1.0), probs=torch.tensor(0.1))
    z = q.sample((400_000,))
    assert_mean_equals(q.log_prob(z) - p.log_prob(z), kl_divergence(q, p).double())


def test_kl_composes_with_events():
    q = SpikeSlab(dist.Normal(torch.randn(5, 4, 3), 0.5), logits=torch.randn(5, 4, 3))
    p = SpikeSlab(dist.Normal(torch.zeros(3), 1.0), probs=torch.full((3,), 0.1))
    scalar = kl_divergence(q, p.expand((5, 4, 3)))
    assert scalar.shape == (5, 4, 3)
    torch.testing.assert_close(kl_divergence(q.to_event(1), p.to_event(1)), scalar.sum(-1))
    torch.testing.assert_close(kl_divergence(q.to_event(2), p.expand((5, 4, 3)).to_event(2)), scalar.sum((-1, -2)))
    with pytest.raises(NotImplementedError, match=r"events of shapes \(4, 3\) and \(3,\)"):
        kl_divergence(q.to_event(2), p.expand((5, 4, 3)).to_event(1))
    with pytest.raises(NotImplementedError):
        kl_divergence(q.to_event(1), p)


def test_kl_of_an_atom_free_posterior_is_finite():
    normal, p = dist.Normal(torch.tensor(0.5), 0.7), spike_slab("normal", 0.1)
    z = normal.sample((400_000,))
    assert_mean_equals(normal.log_prob(z) - p.log_prob(z), kl_divergence(normal, p).double())
    torch_event = torch.distributions.Independent(p.expand((3,)), 1)
    assert kl_divergence(p.expand((3,)).to_event(1), torch_event) == 0
    event = kl_divergence(normal.expand((3,)).to_event(1), p.expand((3,)).to_event(1))
    torch.testing.assert_close(event, 3 * kl_divergence(normal, p))


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(torch.zeros(3), 1.0).to_event(1),
        dist.Laplace(torch.zeros(3), 1.0).to_event(1),
        dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
        dist.MixtureSameFamily(dist.Categorical(torch.ones(3, 2)), dist.Normal(torch.zeros(3, 2), 1.0)).to_event(1),
    ],
    ids=["normal", "laplace", "multivariate", "mixture"],
)
def test_infinite_kl_is_an_error_that_says_so(prior):
    q = spike_slab().expand((3,)).to_event(1)
    with pytest.raises(ValueError, match=r"infinite: the spike-and-slab has an atom .* use a SpikeSlab prior"):
        kl_divergence(q, prior)


def test_pairs_without_closed_form_ask_to_be_sampled():
    q = spike_slab("normal")
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), q.expand((2,)))
    for other in (spike_slab("student"), dist.Delta(torch.tensor(0.0)), q.mask(torch.tensor(True)), mixture):
        with pytest.raises(NotImplementedError):
            kl_divergence(q, other)
    with pytest.raises(NotImplementedError):
        kl_divergence(dist.Poisson(1.0), q)
    for point, p in (
        (dist.Delta(torch.tensor(0.0)), q),
        (dist.Delta(torch.zeros(3), event_dim=1), q.expand((3,)).to_event(1)),
    ):
        with pytest.raises(ValueError, match=r"a point \(Delta\) has no divergence from a SpikeSlab.*LaplacePrior"):
            kl_divergence(point, p)


def test_predictive_draws_exact_zeros():
    def model():
        with pyro.plate("data", 20):
            return pyro.sample("z", spike_slab().expand((20, 3)).to_event(1))

    z = Predictive(model, num_samples=2000, parallel=True)()["z"]
    assert z.shape == (2000, 20, 3)
    assert_mean_equals((z == 0).double().flatten(), 0.7)


def test_bad_arguments():
    normal = SLABS["normal"]
    for both in ({}, {"logits": torch.zeros(1), "probs": torch.ones(1)}):
        with pytest.raises(ValueError, match="exactly one of logits and probs"):
            SpikeSlab(normal, **both)
    transformed = dist.TransformedDistribution(spike_slab(), [dist.transforms.AffineTransform(0.0, 2.0)])
    for slab in (spike_slab(), transformed, dist.Delta(torch.tensor(1.0)), dist.Poisson(1.0), dist.Bernoulli(0.5)):
        with pytest.raises(ValueError, match=r"slab must be reparametrised and free of atoms, got .*; take Normal"):
            SpikeSlab(slab, probs=0.5)
    with pytest.raises(ValueError, match="slab must be a distribution of scalars"):
        SpikeSlab(dist.Normal(torch.zeros(3), 1.0).to_event(1), probs=0.5)
    with pytest.raises(ValueError, match="probs"):
        SpikeSlab(normal, probs=torch.tensor(1.5))
    with pytest.raises(ValueError, match="unknown gate"):
        SpikeSlab(normal, probs=0.5, gate="soft")
    with pytest.raises(ValueError, match="within the support"):
        spike_slab("uniform").log_prob(torch.tensor(0.5))
    with pytest.raises(NotImplementedError, match="gate='concrete'"):
        spike_slab(gate="score").rsample()
    for q in (spike_slab(), spike_slab().expand((2,)).to_event(1)):
        with pytest.raises(NotImplementedError, match="gate='score'"):
            q.has_rsample_(False)


def test_a_value_that_lost_its_draw_is_refused_whoever_scores_it():
    q = SpikeSlab(SLABS["normal"], logits=torch.zeros(3, requires_grad=True)).to_event(1)
    prior = SpikeSlab(SLABS["normal"], probs=torch.full((3,), 0.2)).to_event(1)
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), SpikeSlab(SLABS["normal"], probs=torch.full((2, 3), 0.2)).to_event(1)
    )
    z = q.rsample()
    while not (z == 0).any():
        z = q.rsample()
    q.score_parts(z)
    prior.log_prob(z)
    for lost in (z.tanh(), z.abs(), z * (z != 0)):
        for score in (q.log_prob, q.score_parts, prior.log_prob, mixture.log_prob):
            with pytest.raises(ValueError, match=r"not the spike-and-slab draw it came from"):
                score(lost)
    for copy in (z, z * 1.0, z[:].clone()):
        with pytest.raises(ValueError, match="use gate='score', which takes transformed posteriors and mixture priors"):
            mixture.log_prob(copy)
    for score in (q.log_prob, prior.log_prob, mixture.log_prob):
        score(z.detach())  # a number like any other


def test_values_that_are_no_draws_are_scored_by_distributions_that_drew_before():
    prior = SpikeSlab(SLABS["normal"], probs=torch.full((3,), 0.2)).to_event(1)
    soft = SpikeSlab(SLABS["normal"], probs=torch.full((3,), 0.2), gate="shifted-sigmoid").to_event(1)
    for p in (prior, soft):
        p()
        p.rsample()
        normal = dist.Normal(torch.zeros(3, requires_grad=True), 1.0)
        p.log_prob(normal.rsample()).backward()
        p.log_prob(p.sample())
    q = SpikeSlab(SLABS["normal"], logits=torch.zeros(3, requires_grad=True)).to_event(1)
    weight = torch.randn(3, 3)  # frozen: z2 depends on z1 alone, and is a number of its own all the same
    prior.log_prob(dist.Normal(q.rsample() @ weight, 1.0).rsample()).backward()


def test_a_draw_edited_in_place_is_not_scored_by_what_it_was():
    q = SpikeSlab(SLABS["normal"], probs=torch.full((3,), 0.2))
    z = q.rsample()
    z[:] = 0
    torch.testing.assert_close(q.log_prob(z), torch.full((3,), 0.8).log())
    with torch.inference_mode():
        q.log_prob(q.rsample())
    trained = SpikeSlab(SLABS["normal"], logits=torch.zeros(3, requires_grad=True))
    z = trained.rsample()
    z[0] = 0
    with pytest.raises(ValueError, match="not the spike-and-slab draw it came from"):
        trained.log_prob(z)


def test_soft_draws_are_scored_with_their_draw_or_not_at_all():
    q = SpikeSlab(dist.Uniform(torch.ones(3), 3.0), probs=torch.full((3,), 0.2), gate="shifted-sigmoid")
    z = q.rsample()
    q.log_prob(z)  # soft values lie outside the slab's support; the draw does not
    with pytest.raises(ValueError, match="use a gate with hard spikes"):
        q.log_prob(z.detach())
    q.log_prob(torch.zeros(3))


def test_draws_without_gradients_are_plain_tensors(tmp_path):
    for gate in ("concrete", "score", "straight-through"):
        with torch.no_grad():
            z = SpikeSlab(SLABS["normal"], probs=torch.full((3,), 0.2), gate=gate)()
        torch.save(z, tmp_path / "z.pt")
        assert torch.equal(torch.load(tmp_path / "z.pt", weights_only=True), z)


def test_python_numbers_take_the_slabs_type():
    q = SpikeSlab(dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0), probs=0.1)
    assert q.log_prob(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64
    assert q.probs[0].item() == 0.1


def test_low_precision_keeps_rare_spikes_rare():
    q = SpikeSlab(dist.Normal(torch.zeros((), dtype=torch.bfloat16), 1.0), probs=0.002)
    z = q.sample((1_000_000,))
    assert z.dtype == torch.bfloat16
    assert_mean_equals((z != 0).double(), float(q.logits.float().sigmoid()))
    assert float(q.logits.float().sigmoid()) == pytest.approx(0.002, rel=0.02)


CENTRES = {"normal": 0.7, "laplace": -0.4, "cauchy": 0.2, "student": 0.1, "uniform": 2.0}


@pytest.mark.parametrize("name", CENTRES)
def test_centre_is_the_mean_or_the_median_of_families_that_need_not_have_one(name):
    slab = SLABS[name].expand((4, 3))
    torch.testing.assert_close(centre(slab), torch.full((4, 3), CENTRES[name]))
    torch.testing.assert_close(centre(slab.to_event(1)), torch.full((4, 3), CENTRES[name]))
    torch.testing.assert_close(centre(SpikeSlab(slab, probs=0.3).to_event(2)), torch.full((4, 3), 0.3 * CENTRES[name]))
    assert torch.isfinite(centre(dist.StudentT(torch.tensor(0.5))))  # no mean at one degree of freedom or fewer


def test_centre_of_a_point_and_of_a_transformed_distribution():
    point = torch.randn(4, 3)
    assert torch.equal(centre(dist.Delta(point, event_dim=1)), point)
    assert torch.equal(centre(SLABS["lognormal"]), SLABS["lognormal"].mean)


def test_the_slab_of_a_code_is_what_it_is_where_it_is_not_zero():
    slab = SLABS["laplace"].expand((4, 3))
    for code in (
        SpikeSlab(slab, probs=0.3).to_event(1),
        SpikeSlab(slab, probs=0.3).to_event(2),
        slab.to_event(1),
        slab,
    ):
        assert slab_of(code).batch_shape == (4, 3)
        assert torch.equal(slab_of(code).mean, slab.mean)


def test_divergence_from_a_prior_that_is_always_on():
    slab = dist.Normal(torch.zeros(3), 1.0)
    on = SpikeSlab(slab, logits=torch.full((3,), torch.inf))
    assert torch.isposinf(kl_divergence(SpikeSlab(slab, logits=torch.tensor([-2.0, 0.0, 3.0])), on)).all()
