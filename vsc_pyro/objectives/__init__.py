"""Objectives: what a fit maximises, by name or as a Pyro `ELBO`; see the modules of this folder."""

from __future__ import annotations

from collections.abc import Iterable

import pyro
from pyro.infer import ELBO
from torch import Tensor, nn

from vsc_pyro._arguments import choice, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.distributions import WITHOUT_SCORES, LinearNormal
from vsc_pyro.gates import Gate
from vsc_pyro.objectives.elbo import AnalyticELBO, TraceELBO
from vsc_pyro.objectives.importance_weighted import ImportanceWeightedELBO
from vsc_pyro.objectives.linear import ExactELBO

__all__ = [
    "OBJECTIVES",
    "AnalyticELBO",
    "ExactELBO",
    "ImportanceWeightedELBO",
    "TraceELBO",
    "check_objective",
    "exact_if_linear",
    "get_objective",
]

OBJECTIVES: dict[str, type[TraceELBO]] = {
    "trace": TraceELBO,
    "analytic": AnalyticELBO,
    "exact": ExactELBO,
    "importance-weighted": ImportanceWeightedELBO,
}


def check_objective(loss: ELBO, model: nn.Module, gate: Gate | None = None, scheduled: Iterable[str] = ()) -> None:
    """Check before training that an objective and a `vsc_pyro.VAE` go together.

    Args:
        loss: as `get_objective` returns it.
        model: the autoencoder.
        gate: of the spikes, if they are drawn.
        scheduled: names of the model's settings that change from step to step.

    Raises:
        ValueError: an objective that cannot train that model; the message names the remedy.
    """
    if isinstance(loss, WITHOUT_SCORES) and gate is not None and not gate.reparametrized:
        raise ValueError(
            f"{type(loss).__name__} has no estimator for spikes drawn with {gate!r}; take gate='concrete', or "
            "objective='analytic' or 'trace'"
        )
    if isinstance(loss, TraceELBO):
        loss.check_model(model, scheduled)


def exact_if_linear(model: nn.Module, x: Tensor) -> str:
    """The name of the objective that suits a `vsc_pyro.VAE` best: nothing is sampled where nothing need be.

    Args:
        model: the autoencoder.
        x: a few data, shape ``(B, ...)``, which the model is run on.

    Returns:
        ``"exact"`` for a linear normal decoder of codes whose posterior and divergence it knows, else ``"analytic"``.
    """
    if not isinstance(model.check_parts(x[:1]), LinearNormal):
        return "analytic"
    try:
        with model.evaluating(), seeded(0, x.device), pyro.get_param_store().scope():
            ExactELBO(max_plate_nesting=1).loss(model.model, model.guide, x)
    except (ValueError, NotImplementedError):
        return "analytic"
    return "exact"


def get_objective(objective: str | ELBO, num_draws: int | None = None, draws_at_once: int = 1) -> ELBO:
    """The objective of that name for a `vsc_pyro.VAE`, or the Pyro `ELBO` itself.

    Args:
        objective: ``"trace"``, ``"analytic"``, ``"exact"``, ``"importance-weighted"`` or any `pyro.infer.ELBO`.
        num_draws: draws of each code that a named objective averages over, in one vectorised pass; None for as
            few as gate and objective take (5, for ``"importance-weighted"``).
        draws_at_once: of which the number of draws must be a multiple, see `vsc_pyro.gates.Gate`.

    Raises:
        ValueError: an unknown name; draws that are not a multiple of `draws_at_once`, or fewer than the objective
            takes, or several for ``"exact"``, which takes none, or several at once for ``"importance-weighted"``; a
            number of draws for an `ELBO` that has its own.
    """
    if isinstance(objective, ELBO):
        if num_draws not in (None, objective.num_particles):
            raise ValueError(
                f"num_draws={num_draws} goes with a named objective; build the {type(objective).__name__} "
                "with num_particles= instead"
            )
        loss = objective
    else:
        objective = choice("objective", objective, OBJECTIVES)
        if num_draws is None:
            num_draws = max(draws_at_once, objective.default_draws) if objective.draws_codes else 1
        num_draws = positive_int("num_draws", num_draws)
        # A VAE's one plate is over data; naming it spares Pyro a trial run to find it.
        loss = objective(num_particles=num_draws, vectorize_particles=num_draws > 1, max_plate_nesting=1)
    if draws_at_once > 1 and getattr(loss, "independent_draws", False):
        raise ValueError(
            f"the gate draws codes {draws_at_once} at a time, and {type(loss).__name__} takes independent draws; "
            "take gate='score'"
        )
    if getattr(loss, "draws_codes", True) and loss.num_particles % draws_at_once:
        raise ValueError(
            f"the gate draws codes {draws_at_once} at a time, got num_draws={loss.num_particles}; "
            f"take a multiple of {draws_at_once}, or another gate"
        )
    return loss
