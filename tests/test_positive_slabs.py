import pyro
import pytest
import torch
from conftest import assert_mean_equals
from torch.distributions import kl_divergence

import vsc_pyro as vsc
from vsc_pyro.distributions import POSITIVE_SLABS, get_slab, scale_of
from vsc_pyro.objectives.linear import ExactELBO

POSTERIORS = [name for name, slab in POSITIVE_SLABS.items() if slab.has_loc]
SAMPLED = {("truncated-normal", "log-normal"), ("truncated-normal", "gamma")}


def slab(name, loc, scale, dtype=torch.float64):
    return get_slab(name)(torch.tensor(loc, dtype=dtype), torch.tensor(scale, dtype=dtype))


def expectation(q, function):
    log = torch.linspace(-60, 25, 200_001, dtype=torch.float64)
    weight = (q.log_prob(log.exp()) + log).exp()
    return torch.trapezoid(torch.where(weight > 0, weight * function(log.exp()), 0.0), log)


@pytest.mark.parametrize("p_name", [*POSITIVE_SLABS, "normal"])
@pytest.mark.parametrize("q_name", POSTERIORS)
def test_divergences_by_quadrature(q_name, p_name):
    for parameters in ((0.3, 0.4), (-1.0, 1.2), (1.5, 0.1)):
        q, p = slab(q_name, *parameters), slab(p_name, -0.5, 1.3)
        if (q_name, p_name) in SAMPLED:
            with pytest.raises(NotImplementedError):
                kl_divergence(q, p)
            continue
        exact = expectation(q, lambda z, q=q, p=p: q.log_prob(z) - p.log_prob(z))
        torch.testing.assert_close(kl_divergence(q, p), exact, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", POSITIVE_SLABS)
def test_location_and_scale_mean_what_the_table_says(name):
    has_loc = POSITIVE_SLABS[name].has_loc
    loc, scale = (0.4 if has_loc else 0.0), 0.6
    q = slab(name, loc, scale)
    mean = expectation(q, lambda z: z)
    square = expectation(q, lambda z: z**2)
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.variance, square - mean**2)
    torch.testing.assert_close(scale_of(q), q.scale if name == "half-normal" else q.stddev)
    log_mean = expectation(q, lambda z: z.log())
    location, width = {
        "truncated-normal": lambda: (q.loc, q.scale),
        "log-normal": lambda: (log_mean, (expectation(q, lambda z: z.log() ** 2) - log_mean**2).sqrt()),
        "gamma": lambda: (mean.log(), (square - mean**2).sqrt() / mean),
        "half-normal": lambda: (torch.zeros_like(mean), square.sqrt()),
        "exponential": lambda: (torch.zeros_like(mean), mean),
    }[name]()
    torch.testing.assert_close(location, torch.full_like(mean, loc), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(width, torch.full_like(mean, scale), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", POSTERIORS)
def test_moments_of_posteriors_are_finite_with_gradients_in_float32(name):
    loc = torch.tensor([-20.0, -5.0, 0.0, 5.0, 20.0])
    for scale in (1e-4, 0.01, 1.0, 30.0):
        parameters = loc.clone().requires_grad_(), torch.full_like(loc, scale).requires_grad_()
        q = get_slab(name)(*parameters)
        prior = get_slab("half-normal")(0.0, torch.ones(5))
        for term in (q.mean, q.variance, q.entropy(), q.rsample(), kl_divergence(q, prior)):
            gradients = torch.autograd.grad(term.sum(), parameters, retain_graph=True)
            assert all(torch.isfinite(t).all() for t in (term, *gradients))
        assert (q.variance >= 0).all()


@pytest.mark.parametrize("name", POSTERIORS)
def test_warmup_leads_from_the_standard_slab_to_the_networks(name):
    torch.manual_seed(0)
    encoder, x = vsc.SpikeSlabEncoder(8, 3, hidden=(6,), slab=name), torch.randn(4, 8)
    own = encoder(x).base_dist.slab
    encoder.slab_weight.fill_(0.0)
    started = encoder(x).base_dist.slab
    standard = get_slab(name)(torch.zeros(4, 3), torch.ones(4, 3))
    torch.testing.assert_close(kl_divergence(started, standard), torch.zeros(4, 3), rtol=0, atol=1e-5)
    assert kl_divergence(own, standard).min() > 1e-6


@pytest.mark.parametrize("name", POSITIVE_SLABS)
@pytest.mark.parametrize("learn_slab", [False, True, "global"])
def test_priors_of_positive_slabs(name, learn_slab):
    prior = vsc.SpikeSlabPrior(3, 0.9, slab=name, learn_slab=learn_slab, slab_scale=0.5)
    names = [parameter for parameter, _ in prior.named_parameters()]
    has_loc = POSITIVE_SLABS[name].has_loc
    assert names == ([] if not learn_slab else ["slab_loc", "slab_log_scale"] if has_loc else ["slab_log_scale"])
    torch.manual_seed(0)
    z = prior(torch.zeros(1)).sample((50,))
    assert (z >= 0).all()
    assert (z > 0).any()
    (-prior(torch.zeros(1)).log_prob(z + 1e-3).sum() if learn_slab else torch.zeros((), requires_grad=True)).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in prior.parameters())


def test_arguments_that_no_positive_slab_takes():
    with pytest.raises(ValueError, match="slab_loc must be 0 for slab='half-normal', which has no location, got 1"):
        vsc.SpikeSlabPrior(3, slab="half-normal", slab_loc=1)
    with pytest.raises(
        ValueError, match=r"slab_scale must be at least 0\.02 and at most 3 for slab='gamma', got 0\.01"
    ):
        vsc.SpikeSlabPrior(3, slab="gamma", slab_scale=0.01)
    with pytest.raises(ValueError, match="and at most 3 for slab='log-normal', got 4"):
        vsc.SpikeSlabPrior(3, slab="log-normal", slab_scale=4)
    with pytest.raises(ValueError, match=r"'exponential' has a scale only; use slab='truncated-normal', whose diver"):
        vsc.SpikeSlabEncoder(8, 3, slab="exponential")


def positive_model(name="truncated-normal", gate="concrete"):
    torch.manual_seed(0)
    return vsc.VAE(
        vsc.SpikeSlabEncoder(9, 4, hidden=(16,), gate=gate, slab=name, initial_inclusion=0.5),
        vsc.NormalDecoder(4, 9, hidden=(), scale=0.3),
        vsc.SpikeSlabPrior(4, 0.3, slab=name, learn_slab=True),
    )


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(1)
    codes = (torch.rand(300, 4) < 0.4) * (2 + 0.3 * torch.randn(300, 4))
    return codes @ torch.nn.functional.normalize(torch.randn(4, 9), dim=1) + 0.1 * torch.randn(300, 9)


@pytest.mark.parametrize("name", POSTERIORS)
def test_the_exact_objective_is_the_mean_of_the_sampled_one(name, data):
    model, x = positive_model(name).double(), data[:20].double()
    with pyro.get_param_store().scope(), torch.no_grad():
        exact = ExactELBO(max_plate_nesting=1).loss(model.model, model.guide, x)
        q, p = model.encoder(x), model.prior(x)
        kl = kl_divergence(q, p.expand(q.batch_shape)).sum()
        sampled = kl - model.decoder(q.sample((20_000,))).log_prob(x).sum(1)
    assert_mean_equals(sampled.unsqueeze(1), torch.as_tensor(exact, dtype=torch.float64).reshape(1))


@pytest.mark.parametrize("gate", ["concrete", "score", "disarm", "straight-through"])
def test_every_gate_and_objective_trains(gate, data):
    objectives = ("analytic", "trace", "exact") if gate == "concrete" else ("analytic",)
    for objective in objectives:
        model = positive_model(gate=gate)
        draws = model.encoder.gate.draws_at_once if objective != "exact" else 1
        history = vsc.fit(
            model, data, objective=objective, epochs=3, batch_size=100, lr=1e-2, num_draws=draws, progress=False
        )
        assert history.elbo[-1] > history.elbo[0]


def test_a_trained_model_is_evaluated_and_refined(data):
    model = positive_model()
    vsc.fit(model, data, objective="exact", epochs=20, batch_size=50, lr=3e-2, progress=False)
    result = vsc.evaluate(model, data[:50], num_draws=50)
    assert result.kl_is_exact
    assert result.elbo < result.iwae
    refined = vsc.refine(model, data[:10], steps=30)
    assert refined.elbo_after.mean() > refined.elbo_before.mean() - 1e-3
    with pytest.raises(ValueError, match=r"prior of SpikeSlab of TruncatedNormal; build .*slab='normal'"):
        vsc.exact_posterior(model, data[:5])
    # The divergence to an exponential family is least where its moments are the posterior's, weighted by inclusion.
    model.encoder.requires_grad_(False)
    model.decoder.requires_grad_(False)
    vsc.fit(model, data, objective="exact", epochs=100, batch_size=300, lr=3e-2, cooldown=0.5, progress=False)
    q, slab = model.encoder(data).base_dist, model.prior(data[:1]).base_dist.slab
    weight = q.probs / q.probs.sum(0)
    for moment in (lambda slab: slab.mean, lambda slab: slab.mean**2 + slab.variance):
        torch.testing.assert_close(moment(slab), (weight * moment(q.slab)).sum(0), rtol=0.02, atol=0)


def test_pseudo_inputs_take_positive_slabs(data):
    encoder = positive_model().encoder
    model = vsc.VAE(encoder, vsc.NormalDecoder(4, 9, hidden=()), vsc.PseudoInputPrior(encoder, 3, hidden=(4,)))
    vsc.fit(model, data, epochs=1, batch_size=100, progress=False)
    assert vsc.evaluate(model, data[:20], num_draws=5).kl_is_exact


def test_bare_pyro_trains_it(data):
    model = positive_model()
    with pyro.get_param_store().scope():
        svi = pyro.infer.SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO())
        losses = [svi.step(data) for _ in range(40)]
    assert losses[-1] < losses[0]
