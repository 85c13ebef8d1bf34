"""Data sets that torchvision reads from files on disk, and downloads.

Pixels are float32 in [0, 1]. Unless documented otherwise, `root` is a folder with the files as torchvision lays them
out (None for `default_root`), and `download` fetches missing files into it. All functions raise `FileNotFoundError` if
files are missing and not downloaded, `OSError` for corrupt or truncated files, which it names, and `ImportError` if
torchvision cannot be imported.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro._files import expanded
from vsc_pyro.datasets.dataset import Dataset, Factors, Split

DOWNLOAD_TIMEOUT = 20.0  # seconds to wait for the next byte
_CELEBA_WIDTH, _CELEBA_HEIGHT = 178, 218

T = TypeVar("T")


def default_root() -> Path:
    """Return ``$VSC_PYRO_DATA`` if it is set, else the folder ``vsc_pyro`` in the user's cache."""
    if root := os.environ.get("VSC_PYRO_DATA"):
        return expanded(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vsc_pyro"


def mnist(root: str | os.PathLike | None = None, download: bool = True) -> Split:
    """MNIST (LeCun, Bottou, Bengio & Haffner, 1998): handwritten digits, 60,000 and 10,000 of 28x28 pixels."""
    return _idx_files("MNIST", "mnist", root, download)


def fashion_mnist(root: str | os.PathLike | None = None, download: bool = True) -> Split:
    """Fashion-MNIST (Xiao, Rasul & Vollgraf, 2017): ten named kinds of clothes, in numbers and sizes of `mnist`."""
    return _idx_files("FashionMNIST", "fashion-mnist", root, download, is_named=True)


def cifar10_grey(root: str | os.PathLike | None = None, size: int = 16, seed: int = 0, download: bool = True) -> Split:
    """Grey crops of CIFAR-10 (Krizhevsky, 2009): 50,000 to train on, 10,000 to test, ten classes.

    Each image of 32x32 pixels yields one crop, at a uniformly drawn position. Grey is 0.299 red + 0.587 green + 0.114
    blue. Usual sizes for sparse codes are 12 and 16.

    Args:
        root: folder that holds ``cifar-10-batches-py``, see the module's docstring.
        size: side of a crop, at most 32.
        seed: seed of the positions.
        download: fetch missing files.

    Shapes:
        Images are ``(N, 1, size, size)``.

    Raises:
        ValueError: a size outside 1 to 32.
    """
    if positive_int("size", size) > 32:
        raise ValueError(f"size must be at most 32, the side of CIFAR-10's images, got {size}")
    random = np.random.default_rng(natural_int("seed", seed))
    cls, root = _torchvision_class("CIFAR10"), _folder(root)
    folder = root / cls.base_folder
    files = [*(file for file, _ in cls.train_list + cls.test_list), cls.meta["filename"]]
    _fetch(cls, root, folder, files, download, "the seven files")
    return Split(*(_grey_crops(cls, root, folder, train, size, random) for train in (True, False)))


def celeba(
    root: str | os.PathLike | None = None,
    size: int = 64,
    crop: int = 148,
    num_train: int | None = None,
    num_test: int | None = None,
    download: bool = True,
) -> Split:
    """Faces of CelebA (Liu, Luo, Wang & Tang, 2015), aligned: 162,770 to train on, 19,962 to test, in colour.

    Each image is the central square of side `crop` of the original 178x218 pixels, resized (bilinear, with
    antialiasing). Usual sizes are 32 and 64.

    All images are held in memory in single precision: the training part takes 8.0 GB at size 64 and 2.0 GB at size 32,
    the test part an eighth of that. Reading takes minutes. `num_train` and `num_test` limit the number of images.

    Args:
        root: folder that holds ``celeba``, with the five annotation files and the unpacked ``img_align_celeba``.
        size: side of an image.
        crop: side of the square before it is resized, at most 178.
        num_train, num_test: number of images, the first in the files' order; None for all.
        download: fetch missing files, which needs the package gdown.

    Shapes:
        Images are ``(N, 3, size, size)``. There are no labels. The `factors` are the 40 attributes (``"Smiling"``,
        ``"Eyeglasses"``, ...), with value 1 where present. They are annotations by people, not causes of the image.

    Raises:
        ValueError: a number out of range.
    """
    size, crop = positive_int("size", size), positive_int("crop", crop)
    if crop > _CELEBA_WIDTH:
        raise ValueError(f"crop must be at most {_CELEBA_WIDTH}, the width of CelebA's images, got {crop}")
    limits = {"train": num_train, "test": num_test}
    for part, limit in limits.items():
        if limit is not None:
            positive_int(f"num_{part}", limit)
    cls, root = _torchvision_class("CelebA"), _folder(root)
    folder = root / cls.base_folder
    files = [*(file for _, _, file in cls.file_list if file.endswith(".txt")), "img_align_celeba"]
    _fetch(cls, root, folder, files, download, "the five annotation files and the unpacked folder of images")
    return Split(*(_faces(cls, root, folder, part, size, crop, limit) for part, limit in limits.items()))


def _idx_files(
    class_name: str, name: str, root: str | os.PathLike | None, download: bool, is_named: bool = False
) -> Split:
    cls, root = _torchvision_class(class_name), _folder(root)
    folder = root / class_name / "raw"
    _fetch(cls, root, folder, [Path(resource).stem for resource, _ in cls.resources], download, "the four files")

    def read(kind: str) -> Dataset:
        # The class would prefer files of an older torchvision in a folder `processed`.
        from torchvision.datasets.mnist import read_image_file, read_label_file

        images = read_image_file(str(folder / f"{kind}-images-idx3-ubyte"))
        labels = read_label_file(str(folder / f"{kind}-labels-idx1-ubyte"))
        if len(images) != len(labels) or images.shape[1:] != (28, 28):
            raise ValueError(f"{tuple(images.shape)} images and {len(labels)} labels")
        names = cls.classes if is_named else None
        images = images.unsqueeze(1).to(torch.float32) / 255
        return Dataset(images, _of_ten_classes(labels), name=name, class_names=names)

    return Split(*(_intact(lambda k=kind: read(k), class_name, f"{folder / kind}-*") for kind in ("train", "t10k")))


def _of_ten_classes(labels: Tensor) -> Tensor:
    if ((labels < 0) | (labels > 9)).any():
        raise ValueError(f"labels from {int(labels.min())} to {int(labels.max())}, where there are 0 to 9")
    return labels


def _grey_crops(cls: type, root: Path, folder: Path, train: bool, size: int, random: np.random.Generator) -> Dataset:
    def read() -> tuple[np.ndarray, Tensor, list[str]]:
        part = cls(root, train=train, download=False)
        return part.data, _of_ten_classes(torch.tensor(part.targets)), part.classes

    data, labels, names = _intact(read, "CIFAR10", str(folder))
    windows = np.lib.stride_tricks.sliding_window_view(data, (size, size), axis=(1, 2))
    rows, columns = random.integers(windows.shape[1], size=(2, len(windows)))
    crops = windows[np.arange(len(windows)), rows, columns]  # (N, 3, size, size), still bytes
    grey = np.einsum("nchw,c->nhw", crops, np.array([0.299, 0.587, 0.114])) / 255
    images = torch.tensor(grey, dtype=torch.float32).clamp(0, 1).unsqueeze(1)
    return Dataset(images, labels, name="cifar10-grey", class_names=names)


def _faces(cls: type, root: Path, folder: Path, part: str, size: int, crop: int, limit: int | None) -> Dataset:
    from PIL import Image

    def read_list() -> tuple[list[str], Tensor, tuple[str, ...]]:
        listed = cls(root, split=part, download=False)
        if ((listed.attr != 0) & (listed.attr != 1)).any():
            raise ValueError("attributes that are neither 1 nor -1")
        # The file's line of names ends in a blank, from which torchvision makes one more, empty name.
        return listed.filename[:limit], listed.attr[:limit].bool(), tuple(filter(None, listed.attr_names))

    files, presence, names = _intact(read_list, "CelebA annotation", str(folder / "*.txt"))
    left, top = (_CELEBA_WIDTH - crop) // 2, (_CELEBA_HEIGHT - crop) // 2
    images = torch.empty(len(files), 3, size, size)

    def read_image(path: Path) -> Tensor:
        with Image.open(path) as image:
            if image.size != (_CELEBA_WIDTH, _CELEBA_HEIGHT):
                raise ValueError(f"{image.size[0]}x{image.size[1]} pixels instead of 178x218")
            square = image.convert("RGB").resize(
                (size, size), Image.Resampling.BILINEAR, (left, top, left + crop, top + crop)
            )
        return torch.tensor(np.asarray(square)).permute(2, 0, 1)

    for row, file in enumerate(files):
        path = folder / "img_align_celeba" / file
        if not path.is_file():
            raise FileNotFoundError(
                f"CelebA is incomplete: {path} is missing; unpack img_align_celeba.zip in {folder} again"
            )
        images[row] = _intact(lambda path=path: read_image(path), "CelebA", str(path))
    return Dataset(images.div_(255), name="celeba", factors=Factors(presence, presence.float(), names))


def _folder(root: str | os.PathLike | None) -> Path:
    return default_root() if root is None else expanded(root)


def _torchvision_class(class_name: str) -> Any:
    try:
        import torchvision.datasets
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            "torchvision does not import beside this build of torch; install the two from one source, "
            f"for example with `pip install torch torchvision` ({error})"
        ) from error
    return getattr(torchvision.datasets, class_name)


def _fetch(cls: Any, root: Path, folder: Path, files: Sequence[str], download: bool, all_files: str) -> None:
    """Download a data set unless all `files` are in `folder`; `all_files` describes them in an error."""
    missing = [file for file in files if not (folder / file).exists()]
    if not missing:
        return
    if not download:
        raise FileNotFoundError(
            f"{cls.__name__} is not in {root}: {folder} lacks {', '.join(missing)}; "
            "pass the folder that has it, or download=True"
        )
    try:
        with _network_timeout(DOWNLOAD_TIMEOUT):
            cls(root, download=True)
        if not all((folder / file).exists() for file in files):
            raise RuntimeError(f"torchvision found older files in {folder.parent} and downloaded nothing")
    except Exception as error:  # URLError, RuntimeError or an error of gdown: in each case the files are missing
        reason = str(error).partition("\n")[0].rstrip(":")  # torchvision adds a line for every mirror
        raise FileNotFoundError(
            f"{cls.__name__} is not in {root} and could not be downloaded ({reason}); put {all_files} "
            f"{', '.join(files)} into {folder}, or pass the folder that has them"
        ) from error


def _intact(read: Callable[[], T], what: str, files: str) -> T:
    """Return `read()`; raise `OSError` for any error, because parsers fail in many ways on a damaged file."""
    try:
        return read()
    except Exception as error:
        raise OSError(
            f"the {what} files {files} are corrupt or truncated ({type(error).__name__}: {error}); "
            "delete them and load again"
        ) from error


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    # torchvision's download has no timeout and would wait forever behind a silent firewall.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
