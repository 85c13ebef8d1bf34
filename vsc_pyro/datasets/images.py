"""Pictures in a folder, read, cut square and split."""

from __future__ import annotations

import numbers
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vsc_pyro._arguments import natural_int, positive_int, sizes, yes_or_no
from vsc_pyro._files import expanded
from vsc_pyro.datasets.dataset import Dataset, Split

if TYPE_CHECKING:
    from PIL.Image import Image

_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_DEEP = 65535  # white of 16 bits


def images(
    folder: str | os.PathLike,
    size: int | Iterable[int] = 64,
    grey: bool = False,
    test_share: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
) -> Split:
    """Pictures in a folder and its subfolders, resized, in memory.

    Each picture is turned as its camera says, cut to the largest central rectangle with the proportions of `size`, and
    resized (bilinear, with antialiasing). Transparent parts become white. A file of several pictures counts as its
    first. The random split depends on the names of the files and on `seed` alone.

    Args:
        folder: folder with files of the types bmp, gif, jpeg, pgm, png, ppm, tiff and webp; others, and hidden ones,
            are ignored. ``~`` is the home folder.
        size: side of an image, or its height and width.
        grey: True for one channel instead of three.
        test_share: share of the pictures in the test part, in (0, 1), at least one picture.
        seed: seed of the split.
        limit: number of pictures, chosen by `seed`; None for all.

    Shapes:
        Images are ``(N, 3, height, width)``, or ``(N, 1, height, width)`` with `grey`; N pictures of 64x64 in colour
        take 49 kB each. If every picture lies in a subfolder, the subfolders are the classes; otherwise there are no
        labels.

    Raises:
        ValueError: an argument out of range.
        FileNotFoundError: no such folder, or fewer than two pictures in it.
        OSError: a file that is damaged or no picture; the message names it.

    Example:
        >>> import pathlib, tempfile
        >>> import vsc_pyro as vsc
        >>> from sklearn.datasets import load_sample_images
        >>> from torchvision.transforms.functional import to_pil_image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number, pixels in enumerate(load_sample_images().images):
        ...         to_pil_image(pixels).save(pathlib.Path(folder, f"{number}.png"))
        ...     train, test = vsc.datasets.images(folder, size=(16, 24))
        >>> train.images.shape, len(test)
        (torch.Size([1, 3, 16, 24]), 1)
    """
    shape = sizes("size", size)
    if len(shape) > 2 or not shape:
        raise ValueError(f"size must be the side of an image, or its height and width, got {size!r}")
    height, width = shape if len(shape) == 2 else shape * 2
    grey, seed = yes_or_no("grey", grey), natural_int("seed", seed)
    if isinstance(test_share, bool) or not isinstance(test_share, numbers.Real) or not 0 < test_share < 1:
        raise ValueError(f"test_share must be a number between 0 and 1, got {test_share!r}")
    limit = None if limit is None else positive_int("limit", limit)
    root = expanded(folder, "folder")
    paths = _pictures_in(root)
    order = np.random.default_rng(seed).permutation(len(paths))[:limit]
    num_test = max(1, round(test_share * len(order)))
    if num_test >= len(order):
        raise FileNotFoundError(
            f"{root} must hold at least two pictures to split, one of them to test on, got {len(paths)} with "
            f"limit={limit} and test_share={test_share}; files of pictures end in {', '.join(_SUFFIXES)}"
        )
    chosen = [paths[row] for row in order]
    labels: Any = _labels(root, paths)
    pixels = torch.empty(len(chosen), 1 if grey else 3, height, width)
    for row, path in enumerate(tqdm(chosen, desc="pictures", unit="file", leave=False, disable=None)):
        pixels[row] = _read(path, (height, width), grey)
    data = Dataset(pixels, None if labels is None else labels[order], name=root.name)
    return Split(data[:-num_test], data[-num_test:])


def _pictures_in(root: Path) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"folder must be a folder of pictures, got {root}, which is none")
    found, seen = [], {root.resolve()}
    for folder, inner, names in os.walk(root, followlinks=True):
        visible = (Path(folder, name) for name in names if not name.startswith("."))
        found += [path for path in visible if path.suffix.lower() in _SUFFIXES and path.is_file()]
        links = {name: Path(folder, name).resolve() for name in inner if not name.startswith(".")}
        inner[:] = [name for name, target in links.items() if target not in seen]  # links may lead round in a circle
        seen.update(links.values())
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _labels(root: Path, paths: list[Path]) -> np.ndarray | None:
    """Return the name of each picture's subfolder, or None if a picture lies in none."""
    inner = [path.relative_to(root).parts for path in paths]
    if any(len(parts) == 1 for parts in inner):
        return None
    return np.array([parts[0] for parts in inner])


def _read(path: Path, shape: tuple[int, int], grey: bool) -> Tensor:
    """Return one picture as numbers from 0 to 1, shape ``(channels, *shape)``."""
    from PIL import Image, ImageOps

    height, width = shape
    try:
        with Image.open(path) as picture:
            picture = _of_known_mode(ImageOps.exif_transpose(picture), path).convert("L" if grey else "RGB")
            cut = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # a damaged file can raise anything in a parser
        raise OSError(f"{path} is no picture that can be read ({error}); convert it or remove it") from error
    pixels = torch.tensor(np.asarray(cut), dtype=torch.float32) / 255
    return pixels[None] if grey else pixels.permute(2, 0, 1)


def _of_known_mode(picture: Image, path: Path) -> Image:
    """Return the picture in a mode whose conversion to grey or colour loses nothing but precision and transparency."""
    from PIL import Image

    if picture.mode.startswith("I;16") or (picture.mode == "I" and path.suffix.lower() in (".png", ".pgm")):
        # Pillow cuts all values above 255.
        levels = np.asarray(picture, dtype=np.float64) * (255 / _DEEP)
        return Image.fromarray(levels.round().astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"its values are of mode {picture.mode!r}, whose white is unknown; rescale them to 0 to 255")
    if picture.mode not in ("LA", "PA", "RGBA") and "transparency" not in picture.info:
        return picture
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture.convert("RGBA"))
    return white
