"""Pictures of a trained model, one function each, returning a `matplotlib.figure.Figure` to show or save.

Spikes are hard in every picture: a model is put into evaluation mode while it is drawn and left as it was.

Images are drawn as pictures, vectors as bars (up to 40 features) or lines. Functions that draw data take the keyword
arguments of `Style`: ``names`` of features, ``image_shape`` of flat images, and ``ink``, whether large values are dark.
"""

from vsc_pyro.plots.calibrations import rank_histograms, reliability
from vsc_pyro.plots.codes import embedding, inclusion_map, inclusion_usage
from vsc_pyro.plots.decoded import comparison, manifold, prior_samples, reconstructions
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
    "reliability",
    "training_curve",
    "traversal",
    "traversals",
]
