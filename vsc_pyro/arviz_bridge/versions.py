"""All code that depends on the version of ArviZ: 0.x (Python 3.11 and older) or 1.x."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import arviz
    import pandas
    import xarray
    from matplotlib.figure import Figure


def _arviz() -> tuple[Any, bool]:
    """Return the module, untyped because each version has its own signatures, and True if it is 0.x."""
    import arviz

    return arviz, arviz.__version__.startswith("0.")  # 1.x has a name `InferenceData` for something else


def from_datasets(datasets: Mapping[str, xarray.Dataset]) -> arviz.InferenceData | xarray.DataTree:
    """Return groups as one object: an `arviz.InferenceData` for ArviZ 0.x, an `xarray.DataTree` for 1.x."""
    import xarray

    arviz, is_first = _arviz()
    return arviz.InferenceData(**datasets) if is_first else xarray.DataTree.from_dict(dict(datasets))


def group_names(inference: Any) -> list[str]:
    """Return the names of the groups of an object made by `from_datasets`."""
    if isinstance(children := getattr(inference, "children", None), Mapping):
        return list(children)
    if not hasattr(inference, "groups"):
        raise ValueError(f"inference must be what to_arviz returned, got a {type(inference).__name__}")
    return inference.groups()


def elpd_data(pointwise: xarray.DataArray, num_samples: int) -> arviz.ELPDData:
    """Return expected log predictive densities of held-out data as `arviz.compare` takes them.

    Args:
        pointwise: one density for each datum, one dimension.
        num_samples: draws behind each estimate.
    """
    arviz, is_first = _arviz()
    num_data = pointwise.size
    fields = {
        "elpd": float(pointwise.sum()),
        "se": math.sqrt(num_data) * float(pointwise.std(ddof=1)) if num_data > 1 else math.nan,
        "p": math.nan,
        "n_samples": num_samples,
        "n_data_points": num_data,
        "scale": "log",
        "warning": False,
    }
    if is_first:
        # 0.x knows the kinds "loo" and "waic" only. The data are held out, not left out one by one.
        names = [{"elpd": "elpd_loo", "p": "p_loo"}.get(name, name) for name in fields]
        return arviz.ELPDData(data=[*fields.values(), pointwise], index=[*names, "loo_i"])
    return arviz.ELPDData(**fields, good_k=math.nan, elpd_i=pointwise)


def plot_statistics(check: Any) -> Any:
    """Plot the means over data, replicated and observed, of a result of `vsc_pyro.predictive_check`."""
    arviz, is_first = _arviz()
    size = (10, 3 * math.ceil(len(check["observed_data"].data_vars) / 4))
    if is_first:
        return arviz.plot_bpv(check, kind="t_stat", t_stat="mean", figsize=size, textsize=9)
    return arviz.plot_ppc_tstat(check, t_stat="mean", backend="matplotlib", figure_kwargs={"figsize": size})


def matplotlib_figure(shown: Any) -> Figure:
    """Return the figure of a result of an ArviZ plot: axes or an array of axes (0.x), or a plot collection (1.x)."""
    if hasattr(shown, "viz"):
        return shown.viz["figure"].item()
    while not hasattr(shown, "figure"):
        shown = shown[0]
    return shown.figure


def compare_models(found: Mapping[str, arviz.ELPDData]) -> pandas.DataFrame:
    """Return `arviz.compare` without rounding: 1.x rounds -10017 to the two digits -10000."""
    arviz, is_first = _arviz()
    return arviz.compare(dict(found), **({} if is_first else {"round_to": "none"}))
