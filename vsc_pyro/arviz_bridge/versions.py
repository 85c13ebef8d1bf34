"""What differs between the two lines of ArviZ, 0.x (Python 3.11 and older) and 1.x; asked for nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import arviz
    import pandas
    import xarray
    from matplotlib.figure import Figure


def _is_first_line() -> bool:
    import arviz

    return arviz.__version__.startswith("0.")  # 1.x has an `InferenceData`, too, which is none


def from_datasets(datasets: Mapping[str, xarray.Dataset]) -> arviz.InferenceData | xarray.DataTree:
    """Groups as one object: an `arviz.InferenceData` for ArviZ 0.x, an `xarray.DataTree` for 1.x."""
    import arviz
    import xarray

    if _is_first_line():
        return arviz.InferenceData(**datasets)
    return xarray.DataTree.from_dict(dict(datasets))


def group_names(inference: arviz.InferenceData | xarray.DataTree) -> list[str]:
    """Names of the groups of such an object."""
    return list(inference.children) if hasattr(inference, "children") else inference.groups()


def elpd_data(pointwise: xarray.DataArray, num_samples: int) -> arviz.ELPDData:
    """Expected log predictive densities of data that were left out, as `arviz.compare` takes them.

    Args:
        pointwise: of each datum, one dimension.
        num_samples: draws that they were estimated by.
    """
    import arviz

    num_data = pointwise.size
    total = float(pointwise.sum())
    error = math.sqrt(num_data) * float(pointwise.std(ddof=1)) if num_data > 1 else math.nan
    if _is_first_line():
        # "loo" is one of the two kinds that it knows; these are held out, not left out one by one.
        fields = {"elpd_loo": total, "se": error, "p_loo": math.nan, "n_samples": num_samples}
        fields |= {"n_data_points": num_data, "warning": False, "loo_i": pointwise, "scale": "log"}
        return arviz.ELPDData(data=list(fields.values()), index=list(fields))
    return arviz.ELPDData(
        elpd=total,
        se=error,
        p=math.nan,
        n_samples=num_samples,
        n_data_points=num_data,
        scale="log",
        warning=False,
        good_k=math.nan,
        elpd_i=pointwise,
    )


def plot_statistics(check: arviz.InferenceData | xarray.DataTree) -> Any:
    """ArviZ's plot of means over data, replicated and observed, of what `vsc_pyro.predictive_check` returned."""
    import arviz

    size = (10, 3 * math.ceil(len(check["observed_data"].data_vars) / 4))
    if _is_first_line():
        return arviz.plot_bpv(check, kind="t_stat", t_stat="mean", figsize=size, textsize=9)
    return arviz.plot_ppc_tstat(check, t_stat="mean", backend="matplotlib", figure_kwargs={"figsize": size})


def matplotlib_figure(shown: Any) -> Figure:
    """The figure of what an ArviZ plot returned: of 0.x axes, an array of them if several, of 1.x a collection."""
    if hasattr(shown, "viz"):
        return shown.viz["figure"].item()
    while not hasattr(shown, "figure"):
        shown = shown[0]
    return shown.figure


def compare_models(found: Mapping[str, arviz.ELPDData]) -> pandas.DataFrame:
    """`arviz.compare`, without the rounding by which 1.x would make -10017 of four digits -10000."""
    import arviz

    return arviz.compare(dict(found), **({} if _is_first_line() else {"round_to": "none"}))
