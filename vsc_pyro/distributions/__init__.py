"""The spike-and-slab distribution and its Kullback-Leibler divergences."""

from vsc_pyro.distributions import divergences  # noqa: F401  (registers the divergences)
from vsc_pyro.distributions.spike_slab import IndependentSpikeSlab, SpikeSlab, inclusion_logits, is_atom_free
from vsc_pyro.distributions.summaries import centre

__all__ = ["IndependentSpikeSlab", "SpikeSlab", "centre", "inclusion_logits", "is_atom_free"]
