"""The spike-and-slab distribution and its Kullback-Leibler divergences."""

from vsc_pyro.distributions import divergences  # noqa: F401  (registers the divergences)
from vsc_pyro.distributions.assigned_mixture import AssignedMixture
from vsc_pyro.distributions.slabs import SLABS, get_slab
from vsc_pyro.distributions.spike_slab import IndependentSpikeSlab, SpikeSlab, inclusion_logits, is_atom_free, is_point

__all__ = [
    "SLABS",
    "AssignedMixture",
    "IndependentSpikeSlab",
    "SpikeSlab",
    "get_slab",
    "inclusion_logits",
    "is_atom_free",
    "is_point",
]
