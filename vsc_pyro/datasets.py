"""Data sets: one function each, returning a training and a test `Dataset` of tensors ready for the device.

Pixels are float32 in [0, 1], images have shape ``(N, 1, height, width)``. `binarize` says what a model sees of them:

* ``"dynamic"``: fresh Bernoulli draws of the grey levels every time an image is used (Salakhutdinov & Murray, 2008;
  Burda et al., 2016). `Dataset.images` stays grey; `vsc_pyro.fit` and `vsc_pyro.evaluate` do the drawing.
* ``"static"``: one such draw, made with `seed` when the data are loaded. (A draw of our own, not the file of
  Larochelle & Murray, 2011, which figures for "static MNIST" usually refer to.)
* ``None``: grey levels as they are. A Bernoulli decoder's figure is then a cross-entropy, not a likelihood.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vsc_pyro.arguments import choice

BINARIZATIONS = ("dynamic", "static", None)
DOWNLOAD_TIMEOUT = 20.0  # seconds without a byte


class Factors(NamedTuple):
    """What data were made of: shapes ``(N, K)`` bool and ``(N, K)``, and K names."""

    presence: Tensor
    values: Tensor
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Data in memory.

    Attributes:
        images: float tensor of shape ``(N, ...)``; for images ``(N, channels, height, width)``.
        labels: integer tensor of shape ``(N,)``, or None.
        binarize: what a model sees of the images: ``"dynamic"``, ``"static"`` (done already) or None.
        name: what to call it in tables.
        factors: the `Factors` the data were made of, where they are known, or None.

    Raises:
        ValueError: no datum, no floating-point tensor, labels of another length, or values outside [0, 1] that are to
            be binarised.
    """

    images: Tensor
    labels: Tensor | None = None
    binarize: str | None = None
    name: str = "data"
    factors: Factors | None = None

    def __post_init__(self) -> None:
        _check_binarize(self.binarize)
        if not isinstance(self.images, Tensor) or not self.images.is_floating_point():
            kind = self.images.dtype if isinstance(self.images, Tensor) else type(self.images).__name__
            raise ValueError(
                f"images must be a floating-point tensor, got {kind}; convert with torch.as_tensor(x).float()"
            )
        if self.images.ndim < 2 or self.images.numel() == 0:
            raise ValueError(
                f"data must have shape (N, ...) with at least one datum of at least one value, "
                f"got {tuple(self.images.shape)}"
            )
        if self.labels is not None and self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must have shape ({len(self.images)},), one for each datum, got {tuple(self.labels.shape)}"
            )
        if self.binarize == "dynamic" and not ((self.images >= 0) & (self.images <= 1)).all():
            raise ValueError(
                "dynamic binarisation takes grey levels as probabilities, so data must be finite and lie in [0, 1]; "
                f"got values from {self.images.min():.4g} to {self.images.max():.4g}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def to(self, like: Tensor) -> Dataset:
        """The same data on the device of the tensor `like`, images in its floating-point type."""
        labels = None if self.labels is None else self.labels.to(like.device)
        return dataclasses.replace(self, images=self.images.to(like), labels=labels)

    def draw(self, indices: Tensor | slice, generator: torch.Generator | None = None) -> Tensor:
        """What a model sees of these data: shape ``(B, ...)``, binarised afresh if `binarize` is ``"dynamic"``."""
        batch = self.images[indices]
        return torch.bernoulli(batch, generator=generator) if self.binarize == "dynamic" else batch


class Split(NamedTuple):
    """A data set's training and test part."""

    train: Dataset
    test: Dataset


def as_dataset(data: Dataset | Tensor | np.ndarray) -> Dataset:
    """`data` itself, or a `Dataset` of an array or tensor of numbers of shape ``(N, ...)``.

    Raises:
        ValueError: data without a datum, or not of shape ``(N, ...)``.
    """
    if isinstance(data, Dataset):
        return data
    images = torch.as_tensor(data)
    return Dataset(images if images.is_floating_point() else images.to(torch.get_default_dtype()))


def default_root() -> Path:
    """``$VSC_PYRO_DATA`` where it is set, else ``vsc_pyro`` in the user's cache folder."""
    if root := os.environ.get("VSC_PYRO_DATA"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vsc_pyro"


def load(
    name: str,
    root: str | os.PathLike | None = None,
    binarize: str | None = "dynamic",
    seed: int = 0,
    download: bool = True,
) -> Split:
    """Load a data set by name: ``"mnist"``, ``"fashion-mnist"`` or ``"digits"``.

    Args:
        name: which one.
        root: folder with the files as torchvision lays them out; `default_root()` if None. ``"digits"`` needs none.
        binarize: ``"dynamic"`` (default), ``"static"`` or None, see the module's docstring.
        seed: of the static draw, and of the split of ``"digits"``.
        download: fetch missing files into `root` where the network allows.

    Raises:
        ValueError: an unknown name (the message lists the known ones) or binarisation.
        FileNotFoundError: no files in `root`, and no download.
        OSError: a corrupt or truncated file, by name.
    """
    loader = choice("data set", name, DATASETS)
    _check_binarize(binarize)
    parts = loader(Path(root) if root is not None else default_root(), download, seed)
    generator = torch.Generator().manual_seed(seed)
    if binarize == "static":
        parts = [(torch.bernoulli(images, generator=generator), labels) for images, labels in parts]
    return Split(*(Dataset(images, labels, binarize, name) for images, labels in parts))


def _digits(root: Path, download: bool, seed: int) -> list[tuple[Tensor, Tensor]]:
    """1,797 handwritten digits of 8x8 pixels that scikit-learn bundles (Alpaydin & Kaynak, 1998); 1,437 to train on."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.tensor(digits.images / 16.0, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target)
    parts = train_test_split(range(len(labels)), test_size=0.2, random_state=seed, stratify=digits.target)
    return [(images[list(part)], labels[list(part)]) for part in parts]


def _torchvision(class_name: str) -> Callable[[Path, bool, int], list[tuple[Tensor, Tensor]]]:
    def loader(root: Path, download: bool, seed: int) -> list[tuple[Tensor, Tensor]]:
        return [_read_torchvision(class_name, root, train, download) for train in (True, False)]

    return loader


def _read_torchvision(class_name: str, root: Path, train: bool, download: bool) -> tuple[Tensor, Tensor]:
    """60,000 training or 10,000 test images of 28x28 pixels, labels 0 to 9.

    MNIST: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner (1998). Fashion-MNIST: H. Xiao, K. Rasul, R. Vollgraf (2017).
    """
    try:
        import torchvision.datasets
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            "torchvision does not import beside this build of torch; install the two from one source, "
            f"for example with `pip install torch torchvision` ({error})"
        ) from error
    cls = getattr(torchvision.datasets, class_name)
    folder = root / class_name / "raw"
    files = [Path(resource).stem for resource, _ in cls.resources]
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        if not download:
            raise FileNotFoundError(
                f"{class_name} is not in {root}: {folder} lacks {', '.join(missing)}; "
                "name the folder that has it, or load with download=True"
            )
        try:
            with _network_timeout(DOWNLOAD_TIMEOUT):
                cls(root, train=train, download=True)
        except (OSError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")  # torchvision lists every mirror on lines of their own
            raise FileNotFoundError(
                f"{class_name} is not in {root} and could not be downloaded ({reason}); put the four files "
                f"{', '.join(files)} into {folder}, or name the folder that has them"
            ) from error
    try:
        part = cls(root, train=train, download=False)
        if len(part.data) != len(part.targets) or part.data.shape[1:] != (28, 28):
            raise ValueError(f"{tuple(part.data.shape)} images and {len(part.targets)} labels")
    except Exception as error:  # a damaged file fails in the parser in many ways; all mean the same to the user
        kind = "train" if train else "t10k"
        raise OSError(
            f"the {class_name} files {folder / kind}-* are corrupt or truncated ({type(error).__name__}: {error}); "
            "delete them and load again"
        ) from error
    return part.data.unsqueeze(1).to(torch.float32) / 255, part.targets


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    # torchvision's download has no timeout of its own and would wait for ever behind a silent firewall.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check_binarize(binarize: str | None) -> None:
    if binarize not in BINARIZATIONS:
        raise ValueError(f"unknown binarisation {binarize!r}; known are {', '.join(map(repr, BINARIZATIONS))}")


DATASETS = {"mnist": _torchvision("MNIST"), "fashion-mnist": _torchvision("FashionMNIST"), "digits": _digits}
