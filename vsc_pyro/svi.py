"""`SVI`: Pyro's stochastic variational inference with one torch optimiser over all parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pyro
import pyro.infer
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vsc_pyro.registration import unwatched
from vsc_pyro.seeding import trains

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]


class _OneOptimizer(PyroOptim):
    """A torch optimiser where Pyro wants one of its own, which would be one torch optimiser for each tensor."""

    def __init__(self, optimizer: torch.optim.Optimizer | OptimizerFactory) -> None:
        self.make = None if isinstance(optimizer, torch.optim.Optimizer) else optimizer
        super().__init__(type(optimizer), {})
        self.optimizer = optimizer if self.make is None else None

    def __call__(self, params: object, *args: Any, **kwargs: Any) -> None:
        self.optimizer.step()


class SVI(pyro.infer.SVI):
    """`pyro.infer.SVI` that steps one `torch.optim.Optimizer` and leaves the loss on the device.

    Pyro's own makes an optimiser for every tensor it finds in the global parameter store and reads the loss back in
    every step. This one updates exactly the parameters the optimiser was given, whatever else the store holds, and the
    host runs ahead of the device. Gradients stay on the parameters until the next step. With `vsc_pyro.objectives` no
    step waits for the device; with Pyro's own ELBOs, which do wait, it works as well.

    Args:
        model, guide: Pyro programs.
        optim: a torch optimiser over their parameters; or a function from a list of parameters to one, such as
            ``functools.partial(torch.optim.Adam, lr=1e-3)``, for programs that make theirs as they run (`pyro.param`,
            Pyro's automatic guides): it is given all that the first step meets.
        loss: a `pyro.infer.ELBO`.

    Raises:
        ValueError: an `optim` that is neither.
        RuntimeError: in a step, a parameter of `pyro.param` that has been replaced in the store since the first one.
    """

    def __init__(
        self, model: Callable, guide: Callable, optim: torch.optim.Optimizer | OptimizerFactory, loss: ELBO
    ) -> None:
        if isinstance(optim, PyroOptim) or not (isinstance(optim, torch.optim.Optimizer) or callable(optim)):
            raise ValueError(
                f"optim must be a torch optimiser over the parameters to train, got {type(optim).__name__}; "
                "build one, such as torch.optim.Adam(model.parameters(), lr=1e-3), or a function that does, such as "
                "functools.partial(torch.optim.Adam, lr=1e-3); or use pyro.infer.SVI"
            )
        super().__init__(model, guide, _OneOptimizer(optim), loss)
        self._has_stepped = False
        self._met: dict[str, Tensor] = {}
        self._loss_looks_for_parameters = getattr(loss, "looks_for_parameters", True)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The torch optimiser; None before the first step where that makes it."""
        return self.optim.optimizer

    @trains
    def step(self, *args: Any, **kwargs: Any) -> Tensor | float:
        """Take one gradient step; returns the loss, summed over data, as the ELBO gives it (ours: a 0-d tensor)."""
        self._check_store()
        if self.optimizer is None:
            with _WithoutGradients(), poutine.trace(param_only=True) as capture:
                loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
            self._make_optimizer(capture.trace)
        else:
            self.optimizer.zero_grad(set_to_none=True)
            with self._registering():
                loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        self._has_stepped = True
        self.optim(())
        return loss

    def _registering(self) -> contextlib.AbstractContextManager:
        """Whether programs put their parameters into Pyro's store in this step, once there is no need to."""
        # A caller's handler around the step may be there to see them, and so may an ELBO.
        listening = runtime._PYRO_STACK or self._loss_looks_for_parameters
        return unwatched() if self._has_stepped and not listening else contextlib.nullcontext()

    def _make_optimizer(self, trace: poutine.Trace) -> None:
        """The optimiser of all parameters that a step met."""
        self._met = {name: site["value"].unconstrained() for name, site in trace.nodes.items()}
        self.optim.optimizer = self.optim.make(list({id(p): p for p in self._met.values()}.values()))

    def _check_store(self) -> None:
        """Raise where Pyro's store has got another tensor since for what the optimiser has been made of."""
        store = pyro.get_param_store()
        for name, parameter in self._met.items():
            if name in store and store[name].unconstrained() is not parameter:
                raise RuntimeError(
                    f"Pyro's parameter store holds another tensor under {name!r} than the first step met, and the "
                    "optimiser would go on with the old one; change a parameter's values in place, or build a new SVI"
                )


class _WithoutGradients(Messenger):
    """Takes off gradients that parameters have from elsewhere, as the programs meet them."""

    def __init__(self) -> None:
        super().__init__()
        self._met: set[int] = set()

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        parameter = msg["value"].unconstrained()
        if id(parameter) not in self._met:  # a second particle's gradient adds to the first one's
            self._met.add(id(parameter))
            parameter.grad = None
