import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro._seeding import seeded
from vsc_pyro.distributions import centre
from vsc_pyro.plots.inputs import slab_draws, slab_quantiles

GREY, COLOUR, J = (1, 8, 8), (3, 8, 8), 6


def spike_slab(shape, **kwargs):
    return vsc.SpikeSlabEncoder(shape, J, (20,), initial_inclusion=0.5, **kwargs)


def threshold(shape, **kwargs):
    return vsc.ThresholdEncoder(shape, J, (20,), initial_inclusion=0.5, **kwargs)


# Encoder, prior and shape of the data: every family that a code can be of.
MODELS = {
    "spike-slab": lambda: (spike_slab(GREY), vsc.SpikeSlabPrior(J), GREY),
    "laplace slab": lambda: (spike_slab(GREY, slab="laplace"), vsc.SpikeSlabPrior(J, slab="laplace"), GREY),
    "positive slab": lambda: (
        spike_slab(GREY, slab="truncated-normal"),
        vsc.SpikeSlabPrior(J, slab="half-normal"),
        GREY,
    ),
    "cauchy slab": lambda: (spike_slab(GREY, slab="cauchy"), vsc.SpikeSlabPrior(J, slab="cauchy"), GREY),
    "colour": lambda: (spike_slab(COLOUR), vsc.SpikeSlabPrior(J, 0.2, learn_inclusion=True), COLOUR),
    "threshold": lambda: (threshold(GREY), vsc.SpikeSlabPrior(J, 0.2, "global", hyperprior=(1, 3)), GREY),
    "normal threshold": lambda: (threshold(COLOUR, base="normal"), vsc.SpikeSlabPrior(J), COLOUR),
    "pseudo-input": lambda: (e := spike_slab(GREY), vsc.PseudoInputPrior(e, 3), GREY),
    "normal": lambda: (vsc.NormalEncoder(GREY, J, (20,)), vsc.NormalMixturePrior(J), GREY),
    "normal, colour": lambda: (vsc.NormalEncoder(COLOUR, J, (20,)), vsc.NormalPrior(J), COLOUR),
    "laplace": lambda: (vsc.LaplaceEncoder(64, J, (20,)), vsc.LaplacePrior(J), (64,)),
    "cauchy": lambda: (vsc.CauchyEncoder(GREY, J, (20,)), vsc.CauchyPrior(J), GREY),
    "rectified point": lambda: (vsc.DeltaEncoder(GREY, J, (20,), rectify=True), vsc.LaplacePrior(J), GREY),
}


def build(kind):
    torch.manual_seed(3)
    encoder, prior, shape = MODELS[kind]()
    decoder = vsc.BernoulliDecoder(J, shape, (20,), activation="tanh")
    with torch.no_grad():
        for layer in (*encoder.network, *decoder.network):
            if isinstance(layer, torch.nn.Linear):
                layer.weight *= 4  # codes and pictures that differ from datum to datum
    return vsc.VAE(encoder, decoder, prior), torch.rand(4, *shape)


@pytest.fixture(params=MODELS)
def model_and_data(request):
    return build(request.param)


def code_of(model, x):
    """Inclusion probabilities, what latents are given that they are on, and the most likely code: by hand."""
    with model.evaluating():
        posterior = model.encoder(x)
    if isinstance(model.encoder, vsc.DeltaEncoder):
        code = posterior.v
        return (code > 0).float(), None, code
    slab = getattr(posterior.base_dist, "slab", posterior.base_dist)
    inclusion = getattr(posterior.base_dist, "probs", torch.ones_like(slab.loc))
    return inclusion, slab, torch.where(inclusion > 0.5, centre(slab), 0.0)


def decode(model, codes, shape):
    with model.evaluating():
        return model.decoder(codes).mean.reshape(-1, *shape)


def as_shown(picture):
    if picture.ndim == 1:
        return picture.reshape(8, 8) if len(picture) == 64 else picture
    return picture[0] if len(picture) == 1 else picture.permute(1, 2, 0)


def folded(x):
    """Arguments by which flat data are drawn as the pictures that they are."""
    return {"image_shape": (8, 8)} if x.ndim == 2 else {}


def drawn_in(axes):
    if axes.images:
        return shown_in(axes)
    values = [bar.get_width() for bar in axes.patches] or axes.lines[0].get_ydata()
    return torch.as_tensor(np.asarray(values, dtype=np.float32))


def shown_in(axes):
    return torch.from_numpy(np.ma.getdata(axes.images[0].get_array()))


def pictures(figure):
    assert isinstance(figure, Figure)
    assert figure.get_size_inches()[0] <= 10
    return [axes for axes in figure.axes if axes.images]


def rendered(figure):
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=50)
    buffer.seek(0)
    return imread(buffer)


def assert_shows(axes, picture):
    torch.testing.assert_close(shown_in(axes).flatten(), as_shown(picture).flatten())


def test_code_shows_inclusion_and_quantiles_of_the_slab(model_and_data):
    model, x = model_and_data
    inclusion, slab, _ = code_of(model, x[:1])
    inclusion = inclusion[0]
    figure = plots.code(model, x[0], num=4, coverage=0.8, **folded(x))
    datum, above, below = figure.axes
    assert_shows(datum, x[0])
    latents = [int(text.get_text()) for text in above.get_xticklabels()]
    assert len(latents) == 4
    shown = torch.as_tensor(above.lines[0].get_ydata())
    torch.testing.assert_close(shown, inclusion[latents])
    torch.testing.assert_close(shown, inclusion.sort(descending=True).values[:4])
    intervals = {}
    for container in below.containers:
        (points, _, (bars,)) = container
        for at, segment in zip(points.get_xdata(), bars.get_segments(), strict=True):
            intervals[int(at)] = segment[:, 1]
    if slab is None:
        return
    for place, latent in enumerate(latents):
        # The cdf, which pictures do not use, of the ends: a tenth beyond either.
        ends = torch.as_tensor(intervals[place], dtype=slab.loc.dtype)
        tails = slab.cdf(ends.reshape(2, 1, 1))[:, 0, latent]
        torch.testing.assert_close(tails, torch.tensor([0.1, 0.9]), atol=2e-3, rtol=0)


def test_explanation_shows_what_the_picture_loses_without_a_latent(model_and_data):
    model, x = model_and_data
    shape = x.shape[1:]
    inclusion, _, z = code_of(model, x[:1])
    active = (inclusion[0] > 0.5).nonzero().flatten().tolist()
    assert len(active) >= 2
    figure = plots.explanation(model, x[:1], num=2, **folded(x))
    datum, reconstruction, *contributions = pictures(figure)
    contributions = [axes for axes in contributions if axes.get_title()]
    whole = decode(model, z, shape)[0]
    assert_shows(datum, x[0])
    assert_shows(reconstruction, whole)
    added = {}
    for latent in active:
        without = z.clone()
        without[0, latent] = 0
        added[latent] = whole - decode(model, without, shape)[0]
    largest = sorted(active, key=lambda latent: -float(added[latent].norm()))[:2]
    for axes, latent in zip(contributions, largest, strict=True):
        name, numbers = axes.get_title().split("\n")
        assert name == f"latent {latent}"
        assert numbers == f"$\\gamma$ {inclusion[0, latent]:.2f}, z {z[0, latent]:.2f}"
        expected = added[latent].mean(0) if shape == COLOUR else as_shown(added[latent])
        torch.testing.assert_close(shown_in(axes), expected)
    scales = {axes.images[0].get_clim() for axes in contributions}
    ((low, high),) = scales
    assert low == -high
    assert high == pytest.approx(max(float(shown_in(axes).abs().max()) for axes in contributions))
    assert f"2 of {len(active)} active" in figure.get_suptitle()


def assert_off_and_on(figure, model, x, latent, values):
    datum, decoded, off, *on = pictures(figure)
    shape = x.shape[1:]
    z = code_of(model, x)[2]
    assert_shows(datum, x[0])
    assert_shows(decoded, decode(model, z, shape)[0])
    z = z.clone()
    z[0, latent] = 0
    assert_shows(off, decode(model, z, shape)[0])
    for axes, value in zip(on, values, strict=True):
        assert axes.get_title() == f"z = {value:.2f}"
        z[0, latent] = value
        assert_shows(axes, decode(model, z, shape)[0])


def test_traversal_passes_through_the_slab_of_the_prior(model_and_data):
    model, x = model_and_data
    for values in ([-1.0, 0.5], torch.tensor([2.0])):
        assert_off_and_on(plots.traversal(model, x[:1], 2, values=values, **folded(x)), model, x[:1], 2, values)
    on = pictures(plots.traversal(model, x[0], 2, num=3, **folded(x)))[3:]
    z = torch.tensor([float(axes.get_title().removeprefix("z = ")) for axes in on])
    torch.testing.assert_close(z.diff(), z.diff().mean().expand(2), atol=0.011, rtol=0)
    with model.evaluating(), seeded(0, x.device):
        ends = slab_quantiles(model.marginal_prior(x[:1]), 2, torch.tensor([0.025, 0.975]))
    torch.testing.assert_close(z[[0, -1]], ends, atol=0.006, rtol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_conditional_samples_redraw_one_slab(kind):
    model, x = build(kind)
    x = x[:1]
    for slab, distribution in (("prior", model.marginal_prior), ("posterior", model.encoder)):
        figure = plots.conditional_samples(model, x, 1, 3, slab, **folded(x))
        with model.evaluating(), seeded(0, x.device):
            values = slab_draws(distribution(x), 1, 3)
        assert_off_and_on(figure, model, x, 1, values.tolist())


def test_conditional_samples_keep_the_support_and_redraw_all_that_is_on(model_and_data):
    model, x = model_and_data
    inclusion, _, z = code_of(model, x[:1])
    active = (inclusion[0] > 0.5).nonzero().flatten().tolist()
    assert active
    for slab, distribution in (("prior", model.marginal_prior), ("posterior", model.encoder)):
        datum, decoded, *samples = pictures(plots.conditional_samples(model, x[0], num=3, slab=slab, **folded(x)))
        assert_shows(datum, x[0])
        assert_shows(decoded, decode(model, z, x.shape[1:])[0])
        codes = torch.zeros(3, J)
        with model.evaluating(), seeded(0, x.device):
            for latent in active:
                codes[:, latent] = slab_draws(distribution(x[:1]), latent, 3)
        for axes, sample in zip(samples, decode(model, codes, x.shape[1:]), strict=True):
            assert_shows(axes, sample)


@pytest.mark.parametrize("kind", MODELS)
def test_draws_and_quantiles_of_slabs_are_those_of_codes_that_are_on(kind):
    model, x = build(kind)
    with model.evaluating():
        codes = [model.marginal_prior(x[:1]), model.encoder(x[:1])]
        for code in codes:
            many = code.sample((100_000,)).reshape(-1, J)[:, 1]
            many = many[many != 0]
            if not len(many):  # a point that is off
                continue
            levels = torch.tensor([0.05, 0.5, 0.9])
            ends, drawn = slab_quantiles(code, 1, levels), slab_draws(code, 1, 20_000)
            for level, end in zip(levels.tolist(), ends.tolist(), strict=True):
                for draws in (many, drawn):
                    # Quantiles that have no formula are of 10,000 draws themselves.
                    error = (level * (1 - level) * (1 / len(draws) + 1 / 10_000)) ** 0.5
                    below, not_above = ((draws < end).float().mean(), (draws <= end).float().mean())
                    assert below - 5 * error < level < not_above + 5 * error


def test_traversals_of_one_datum_edit_what_is_on_and_what_is_off():
    model, x = build("spike-slab")
    inclusion, _, z = code_of(model, x)
    on = inclusion > 0.5
    ever = on.any(0)  # a latent that never is has no row
    datum = int(((on.sum(1) >= 2) & ((~on & ever).sum(1) >= 1)).nonzero()[0])
    figure = plots.traversals(model, x, num=3, datum=datum, limit=3.0)
    rows = [pictures(figure)[row : row + 10] for row in range(0, 30, 10)]
    latents = [int(row[0].texts[0].get_text().split()[1]) for row in rows]
    assert [float(inclusion[datum, latent]) > 0.5 for latent in latents] == [True, True, False]
    for row, latent in zip(rows, latents, strict=True):
        assert f"P(on | x) {inclusion[datum, latent]:.2f}" in row[0].texts[0].get_text()
        assert_shows(row[0], x[datum])
        codes = z[datum].repeat(9, 1)
        codes[1:, latent] = torch.tensor([0.0, *range(-3, 4)])
        for axes, picture in zip(row[1:], decode(model, codes, GREY), strict=True):
            assert_shows(axes, picture)
    with pytest.raises(ValueError, match="datum must be the index of one of 4 data, got 4"):
        plots.traversals(model, x, datum=4)


def test_interpolation_goes_through_the_union_of_active_latents(model_and_data):
    model, x = model_and_data
    shape = x.shape[1:]
    figure = plots.interpolation(model, x[:2], 3, **folded(x))
    shown = pictures(figure)
    inclusion, _, z = code_of(model, x[:2])
    active = inclusion > 0.5
    with model.evaluating():
        mean = centre(model.encoder(x[:2]))
    for row, (first, second) in ((shown[:5], z), (shown[5:], mean)):
        assert_shows(row[0], x[0])
        assert_shows(row[4], x[1])
        for step in range(3):
            code = first + (second - first) * step / 2
            assert_shows(row[1 + step], decode(model, code[None], shape)[0])
    title = " ".join(figure.get_suptitle().split())
    assert f"{int(active.any(0).sum())} latents active" in title
    both = ", ".join(str(j) for j in range(J) if active[:, j].all()) or "none"
    first = ", ".join(str(j) for j in range(J) if active[0, j] and not active[1, j]) or "none"
    assert f"first only: {first}; both: {both};" in title


FUNCTIONS = {
    "code": lambda m, x, **k: plots.code(m, x, **k),
    "explanation": lambda m, x, **k: plots.explanation(m, x, **k),
    "traversal": lambda m, x, **k: plots.traversal(m, x, 0, **k),
    "conditional_samples": lambda m, x, **k: plots.conditional_samples(m, x, 0, **k),
    "conditional_samples of all": lambda m, x, **k: plots.conditional_samples(m, x, **k),
    "interpolation": lambda m, x, **k: plots.interpolation(m, torch.cat([x, x.flip(-1)]), **k),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_pictures_change_nothing_and_need_one_datum_that_fits(function):
    model, x = build("spike-slab")
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    figure = function(model, x[:1])
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    image = rendered(figure)
    assert image.std() > 0.02
    assert (image == rendered(function(model, x[:1]))).all()
    with pytest.raises(ValueError, match="data must lie in the support of the likelihood"):
        function(model, x[:1] + 3)
    with pytest.raises(ValueError, match="the encoder does not take data of shape"):
        function(model, x[:1, :, :5])
    with pytest.raises(ValueError, match=r"x must be (one datum|2 data), got a tensor of shape .*; pass data.images"):
        function(model, x)
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0, got -1"):
        function(model, x[:1], seed=-1)


def test_a_datum_is_known_with_and_without_its_first_dimension():
    model, x = build("spike-slab")
    flat, row = build("laplace")
    for one, data in ((model, (x[0], x[:1], x[0].numpy())), (flat, (row[0], row[:1]))):
        for datum in data:
            axes = plots.code(one, datum, **folded(data[1])).axes[0]
            assert_shows(axes, data[0])
    assert_shows(plots.code(flat, row[0].reshape(1, 8, 8)).axes[0], row[0].reshape(1, 8, 8))
    with pytest.raises(ValueError, match=r"x must be a tensor of one datum, got a Dataset; pass data.images"):
        plots.code(model, vsc.Dataset(x[:1]))


def test_arguments_that_make_no_picture():
    model, x = build("spike-slab")
    for function in (plots.traversal, plots.conditional_samples):
        for latent in (J, -1, 1.5, True):
            with pytest.raises(ValueError, match=f"latent must be a whole number from 0 to 5, of 6.*got {latent}"):
                function(model, x[:1], latent)
        with pytest.raises(ValueError, match="num must be a whole number of at least 1, got 0"):
            function(model, x[:1], 0, 0)
    for values in ([], [1.0, float("nan")], 2.0):
        with pytest.raises(ValueError, match="values must be a sequence of finite numbers, at least one, got"):
            plots.traversal(model, x[:1], 0, values=values)
    with pytest.raises(ValueError, match="unknown slab 'both'; known are 'posterior', 'prior'"):
        plots.conditional_samples(model, x[:1], 0, slab="both")
    with pytest.raises(ValueError, match=r"coverage must lie strictly between 0 and 1, got 1\.0"):
        plots.code(model, x[:1], coverage=1.0)
    with pytest.raises(ValueError, match="num_steps must be at least 2, to include both ends, got 1"):
        plots.interpolation(model, x[:2], 1)


def nothing_on(shape):
    torch.manual_seed(3)
    encoder = vsc.SpikeSlabEncoder(shape, J, (20,), initial_inclusion=0.1)
    return vsc.VAE(encoder, vsc.BernoulliDecoder(J, shape, (20,)), vsc.SpikeSlabPrior(J)), torch.rand(30, *shape)


@pytest.mark.parametrize("shape", [GREY, COLOUR, (7,), (60,)])
def test_data_of_which_nothing_is_on_are_drawn_as_that(shape):
    model, x = nothing_on(shape)
    inclusion, _, _ = code_of(model, x[:1])
    assert inclusion.max() < 0.5
    highest = f"the largest inclusion probability is {float(inclusion.max()):.2g}"
    explained = plots.explanation(model, x[:1])
    assert explained.get_suptitle() == f"No latent is on: {highest}"
    assert any("nothing to explain" in text.get_text() for axes in explained.axes for text in axes.texts)
    empty = decode(model, torch.zeros(1, J), shape)[0]
    shown = [drawn_in(axes) for axes in explained.axes if axes.images or axes.patches or axes.lines]
    for values, expected in zip(shown, (x[0], empty), strict=True):
        torch.testing.assert_close(values.flatten(), as_shown(expected).flatten())
    assert plots.code(model, x[0]).axes[1].get_title() == f"Code: none of {J} on"
    assert "nothing is active in either datum" in plots.interpolation(model, x[:2]).get_suptitle()
    (axes,) = plots.traversals(model, x).axes
    assert axes.texts[0].get_text().startswith("No latent is on in any of 30 data: the largest inclusion probability")


def test_a_flat_prior_has_no_slab():
    model = vsc.VAE(vsc.DeltaEncoder(GREY, J), vsc.BernoulliDecoder(J, GREY), vsc.FlatPrior(J))
    x = torch.rand(1, *GREY)
    with pytest.raises(ValueError, match=r"the prior is flat, .*; pass values=\(-2, 0, 2\), or build"):
        plots.traversal(model, x, 0)
    with pytest.raises(ValueError, match=r"the prior is flat, .*; pass slab='posterior', or build"):
        plots.conditional_samples(model, x, 0)
