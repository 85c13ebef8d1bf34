"""`SVI`: Pyro's stochastic variational inference with one step for all parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

import pyro
import pyro.infer
import torch
from pyro.infer import ELBO
from pyro.infer.util import torch_item
from pyro.optim import PyroOptim
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vsc_pyro._seeding import trains
from vsc_pyro.models.param_store import unwatched
from vsc_pyro.training.optimizers import OneOptimizer, OptimizerFactory, PyrosOptimizers

T = TypeVar("T")


class SVI(pyro.infer.SVI):
    """`pyro.infer.SVI` that steps all parameters at once, and leaves the loss on the device.

    Pyro's own makes an optimiser for every tensor it finds in the global parameter store and reads the loss back in
    every step. This one updates exactly the parameters a torch optimiser was given, whatever else the store holds, and
    the host runs ahead of the device. Gradients stay on the parameters until the next step. With `vsc_pyro.objectives`
    no step waits for the device; with Pyro's own ELBOs, which do wait, it works as well.

    With one of Pyro's optimisers it does what `pyro.infer.SVI` does: a step updates the parameters that it meets, and
    zeroes their gradients. Where the torch optimiser behind is known to step each parameter alone (Adam, AdamW, SGD,
    RMSprop and their like, without clipping), all of equal options are stepped together, equal to the last bit.

    Args:
        model, guide: Pyro programs.
        optim: a torch optimiser over their parameters; or a function from a list of parameters to one, such as
            ``functools.partial(torch.optim.Adam, lr=1e-3)``, for programs that make theirs as they run (`pyro.param`,
            Pyro's automatic guides): it is given all that the first step meets, and takes in what later steps meet; or
            a `pyro.optim.PyroOptim`, such as ``pyro.optim.Adam({"lr": 1e-3})``.
        loss: a `pyro.infer.ELBO`.

    Raises:
        ValueError: an `optim` that is none of these.
        RuntimeError: in a step with a function `optim`, a parameter of `pyro.param` that has been replaced in the store
            between two steps.
    """

    _fuses: ClassVar[bool] = False  # whether updates may differ from Pyro's by rounding

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        optim: torch.optim.Optimizer | OptimizerFactory | PyroOptim,
        loss: ELBO,
    ) -> None:
        if not (isinstance(optim, (torch.optim.Optimizer, PyroOptim)) or callable(optim)):
            raise ValueError(
                f"optim must be a torch optimiser over the parameters to train, got {type(optim).__name__}; "
                "build one, such as torch.optim.Adam(model.parameters(), lr=1e-3), or a function that does, such as "
                "functools.partial(torch.optim.Adam, lr=1e-3), or one of pyro.optim"
            )
        pyros = isinstance(optim, PyroOptim)
        super().__init__(model, guide, optim if pyros else OneOptimizer(optim), loss)
        self._stepper = PyrosOptimizers(optim, self._fuses) if pyros else self.optim
        self._has_stepped = False
        self._met: dict[str, Tensor] = {}
        self._loss_is_function = not isinstance(loss, ELBO)
        self._loss_looks_for_parameters = getattr(loss, "looks_for_parameters", True)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The torch optimiser; None before the first step where that makes it, and where Pyro's are many."""
        return getattr(self._stepper, "optimizer", None)

    @trains
    def step(self, *args: Any, **kwargs: Any) -> Tensor | float:
        """Take one gradient step; returns the loss, summed over data: Pyro's ELBOs a number, ours a 0-d tensor."""
        self._check_store()
        self._stepper.zero_before()
        if self._stepper.takes_what_is_met:
            with Meeting(self._stepper.parameters) as meeting:
                loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
            met = meeting.kept()
            if self.optim is self._stepper:
                self._met |= met
            self._stepper(distinct(met.values()))
        else:
            with self._registering():
                loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
            self._stepper([])
        self._has_stepped = True
        return torch_item(loss) if self._loss_is_function else loss

    def _registering(self) -> contextlib.AbstractContextManager:
        """Whether programs put their parameters into Pyro's store in this step, once there is no need to."""
        # A caller's handler around the step may be there to see them, and so may an ELBO.
        listening = runtime._PYRO_STACK or self._loss_looks_for_parameters
        return unwatched() if self._has_stepped and not listening else contextlib.nullcontext()

    def _check_store(self) -> None:
        """Raise where Pyro's store has got another tensor since for what the optimiser has been made of."""
        now = dict(pyro.get_param_store().named_parameters())
        for name, parameter in self._met.items():
            if now.get(name, parameter) is not parameter:
                raise RuntimeError(
                    f"Pyro's parameter store holds another tensor under {name!r} than earlier steps met, and the "
                    "optimiser would go on with the old one; change a parameter's values in place, build a new SVI, or "
                    "pass an optimiser of pyro.optim, which trains the new one"
                )


class Meeting(Messenger):
    """Meets the parameters of programs, and takes off gradients that new ones have from elsewhere.

    Args:
        known: those that are not new.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._seen = set(map(id, known))
        self._met: dict[str, Tensor] = {}

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        parameter = self._met[msg["name"]] = msg["value"].unconstrained()
        if id(parameter) not in self._seen:  # a second particle's gradient adds to the first one's
            self._seen.add(id(parameter))
            parameter.grad = None

    def kept(self) -> dict[str, Tensor]:
        """Those that Pyro's store still holds: an average that a step keeps there, and replaces, is not trained."""
        now = dict(pyro.get_param_store().named_parameters())
        return {name: parameter for name, parameter in self._met.items() if now.get(name) is parameter}


def distinct(objects: Iterable[T]) -> list[T]:
    """Return each object once."""
    return list({id(one): one for one in objects}.values())
