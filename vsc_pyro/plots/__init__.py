"""Figures of a trained model: each function returns a `matplotlib.figure.Figure` to show or save.

Spikes are hard in every figure: the model is drawn in evaluation mode, and its mode and the caller's random state are
restored.

Images are drawn as pictures, vectors as bars (up to 40 features) or lines. Functions that draw data take the keyword
arguments of `Style`: ``names`` of features, ``image_shape`` of flat images, and ``ink``, True if large values are dark.

>>> import torch, vsc_pyro as vsc
>>> from vsc_pyro import plots
>>> model = vsc.VSC((1, 8, 8), latent_dim=5)
>>> figure = plots.reconstructions(model, torch.rand(10, 1, 8, 8), num=4)
>>> len(figure.axes)
8
"""

from vsc_pyro.plots.calibrations import rank_histograms, reliability
from vsc_pyro.plots.codes import embedding, inclusion_map, inclusion_usage
from vsc_pyro.plots.decoded import comparison, manifold, prior_samples, reconstructions
from vsc_pyro.plots.dictionaries import feature_cosines, firing_densities, recovery
from vsc_pyro.plots.drawing import Style
from vsc_pyro.plots.edits import conditional_samples, interpolation, traversal, traversals
from vsc_pyro.plots.effects import loadings
from vsc_pyro.plots.explained import code, explanation
from vsc_pyro.plots.inferred import bound_histograms, imputations
from vsc_pyro.plots.learnt import pseudo_inputs, receptive_fields, training_curve

__all__ = [
    "Style",
    "bound_histograms",
    "code",
    "comparison",
    "conditional_samples",
    "embedding",
    "explanation",
    "feature_cosines",
    "firing_densities",
    "imputations",
    "inclusion_map",
    "inclusion_usage",
    "interpolation",
    "loadings",
    "manifold",
    "prior_samples",
    "pseudo_inputs",
    "rank_histograms",
    "receptive_fields",
    "reconstructions",
    "recovery",
    "reliability",
    "training_curve",
    "traversal",
    "traversals",
]
