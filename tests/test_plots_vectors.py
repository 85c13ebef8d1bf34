"""Data that are not images are drawn as what they are, and every picture says the same of which latents are used."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from pyro.distributions import Normal

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro.plots.drawing import BLUE, ORANGE, drawing_of

SHAPES = {"colour": (3, 8, 8), "channels": (4, 6, 6), "bars": (7,), "one": (1,), "line": (1000,)}


def build(shape, latent_dim=6, dense=False, hidden=(20,), initial_inclusion=0.5):
    torch.manual_seed(2)
    if dense:
        encoder, prior = vsc.NormalEncoder(shape, latent_dim, (20,)), vsc.NormalPrior(latent_dim)
    else:
        encoder = vsc.SpikeSlabEncoder(shape, latent_dim, (20,), initial_inclusion=initial_inclusion)
        prior = vsc.SpikeSlabPrior(latent_dim, 0.2)
    decoder = vsc.NormalDecoder(latent_dim, shape, hidden, scale=0.5)
    with torch.no_grad():
        encoder.network[-1].weight *= 8  # codes that differ from datum to datum
    return vsc.VAE(encoder, decoder, prior), 2 * torch.randn(24, *shape)


def names_of(shape):
    return [f"feature {i}" for i in range(int(np.prod(shape)))] if len(shape) == 1 else None


def rendered(figure):
    assert isinstance(figure, Figure)
    assert figure.get_size_inches()[0] <= 10.5
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=40)
    buffer.seek(0)
    return imread(buffer)


def drawn_in(axes):
    """Values of the bars or of the line in axes, or None."""
    if axes.patches:
        return torch.tensor([bar.get_width() for bar in axes.patches])
    lines = [line for line in axes.lines if len(line.get_ydata()) > 2]
    return torch.as_tensor(np.asarray(lines[0].get_ydata())) if lines else None


def vectors_in(figure):
    return [values for axes in figure.axes if (values := drawn_in(axes)) is not None]


EVERY = {
    "reconstructions": lambda m, x, **s: plots.reconstructions(m, x, num=3, **s),
    "prior_samples": lambda m, x, **s: plots.prior_samples(m, x, num=5, **s),
    "traversals": lambda m, x, **s: plots.traversals(m, x, num=2, **s),
    "traversal": lambda m, x, **s: plots.traversal(m, x[:1], 0, num=4, **s),
    "conditional_samples": lambda m, x, **s: plots.conditional_samples(m, x[:1], 0, num=4, **s),
    "interpolation": lambda m, x, **s: plots.interpolation(m, x[:2], num_steps=3, **s),
    "code": lambda m, x, **s: plots.code(m, x[:1], **s),
    "explanation": lambda m, x, **s: plots.explanation(m, x[:1], **s),
    "imputations": lambda m, x, **s: plots.imputations(
        m, x, torch.arange(x[0].numel()).reshape(x[0].shape) % 3 > 0, num=2, num_samples=1, **s
    ),
    "receptive_fields": lambda m, x, **s: plots.receptive_fields(m, num=4, **s),
    "loadings": lambda m, x, names=None, **s: plots.loadings(m, names, x, num=3, **s),
    "inclusion_map": lambda m, x, **s: plots.inclusion_map(m, x, by="datum"),
}


@pytest.mark.slow
@pytest.mark.parametrize("function", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize("kind", SHAPES)
def test_every_picture_takes_data_of_every_shape(kind, function):
    shape = SHAPES[kind]
    model, x = build(shape, hidden=())
    style = {"names": names} if (names := names_of(shape)) else {}
    assert rendered(function(model, x, **style)).std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("latent_dim", [1, 2000])
def test_pictures_of_one_latent_and_of_thousands(latent_dim, dense):
    model, x = build((7,), latent_dim, dense, hidden=())
    # Thousands of untrained latents would make chains that run away.
    model.decoder.own_layer.weight.data.mul_(latent_dim**-0.5)
    functions = EVERY if dense else EVERY | {"inclusion_usage": lambda m, x: plots.inclusion_usage(m, x)}
    for function in functions.values():
        assert isinstance(function(model, x), Figure)


def test_few_features_are_bars_with_names_and_many_a_line():
    for size, kind in ((40, "bars"), (41, "line")):
        model, x = build((size,))
        names = [f"gene {i}" for i in range(size)]
        figure = plots.reconstructions(model, x, num=3, names=names)
        assert not any(axes.images for axes in figure.axes)
        shown = vectors_in(figure)
        data = shown[:3] if kind == "bars" else shown[::2]  # lines lie on their side: data beside decoded
        for values, datum in zip(data, x, strict=False):
            torch.testing.assert_close(values, datum, check_dtype=False)
        named = [axes for axes in figure.axes if [label.get_text() for label in axes.get_yticklabels()] == names]
        assert [axes.get_ylabel() for axes in named] == (["data", "decoded"] if kind == "bars" else [])
    marked = [text.get_text() for text in figure.axes[0].texts]
    assert marked[0] == names[int(x[0].abs().argmax())]


def test_bars_show_the_sign_in_colour_and_the_first_feature_on_top():
    drawing = drawing_of(torch.tensor([[2.0, -1.0, 0.5]]))
    axes = Figure().subplots()
    drawing.draw(axes, torch.tensor([2.0, -1.0, 0.5]))
    assert [bar.get_facecolor()[:3] for bar in axes.patches] == [
        pytest.approx([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for colour in (BLUE, ORANGE, BLUE)
    ]
    top, bottom = sorted(axes.get_ylim())
    assert axes.get_ylim() == (bottom, top)  # the axis points down
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "1", "2"]


def test_flat_data_are_folded_only_if_asked():
    model, x = build((64,))
    assert not any(axes.images for axes in plots.reconstructions(model, x, num=2).axes)
    figure = plots.reconstructions(model, x, num=2, image_shape=(8, 8))
    shown = torch.as_tensor(figure.axes[0].images[0].get_array().data)
    torch.testing.assert_close(shown, x[0].reshape(8, 8))
    with pytest.raises(ValueError, match=r"image_shape must be the height and width.*of 64 pixels, got \(8, 9\)"):
        plots.reconstructions(model, x, image_shape=(8, 9))
    with pytest.raises(ValueError, match="names must hold one name for each of 64 features, got 2"):
        plots.reconstructions(model, x, names=["a", "b"])
    with pytest.raises(ValueError, match="ink must be True, False or 'auto', got 'black'"):
        plots.reconstructions(model, x, image_shape=(8, 8), ink="black")
    with pytest.raises(TypeError, match="unexpected keyword argument 'imageshape'"):
        plots.reconstructions(model, x, imageshape=(8, 8))


def test_only_ink_is_drawn_as_ink(digits):
    torch.manual_seed(0)
    photographs = 0.02 + 0.9 * torch.rand(10, 1, 8, 8)
    for data, expected in (
        (digits.test.images, "gray_r"),
        (digits.test.draw(slice(None)), "gray_r"),
        (digits.test.images[:1], "gray_r"),
        (photographs, "gray"),
        (digits.test.images - 0.5, "gray"),
        (3 * digits.test.images, "gray"),
    ):
        assert drawing_of(data).cmap == expected
        assert drawing_of(data, ink=True).cmap == "gray_r"
        assert drawing_of(data, ink=False).cmap == "gray"
    model = vsc.VAE(vsc.NormalEncoder((1, 8, 8), 3), vsc.NormalDecoder(3, (1, 8, 8)), vsc.NormalPrior(3))
    for data, style, expected in ((photographs, {}, "gray"), (photographs, {"ink": True}, "gray_r")):
        figure = plots.reconstructions(model, data, num=2, **style)
        assert {axes.images[0].get_cmap().name for axes in figure.axes} == {expected}


class Given(torch.nn.Module):
    """Codes that are the first half of a datum, on with the probabilities that are its second half."""

    def __init__(self, latent_dim):
        super().__init__()
        self.latent_dim = latent_dim
        self.input_shape = (2 * latent_dim,)

    def forward(self, x):
        loc, probs = x[..., : self.latent_dim], x[..., self.latent_dim :].clamp(1e-6, 1 - 1e-6)
        return vsc.SpikeSlab(Normal(loc, 0.1), probs=probs).to_event(1)


def given(inclusion, locs):
    """A model whose codes are known, and its data."""
    x = torch.cat([locs, inclusion], 1)
    decoder = vsc.NormalDecoder(locs.shape[1], x.shape[1], hidden=())
    return vsc.VAE(Given(locs.shape[1]), decoder, vsc.SpikeSlabPrior(locs.shape[1], 0.3)), x


def latents_of_ticks(axes):
    return [int(text.get_text()) for text in axes.get_xticklabels()]


def test_all_pictures_agree_about_which_latents_are_used_most():
    torch.manual_seed(0)
    # By inclusion times spread, latent 2 would come first; latent 3 idles and is never on; 0 and 4 are equally on.
    inclusion = torch.tensor([0.6, 0.9, 0.1, 0.4, 0.6]).repeat(2500, 1)
    inclusion[2400:, 2] = 1.0  # late, and rarely
    locs = torch.randn(2500, 5) * torch.tensor([1.0, 0.1, 50.0, 1.0, 2.0])
    model, x = given(inclusion, locs)
    expected = [1, 4, 0, 3, 2]
    for by_datum in (plots.inclusion_map(model, x, by="datum", num=20), plots.inclusion_usage(model, x)):
        assert latents_of_ticks(by_datum.axes[0]) == expected
    by_class = plots.inclusion_map(model, vsc.Dataset(x, torch.arange(2500) % 3))
    assert latents_of_ticks(by_class.axes[0]) == expected
    assert "4 of 5 are ever on" in plots.inclusion_usage(model, x).axes[0].get_title()
    figure = plots.traversals(model, x)
    names = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    shares = ["latent 1\nmean P(on) 0.90", "latent 4\nmean P(on) 0.60", "latent 0\nmean P(on) 0.60"]
    assert names == [*shares, "latent 2\nmean P(on) 0.14"]
    listed = [axes.get_title().split("\n")[0] for axes in plots.loadings(model, data=x, num=5).axes if axes.patches]
    assert listed == [f"latent {latent}" for latent in expected]
    # The datum of a row is the one in which its latent is on and farthest from zero.
    first = vectors_in(figure)[0]
    best = x[(inclusion[:, 1] * locs[:, 1].abs()).argmax()]
    torch.testing.assert_close(first, best, check_dtype=False)


def test_use_of_thousands_of_latents_is_a_sorted_curve():
    torch.manual_seed(0)
    inclusion = (0.9 * torch.logspace(0, -6, 4096)[torch.randperm(4096)]).repeat(3, 1)
    model, x = given(inclusion, torch.randn(3, 4096))
    (axes,) = plots.inclusion_usage(model, x).axes
    assert not axes.patches
    assert axes.get_yscale() == "log"
    curve = torch.as_tensor(axes.lines[0].get_ydata())
    expected = inclusion[0].sort(descending=True).values.clamp(1e-6).double()
    torch.testing.assert_close(curve.double(), expected.clamp(min=1e-4), rtol=1e-4, atol=1e-7)
    assert (torch.as_tensor(axes.lines[1].get_ydata()) - 0.3).abs().max() < 1e-6
    rare = int((inclusion[0] < 1e-4).sum())
    assert f"{rare:,} are on in less than 0.01% of the data" in axes.get_xlabel()
    axes = plots.inclusion_map(model, x, by="datum").axes[0]
    assert axes.get_title() == "Inclusion by datum, the 256 most used of 4,096 latents"
    torch.testing.assert_close(
        torch.as_tensor(axes.images[0].get_array().data)[0], inclusion[0].sort(descending=True).values[:256]
    )


def test_loadings_are_the_strongest_features():
    model, x = build((50,), 6, hidden=())
    names = [f"gene {i}" for i in range(50)]
    atoms = model.decoder.dictionary.detach()
    figure = plots.loadings(model, names, num=4, num_features=5)
    by_norm = atoms.norm(dim=1).argsort(descending=True)[:4].tolist()
    assert [axes.get_title() for axes in figure.axes] == [f"latent {latent}\nz = 1" for latent in by_norm]
    for axes, latent in zip(figure.axes, by_norm, strict=True):
        strongest = atoms[latent].abs().argsort(descending=True)[:5]
        assert [text.get_text() for text in axes.get_yticklabels()] == [names[i] for i in strongest]
        torch.testing.assert_close(drawn_in(axes), atoms[latent, strongest], check_dtype=False)
    # With data, at the size that latents have where they are on.
    with model.evaluating():
        base = model.encoder(x).base_dist
    weights = base.probs / base.probs.sum(0)
    size = (weights * base.slab.loc**2).sum(0).sqrt() * (weights * base.slab.loc).sum(0).sign()
    for axes in [axes for axes in plots.loadings(model, names, x, num=6, num_features=1).axes if axes.patches]:
        latent = int(axes.get_title().split()[1])
        feature = atoms[latent].abs().argmax()
        assert axes.get_yticklabels()[0].get_text() == names[feature]
        torch.testing.assert_close(drawn_in(axes)[0], size[latent] * atoms[latent, feature], check_dtype=False)
    unnamed = plots.loadings(model, num=1, num_features=1)
    assert unnamed.axes[0].get_yticklabels()[0].get_text().startswith("feature ")


def test_loadings_of_a_decoder_that_is_not_linear_and_of_pictures():
    model, x = build((1, 8, 8), 5)
    figure = plots.loadings(model, data=x, num=2)
    with model.evaluating():
        empty = model.decoder(torch.zeros(1, 5)).mean
        for axes in figure.axes:
            latent = int(axes.get_title().split()[1])
            z = torch.zeros(1, 5)
            z[0, latent] = float(axes.get_title().split("z = ")[1])
            added = (model.decoder(z).mean - empty)[0, 0]
            shown = torch.as_tensor(axes.images[0].get_array().data)
            torch.testing.assert_close(shown, added, atol=0.01 * float(added.abs().max()) + 0.005, rtol=0)
            low, high = axes.images[0].get_clim()
            assert low == -high == pytest.approx(-float(shown.abs().max()))
    with pytest.raises(ValueError, match="names must hold one name for each of 64 features"):
        plots.loadings(model, ["a"], x)


def test_features_that_are_missing_have_no_bars():
    model, x = build((7,), hidden=())
    mask = torch.arange(7) % 2 == 0
    observed = vectors_in(plots.imputations(model, x, mask, num=2, num_samples=1))[0]
    assert torch.equal(observed.isnan(), ~mask)
    torch.testing.assert_close(observed[mask], x[0, mask], check_dtype=False)


def test_a_manifold_of_vectors_is_in_place():
    model, x = build((5,), 2, dense=True)
    figure = plots.manifold(model, x, num=3)
    shown = torch.stack(vectors_in(figure)).reshape(3, 3, 5)
    across = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(3) + 0.5) / 3)
    with model.evaluating():
        expected = torch.stack([model.decoder(torch.stack([across, up.expand(3)], 1)).mean for up in across.flip(0)])
    torch.testing.assert_close(shown, expected, check_dtype=False)


def test_atoms_of_vectors_name_their_latent():
    model, _ = build((7,), 6, hidden=())
    atoms = model.decoder.dictionary.detach()
    figure = plots.receptive_fields(model, num=4)
    order = atoms.norm(dim=1).argsort(descending=True)[:4].tolist()
    assert [axes.get_title() for axes in figure.axes] == [f"latent {latent}" for latent in order]
    for values, latent in zip(vectors_in(figure), order, strict=True):
        torch.testing.assert_close(values, atoms[latent] / atoms[latent].abs().max(), check_dtype=False)
