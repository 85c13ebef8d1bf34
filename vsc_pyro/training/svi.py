"""`SVI`: Pyro's stochastic variational inference with one optimiser step for all parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar, cast

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
    """A `pyro.infer.SVI` that updates all parameters in one step and leaves the loss on the device.

    Pyro's SVI makes one optimiser for each tensor in the global parameter store and reads the loss in every step. This
    class updates exactly the parameters of a torch optimiser, whatever the store holds. With `vsc_pyro.objectives` no
    step waits for the device; Pyro's ELBOs work as well, but wait. Gradients stay on the parameters until the next
    step.

    With an optimiser of `pyro.optim`, a step updates the parameters of the programs and zeroes their gradients, as in
    `pyro.infer.SVI`. Parameters with equal options are updated together if their optimiser treats each parameter
    separately (Adam, AdamW, SGD, RMSprop and others, without clipping). The result is the same to the last bit.

    Args:
        model, guide: Pyro programs.
        optim: one of three. A torch optimiser over the parameters. A function from a list of parameters to such an
            optimiser, such as ``functools.partial(torch.optim.Adam, lr=1e-3)``, for programs that create parameters as
            they run (`pyro.param`, Pyro's automatic guides): it receives the parameters of the first step, and new ones
            join later. Or a `pyro.optim.PyroOptim`, such as ``pyro.optim.Adam({"lr": 1e-3})``.
        loss: a `pyro.infer.ELBO`.

    Raises:
        ValueError: an `optim` of another kind.
        RuntimeError: in a step with a function as `optim`, if a parameter in the store has been replaced by another
            tensor.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> model = vsc.VAE(vsc.NormalEncoder(64, 4), vsc.BernoulliDecoder(4, 64), vsc.NormalPrior(4))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        >>> svi = vsc.SVI(model.model, model.guide, optimizer, vsc.AnalyticELBO())
        >>> svi.step(torch.rand(5, 64).round()).shape
        torch.Size([])
    """

    _fuses: ClassVar[bool] = False  # True if updates may differ from Pyro's by rounding

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
        self._stepper: Any = PyrosOptimizers(optim, self._fuses) if pyros else self.optim
        self._has_stepped = False
        self._optimized: dict[str, Tensor] = {}
        self._loss_is_function = not isinstance(loss, ELBO)
        self._loss_looks_for_parameters = getattr(loss, "looks_for_parameters", True)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The torch optimiser; None with `pyro.optim`, and before the first step if that step makes it."""
        return getattr(self._stepper, "optimizer", None)

    @trains
    def step(self, *args: Any, **kwargs: Any) -> Tensor | float:
        """Take one gradient step and return the loss, summed over data.

        The loss is a 0-d tensor with `vsc_pyro.objectives` and a number with Pyro's ELBOs.
        """
        self._check_store()
        self._stepper.zero_before()
        if self._stepper.needs_parameters:
            with Meeting(self._stepper.parameters) as meeting:
                loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
            parameters = meeting.kept()
            if self.optim is self._stepper:
                self._optimized |= parameters
            self._stepper(distinct(parameters.values()))
        else:
            with self._registering():
                loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
            self._stepper([])
        self._has_stepped = True
        return cast("float", torch_item(loss)) if self._loss_is_function else loss

    def _registering(self) -> contextlib.AbstractContextManager:
        """Return a context without registration of parameters in Pyro's store, if nothing needs it in this step."""
        # A caller's handler around the step, or an ELBO, may look for the parameters.
        listening = runtime._PYRO_STACK or self._loss_looks_for_parameters
        return unwatched() if self._has_stepped and not listening else contextlib.nullcontext()

    def _check_store(self) -> None:
        """Raise `RuntimeError` if Pyro's store holds another tensor in the place of an optimised parameter."""
        stored = dict(pyro.get_param_store().named_parameters())
        for name, parameter in self._optimized.items():
            if stored.get(name, parameter) is not parameter:
                raise RuntimeError(
                    f"Pyro's parameter store holds another tensor under {name!r} than in earlier steps, and the "
                    "optimiser would train the old one; change a parameter's values in place, build a new SVI, or "
                    "pass an optimiser of pyro.optim, which trains the new one"
                )


class Meeting(Messenger):
    """Collect the parameters of the programs within the context, and clear the gradients of new parameters.

    Args:
        known: parameters whose gradients stay.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._seen = set(map(id, known))
        self._parameters: dict[str, Tensor] = {}

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        parameter = self._parameters[msg["name"]] = msg["value"].unconstrained()
        if id(parameter) not in self._seen:  # later particles add their gradients to the first one's
            self._seen.add(id(parameter))
            parameter.grad = None

    def kept(self) -> dict[str, Tensor]:
        """Return the parameters that are still in Pyro's store. A running average that a step replaces is not."""
        stored = dict(pyro.get_param_store().named_parameters())
        return {name: parameter for name, parameter in self._parameters.items() if stored.get(name) is parameter}


def distinct(objects: Iterable[T]) -> list[T]:
    """Return each object once."""
    return list({id(one): one for one in objects}.values())
