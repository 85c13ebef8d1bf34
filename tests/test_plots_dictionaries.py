"""Figures of dictionaries hold the numbers of their evaluations."""

import dataclasses

import pytest
from problems.linear import linear_model
from test_dictionaries import known

import vsc_pyro as vsc
from vsc_pyro import plots


@pytest.fixture(scope="module")
def found():
    model, x, z = linear_model()
    return vsc.evaluate_dictionary(
        model,
        known(x, z),
        dictionary=model.decoder.dictionary,
        posterior=lambda x: vsc.exact_posterior(model, x),
    )


@pytest.fixture(scope="module")
def unknown():
    model, x, _ = linear_model()
    return vsc.evaluate_dictionary(model, x)


def test_densities(found, unknown):
    axes = plots.firing_densities({"known": found, "unknown": unknown}).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"known: {found.dead} of 5 dead",
        f"unknown: {unknown.dead} of 5 dead",
    ]
    assert axes.patches[0].get_data().values.tolist() == found.density_counts.tolist()


def test_cosines(found, unknown):
    axes = plots.feature_cosines({"it": found}).axes[0]
    assert axes.patches[0].get_data().values.sum() == 5
    legend = axes.get_legend()
    assert legend.get_title().get_text() == "MCC of one-to-one matching"
    assert [text.get_text() for text in legend.get_texts()] == [f"it: {found.mcc:.3f}"]
    with pytest.raises(ValueError, match="'unknown' has no true features"):
        plots.feature_cosines({"unknown": unknown})


def test_recovery(found, unknown):
    figure = plots.recovery({"it": [found, found]})
    for axes, value in zip(figure.axes, (found.f1, found.mcc), strict=True):
        assert axes.lines[0].get_ydata().tolist() == [value, value]
        assert axes.lines[0].get_xdata().tolist() == [found.hard_l0] * 2
        assert axes.lines[1].get_xdata()[0] == pytest.approx(found.true_l0, abs=0.005)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["it", "features present (true L0)"]
    for wrong in ({"it": [unknown]}, {"it": []}):
        with pytest.raises(ValueError, match="must have known features"):
            plots.recovery(wrong)


def test_reliability(found, unknown):
    curves = plots.reliability({"it": found}).axes[0]
    heights = [float(height) for height in curves.lines[1].get_ydata()]
    assert heights == pytest.approx(found.bin_frequency.tolist(), nan_ok=True)
    assert curves.get_ylabel() == "share that is present"
    small = dataclasses.replace(found, ece=0.000512)
    labels = [text.get_text() for text in plots.reliability({"it": small}).legends[0].get_texts()]
    assert labels == ["it: error 0.00051"]
    with pytest.raises(ValueError, match="a dictionary without known features"):
        plots.reliability({"it": unknown})


@pytest.mark.parametrize("plot", [plots.firing_densities, plots.feature_cosines])
def test_the_legend_is_beside_the_bars(plot, found):
    figure = plot({"it": found, "a longer name": found})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend = axes.get_legend().get_window_extent()
    assert legend.x0 >= axes.bbox.x1
    assert legend.x1 <= figure.bbox.x1


@pytest.mark.parametrize("plot", [plots.firing_densities, plots.feature_cosines, plots.recovery])
def test_nothing_to_draw(plot):
    with pytest.raises(ValueError, match=r"evaluations must be a dict from names to .* got an empty dict"):
        plot({})
