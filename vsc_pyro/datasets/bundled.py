r"""Data that come with scikit-learn, without a download: small digits, and patches of photographs.

Patches are whitened by the zero-phase transform (ZCA; Bell & Sejnowski, 1997) of the training patches. With their mean
:math:`\mu`, their covariance :math:`U \Lambda U^\top`, and the mean :math:`\bar\lambda` of :math:`\Lambda`,

.. math:: y = c\, U (\Lambda + r \bar\lambda I)^{-1/2} U^\top (x - \mu).

The constant c gives the training patches unit variance per pixel. The regularisation r replaces the low-pass filter of
Olshausen & Field (1996): directions with a variance well above :math:`r \bar\lambda` are whitened, and those below it,
the noise of camera and compression, are damped.

References
    E. Alpaydin, C. Kaynak (1998), Cascading classifiers.
    B. A. Olshausen, D. J. Field (1996), Emergence of simple-cell receptive field properties by learning a sparse code
    for natural images.
    A. J. Bell, T. J. Sejnowski (1997), The "independent components" of natural scenes are edge filters.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vsc_pyro._arguments import natural_int, positive_float, positive_int
from vsc_pyro._files import expanded
from vsc_pyro.datasets.dataset import Dataset, Split

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's conversion to grey
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".tif", ".tiff", ".webp")


def digits(seed: int = 0) -> Split:
    """1,797 handwritten digits of 8x8 pixels (Alpaydin & Kaynak, 1998), grey in 17 levels; 1,437 to train on.

    Args:
        seed: seed of the split, which keeps the proportions of the classes.

    >>> import vsc_pyro as vsc
    >>> [part.images.shape for part in vsc.datasets.digits()]
    [torch.Size([1437, 1, 8, 8]), torch.Size([360, 1, 8, 8])]
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    images = torch.tensor(bunch.images / 16.0, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(bunch.target)
    parts = train_test_split(range(len(labels)), test_size=0.2, random_state=seed, stratify=bunch.target)
    return Split(*(Dataset(images[list(part)], labels[list(part)], name="digits") for part in parts))


def patches(
    size: int = 12,
    num_train: int = 50_000,
    num_test: int = 10_000,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    whiten: bool = True,
    regularisation: float = 0.01,
) -> Split:
    """Whitened grey patches of photographs; training and test patches are from different regions of every photograph.

    Test patches come from the right quarter of each photograph. Training patches come from the rest, less a gap as wide
    as a patch, so that no pixel is in both. Positions are uniform, with replacement. The whitening, see the module's
    docstring, is that of the training patches.

    Two photographs of 427x640 pixels (a temple, a flower) are enough to demonstrate the oriented filters of a sparse
    code, but few for statistics of natural images; pass a `folder` of your own for these.

    Args:
        size: side of a patch in pixels.
        num_train, num_test: number of patches.
        seed: seed of the positions. The test patches' positions do not depend on `num_train`.
        folder: folder of photographs (bmp, jpeg, pgm, png, tiff, webp) that replace the bundled ones; colour is
            converted to grey.
        whiten: False for unchanged grey levels, in [0, 1].
        regularisation: r, see the module's docstring.

    Shapes:
        Images are ``(N, 1, size, size)``, real-valued with mean 0 and variance 1 if whitened. There are no labels.

    Raises:
        FileNotFoundError: a `folder` that does not exist or holds no photograph.
        ValueError: a photograph too small for the two regions, an unreadable one, photographs without contrast, or a
            number out of range.

    >>> import vsc_pyro as vsc
    >>> train, test = vsc.datasets.patches(size=8, num_train=500, num_test=100)
    >>> train.images.shape, round(train.images.var().item(), 2)
    (torch.Size([500, 1, 8, 8]), 1.0)
    """
    size, seed = positive_int("size", size), natural_int("seed", seed)
    numbers = positive_int("num_train", num_train), positive_int("num_test", num_test)
    regularisation = positive_float("regularisation", regularisation)
    photographs = _bundled_photographs() if folder is None else _read_photographs(expanded(folder))
    regions = zip(*(_regions(name, photograph, size) for name, photograph in photographs.items()), strict=True)
    train, test = (
        _cut(region, number, size, np.random.default_rng([seed, part]))
        for part, (region, number) in enumerate(zip(regions, numbers, strict=True))
    )
    if whiten:
        mean, transform = _whitening(train, regularisation)
        train, test = ((part - mean) @ transform for part in (train, test))
    shape = (-1, 1, size, size)
    return Split(*(Dataset(torch.tensor(x, dtype=torch.float32).reshape(shape), name="patches") for x in (train, test)))


def _bundled_photographs() -> dict[str, np.ndarray]:
    from sklearn.datasets import load_sample_images

    bunch: Any = load_sample_images()
    images = (image @ np.array(_LUMA) / 255 for image in bunch.images)
    return dict(zip(bunch.filenames, images, strict=True))


def _read_photographs(folder: Path) -> dict[str, np.ndarray]:
    from PIL import Image

    if not folder.is_dir():
        raise FileNotFoundError(
            f"folder {folder} does not exist; pass a folder of photographs, or None for bundled ones"
        )
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(f"folder {folder} holds no photograph; put files of {', '.join(_SUFFIXES)} there")
    photographs = {}
    for file in files:
        try:
            with Image.open(file) as image:
                # Pillow's conversion to 8 bits would clip 16-bit integers and floats.
                white = {"I": 65535.0, "F": 1.0}.get(image.mode[0])
                photographs[str(file)] = np.asarray(image if white else image.convert("L"), float) / (white or 255.0)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow's error for a damaged file depends on the format
            raise ValueError(f"{file} is not a photograph that Pillow can read ({error}); remove it") from error
    return photographs


def _regions(name: str, photograph: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = photograph.shape
    border = width - width // 4
    if height < size or width // 4 < size or border - size < size:
        raise ValueError(
            f"{name} of {width}x{height} pixels is too small for patches of size {size}: it needs at least "
            f"{4 * size}x{size}, so that a quarter of its width holds a patch; remove it, or choose a smaller size"
        )
    return photograph[:, : border - size], photograph[:, border:]


def _cut(regions: tuple[np.ndarray, ...], number: int, size: int, random: np.random.Generator) -> np.ndarray:
    windows = [np.lib.stride_tricks.sliding_window_view(region, (size, size)) for region in regions]
    places = np.array([view.shape[0] * view.shape[1] for view in windows])
    counts = random.multinomial(number, places / places.sum())
    drawn = []
    for view, count in zip(windows, counts, strict=True):
        rows, columns = random.integers(view.shape[0], size=count), random.integers(view.shape[1], size=count)
        drawn.append(view[rows, columns].reshape(count, size * size))
    return random.permutation(np.concatenate(drawn))


def _whitening(x: np.ndarray, regularisation: float) -> tuple[np.ndarray, np.ndarray]:
    mean = x.mean(0)
    variances, directions = np.linalg.eigh(np.cov(x, rowvar=False, bias=True).reshape(x.shape[1], x.shape[1]))
    if not variances.mean() > 1e-12:
        raise ValueError("the photographs' training patches have no contrast to whiten; use others, or more patches")
    gains = (variances.clip(min=0) + regularisation * variances.mean()) ** -0.5
    unit = (variances * gains**2).mean() ** -0.5
    return mean, unit * (directions * gains) @ directions.T
