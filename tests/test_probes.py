import math

import pyro.distributions as dist
import pytest
import torch
from conftest import Z_BOUND, assert_mean_equals
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import nn

import vsc_pyro as vsc
from vsc_pyro.datasets import Factors
from vsc_pyro.evaluation.probes import auroc, encode, factor_auroc, linear_probe


@pytest.fixture(scope="module")
def trained():
    train, test = vsc.datasets.load("digits")
    torch.manual_seed(0)
    encoder = vsc.SpikeSlabEncoder((1, 8, 8), 12, hidden=(64,))
    model = vsc.VAE(encoder, vsc.BernoulliDecoder(12, (1, 8, 8), hidden=(64,)), vsc.SpikeSlabPrior(12, 0.2))
    vsc.fit(model, train, epochs=15, batch_size=50, lr=3e-3, device="cpu", progress=False)
    return model, train, test


class Told(nn.Module):
    """An encoder or prior that is told what to make of x."""

    def __init__(self, distribution):
        super().__init__()
        self.distribution = distribution

    def forward(self, x):
        return self.distribution(x.flatten(1)).to_event(1)


class Lines(nn.Module):
    """A decoder of as many real numbers as data have."""

    def __init__(self, num):
        super().__init__()
        self.num = num

    def forward(self, z):
        return dist.Normal(z.new_zeros(*z.shape[:-1], self.num), 1.0).to_event(1)


def told(distribution, num):
    return vsc.VAE(Told(distribution), Lines(num), Told(distribution))


# Codes ---------------------------------------------------------------------------------------------------------------


def test_codes_are_posterior_means_in_evaluation_mode(trained):
    model, train, _ = trained
    grey = vsc.Dataset(train.images)
    codes = encode(model, grey)
    assert (codes.shape, codes.device.type, codes.requires_grad) == ((1437, 12), "cpu", False)
    assert model.training
    with torch.no_grad():
        torch.testing.assert_close(codes, model.encoder(train.images).mean)
    assert torch.equal(encode(model, train.images), codes)


def test_codes_follow_their_seed_and_leave_the_callers_state(trained):
    model, _, test = trained
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = encode(model, test, seed=5)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first, encode(model, test, seed=5))
    assert not torch.equal(first, encode(model, test, seed=6))


@pytest.mark.parametrize(
    ("distribution", "scale"),
    [
        (lambda x: dist.Cauchy(x, 1.0), 1),
        (lambda x: vsc.SpikeSlab(dist.Cauchy(x, 1.0), probs=0.25), 0.25),
        (lambda x: dist.Delta(x), 1),
    ],
    ids=["cauchy", "spike-and-cauchy", "delta"],
)
def test_codes_of_posteriors_without_a_mean_or_without_a_width(distribution, scale):
    x = torch.randn(2500, 3)
    model = vsc.VAE(Told(distribution), Lines(3), Told(lambda x: vsc.SpikeSlab(dist.Cauchy(0 * x, 1.0), probs=0.5)))
    if not isinstance(distribution(x), vsc.SpikeSlab):
        model.prior = Told(lambda x: dist.Cauchy(0 * x, 1.0))
    torch.testing.assert_close(encode(model, x), scale * x)


def test_codes_of_two_dimensions_are_flattened():
    class Flat(Lines):
        def forward(self, z):
            return super().forward(z.flatten(-2))

    posterior = Told(lambda x: dist.Normal(x.unflatten(1, (2, 3)), 1.0).to_event(1))
    model, x = vsc.VAE(posterior, Flat(6), posterior), torch.randn(5, 6)
    assert torch.equal(encode(model, x), x)


def test_a_diverged_model_is_refused():
    model = vsc.VAE(Told(lambda x: dist.Delta(x / 0)), Lines(3), vsc.NormalPrior(3))
    with pytest.raises(ValueError, match="codes that are NaN or infinite; the model has diverged"):
        encode(model, torch.randn(4, 3))


# Linear probe --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("standardize", [True, False])
def test_linear_probe_beats_chance_and_is_what_sklearn_makes_of_the_codes(trained, standardize):
    model, train, test = trained
    accuracy = linear_probe(model, train, test, num_labels=len(train), standardize=standardize)
    chance = float(test.labels.bincount().max()) / len(test)
    assert (accuracy - chance) / math.sqrt(chance * (1 - chance) / len(test)) > Z_BOUND

    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    codes = encode(model, vsc.Dataset(train.images[rows], binarize="dynamic")).double().numpy()
    codes_of_test = encode(model, test).double().numpy()
    if standardize:
        scaler = StandardScaler().fit(codes)
        codes, codes_of_test = scaler.transform(codes), scaler.transform(codes_of_test)
    by_hand = LogisticRegression(max_iter=10_000).fit(codes, train.labels[rows].numpy())
    assert accuracy == by_hand.score(codes_of_test, test.labels.numpy())


def test_linear_probe_follows_its_seed_and_profits_from_labels(trained):
    model, train, test = trained
    few = [linear_probe(model, train, test, num_labels=20, seed=seed) for seed in (0, 0, 1)]
    assert few[0] == few[1] != few[2]
    assert max(few) < linear_probe(model, train, test, num_labels=1000)


def test_linear_probe_learns_nothing_from_the_test_labels(trained):
    model, train, test = trained
    permuted = test.labels[torch.randperm(len(test))]
    accuracy = linear_probe(model, train, vsc.Dataset(test.images, permuted, "dynamic"), num_labels=1000)
    chance = 0.1
    assert abs(accuracy - chance) / math.sqrt(chance * (1 - chance) / len(test)) < Z_BOUND


def test_latents_that_never_vary_change_nothing(digits):
    train, test = (vsc.Dataset(part.images.flatten(1), part.labels) for part in digits)
    results = [
        linear_probe(
            told(lambda x, w=width: dist.Normal(nn.functional.pad(x, (0, w), value=0.1), 1.0), 64),
            train,
            test,
            num_labels=200,
        )
        for width in (0, 3)
    ]
    assert results[0] == results[1] > 0.8


def test_linear_probe_refuses_what_it_cannot_do(trained):
    model, train, test = trained
    unlabelled = vsc.Dataset(test.images)
    with pytest.raises(ValueError, match=r"test must have labels, and test\.labels is None"):
        linear_probe(model, train, unlabelled, num_labels=100)
    with pytest.raises(ValueError, match="train must have labels"):
        linear_probe(model, train.images, test, num_labels=100)
    with pytest.raises(ValueError, match="num_labels must be at most the 1437 training data, got 5000"):
        linear_probe(model, train, test)
    with pytest.raises(ValueError, match="num_labels must be a whole number of at least 1, got 0"):
        linear_probe(model, train, test, num_labels=0)
    with pytest.raises(ValueError, match="num_labels=1 training data drawn by seed=0 are all of class"):
        linear_probe(model, train, test, num_labels=1)


# Factor recovery -----------------------------------------------------------------------------------------------------

K = 4
NAMES = ("bar", "box", "dot", "arc")


def made_of_factors(num, seed):
    """K pixels that tell each factor's value (zero where it is absent), then K of noise."""
    generator = torch.Generator().manual_seed(seed)
    presence = torch.rand(num, K, generator=generator) < torch.tensor([0.1, 0.3, 0.5, 0.8])
    values = presence * (1 + torch.rand(num, K, generator=generator))
    noise = torch.randn(num, K, generator=generator)
    return vsc.Dataset(torch.cat([values, noise], 1), factors=Factors(presence, values, NAMES))


TRAIN, TEST = made_of_factors(3000, 0), made_of_factors(2000, 1)


def test_auroc_is_sklearns_with_and_without_ties():
    generator = torch.Generator().manual_seed(0)
    present = (torch.rand(500, 3, generator=generator) < 0.3).double().numpy()
    ties = torch.randint(0, 5, (500, 6), generator=generator).float()
    for scores in (ties, torch.randn(500, 6, generator=generator)):
        expected = [[roc_auc_score(factor, score) for score in scores.T.numpy()] for factor in present.T]
        assert auroc(scores, present) == pytest.approx(torch.tensor(expected, dtype=torch.float64).numpy(), abs=1e-12)


def test_an_encoder_that_knows_the_truth_recovers_every_factor():
    order = [6, 2, 0, 3, 5, 1]  # latents of noise among those of factors

    def knows(x):
        return vsc.SpikeSlab(dist.Normal(0 * x[:, order], 1.0), logits=40 * (x[:, order] - 0.5))

    result = factor_auroc(told(knows, 2 * K), TRAIN, TEST)
    assert result.auroc == (1.0, 1.0, 1.0, 1.0)
    assert (result.names, result.latents) == (NAMES, (2, 5, 1, 3))
    assert (result.score, set(result.forms), result.mean) == ("inclusion", {"inclusion"}, 1.0)
    lines = str(result).splitlines()
    assert lines[1].split() == ["bar", "2", "1.000", "inclusion"]
    assert lines[-1].split() == ["mean", "1.000", "4", "latents"]
    # By their means, all zero, the same latents say nothing.
    assert factor_auroc(told(knows, 2 * K), TRAIN, TEST, score="mean").auroc == (0.5, 0.5, 0.5, 0.5)


def test_a_latent_that_switches_off_where_a_factor_is_present_finds_it():
    turn = torch.tensor([1.0, -1, 1, -1])

    def knows(x):
        return vsc.SpikeSlab(dist.Normal(0 * x[:, :K], 1.0), logits=turn * (x[:, :K] - 0.5))

    result = factor_auroc(told(knows, 2 * K), TRAIN, TEST)
    assert result.auroc == (1.0, 1.0, 1.0, 1.0)
    assert result.latents == (0, 1, 2, 3)
    assert result.forms == ("inclusion", "-inclusion", "inclusion", "-inclusion")


@pytest.mark.parametrize(
    "distribution",
    [
        lambda x: vsc.SpikeSlab(dist.Normal(0 * x[:, K:], 1.0), logits=x[:, K:]),
        lambda x: dist.Normal(x[:, K:], 1.0),
    ],
    ids=["inclusion", "mean"],
)
def test_an_encoder_that_knows_nothing_is_at_chance(distribution):
    result = factor_auroc(told(distribution, 2 * K), TRAIN, TEST)
    n1 = TEST.factors.presence.sum(0).double()
    error = ((len(TEST) + 1) / (12 * n1 * (len(TEST) - n1))).sqrt()
    z = (torch.tensor(result.auroc, dtype=torch.float64) - 0.5) / error
    assert (z.abs() < Z_BOUND).all()
    assert (z != 0).all()


def test_dense_codes_are_scored_by_the_best_of_mean_negative_and_size():
    def signs(x):
        size = torch.where(x[:, 4:5] > 0, x[:, 2:3], -x[:, 2:3])
        return dist.Normal(torch.cat([x[:, 1:2] - 5, -x[:, :1] + 5, size, x[:, 3:4]], 1), 1.0)

    result = factor_auroc(told(signs, 2 * K), TRAIN, TEST)
    assert result.score == "mean"
    assert result.latents == (1, 0, 2, 3)
    assert result.forms == ("-mean", "mean", "|mean|", "mean")
    assert result.auroc == (1.0, 1.0, 1.0, 1.0)


def test_latents_are_chosen_on_training_data_and_one_may_serve_several_factors():
    def swap(data, presence):
        return vsc.Dataset(data.images, factors=data.factors._replace(presence=presence, values=presence.float()))

    model = told(lambda x: dist.Normal(x[:, :K], 1.0), 2 * K)
    turned = factor_auroc(model, TRAIN, swap(TEST, ~TEST.factors.presence))
    assert turned.latents == (0, 1, 2, 3)
    assert turned.auroc == (0.0, 0.0, 0.0, 0.0)
    twice = [swap(data, data.factors.presence[:, [0, 0, 1, 1]]) for data in (TRAIN, TEST)]
    merged = factor_auroc(model, *twice)
    assert merged.latents == (0, 0, 1, 1)
    assert merged.mean == 1


def by_class(part, labels):
    present = nn.functional.one_hot(labels).bool()
    return vsc.Dataset(part.images, factors=Factors(present, present.float(), tuple("0123456789")))


@pytest.mark.parametrize("score", ["inclusion", "mean"])
def test_both_scores_of_a_trained_model_are_sklearns_and_beat_chance(trained, score):
    model, train, test = trained
    classes = by_class(train, train.labels)
    result = factor_auroc(model, classes, by_class(test, test.labels), score=score)
    assert result.score == score
    assert (result == factor_auroc(model, classes, by_class(test, test.labels))) == (score == "inclusion")
    with model.evaluating():
        posterior = model.encoder(test.images)
    read = {
        "inclusion": posterior.base_dist.logits,
        "-inclusion": -posterior.base_dist.logits,
        "mean": posterior.mean,
        "-mean": -posterior.mean,
        "|mean|": posterior.mean.abs(),
    }
    choices = enumerate(zip(result.forms, result.latents, strict=True))
    expected = [roc_auc_score(test.labels == digit, read[form][:, latent]) for digit, (form, latent) in choices]
    assert result.auroc == pytest.approx(expected)
    shuffled = [test.labels[torch.randperm(len(test))] for _ in range(30)]
    chance = torch.tensor([factor_auroc(model, classes, by_class(test, y), score=score).mean for y in shuffled])
    assert (result.mean - chance.mean()) / chance.std() > Z_BOUND
    assert_mean_equals(chance, 0.5)


def test_factor_auroc_refuses_what_it_cannot_do(trained):
    model = told(lambda x: dist.Normal(x[:, :K], 1.0), 2 * K)
    with pytest.raises(ValueError, match=r"train must have known factors, and train\.factors is None"):
        factor_auroc(*trained)
    with pytest.raises(ValueError, match="test must have known factors"):
        factor_auroc(model, TRAIN, TEST.images)
    with pytest.raises(ValueError, match="unknown score 'gamma'; known are 'auto', 'inclusion', 'mean'"):
        factor_auroc(model, TRAIN, TEST, score="gamma")
    with pytest.raises(ValueError, match="score='inclusion' needs a posterior with an atom at zero"):
        factor_auroc(model, TRAIN, TEST, score="inclusion")
    renamed = vsc.Dataset(TEST.images, factors=TEST.factors._replace(names=tuple("abcd")))
    with pytest.raises(ValueError, match="train and test must have the same factors"):
        factor_auroc(model, TRAIN, renamed)
    for share, word in enumerate(("never", "always")):
        presence = TEST.factors.presence.clone()
        presence[:, 2] = bool(share)
        constant = vsc.Dataset(TEST.images, factors=TEST.factors._replace(presence=presence, values=presence.float()))
        with pytest.raises(ValueError, match=f"factor 'dot' is {word} present in test"):
            factor_auroc(model, TRAIN, constant)
