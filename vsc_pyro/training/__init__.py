"""Training by stochastic variational inference: `fit`, and what it tells."""

from vsc_pyro.history import History, NonFiniteLossError
from vsc_pyro.training.fitting import fit, resolve_device

__all__ = ["History", "NonFiniteLossError", "fit", "resolve_device"]
