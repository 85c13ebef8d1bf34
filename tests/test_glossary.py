import re
from pathlib import Path

import torch
from test_dictionary_codes import Autoencoder

import vsc_pyro as vsc
from vsc_pyro import glossary


def test_the_file_says_what_python_says():
    path = Path(__file__).parent.parent / "docs" / "glossary.md"
    assert path.read_text() == glossary.text(), (
        "python -m vsc_pyro.evaluation.glossary > docs/glossary.md writes it anew"
    )


def word(line):
    """The name of a row, its number of draws as K."""
    return re.sub(r"bound of \d+ draws", "bound of K draws", re.split(r"\s{2,}|:|, in", line.strip())[0])


def test_every_row_of_every_table_has_an_entry(small_vae, digits, trained):
    linear = vsc.VAE(
        vsc.SpikeSlabEncoder(6, 3, hidden=(8,)), vsc.NormalDecoder(3, 6, hidden=()), vsc.SpikeSlabPrior(3, 0.3)
    )
    point = vsc.VAE(vsc.DeltaEncoder(64, 5), vsc.BernoulliDecoder(5, 64), vsc.LaplacePrior(5))
    tables = [
        vsc.evaluate(trained, digits.test, num_draws=2),
        vsc.evaluate(linear, torch.randn(20, 6), num_draws=2, reference="exact"),
        vsc.evaluate(point, digits.test.images.flatten(1).round(), num_draws=1),
        vsc.evaluate(small_vae("shifted-sigmoid"), digits.test, num_draws=2),
    ]
    seen = set()
    for table in tables:
        first, *rows, last = str(table).splitlines()
        assert "binarisation" in first
        assert last == "words: docs/glossary.md, or print(vsc_pyro.glossary.text())"
        seen |= {word(row) for row in rows}
    assert seen <= glossary.WORDS.keys()
    assert {"latents a datum uses", "R2, hard code", "entropy, hard code", "objective", "evidence", "advice"} <= seen


def test_every_row_of_the_table_of_a_dictionary_has_an_entry():
    world = vsc.datasets.features(12, 6, expected_active=2)
    model, data = vsc.SparseDictionary(6, num_features=8, expected_active=2), world.sample(200)
    autoencoder = Autoencoder(torch.eye(6))
    found = [vsc.evaluate_dictionary(each, data, dictionary=world.dictionary) for each in (model, autoencoder)]
    seen = set()
    for table in map(str, found):
        _, *rows, last = table.splitlines()
        assert last == "words: docs/glossary.md, or print(vsc_pyro.glossary.text())"
        seen |= {re.split(r"\s{2,}|, of|:", row)[0] for row in rows}
    assert seen <= glossary.WORDS.keys() | glossary.DICTIONARY_WORDS.keys()
    assert {"dead latents", "F1", "decoder MCC", "calibration error", "latents used", "expected L0"} <= seen
    assert "latents used" not in str(found[1])


def test_words_of_the_notes_of_a_dictionary_have_entries_too():
    words = "spike slab atom feature precision recall FVU reliability density".split()
    assert {
        *words,
        "Brier skill",
        "own feature",
        "posterior-mean code",
        "hard code",
    } <= glossary.DICTIONARY_WORDS.keys()
    assert not glossary.WORDS.keys() & glossary.DICTIONARY_WORDS.keys()
    for group in (glossary.WORDS, glossary.DICTIONARY_WORDS):
        assert all(f"- **{word}**: {meaning}\n" in glossary.text() for word, meaning in group.items())


def test_words_of_the_notes_have_entries_too():
    assert {"datum", "latent", "nats", "hard spikes", "prior odds", "latents ever on", "binarisation"} <= (
        glossary.WORDS.keys()
    )
