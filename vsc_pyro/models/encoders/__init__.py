"""Encoders: modules whose forward takes data x and returns the posterior q(z | x), a distribution.

Any `torch.nn.Module` with such a forward can be an encoder. With an attribute `input_shape` (the shape of one datum),
`vsc_pyro.VAE` checks at construction that encoder, decoder and prior fit.
"""

from vsc_pyro.models.encoders.dense import CauchyEncoder, DeltaEncoder, LaplaceEncoder, NormalEncoder
from vsc_pyro.models.encoders.refined import RefinedEncoder
from vsc_pyro.models.encoders.spike_slab import SpikeSlabEncoder, gate_of
from vsc_pyro.models.encoders.threshold import ThresholdEncoder

__all__ = [
    "CauchyEncoder",
    "DeltaEncoder",
    "LaplaceEncoder",
    "NormalEncoder",
    "RefinedEncoder",
    "SpikeSlabEncoder",
    "ThresholdEncoder",
    "gate_of",
]
