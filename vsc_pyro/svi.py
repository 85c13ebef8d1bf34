"""`SVI`: Pyro's stochastic variational inference with one torch optimiser over all parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.infer
import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor


class _OneOptimizer(PyroOptim):
    """A torch optimiser where Pyro wants one of its own, which would be one torch optimiser for each tensor."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(type(optimizer), {})
        self.optimizer = optimizer

    def __call__(self, params: object, *args: Any, **kwargs: Any) -> None:
        self.optimizer.step()


class SVI(pyro.infer.SVI):
    """`pyro.infer.SVI` that steps one `torch.optim.Optimizer` and leaves the loss on the device.

    Pyro's own makes an optimiser for every tensor it finds in the global parameter store and reads the loss back in
    every step. This one updates exactly the parameters the optimiser was given, whatever the store holds, so that two
    models in one process do not meet, and the host runs ahead of the device. With `vsc_pyro.objectives` no step waits
    for the device; with Pyro's own ELBOs, which do wait, it works as well.

    Args:
        model, guide: Pyro programs.
        optim: a torch optimiser over their parameters.
        loss: a `pyro.infer.ELBO`.

    Raises:
        ValueError: an `optim` that is no torch optimiser.
    """

    def __init__(self, model: Callable, guide: Callable, optim: torch.optim.Optimizer, loss: ELBO) -> None:
        if not isinstance(optim, torch.optim.Optimizer):
            raise ValueError(
                f"optim must be a torch optimiser over the parameters to train, got {type(optim).__name__}; "
                "build one, such as torch.optim.Adam(model.parameters(), lr=1e-3), or use pyro.infer.SVI"
            )
        super().__init__(model, guide, _OneOptimizer(optim), loss)

    def step(self, *args: Any, **kwargs: Any) -> Tensor | float:
        """Take one gradient step; returns the loss, summed over data, as the ELBO gives it (ours: a 0-d tensor)."""
        self.optim.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_and_grads(self.model, self.guide, *args, **kwargs)
        self.optim(())
        return loss
