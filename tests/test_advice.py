"""The settings that fail in silence, forced by argument so that no better default can mend them, and data of noise."""

import dataclasses
import re
import warnings

import pytest
import torch
from torch.utils.data import DataLoader

import vsc_pyro as vsc
from vsc_pyro.evaluation.advice import advise, nothing_explained, principal_components
from vsc_pyro.evaluation.survey import survey
from vsc_pyro.training.history import last_runs


def low_rank(num, pixels, rank, deviation):
    """Centred data of that deviation in a few directions, a tenth of it noise."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(num, rank, generator=generator) * (torch.rand(num, rank, generator=generator) < 0.3)
    x = codes @ torch.randn(rank, pixels, generator=generator)
    x = x / x.std() + 0.1 * torch.randn(num, pixels, generator=generator)
    return deviation * (x - x.mean(0))


def fitted(x, scale, latents, hidden=(16,), weight=None, initial_inclusion=0.1, epochs=20, **kwargs):
    """A model trained for a while, and what the run warned of."""
    torch.manual_seed(0)
    pixels = x.shape[1]
    decoder = vsc.NormalDecoder(latents, pixels, hidden=hidden, scale=scale)
    if weight is not None:
        with torch.no_grad():
            decoder.network[-1].weight.uniform_(-weight, weight)
    encoder = vsc.SpikeSlabEncoder(pixels, latents, hidden=(32,), initial_inclusion=initial_inclusion)
    model = vsc.VAE(encoder, decoder, vsc.SpikeSlabPrior(latents, 0.1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", vsc.NothingExplainedWarning)
        vsc.fit(model, x, epochs=epochs, batch_size=50, progress=False, device="cpu", **kwargs)
    return model, [str(w.message) for w in caught]


def test_faces_like_data_under_a_scale_of_one():
    x = low_rank(400, 256, 10, 0.17)
    _, said = fitted(x, 1.0, 16, hidden=(), weight=0.25, objective="exact")
    assert len(said) == 1
    assert said[0].startswith("after 160 steps the code explains nothing: R2 ")
    assert "principal components reach 0.9" in said[0]
    assert (
        "16 of 16 latents unused; the decoder's scale is 1, the data's deviation 0.17; try NormalDecoder(scale='data')"
        in said[0]
    )


@pytest.mark.slow
def test_faces_like_data_under_atoms_that_start_too_large():
    x = low_rank(400, 256, 10, 0.17)
    _, said = fitted(x, 0.05, 16, hidden=(), weight=0.5, objective="exact")
    assert len(said) == 1
    assert "moves the output by" in said[0]
    assert "scale decoder.network[0].weight by 0.0" in said[0]
    # What it says to do does it.
    _, said = fitted(x, 0.05, 16, hidden=(), weight=0.5 * 0.01, objective="exact", epochs=40, lr=5e-3)
    assert said == []


def test_frames_like_data_under_a_scale_of_one():
    x = low_rank(600, 100, 10, 0.1)
    model, said = fitted(x, 1.0, 20)
    assert (
        "20 of 20 latents unused; the decoder's scale is 1, the data's deviation 0.1; try NormalDecoder(scale='data')"
        in said[0]
    )
    with pytest.warns(vsc.NothingExplainedWarning, match=r"^the code explains nothing: R2 .*scale is 1, the data's"):
        result = vsc.evaluate(model, x, num_draws=2)
    assert result.advice[0] in said[0]
    assert f"advice: {result.advice[0]}" in str(result)


@pytest.mark.slow
def test_standardised_digits_under_a_scale_of_one(digits):
    x = digits.train.images.flatten(1)[:1000]
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-3)
    model, said = fitted(x, 1.0, 32, hidden=(64,), epochs=30, lr=5e-3)
    assert said == []
    result = vsc.evaluate(model, x, num_draws=2)
    print(result)
    assert 0.3 < result.r2 < 0.8
    assert "scale is 1, the residuals' deviation 0." in result.advice[0]


@pytest.mark.slow
def test_noise_is_nothing_to_explain():
    for deviation in (torch.tensor(1.0), torch.logspace(-1, 1, 100)):
        x = deviation * torch.randn(500, 100, generator=torch.Generator().manual_seed(1))
        model, said = fitted(x, float(x.std()), 20, epochs=20)
        assert said == []
        seen = survey(model, vsc.Dataset(x))
        assert nothing_explained(model, vsc.Dataset(x), seen) is None
        assert "the data have little structure" in " ".join(advise(model, vsc.Dataset(x), seen))


def test_principal_components_against_singular_values():
    model = vsc.VAE(vsc.NormalEncoder(40, 12), vsc.NormalDecoder(12, 40), vsc.NormalPrior(12))
    x = low_rank(500, 40, 8, 1.0)
    components, chance = principal_components(model, vsc.Dataset(x), 8, seed=0)
    exact = torch.linalg.svdvals(x - x.mean(0)).square()
    assert components == pytest.approx(float(exact[:8].sum() / exact.sum()), abs=0.01)
    assert chance < 0.5
    noise = torch.randn(500, 40)
    components, chance = principal_components(model, vsc.Dataset(noise), 8, seed=0)
    assert components > 0.2  # of the data that they are found in
    assert abs(components - chance) < 0.03


@pytest.fixture(scope="module")
def seen():
    """Of a model with nothing wrong, in figures to be altered."""
    x = low_rank(400, 30, 4, 1.0)
    model, said = fitted(x, 0.15, 6, hidden=(), weight=0.05, objective="exact", epochs=60, lr=5e-3)
    assert said == []
    result = survey(model, vsc.Dataset(x))
    assert result.r2 > 0.8
    return (
        model,
        vsc.Dataset(x),
        dataclasses.replace(result, noise=result.residual, prior_inclusion=float(result.usage.mean())),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, None),
        ({"noise": 1e-3}, r"scale is 0.001, the residuals' .* the code describes noise"),
        ({"noise": 0.9}, r"scale is 0.9, the residuals' .* smaller structure counts as noise"),
        ({"usage": torch.full((6,), 0.99), "prior_inclusion": 0.3}, "codes are not sparse: 0.99 of all latents are on"),
        ({"mean": torch.full((30,), 100.0)}, r"the data's mean is \d+\.?\d* times their deviation"),
        ({"variance": torch.tensor([1e3, *29 * [1.0]])}, r"one of 30 values of a datum has 97% of all variance"),
        ({"prior_inclusion": 0.005}, r"the prior expects 0.03 latents on for a datum, and \d"),
        ({"information": torch.zeros(6).double()}, "6 of 6 latents unused; switching a latent from 0 to 1 moves"),
    ],
)
def test_one_line_for_each_thing_that_is_wrong(seen, changed, line):
    model, data, result = seen
    lines = advise(model, data, dataclasses.replace(result, **changed))
    print(lines)
    if line is None:
        assert lines == ()
    else:
        assert any(re.search(line, said) for said in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("usage", "line"),
    [
        ([1.0, 1.0, 1.0, 1.0, 0.0, 0.005], "4 of 6 latents are on for every datum, and the others for none; take"),
        ([1.0] * 6, "all 6 latents are on for every datum; take"),
        ([1.0, 1.0, 1.0, 1.0, 0.0, 0.5], None),
        ([1.0, *999 * [0.005]], None),  # five of the many are on for a datum
    ],
)
def test_a_learned_prior_whose_code_chooses_nothing(seen, usage, line):
    model, data, result = seen
    usage = torch.tensor(usage)
    result = dataclasses.replace(
        result, usage=usage, information=torch.ones(len(usage)).double(), prior_inclusion=float(usage.mean())
    )
    assert advise(model, data, result) == ()  # a fixed prior is what its user asked for
    learned = vsc.VAE(model.encoder, model.decoder, vsc.SpikeSlabPrior(6, learn_inclusion=True))
    lines = advise(learned, data, result)
    print(lines)
    assert [line in said for said in lines] == [True] if line else lines == ()


@pytest.mark.slow
def test_bernoulli_data_and_loaders(digits):
    torch.manual_seed(0)
    model = vsc.VAE(
        vsc.SpikeSlabEncoder(64, 5, hidden=(8,)), vsc.BernoulliDecoder(5, 64, hidden=(8,)), vsc.SpikeSlabPrior(5, 0.1)
    )
    loader = DataLoader(digits.train.images.flatten(1)[:400].round(), batch_size=20)
    with pytest.warns(
        vsc.NothingExplainedWarning, match=r"after 400 steps the code explains nothing.*weight of the KL diverg"
    ):
        vsc.fit(model, loader, epochs=20, lr=1e-5, progress=False)


def test_a_model_that_was_trained_too_briefly_is_to_be_trained_on(digits):
    torch.manual_seed(0)
    model = vsc.VAE(vsc.SpikeSlabEncoder(64, 10, (32,)), vsc.BernoulliDecoder(10, 64, (32,)), vsc.SpikeSlabPrior(10))
    data = vsc.Dataset(digits.train.images.flatten(1), binarize="dynamic")
    unknown, *_ = advise(model, data, survey(model, data))
    assert re.search(r"unused; raise the weight of the KL .*inclusion, or train for longer$", unknown)
    idle, *_ = advise(model, data, dataclasses.replace(survey(model, data), r2=0.5))  # others explain the data
    assert re.search(r"latents unused; raise the weight .*, or take fewer latents, or train for longer$", idle)
    vsc.fit(model, data, epochs=3, progress=False, device="cpu")
    with pytest.warns(vsc.NothingExplainedWarning, match=r"train for longer; if that does not help, raise the weight"):
        first, *_ = vsc.evaluate(model, data, num_draws=2).advice
    assert re.search(r"unused; .*; train for longer; if that does not help, raise the weight of the KL", first)


@pytest.mark.parametrize(
    ("curve", "line"),
    [
        (lambda t: t, "the bound still rose by 10 nats in the last 10 of 100 epochs; train for longer"),
        (lambda t: -50 * (-t / 100).exp(), "the bound still rose by .* of 100 epochs; train for longer"),
        (lambda t: -50 * (-t / 10).exp(), None),
        (lambda t: -t, None),
        (lambda t: torch.randn(100, generator=torch.Generator().manual_seed(0)), None),
        (lambda t: 1000 * (t > 9), None),
    ],
)
@pytest.mark.parametrize("warmup", [0, 10])
def test_a_bound_that_rises_to_the_end(seen, curve, line, warmup):
    model, data, result = seen
    bound = torch.cat([torch.linspace(1e4, 0, warmup), curve(torch.arange(100.0))])  # it falls in the warm-up
    history = vsc.History(bound.tolist(), steps=5000, steps_per_epoch=10, warmup_steps=10 * warmup)
    before, last_runs[model] = last_runs[model], history
    lines = advise(model, data, result)
    last_runs[model] = before
    if line is None:
        assert lines == ()
    else:
        assert re.fullmatch(line.replace("of 100", f"of {100 + warmup}"), *lines)


def test_the_callers_random_state_and_mode_are_left(small_vae, digits):
    model = small_vae()
    seen = survey(model, digits.test)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert advise(model, digits.test, seen) == advise(model, digits.test, seen) != ()
    assert torch.equal(torch.rand(1), expected)
    assert model.training


def test_structure_is_not_seen_in_normal_noise():
    # Of 200 small samples none: the limit is .1 above three standard deviations above the mean of shuffles.
    model = vsc.VAE(vsc.NormalEncoder(5, 2, (4,)), vsc.NormalDecoder(2, 5, (4,)), vsc.NormalPrior(2))
    random = torch.Generator().manual_seed(0)
    excess = [
        found - chance
        for found, chance in (
            principal_components(model, vsc.Dataset(torch.randn(20, 5, generator=random)), 1, seed)
            for seed in range(200)
        )
    ]
    assert max(excess) < 0.1
