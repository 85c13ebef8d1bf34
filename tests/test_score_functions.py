"""Gradients through spikes and other discrete sites that are unbiased and quiet: baselines, pairs, many draws."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import assert_mean_equals
from problems.one_latent import (
    NOISE,
    PARAMETERS,
    TOY,
    X,
    importance_weighted_exact,
    toy_exact,
    toy_gradients,
    toy_loss,
    toy_prior,
)
from problems.six_latents import J, SixLatents
from pyro import poutine
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)

import vsc_pyro as vsc
from vsc_pyro.distributions import PARTICLES, SpikeSlab, StraightThroughThreshold
from vsc_pyro.gates import DisARM, get_gate
from vsc_pyro.objectives import AnalyticELBO, ImportanceWeightedELBO, TraceELBO, get_objective
from vsc_pyro.objectives.importance_weighted import _bound_without


def together(elbo, particles=2, **kwargs):
    return elbo(num_particles=particles, vectorize_particles=True, max_plate_nesting=1, **kwargs)


def trace_enum_elbo(**kwargs):
    return TraceEnum_ELBO(strict_enumeration_warning=False, **kwargs)


@pytest.mark.parametrize("elbo", [Trace_ELBO, trace_enum_elbo, TraceELBO, AnalyticELBO])
@pytest.mark.parametrize("particles", [2, 4])
@pytest.mark.parametrize("gate", ["score", "disarm"])
def test_several_draws_are_exact(elbo, gate, particles):
    _, exact = toy_exact(likelihood=True)
    gradients = toy_gradients(together(elbo, particles), gate, likelihood=True)
    for name in PARAMETERS:
        assert_mean_equals(gradients[name], exact[name])


@pytest.mark.parametrize("gate", ["score", "disarm"])
@pytest.mark.parametrize("elbo", [TraceELBO, AnalyticELBO])
def test_baselines_are_far_less_noisy_than_none(elbo, gate):
    noise = {}
    for name, class_, chosen in (("bare", Trace_ELBO, "score"), ("held against each other", elbo, gate)):
        pyro.clear_param_store()
        noise[name] = toy_gradients(together(class_), chosen, likelihood=True)["logits"].var()
    assert noise["held against each other"] < 0.5 * noise["bare"]


@pytest.mark.parametrize("gate", ["score", "disarm"])
@pytest.mark.parametrize("elbo", [TraceELBO, AnalyticELBO])
def test_six_latents_have_the_exact_full_gradient(elbo, gate):
    problem = SixLatents()
    exact = problem.exact(likelihood=True, closed_kl=elbo is AnalyticELBO)
    estimated = problem.estimated(
        elbo(num_particles=2, vectorize_particles=True, max_plate_nesting=2), gate, likelihood=True
    )
    for name in PARAMETERS:
        assert_mean_equals((estimated[name] - exact[name]).reshape(-1, J), torch.zeros(J))


def test_pairs_are_antithetic_share_their_slabs_and_are_each_exact():
    slab = dist.Normal(torch.tensor([0.0, 3.0], dtype=torch.float64), 1.0)
    q = SpikeSlab(slab, logits=torch.tensor([-1.5, 0.4], dtype=torch.float64).requires_grad_(), gate="disarm")

    class Drawing(Trace_ELBO):
        def _get_trace(self, *_):
            with pyro.plate(PARTICLES, 2, dim=-3):
                return q.expand((2, 100_000, 2))().detach()

    z = Drawing()._get_trace()
    on = z != 0
    assert_mean_equals(on.double().mean(0), q.probs.detach())
    assert_mean_equals(on[1].double(), q.probs.detach())
    assert_mean_equals(z[0], q.mean.detach())
    both = on.all(0)
    assert torch.equal(z[0][both], z[1][both])  # at -1.5 never both, at .4 never neither
    assert not both[:, 0].any()
    assert on[:, :, 1].any(0).all()


@pytest.mark.slow
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceELBO, AnalyticELBO])
@pytest.mark.parametrize("expanded", ["by hand", "by a plate"])
def test_latents_and_data_are_never_paired_with_each_other(elbo, expanded):
    """One logit for four latents: what an expansion makes alike is no pair of draws of one code."""

    def program(q):
        if expanded == "by hand":
            return pyro.sample("z", q.expand([4]).to_event(1))
        with pyro.plate("latents", 4):
            return pyro.sample("z", q)

    def model():
        z = program(toy_prior())
        pyro.factor("coupling", -((z.sum(-1, keepdim=expanded == "by a plate") - 1.5) ** 2))

    def guide():
        logits = pyro.param("logits", torch.tensor(0.3, dtype=torch.float64))
        program(SpikeSlab(dist.Normal(torch.tensor(1.0, dtype=torch.float64), 0.3), logits=logits, gate="disarm"))

    with pytest.raises(ValueError, match="takes its gradient from 2 draws of a code"):
        elbo().loss_and_grads(model, guide)
    gradients = []
    for _ in range(300):
        pyro.clear_param_store()
        nesting = 0 if expanded == "by hand" else 1
        many = elbo(num_particles=100, vectorize_particles=True, max_plate_nesting=nesting)
        many.loss_and_grads(model, guide)
        gradients.append(pyro.param("logits").grad.clone())
    logits = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    gamma = logits.sigmoid()
    mean, second = gamma, gamma * (1 + 0.09)  # of one latent
    moment = 4 * second + 12 * mean**2
    kl = torch.distributions.kl_divergence(
        SpikeSlab(dist.Normal(torch.tensor(1.0, dtype=torch.float64), 0.3), logits=logits), toy_prior()
    )
    (4 * kl + moment - 2 * 1.5 * 4 * mean).backward()
    assert_mean_equals(torch.stack(gradients), logits.grad)


def test_without_a_gradient_draws_are_independent():
    q = SpikeSlab(dist.Normal(torch.zeros(10_000), 1.0), logits=torch.zeros(10_000), gate="disarm")
    with torch.no_grad():
        z = q.expand((2, 10_000))()
    for first, second in (z, q.sample((2,))):
        assert 0.2 < ((first != 0) & (second != 0)).double().mean() < 0.3  # 1/4; pairs would have none
        assert not (first == second)[first != 0].any()


def test_importance_weights_are_of_independent_draws():
    """Weights of pairs would be correlated, and their effective number overstated."""

    def program(q):
        return lambda: pyro.sample("z", q)

    loc = torch.zeros(2000, dtype=torch.float64, requires_grad=True)
    q = SpikeSlab(dist.Normal(loc, 1.0), logits=torch.zeros(2000, dtype=torch.float64), gate="disarm").to_event(1)
    prior = SpikeSlab(dist.Normal(torch.zeros_like(loc), 1.0), probs=torch.full_like(loc, 0.3)).to_event(1)
    first, second = [], []
    for _ in range(400):
        log_weights, _, _ = pyro.infer.importance.vectorized_importance_weights(
            program(prior), program(q), num_samples=2, max_plate_nesting=0, normalized=False
        )
        first.append(log_weights[0].detach())
        second.append(log_weights[1].detach())
    first, second = torch.stack(first), torch.stack(second)
    # Each is exact, so products of deviations have a mean of zero if the two are independent.
    assert_mean_equals((first - first.mean()) * (second - second.mean()), 0.0)


def test_pairs_need_a_plate_of_particles_and_say_so(small_vae, digits):
    vae, x = small_vae("disarm"), digits.train.images[:20].round()
    for elbo in (Trace_ELBO(), Trace_ELBO(num_particles=2), together(TraceELBO, 3)):
        with pytest.raises(ValueError, match=r"takes its gradient from 2 draws of a code.*vectorize_particles=True"):
            elbo.loss_and_grads(vae.model, vae.guide, x)
        pyro.clear_param_store()
    with pyro.get_param_store().scope():
        assert (vae.guide(x) == 0).any()  # drawing alone needs no pairs
    together(Trace_ELBO).loss_and_grads(vae.model, vae.guide, x)
    assert all(p.grad is not None for p in vae.parameters())


def test_pairs_that_lost_their_draw_are_refused(small_vae, digits):
    # TraceGraph_ELBO wraps values; TraceMeanField_ELBO takes no score function at all.
    vae, x = small_vae("disarm"), digits.train.images[:20].round()
    with pytest.raises(ValueError, match=r"drawn with DisARM\(\).*not the spike-and-slab draw it came from"):
        together(TraceGraph_ELBO).loss_and_grads(vae.model, vae.guide, x)
    with pytest.raises(NotImplementedError, match="fully reparameterized"):
        together(TraceMeanField_ELBO).loss_and_grads(vae.model, vae.guide, x)


def test_pairs_keep_their_baseline_under_masks_and_scales():
    mask = torch.arange(2000) % 4 > 0

    def gradient(elbo, gate):
        def model():
            with pyro.plate("data", 2000), poutine.mask(mask=mask), poutine.scale(scale=0.3):
                z = pyro.sample("z", toy_prior())
                pyro.sample("x", dist.Normal(z, NOISE), obs=torch.full((2000,), X, dtype=torch.float64))

        def guide():
            logits = pyro.param("logits", torch.full((2000,), TOY["logits"], dtype=torch.float64))
            with pyro.plate("data", 2000), poutine.mask(mask=mask), poutine.scale(scale=0.3):
                pyro.sample("z", SpikeSlab(dist.Normal(TOY["loc"], TOY["scale"]), logits=logits, gate=gate))

        pyro.clear_param_store()
        elbo.loss_and_grads(model, guide)
        return pyro.param("logits").grad

    torch.manual_seed(0)
    ours = gradient(together(TraceELBO), "disarm")
    torch.manual_seed(0)
    torch.testing.assert_close(ours, gradient(together(Trace_ELBO), "disarm"))
    assert (ours[~mask] == 0).all()
    many = torch.stack([gradient(together(TraceELBO), "score")[mask].mean() for _ in range(50)])
    pairs = torch.stack([gradient(together(TraceELBO), "disarm")[mask].mean() for _ in range(50)])
    assert_mean_equals(torch.cat([many - pairs]), 0.0)


# Leave-one-out baselines for sites that have nothing to do with this library


@pytest.mark.parametrize("particles", [1, 2, 5])
def test_any_score_function_site_is_exact_and_quieter(particles):
    replicas = 20_000

    def model():
        with pyro.plate("data", replicas):
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
            pyro.sample("x", dist.Normal(2 * a, 1.0), obs=torch.tensor(1.4, dtype=torch.float64).expand(replicas))

    def guide():
        logits = pyro.param("logits", torch.full((replicas,), 0.3, dtype=torch.float64))
        with pyro.plate("data", replicas):
            pyro.sample("a", dist.Bernoulli(logits=logits))

    logits = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    gamma = logits.sigmoid()
    kl = torch.distributions.kl_divergence(dist.Bernoulli(gamma), dist.Bernoulli(torch.tensor(0.3).double()))
    likelihood = gamma * -0.5 * (1.4 - 2) ** 2 + (1 - gamma) * -0.5 * 1.4**2
    (kl - likelihood).backward()
    kwargs = {"num_particles": particles, "vectorize_particles": particles > 1, "max_plate_nesting": 1}
    gradients = {}
    for elbo in (TraceELBO(**kwargs), Trace_ELBO(**kwargs)):
        pyro.clear_param_store()
        elbo.loss_and_grads(model, guide)
        gradients[type(elbo)] = pyro.param("logits").grad
        assert_mean_equals(pyro.param("logits").grad, logits.grad)
    if particles > 1:
        assert gradients[TraceELBO].var() < 0.5 * gradients[Trace_ELBO].var()


# Several draws under one logarithm


@pytest.mark.parametrize("num_draws", [2, 3])
def test_importance_weighted_gradient_is_exact(num_draws):
    _, exact = importance_weighted_exact(num_draws)
    gradients = toy_gradients(ImportanceWeightedELBO(num_draws, max_plate_nesting=1), "score", likelihood=True)
    for name in PARAMETERS:
        assert_mean_equals(gradients[name], exact[name])


def test_importance_weighted_gradient_is_exact_for_any_discrete_site():
    """A Bernoulli latent beside a spike that depends on it, two draws: by enumeration of both and quadrature."""
    replicas, x = 200_000, 1.1
    start = {"c_logits": 0.3, "logits": -0.4, "loc": 0.7}

    def model():
        with pyro.plate("data", replicas):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.4, dtype=torch.float64)))
            z = pyro.sample("z", toy_prior())
            pyro.sample("x", dist.Normal(z + c, NOISE), obs=torch.full((replicas,), x, dtype=torch.float64))

    def guide():
        theta = {k: pyro.param(k, torch.full((replicas,), v, dtype=torch.float64)) for k, v in start.items()}
        with pyro.plate("data", replicas):
            c = pyro.sample("c", dist.Bernoulli(logits=theta["c_logits"]))
            slab = dist.Normal(theta["loc"], 0.8)
            pyro.sample("z", SpikeSlab(slab, logits=theta["logits"] - c, gate="score"))

    theta = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in start.items()}
    nodes, weights = (torch.tensor(a) for a in np.polynomial.hermite_e.hermegauss(60))
    w = theta["loc"] + 0.8 * nodes
    log_weights, probabilities = [], []
    for c in (0.0, 1.0):
        q_c = dist.Bernoulli(logits=theta["c_logits"]).log_prob(torch.tensor(c).double())
        p_c = dist.Bernoulli(torch.tensor(0.4).double()).log_prob(torch.tensor(c).double())
        q = SpikeSlab(dist.Normal(theta["loc"], 0.8), logits=theta["logits"] - c)
        for z, share in ((w, q.probs * weights / weights.sum()), (torch.zeros(1).double(), (1 - q.probs)[None])):
            likelihood = dist.Normal(z + c, NOISE).log_prob(torch.tensor(x).double())
            log_weights.append(likelihood + p_c - q_c + toy_prior().log_prob(z) - q.log_prob(z))
            probabilities.append(q_c.exp() * share)
    log_w, prob = torch.cat(log_weights), torch.cat(probabilities)
    (-(prob[:, None] * prob * (torch.logaddexp(log_w[:, None], log_w) - math.log(2))).sum()).backward()
    ImportanceWeightedELBO(2, max_plate_nesting=1).loss_and_grads(model, guide)
    for name, value in theta.items():
        assert_mean_equals(pyro.param(name).grad, value.grad)


def test_the_bound_without_a_draw_is_that_with_the_mean_in_its_place():
    log_weight = torch.randn(5, 3, dtype=torch.float64) * 4
    for k, bound in enumerate(_bound_without(log_weight, -2)):
        replaced = log_weight.clone()
        replaced[k] = torch.cat([log_weight[:k], log_weight[k + 1 :]]).mean(0)
        torch.testing.assert_close(bound, torch.logsumexp(replaced, 0) - math.log(5))


def test_importance_weighted_value_is_exact_and_that_of_the_evaluation(small_vae, digits):
    exact, _ = importance_weighted_exact(3)
    elbo, gate = ImportanceWeightedELBO(3, max_plate_nesting=1), get_gate("score")
    assert_mean_equals(torch.tensor([toy_loss(elbo, gate) for _ in range(20)]), exact)

    vae, data = small_vae("score"), digits.test.draw(slice(None))
    losses = [ImportanceWeightedELBO(7, max_plate_nesting=1).loss(vae.model, vae.guide, data) for _ in range(20)]
    bounds = [vsc.evaluate(vae, data, num_draws=7, seed=seed).iwae for seed in range(20)]
    assert_mean_equals(torch.tensor(losses) / len(data) + torch.tensor(bounds), 0.0)


def test_importance_weighting_warns_of_relaxed_gates():
    with pytest.warns(UserWarning, match="ImportanceWeightedELBO is not linear"):
        toy_gradients(ImportanceWeightedELBO(2, max_plate_nesting=1), "straight-through", likelihood=True)


def test_importance_weighting_refuses_what_it_cannot_do(small_vae, digits):
    x = digits.train.images[:20].round()
    with pytest.raises(ValueError, match="two draws or more at once, got num_particles=1"):
        get_objective("importance-weighted", num_draws=1)
    with pytest.raises(ValueError, match="draws codes 2 at a time, and ImportanceWeightedELBO takes independent draws"):
        get_objective("importance-weighted", draws_at_once=2)
    assert get_objective("importance-weighted").num_particles == 5
    elbo = ImportanceWeightedELBO(2, max_plate_nesting=1)

    def refused(vae, match):
        pyro.clear_param_store()
        with pytest.raises(NotImplementedError, match=match):
            elbo.loss_and_grads(vae.model, vae.guide, x)

    refused(small_vae("disarm"), "takes independent draws, and the gate draws several together")
    refused(small_vae("score", learn_inclusion=True, hyperprior=(1.0, 9.0)), r"got 'inclusion' in \['num_particles")
    vae = small_vae("score")
    vae.beta = 0.5
    refused(vae, "is scaled by 0.5")


def test_a_penalty_is_added_to_the_importance_weighted_bound(digits):
    x = digits.train.images[:50].round()
    losses = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        encoder = vsc.SpikeSlabEncoder((1, 8, 8), 6, (20,), gate="score")
        prior = vsc.PseudoInputPrior(encoder, 5, 0.01 if weight else None, weight)
        vae = vsc.VAE(encoder, vsc.BernoulliDecoder(6, (1, 8, 8), (20,)), prior)
        torch.manual_seed(1)
        losses.append(ImportanceWeightedELBO(4, max_plate_nesting=1).loss(vae.model, vae.guide, x))
    with torch.no_grad():
        assert losses[1] - losses[0] == pytest.approx(50 * float(prior.penalty()), rel=1e-4)


# fit


def test_fit_takes_a_gate_and_as_many_draws_as_it_needs(small_vae, digits):
    vae = small_vae("concrete")
    vsc.fit(vae, digits.train, gate="disarm", epochs=1, progress=False)
    assert type(vae.encoder.gate) is DisARM
    with pytest.raises(ValueError, match=r"draws codes 2 at a time, got num_draws=3; take a multiple of 2"):
        vsc.fit(vae, digits.train, num_draws=3, progress=False)
    with pytest.raises(ValueError, match="draws codes 2 at a time, got num_draws=1"):
        vsc.fit(vae, digits.train, objective=Trace_ELBO(), progress=False)
    with pytest.raises(ValueError, match="unknown gate 'hard'"):
        vsc.fit(vae, digits.train, gate="hard", progress=False)
    with pytest.raises(ValueError, match=r"schedules names 'encoder\.nothing'"):
        vsc.fit(vae, digits.train, gate="score", schedules={"encoder.nothing": vsc.Ramp(0, 1)}, progress=False)
    with pytest.raises(ValueError, match="takes independent draws"):
        vsc.fit(vae, digits.train, objective="importance-weighted", progress=False)
    assert type(vae.encoder.gate) is DisARM  # as it was before what was refused
    thresholded = vsc.VAE(
        vsc.ThresholdEncoder((1, 8, 8), 4, (20,)), vsc.BernoulliDecoder(4, (1, 8, 8), (20,)), vsc.SpikeSlabPrior(4)
    )
    vsc.fit(thresholded, digits.train, gate="threshold", epochs=1, progress=False)
    assert type(thresholded.encoder.gate) is StraightThroughThreshold
    dense = vsc.VAE(vsc.NormalEncoder(64, 2), vsc.BernoulliDecoder(2, 64), vsc.NormalPrior(2))
    with pytest.raises(ValueError, match="gate='disarm' is for spikes, and NormalEncoder draws none"):
        vsc.fit(dense, digits.train, gate="disarm", progress=False)


def test_fit_refuses_an_objective_that_cannot_train_the_model_before_any_of_it(small_vae, digits, tmp_path):
    path = tmp_path / "none.pt"

    def refused(vae, match, **kwargs):
        with pytest.raises(ValueError, match=match):
            vsc.fit(vae, digits.train, progress=False, checkpoint=path, **kwargs)
        assert not path.exists()

    weighted = {"objective": "importance-weighted", "gate": "score"}
    vae = small_vae("score")
    vae.beta = 0.5
    refused(vae, r"unscaled densities, and beta=0\.5.*leave beta at 1", **weighted)
    refused(small_vae(), "a schedule scales", schedules={"beta": vsc.Ramp(0.1, 1, length=10)}, **weighted)
    refused(small_vae(learn_inclusion=True, hyperprior=(1.0, 9.0)), r"\['inclusion'\] are common", **weighted)
    refused(small_vae(), "needs a linear NormalDecoder", objective="exact")
    for elbo in (TraceMeanField_ELBO, TraceTailAdaptive_ELBO, RenyiELBO):
        loss = elbo(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
        refused(small_vae(), r"has no estimator for spikes drawn with Score", objective=loss, gate="score")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gate", "kwargs"),
    [
        ("disarm", {}),
        ("score", {"num_draws": 2}),
        ("disarm", {"objective": "trace"}),
        ("score", {"objective": "importance-weighted", "num_draws": 3}),
        ("disarm", {"objective": Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)}),
    ],
)
def test_fit_learns_a_sparse_code_of_real_digits(small_vae, digits, gate, kwargs):
    vae = small_vae(gate)
    before = vsc.evaluate(copy.deepcopy(vae), digits.test, num_draws=10)
    vsc.fit(vae, digits.train, epochs=15, lr=1e-2, progress=False, **kwargs)
    after = vsc.evaluate(vae, digits.test, num_draws=10)
    assert after.elbo > before.elbo + 10
    assert after.relaxation_gap == 0
    assert 0 < after.expected_l0 < 7


def test_a_fit_with_pairs_is_resumed_exactly(small_vae, digits, tmp_path):
    settings = {"gate": "disarm", "progress": False, "checkpoint": tmp_path / "a.pt"}
    vae, other = small_vae(), small_vae()
    vsc.fit(vae, digits.train, epochs=1, **settings)
    vsc.fit(vae, digits.train, epochs=3, resume=True, **settings)
    vsc.fit(other, digits.train, epochs=3, **(settings | {"checkpoint": tmp_path / "b.pt"}))
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), other.parameters(), strict=True))
