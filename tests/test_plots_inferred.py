"""What the pictures of missing and of unseen data show is what the model infers."""

import pytest
import torch
from problems.pictures import pixels

import vsc_pyro as vsc
from vsc_pyro import plots


def shown(figure):
    return [torch.as_tensor(axes.images[0].get_array().data) for axes in figure.axes if axes.images]


@pytest.mark.slow
def test_imputations_show_what_impute_draws(trained, digits):
    x = digits.test.images[:3].round()
    mask = torch.arange(8)[:, None] < 4
    state = torch.get_rng_state()
    figure = plots.imputations(trained, x, mask, num=3, num_samples=2, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    found = trained.impute(x, mask, num_samples=20, seed=2)
    rows = torch.stack(shown(figure)).reshape(5, 3, 8, 8)
    assert torch.equal(rows[0, :, :4], x[:, 0, :4])
    assert rows[0, :, 4:].unique().numel() == 1
    for row, expected in zip(rows[1:], [found.mean, *found.samples[:2], x], strict=True):
        torch.testing.assert_close(row, expected[:, 0])
    assert pixels(figure).std() > 0.01


def test_imputations_refuse_before_they_draw(trained, digits):
    with pytest.raises(ValueError, match="num must be a whole number"):
        plots.imputations(trained, digits.test, torch.ones(8, 8, dtype=torch.bool), num=0)
    with pytest.raises(ValueError, match="mask must be a bool tensor"):
        plots.imputations(trained, digits.test, torch.ones(8, 8))


def test_bound_histograms_count_every_datum(trained, digits):
    inverted = vsc.Dataset(1 - digits.test.images, binarize="dynamic")
    found = {
        "digits": vsc.bounds(trained, digits.test, num_draws=5),
        "inverted": vsc.bounds(trained, inverted, num_draws=5),
    }
    figure = plots.bound_histograms(found)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        f"{name}: mean {result.iwae.mean():.1f}" for name, result in found.items()
    ]
    means = []
    for patch in axes.patches:
        shares, edges, _ = patch.get_data()
        assert shares.sum() == pytest.approx(1)
        means.append((shares * (edges[1:] + edges[:-1]) / 2).sum())
    for mean, result in zip(means, found.values(), strict=True):
        assert mean == pytest.approx(float(result.iwae.mean()), abs=2)  # of bins and of what lies beyond the ends
    assert means[0] > means[1]
    assert "bound of 5 draws" in axes.get_xlabel()


def test_bound_histograms_refuse_what_has_none(digits):
    with pytest.raises(ValueError, match=r"bounds must be a dict from names to .* got an empty dict"):
        plots.bound_histograms({})
    point = vsc.VAE(vsc.DeltaEncoder(64, 3), vsc.BernoulliDecoder(3, 64), vsc.LaplacePrior(3))
    with pytest.raises(ValueError, match="bounds of 'point' are NaN: the posterior is a point"):
        plots.bound_histograms({"point": vsc.bounds(point, digits.test.images[:5].flatten(1), num_draws=2)})
