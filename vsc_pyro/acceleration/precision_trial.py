"""The choice between float32 and bfloat16 by a trial, for ``fit(precision="auto")``."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vsc_pyro.acceleration.capture import Trial, journal_of
from vsc_pyro.acceleration.compiled_svi import CompiledSVI
from vsc_pyro.models.precision import PRECISIONS, networks_in
from vsc_pyro.models.vae import VAE
from vsc_pyro.training.svi import SVI

_WARM_UP, _ROUNDS = 2, 9
# bfloat16 must save so much of the time of a step, or else float32 is taken.
_LEAST_GAIN = 0.1


def faster_precision(model: VAE, svi: SVI, x: Tensor) -> str:
    """Return the precision in which loss and gradients of minibatch x take less time.

    The trial takes no step, and restores gradients, buffers and torch's random numbers. A model with an operation that
    PyTorch lacks in bfloat16 runs in float32.
    """
    parameters: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trial = Trial(functools.partial(svi.loss_and_grads, svi.model, svi.guide, x), parameters, [])
    seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    try:
        with trial.undone([x]), journal_of(model.buffers()), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "CompiledSVI takes eager steps")
            for _ in range(_WARM_UP + _ROUNDS):
                for precision, found in seconds.items():
                    with networks_in(model, precision):
                        found.append(_seconds(_gradients(svi, trial, x), x.device))
    except RuntimeError:  # float32 has run first; an error of its own is raised again by the first step
        return "float32"
    slow, fast = (float(np.median(found[_WARM_UP:])) for found in seconds.values())
    return "bfloat16" if fast < (1 - _LEAST_GAIN) * slow else "float32"


def _gradients(svi: SVI, trial: Trial, x: Tensor) -> Callable[[], object]:
    """Return a function that computes loss and gradients in the way of a step."""
    if isinstance(svi, CompiledSVI):
        graph, tensors = svi.graph_for((x,), {})
        if graph is not None:
            return functools.partial(graph, tensors)
    return trial.run


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    start = _now(device)
    work()
    return _now(device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
