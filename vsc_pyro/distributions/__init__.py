"""Distributions of codes and data, their divergences, and the questions that every family answers (`families`)."""

from vsc_pyro._pyro_internals import PARTICLES
from vsc_pyro.distributions import divergences  # noqa: F401  (registers the divergences)
from vsc_pyro.distributions.assigned_mixture import AssignedMixture
from vsc_pyro.distributions.atoms import is_atom_free, structure
from vsc_pyro.distributions.context import ContextRows
from vsc_pyro.distributions.counts import CountRows
from vsc_pyro.distributions.draws import CentredScoreParts
from vsc_pyro.distributions.estimators import WITHOUT_SCORES
from vsc_pyro.distributions.families import (
    Contrast,
    centre,
    contrast,
    given,
    hard_code,
    has_mean,
    inclusion_logits,
    inclusion_of,
    is_bernoulli,
    is_point,
    is_proper,
    noise_scale,
    scale_of,
    slab_of,
)
from vsc_pyro.distributions.infinite import why_infinite, why_no_point
from vsc_pyro.distributions.linear_normal import LinearNormal
from vsc_pyro.distributions.normal_tails import ShiftedNormalTails
from vsc_pyro.distributions.slabs import POSITIVE_SLABS, SLABS, SMALLEST_SCALE, get_slab, held
from vsc_pyro.distributions.spike_slab import IndependentSpikeSlab, SpikeSlab
from vsc_pyro.distributions.thresholded import StraightThroughThreshold, ThresholdedSpikeSlab, get_threshold_gate
from vsc_pyro.distributions.truncated_normal import TruncatedNormal

__all__ = [
    "PARTICLES",
    "POSITIVE_SLABS",
    "SLABS",
    "SMALLEST_SCALE",
    "WITHOUT_SCORES",
    "AssignedMixture",
    "CentredScoreParts",
    "ContextRows",
    "Contrast",
    "CountRows",
    "IndependentSpikeSlab",
    "LinearNormal",
    "ShiftedNormalTails",
    "SpikeSlab",
    "StraightThroughThreshold",
    "ThresholdedSpikeSlab",
    "TruncatedNormal",
    "centre",
    "contrast",
    "get_slab",
    "get_threshold_gate",
    "given",
    "hard_code",
    "has_mean",
    "held",
    "inclusion_logits",
    "inclusion_of",
    "is_atom_free",
    "is_bernoulli",
    "is_point",
    "is_proper",
    "noise_scale",
    "scale_of",
    "slab_of",
    "structure",
    "why_infinite",
    "why_no_point",
]
