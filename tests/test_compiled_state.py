"""State outside of tensors that a captured step would freeze: it is noticed, and steps are eager."""

import array
import collections
import contextvars
import ctypes
import dataclasses
import functools
import itertools
import math
import random
import sys
import types
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

import vsc_pyro as vsc
from vsc_pyro.acceleration import capture, compiled_svi

CAPTURED = functools.partial(vsc.CompiledSVI, backend="eager")
X = torch.linspace(-1, 1, 24).reshape(8, 3)


def made(cls, noise, **settings):
    """An SVI of a line whose data's spread is what `noise` returns, seeded."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    line = nn.Linear(3, 3)

    def model(x):
        pyro.module("line", line)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(line(x), 1 + noise()).to_event(1), obs=x)

    return cls(model, lambda x: None, torch.optim.Adam(line.parameters(), 1e-2), Trace_ELBO(), **settings)


def losses_of(svi, count=6):
    return [float(svi.step(X)) for _ in range(count)]


# Kinds of state: each returns a function whose numbers go up by a 4,000th in every call, and one that tells the state.

taken = 0


class Clock:
    taken = 0

    def __init__(self):
        self.now = 0

    def tick(self):
        self.now += 1
        return self.now / 4000


class Slotted:
    __slots__ = ("now",)


@dataclasses.dataclass
class Record:
    now: int = 0


def attribute():
    clock = Clock()
    return clock.tick, lambda: clock.now


def attribute_of_an_object_in_a_list():
    held = [(Record(),)]

    def noise():
        held[0][0].now += 1
        return held[0][0].now / 4000

    return noise, lambda: held[0][0].now


def slot():
    slotted = Slotted()
    slotted.now = 0

    def noise():
        slotted.now += 1
        return slotted.now / 4000

    return noise, lambda: slotted.now


def closure():
    now = 0

    def noise():
        nonlocal now
        now += 1
        return now / 4000

    return noise, lambda: now


def global_variable():
    def noise():
        global taken
        taken += 1
        return taken / 4000

    globals()["taken"] = 0
    return noise, lambda: taken


def attribute_of_a_class():
    def noise():
        Clock.taken += 1
        return Clock.taken / 4000

    Clock.taken = 0
    return noise, lambda: Clock.taken


def attribute_of_a_function():
    def noise():
        noise.now += 1
        return noise.now / 4000

    noise.now = 0
    return noise, lambda: noise.now


def default():
    def noise(now=[0]):  # noqa: B006
        now[0] += 1
        return now[0] / 4000

    return noise, lambda: noise.__defaults__[0][0]


def partial():
    def noise(counts):
        counts["now"] += 1
        return counts["now"] / 4000

    counts = collections.Counter()
    return functools.partial(noise, counts), lambda: counts["now"]


@dataclasses.dataclass(frozen=True)
class FrozenRecord:
    counts: dict = dataclasses.field(default_factory=lambda: {"now": 0})


def dictionary_of_a_frozen_record():
    record = FrozenRecord()

    def noise():
        record.counts["now"] += 1
        return record.counts["now"] / 4000

    return noise, lambda: record.counts["now"]


def module_that_is_imported_within():
    def noise():
        from local_package import submodule

        submodule.now += 1
        return submodule.now / 4000

    package, submodule = types.ModuleType("local_package"), types.ModuleType("local_package.submodule")
    package.submodule, submodule.now = submodule, 0
    sys.modules.update({"local_package": package, "local_package.submodule": submodule})
    return noise, lambda: submodule.now


def attribute_of_a_tensor():
    tensor = torch.zeros(())
    tensor.now = 0

    def noise():
        tensor.now += 1
        return tensor.now / 4000

    return noise, lambda: tensor.now


def what_a_cached_function_returns():
    cached = functools.cache(Record)
    cached()

    def noise():
        cached().now += 1
        return cached().now / 4000

    return noise, lambda: cached().now


def context_variable():
    now = contextvars.ContextVar("now", default=0)

    def noise():
        now.set(now.get() + 1)
        return now.get() / 4000

    return noise, now.get


def container(made_of, take):
    def kind():
        held = made_of()
        return lambda: take(held), lambda: list(held)

    return kind


def numpy_array():
    now = np.zeros(1)

    def noise():
        now[0] += 1
        return float(now[0]) / 4000

    return noise, lambda: now[0]


def pythons_random():
    random.seed(1)
    own = random.Random(0)
    return lambda: own.random() + random.random(), lambda: (own.getstate(), random.getstate())


def numpys_random():
    np.random.seed(1)  # noqa: NPY002
    own = np.random.default_rng(0)
    return (
        lambda: float(own.random() + np.random.rand()),  # noqa: NPY002
        lambda: (own.bit_generator.state, np.random.get_state()[1].tolist()),  # noqa: NPY002
    )


def tensor_that_is_replaced():
    held = types.SimpleNamespace(now=torch.zeros(()))

    def noise():
        held.now = held.now + 1
        return held.now / 4000

    return noise, lambda: float(held.now)


def generator():
    def count():
        now = 0
        while True:
            now += 1
            yield now / 4000

    numbers = count()
    return lambda: next(numbers), lambda: numbers.gi_frame.f_locals["now"]


def iterator():
    numbers = itertools.count(1)
    return lambda: next(numbers) / 4000, lambda: repr(numbers)


NAMED = {
    "changes 'now' in Python": [
        attribute,
        attribute_of_an_object_in_a_list,
        slot,
        closure,
        attribute_of_a_function,
        partial,
        tensor_that_is_replaced,
        dictionary_of_a_frozen_record,
        numpy_array,
    ],
    "changes 'taken' in Python": [global_variable, attribute_of_a_class],
    "changes 'noise' in Python": [default],
    "changes 'held' in Python": [
        container(lambda: list(range(9, 0, -1)), lambda held: held.pop() / 4000),
        container(lambda: collections.deque(range(9)), lambda held: held.popleft() / 4000),
        container(set, lambda held: held.add(len(held)) or len(held) / 4000),
    ],
    # Out of sight, but not of effect.
    "the captured step differs from an eager one": [
        container(lambda: array.array("d", range(50)), lambda held: held.pop(0) / 4000),
        module_that_is_imported_within,
        attribute_of_a_tensor,
        what_a_cached_function_returns,
        context_variable,
        pythons_random,
        numpys_random,
        generator,
        iterator,
    ],
}


@pytest.mark.parametrize(("kind", "reason"), [(kind, reason) for reason, kinds in NAMED.items() for kind in kinds])
def test_state_that_a_step_changes_is_noticed(kind, reason):
    noise, _ = kind()
    svi = made(CAPTURED, noise)
    with pytest.warns(UserWarning, match=f"eager steps from here on: .*{reason}.* may have moved") as caught:
        losses_of(svi)
    assert svi.is_eager
    assert len(caught) == 1


@pytest.mark.parametrize("every", [10, 1000, 10**6])
def test_state_without_an_effect_yet_and_state_with_a_tiny_one(every):
    """A counter that decides later, or drifts by a millionth of the noise in every step."""
    now = 0

    def noise():
        nonlocal now
        now += 1
        return now / 10**6 if every == 10**6 else 0.5 + now // every

    with pytest.warns(UserWarning, match="changes 'now' in Python"):
        losses_of(made(CAPTURED, noise), 1)
    hidden = ctypes.c_double(0.0)

    def drifting():
        hidden.value += 1
        return 0.5 + hidden.value / 10**6

    with pytest.warns(UserWarning, match="the captured step differs from an eager one"):
        losses_of(made(CAPTURED, drifting), 1)


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros(()), np.zeros((4, 4))[::2, 1], np.array([1, "two"], object)])
def test_arrays_and_variables_without_a_value_do_not_stop_a_capture(array):
    def noise():
        return 0.5 if len(array.shape) < 5 else missing

    svi = made(CAPTURED, noise)
    losses_of(svi)
    assert not svi.is_eager
    if svi.is_eager:
        missing = 0.0


def test_tensors_and_generators_of_torch_are_a_captured_steps_own():
    def kind():
        held = types.SimpleNamespace(now=torch.zeros(()), generator=torch.Generator().manual_seed(0))
        return (
            lambda: held.now.add_(1) / 4000 + torch.rand((), generator=held.generator),
            lambda: (float(held.now), held.generator.get_state().tolist()),
        )

    ends = []
    for cls in (vsc.SVI, CAPTURED):
        noise, state = kind()
        svi = made(cls, noise)
        ends.append((losses_of(svi), state()))
    assert not svi.is_eager
    assert ends[0] == ends[1]


def test_what_is_made_anew_or_once_is_no_state():
    seen = {}
    scratch = types.SimpleNamespace(notes=None)

    def noise():
        scratch.notes = {"sizes": [len(X)], "of": Record(3)}  # in every step
        return seen.setdefault("noise", 0.5)  # in the first

    svi = made(CAPTURED, noise)
    losses_of(svi)
    assert not svi.is_eager
    assert scratch.notes["of"] == Record(3)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: math.sqrt(x.var().item()),
        lambda x: x.var().item() ** 0.5,
        lambda x: float(f"{x.var().item():.3f}"),
        lambda x: abs(x.var().item()),
        lambda x: float(torch.tensor([x.var().item()] * 2).sum()),
    ],
    ids=["sqrt", "power", "text", "abs", "list"],
)
def test_numbers_that_are_read_are_not_captured_as_nan(read):
    svi = made(CAPTURED, lambda: read(X))
    with pytest.warns(UserWarning, match="it looks at the value of a tensor"):
        assert all(map(math.isfinite, losses_of(svi)))
    assert svi.is_eager


def test_numbers_that_are_read_may_enter_tensor_operations():
    losses = [losses_of(made(cls, lambda: 0.1 * X.var().item() + 1)) for cls in (vsc.SVI, CAPTURED)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_running_averages_in_modules_are_as_if_nothing_had_been_tried_out():
    class Average(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(()))
            self.calls = 0

        def forward(self, x):
            self.mean = 0.9 * self.mean + 0.1 * x.mean()
            self.calls += 1
            return self.mean + self.calls / 10

    ends = []
    for cls in (vsc.SVI, CAPTURED):
        average = Average()
        svi = made(cls, lambda average=average: average(X + 1))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "CompiledSVI takes eager steps")
            ends.append((losses_of(svi), float(average.mean), average.calls))
    assert svi.is_eager
    assert ends[1] == ends[0]


def test_a_global_variable_of_a_function_within_is_seen():
    def noise():
        def count():
            global taken
            taken += 1

        count()
        return 0.5 if taken < 1000 else 0.6

    globals()["taken"] = 0
    with pytest.warns(UserWarning, match="changes 'taken' in Python"):
        losses_of(made(CAPTURED, noise), 1)


def test_captures_come_to_an_end(monkeypatch):
    monkeypatch.setattr(compiled_svi, "_MAX_CAPTURES", 3)
    held = [nn.Linear(1, 1)]

    def noise():
        return 0.5 + 0 * held[0](torch.ones(1)).detach().sum()

    svi = made(CAPTURED, noise)

    def step_with_another_module():
        held[0] = nn.Linear(1, 1)
        svi._graphs.clear()
        losses_of(svi, 1)

    for _ in range(3):
        step_with_another_module()
    with pytest.warns(UserWarning, match="eager steps of any further kind"):
        step_with_another_module()
    assert not svi.is_eager


# What only a later comparison sees ------------------------------------------------------------------------------------


def test_what_changes_around_the_steps_is_seen_by_a_later_comparison():
    settings, found = {"noise": 0.5}, []
    svi = made(CAPTURED, lambda: settings["noise"])
    losses_of(svi, 5)
    settings["noise"] = 0.5002
    with pytest.warns(
        UserWarning, match="after 10 steps of a graph, the captured step differs .* the steps after the last"
    ):
        found = losses_of(svi, 8)
    assert svi.is_eager
    twin = made(vsc.SVI, lambda: 0.5)
    assert losses_of(twin, 5 + len(found))[:-2] != found


@pytest.mark.parametrize("period", [2, 5, 10])
def test_what_goes_around_in_a_period_is_seen_by_neighbouring_comparisons(monkeypatch, period):
    monkeypatch.setattr(capture, "_CHECKS", [steps for steps in capture._CHECKS if steps > 1])
    settings = types.SimpleNamespace(phase=0)
    svi = made(CAPTURED, lambda: 0.5 if settings.phase else 0.25)

    def step(number):
        settings.phase = number % period
        svi.step(X)

    with pytest.warns(UserWarning, match="after 11 steps of a graph, the captured step differs"):
        list(map(step, range(12)))
    assert svi.is_eager


def test_minibatches_of_a_holder_are_seen_to_be_replaced():
    batch = types.SimpleNamespace(noise=torch.zeros(()))
    svi = made(CAPTURED, lambda: batch.noise)
    losses_of(svi, 1)
    batch.noise = torch.ones(())
    with pytest.warns(UserWarning, match="after 1 steps of a graph"):
        losses_of(svi, 1)
    assert svi.is_eager


def test_comparisons_go_on_and_leave_no_trace(monkeypatch):
    checked = []
    original = capture.Graph.compare
    monkeypatch.setattr(
        capture.Graph,
        "compare",
        lambda graph, *args, **kw: checked.append(graph.steps) or original(graph, *args, **kw),
    )
    monkeypatch.setattr(capture, "_STEPS_BETWEEN_CHECKS", 60)
    held = types.SimpleNamespace(now=torch.zeros(()))
    svi = made(CAPTURED, lambda: held.now.add_(1) / 4000 + torch.rand(()))
    got = losses_of(svi, 131)
    assert checked == [0, 1, 10, 11, 60, 100, 101, 120]
    assert float(held.now) == 131
    held.now.zero_()
    assert got == losses_of(made(vsc.SVI, lambda: held.now.add_(1) / 4000 + torch.rand(())), 131)


def test_a_gradient_is_held_against_its_own_size():
    """Of one that is a hundred-millionth of the largest, and depends on what is out of sight."""
    hidden = ctypes.c_double(1.0)
    small, large = (torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2))

    def model():
        spread = 1e-4
        pyro.sample("x", dist.Normal(large, spread), obs=torch.zeros((), dtype=torch.float64))
        pyro.factor("y", hidden.value * (small - 1))

    svi = CAPTURED(model, lambda: None, torch.optim.SGD([small, large], 0.0), vsc.TraceELBO())
    for _ in range(10):
        svi.step()
    hidden.value = 1.01
    with pytest.warns(UserWarning, match="after 10 steps of a graph, the captured step differs"):
        svi.step()
    assert large.grad / small.grad == pytest.approx(-1e8 / 1.01)


def test_an_error_says_that_what_is_out_of_sight_may_have_moved_on():
    now = ctypes.c_double(0.0)

    def noise():
        now.value += 1
        return now.value / 10

    with pytest.warns(UserWarning, match=r"something other than .* \(trying them out may have moved it on\)"):
        losses_of(made(CAPTURED, noise))
