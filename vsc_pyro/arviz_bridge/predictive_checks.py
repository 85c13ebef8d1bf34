r"""Is the model any good? Comparison by importance-weighted likelihoods, and predictive checks, for ArviZ to show.

* `elpd`: :math:`\sum_n \log p(x_n)` of test data, estimated by
  :math:`\log \frac1S \sum_s p(x|z_s)\,p(z_s)/q(z_s|x)` (Burda et al., 2016), as what `arviz.compare` takes. It is a
  lower bound in expectation, the closer the more draws; compare models by as many draws each.
* `predictive_check`: statistics of data drawn from the model beside those of the data (Box, 1980; Gelman, Meng & Stern,
  1996). Predictions given a datum's own code are the easier test, for the code has seen the datum; those of the prior
  are the harder one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

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
    """Log-likelihood of the data under the model, datum by datum, ready for ``arviz.compare({name: elpd(...), ...})``.

    With several models in the object, each draw weighs the same: it is that of the equal mixture of the models.

    Args:
        inference: what `vsc_pyro.to_arviz` returned for test data, with ``log_likelihood=True``.

    Raises:
        ValueError: an object without log-likelihoods, or of a posterior that is a point, which has no weights; or a
            density of a datum that is not finite.
    """
    if "log_likelihood" not in group_names(inference):
        raise ValueError("inference holds no group log_likelihood; call to_arviz with log_likelihood=True")
    stats = inference["sample_stats"]
    weights = inference["log_likelihood"]["x"] + stats["log_prior"] - stats["log_posterior"]
    weights = weights.astype(float).stack(sample=("chain", "draw")).transpose("datum", "sample")
    if np.isnan(stats["log_posterior"]).all(("draw", "datum")).any():
        raise ValueError("the posterior is a point, which has no density to weigh draws by; compare by reconstructions")
    num_samples = weights.sizes["sample"]
    total = torch.logsumexp(torch.from_numpy(weights.values), 1).numpy() - math.log(num_samples)
    check_figure("log predictive density", torch.from_numpy(total))
    pointwise = weights.isel(sample=0, drop=True).copy(data=total)
    return elpd_data(pointwise, num_samples)


def ink(x: np.ndarray) -> np.ndarray:
    """Sum of the pixels of each image, shape ``(N, ...) -> (N,)``."""
    return x.reshape(len(x), -1).sum(1)


def pixels_on(x: np.ndarray) -> np.ndarray:
    """Number of pixels above one half, shape ``(N, ...) -> (N,)``."""
    return (x.reshape(len(x), -1) > 0.5).sum(1)


def strokes(x: np.ndarray) -> np.ndarray:
    """Number of connected regions of pixels above one half, neighbours at corners included, ``(N, ..., H, W) -> (N,)``.

    Regions are counted in every channel by itself.

    Raises:
        ValueError: data that are not images.
    """
    from scipy.ndimage import label

    if x.ndim < 3:
        raise ValueError(f"strokes needs images, (N, ..., H, W), got data of shape {x.shape}; pass other statistics")
    on = x.reshape(len(x), -1, *x.shape[-2:]) > 0.5
    return np.array([sum(label(channel, np.ones((3, 3)))[1] for channel in image) for image in on])


def active_latents(model: VAE) -> Callable[[np.ndarray], np.ndarray]:
    r"""The statistic :math:`\sum_j \gamma_j(x)`: how many latents the model's encoder says are on for each image.

    Raises:
        ValueError: a model without spikes, in the first call.
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


def predictive_check(
    inference: arviz.InferenceData | xarray.DataTree,
    statistics: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    group: str = "posterior",
) -> arviz.InferenceData | xarray.DataTree:
    """Statistics of predicted and of observed data, as an ArviZ object for its own plots.

    The result has the groups ``posterior_predictive`` (of the prior's predictions, too: the name is what ArviZ looks
    for) and ``observed_data``, in each a variable for every statistic. With ArviZ 0.x::

        arviz.plot_bpv(check, kind="t_stat", t_stat="mean")

    and with 1.x ``arviz.plot_ppc_tstat(check, t_stat="mean")`` show where the mean over data lies among those of
    replicated data. A draw of the prior's predictions has as many data as were observed, so that this holds for both.

    Args:
        inference: what `vsc_pyro.to_arviz` returned with ``predictive=True``.
        statistics: functions of an array of data, shape ``(N, ...)``, to one number each, shape ``(N,)``, by name; None
            for `STATISTICS`. See `active_latents` for one of a model.
        group: ``"posterior"``, predictions given the code of each datum; or ``"prior"``.

    Raises:
        ValueError: an unknown group, or one that is not there; a statistic that does not give a number for each datum.
    """
    import xarray

    predictions = choice("group", group, _PREDICTIONS)
    if predictions not in group_names(inference):
        raise ValueError(f"inference holds no group {predictions}; call to_arviz with predictive=True, prior=True")
    statistics = STATISTICS if statistics is None else statistics
    drawn, observed = inference[predictions]["x"], inference["observed_data"]["x"]
    pixels = observed.dims[1:]
    found: dict[str, dict[str, xarray.DataArray]] = {"posterior_predictive": {}, "observed_data": {}}
    for name, statistic in statistics.items():
        for place, x in (("posterior_predictive", drawn), ("observed_data", observed)):
            outer = x.isel(dict.fromkeys(pixels, 0), drop=True)
            values = np.asarray(statistic(x.values.reshape(-1, *observed.shape[1:])))
            if values.shape != (outer.size,):
                raise ValueError(
                    f"statistics[{name!r}] must give one number for each of the {outer.size} data it was given, "
                    f"got shape {values.shape}"
                )
            found[place][name] = outer.copy(data=values.reshape(outer.shape)).astype(float)
    return from_datasets({place: xarray.Dataset(variables) for place, variables in found.items()})
