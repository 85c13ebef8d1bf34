import dataclasses
import random

import pyro.distributions as dist
import pytest
import torch
from problems.pairs import ADMISSIBLE, build, covering
from torch import nn

from vsc_pyro.acceleration import BACKENDS, CompiledFunction
from vsc_pyro.acceleration.flat_arguments import flatten, rebuild


class Scaling(nn.Module):
    """Draws from a distribution and scales the draws, and does one thing more if asked."""

    def __init__(self, also=None):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("shift", torch.tensor([1.0, 2.0, 3.0]))
        self.attribute = torch.tensor(0.5)
        self.also = also
        self.calls = 0

    def forward(self, q, *rest):
        self.calls += 1
        z = self.weight * q.sample((4,)) + self.shift + self.attribute
        if self.also is not None:
            z = z + self.also()
        return z, q.log_prob(z).sum(0)


def normal(seed=0, size=5):
    torch.manual_seed(seed)
    return dist.Normal(torch.randn(size, 3), torch.rand(size, 3) + 0.1).to_event(1)


def called(function, *args, seed=7):
    torch.manual_seed(seed)
    with torch.no_grad():
        return list(function(*args))


def test_one_graph_reads_arguments_weights_and_seeds_anew():
    module = Scaling()
    function = CompiledFunction(module, module, "scaling", backend="eager")
    torch.testing.assert_close(called(function, normal()), called(module, normal()))
    module.calls = 0
    with torch.no_grad():
        module.weight.mul_(3)
        module.shift.add_(1)
        module.attribute.add_(1)
    found = [called(function, normal(seed), seed=seed) for seed in range(4)]
    assert module.calls == 0
    torch.testing.assert_close(found, [called(module, normal(seed), seed=seed) for seed in range(4)])
    assert not function.is_eager


def test_another_shape_is_another_graph():
    module = Scaling()
    function = CompiledFunction(module, module, "scaling", backend="eager")
    for size in (5, 2, 5, 2):
        q = normal(size=size)
        torch.testing.assert_close(called(function, q), called(module, q))
    assert len(function._graphs) == 2


def test_capturing_draws_from_nobodys_random_numbers_and_leaves_the_arguments():
    module, q = Scaling(), dist.Bernoulli(logits=torch.zeros(5, 3), validate_args=False).to_event(1)
    function = CompiledFunction(module, module, "scaling", backend="eager")
    first, second = (called(function, q) for _ in range(2))
    torch.testing.assert_close(first, second)
    assert "probs" not in vars(q.base_dist)  # which sampling computes, and keeps


@pytest.mark.usefixtures("compiler")
def test_compiled():
    module = Scaling()
    function = CompiledFunction(module, module, "scaling")
    for seed in range(3):
        torch.testing.assert_close(called(function, normal(seed)), called(module, normal(seed)))
    assert not function.is_eager


HIDDEN = torch.ones(3)


@pytest.mark.parametrize(
    ("also", "reason"),
    [
        (lambda: HIDDEN, r"reads a tensor of shape \(3,\) that is neither in its arguments nor a parameter, buffer"),
        (random.random, "gives something else than when it is called"),
        (lambda: 1.0 if torch.rand(()) > 0.5 else 2.0, "looks at the value of a tensor"),
    ],
)
def test_what_cannot_be_captured_is_called_as_it_is(also, reason):
    module = Scaling(also)
    function = CompiledFunction(module, module, "scaling", backend="eager")
    with pytest.warns(UserWarning, match=f"scaling is not compiled: .*{reason}") as caught:
        called(function, normal())
    assert len(caught) == 1
    assert function.is_eager
    random.seed(0)
    found = called(function, normal())  # without another warning
    random.seed(0)
    torch.testing.assert_close(found, called(module, normal()))


def test_arguments_that_change_or_cannot_be_told_apart():
    module = Scaling()
    function = CompiledFunction(module, module, "scaling", backend="eager")
    for number in range(4):
        called(function, normal(), number)
    with pytest.warns(UserWarning, match="4 graphs have been captured, of arguments of as many kinds"):
        called(function, normal(), 4)

    @dataclasses.dataclass(frozen=True)
    class Listed:
        values: list

    other = CompiledFunction(module, module, "scaling", backend="eager")
    with pytest.warns(UserWarning, match="holds beside tensors is not fixed .*unhashable"):
        called(other, normal(), Listed([1]))


def test_errors_of_the_function_are_its_own():
    def refuse(x):
        raise TypeError("not this")

    with pytest.raises(TypeError, match="not this"):
        CompiledFunction(refuse, nn.Identity(), "refusal", backend="eager")(torch.zeros(3))
    with pytest.raises(ValueError, match="unknown backend 'jit'"):
        CompiledFunction(refuse, nn.Identity(), "refusal", backend="jit")


@pytest.mark.parametrize(("encoder_name", "prior_name"), covering(ADMISSIBLE))
def test_distributions_are_put_together_again(encoder_name, prior_name, digits):
    model = build(encoder_name, prior_name)
    x = digits.test.images[:6]
    with model.evaluating():
        # A batch's numbers in the place of another's.
        one, other = ((model.encoder(part), model.prior(part)) for part in (x[:3], x[3:]))
        tensors, rest, key = flatten(one)
        other_tensors, _, other_key = flatten(other)
        z = other[0].sample()
        got = [d.log_prob(z) for d in rebuild(rest, other_tensors)]
        torch.testing.assert_close(got, [d.log_prob(z) for d in other], equal_nan=True)
        assert key == other_key
        assert len({id(tensor) for tensor in tensors}) == len(tensors)
        assert flatten(model.encoder(x))[2] != key[1:]


def test_what_holds_no_tensor_is_left_and_what_does_is_taken_apart():
    x = torch.ones(2)
    transformed = dist.TransformedDistribution(dist.Normal(x, 1.0), [dist.transforms.AffineTransform(2 * x, 3.0)])
    value = {"a": [x, (1, "b")], "c": transformed, "again": x}
    tensors, rest, key = flatten(value)
    again = rebuild(rest, [tensor + 1 for tensor in tensors])
    assert again["a"][1] == (1, "b")
    assert again["again"] is again["a"][0]
    torch.testing.assert_close(again["c"].log_prob(x), dist.Normal(9.0, 6.0).log_prob(torch.tensor([1.0, 1.0])))
    assert flatten(value | {"a": [x, (2, "b")]})[2] != key


class Particular(dist.Normal):
    """Not to be had without arguments, so that it cannot be put together again."""

    def __new__(cls, loc, scale):
        return super().__new__(cls)


def test_a_distribution_that_cannot_be_put_together_again():
    module, q = Scaling(), Particular(torch.zeros(2, 3), 1.0)
    function = CompiledFunction(module, module, "scaling", backend="eager")
    with pytest.warns(UserWarning, match="scaling is not compiled: recording it fails"):
        found = called(function, q)
    torch.testing.assert_close(found, called(module, q))


@pytest.mark.parametrize("wrong", [lambda *_: lambda *tensors: [7 * torch.ones(4, 5, 3), torch.zeros(5)], None])
def test_what_a_backend_makes_of_a_graph_is_compared_and_its_failure_told(monkeypatch, wrong):
    def failing(*_):
        def run(*tensors):
            raise RuntimeError("no launcher")

        return run

    monkeypatch.setitem(BACKENDS, "inductor", wrong or failing)
    module = Scaling()
    function = CompiledFunction(module, module, "scaling")
    reason = "captured, it gives something" if wrong else "comparing what was captured fails .RuntimeError: no launcher"
    with pytest.warns(UserWarning, match=f"scaling is not compiled: {reason}"):
        got = called(function, normal())
    torch.testing.assert_close(got, called(module, normal()))
    assert function.is_eager


def test_a_tensor_in_the_place_of_another_is_read():
    module = Scaling()
    function = CompiledFunction(module, module, "scaling", backend="eager")
    called(function, normal())
    module.attribute = torch.tensor(100.0)
    module.load_state_dict({"weight": torch.tensor(-3.0), "shift": torch.zeros(3)}, assign=True)
    torch.testing.assert_close(called(function, normal()), called(module, normal()))
    assert not function.is_eager


def test_one_is_not_true():
    x = torch.ones(3)
    function = CompiledFunction(lambda x, how: [10 * x if how is True else x], nn.Identity(), "it", backend="eager")
    assert [float(function(x, how)[0][0]) for how in (1, True, 1.0)] == [1, 10, 1]
