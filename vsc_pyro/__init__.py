"""Sparse codes with uncertainty: variational sparse coding and its relatives as probabilistic programs in Pyro.

>>> import torch, vsc_pyro as vsc
>>> train, test = vsc.datasets.load("digits")
>>> model = vsc.VAE(
...     encoder=vsc.SpikeSlabEncoder((1, 8, 8), latent_dim=10),
...     decoder=vsc.BernoulliDecoder(10, (1, 8, 8)),
...     prior=vsc.SpikeSlabPrior(10, inclusion=0.1),
... )
>>> history = vsc.fit(model, train, epochs=1, progress=False)
>>> vsc.encode(model, test[:3]).shape
torch.Size([3, 10])
"""

from typing import TYPE_CHECKING, Any

from vsc_pyro import datasets, gates, sae
from vsc_pyro._recorded import register
from vsc_pyro.acceleration import CompiledSVI
from vsc_pyro.acceleration.fit_ensemble import fit_ensemble
from vsc_pyro.arviz_bridge.predictive_checks import elpd, predictive_check
from vsc_pyro.arviz_bridge.to_arviz import to_arviz
from vsc_pyro.datasets import Dataset, Factors
from vsc_pyro.distributions import SpikeSlab, ThresholdedSpikeSlab, TruncatedNormal
from vsc_pyro.evaluation import glossary
from vsc_pyro.evaluation.advice import NothingExplainedWarning
from vsc_pyro.evaluation.bounds import Bounds, bounds
from vsc_pyro.evaluation.calibration import Calibration, check_calibration
from vsc_pyro.evaluation.codes import Codes, codes
from vsc_pyro.evaluation.dictionaries import DictionaryEvaluation, evaluate_dictionary
from vsc_pyro.evaluation.disentanglement import Disentanglement, disentanglement
from vsc_pyro.evaluation.evaluate import evaluate
from vsc_pyro.evaluation.figures import Evaluation
from vsc_pyro.evaluation.probes import FactorAUROC, encode, factor_auroc, linear_probe
from vsc_pyro.inference.auto_spike_slab import AutoSpikeSlab
from vsc_pyro.inference.impute import Imputation, impute
from vsc_pyro.inference.linear_exact import ExactPosterior, exact_posterior
from vsc_pyro.inference.linear_gibbs import GibbsPosterior, gibbs_posterior
from vsc_pyro.inference.refine import Refinement, refine
from vsc_pyro.models.decoders import (
    BernoulliDecoder,
    ContinuousBernoulliDecoder,
    DictionaryDecoder,
    NegativeBinomialDecoder,
    NormalDecoder,
    PoissonDecoder,
)
from vsc_pyro.models.encoders import (
    CauchyEncoder,
    DeltaEncoder,
    JumpReLUEncoder,
    LaplaceEncoder,
    NormalEncoder,
    RefinedEncoder,
    SpikeSlabEncoder,
    ThresholdEncoder,
)
from vsc_pyro.models.gated import GatedTrunk
from vsc_pyro.models.networks import ConvTrunk, CountTrunk, DeconvTrunk, MaskTrunk
from vsc_pyro.models.priors import (
    CauchyPrior,
    FlatPrior,
    LaplacePrior,
    NormalMixturePrior,
    NormalPrior,
    Prior,
    PseudoInputPrior,
    SpikeSlabPrior,
)
from vsc_pyro.models.sparse_dictionary import SparseDictionary
from vsc_pyro.models.vae import VAE
from vsc_pyro.models.vsc import VSC
from vsc_pyro.objectives import AnalyticELBO, ExactELBO, ImportanceWeightedELBO, NestedELBO, TraceELBO
from vsc_pyro.pages import explore, feature_pages, report
from vsc_pyro.training import parallel, schedules
from vsc_pyro.training.checkpoints import load_checkpoint, load_weights, save_checkpoint
from vsc_pyro.training.fit import fit
from vsc_pyro.training.history import History, NonFiniteLossError
from vsc_pyro.training.saving import load, save
from vsc_pyro.training.schedules import Ramp
from vsc_pyro.training.svi import SVI

if TYPE_CHECKING:
    from vsc_pyro.estimators import SpikeSlabCoder

__version__ = "0.1.0"

__all__ = [
    "SVI",
    "VAE",
    "VSC",
    "AnalyticELBO",
    "AutoSpikeSlab",
    "BernoulliDecoder",
    "Bounds",
    "Calibration",
    "CauchyEncoder",
    "CauchyPrior",
    "Codes",
    "CompiledSVI",
    "ContinuousBernoulliDecoder",
    "ConvTrunk",
    "CountTrunk",
    "Dataset",
    "DeconvTrunk",
    "DeltaEncoder",
    "DictionaryDecoder",
    "DictionaryEvaluation",
    "Disentanglement",
    "Evaluation",
    "ExactELBO",
    "ExactPosterior",
    "FactorAUROC",
    "Factors",
    "FlatPrior",
    "GatedTrunk",
    "GibbsPosterior",
    "History",
    "ImportanceWeightedELBO",
    "Imputation",
    "JumpReLUEncoder",
    "LaplaceEncoder",
    "LaplacePrior",
    "MaskTrunk",
    "NegativeBinomialDecoder",
    "NestedELBO",
    "NonFiniteLossError",
    "NormalDecoder",
    "NormalEncoder",
    "NormalMixturePrior",
    "NormalPrior",
    "NothingExplainedWarning",
    "PoissonDecoder",
    "Prior",
    "PseudoInputPrior",
    "Ramp",
    "RefinedEncoder",
    "Refinement",
    "SparseDictionary",
    "SpikeSlab",
    "SpikeSlabCoder",
    "SpikeSlabEncoder",
    "SpikeSlabPrior",
    "ThresholdEncoder",
    "ThresholdedSpikeSlab",
    "TraceELBO",
    "TruncatedNormal",
    "bounds",
    "check_calibration",
    "codes",
    "datasets",
    "disentanglement",
    "elpd",
    "encode",
    "evaluate",
    "evaluate_dictionary",
    "exact_posterior",
    "explore",
    "factor_auroc",
    "feature_pages",
    "fit",
    "fit_ensemble",
    "gates",
    "gibbs_posterior",
    "glossary",
    "impute",
    "linear_probe",
    "load",
    "load_checkpoint",
    "load_weights",
    "parallel",
    "predictive_check",
    "refine",
    "register",
    "report",
    "sae",
    "save",
    "save_checkpoint",
    "schedules",
    "to_arviz",
]


def __getattr__(name: str) -> Any:
    """Import scikit-learn with the first use of `SpikeSlabCoder`, not with the library."""
    if name == "SpikeSlabCoder":
        from vsc_pyro.estimators import SpikeSlabCoder

        return SpikeSlabCoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
