"""Contexts of a run: what they change is restored after it, or if it is refused."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pyro
import torch

from vsc_pyro._seeding import seeded
from vsc_pyro.gates import Gate
from vsc_pyro.models.encoders import gate_of
from vsc_pyro.models.modes import in_mode, without_autocast
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.history import NonFiniteLossError

if TYPE_CHECKING:
    from vsc_pyro.training.run import Run


@contextlib.contextmanager
def ended_warmup(model: VAE) -> Iterator[None]:
    """Give the divergence its full weight afterwards, however the run ends."""
    try:
        yield
    finally:
        model.warmup.fill_(1.0)


@contextlib.contextmanager
def unprepared_if_refused(run: Run) -> Iterator[None]:
    """Undo `VAE.prepare` if an error occurs before the first step."""
    before = copy.deepcopy(run.model.state_dict())
    try:
        yield
    except Exception:
        if not run.has_stepped:
            run.model.load_state_dict(before)
        raise


@contextlib.contextmanager
def gate_in_place(encoder: Any, gate: Gate | None) -> Iterator[None]:
    """Replace the gate of `encoder`, and restore it if an error ends the run, except a diverged loss."""
    before = gate_of(encoder)
    if gate is not None:
        encoder.gate = gate
    try:
        yield
    except Exception as error:
        if gate is not None and not isinstance(error, NonFiniteLossError):
            encoder.gate = before
        raise


@contextlib.contextmanager
def private_state(model: VAE, device: torch.device, seed: int) -> Iterator[None]:
    """Within the context: training mode, random numbers from `seed`, an empty parameter store, no mode of torch.

    Neither the caller's `torch.no_grad` and `torch.inference_mode` apply, nor autocast.
    """
    with (
        seeded(seed, device),
        pyro.get_param_store().scope(),
        torch.inference_mode(False),
        without_autocast(device),
        in_mode(model, True),
    ):
        yield
