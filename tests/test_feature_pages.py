"""The page about a dictionary's features: what it holds, on worlds, pictures and word vectors."""

import os
import re
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from problems.linear import linear_model
from test_dictionaries import known
from test_dictionary_codes import Autoencoder

import vsc_pyro as vsc


def test_known_features(tmp_path):
    model, x, z = linear_model()
    page = vsc.feature_pages(
        model,
        known(x, z),
        tmp_path / "page.html",
        features=[3, 1],
        dictionary=model.decoder.dictionary,
        names=[f"pixel {i}" for i in range(9)],
        num_top=4,
    ).read_text()
    assert re.findall(r">(Feature \d)</h2>", page) == ["Feature 3", "Feature 1"]
    assert page.count("<img") == 2
    assert "true feature is present" in page
    assert "decoder MCC" in page
    assert "://" not in page  # nothing to fetch
    inclusion = vsc.codes(model, x).inclusion[:, 3]
    rows = re.findall(r"<td>(\d+)</td>\s*<td>(0\.\d+)</td>\s*<td>\S+</td>\s*<td>(?:True|False)</td>", page)
    assert [int(row) for row, _ in rows[:4]] == inclusion.argsort(descending=True)[:4].tolist()
    assert float(rows[0][1]) == pytest.approx(float(inclusion.max()), abs=1e-5)


def test_digits_are_pictures_with_labels(tmp_path, digits):
    model = vsc.VAE(
        vsc.SpikeSlabEncoder((1, 8, 8), 6),
        vsc.NormalDecoder(6, (1, 8, 8), hidden=()),
        vsc.SpikeSlabPrior(6, 0.2),
    )
    test = vsc.Dataset(digits.test.images, labels=digits.test.labels, name="digits")
    page = vsc.feature_pages(model, test, tmp_path / "page.html", features=[0]).read_text()
    assert page.count("<img") == 2  # the atom, and the strip of digits
    assert "digits, 6 features" in page
    assert "<th>label</th>" in page


def test_word_vectors(tmp_path):
    file = Path(os.environ.get("VSC_PYRO_DATA", "")) / "more" / "glove100d.npz"
    if not file.is_file():
        pytest.skip(f"needs word vectors, {file}; set VSC_PYRO_DATA")
    held = np.load(file, allow_pickle=False)
    vectors, words = torch.from_numpy(held["X"][:2000]).float(), [str(word) for word in held["words"][:2000]]
    # Atoms that are word vectors: the word itself is at the top.
    atoms = torch.nn.functional.normalize(vectors[[10, 20]])
    chosen = words[10], words[20]
    model = Autoencoder(atoms, 1.0)
    series = pandas.Series(words, index=range(len(words), 0, -1))  # whose labels are no row numbers
    page = vsc.feature_pages(model, vectors, tmp_path / "page.html", words=series).read_text()
    for word in chosen:
        assert f"<td>{word}</td>" in page


def test_bad_arguments(tmp_path):
    model, x, _ = linear_model()
    path = tmp_path / "page.html"
    with pytest.raises(ValueError, match=r"features must be numbers of latents from 0 to 4, got \[5\]"):
        vsc.feature_pages(model, x, path, features=[5])
    with pytest.raises(ValueError, match=r"features must be numbers of latents from 0 to 4, got \[\]"):
        vsc.feature_pages(model, x, path, features=[])
    with pytest.raises(ValueError, match="features must be numbers of latents from 0 to 4, got 3; pass a list"):
        vsc.feature_pages(model, x, path, features=3)
    with pytest.raises(ValueError, match=r"features must be numbers of latents from 0 to 4, got \[1, 5\]"):
        vsc.feature_pages(model, x, path, features=torch.tensor([1, 5]))
    with pytest.raises(ValueError, match="words must hold one text for each of 300 data, got 1"):
        vsc.feature_pages(model, x, path, words=["one"])
    path.touch()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        vsc.feature_pages(model, x, path)
