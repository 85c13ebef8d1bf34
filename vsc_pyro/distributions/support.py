"""The support of a spike-and-slab: its slab's support and the point zero, which no bijection can reach."""

from __future__ import annotations

from typing import NoReturn

from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to


class WithZero(constraints.Constraint):
    """The slab's support and the point zero."""

    def __init__(self, slab: constraints.Constraint) -> None:
        self.slab = slab

    def check(self, value: Tensor) -> Tensor:
        return (value == 0) | self.slab.check(value)

    def __repr__(self) -> str:
        return f"zero or {self.slab}"


@biject_to.register(WithZero)
@transform_to.register(WithZero)
def _refuse_bijection(constraint: WithZero) -> NoReturn:
    # HMC, NUTS and automatic guides ask for the bijection.
    raise NotImplementedError(
        "a SpikeSlab is zero with positive probability, and a transformation of a continuous number is not, so HMC, "
        "NUTS and automatic guides such as AutoNormal and AutoDelta would lose its atom; write a guide that draws the "
        "site from a SpikeSlab, or hide the site from the automatic guide (pyro.poutine.block) and guide it by hand"
    )
