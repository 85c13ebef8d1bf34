import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from pyro.distributions import TorchDistribution
from torch.distributions import constraints

import vsc_pyro as vsc
from vsc_pyro import plots

GREY, COLOUR = (1, 8, 8), (3, 8, 8)


def vae(encoder, prior, latent_dim, shape=GREY):
    decoder = vsc.BernoulliDecoder(latent_dim, shape, (20,), activation="tanh")
    with torch.no_grad():
        for network in (encoder.network, decoder.network):
            network[-1].weight *= 8  # codes and pictures that differ from datum to datum
    return vsc.VAE(encoder, decoder, prior)


@pytest.fixture(scope="module")
def grey():
    test = vsc.datasets.load("digits").test
    return vsc.Dataset(test.images, test.labels)


SPIKED = {
    "spike-slab": lambda j, shape: (vsc.SpikeSlabEncoder(shape, j, (20,)), vsc.SpikeSlabPrior(j)),
    "threshold": lambda j, shape: (vsc.ThresholdEncoder(shape, j, (20,)), vsc.SpikeSlabPrior(j, 0.3, "per-latent")),
    "hyperprior": lambda j, shape: (
        vsc.SpikeSlabEncoder(shape, j, (20,)),
        vsc.SpikeSlabPrior(j, torch.arange(1, j + 1) / (j + 2), True, hyperprior=(1, 9)),
    ),
    "pseudo-input": lambda j, shape: (e := vsc.SpikeSlabEncoder(shape, j, (20,)), vsc.PseudoInputPrior(e, 4)),
}
DENSE = {
    "normal": lambda j, shape: (vsc.NormalEncoder(shape, j, (20,)), vsc.NormalPrior(j)),
    "cauchy": lambda j, shape: (vsc.CauchyEncoder(shape, j, (20,)), vsc.CauchyPrior(j)),
}


def build(kind, latent_dim, shape=GREY):
    torch.manual_seed(1)
    encoder, prior = (SPIKED | DENSE)[kind](latent_dim, shape)
    return vae(encoder, prior, latent_dim, shape)


def in_colour(data):
    tint = torch.tensor([1.0, 0.6, 0.2]).reshape(3, 1, 1)
    return vsc.Dataset(data.images * tint, data.labels)


def inclusion(model, images):
    with model.evaluating():
        return model.encoder(images).base_dist.probs


def shown_in(axes):
    return torch.from_numpy(np.ma.getdata(axes.images[0].get_array()))


def rendered(figure):
    assert isinstance(figure, Figure)
    assert figure.get_size_inches()[0] <= 10
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=50)
    buffer.seek(0)
    return imread(buffer)


@pytest.mark.parametrize("kind", SPIKED)
@pytest.mark.parametrize("colour", [False, True])
def test_inclusion_map_by_datum_is_sorted_by_label(grey, kind, colour):
    data = in_colour(grey) if colour else grey
    model = build(kind, 7, data.images.shape[1:])
    axes, _ = plots.inclusion_map(model, data, by="datum", num=60).axes
    probs, labels = inclusion(model, data.images[:60]), data.labels[:60]
    assert probs.std() > 0.02
    columns = [int(text.get_text()) for text in axes.get_xticklabels()]
    assert columns == inclusion(model, data.images).mean(0).argsort(descending=True).tolist()
    rows = sorted(range(60), key=lambda row: (int(labels[row]), row))
    torch.testing.assert_close(shown_in(axes), probs[rows][:, columns])
    # A class is named in the middle of its rows.
    for place, text in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
        own = [place for place, row in enumerate(rows) if labels[row] == int(text.get_text())]
        assert place == sum(own) / len(own)


def test_inclusion_map_by_datum_without_labels(grey):
    model = build("spike-slab", 7)
    figure = plots.inclusion_map(model, grey.images[:30], by="datum")
    probs = inclusion(model, grey.images[:30])
    columns = probs.mean(0).argsort(descending=True)
    torch.testing.assert_close(shown_in(figure.axes[0]), probs[:, columns])
    assert figure.axes[0].get_ylabel() == "datum"
    ones = shown_in(plots.inclusion_map(build("normal", 3), grey, by="datum").axes[0])
    assert ones.shape == (200, 3)
    assert (ones == 1).all()
    with pytest.raises(ValueError, match="unknown by 'label'; known are 'class', 'datum'"):
        plots.inclusion_map(model, grey, by="label")
    with pytest.raises(ValueError, match="num must be a whole number of at least 1, got 0"):
        plots.inclusion_map(model, grey, by="datum", num=0)
    with pytest.raises(ValueError, match="data must lie in the support"):
        plots.inclusion_map(model, grey.images + 2, by="datum")


@pytest.mark.parametrize("kind", SPIKED)
@pytest.mark.parametrize("colour", [False, True])
def test_inclusion_usage_is_the_mean_beside_the_prior(grey, kind, colour):
    data = in_colour(grey) if colour else grey
    model = build(kind, 7, data.images.shape[1:])
    (axes,) = plots.inclusion_usage(model, data).axes
    used = inclusion(model, data.images).mean(0)
    order = used.argsort(descending=True)
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(j) for j in order.tolist()]
    (bars,) = axes.containers
    torch.testing.assert_close(torch.tensor([bar.get_height() for bar in bars]), used[order], check_dtype=False)
    if kind == "pseudo-input":
        expected = inclusion(model, model.prior.pseudo_inputs).mean(0)
    else:
        expected = model.prior.inclusion_probs
    (line,) = axes.lines
    torch.testing.assert_close(torch.as_tensor(line.get_ydata()), expected[order])


class Joint(TorchDistribution):
    """A distribution of codes that are zero with some probability, which does not say which."""

    support = constraints.real_vector
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, codes):
        self.component_distribution = codes
        super().__init__(codes.batch_shape, codes.event_shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Joint(self.component_distribution.expand(batch_shape))

    def log_prob(self, value):
        return self.component_distribution.log_prob(value)


class JointPrior(vsc.SpikeSlabPrior):
    def forward(self, x):
        return Joint(super().forward(x))


def test_inclusion_usage_without_an_atom_for_each_latent(grey):
    (axes,) = plots.inclusion_usage(vae(vsc.SpikeSlabEncoder(GREY, 5, (20,)), JointPrior(5), 5), grey).axes
    assert len(axes.lines) == 0
    assert len(axes.containers[0]) == 5
    with pytest.raises(ValueError, match="inclusion_usage needs spikes, and codes of NormalEncoder have none: every"):
        plots.inclusion_usage(build("normal", 3), grey)


def points_of(figure):
    return {
        points.get_label(): torch.as_tensor(np.ma.getdata(points.get_offsets()))
        for points in figure.axes[0].collections
    }


def centres(model, images):
    with model.evaluating():
        base = model.encoder(images).base_dist
    return base.probs * base.slab.loc if isinstance(base, vsc.SpikeSlab) else base.loc


@pytest.mark.parametrize("kind", [*SPIKED, *DENSE])
@pytest.mark.parametrize("colour", [False, True])
def test_embedding_of_two_latents_are_the_codes(grey, kind, colour):
    data = in_colour(grey) if colour else grey
    model = build(kind, 2, data.images.shape[1:])
    figure = plots.embedding(model, data, num=100)
    codes, labels = centres(model, data.images[:100]), data.labels[:100]
    shown = points_of(figure)
    assert shown.keys() == {str(label) for label in range(10)}
    for label in range(10):
        torch.testing.assert_close(shown[str(label)], codes[labels == label], check_dtype=False)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("latent 0", "latent 1")
    names = {text.get_text(): torch.tensor(text.get_position()) for text in axes.texts}
    torch.testing.assert_close(names["3"], codes[labels == 3].mean(0), check_dtype=False)
    hues = {tuple(points.get_facecolor()[0]) for points in axes.collections}
    assert len(hues) == 10


@pytest.mark.parametrize("kind", ["spike-slab", "threshold", "normal"])
def test_embedding_of_more_latents_is_a_principal_plane(grey, kind):
    model = build(kind, 6)
    figure = plots.embedding(model, grey.images, num=150)
    codes = centres(model, grey.images[:150]).double()
    variances, directions = torch.linalg.eigh(codes.T.cov(correction=0))
    (shown,) = points_of(figure).values()
    expected = (codes - codes.mean(0)) @ directions[:, [-1, -2]]
    torch.testing.assert_close(shown.double().abs(), expected.abs(), atol=1e-4, rtol=1e-3)  # of either sign
    share = float(variances[-1] / variances.sum())
    assert figure.axes[0].get_xlabel() == f"principal component 1, {share:.0%} of the variance"


def test_embedding_by_neighbours(grey):
    from sklearn.manifold import TSNE

    model = build("spike-slab", 4)
    figure = plots.embedding(model, grey, num=60, method="tsne", seed=3)
    codes = centres(model, grey.images[:60]).numpy()
    expected = TSNE(perplexity=59 / 3, init="pca", random_state=3).fit_transform(codes)
    shown, labels = points_of(figure), grey.labels[:60]
    for label in labels.unique().tolist():
        np.testing.assert_allclose(shown[str(label)], expected[labels == label], rtol=1e-4)
    assert figure.axes[0].get_xlabel() == "t-SNE 1"


def test_embeddings_that_cannot_be(grey):
    with pytest.raises(ValueError, match="unknown method 'umap'; known are 'pca', 'tsne'"):
        plots.embedding(build("normal", 3), grey, method="umap")
    with pytest.raises(ValueError, match="codes of at least two latents, and the model has 1"):
        plots.embedding(build("normal", 1), grey)
    with pytest.raises(ValueError, match="method='tsne' needs at least 4 data, got 3"):
        plots.embedding(build("normal", 3), grey, num=3, method="tsne")


@pytest.mark.parametrize("kind", [*SPIKED, *DENSE])
@pytest.mark.parametrize("colour", [False, True])
def test_manifold_decodes_quantiles_of_the_prior(grey, kind, colour):
    data = in_colour(grey) if colour else grey
    model = build(kind, 2, data.images.shape[1:])
    (axes,) = plots.manifold(model, data, num=3).axes
    picture = shown_in(axes)
    prior = model.marginal_prior(data.images[:1])
    draws = prior.expand((1,)).sample((200_000,)).squeeze(1)
    medians = torch.stack([column[column != 0].median() for column in draws.T])
    with model.evaluating():
        middle = model.decoder(medians).mean
    assert picture.shape == (24, 24, 3) if colour else (24, 24)
    tile = picture[8:16, 8:16]
    torch.testing.assert_close(tile, middle.movedim(0, -1).squeeze(-1), atol=0.05, rtol=0)
    across = [float(text.get_text()) for text in axes.get_xticklabels()]
    up = [float(text.get_text()) for text in axes.get_yticklabels()]
    assert across == sorted(across)
    assert up == sorted(up, reverse=True)  # as they are from the picture's top


def test_manifold_of_a_normal_prior_is_in_place(grey):
    model = build("normal", 2)
    picture = shown_in(plots.manifold(model, grey, num=4).axes[0])
    across = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(4) + 0.5) / 4)
    for row in range(4):
        for column in range(4):
            with model.evaluating():
                # The axis of the second latent points up.
                tile = model.decoder(torch.stack([across[column], across[3 - row]])).mean[0]
            torch.testing.assert_close(picture[8 * row : 8 * row + 8, 8 * column : 8 * column + 8], tile)


def test_manifolds_that_cannot_be(grey):
    with pytest.raises(ValueError, match="manifold needs a model of two latents, and this one has 3; build it with"):
        plots.manifold(build("spike-slab", 3), grey)
    flat = vsc.VAE(vsc.DeltaEncoder(GREY, 2), vsc.BernoulliDecoder(2, GREY), vsc.FlatPrior(2))
    with pytest.raises(ValueError, match="the prior is flat, and there is nothing to draw from; build the model with"):
        plots.manifold(flat, grey)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, d: plots.inclusion_map(m, d, by="datum"),
        plots.inclusion_usage,
        plots.embedding,
        lambda m, d: plots.manifold(m, d, num=3),
    ],
    ids=["inclusion_map", "inclusion_usage", "embedding", "manifold"],
)
def test_pictures_show_something_and_change_nothing(grey, function):
    model = build("spike-slab", 2)
    dynamic = vsc.Dataset(grey.images, grey.labels, "dynamic")
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    image = rendered(function(model, dynamic))
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    assert image.std() > 0.02
    assert (image == rendered(function(model, dynamic))).all()


def test_values_outside_the_unit_interval_have_their_own_scale():
    torch.manual_seed(0)
    x = 5 * torch.randn(20, 1, 6, 6)
    model = vsc.VAE(vsc.NormalEncoder((1, 6, 6), 2), vsc.NormalDecoder(2, (1, 6, 6)), vsc.NormalPrior(2))
    figure = plots.reconstructions(model, x, num=3)
    expected = (float(x[:3].min()), float(x[:3].max()))
    assert {axes.images[0].get_clim() for axes in figure.axes} == {expected}
    colour = 5 * torch.randn(20, 3, 6, 6)
    model = vsc.VAE(vsc.NormalEncoder((3, 6, 6), 2), vsc.NormalDecoder(2, (3, 6, 6)), vsc.NormalPrior(2))
    shown = shown_in(plots.reconstructions(model, colour, num=3).axes[1])
    low, high = colour[:3].min(), colour[:3].max()
    torch.testing.assert_close(shown, ((colour[1] - low) / (high - low)).movedim(0, -1))


@pytest.mark.slow
def test_pictures_of_real_mnist(mnist_root):
    train, test = vsc.datasets.load("mnist", root=mnist_root)
    torch.manual_seed(0)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(784, 10, (100,)), vsc.BernoulliDecoder(10, 784, (100,)), vsc.SpikeSlabPrior(10)
    )
    few = vsc.Dataset(train.images[:2000], train.labels[:2000], train.binarize)
    vsc.fit(model, few, epochs=15, batch_size=50, lr=3e-3, device="cpu", progress=False)
    x = test.draw(slice(2))
    zeros, ones = (inclusion(model, test.images[test.labels == label]).mean(0) for label in (0, 1))
    assert (zeros - ones).abs().max() > 0.3  # what follows is of codes that say something
    explained = plots.explanation(model, x[:1])
    for figure in (explained, plots.code(model, x[:1]), plots.interpolation(model, x), plots.embedding(model, test)):
        assert rendered(figure).std() > 0.02
    largest = next(axes for axes in explained.axes if axes.get_title().startswith("latent"))
    latent = int(largest.get_title().split()[1])
    _, decoded, off, *_ = (shown_in(axes) for axes in plots.traversal(model, x[:1], latent).axes if axes.images)
    torch.testing.assert_close(shown_in(largest), decoded - off)


def test_rows_by_class_are_the_classes_that_there_are(small_vae, digits):
    model = small_vae()
    odd = vsc.Dataset(digits.test.images, 3 * digits.test.labels)
    figure = plots.inclusion_map(model, odd)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [str(3 * i) for i in range(10)]
    usual = plots.inclusion_map(model, vsc.Dataset(digits.test.images, digits.test.labels), num_classes=10)
    rows = [torch.as_tensor(f.axes[0].images[0].get_array().data) for f in (figure, usual)]
    torch.testing.assert_close(*rows)
    for num_classes in (0, 5):
        with pytest.raises(ValueError, match="num_classes"):
            plots.inclusion_map(model, digits.test, num_classes=num_classes)
