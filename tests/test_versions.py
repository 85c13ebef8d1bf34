"""Both lines of ArviZ get what they take; which one is tested here is the one that is installed."""

import importlib.metadata

import numpy as np
import pytest
import xarray

from vsc_pyro.arviz_bridge.versions import compare_models, elpd_data, from_datasets, group_names


def test_the_object_is_that_of_the_line():
    import arviz

    made = from_datasets({"posterior": xarray.Dataset({"z": (("chain", "draw"), np.zeros((1, 3)))})})
    major = int(importlib.metadata.version("arviz").split(".")[0])
    assert type(made) is (arviz.InferenceData if major == 0 else xarray.DataTree)
    assert group_names(made) == ["posterior"]
    assert made["posterior"]["z"].shape == (1, 3)


def test_elpd_of_held_out_data():
    pointwise = xarray.DataArray(np.array([-1.0, -2.0, -6.0]), dims="datum")
    result = elpd_data(pointwise, 10)
    total = result["elpd_loo"] if "elpd_loo" in dir(result) else result.elpd
    assert total == -9
    assert result["se"] == pytest.approx(np.sqrt(3 * np.var([-1, -2, -6], ddof=1)))
    assert (result["n_samples"], result["n_data_points"]) == (10, 3)
    assert str(result).count("-9.00") == 1
    assert np.isnan(elpd_data(pointwise[:1], 10)["se"])


@pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.sort_values")  # ArviZ 0.23 with pandas 3.1
def test_comparisons_are_not_rounded():
    rng = np.random.default_rng(0)
    pointwise = {name: xarray.DataArray(rng.normal(-100, 10, 100), dims="datum") for name in "ab"}
    table = compare_models({name: elpd_data(values, 10) for name, values in pointwise.items()})
    found = table["elpd_loo"] if "elpd_loo" in table else table["elpd"]
    for name, values in pointwise.items():
        assert float(found[name]) == pytest.approx(float(values.sum()), abs=0.01)
