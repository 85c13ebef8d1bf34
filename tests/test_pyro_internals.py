"""What is read off Pyro: the ELBO at work, the site that it asks a score for, and transformations around a base."""

import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer

from vsc_pyro._pyro_internals import current_request, in_plate_of_particles, transformation_around
from vsc_pyro.distributions import SpikeSlab
from vsc_pyro.objectives import TraceELBO


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("elbo", [infer.Trace_ELBO, infer.TraceGraph_ELBO])
def test_the_elbo_at_work_and_the_kind_of_site(elbo, auxiliary):
    in_plate, requests = [], []

    class Watched(dist.Normal):
        def __call__(self, *args):
            in_plate.append(in_plate_of_particles())
            return super().__call__(*args)

        def score_parts(self, value):
            requests.append(current_request())
            return super().score_parts(value)

    def model():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0))

    def guide():
        with pyro.plate("data", 2):
            # Pyro expands a distribution by its class, and takes one of the plate's shape as it is.
            shape = (2, 2) if in_plate_of_particles() else (2,)
            q = Watched(torch.zeros(shape, requires_grad=True), 1.0)
            z = pyro.sample("u" if auxiliary else "z", q, infer={"is_auxiliary": auxiliary})
            if auxiliary:
                pyro.sample("z", dist.Delta(z))

    assert current_request() is None
    elbo().loss_and_grads(model, guide)
    assert not any(in_plate)
    assert {type(request.elbo) for request in requests} == {elbo}
    assert {request.has_other_sites for request in requests} == {auxiliary}
    elbo(num_particles=2, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(model, guide)
    assert in_plate[-1]


def test_transformations_are_found_through_independent_dimensions_only():
    class Base(dist.Normal):
        def log_prob(self, value):
            found.append(transformation_around(self))
            return super().log_prob(value)

    found = []
    base = Base(torch.zeros(3), 1.0)
    transformed = dist.TransformedDistribution(base.to_event(1), [dist.transforms.AffineTransform(0.0, 2.0)])
    transformed.log_prob(torch.ones(3))
    base.to_event(1).log_prob(torch.ones(3))
    base.log_prob(torch.ones(3))
    assert found == [transformed, None, None]


def test_looking_keeps_nothing_of_the_callers_alive():
    gc.disable()
    try:
        z = SpikeSlab(dist.Normal(torch.zeros(3), 1.0), logits=torch.zeros(3, requires_grad=True))()
        SpikeSlab(dist.Normal(torch.zeros(3), 1.0), probs=0.3).log_prob(z)
        gone = weakref.ref(z)
        del z
        assert gone() is None
    finally:
        gc.enable()


class Decoupled(torch.nn.Module):
    """A program by whose every ELBO a spike of "score" would be left untrained, were it not refused."""

    def model(self):
        with pyro.plate("data", 4):
            z = pyro.sample("z", SpikeSlab(dist.Normal(torch.zeros(4), 1.0), probs=0.2))
            pyro.sample("x", dist.Normal(z, 0.6), obs=torch.ones(4))

    def guide(self, gate):
        logits = pyro.param("logits", torch.zeros(4))
        with pyro.plate("data", 4):
            pyro.sample("z", SpikeSlab(dist.Normal(pyro.param("loc", torch.ones(4)), 0.5), logits=logits, gate=gate))


@pytest.mark.parametrize("gate", ["score", "disarm"])
@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize("elbo", [infer.TraceMeanField_ELBO, infer.TraceTailAdaptive_ELBO, infer.RenyiELBO])
def test_elbos_without_an_estimator_are_refused_whatever_the_validation(elbo, validation, gate):
    program = Decoupled()
    estimator = elbo(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    with pyro.validation_enabled(validation), pytest.raises(NotImplementedError, match=r"no estimator .* gate='score'"):
        estimator.loss_and_grads(program.model, lambda: program.guide(gate))


class Alone(Decoupled):
    """A spike that only the model draws."""

    def model(self, gate):
        logits = pyro.param("prior_logits", torch.zeros(4))
        with pyro.plate("data", 4):
            z = pyro.sample("z", SpikeSlab(dist.Normal(torch.zeros(4), 1.0), logits=logits, gate=gate))
            pyro.sample("x", dist.Normal(z, 0.6), obs=torch.ones(4))


@pytest.mark.parametrize("gate", ["score", "disarm"])
@pytest.mark.parametrize("elbo", [infer.Trace_ELBO, infer.TraceGraph_ELBO, infer.TraceEnum_ELBO, TraceELBO])
def test_spikes_that_only_the_model_draws_are_refused_where_nothing_scores_them(elbo, gate):
    program = Alone()

    def take():
        # The two are different programs, which Pyro warns of while it validates.
        with pyro.validation_enabled(False):
            elbo(max_plate_nesting=1).loss_and_grads(lambda: program.model(gate), lambda: None)

    if elbo is TraceELBO:
        take()
        assert pyro.param("prior_logits").grad.abs().sum() > 0
    else:
        with pytest.raises(NotImplementedError, match="no score function for a site that only the model has"):
            take()


@pytest.mark.parametrize("kind", ["dependent", "factor"])
@pytest.mark.parametrize("subclass", [False, True])
def test_what_else_the_guide_has_makes_pyros_score_functions_biased(kind, subclass):
    def model():
        with pyro.plate("data", 4):
            pyro.sample("z", SpikeSlab(dist.Normal(torch.zeros(4), 1.0), probs=0.2))

    def guide():
        logits = pyro.param("logits", torch.zeros(4))
        with pyro.plate("data", 4):
            z = pyro.sample("z", SpikeSlab(dist.Normal(torch.ones(4), 0.5), logits=logits, gate="score"))
            if kind == "factor":
                pyro.factor("f", z**2, has_rsample=False)
            else:
                pyro.sample("u", dist.Normal(z.detach(), 1.0), infer={"is_auxiliary": True})

    class Subclass(infer.Trace_ELBO):
        pass

    elbo = Subclass() if subclass else infer.Trace_ELBO()
    with pytest.warns(UserWarning, match="leaves the density of sites that only the guide has, factors included"):
        elbo.loss_and_grads(model, guide)


def test_looking_from_a_method_keeps_nothing_of_the_callers_alive():
    class Trainer:
        def train(self):
            z = SpikeSlab(dist.Normal(torch.zeros(3), 1.0), logits=torch.zeros(3, requires_grad=True))()
            SpikeSlab(dist.Normal(torch.zeros(3), 1.0), probs=0.3).log_prob(z)
            gone = weakref.ref(z)
            del z
            return gone()

    gc.disable()
    try:
        assert Trainer().train() is None
    finally:
        gc.enable()


def test_a_guide_replayed_on_its_own_trace_is_scored_as_it_was():
    program = Decoupled()
    first = pyro.poutine.trace(lambda: program.guide("score")).get_trace()
    second = pyro.poutine.trace(pyro.poutine.replay(lambda: program.guide("score"), first)).get_trace()
    first.compute_score_parts()
    second.compute_score_parts()
    for one, other in zip(first.nodes["z"]["score_parts"], second.nodes["z"]["score_parts"], strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other))
