"""Data sets: each function returns a training and a test `Dataset` of tensors in memory.

Images have shape ``(N, channels, height, width)``. Pixels are float32 in [0, 1], except in ``"templates"``,
``"linear-5x5"`` and ``"patches"``. `Dataset.factors` holds the ground truth of synthetic images. The functions return
pixels unchanged; `load` calls a function by name and binarises. `binarize` determines what a model sees of the pixels:

* ``"dynamic"``: Bernoulli draws of the grey levels, fresh every time an image is used (Salakhutdinov & Murray, 2008;
  Burda et al., 2016). `Dataset.images` stays grey; `vsc_pyro.fit` and `vsc_pyro.evaluate` draw.
* ``"static"``: one such draw, made with `seed` when the data are loaded. (Published figures for "static MNIST" usually
  refer to the file of Larochelle & Murray, 2011, which is another draw.)
* ``None``: pixels unchanged. On grey levels, a Bernoulli decoder's figure is a cross-entropy, not a likelihood.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vsc_pyro._arguments import choice, natural_int
from vsc_pyro._files import expanded
from vsc_pyro.datasets.bundled import digits, patches
from vsc_pyro.datasets.dataset import BINARIZATIONS, Dataset, Factors, Split, as_dataset, check_binarize
from vsc_pyro.datasets.faces import render_smiley, smiley
from vsc_pyro.datasets.features import FeatureWorld, Magnitudes, features
from vsc_pyro.datasets.images import images
from vsc_pyro.datasets.shards import Shards, shards
from vsc_pyro.datasets.synthetic import linear_5x5, linear_5x5_dictionary, template_images, templates
from vsc_pyro.datasets.torchvision_sets import (
    DOWNLOAD_TIMEOUT,
    celeba,
    cifar10_grey,
    default_root,
    fashion_mnist,
    mnist,
)

__all__ = [
    "BINARIZATIONS",
    "DATASETS",
    "DOWNLOAD_TIMEOUT",
    "Dataset",
    "Factors",
    "FeatureWorld",
    "Magnitudes",
    "Shards",
    "Split",
    "as_dataset",
    "celeba",
    "cifar10_grey",
    "default_root",
    "digits",
    "fashion_mnist",
    "features",
    "images",
    "linear_5x5",
    "linear_5x5_dictionary",
    "load",
    "mnist",
    "patches",
    "render_smiley",
    "shards",
    "smiley",
    "template_images",
    "templates",
]


class Entry(NamedTuple):
    """A row of `DATASETS`: a function of (root, seed, download) that reads the data, and the default binarisation."""

    read: Callable[[Path | None, int, bool], Split]
    binarize: str | None = None


DATASETS = {
    "mnist": Entry(lambda root, seed, download: mnist(root, download), "dynamic"),
    "fashion-mnist": Entry(lambda root, seed, download: fashion_mnist(root, download), "dynamic"),
    "digits": Entry(lambda root, seed, download: digits(seed), "dynamic"),
    "cifar10-grey": Entry(lambda root, seed, download: cifar10_grey(root, seed=seed, download=download)),
    "celeba": Entry(lambda root, seed, download: celeba(root, download=download)),
    "patches": Entry(lambda root, seed, download: patches(seed=seed)),
    "templates": Entry(lambda root, seed, download: templates(seed=seed)),
    "linear-5x5": Entry(lambda root, seed, download: linear_5x5(seed=seed)),
    "smiley": Entry(lambda root, seed, download: smiley(seed=seed)),
}


def load(
    name: str,
    root: str | os.PathLike | None = None,
    binarize: str | None = "auto",
    seed: int = 0,
    download: bool = True,
) -> Split:
    """Load a data set by name, with its function's default arguments, and binarise it.

    ==================  ====================================================  ===============  ===================
    name                what                                                  read from        binarize="auto"
    ==================  ====================================================  ===============  ===================
    ``mnist``           handwritten digits, 28x28                             root             ``"dynamic"``
    ``fashion-mnist``   clothes, 28x28                                        root             ``"dynamic"``
    ``digits``          small handwritten digits, 8x8                         scikit-learn     ``"dynamic"``
    ``cifar10-grey``    grey crops of CIFAR-10, 16x16                         root             None
    ``celeba``          faces in colour, 64x64                                root             None
    ``patches``         whitened patches of photographs, 12x12, real          scikit-learn     None
    ``templates``       sums of two of ten templates, 10x10, real             drawn            None
    ``linear-5x5``      sparse sums of five patterns, 5x5, real               drawn            None
    ``smiley``          drawn faces of 18 known parts, 32x32, binary          drawn            None
    ==================  ====================================================  ===============  ===================

    Args:
        name: name of the data set.
        root: folder with the files as torchvision lays them out, ``~`` for the home folder; None for `default_root()`.
            Used only by data sets that are read from it.
        binarize: ``"dynamic"``, ``"static"`` or None, see the module's docstring; ``"auto"`` for the data set's
            default.
        seed: seed of the static draw, and of the data set's splits, positions or synthetic data.
        download: download missing files into `root`.

    Returns:
        The training and the test `Dataset`.

    Raises:
        ValueError: an unknown name (the message lists the known ones) or binarisation, or binarisation of real-valued
            data.
        FileNotFoundError: no files in `root`, and no download.
        OSError: a corrupt or truncated file; the message names it.

    >>> import vsc_pyro as vsc
    >>> train, test = vsc.datasets.load("digits")
    >>> train.images.shape, len(test), train.binarize
    (torch.Size([1437, 1, 8, 8]), 360, 'dynamic')
    """
    entry = choice("data set", name, DATASETS)
    check_binarize(binarize, ("auto", *BINARIZATIONS))
    seed = natural_int("seed", seed)
    split = entry.read(None if root is None else expanded(root), seed, download)
    return split.binarized(entry.binarize if binarize == "auto" else binarize, seed)
