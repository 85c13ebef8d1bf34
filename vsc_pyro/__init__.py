"""Sparse codes with uncertainty: variational sparse coding and its relatives as probabilistic programs in Pyro."""

from vsc_pyro import datasets, gates, glossary, parallel, schedules
from vsc_pyro.advice import NothingExplainedWarning
from vsc_pyro.calibration import Calibration, check_calibration
from vsc_pyro.checkpoints import load_checkpoint, load_weights, save_checkpoint
from vsc_pyro.compiled import CompiledSVI
from vsc_pyro.criticism import elpd, predictive_check
from vsc_pyro.datasets import Dataset, Factors
from vsc_pyro.decoders import BernoulliDecoder, ContinuousBernoulliDecoder, NormalDecoder
from vsc_pyro.distributions import SpikeSlab, ThresholdedSpikeSlab
from vsc_pyro.encoders import (
    CauchyEncoder,
    DeltaEncoder,
    LaplaceEncoder,
    NormalEncoder,
    SpikeSlabEncoder,
    ThresholdEncoder,
)
from vsc_pyro.ensembles import fit_ensemble
from vsc_pyro.evaluation import Bounds, bounds, evaluate
from vsc_pyro.exact import ExactPosterior, exact_posterior
from vsc_pyro.figures import Evaluation
from vsc_pyro.gibbs import GibbsPosterior, gibbs_posterior
from vsc_pyro.imputation import Imputation
from vsc_pyro.networks import ConvTrunk, DeconvTrunk
from vsc_pyro.objectives import AnalyticELBO, ExactELBO, ImportanceWeightedELBO, TraceELBO
from vsc_pyro.pages import explore, report
from vsc_pyro.posterior import to_arviz
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
from vsc_pyro.probes import FactorAUROC, encode, factor_auroc, linear_probe
from vsc_pyro.refinement import Refinement, refine
from vsc_pyro.schedules import Ramp
from vsc_pyro.sparse_codes import Codes, codes
from vsc_pyro.svi import SVI
from vsc_pyro.training import History, NonFiniteLossError, fit
from vsc_pyro.vae import VAE, VSC

__version__ = "0.1.0"

__all__ = [
    "SVI",
    "VAE",
    "VSC",
    "AnalyticELBO",
    "BernoulliDecoder",
    "Bounds",
    "Calibration",
    "CauchyEncoder",
    "CauchyPrior",
    "Codes",
    "CompiledSVI",
    "ContinuousBernoulliDecoder",
    "ConvTrunk",
    "Dataset",
    "DeconvTrunk",
    "DeltaEncoder",
    "Evaluation",
    "ExactELBO",
    "ExactPosterior",
    "FactorAUROC",
    "Factors",
    "FlatPrior",
    "GibbsPosterior",
    "History",
    "ImportanceWeightedELBO",
    "Imputation",
    "LaplaceEncoder",
    "LaplacePrior",
    "NonFiniteLossError",
    "NormalDecoder",
    "NormalEncoder",
    "NormalMixturePrior",
    "NormalPrior",
    "NothingExplainedWarning",
    "Prior",
    "PseudoInputPrior",
    "Ramp",
    "Refinement",
    "SpikeSlab",
    "SpikeSlabEncoder",
    "SpikeSlabPrior",
    "ThresholdEncoder",
    "ThresholdedSpikeSlab",
    "TraceELBO",
    "bounds",
    "check_calibration",
    "codes",
    "datasets",
    "elpd",
    "encode",
    "evaluate",
    "exact_posterior",
    "explore",
    "factor_auroc",
    "fit",
    "fit_ensemble",
    "gates",
    "gibbs_posterior",
    "glossary",
    "linear_probe",
    "load_checkpoint",
    "load_weights",
    "parallel",
    "predictive_check",
    "refine",
    "report",
    "save_checkpoint",
    "schedules",
    "to_arviz",
]
