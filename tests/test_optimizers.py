"""`SVI` and `CompiledSVI` in the place of `pyro.infer.SVI`, with Pyro's optimisers."""

import contextlib
import copy
import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import nn

import vsc_pyro as vsc

CAPTURED = functools.partial(vsc.CompiledSVI, backend="eager")
OURS = {"eager": vsc.SVI, "captured": CAPTURED}
IGNORE_EAGER = "ignore:CompiledSVI takes eager steps from here on"


@pytest.fixture(params=OURS)
def ours(request):
    return OURS[request.param]


def adam():
    return pyro.optim.Adam({"lr": 0.05})


def run(cls, programs, optim, loss, batches):
    """Losses, parameters and the SVI, of steps from a store and a seed of their own."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    model, guide = programs()
    svi = cls(model, guide, optim, loss)
    losses = [svi.step(*batch) for batch in batches]
    return losses, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}, svi


def assert_like_pyros(cls, programs, make_optim, make_loss, batches, ours_optim=None, **tolerance):
    """The same losses and parameters as of `pyro.infer.SVI`; returns the SVI."""
    expected = run(SVI, programs, make_optim(), make_loss(), batches)
    got = run(cls, programs, (ours_optim or make_optim)(), make_loss(), batches)
    assert all(type(loss) is float for loss in got[0])
    torch.testing.assert_close(got[:2], expected[:2], **tolerance)
    return got[2]


# Pyro's own programs --------------------------------------------------------------------------------------------------


class PlainVAE(nn.Module):
    """Of Pyro's tutorial."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(20, 16), nn.Softplus(), nn.Linear(16, 6))
        self.decoder = nn.Sequential(nn.Linear(3, 16), nn.Softplus(), nn.Linear(16, 20), nn.Sigmoid())

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(x.shape[0], 3), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(self.decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


def plain_vae():
    vae = PlainVAE()
    return vae.model, vae.guide


def regression():
    def model(x, y):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ weight, scale), obs=y)

    return model, AutoNormal(model)


def mixture():
    @config_enumerate
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], 1.0), obs=x)

    return model, AutoDelta(pyro.poutine.block(model, expose=["weights", "locs"]))


@pytest.fixture
def line():
    x = torch.randn(30, 3)
    return x, x @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(30)


def test_pyros_vae(ours):
    x = torch.rand(25, 20).round()
    svi = assert_like_pyros(ours, plain_vae, adam, Trace_ELBO, 30 * [(x,)], rtol=1e-4, atol=1e-4)
    assert not getattr(svi, "is_eager", False)


def test_a_regression_with_an_automatic_guide(ours, line):
    svi = assert_like_pyros(ours, regression, adam, Trace_ELBO, 30 * [line], rtol=1e-4, atol=1e-4)
    assert not getattr(svi, "is_eager", False)


def test_a_mixture_with_enumeration_is_the_same_and_eager_with_a_warning():
    batches = 10 * [(torch.cat([torch.randn(10), 5 + torch.randn(10)]),)]
    loss = functools.partial(TraceEnum_ELBO, max_plate_nesting=1)
    assert_like_pyros(vsc.SVI, mixture, adam, loss, batches, rtol=0, atol=0)
    with pytest.warns(UserWarning, match="eager steps from here on: it looks at the value of a tensor, in line .*pyro"):
        assert_like_pyros(CAPTURED, mixture, adam, loss, batches, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings(IGNORE_EAGER)
def test_a_loss_that_is_a_function(ours, line):
    loss = lambda: Trace_ELBO().differentiable_loss  # noqa: E731
    assert_like_pyros(ours, by_hand, adam, loss, 4 * [line], rtol=1e-5, atol=1e-6)


def regression_by_hand(x, y):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, 0.5), obs=y)


def guide_by_hand(x, y):
    loc = pyro.param("loc", torch.zeros(3))
    scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
    pyro.sample("weight", dist.Normal(loc, scale).to_event(1))


def by_hand():
    return regression_by_hand, guide_by_hand


# Optimisers -----------------------------------------------------------------------------------------------------------


def by_name(name):
    return {"lr": 0.1} if name == "loc" else {"lr": 0.01}


def decaying():
    settings = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.5}
    return pyro.optim.ExponentialLR(settings)


OPTIMISERS = {
    "adam": adam,
    "adamw": lambda: pyro.optim.AdamW({"lr": 0.05, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    "sgd": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9}),
    "rmsprop": lambda: pyro.optim.RMSprop({"lr": 0.01}),
    "adagrad": lambda: pyro.optim.Adagrad({"lr": 0.1}),
    "options of each": lambda: pyro.optim.Adam(by_name),
    "clipped": lambda: pyro.optim.Adam({"lr": 0.05}, {"clip_norm": 1.0}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9}),
    "decaying": decaying,
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_steps_as_in_pyro_to_the_last_bit(line, name):
    states = []
    for cls in (SVI, vsc.SVI, CAPTURED):
        losses, _, svi = run(cls, by_hand, OPTIMISERS[name](), Trace_ELBO(), 4 * [line])
        if name == "decaying":
            svi.optim.step()  # the user's
        losses += [svi.step(*line) for _ in range(4)]
        states.append((losses, dict(pyro.get_param_store().items()), svi.optim.get_state()))
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)
    torch.testing.assert_close(states[2], states[0], rtol=1e-5, atol=1e-6)  # one kernel for all


def test_states_that_are_loaded_are_gone_on_with(line):
    _, _, svi = run(vsc.SVI, by_hand, adam(), Trace_ELBO(), 5 * [line])
    state, store = svi.optim.get_state(), pyro.get_param_store().get_state()
    ends = []
    for cls in (SVI, vsc.SVI):
        pyro.clear_param_store()
        pyro.get_param_store().set_state(
            {
                "params": {n: p.detach().clone().requires_grad_() for n, p in store["params"].items()},
                "constraints": store["constraints"],
            }
        )
        optim = adam()
        optim.set_state(copy.deepcopy(state))
        other = cls(*by_hand(), optim, Trace_ELBO())
        torch.manual_seed(1)
        ends.append([other.step(*line) for _ in range(5)])
    assert ends[0] == ends[1]


# Parameters that come, go and are replaced ----------------------------------------------------------------------------


def staged():
    """A scale, and a module, that are parameters in some of the steps alone."""
    torch.manual_seed(3)
    shift = nn.Linear(1, 3)

    def model(x, late):
        loc = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        if late:
            pyro.module("shift", shift)
            loc = loc + shift(torch.ones(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x, late):
        loc, scale = pyro.param("loc", torch.zeros(3)), torch.ones(3)
        if late:
            scale = pyro.param("scale", torch.ones(3), constraint=dist.constraints.positive)
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return model, guide


ALTERNATING = [False] * 4 + [True] * 4 + [False] * 3 + [True] * 4


@pytest.mark.parametrize("optim", [None, functools.partial(torch.optim.Adam, lr=0.05)], ids=["pyro's", "function"])
def test_parameters_that_appear_late_or_in_some_branches_are_trained_as_in_pyro(ours, optim):
    batches = [(torch.ones(20, 3), late) for late in ALTERNATING]
    ours_optim = None if optim is None else lambda: optim
    svi = assert_like_pyros(ours, staged, adam, Trace_ELBO, batches, ours_optim, rtol=1e-5, atol=1e-6)
    assert not getattr(svi, "is_eager", False)
    assert (pyro.param("scale") != 1).all()


@pytest.mark.filterwarnings(IGNORE_EAGER)
@pytest.mark.parametrize("optim", [None, functools.partial(torch.optim.Adam, lr=0.05)], ids=["pyro's", "function"])
def test_one_that_a_closure_counts_steps_for(ours, optim):
    def programs():
        model, guide = staged()
        steps = {"taken": 0}

        def counting(x):
            steps["taken"] += 1
            guide(x, steps["taken"] > 5)

        return lambda x: model(x, False), counting

    ours_optim = None if optim is None else lambda: optim
    batches = 15 * [(torch.ones(20, 3),)]
    if ours is CAPTURED:  # trying steps out has moved the count on
        svi = ours(*programs(), optim or adam(), Trace_ELBO())
        for batch in batches:
            svi.step(*batch)
        assert svi.is_eager
    else:
        assert_like_pyros(ours, programs, adam, Trace_ELBO, batches, ours_optim, rtol=1e-5, atol=1e-6)
    assert (pyro.param("scale") != 1).all()


def test_one_that_is_replaced_in_the_store_is_trained_on_by_pyros_optimisers(ours, line):
    ends = []
    for cls in (SVI, ours):
        *_, svi = run(cls, by_hand, adam(), Trace_ELBO(), 5 * [line])
        pyro.get_param_store()["loc"] = torch.full((3,), 7.0)
        losses = [svi.step(*line) for _ in range(3)]
        pyro.clear_param_store()
        ends.append((losses, [svi.step(*line) for _ in range(3)], pyro.param("loc").detach()))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-5)


def reinforced(**baseline):
    def programs():
        if "nn_baseline" in baseline:
            torch.manual_seed(4)
            network = nn.Linear(2, 1)
            own = {"nn_baseline": lambda x: network(x).squeeze(-1).squeeze(-1), "nn_baseline_input": torch.ones(1, 2)}
        else:
            network, own = None, baseline

        def model(x):
            on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(2 * on, 1.0).expand(x.shape).to_event(2), obs=x)

        def guide(x):
            if network is not None:
                pyro.module("baseline", network)
            infer = {"baseline": own}
            pyro.sample("on", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))), infer=infer)

        return model, guide

    return programs


@pytest.mark.parametrize("optim", [None, functools.partial(torch.optim.Adam, lr=0.05)], ids=["pyro's", "function"])
@pytest.mark.parametrize("baseline", [{"use_decaying_avg_baseline": True}, {"nn_baseline": True}], ids=str)
def test_pyros_baselines(ours, optim, baseline):
    ours_optim = None if optim is None else lambda: optim
    decays = "nn_baseline" not in baseline and ours is CAPTURED
    changes = "changes '__baseline_avg_downstream_cost_on' in Pyro's parameter store"
    with pytest.warns(UserWarning, match=changes) if decays else contextlib.nullcontext():
        assert_like_pyros(
            ours,
            reinforced(**baseline),
            adam,
            TraceGraph_ELBO,
            8 * [(torch.ones(5, 3),)],
            ours_optim,
            rtol=1e-5,
            atol=1e-6,
        )


# The optimiser of `fit`


class Stepping(torch.optim.Optimizer):
    """An optimiser of a third party, whose step has arguments of its own."""

    def step(self, loss):
        raise NotImplementedError


def of_another(optimizer):
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), 2)


def fitted(small_vae, digits, **settings):
    model = small_vae()
    vsc.fit(model, digits.train[:100], device="cpu", progress=False, cooldown=0, **({"epochs": 2} | settings))
    return model


def test_a_functions_optimiser_is_taken(small_vae, digits):
    adamw = functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.2, fused=True)
    models = [fitted(small_vae, digits, **settings) for settings in ({"weight_decay": 0.2}, {"optimizer": adamw})]
    models += [fitted(small_vae, digits, **settings) for settings in ({}, {"weight_decay": 0})]
    ends = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[2], ends[3])
    assert not torch.equal(ends[0], ends[2])


class ByIdentity(torch.optim.Optimizer):
    """An optimiser of a third party, whose state a copy cannot find."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})
        self.rates = {id(parameter): lr for parameter in parameters}

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter -= self.rates[id(parameter)] * parameter.grad


@pytest.mark.parametrize("cls", [ByIdentity, torch.optim.SGD])
def test_a_trial_step_is_not_seen_by_hooks_and_needs_no_copy_that_works(small_vae, digits, cls):
    steps = []

    def make(parameters):
        optimizer = cls(parameters, lr=1e-3)
        optimizer.register_step_post_hook(lambda *_: steps.append(parameters[0].detach().clone()))
        return optimizer

    model = fitted(small_vae, digits, optimizer=make, batch_size=50)
    assert len(steps) == 4
    assert torch.equal(steps[-1], next(model.parameters()))


@pytest.mark.parametrize("norm", [0.5, 1e6])
def test_gradients_are_scaled_to_a_joint_norm(small_vae, digits, norm):
    settings = {"optimizer": functools.partial(torch.optim.SGD, lr=1e-3), "epochs": 1, "batch_size": 100}
    start = small_vae()
    start.prepare(digits.train.images[:100])
    plain, clipped = (fitted(small_vae, digits, **settings, **clip) for clip in ({}, {"clip_norm": norm}))
    moved = [
        torch.cat([(a - b).detach().flatten() for a, b in zip(m.parameters(), start.parameters(), strict=True)]) / 1e-3
        for m in (plain, clipped)
    ]
    assert moved[0].norm() > 5
    torch.testing.assert_close(moved[1], moved[0] * min(1, norm / float(moved[0].norm())), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": torch.optim.SGD, "lr": 0.1}, r"lr=0\.1 is an option of Adam; with optimizer=, let"),
        ({"optimizer": torch.optim.SGD, "weight_decay": 0.1}, r"weight_decay=0\.1 is an option of Adam"),
        ({"optimizer": "sgd"}, r"optimizer must be a function from a list of parameters .* got 'sgd'"),
        ({"optimizer": lambda: None}, r"optimizer must be a function from a list of parameters .* got <function"),
        ({"optimizer": lambda p: Stepping(p, {"lr": 0.1})}, "by dense gradients alone, .* argument: 'loss'"),
        ({"optimizer": lambda p: Stepping(p, {})}, "must have a learning rate lr, .* and Stepping has None"),
        ({"optimizer": list}, "to a torch optimiser, .* and it returned list"),
        ({"optimizer": torch.optim.LBFGS}, "a step of LBFGS .* argument: 'closure'"),
        ({"optimizer": torch.optim.SparseAdam}, "a step of SparseAdam .* does not support dense gradients"),
        ({"optimizer": lambda p: torch.optim.SGD(p, lr=math.nan)}, "a step of SGD .* become NaN or infinite"),
        ({"optimizer": lambda p: torch.optim.SGD(p[1:])}, "must hold the 8 parameters that it gets .* got 7"),
        ({"optimizer": lambda p: torch.optim.SGD([nn.Parameter(p[0])])}, "parameters that it gets .* got 1"),
        ({"clip_norm": 0}, "clip_norm must be a finite number above 0, got 0"),
        ({"clip_norm": True}, "clip_norm must be a finite number above 0, got True"),
        ({"lr": True}, "lr must be a finite number above 0, got True"),
        ({"weight_decay": -1.0}, r"weight_decay must be a finite number of at least 0, got -1\.0"),
        ({"weight_decay": math.nan}, "weight_decay must be a finite number of at least 0, got nan"),
        ({"weight_decay": False}, "weight_decay must be a finite number of at least 0, got False"),
        ({"lr_schedule": "cosine"}, "lr_schedule must be a function from the optimiser .* got 'cosine'"),
        ({"lr_schedule": lambda optimizer: None}, "torch scheduler of it, .* and it returned NoneType"),
        ({"lr_schedule": of_another}, "torch scheduler of it, .* and it returned StepLR of another optimiser"),
        ({"schedules": 3}, "schedules must map dotted names of settings .* got 3"),
        ({"schedules": {"beta": lambda: 1.0}}, r"schedules\['beta'\] must be a function of the step"),
        ({"progress": "no"}, "progress must be True or False, got 'no'"),
        ({"resume": "no"}, "resume must be True or False, got 'no'"),
        ({"device": "meta"}, "device 'meta' is not available"),
    ],
)
def test_what_cannot_update_parameters_is_refused_before_training(small_vae, digits, settings, message):
    model, before = small_vae(), small_vae().state_dict()
    with pytest.raises(ValueError, match=message):
        vsc.fit(model, digits.train[:100], epochs=1, **({"device": "cpu", "progress": False} | settings))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
