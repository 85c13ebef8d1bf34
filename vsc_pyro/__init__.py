"""Sparse codes with uncertainty: variational sparse coding and its relatives as probabilistic programs in Pyro."""

from vsc_pyro import datasets, gates
from vsc_pyro.checkpoints import load_checkpoint, load_weights, save_checkpoint
from vsc_pyro.datasets import Dataset
from vsc_pyro.decoders import BernoulliDecoder
from vsc_pyro.distributions import SpikeSlab
from vsc_pyro.encoders import CauchyEncoder, DeltaEncoder, LaplaceEncoder, NormalEncoder, SpikeSlabEncoder
from vsc_pyro.evaluation import Evaluation, evaluate
from vsc_pyro.objectives import AnalyticELBO, TraceELBO
from vsc_pyro.priors import (
    CauchyPrior,
    FlatPrior,
    LaplacePrior,
    NormalMixturePrior,
    NormalPrior,
    Prior,
    PseudoInputPrior,
    SpikeSlabPrior,
)
from vsc_pyro.schedules import Ramp
from vsc_pyro.svi import SVI
from vsc_pyro.training import History, NonFiniteLossError, fit
from vsc_pyro.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "SVI",
    "VAE",
    "AnalyticELBO",
    "BernoulliDecoder",
    "CauchyEncoder",
    "CauchyPrior",
    "Dataset",
    "DeltaEncoder",
    "Evaluation",
    "FlatPrior",
    "History",
    "LaplaceEncoder",
    "LaplacePrior",
    "NonFiniteLossError",
    "NormalEncoder",
    "NormalMixturePrior",
    "NormalPrior",
    "Prior",
    "PseudoInputPrior",
    "Ramp",
    "SpikeSlab",
    "SpikeSlabEncoder",
    "SpikeSlabPrior",
    "TraceELBO",
    "datasets",
    "evaluate",
    "fit",
    "gates",
    "load_checkpoint",
    "load_weights",
    "save_checkpoint",
]
