"""Objectives: functions that `vsc_pyro.fit` maximises, each with a name and a Pyro `ELBO`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pyro
from pyro.infer import ELBO
from torch import Tensor

from vsc_pyro._arguments import choice, positive_int
from vsc_pyro._seeding import seeded
from vsc_pyro.distributions import WITHOUT_SCORES
from vsc_pyro.distributions.linear_normal import as_linear
from vsc_pyro.gates import Gate
from vsc_pyro.objectives.elbo import AnalyticELBO, TraceELBO
from vsc_pyro.objectives.importance_weighted import ImportanceWeightedELBO
from vsc_pyro.objectives.linear import ExactELBO
from vsc_pyro.objectives.nested import NestedELBO

if TYPE_CHECKING:
    from vsc_pyro.models.vae import VAE

__all__ = [
    "OBJECTIVES",
    "AnalyticELBO",
    "ExactELBO",
    "ImportanceWeightedELBO",
    "NestedELBO",
    "TraceELBO",
    "check_objective",
    "exact_if_linear",
    "get_objective",
]

OBJECTIVES: dict[str, type[TraceELBO]] = {
    "trace": TraceELBO,
    "analytic": AnalyticELBO,
    "exact": ExactELBO,
    "nested": NestedELBO,
    "importance-weighted": ImportanceWeightedELBO,
}


def check_objective(loss: ELBO, model: VAE, gate: Gate | None = None, scheduled: Iterable[str] = ()) -> None:
    """Check before training that an objective can train a model.

    Args:
        loss: the objective, from `get_objective`.
        model: the autoencoder.
        gate: the gate of the spikes, or None if no spikes are drawn.
        scheduled: names of the model's settings that change from step to step.

    Raises:
        ValueError: the objective cannot train the model; the message names the remedy.
    """
    if isinstance(loss, WITHOUT_SCORES) and gate is not None and not gate.reparametrized:
        raise ValueError(
            f"{type(loss).__name__} has no estimator for spikes drawn with {gate!r}; take gate='concrete', or "
            "objective='analytic' or 'trace'"
        )
    if isinstance(loss, TraceELBO):
        loss.check_model(model, scheduled)


def exact_if_linear(model: VAE, x: Tensor) -> str:
    """Return the name of the objective with the least sampling noise that can train a model.

    Args:
        model: the autoencoder.
        x: a small batch, shape ``(B, ...)``, on which the model is tried.

    Returns:
        ``"exact"`` if `ExactELBO` accepts the model, else ``"analytic"``.

    Example:
        >>> import torch
        >>> import vsc_pyro as vsc
        >>> from vsc_pyro.objectives import exact_if_linear
        >>> encoder, prior, x = vsc.SpikeSlabEncoder(6, 2), vsc.SpikeSlabPrior(2), torch.zeros(3, 6)
        >>> exact_if_linear(vsc.VAE(encoder, vsc.NormalDecoder(2, 6, hidden=()), prior), x)
        'exact'
        >>> exact_if_linear(vsc.VAE(encoder, vsc.NormalDecoder(2, 6, hidden=(8,)), prior), x)
        'analytic'
    """
    if as_linear(model.check_parts(x[:1])) is None:
        return "analytic"
    try:
        with model.evaluating(), seeded(0, x.device), pyro.get_param_store().scope():
            ExactELBO(max_plate_nesting=1).loss(model.model, model.guide, x)
    except (ValueError, NotImplementedError):
        return "analytic"
    return "exact"


def get_objective(objective: str | ELBO, num_draws: int | None = None, draws_at_once: int = 1) -> ELBO:
    """Return the objective with that name for a `vsc_pyro.VAE`, or the Pyro `ELBO` itself.

    Args:
        objective: ``"trace"``, ``"analytic"``, ``"exact"``, ``"nested"``, ``"importance-weighted"`` or any
            `pyro.infer.ELBO`.
        num_draws: number of draws of each code over which a named objective averages, in one vectorised pass. None for
            the fewest that gate and objective allow, or 5 for ``"importance-weighted"``.
        draws_at_once: number of draws that the gate makes together, see `vsc_pyro.gates.Gate`; `num_draws` must be a
            multiple of it.

    Raises:
        ValueError: an unknown name; a number of draws that the objective or the gate does not allow; a number of draws
            that differs from the number of particles of an `ELBO`.

    Example:
        >>> from vsc_pyro.objectives import get_objective
        >>> get_objective("analytic", num_draws=3).num_particles
        3
    """
    loss = objective if isinstance(objective, ELBO) else _named(objective, num_draws, draws_at_once)
    if loss is objective and num_draws not in (None, loss.num_particles):
        raise ValueError(
            f"num_draws={num_draws} goes with a named objective; build the {type(loss).__name__} with num_particles= "
            "instead"
        )
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


def _named(name: str, num_draws: int | None, draws_at_once: int) -> TraceELBO:
    objective = choice("objective", name, OBJECTIVES)
    if num_draws is None:
        num_draws = max(draws_at_once, objective.default_draws) if objective.draws_codes else 1
    num_draws = positive_int("num_draws", num_draws)
    # A VAE has one plate, over data; Pyro would need a trial run to find this out.
    return objective(num_particles=num_draws, vectorize_particles=num_draws > 1, max_plate_nesting=1)
