"""Measures of dictionaries: by hand, of the true dictionary, and by the peers' own code."""

import json
import math

import pytest
import torch
from conftest import Z_BOUND
from problems.linear import linear_model
from test_dictionary_codes import Autoencoder

import vsc_pyro as vsc
from vsc_pyro.evaluation import dictionaries


def known(x, values):
    presence = values != 0
    return vsc.Dataset(x, factors=vsc.Factors(presence, values, tuple(map(str, range(values.shape[1])))))


def test_by_hand():
    # Codes are the data themselves, above 1/2. The second latent misses its feature once and is on once without it.
    x = torch.tensor([[2.0, 0, 0], [0, 1, 0], [0, 0.2, 0], [0, -4, 0]])
    values = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]])
    found = vsc.evaluate_dictionary(Autoencoder(torch.eye(3)), known(x, values), dictionary=3 * torch.eye(3))
    assert (found.num_data, found.num_latents, found.dead) == (4, 3, 1)
    assert found.expected_l0 == found.hard_l0 == 3 / 4
    assert found.density.tolist() == found.usage.tolist() == [1 / 4, 2 / 4, 0]
    assert found.density_counts.tolist() == [0] * 10 + [1, 1]  # 0.25 and 0.5, above and below the root of 0.1
    assert found.mse == found.hard_mse == pytest.approx(0.04 / 12)
    assert found.c_dec == found.largest_cosine == 0
    assert found.mcc == found.uniqueness == 1
    assert found.true_l0 == 3 / 4
    assert found.precision == found.recall == found.f1 == (1 + 1 / 2 + 0) / 3
    assert found.accuracy == pytest.approx((1 + 2 / 4 + 1) / 3)
    assert found.num_ranked == 2
    assert found.auroc == (1 + 1.5 / 4) / 2  # of the second latent's four pairs, one is in order and one is tied
    assert found.average_precision == (1 + 1 / 2) / 2
    assert found.ece == pytest.approx(2 / 12)  # one of nine pairs below, one of three above
    assert found.brier == pytest.approx(2 / 12)
    assert found.likely_ece == pytest.approx(1 / 3)
    assert found.likely_share == pytest.approx(3 / 12)
    assert found.brier_skill == pytest.approx(1 - (2 / 12) / ((3 / 16 + 4 / 16) / 3))
    assert found.bin_count.tolist() == [9, *[0] * 8, 3]


def test_the_exact_posterior_of_the_true_dictionary_is_calibrated():
    model, _, _ = linear_model(5, 9, noise=0.3, overlap=0.5)
    with torch.no_grad():
        z = model.prior(None).sample((3000,))
        data = known(model.decoder(z).sample(), z)
    found = vsc.evaluate_dictionary(
        model,
        data,
        dictionary=model.decoder.dictionary,
        posterior=lambda x: vsc.exact_posterior(model, x),
    )
    assert found.mcc == pytest.approx(1)
    assert found.nearest.tolist() == list(range(5))
    assert found.ece < 0.02
    assert found.likely_ece < 0.02
    # Calibrated bins: 10 tests at 5 standard errors.
    seen = found.bin_count > 0
    error = (found.bin_inclusion * (1 - found.bin_inclusion) / found.bin_count).sqrt()[seen]
    assert ((found.bin_inclusion - found.bin_frequency)[seen].abs() < Z_BOUND * error).all()
    # The exact posterior's own expectation of its Brier score is that of its variance.
    inclusion = vsc.exact_posterior(model, data.images).inclusion
    assert found.expected_l0 == pytest.approx(float(inclusion.sum(1).mean()), rel=1e-5)
    assert found.brier == pytest.approx(float((inclusion * (1 - inclusion)).mean()), rel=0.1)
    untrained = vsc.evaluate_dictionary(model, data, dictionary=model.decoder.dictionary)
    assert found.brier_skill > untrained.brier_skill
    assert found.f1 > untrained.f1
    assert found.auroc > untrained.auroc


def test_the_true_dictionary_of_a_world():
    world = vsc.datasets.features(8, 16, expected_active=2, noise=0.02)
    data = world.sample(1000)
    offset = Autoencoder(world.dictionary, 0.1)
    offset.decode = lambda code: code @ world.dictionary + world.bias
    encode, offset.encode = offset.encode, lambda x: encode(x - world.bias)
    found = vsc.evaluate_dictionary(offset, data, dictionary=world.dictionary)
    assert found.mcc == pytest.approx(1)
    assert found.f1 > 0.99
    assert found.explained_variance > 0.99
    assert found.ece < 0.01
    assert found.brier_skill > 0.95


def test_memory_bounds_do_not_change_the_figures(monkeypatch):
    model, x, z = linear_model()
    data = known(x, z)
    whole = vsc.evaluate_dictionary(model, data, dictionary=model.decoder.dictionary)
    monkeypatch.setattr(dictionaries, "_NUMBERS_AT_ONCE", 2 * len(x))  # three passes of two, two and one latents
    monkeypatch.setattr("vsc_pyro.evaluation.dictionary_codes._ROWS_AT_ONCE", 70)
    pieces = vsc.evaluate_dictionary(model, data, dictionary=model.decoder.dictionary)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(pieces, name), value, rtol=1e-5, atol=1e-7, equal_nan=True, msg=name)


def test_without_truth_or_without_factors():
    model, x, z = linear_model()
    without = vsc.evaluate_dictionary(model, x)
    directions = vsc.evaluate_dictionary(model, x, dictionary=model.decoder.dictionary)
    assert math.isnan(without.mcc)
    assert without.nearest is None
    assert "decoder MCC" not in str(without)
    assert directions.mcc == pytest.approx(1)
    assert math.isnan(directions.f1)
    assert "F1" not in str(directions)
    reference = vsc.evaluate(model, x, num_draws=1)
    for name, other in (("expected_l0", "expected_l0"), ("hard_l0", "hard_l0"), ("explained_variance", "r2")):
        assert getattr(without, name) == pytest.approx(getattr(reference, other), rel=1e-4)
    assert without.hard_explained_variance == pytest.approx(reference.hard_r2, rel=1e-4)
    assert math.isnan(vsc.evaluate_dictionary(model, known(x, z)).f1)


def test_table_and_json():
    model, x, z = linear_model()
    found = vsc.evaluate_dictionary(model, known(x, z), dictionary=model.decoder.dictionary)
    figures = json.loads(json.dumps(found.as_dict()))
    assert figures["f1"] == found.f1
    assert figures["fvu"] == pytest.approx(1 - found.explained_variance)
    assert figures["dead_share"] == found.dead / 5
    assert sum(figures["density_counts"]) == 5 - found.dead
    assert "latent_f1" not in figures
    for text in ("300 data, 5 latents", "calibration error", "Brier score", "decoder MCC", "skill"):
        assert text in str(found)


def test_the_table_states_the_rules():
    model, x, _ = linear_model()
    of_posterior = str(vsc.evaluate_dictionary(model, x)).splitlines()
    of_codes = str(vsc.evaluate_dictionary(Autoencoder(torch.eye(9)), x)).splitlines()
    for table, rules in (
        (of_posterior, ("sum of probabilities, all latents", "probability above 1/2", "never above 1/2 in 300 data")),
        (of_codes, ("code not 0", "code not 0", "code always 0 in 300 data")),
    ):
        for row, name, rule in zip(table[1:], ("expected L0", "hard L0", "dead latents"), rules, strict=False):
            assert row.startswith(name)
            assert rule in row
    assert (
        of_posterior[-2] == "latents used: fit and evaluate count them, by another rule: those that carry information"
    )
    assert "another rule" not in "".join(of_codes)


def test_weights_in_bfloat16_are_evaluated():
    model, x, z = linear_model()
    directions = model.decoder.dictionary.detach().float()
    exact = vsc.evaluate_dictionary(model, known(x, z), dictionary=directions)
    rounded = vsc.evaluate_dictionary(model.bfloat16(), known(x, z), dictionary=directions)
    assert rounded.mcc == pytest.approx(exact.mcc, abs=0.01)
    assert rounded.average_precision == pytest.approx(exact.average_precision, abs=0.02)


def test_many_dead_latents_bring_advice():
    model, x, _ = linear_model()
    log_odds = model.encoder.own_layer.bias.data[-model.prior.latent_dim :]
    for numbers, dead in (([-100.0] * 5, 5), ([100.0] * 4 + [-100.0], 1)):
        log_odds[:] = torch.tensor(numbers)
        found = vsc.evaluate_dictionary(model, x)
        assert found.dead == dead
        assert ("advice: 5 of 5 latents are dead in these 300 data: evaluate" in str(found)) == (dead == 5)
    silent = Autoencoder(torch.eye(9))
    silent.encode = torch.zeros_like
    found = vsc.evaluate_dictionary(silent, x)
    assert found.dead == 9
    assert "advice" not in str(found)


def test_bad_arguments():
    model, x, z = linear_model()
    for dictionary in (torch.eye(5), torch.zeros(4, 9)):
        with pytest.raises(ValueError, match="dictionary must have one row of 9 values for each of 5 features"):
            vsc.evaluate_dictionary(model, known(x, z), dictionary=dictionary)
    for dictionary, num in ((torch.ones(9), 9), (torch.tensor(1.0), 1), (torch.zeros(0, 9), 1), ([[1.0] * 8], 1)):
        with pytest.raises(ValueError, match=f"dictionary must have one row of 9 values for each of {num} features"):
            vsc.evaluate_dictionary(model, x, dictionary=dictionary)
    with pytest.raises(ValueError, match="bins must be a whole number of at least 1, got 0"):
        vsc.evaluate_dictionary(model, x, bins=0)


@pytest.mark.filterwarnings("ignore")
def test_figures_are_those_of_saelens():
    evals = pytest.importorskip("sae_lens.synthetic.evals", reason="needs sae-lens, which is not installed")
    world = vsc.datasets.features(40, 16, expected_active=3)
    data = world.sample(1000)
    model = Autoencoder(world.dictionary[:30] + 0.1 * torch.randn(30, 16), 1.0)
    with torch.no_grad():
        model.W_dec[:3] *= 0.01  # never on

    class Peers:
        feature_vectors = world.dictionary

        def sample(self, number):
            return data.factors.values

        def __call__(self, values):
            return data.images

    theirs = evals.eval_sae_on_synthetic_data(model, Peers(), Peers(), num_samples=1000).to_log_dict()
    ours = vsc.evaluate_dictionary(model, data, dictionary=world.dictionary)
    assert ours.dead >= 3
    names = {"sae_l0": "hard_l0", "dead_latents": "dead", "classification/f1_score": "f1"}
    for name, value in theirs.items():
        name = names.get(name, name.removeprefix("classification/"))
        assert getattr(ours, name) == pytest.approx(value, rel=1e-5), name


def test_dictionaries_with_entries_that_are_no_numbers():
    model = vsc.VAE(vsc.SpikeSlabEncoder(3, 2), vsc.NormalDecoder(2, 3, hidden=()), vsc.SpikeSlabPrior(2))
    with pytest.raises(ValueError, match="NaN or infinite"):
        vsc.evaluate_dictionary(model, torch.ones(4, 3), dictionary=torch.full((5, 3), torch.nan))
