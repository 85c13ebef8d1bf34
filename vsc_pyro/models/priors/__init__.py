"""Priors: modules whose forward takes data x and returns the prior p(z), a distribution (most ignore x).

A custom prior is a subclass of `Prior`, or any `torch.nn.Module` with such a forward; `vsc_pyro.VAE` uses, checks and
trains it like these. If it depends on x, the objective is not a bound, see `vsc_pyro.VAE.is_bound`.
"""

from vsc_pyro.models.priors.dense import CauchyPrior, FlatPrior, LaplacePrior, NormalMixturePrior, NormalPrior
from vsc_pyro.models.priors.prior import Prior
from vsc_pyro.models.priors.pseudo_input import PseudoInputPrior
from vsc_pyro.models.priors.spike_slab import SpikeSlabPrior

__all__ = [
    "CauchyPrior",
    "FlatPrior",
    "LaplacePrior",
    "NormalMixturePrior",
    "NormalPrior",
    "Prior",
    "PseudoInputPrior",
    "SpikeSlabPrior",
]
