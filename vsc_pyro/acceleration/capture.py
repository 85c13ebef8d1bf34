"""A captured step, and its comparison with the eager step."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyro
import torch
from torch import Tensor

from vsc_pyro.acceleration.comparison import COMPARISONS, alike, forked, same, tolerance_of, undisturbed
from vsc_pyro.acceleration.program_state import Snapshot
from vsc_pyro.acceleration.recorder import Journal, NotCapturedError, Number, as_tensor, unread
from vsc_pyro.training.svi import Meeting, distinct

# Steps of a graph before it is compared with an eager step again: in neighbouring pairs, because whatever alternates
# would otherwise be met at the same phase each time.
_CHECKS = (1, 10, 11, 100, 101, 1009, 1010)
_STEPS_BETWEEN_CHECKS = 1999


@dataclasses.dataclass
class Graph:
    """A captured step.

    Attributes:
        recorded: the graph as recorded.
        run: the graph as compiled.
        inputs: the tensors that it reads beside the arguments.
        parameters: those that the optimiser has, or that the step met.
        reached: for each parameter, True if it has a gradient.
        alive: the objects that the graph's key refers to by their `id`.
        of_store: parameters by their names in Pyro's store, where they must still be.
        returns_number: True if an eager step returns its loss as a number.
        steps: number of steps so far.
    """

    recorded: torch.fx.GraphModule
    run: Callable[..., Any]
    inputs: list[Tensor]
    parameters: list[Tensor]
    reached: list[bool]
    alive: list[object]
    of_store: dict[str, Tensor]
    returns_number: bool = False
    steps: int = 0

    @property
    def is_due(self) -> bool:
        """Return True if this step is to be compared with an eager one."""
        return self.steps in _CHECKS or self.steps % _STEPS_BETWEEN_CHECKS == 0

    def __call__(self, arguments: list[Tensor]) -> list[Tensor]:
        """Return the loss and the gradients."""
        return undisturbed(self.run, [*arguments, *self.inputs])

    def compare(
        self, arguments: list[Tensor], trial: Trial, snapshot: Snapshot, buffers: list[Tensor], is_new: bool = False
    ) -> None:
        """Raise unless the recorded graph computes the eager step, for the random numbers that come next.

        Args:
            arguments: tensors among the programs' arguments.
            trial: the eager step.
            snapshot: the Python state before it.
            buffers: of the modules, restored afterwards.
            is_new: also require, on a CPU, that the eager step repeats itself to the last bit.
        """
        inputs = [*arguments, *self.inputs]
        outputs = functools.partial(_outputs, inputs=inputs, buffers=buffers)
        got, expected = outputs(functools.partial(undisturbed, self.recorded)), outputs(trial)
        if change := snapshot.change():
            raise NotCapturedError(f"the step changes {change!r} in Python (trying it out may have moved it on)")
        if trial.replaced:
            raise NotCapturedError(f"the step changes {trial.replaced[0]!r} in Pyro's parameter store")
        agree = trial.reached == self.reached and same(expected, got)
        if agree and not is_new:
            return
        # With the same random numbers again, only state out of sight makes a difference to the last bit on a CPU.
        again = outputs(trial)
        repeats = len(again) == len(expected) and all(map(_same_bits, expected, again))
        on_cpu = all(output.device.type == "cpu" for output in got)
        if agree and (repeats or not on_cpu):
            return
        # A gradient that is zero in truth is all rounding: on a GPU that need not be the same twice.
        rounding = torch.finfo(got[0].dtype).eps
        if repeats or on_cpu or trial.reached != self.reached or not same(expected, got, rounding):
            raise NotCapturedError(
                "the captured step differs from an eager one; model and guide depend on something other than their "
                "arguments, parameters, buffers and torch's random numbers (trying them out may have moved it on)"
            )

    def compare_compiled(self, arguments: list[Tensor], buffers: list[Tensor]) -> None:
        """Raise unless the compiled graph computes what the recorded one does, but for rounding."""
        inputs = [*arguments, *self.inputs]
        tolerance = tolerance_of(self.recorded)
        for _ in range(COMPARISONS):
            got, expected = (
                _outputs(functools.partial(undisturbed, way), inputs, buffers) for way in (self.run, self.recorded)
            )
            if alike(expected, got, tolerance):
                return
            torch.rand((), device=got[0].device)  # other random numbers for the next time
        raise NotCapturedError("compiled, it gives something else than as it was recorded")


class Trial:
    """The loss and gradients of an eager step, without an update.

    Args:
        loss_and_grads: a function without arguments that returns the loss and sets gradients.
        parameters: the parameters whose gradients are asked for.
        others: further tensors that gradients reach.

    Attributes:
        loss: the last loss, as the ELBO returned it.
        met: the parameters that the programs met, by name.
        reached: for each of `parameters`, True if it had a gradient.
        replaced: names in Pyro's store for which the step has put another tensor there.
    """

    def __init__(
        self, loss_and_grads: Callable[[], Any], parameters: list[Tensor], others: Iterable[Tensor] = ()
    ) -> None:
        self._loss_and_grads = loss_and_grads
        self.parameters = parameters
        self._everyone = distinct([*parameters, *others])
        self.loss: Any = None
        self.met: dict[str, Tensor] = {}
        self.reached: list[bool] = []
        self.replaced: list[str] = []
        self._made: set[str] = set()

    def run(self) -> None:
        """Run the step, with Pyro's checks if they are on."""
        self._forget()
        store = pyro.get_param_store()
        before = dict(store.named_parameters())
        with Meeting(self._everyone) as meeting:
            self.loss = self._loss_and_grads()
        self.met = meeting.kept()
        self.reached = [parameter.grad is not None for parameter in self.parameters]
        now = dict(store.named_parameters())
        self._made = now.keys() - before.keys()
        self.replaced = [name for name, parameter in before.items() if now.get(name) is not parameter]
        store.set_state({"params": {name: before[name] for name in self.replaced}, "constraints": {}})

    def is_finite(self) -> bool:
        """Return True if the loss and all gradients of the last run are finite."""
        loss = self.loss.tensor if isinstance(self.loss, Number) else torch.as_tensor(self.loss)
        values = [loss, *(p.grad for p in self.parameters if p.grad is not None)]
        return all(bool(value.isfinite().all()) for value in values)

    def delete_made(self) -> None:
        """Delete the parameters that the last run has put into Pyro's store."""
        for name in self._made:
            del pyro.get_param_store()[name]

    def __call__(self, *_: Any) -> list[Tensor]:
        """Return the loss and the gradients that there are."""
        with unread():
            self.run()
        return [as_tensor(self.loss), *(p.grad for p in self.parameters if p.grad is not None)]

    def _forget(self) -> None:
        for parameter in self._everyone:
            parameter.grad = None
        torch.clear_autocast_cache()  # of weights that autocast has cast

    @contextlib.contextmanager
    def undone(self, tensors: Iterable[Tensor]) -> Iterator[None]:
        """Restore gradients and random numbers afterwards."""
        before = [(tensor, tensor.grad) for tensor in self._everyone]
        try:
            with forked(tensors):
                yield
        finally:
            self._forget()
            for tensor, gradient in before:
                tensor.grad = gradient


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.nan_to_num(), other.nan_to_num())


def journal_of(buffers: Iterable[Tensor]) -> Journal:
    """Return a `Journal` that restores these buffers in any case."""
    journal = Journal()
    journal.keep(*buffers)
    return journal


def _outputs(step: Callable[..., list[Tensor]], inputs: list[Tensor], buffers: list[Tensor]) -> list[Tensor]:
    """Return the loss and the gradients of a step that is undone."""
    with forked(inputs), journal_of(buffers):
        return [value.clone() for value in step(inputs)]
