import pyro
import pyro.distributions as dist
import pytest
import torch
from problems.pictures import pixels

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro._seeding import seeded
from vsc_pyro.evaluation.calibration import check_calibration
from vsc_pyro.inference.linear_exact import exact_posterior


@pytest.fixture(scope="module")
def with_pseudo_inputs():
    train, test = vsc.datasets.load("digits")
    torch.manual_seed(0)
    encoder = vsc.SpikeSlabEncoder((1, 8, 8), 6, (30,))
    prior = vsc.PseudoInputPrior(encoder, 12)
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(6, (1, 8, 8), (30,)), prior)
    vsc.fit(model, train, epochs=3, batch_size=50, lr=3e-3, device="cpu", progress=False)
    return model, test


@pytest.fixture(scope="module")
def trained():
    train, test = vsc.datasets.load("digits")
    torch.manual_seed(0)
    encoder = vsc.SpikeSlabEncoder((1, 8, 8), 12, gate="shifted-sigmoid")
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(12, (1, 8, 8)), vsc.SpikeSlabPrior(12))
    history = vsc.fit(model, train, epochs=12, batch_size=50, lr=3e-3, device="cpu", progress=False)
    return model, test, history


def shown_in(axes):
    return torch.from_numpy(axes.images[0].get_array().filled())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "panels"),
    [
        (lambda m, d: plots.reconstructions(m, d, num=5), 2 * 5),
        (lambda m, d: plots.prior_samples(m, d, num=18), 2 * 12),
        (lambda m, d: plots.traversals(m, d, num=3), 3 * 10),
        (lambda m, d: plots.inclusion_map(m, d), 2),
    ],
    ids=["reconstructions", "prior_samples", "traversals", "inclusion_map"],
)
def test_pictures_show_something_and_change_nothing(trained, function, panels):
    model, test, _ = trained
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    figure = function(model, test)
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    assert len(figure.axes) == panels
    image = pixels(figure)
    assert image.std() > 0.02
    again = pixels(function(model, test))
    assert (image == again).all()


def test_reconstructions_show_the_data_above_the_decoded(trained):
    model, test, _ = trained
    grey = vsc.Dataset(test.images, test.labels, binarize=None)
    figure = plots.reconstructions(model, grey, num=4)
    with model.evaluating(), seeded(0, torch.device("cpu")):
        decoded = model.decoder(model.encoder(test.images[:4]).sample()).mean
    for column in range(4):
        torch.testing.assert_close(shown_in(figure.axes[column]), test.images[column, 0])
        torch.testing.assert_close(shown_in(figure.axes[4 + column]), decoded[column, 0])


def test_comparison_shows_the_same_data_to_every_model(trained, small_vae):
    model, test, _ = trained
    models = {"trained": model, "untrained": small_vae()}
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    figure = plots.comparison(models, test, num=3, seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    assert [figure.axes[row].texts[0].get_text() for row in (0, 3, 6)] == ["data", *models]
    for row, alone in enumerate(models.values(), start=1):
        own = plots.reconstructions(alone, test, num=3, seed=1)
        for column in range(3):
            assert torch.equal(shown_in(figure.axes[column]), shown_in(own.axes[column]))
            assert torch.equal(shown_in(figure.axes[3 * row + column]), shown_in(own.axes[3 + column]))
    assert not torch.equal(shown_in(figure.axes[3]), shown_in(figure.axes[6]))
    with pytest.raises(ValueError, match=r"models must be a dict from names to .* got an empty dict"):
        plots.comparison({}, test)


def test_traversals_move_the_one_latent(trained):
    model, test, _ = trained
    figure = plots.traversals(model, test, num=2)
    row = [shown_in(axes) for axes in figure.axes[:10]]
    off, zero = row[2], row[3 + 3]
    assert (off == zero).all()  # a slab at zero and a spike off decode to the same picture
    assert abs(row[3] - row[-1]).max() > 0.05


def test_traversals_go_as_far_as_the_codes_do(trained):
    model, test, _ = trained
    codes = vsc.codes(model, test.images.round())
    used = codes.inclusion.mean(0).argsort(descending=True)[:2]
    figure = plots.traversals(model, vsc.Dataset(test.images.round()), num=2)
    titles = [axes.get_title() for axes in figure.axes[3:10]]
    sizes = codes.hard[:, used].abs()
    limit = max(float(size[size > 0].quantile(0.98)) for size in sizes.T)
    assert limit < sizes.max()
    assert titles == [f"z = {limit / 3 * i:.3g}" for i in range(-3, 4)]
    for wrong in (0, -2, float("nan"), "3"):
        with pytest.raises(ValueError, match="limit must be a finite number above 0, got"):
            plots.traversals(model, test, limit=wrong)
    assert figure.axes[9].get_title() != plots.traversals(model, test, num=2, limit=1.0).axes[9].get_title() == "z = 1"


def test_inclusion_map_is_the_mean_by_class(trained):
    model, test, _ = trained
    grey = vsc.Dataset(test.images, test.labels)
    figure = plots.inclusion_map(model, grey)
    shown = shown_in(figure.axes[0])
    with model.evaluating():
        probs = model.encoder(test.images).base_dist.probs
    order = probs.mean(0).argsort(descending=True)
    torch.testing.assert_close(shown[3], probs[test.labels == 3].mean(0)[order])
    axes = plots.inclusion_map(model, grey, num_latents=4).axes[0]
    torch.testing.assert_close(shown_in(axes), shown[:, :4])
    assert axes.get_title() == "Inclusion by class, the 4 most used of 12 latents"
    for unlabelled in (vsc.Dataset(test.images), test.images):
        with pytest.raises(ValueError, match="needs labels"):
            plots.inclusion_map(model, unlabelled)
    with pytest.raises(ValueError, match="needs labels"):
        plots.inclusion_map(model, vsc.Dataset(test.images))


def test_training_curve(trained):
    figure = plots.training_curve(trained[2])
    assert list(figure.axes[0].lines[0].get_ydata()) == trained[2].elbo
    assert "nats" in figure.axes[0].get_ylabel()
    pixels(plots.training_curve(vsc.History([-3.0], [1.0])))
    validated = vsc.History([-3.0, -2.0, -1.0], [1.0] * 3, validation=[-4.0, -2.5, -3.0])
    axes = plots.training_curve(validated).axes[0]
    assert list(axes.lines[1].get_ydata()) == validated.validation
    assert (*axes.lines[2].get_xdata(), *axes.lines[2].get_ydata()) == (2, -2.5)
    assert [text.get_text() for text in axes.get_legend().get_texts()][1:] == ["validation bound", "best epoch, 2"]
    with pytest.raises(ValueError, match="history holds no epoch"):
        plots.training_curve(vsc.History())


def test_pictures_follow_their_seed_and_leave_the_parameter_store_alone(trained):
    model, test, _ = trained
    assert (pixels(plots.prior_samples(model, test, 12, seed=1)) != pixels(plots.prior_samples(model, test, 12))).any()
    assert list(pyro.get_param_store().keys()) == []


@pytest.mark.slow
def test_flat_and_dense_models(digits):
    model = vsc.VAE(vsc.NormalEncoder(64, 3), vsc.BernoulliDecoder(3, 64), vsc.NormalPrior(3))
    flat = vsc.Dataset(digits.test.images.flatten(1), digits.test.labels, "dynamic")
    for figure in (plots.reconstructions(model, flat), plots.prior_samples(model, flat), plots.traversals(model, flat)):
        pixels(figure)


def test_traversals_of_codes_without_a_mean(digits):
    class Cauchy(torch.nn.Module):
        def forward(self, x):
            return vsc.SpikeSlab(dist.Cauchy(x.flatten(1)[:, 20:24], 0.1), probs=0.9).to_event(1)

    grey = vsc.Dataset(digits.test.images)
    model = vsc.VAE(Cauchy(), vsc.BernoulliDecoder(4, (1, 8, 8), activation="tanh"), Cauchy())
    figure = plots.traversals(model, grey, num=1)
    latent = int(figure.axes[0].texts[0].get_text().split()[1])
    pixels_read = digits.test.images.flatten(1)[:, 20:24]
    assert latent == int(pixels_read.std(0).argmax())
    code = pixels_read[int(pixels_read[:, latent].argmax())]
    with model.evaluating():
        torch.testing.assert_close(shown_in(figure.axes[1]), model.decoder(code).mean[0])


@pytest.mark.slow
def test_pseudo_inputs_are_shown_with_their_shares(with_pseudo_inputs, trained):
    model, test = with_pseudo_inputs
    figure = plots.pseudo_inputs(model, test)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 12
    with model.evaluating(), seeded(0, torch.device("cpu")):
        assignment = model.prior(test.draw(slice(None))).log_assignment.exp()
    shares = assignment.mean(0)
    order = shares.argsort(descending=True).tolist()
    assert [axes.get_title() for axes in shown] == [f"{u}: {shares[u]:.0%}" for u in order]
    for axes, u in zip(shown, order, strict=True):
        torch.testing.assert_close(shown_in(axes), model.prior.pseudo_inputs[u, 0].detach())
    (bars,) = (axes for axes in figure.axes if not axes.images and axes.containers)
    heights = [
        torch.tensor([bar.get_height() for bar in container], dtype=torch.float32) for container in bars.containers
    ]
    torch.testing.assert_close(heights[0], shares[order])
    chosen = torch.stack([(assignment.argmax(1) == u).float().mean() for u in order])
    torch.testing.assert_close(heights[1], chosen)
    assert (chosen - shares[order]).abs().max() > 0.005
    assert [text.get_text() for text in bars.get_xticklabels()] == [str(u) for u in order]
    assert pixels(figure).std() > 0.02
    assert (pixels(plots.prior_samples(model, test)) == pixels(plots.prior_samples(model, test))).all()
    with pytest.raises(ValueError, match="must have pseudo-inputs, and SpikeSlabPrior has none; build the model with"):
        plots.pseudo_inputs(trained[0], test)


def test_receptive_fields_are_the_atoms(trained):
    decoder = vsc.NormalDecoder(5, (1, 6, 6), hidden=(), scale=1.0)
    model = vsc.VAE(vsc.NormalEncoder((1, 6, 6), 5), decoder, vsc.NormalPrior(5))
    with torch.no_grad():
        decoder.dictionary.copy_(torch.randn(5, 1, 6, 6) * torch.tensor([1.0, 9, 3, 0, 5]).reshape(5, 1, 1, 1))
    figure = plots.receptive_fields(model, num=4)
    largest = decoder.dictionary[1, 0].detach()
    torch.testing.assert_close(shown_in(figure.axes[0]), largest / largest.abs().max())
    assert figure.axes[0].images[0].get_clim() == (-1, 1)
    assert len([axes for axes in figure.axes if axes.images]) == 4
    assert pixels(plots.receptive_fields(model)).std() > 0.02
    with pytest.raises(ValueError, match=r"only a linear decoder has a dictionary; build the decoder with hidden=\(\)"):
        plots.receptive_fields(trained[0])


@pytest.fixture(scope="module")
def calibrations():
    torch.manual_seed(0)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(9, 3), vsc.NormalDecoder(3, 9, hidden=(), scale=0.5), vsc.SpikeSlabPrior(3, 0.3)
    )
    exact = check_calibration(model, num_data=400, posterior=lambda x: exact_posterior(model, x))
    return {"encoder": check_calibration(model, num_data=400), "exact": exact}


def test_reliability_shows_shares_and_counts(calibrations):
    figure = plots.reliability(calibrations)
    assert pixels(figure).std() > 0.01
    curves, counts = figure.axes
    exact = calibrations["exact"]
    shown = [line.get_xydata() for line in curves.lines if len(line.get_xydata()) == 10]
    expected = torch.stack([exact.bin_inclusion, exact.bin_frequency], 1)
    assert any(torch.allclose(torch.from_numpy(points), expected, equal_nan=True) for points in shown)
    assert [text.get_text() for text in figure.legends[0].get_texts()][1] == f"exact: error {exact.ece:.2g}"
    assert curves.get_ylabel() == "share that is on"
    assert len(counts.patches) == 2
    dense = vsc.VAE(vsc.NormalEncoder(9, 3), vsc.NormalDecoder(3, 9), vsc.NormalPrior(3))
    with pytest.raises(
        ValueError, match=r"calibrations\['dense'\] has no inclusion probabilities .* posterior without spikes"
    ):
        plots.reliability({"dense": check_calibration(dense, num_data=20)})
    with pytest.raises(ValueError, match=r"calibrations must be a dict from names to .* got a Calibration"):
        plots.reliability(exact)
    with pytest.raises(ValueError, match=r"calibrations must be a dict from names to .* got an empty dict"):
        plots.reliability({})


def test_rank_histograms_show_every_latent_and_all(calibrations):
    figure = plots.rank_histograms(calibrations)
    assert pixels(figure).std() > 0.01
    assert [axes.get_title().split(",")[0] for axes in figure.axes] == ["encoder", "exact"]
    for axes, result in zip(figure.axes, calibrations.values(), strict=True):
        *latents, overall = (torch.from_numpy(patch.get_data().values) for patch in axes.patches)
        assert len(latents) == 3
        torch.testing.assert_close(latents[1], result.rank_counts[1] / 20.0, check_dtype=False)
        torch.testing.assert_close(overall, torch.stack(latents).mean(0))
    with pytest.raises(ValueError, match=r"calibrations must be a dict from names to .* got an empty dict"):
        plots.rank_histograms({})
