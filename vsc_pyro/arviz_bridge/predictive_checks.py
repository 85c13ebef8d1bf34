r"""Checks of a model by ArviZ: comparison by importance-weighted likelihoods, and predictive checks.

* `elpd`: :math:`\sum_n \log p(x_n)` of test data, estimated by
  :math:`\log \frac1S \sum_s p(x|z_s)\,p(z_s)/q(z_s|x)` (Burda et al., 2016), in the form that `arviz.compare` takes.
  The estimate is a lower bound in expectation and rises with the number of draws; compare models by equal numbers.
* `predictive_check`: statistics of data drawn from the model beside those of the observed data (Box, 1980; Gelman, Meng
  & Stern, 1996). Predictions from a datum's own code are the easier test, because the code has seen the datum;
  predictions from the prior are the harder one.

References
    G. E. P. Box (1980), Sampling and Bayes' inference in scientific modelling and robustness.
    Y. Burda, R. Grosse, R. Salakhutdinov (2016), Importance weighted autoencoders.
    A. Gelman, X.-L. Meng, H. Stern (1996), Posterior predictive assessment of model fitness via realized discrepancies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from vsc_pyro._arguments import choice
from vsc_pyro.arviz_bridge.versions import elpd_data, from_datasets, group_names
from vsc_pyro.distributions import inclusion_logits
from vsc_pyro.models.data_checks import check_figure
from vsc_pyro.models.vae import VAE

if TYPE_CHECKING:
    import arviz
    import xarray

_ROWS_AT_ONCE = 1000
_PREDICTIONS = {"posterior": "posterior_predictive", "prior": "prior_predictive"}


def elpd(inference: arviz.InferenceData | xarray.DataTree) -> arviz.ELPDData:
    """Return the log-likelihood of each datum under the model, ready for ``arviz.compare({name: elpd(...), ...})``.

    Draws of several models in one object have equal weights, so the estimate is that of an equal mixture of the models.

    Args:
        inference: result of `vsc_pyro.to_arviz` for test data, with ``log_likelihood=True``.

    Raises:
        ValueError: an object without log-likelihoods, a posterior that is a point, or a density that is not finite.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> model = vsc.VAE(vsc.NormalEncoder(4, 2), vsc.NormalDecoder(2, 4), vsc.NormalPrior(2))
        >>> vsc.elpd(vsc.to_arviz(model, torch.randn(3, 4), 10))["n_data_points"]
        3
    """
    likelihood = _group(inference, "log_likelihood", "log_likelihood=True")
    stats = _group(inference, "sample_stats", "log_likelihood=True")
    weights = likelihood["x"] + stats["log_prior"] - stats["log_posterior"]
    weights = weights.astype(float).stack(sample=("chain", "draw")).transpose("datum", "sample")
    if stats["log_posterior"].isnull().all(("draw", "datum")).any():
        raise ValueError("the posterior is a point, without a density to weight draws by; compare by reconstructions")
    num_samples = weights.sizes["sample"]
    total = torch.logsumexp(torch.from_numpy(weights.values), 1).numpy() - math.log(num_samples)
    check_figure("log predictive density", torch.from_numpy(total))
    pointwise = weights.isel(sample=0, drop=True).copy(data=total)
    return elpd_data(pointwise, num_samples)


def ink(x: np.ndarray) -> np.ndarray:
    """Return the sum of the pixels of each image, shape ``(N, ...) -> (N,)``."""
    return x.reshape(len(x), -1).sum(1)


def pixels_on(x: np.ndarray) -> np.ndarray:
    """Return the number of pixels above one half, shape ``(N, ...) -> (N,)``."""
    return (x.reshape(len(x), -1) > 0.5).sum(1)


def strokes(x: np.ndarray) -> np.ndarray:
    """Return the number of connected regions of pixels above one half, shape ``(N, ..., H, W) -> (N,)``.

    Pixels that touch at a corner are connected. Channels are counted separately and summed.

    Raises:
        ValueError: data that are not images.

    Example:
        >>> import numpy as np
        >>> from vsc_pyro.arviz_bridge.predictive_checks import strokes
        >>> strokes(np.array([[[1, 0, 1], [1, 0, 0]]]))
        array([2])
    """
    from scipy.ndimage import label

    if x.ndim < 3:
        raise ValueError(f"strokes needs images, (N, ..., H, W), got data of shape {x.shape}; pass other statistics")
    on = x.reshape(len(x), -1, *x.shape[-2:]) > 0.5
    corners = np.ones((3, 3))
    return np.array([sum(cast(tuple, label(channel, corners))[1] for channel in image) for image in on])


def active_latents(model: VAE) -> Callable[[np.ndarray], np.ndarray]:
    r"""Return the statistic :math:`\sum_j \gamma_j(x)`: the number of latents that the encoder has on for each image.

    Raises:
        ValueError: a model without spikes, when the statistic is called.

    Example:
        >>> import numpy as np, vsc_pyro as vsc
        >>> from vsc_pyro.arviz_bridge.predictive_checks import active_latents
        >>> model = vsc.VAE(vsc.SpikeSlabEncoder(4, 2), vsc.NormalDecoder(2, 4), vsc.SpikeSlabPrior(2))
        >>> active_latents(model)(np.zeros((3, 4))).shape
        (3,)
    """

    def statistic(x: np.ndarray) -> np.ndarray:
        counts = []
        with model.evaluating():
            for chunk in torch.from_numpy(x).split(_ROWS_AT_ONCE):
                logits = inclusion_logits(model.encoder(chunk.to(model.reference)))
                if logits is None:
                    raise ValueError(f"{type(model.encoder).__name__} has no spikes, so all latents are always active")
                counts.append(logits.sigmoid().sum(-1).cpu())
        return torch.cat(counts).numpy()

    return statistic


STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {"ink": ink, "pixels_on": pixels_on, "strokes": strokes}
# Statistics of data other than images.
VECTOR_STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda x: x.reshape(len(x), -1).mean(1),
    "standard deviation": lambda x: x.reshape(len(x), -1).std(1),
    "smallest": lambda x: x.reshape(len(x), -1).min(1),
    "largest": lambda x: x.reshape(len(x), -1).max(1),
}


def predictive_check(
    inference: arviz.InferenceData | xarray.DataTree,
    statistics: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    group: str = "posterior",
) -> arviz.InferenceData | xarray.DataTree:
    """Return statistics of predicted and of observed data, as an ArviZ object for ArviZ's own plots.

    The result has the groups ``posterior_predictive`` and ``observed_data``, with a variable for every statistic.
    Predictions of the prior are under ``posterior_predictive``, too, because ArviZ looks for that name. With ArviZ
    0.x::

        arviz.plot_bpv(check, kind="t_stat", t_stat="mean")

    and with 1.x ``arviz.plot_ppc_tstat(check, t_stat="mean")`` show the mean over data among the means of replicated
    data. A draw of the prior's predictions has as many data as were observed, so the plot is right for both.

    Args:
        inference: result of `vsc_pyro.to_arviz` with ``predictive=True``.
        statistics: functions, by name, from an array of data, shape ``(N, ...)``, to one number each, shape ``(N,)``;
            None for `STATISTICS` of images ``(N, ..., H, W)``, and for `VECTOR_STATISTICS` of other data. See
            `active_latents` for a statistic of a model.
        group: ``"posterior"``, predictions given the code of each datum; or ``"prior"``.

    Raises:
        ValueError: an unknown or missing group, or a statistic that does not return a number for each datum.

    Example:
        >>> import torch, vsc_pyro as vsc
        >>> model = vsc.VAE(vsc.NormalEncoder(4, 2), vsc.NormalDecoder(2, 4), vsc.NormalPrior(2))
        >>> inference = vsc.to_arviz(model, torch.randn(3, 4), 10)
        >>> check = vsc.predictive_check(inference, {"largest": lambda x: x.max(1)})
        >>> check["posterior_predictive"]["largest"].shape
        (1, 10, 3)
    """
    import xarray

    predictions = choice("group", group, _PREDICTIONS)
    drawn = _group(inference, predictions, "predictive=True, prior=True")["x"]
    observed = _group(inference, "observed_data", "predictive=True, prior=True")["x"]
    pixels = observed.dims[1:]
    if statistics is None:
        statistics = STATISTICS if len(pixels) > 1 else VECTOR_STATISTICS
    found: dict[str, dict[str, xarray.DataArray]] = {"posterior_predictive": {}, "observed_data": {}}
    if not isinstance(statistics, Mapping):
        raise ValueError(f"statistics must map names to functions, {{'mean': ...}}, got {statistics!r}")
    for name, statistic in statistics.items():
        for place, x in (("posterior_predictive", drawn), ("observed_data", observed)):
            outer = x.isel(dict.fromkeys(pixels, 0), drop=True)
            values = np.asarray(statistic(x.values.reshape(-1, *observed.shape[1:])))
            if values.shape != (outer.size,):
                raise ValueError(
                    f"statistics[{name!r}] must return one number for each of the {outer.size} data it was given, "
                    f"got shape {values.shape}"
                )
            found[place][name] = outer.copy(data=values.reshape(outer.shape)).astype(float)
    return from_datasets({place: xarray.Dataset(variables) for place, variables in found.items()})


def _group(inference: arviz.InferenceData | xarray.DataTree, name: str, arguments: str) -> xarray.Dataset:
    if name not in group_names(inference):
        raise ValueError(f"inference holds no group {name}; call to_arviz with {arguments}")
    return cast("xarray.Dataset", inference[name])
