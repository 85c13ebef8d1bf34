"""Defaults of `fit` that a model may declare for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyro.infer import ELBO

from vsc_pyro._arguments import positive_float
from vsc_pyro.training.schedules import Schedule, check_warmup

if TYPE_CHECKING:
    from vsc_pyro.models.vae import VAE

LIBRARY_DEFAULTS: dict[str, Any] = {
    "objective": "auto",
    "lr": 1e-3,
    "warmup": 0.0,
    "cooldown": 0.25,
    "batch_size": 200,
}


def or_default(model: VAE, name: str, value: Any) -> Any:
    """Return `value`; if it is None, the default of that argument of `fit`: the model's, or else the library's.

    Raises:
        ValueError: `training_defaults` of the model that are no mapping, or name another argument.
    """
    own: Any = model.training_defaults
    if not isinstance(own, Mapping):
        raise ValueError(
            f"training_defaults of {type(model).__name__} must be a mapping from arguments of fit to values, got "
            f"{own!r}; write for example {{'lr': 3e-4}}"
        )
    if unknown := [key for key in own if key not in LIBRARY_DEFAULTS]:
        raise ValueError(
            f"training_defaults of {type(model).__name__} names {unknown[0]!r}; a model may set "
            f"{', '.join(map(repr, LIBRARY_DEFAULTS))}, so leave it out"
        )
    return {**LIBRARY_DEFAULTS, **own}[name] if value is None else value


def checked_lr(lr: float | None) -> float | None:
    """Return `lr` as a number above 0, or None.

    Raises:
        ValueError: another value.
    """
    return None if lr is None else positive_float("lr", lr)


def chosen_lr(model: VAE, lr: float | None, num_steps: int, saved: float = 0.0) -> float:
    """Return `lr`; if it is None, the model's default, which may be a function of the number of steps.

    Args:
        saved: learning rate of the run that this one resumes, which replaces such a function; 0 for a new run.

    Raises:
        ValueError: a default that is not a number above 0.
    """
    rate = or_default(model, "lr", lr)
    if callable(rate):
        rate = saved or rate(num_steps)
    return positive_float("lr", rate)


def chosen_warmup(model: VAE, warmup: float | None, loss: ELBO, schedules: Mapping[str, Schedule] | None) -> float:
    """Return `warmup`, checked; if it is None, the model's default, or 0 if a schedule moves beta.

    Raises:
        ValueError: as `check_warmup`.
    """
    if warmup is None and "beta" in (schedules or {}):
        warmup = 0.0
    return check_warmup(or_default(model, "warmup", warmup), loss, schedules)
