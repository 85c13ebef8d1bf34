"""The automatic guide against closed forms, enumeration and Gibbs sampling, and in programs of many structures."""

import functools
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from conftest import assert_mean_equals
from problems.regression import (
    NOISE,
    decoder_of,
    enumerated_logistic,
    linear,
    logistic,
    response,
    simulated,
    standardised,
    trained,
)
from pyro import infer, poutine
from pyro.infer.autoguide import AutoGuideList, AutoNormal, init_to_value
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch.distributions import kl_divergence
from torch.nn.functional import softplus

import vsc_pyro as vsc

ELBOS = {
    "Trace": infer.Trace_ELBO,
    "TraceGraph": infer.TraceGraph_ELBO,
    "TraceMeanField": infer.TraceMeanField_ELBO,
    "ours": vsc.AnalyticELBO,
}


def spikes(*shape, probs=0.3):
    return vsc.SpikeSlab(dist.Normal(torch.zeros(shape), 1.0), probs=probs).to_event(len(shape))


def steps(model, guide, *args, num=20, elbo=None):
    svi = vsc.SVI(model, guide, functools.partial(torch.optim.Adam, lr=0.05), elbo or infer.Trace_ELBO())
    return [float(svi.step(*args)) for _ in range(num)]


# Gradients ------------------------------------------------------------------------------------------------------------


def exact_loss(logits, loc, raw_scale, x, y):
    """Minus the ELBO of the linear regression, in closed form."""
    probs, scale = logits.sigmoid(), softplus(raw_scale)
    mean = probs * loc
    variance = probs * (scale**2 + loc**2) - mean**2
    squares = (y - x @ mean).square() + x.square() @ variance
    posterior = vsc.SpikeSlab(dist.Normal(loc, scale), logits=logits)
    prior = vsc.SpikeSlab(dist.Normal(torch.zeros(2), 1.0), probs=0.2)
    return 0.5 * squares.sum() / NOISE**2 + kl_divergence(posterior, prior).sum()


def gradients(gate, elbo, runs=100):
    """Gradients of several runs and the exact one, for all six parameters of a model of two coefficients."""
    x, y = torch.randn(8, 2), torch.randn(8)
    guide = vsc.AutoSpikeSlab(linear, gate=gate)
    guide(x, y)
    values = {"logits": [-1.0, 0.5], "locs": [0.8, -0.3], "scales": [-1.0, -0.5]}
    parameters = [guide.get_parameter(f"{name}.weights_unconstrained") for name in values]
    for parameter, value in zip(parameters, values.values(), strict=True):
        parameter.data = torch.tensor(value)
    exact = torch.cat(torch.autograd.grad(exact_loss(*parameters, x, y), parameters))
    loss, found = ELBOS[elbo](num_particles=20, vectorize_particles=True, max_plate_nesting=1), []
    for _ in range(runs):
        guide.zero_grad()
        loss.loss_and_grads(linear, guide, x, y)
        found.append(torch.cat([parameter.grad for parameter in parameters]))
    return torch.stack(found), exact


@pytest.mark.parametrize(
    ("gate", "elbo"),
    [*itertools.product(["reinmax"], ELBOS), ("score", "Trace"), ("score", "TraceGraph"), ("disarm", "Trace")],
)
def test_gradients_are_those_of_the_closed_form(gate, elbo):
    assert_mean_equals(*gradients(gate, elbo))


def test_the_comparison_of_gradients_can_fail():
    with pytest.raises(AssertionError, match="standard errors"):
        assert_mean_equals(*gradients("straight-through", "Trace"))


def test_score_functions_are_refused_where_they_would_be_lost():
    guide = vsc.AutoSpikeSlab(linear, gate="score")
    with pytest.raises(NotImplementedError, match="would leave them untrained"):
        infer.TraceMeanField_ELBO().loss_and_grads(linear, guide, *simulated(8))


# Inclusion against the truth ------------------------------------------------------------------------------------------


def errors(guide, truth):
    return (guide.inclusion()["weights"] - truth).abs()


def test_orthogonal_columns_against_enumeration_of_12():
    """The posterior factorises, so that all that is left is the error of the optimiser."""
    x = 10 * torch.linalg.qr(torch.randn(100, 12))[0]
    y = response(x)
    truth = vsc.exact_posterior(decoder_of(x, 0.2), y.unsqueeze(0)).inclusion[0]
    assert ((truth > 0.1) & (truth < 0.9)).any()  # not all are certain
    assert errors(trained(linear, x, y, steps=300), truth).max() < 0.05


@pytest.mark.slow
def test_two_hundred_columns_and_half_as_many_data_against_gibbs():
    x, y = simulated(200)
    truth = vsc.gibbs_posterior(decoder_of(x, 0.05), y.unsqueeze(0), num_samples=100, burn_in=50)
    model = functools.partial(linear, inclusion=0.05)
    found = errors(trained(model, x, y, steps=400), truth.inclusion[0])
    assert found.mean() < 0.01


def test_one_of_two_collinear_columns_is_chosen():
    """The limit of a factorised posterior: the truth is "one of the two", which it cannot say."""
    torch.manual_seed(2)
    x = standardised(torch.randn(100, 2))
    x[:, 1] = x[:, 0] + 0.05 * x[:, 1]
    y = 0.7 * x[:, 0] + NOISE * torch.randn(100)
    truth = vsc.exact_posterior(decoder_of(x, 0.05), y.unsqueeze(0))
    assert (truth.inclusion[0, 0] - truth.inclusion[0, 1]).abs() < 0.25
    model = functools.partial(linear, inclusion=0.05)
    starts = [init_to_value(values={"weights": torch.tensor(start)}) for start in ([0.7, 0.0], [0.0, 0.7])]
    guides = [trained(model, x, y, steps=300, particles=8, init_loc_fn=start) for start in starts]
    for guide, one in zip(guides, (0, 1), strict=True):
        found = guide.inclusion()["weights"]
        assert found[one] - found[1 - one] > 0.5
        bound = -infer.Trace_ELBO(num_particles=50).loss(model, guide, x, y)
        assert bound < truth.log_evidence


@pytest.mark.slow
def test_diabetes_and_breast_cancer():
    table = load_diabetes()
    x, y = (standardised(torch.tensor(part, dtype=torch.float32)) for part in (table.data, table.target))
    truth = vsc.exact_posterior(decoder_of(x, 0.2), y.unsqueeze(0)).inclusion[0]
    # The serum measurements are correlated, so probabilities differ, but decisions do not.
    assert torch.equal(trained(linear, x, y, steps=400, particles=16).inclusion()["weights"] > 0.5, truth > 0.5)
    table = load_breast_cancer()
    x = standardised(torch.tensor(table.data, dtype=torch.float32))[:100, [1, 9]]
    y = torch.tensor(table.target[:100], dtype=torch.float32)
    assert errors(trained(logistic, x, y, steps=300, particles=16), enumerated_logistic(x, y)).max() < 0.05


# Structures -----------------------------------------------------------------------------------------------------------


def many_sites(x):
    pyro.sample("matrix", spikes(3, 2))
    pyro.sample("scalar", spikes())
    pyro.sample("part.dotted", spikes(2).mask(torch.tensor(True)))
    pyro.sample("positive", vsc.SpikeSlab(dist.HalfNormal(torch.ones(2)), probs=0.4).to_event(1))
    pyro.sample("interval", dist.Uniform(2.0, 5.0))
    pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    pyro.sample("observed", spikes(2), obs=torch.zeros(2))
    with pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 5):
        pyro.sample("inner", spikes(2))
        pyro.sample("noise", dist.Gamma(2.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=x)


SHAPES = {
    "matrix": (3, 2), "scalar": (), "part.dotted": (2,), "positive": (2,), "interval": (), "simplex": (3,),
    "inner": (4, 5, 2), "noise": (4, 5),
}  # fmt: skip
SPIKES = ["matrix", "scalar", "part.dotted", "positive", "inner"]


@pytest.mark.filterwarnings("ignore:the KL divergence at site .* is sampled")
@pytest.mark.parametrize("elbo", [infer.Trace_ELBO(), vsc.AnalyticELBO()], ids=["Pyro's", "ours"])
def test_sites_of_all_shapes_and_supports(elbo):
    x = torch.randn(6)
    guide = vsc.AutoSpikeSlab(many_sites)
    losses = steps(many_sites, guide, x, elbo=elbo, num=80)
    assert sum(losses[-20:]) < sum(losses[:20])
    draws = guide(x)
    assert {name: tuple(value.shape) for name, value in draws.items()} == SHAPES
    assert {name: tuple(value.shape) for name, value in guide.median().items()} == SHAPES
    assert list(guide.inclusion()) == SPIKES
    for name, probability in guide.inclusion().items():
        assert probability.shape == SHAPES[name]
        assert probability.mean() < 0.5  # the data say nothing, and the prior says .3 or .4
    assert 2 < draws["interval"] < 5
    torch.testing.assert_close(draws["simplex"].sum(), torch.tensor(1.0))
    assert (draws["positive"] >= 0).all()


def test_quantiles_invert_the_distribution_function():
    def model():
        pyro.sample("real", spikes(4))
        pyro.sample("positive", vsc.SpikeSlab(dist.LogNormal(torch.zeros(4), 1.0), probs=0.4).to_event(1))
        pyro.sample("scale", dist.LogNormal(0.0, 1.0))

    guide = vsc.AutoSpikeSlab(model, init_scale=0.5)
    guide()
    loc, logits = torch.tensor([-2.0, -0.1, 0.1, 2.0]), torch.tensor([2.0, -1.0, 1.0, 4.0])
    levels = torch.linspace(0.02, 0.98, 49)
    for name, family in (("real", dist.Normal), ("positive", dist.LogNormal)):
        guide.get_parameter(f"locs.{name}_unconstrained").data = loc
        guide.get_parameter(f"logits.{name}_unconstrained").data = logits
        posterior = vsc.SpikeSlab(family(loc, 0.5), logits=logits)
        found = guide.quantiles(levels)[name]
        assert (found == 0).any()
        assert (found > 0).any()
        # The distribution function jumps at zero.
        assert (posterior.cdf(found + 1e-4) >= levels.unsqueeze(1)).all()
        assert (posterior.cdf(found - 1e-4) <= levels.unsqueeze(1)).all()
        torch.testing.assert_close(guide.median()[name], guide.quantiles([0.5])[name][0])
    torch.testing.assert_close(guide.median()["scale"], torch.tensor(1.0))


def subsampled(x):
    with pyro.plate("data", len(x), subsample_size=5) as rows:
        z = pyro.sample("z", spikes(2))
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=x[rows])


def test_a_subsampled_plate_has_parameters_for_all_data():
    x = torch.randn(20)
    guide = vsc.AutoSpikeSlab(subsampled)
    guide(x)
    before = {name: parameter.detach().clone() for name, parameter in guide.named_parameters()}
    steps(subsampled, guide, x, num=1)
    for name, parameter in guide.named_parameters():
        assert parameter.shape == (20, 2)
        assert (parameter != before[name]).any(-1).sum() <= 5
    steps(subsampled, guide, x, num=30)
    assert guide.inclusion()["z"].shape == (20, 2)


def test_a_scale_applies_to_what_it_is_put_around():
    x, y = simulated(8)
    guide = vsc.AutoSpikeSlab(linear)
    guide(x, y)

    def loss(*programs):
        torch.manual_seed(0)
        return infer.Trace_ELBO().loss(*programs, x, y)

    scaled = loss(poutine.scale(linear, 0.01), poutine.scale(guide, 0.01))
    assert scaled == pytest.approx(0.01 * loss(linear, guide), rel=1e-4)


def test_two_guides_in_one_store_train_as_each_does_alone():
    def of_two():
        pyro.sample("z", spikes(2))

    def of_three():
        pyro.sample("z", spikes(3))

    def run(*models):
        guides = [vsc.AutoSpikeSlab(model) for model in models]
        for model, guide in zip(models, guides, strict=True):
            torch.manual_seed(0)
            svi = infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), infer.Trace_ELBO())
            for _ in range(5):
                svi.step()
        return [guide.inclusion()["z"] for guide in guides]

    together = run(of_two, of_three)
    assert len(pyro.get_param_store()) == 6
    for one, model in zip(together, (of_two, of_three), strict=True):
        assert torch.equal(one, *run(model))


def test_part_of_a_list_of_guides():
    def model():
        z = pyro.sample("z", spikes(2))
        pyro.sample("w", dist.Normal(z.sum(), 1.0))

    guide = AutoGuideList(model)
    guide.append(vsc.AutoSpikeSlab(poutine.block(model, expose=["z"])))
    guide.append(AutoNormal(poutine.block(model, hide=["z"])))
    steps(model, guide)
    assert guide().keys() == guide.median().keys() == {"z", "w"}


def test_bad_arguments_are_refused():
    def discrete():
        pyro.sample("z", spikes(2))
        pyro.sample("kind", dist.Bernoulli(0.5))

    def mixture():
        pyro.sample("z", spikes(2))
        parts = vsc.SpikeSlab(dist.Normal(torch.zeros(2), 1.0), probs=0.5)
        pyro.sample("mixed", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))

    with pytest.raises(ValueError, match=r"initial_inclusion must lie strictly between 0 and 1, got 1"):
        vsc.AutoSpikeSlab(linear, initial_inclusion=1)
    with pytest.raises(ValueError, match="init_scale must be a finite number above 0, got 0"):
        vsc.AutoSpikeSlab(linear, init_scale=0)
    with pytest.raises(ValueError, match="unknown gate 'hard'"):
        vsc.AutoSpikeSlab(linear, gate="hard")
    with pytest.raises(ValueError, match=r"discrete sample site 'kind'.*hide=\['kind'\]"):
        vsc.AutoSpikeSlab(discrete)()
    with pytest.raises(ValueError, match="the site 'mixed' has an atom and is no SpikeSlab, got MixtureSameFamily"):
        vsc.AutoSpikeSlab(mixture)()
    with pytest.raises(ValueError, match=r"no latent SpikeSlab site; use .*AutoNormal"):
        vsc.AutoSpikeSlab(lambda: pyro.sample("z", dist.Normal(0.0, 1.0)))()
    with pytest.raises(RuntimeError, match="no parameters before its first call"):
        vsc.AutoSpikeSlab(linear).inclusion()
