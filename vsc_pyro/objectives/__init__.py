"""Objectives: what a fit maximises, by name or as a Pyro `ELBO`; see the modules `elbo` and `exact`."""

from __future__ import annotations

from pyro.infer import ELBO

from vsc_pyro.arguments import choice, positive_int
from vsc_pyro.objectives.elbo import AnalyticELBO, TraceELBO
from vsc_pyro.objectives.exact import ExactELBO

__all__ = ["OBJECTIVES", "AnalyticELBO", "ExactELBO", "TraceELBO", "get_objective"]

OBJECTIVES: dict[str, type[ELBO]] = {"trace": TraceELBO, "analytic": AnalyticELBO, "exact": ExactELBO}


def get_objective(objective: str | ELBO, num_draws: int = 1) -> ELBO:
    """The objective of that name for a `vsc_pyro.VAE`, or the Pyro `ELBO` itself.

    Args:
        objective: ``"trace"``, ``"analytic"``, ``"exact"`` or any instance of `pyro.infer.ELBO`.
        num_draws: draws of each code that a named objective averages over, in one vectorised pass.

    Raises:
        ValueError: an unknown name, fewer than one draw, or several for ``"exact"``, which takes none, or for an `ELBO`
            that has its own number.
    """
    num_draws = positive_int("num_draws", num_draws)
    if isinstance(objective, ELBO):
        if num_draws > 1:
            raise ValueError(
                f"num_draws={num_draws} goes with a named objective; build the {type(objective).__name__} "
                "with num_particles= instead"
            )
        return objective
    # A VAE's one plate is over data; naming it spares Pyro a trial run to find it.
    return choice("objective", objective, OBJECTIVES)(
        num_particles=num_draws, vectorize_particles=num_draws > 1, max_plate_nesting=1
    )
