"""Counts: likelihoods against SciPy, sizes and covariates as the context of a datum, and everything made of them."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import Z_BOUND
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

import vsc_pyro as vsc
from vsc_pyro import plots
from vsc_pyro.distributions import contrast, given
from vsc_pyro.evaluation.matching import match
from vsc_pyro.evaluation.probes import auroc
from vsc_pyro.evaluation.survey import comparable, survey

QUIET = {"progress": False, "compile": False}
DECODERS = {
    "poisson": (vsc.PoissonDecoder, {}),
    "poisson, given size": (vsc.PoissonDecoder, {"size": "given"}),
    "negative binomial": (vsc.NegativeBinomialDecoder, {}),
    "negative binomial, covariates": (vsc.NegativeBinomialDecoder, {"num_covariates": 2}),
    "zero-inflated, shared, all given": (
        vsc.NegativeBinomialDecoder,
        {"zero_inflated": True, "dispersion": "shared", "size": "given", "num_covariates": 2},
    ),
}


def num_stored(options):
    return options.get("num_covariates", 0) + (options.get("size") == "given")


@pytest.fixture(scope="module")
def counts(digits):
    """Ink of real digits, whole numbers from 0 to 16."""
    train, test = (vsc.Dataset((16 * part.images).round().flatten(1), part.labels) for part in digits)
    return train, test


def with_context(data, options):
    """The counts with ten times their sum as a size and two batches, as far as the decoder takes them."""
    context = [10 * data.images.sum(1)] if options.get("size") == "given" else []
    if "num_covariates" in options:
        context.append(torch.eye(2)[torch.arange(len(data)) % 2])
    return vsc.Dataset(data.images, data.labels, context=context) if context else data


def model_of(kind, latent_dim=5, hidden=(), num_counts=64):
    cls, options = DECODERS[kind]
    torch.manual_seed(0)
    trunk = vsc.CountTrunk(num_counts, 32, num_covariates=options.get("num_covariates", 0))
    encoder = vsc.SpikeSlabEncoder(num_counts + num_stored(options), latent_dim, trunk=trunk)
    return vsc.VAE(encoder, cls(latent_dim, num_counts, hidden, **options), vsc.SpikeSlabPrior(latent_dim, 0.3))


@pytest.mark.parametrize("kind", DECODERS)
def test_densities_are_those_of_scipy(kind):
    cls, options = DECODERS[kind]
    random = np.random.default_rng(0)
    decoder = cls(3, 7, (), **options).double()
    for parameter in decoder.parameters():
        parameter.data = torch.from_numpy(random.normal(-1, 1.5, parameter.shape))
    n, z = random.integers(0, 40, (50, 7)).astype(float), random.normal(0, 2, (50, 3))
    n[n < 15] = 0
    n[:, 0] += 1
    size, covariates = n.sum(1), np.zeros((50, 0))
    stored = []
    if decoder.size_is_given:
        size = random.uniform(1, 90, 50)
        stored.append(size[:, None])
        decoder.unit.fill_(0.3)
    if options.get("num_covariates"):
        covariates = np.eye(2)[random.integers(0, 2, 50)]
        stored.append(covariates)
    weight, bias = (p.detach().numpy() for p in decoder.own_layer.parameters())
    outputs = z @ weight.T + bias
    if covariates.size:
        outputs = outputs + covariates @ decoder.effects.detach().numpy().T
    assert (outputs > 0).any()
    share = np.where(outputs < 0, np.exp(np.minimum(outputs, 0)), 1 + outputs) + 1e-8
    rate = float(decoder.unit) * size[:, None] * share
    if cls is vsc.PoissonDecoder:
        expected = scipy.stats.poisson.logpmf(n, rate)
    else:
        r = decoder.concentration.detach().numpy()
        expected = scipy.stats.nbinom.logpmf(n, r, r / (r + rate))
        if decoder.zero_logit is not None:
            p0 = 1 / (1 + np.exp(-decoder.zero_logit.detach().numpy()))
            expected = np.log((n == 0) * p0 + (1 - p0) * np.exp(expected))
    x = torch.from_numpy(np.concatenate([n, *stored], 1))
    likelihood = decoder(torch.from_numpy(z))
    torch.testing.assert_close(likelihood.log_prob(x).detach().numpy(), expected.sum(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(given(likelihood, x).log_prob(x), likelihood.log_prob(x), rtol=0, atol=0)
    mean = rate if cls is vsc.PoissonDecoder or decoder.zero_logit is None else (1 - p0) * rate
    torch.testing.assert_close(given(likelihood, x).mean.detach().numpy(), np.concatenate([mean, *stored], 1))


@pytest.mark.parametrize("kind", DECODERS)
def test_gradients_are_finite_at_extreme_outputs(kind):
    cls, options = DECODERS[kind]
    decoder = cls(1, 4, (), **options)
    z = torch.tensor([[-1e6], [-100.0], [-5.0], [0.0], [5.0], [100.0], [1e6]], requires_grad=True)
    decoder.own_layer.weight.data.fill_(1.0)
    x = torch.cat([torch.tensor([0.0, 1.0, 50.0, 3e4]), torch.tensor([500.0, 1.0, 0.0])[: num_stored(options)]])
    log_prob = decoder(z).log_prob(x.expand(7, -1))
    log_prob.sum().backward()
    gradients = [z.grad, *(p.grad for p in decoder.parameters())]
    assert log_prob.isfinite().all()
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("kind", DECODERS)
def test_draws_have_the_context_asked_for(kind, counts):
    cls, options = DECODERS[kind]
    data, decoder = with_context(counts[0], options), cls(3, 64, (), **options)
    decoder.prepare(data.images)
    num = num_stored(options)
    size = data.images[:, 64] if decoder.size_is_given else data.images.sum(1) if not num else None
    likelihood = decoder(torch.zeros(2, 1, 3)).expand((2, 4))
    x = data.images[:4]
    for p, context in ((likelihood, decoder.typical[1 - decoder.size_is_given :]), (given(likelihood, x), x[:, 64:])):
        drawn = p.sample((5,))
        assert drawn.shape == (5, 2, 4, 64 + num)
        assert p.support.check(drawn).all()
        assert torch.equal(drawn[..., 64:], context.expand(5, 2, 4, num))
        torch.testing.assert_close(p.mean[..., 64:], context.expand(2, 4, num))
    if size is not None:
        assert float(decoder.typical[0]) == float(size.median())
    decoder.prepare(2 * data.images)  # only the first call counts
    assert torch.equal(decoder(torch.zeros(1, 3)).mean, likelihood.mean[0, :1])


def test_decoders_start_at_the_mean_and_half_a_nat_a_latent(counts):
    x = counts[0].images
    decoder = vsc.PoissonDecoder(200, 64, ())
    decoder.prepare(x)
    rates = given(decoder(torch.zeros(1, 200)), x).mean
    torch.testing.assert_close(rates.mean(0), x.mean(0), atol=0.02, rtol=0.02)
    off, on = (torch.distributions.Poisson(decoder(z).mean) for z in (torch.zeros(1, 200), torch.eye(200)))
    moved = torch.distributions.kl_divergence(off, on).sum(1).mean()
    assert 0.3 < float(moved.detach()) < 0.8  # pixels of the rim differ in their rates, and a unit is not infinitesimal


def test_depth_does_not_matter(counts):
    """Ten times the counts: the same input and the same shares, so the same code and ten times the rates."""
    x = counts[0].images[:50]
    model = model_of("poisson", hidden=(16,))
    vsc.fit(model, counts[0][:500], epochs=3, **QUIET)
    once, tenfold = vsc.codes(model, x), vsc.codes(model, 10 * x)
    torch.testing.assert_close(tenfold.inclusion, once.inclusion, atol=1e-5, rtol=0)
    torch.testing.assert_close(tenfold.centre, once.centre, atol=1e-5, rtol=1e-4)
    likelihood = model.decoder(once.hard)
    torch.testing.assert_close(given(likelihood, 10 * x).mean, 10 * given(likelihood, x).mean)
    assert not torch.equal(once.inclusion[0], once.inclusion[1])


@pytest.mark.parametrize("kind", ["poisson", "zero-inflated, shared, all given"])
@pytest.mark.usefixtures("unpainted")
def test_all_paths_on_real_counts(kind, counts, tmp_path):
    options = DECODERS[kind][1]
    train, test = (with_context(part[:300], options) for part in counts)
    model = model_of(kind)
    history = vsc.fit(model, train, epochs=25, batch_size=50, lr=5e-3, **QUIET)
    assert history.elbo[-1] > history.elbo[0] + 5
    result = vsc.evaluate(model, test, num_draws=10, compile=False)
    assert result.iwae > result.elbo
    assert result.r2 > 0.05
    found = vsc.bounds(model, test, num_draws=10, compile=False)
    assert float(found.elbo.mean()) == pytest.approx(result.elbo, rel=1e-6)
    loader = DataLoader(test, batch_size=100)
    torch.testing.assert_close(vsc.codes(model, loader).centre, vsc.codes(model, test).centre)
    some = test.images[:4]
    inference = vsc.to_arviz(model, some, 20)
    drawn = torch.from_numpy(inference["posterior_predictive"]["x"].values)
    assert torch.equal(drawn[..., 64:], some[:, 64:].expand(1, 20, 4, -1))
    assert vsc.refine(model, some, steps=3).gain.isfinite().all()
    figures = [
        plots.loadings(model, data=test, num=3),
        plots.reconstructions(model, test, num=3),
        plots.prior_samples(model, test, num=3),
        plots.explanation(model, some[0]),
        plots.traversals(model, test, num=2),
        plots.receptive_fields(model, num=3),
    ]
    assert all(isinstance(figure, Figure) for figure in figures)
    vsc.save_checkpoint(tmp_path / "model.pt", {"model": model.state_dict()})
    other = model_of(kind)
    vsc.load_weights(other, vsc.load_checkpoint(tmp_path / "model.pt"))
    again = vsc.bounds(other, test, num_draws=10, compile=False)
    assert torch.equal(again.elbo, found.elbo)


@pytest.mark.parametrize("kind", ["poisson", "negative binomial, covariates"])
def test_a_code_of_nothing_explains_nothing(kind, counts):
    """Sizes explain a part of raw counts; measures of codes leave that out."""
    scale = torch.rand(500, 1, generator=torch.Generator().manual_seed(0)) * 9 + 1
    data = vsc.Dataset((counts[0].images[:500] * scale).round())
    data = with_context(data, DECODERS[kind][1])
    model = model_of(kind)
    model.prepare(data.images)
    model.decoder.own_layer.weight.data.zero_()
    # The mean of ratios differs from the ratio of means, so that the decoded mean is not quite that of the data.
    assert abs(survey(model, data).r2) < 0.02
    (rescaled, rows), raw = comparable(model, data.images), data.images[:, :64]
    torch.testing.assert_close(rescaled.sum(1), raw.sum(1).median().expand(500))
    assert torch.equal(rows[:, 64:], rows[:1, 64:].expand(500, -1))
    size = raw.sum(1, keepdim=True) / raw.sum()
    assert float((raw - size * raw.sum(0)).square().sum()) < 0.8 * float((raw - raw.mean(0)).square().sum())


def test_sparse_factors_and_batches_are_recovered():
    """A sparse linear Poisson model whose cells differ in size and batch: loadings, spikes and batch effects."""
    random = np.random.default_rng(0)
    num, genes, factors = 1200, 60, 5
    on = random.random((num, factors)) < 0.2
    z = on * np.abs(random.normal(1.5, 0.5, (num, factors)))
    loadings = (random.random((factors, genes)) < 0.25) * random.normal(0.8, 0.2, (factors, genes))
    effects = random.normal(0, 0.4, genes)
    batch, size = random.integers(0, 2, num), 10 ** random.uniform(1, 2, num)
    base = np.log(random.dirichlet(np.full(genes, 2.0)))
    counts = random.poisson(size[:, None] * np.exp(base + z @ loadings + batch[:, None] * effects))
    data = vsc.Dataset(counts, context=[size / size.mean(), np.eye(2)[batch]])
    torch.manual_seed(0)
    encoder = vsc.SpikeSlabEncoder(genes + 3, factors, trunk=vsc.CountTrunk(genes, 64, num_covariates=2))
    decoder = vsc.PoissonDecoder(factors, genes, (), size="given", num_covariates=2)
    model = vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(factors, 0.2))
    vsc.fit(model, data, epochs=25, batch_size=60, lr=1e-2, **QUIET)

    truth, atoms = torch.from_numpy(loadings).float(), decoder.dictionary.detach()
    cosine = match(atoms, truth).mcc
    chance = torch.tensor([match(torch.randn(factors, genes), truth).mcc for _ in range(200)])
    assert cosine > float(chance.mean() + Z_BOUND * chance.std())
    best = auroc(vsc.codes(model, data).inclusion, on.astype(float)).max(1)
    # The largest of a few areas of independent scores, each of this standard error (Hanley & McNeil, 1982).
    error = max(np.sqrt((num + 1) / (12 * n * (num - n))) for n in on.sum(0))
    assert best.min() > 0.5 + Z_BOUND * error
    learnt = (decoder.effects[:, 1] - decoder.effects[:, 0]).detach().numpy()
    assert np.corrcoef(learnt, effects)[0, 1] > Z_BOUND / np.sqrt(genes)


def test_loadings_rank_changes_by_the_noise_of_a_count():
    """Rates and their changes by hand: an abundant gene, a marker, and one so rare that its ratio means nothing."""
    rates = torch.tensor([400.0, 40.0, 2.0, 0.01, 557.99])
    factors = torch.tensor([[1.05, 1.0, 6.0, 20.0, 1.0], [1.0, 0.25, 1.1, 1.0, 1.0]])
    decoder = vsc.PoissonDecoder(2, 5, hidden=(), num_covariates=1)
    with torch.no_grad():
        decoder.own_layer.weight.copy_(factors.log().T)
        decoder.own_layer.bias.copy_((rates / rates.sum()).log())
        decoder.typical[0] = rates.sum()
    encoder = vsc.SpikeSlabEncoder(6, 2, trunk=vsc.CountTrunk(5, num_covariates=1))
    names = ["abundant", "lost", "marker", "rare", "constant", "batch"]
    figure = plots.loadings(vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(2)), names, num_features=2)
    expected = 2 * ((rates * factors).sqrt() - rates.sqrt())  # of Poisson counts
    listed = {0: ["marker \u00d76", "abundant \u00d71.05"], 1: ["lost \u00d70.25", "marker \u00d71.1"]}
    assert [int(axes.get_title().split()[1]) for axes in figure.axes] == [1, 0]  # by the norm of the loadings
    for axes in figure.axes:
        latent = int(axes.get_title().split()[1])
        assert [text.get_text() for text in axes.get_yticklabels()] == listed[latent]
        drawn = torch.tensor([bar.get_width() for bar in axes.patches])
        strongest = expected[latent].abs().argsort(descending=True, stable=True)[:2]
        torch.testing.assert_close(drawn.float(), expected[latent, strongest], atol=1e-3, rtol=1e-3)
    assert "in standard deviations of a count" in figure.get_supxlabel()
    noisy = vsc.NegativeBinomialDecoder(2, 5, hidden=(), zero_inflated=True, num_covariates=1)
    noisy.load_state_dict(decoder.state_dict(), strict=False)
    found = contrast(noisy(torch.tensor([[1.0, 0.0]])), noisy(torch.zeros(1, 2)))
    # Their noise grows as the mean, so an abundant gene counts less.
    assert found.values.shape == (1, 6)
    assert 0 < found.values[0, 0] < expected[0, 0] / 5
    torch.testing.assert_close(found.ratios[0, :5], factors[0], rtol=1e-3, atol=0)


def test_bad_counts_and_contexts_are_refused(counts):
    model, x = model_of("poisson"), counts[0].images[:20]
    for bad in (x.log1p(), -x, torch.cat([x, torch.zeros(1, 64)])):
        with pytest.raises(ValueError, match=r"rows of 64 counts .*; pass raw counts, not logarithms"):
            vsc.fit(model, bad, epochs=1, **QUIET)
    with pytest.raises(ValueError, match=r"batch 13 of epoch 1 .*pass raw counts"):
        vsc.fit(model, DataLoader(torch.cat([x.repeat(60, 1), x.log1p()]), batch_size=100), epochs=1, **QUIET)
    with pytest.raises(ValueError, match=r"data of shape \(N, 66\)"):
        vsc.evaluate(model, vsc.Dataset(x, context=torch.eye(2).repeat(10, 1)))
    needy = model_of("poisson, given size")
    with pytest.raises(ValueError, match="sizes above 0 behind the counts"):
        vsc.evaluate(needy, vsc.Dataset(x, context=torch.zeros(20)))
    with pytest.raises(ValueError, match=r"the size of a row, .* build the decoder with size='given'"):
        vsc.VAE(model.encoder, model.decoder, model.prior, missing=True)
    with pytest.raises(ValueError, match=r"the size of a row, .* build the decoder with size='given'"):
        vsc.impute(model_of("poisson"), x, torch.arange(64) > 3)
    with pytest.raises(ValueError, match=r"context must have shape .* each of the 20 data, got \(19,\)"):
        vsc.Dataset(x, context=torch.ones(19))
    with pytest.raises(ValueError, match="exclude each other"):
        vsc.Dataset(x / 16, binarize="dynamic", context=torch.ones(20))


def test_bad_arguments():
    for cls in (vsc.PoissonDecoder, vsc.NegativeBinomialDecoder):
        with pytest.raises(ValueError, match="unknown size 'median'; known are 'given', 'row sum'"):
            cls(3, 7, size="median")
        with pytest.raises(ValueError, match="num_covariates must be a whole number of at least 0"):
            cls(3, 7, num_covariates=-1)
        assert len(cls(3, 7, num_covariates=np.int64(2)).typical) == 3
        with pytest.raises(ValueError, match=r"output_shape must be a number of counts, got \(2, 3\)"):
            cls(3, (2, 3))
    with pytest.raises(ValueError, match="unknown dispersion 'cell'; known are 'gene', 'shared'"):
        vsc.NegativeBinomialDecoder(3, 7, dispersion="cell")
    with pytest.raises(ValueError, match="num_counts must be"):
        vsc.CountTrunk(0)


def test_context_stays_with_its_data(counts):
    data = with_context(counts[0][:10], {"num_covariates": 2})
    assert torch.equal(data[[3, 4]].images, data.images[3:5])
    assert torch.equal(data.to(torch.empty(0, dtype=torch.float64)).images, data.images.double())
    assert torch.equal(data[3][0], data.images[3])


def test_real_cells():
    path = Path(os.environ.get("VSC_PYRO_DATA", "")) / "more" / "pbmc68k_reduced.npz"
    if not path.is_file():
        pytest.skip("counts of real cells are not on this machine: VSC_PYRO_DATA/more/pbmc68k_reduced.npz")
    file = np.load(path)
    order = np.random.default_rng(0).permutation(700)
    train, test = (vsc.Dataset(file["X"][rows], file["y"][rows]) for rows in (order[:500], order[500:]))
    model = model_of("negative binomial", num_counts=765)
    vsc.fit(model, train, epochs=15, batch_size=50, lr=5e-3, **QUIET)
    assert vsc.evaluate(model, test, num_draws=5, compile=False).r2 > 0.05
    # The most frequent type is that of a quarter of the cells.
    assert vsc.linear_probe(model, train, test, num_labels=500) > 0.5
    assert plots.loadings(model, names=file["genes"].tolist(), data=test, num=2).axes
