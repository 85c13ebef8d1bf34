"""A captured step, and what it is held against: the step as it is taken eagerly."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vsc_pyro.acceleration.comparison import COMPARISONS, alike, forked, same, tolerance_of, undisturbed
from vsc_pyro.acceleration.recorder import NotCapturedError
from vsc_pyro.acceleration.saved_state import Memento
from vsc_pyro.training.schedules import Setting
from vsc_pyro.training.svi import Meeting, distinct

# After so many steps of a graph, and every so many, it is held against an eager step again: in neighbouring pairs, for
# whatever goes around in a period would be at the same phase each time.
_CHECKS = (1, 10, 11, 100, 101, 1009, 1010)
_STEPS_BETWEEN_CHECKS = 1999


@dataclasses.dataclass
class Graph:
    """A captured step.

    Attributes:
        recorded: the graph as it was recorded.
        run: that compiled.
        inputs: the tensors that it takes beside the arguments'.
        live: settings, and the tensors among the inputs that stand for them.
        parameters: those that the step met, or the optimiser has.
        reached: which of these have a gradient.
        objects: those that it stands for by their `id`, which another may get once they are gone.
        of_store: parameters by their names in Pyro's store, where they must still be.
        returns_number: whether an eager step returns its loss as a number.
        steps: how often it has been asked for.
    """

    recorded: torch.fx.GraphModule
    run: Callable[..., Any]
    inputs: list[Tensor]
    live: list[tuple[Setting, Tensor]]
    parameters: list[Tensor]
    reached: list[bool]
    objects: list[object]
    of_store: dict[str, Tensor]
    returns_number: bool = False
    steps: int = 0

    @property
    def is_due(self) -> bool:
        """Whether this step is to be held against an eager one."""
        return self.steps in _CHECKS or (self.steps > 0 and self.steps % _STEPS_BETWEEN_CHECKS == 0)

    def refresh(self) -> None:
        """Read anew the settings that may have changed."""
        for setting, tensor in self.live:
            tensor.fill_(setting.get())

    def run_with(self, arguments: list[Tensor]) -> list[Tensor]:
        """The loss and the gradients, with settings as they were read last."""
        return undisturbed(self.run, [*arguments, *self.inputs])

    def __call__(self, arguments: list[Tensor]) -> list[Tensor]:
        self.refresh()
        return self.run_with(arguments)


class Rehearsal:
    """A step's loss and gradients as model and guide compute them, without an update.

    Args:
        loss_and_grads: the ELBO's, of model and guide.
        args, kwargs: the programs'.
        parameters: those whose gradients are asked for.
        others: further tensors that gradients reach.

    Attributes:
        loss: the last one, as it was returned.
        met: the parameters that the programs met, by name.
        reached: which of `parameters` had a gradient.
    """

    def __init__(
        self,
        loss_and_grads: Callable[..., Any],
        args: tuple,
        kwargs: dict[str, Any],
        parameters: list[Tensor],
        others: Iterable[Tensor] = (),
    ) -> None:
        self._loss_and_grads = functools.partial(loss_and_grads, *args, **kwargs)
        self._parameters = parameters
        self._everyone = distinct([*parameters, *others])
        self.loss: Any = None
        self.met: dict[str, Tensor] = {}
        self.reached: list[bool] = []

    def run(self) -> None:
        """Take it, with whatever checks Pyro is set to."""
        self.forget()
        with Meeting(self._everyone) as meeting:
            self.loss = self._loss_and_grads()
        self.met = meeting.kept()
        self.reached = [parameter.grad is not None for parameter in self._parameters]

    def __call__(self, *_: Tensor) -> list[Tensor]:
        """Take it, and return the loss and the gradients that there are."""
        self.run()
        if not isinstance(self.loss, Tensor):
            raise NotCapturedError(f"the ELBO returns its loss as a {type(self.loss).__name__}")
        return [self.loss.detach(), *(p.grad for p in self._parameters if p.grad is not None)]

    def forget(self) -> None:
        """Take off gradients, and the weights that autocast has cast before."""
        for parameter in self._everyone:
            parameter.grad = None
        torch.clear_autocast_cache()

    @contextlib.contextmanager
    def putting_back(self, arguments: Iterable[Tensor]) -> Iterator[None]:
        """Let gradients, and the random numbers that come next, be as if nothing had been rehearsed within."""
        before = [(tensor, tensor.grad) for tensor in self._everyone]
        try:
            with forked(arguments):
                yield
        finally:
            self.forget()
            for tensor, gradient in before:
                tensor.grad = gradient


def hold_against_eager(graph: Graph, arguments: list[Tensor], rehearsal: Rehearsal, memento: Memento) -> None:
    """Raise unless the recorded graph is the step as it is taken eagerly, for the random numbers that come next."""
    inputs = [*arguments, *graph.inputs]

    def put_out(step: Callable[..., list[Tensor]]) -> list[Tensor]:
        with forked(inputs):
            outputs = [value.clone() for value in step(inputs)]
        memento.put_back_values()
        return outputs

    graph.refresh()
    got = put_out(functools.partial(undisturbed, graph.recorded))
    expected = put_out(rehearsal)
    if change := memento.difference():
        raise NotCapturedError(f"the step {change}")
    if rehearsal.reached == graph.reached and same(expected, got):
        return
    # A gradient that is zero in truth is all rounding: on a GPU that need not be the same twice.
    again = put_out(rehearsal)
    repeatable = all(map(torch.equal, expected, again))
    if repeatable or rehearsal.reached != graph.reached or not same(expected, got, torch.finfo(got[0].dtype).eps):
        raise NotCapturedError(
            "the captured step differs from an eager one; model and guide depend on something other than their "
            "arguments, parameters, buffers and torch's random numbers (trying them out may have moved it on)"
        )


def hold_against_recorded(graph: Graph, arguments: list[Tensor], memento: Memento) -> None:
    """Raise unless the compiled graph is the recorded one, but for rounding."""
    inputs = [*arguments, *graph.inputs]
    tolerance = tolerance_of(graph.recorded)
    for _ in range(COMPARISONS):
        with forked(inputs):
            got = [value.clone() for value in undisturbed(graph.run, inputs)]
        memento.put_back_values()
        expected = undisturbed(graph.recorded, inputs)  # which leaves other random numbers for the next time
        memento.put_back_values()
        if alike(expected, got, tolerance):
            return
    raise NotCapturedError("compiled, it gives something else than as it was recorded")
