"""What a captured step sees of programs and arguments beside the values of tensors."""

import functools
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn

import vsc_pyro as vsc
from vsc_pyro.acceleration import CompiledSVI

CAPTURED = functools.partial(CompiledSVI, backend="eager")


def guide(*_):
    pass


class Line(nn.Module):
    """A location that an attribute, or an argument, says something about."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5))
        self.double = lambda loc: 2 * loc
        self.switch = 1
        self.notes = []

    def model(self, x, flag=None):
        pyro.module("line", self)
        self.notes = [len(x)]  # anew in every step, as Pyro's automatic guides have their plates
        loc = self.double(self.loc)
        if flag is True or self.switch is True:
            loc = loc + 10
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def made(cls):
    line = Line()
    return line, cls(line.model, guide, torch.optim.SGD(line.parameters(), 0.0), Trace_ELBO())


def both(change, arguments=((), ())):
    """Losses of an eager and of a captured step before and after a change, which must be the same; the captured SVI."""
    x = torch.tensor([0.1, 2.0, -1.0])
    losses = []
    for cls in (vsc.SVI, CAPTURED):
        pyro.clear_param_store()
        line, svi = made(cls)
        first = float(svi.step(x, *arguments[0]))
        change(line)
        losses.append((first, float(svi.step(x, *arguments[1]))))
    assert losses[1] == pytest.approx(losses[0])
    assert losses[0][0] != pytest.approx(losses[0][1])
    return svi


def nothing(_):
    pass


def test_a_function_in_an_attribute_is_seen_to_be_replaced():
    assert not both(lambda line: setattr(line, "double", lambda loc: 3 * loc)).is_eager


def test_one_is_not_true():
    assert not both(lambda line: setattr(line, "switch", True)).is_eager
    assert not both(nothing, ((1,), (True,))).is_eager


def test_an_argument_that_is_neither_a_tensor_nor_fixed_is_refused():
    class Scale:
        pass

    line, svi = made(CAPTURED)
    with pytest.warns(UserWarning, match=r"an argument, .* is neither a tensor nor fixed \(a Scale\)"):
        svi.step(torch.ones(3), Scale())
    assert svi.is_eager
    assert line.notes == [3]


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda vae, name: poutine.scale(getattr(vae, name), scale=0.1),
        lambda vae, name: poutine.scale(poutine.block(getattr(vae, name), hide=["nothing"]), scale=0.1),
        lambda vae, name: functools.partial(getattr(vae, name)),
        lambda vae, name: lambda x: getattr(vae, name)(x),
    ],
    ids=["handler", "handlers", "partial", "closure"],
)
def test_settings_of_a_wrapped_model_are_seen(small_vae, digits, wrapped):
    x = digits.train.images[:20].round()
    losses = []
    for cls in (vsc.SVI, CAPTURED):
        pyro.clear_param_store()
        vae = small_vae()
        programs = wrapped(vae, "model"), wrapped(vae, "guide")
        svi = cls(*programs, torch.optim.SGD(vae.parameters(), 0.0), vsc.AnalyticELBO())
        found = []
        for beta in (1.0, 50.0):
            vae.beta = beta
            torch.manual_seed(1)
            found.append(float(svi.step(x)))
        losses.append(found)
    assert losses[1] == pytest.approx(losses[0])
    assert losses[0][1] > losses[0][0] + 1
    assert not svi.is_eager


def test_data_that_do_not_fit_raise_their_own_error_and_graphs_stay(small_vae, digits, recwarn):
    vae, x = small_vae(), digits.train.images[:20].round()
    svi = CAPTURED(vae.model, vae.guide, torch.optim.Adam(vae.parameters(), 1e-3), vsc.AnalyticELBO())
    svi.step(x)
    with pytest.raises(RuntimeError, match=r"shape .* is invalid for input of size 64"):
        svi.step(x[..., :7])
    assert not svi.is_eager
    assert svi.graph_for((x,), {})[0] is not None
    assert not recwarn.list


@pytest.mark.parametrize(
    "of_number",
    [
        lambda n: {2: 10.0}.get(n, 1.0),
        lambda n: 5.0 if n in {2, 3} else 1.0,
        lambda n: max(n, 2.0) if isinstance(n, float) else n + 0.0,
        lambda n: 1.0 + ("2" in str(n)),
    ],
    ids=["key", "element", "type", "text"],
)
def test_a_program_that_branches_by_a_changing_number_is_eager_or_right(of_number):
    def model(x, number):
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", len(x)), poutine.scale(scale=of_number(number)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    losses = []
    for cls in (vsc.SVI, CAPTURED):
        pyro.clear_param_store()
        svi = cls(model, lambda *_: None, functools.partial(torch.optim.SGD, lr=0.1), Trace_ELBO())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what makes it eager, which is not the same for all
            losses.append([svi.step(torch.ones(3), number) for number in (1.0, 3.0, 4.0, 2.0, 5.0, 2.0, 1.0)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("of_number", "numbers", "warned"),
    [
        (lambda number: number / 2, [0.1 + 0.05 * step for step in range(8)], True),
        (lambda number: 0.5 if number > 3 else 0.1, [*range(1, 9)], True),
        (lambda number: 1.0 / len(range(number)), [1, 1, 2, 1, 2, 2], False),
    ],
    ids=["factor", "branch", "length"],
)
def test_a_number_among_the_arguments_is_a_constant_of_two_graphs_at_most(of_number, numbers, warned):
    def model(x, number, other):
        loc = pyro.param("loc", torch.tensor(0.5)) * other
        with pyro.plate("data", len(x)), poutine.scale(scale=of_number(number)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    losses = []
    for cls in (vsc.SVI, CAPTURED):
        pyro.clear_param_store()
        svi = cls(model, guide, functools.partial(torch.optim.SGD, lr=0.1), Trace_ELBO())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses.append([svi.step(torch.ones(3), number, 2) for number in numbers])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert not svi.is_eager
    assert len(svi.graphs()) == 2
    said = [
        "of any further kind: 2 graphs" in str(w.message) and "pass what changes as" in str(w.message) for w in caught
    ]
    assert said == [True] * warned
