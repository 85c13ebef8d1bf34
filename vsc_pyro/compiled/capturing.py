"""A captured step, and what it is held against: the step as it is taken eagerly."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from vsc_pyro.compiled.comparing import forked, same, undisturbed
from vsc_pyro.compiled.memento import Memento
from vsc_pyro.compiled.recording import NotCapturedError
from vsc_pyro.schedules import Setting
from vsc_pyro.svi import Meeting, distinct

# After so many steps of a graph, and every so many from then on, it is held against an eager step again.
_CHECKS = (10, 100)
_STEPS_BETWEEN_CHECKS = 1000


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


def compare(
    run: Callable[..., Any],
    graph: Graph,
    arguments: list[Tensor],
    rehearsal: Rehearsal,
    memento: Memento,
    are_alike: Callable[[list[Tensor], list[Tensor]], bool] = same,
    attempts: int = 1,
) -> None:
    """Raise unless `run` is the step as it is taken eagerly, for random numbers other than it was made with."""
    for _ in range(attempts):
        graph.refresh()
        with forked([*arguments, *graph.inputs]):
            got = [value.clone() for value in undisturbed(run, [*arguments, *graph.inputs])]
        memento.put_back_values()
        expected = rehearsal()  # which leaves other random numbers for the next time
        memento.put_back_values()
        if change := memento.difference():
            raise NotCapturedError(f"the step {change}")
        if rehearsal.reached == graph.reached and are_alike(expected, got):
            return
    raise NotCapturedError(
        "the captured step differs from an eager one; model and guide depend on something other than their "
        "arguments, parameters, buffers and torch's random numbers (a trial of them may have moved it on)"
    )
