"""An interactive web page of a trained model's codes, which runs the decoder in the browser."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from vsc_pyro._arguments import natural_int, positive_int
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import slab_of
from vsc_pyro.evaluation.codes import Codes, codes
from vsc_pyro.models.data_checks import in_memory
from vsc_pyro.models.vae import VAE
from vsc_pyro.pages.browser_decoder import (
    ACTIVATION_SOURCES,
    DRAW_SOURCES,
    BrowserDecoder,
    browser_decoder,
    packed,
)
from vsc_pyro.pages.files import new_file, write_page

if TYPE_CHECKING:
    from vsc_pyro.plots.drawing import Drawing

_FAR = 3.0  # largest centre of the codes on which the page's decoder is checked


def explore(
    model: VAE,
    data: Dataset | Tensor | np.ndarray,
    path: str | os.PathLike,
    *,
    num_data: int = 48,
    names: Sequence[str] | None = None,
    image_shape: Sequence[int] | None = None,
    ink: bool | str = "auto",
    title: str | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a web page in which a reader switches latents on and off and sees the decoded code.

    The page shows some data with their posteriors, a switch and a slider for every latent, and the decoded code. It is
    one file that contains the decoder's weights and needs no network. Grey and colour images are shown as pictures, all
    other data as bars with a table of features. Needs matplotlib.

    The browser runs the decoder: a linear one, or an MLP with any of the library's activations, in a
    `BernoulliDecoder`, `ContinuousBernoulliDecoder` or `NormalDecoder`. Its results are compared with the model's
    before the page is written. Convolutional trunks and custom decoders are refused; `vsc_pyro.report` supports them.

    Args:
        model: a trained `VAE`.
        data: data that the model has not been trained on, shape ``(N, ...)``.
        path: the HTML file.
        num_data: greatest number of data on the page, drawn at random and sorted by label.
        names: one name for each of D features. Data with names are vectors, whatever their shape.
        image_shape: height and width, or channels, height and width, of a flat datum's picture.
        ink: True if large values of grey pictures are dark. ``"auto"`` means True if all values lie in [0, 1] and at
            least a quarter of them are exactly 0, as in handwriting.
        title: title of the page; None for the data's name.
        settings: further facts to show, by name.
        seed: seed of the choice of data, of their binarisation and of the page's own draws.
        overwrite: replace an existing file.

    Returns:
        The file that was written.

    Raises:
        ValueError: a decoder that a browser cannot run (the message lists those it can), data that do not fit the
            model, another number of names than features, or an `image_shape` that does not fit.
        FileExistsError: the file exists, and `overwrite` is False.

    >>> import tempfile, vsc_pyro as vsc
    >>> model = vsc.VSC(64, latent_dim=5)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(vsc.explore(model, torch.rand(20, 64), f"{folder}/codes.html", image_shape=(8, 8)).name)
    codes.html
    """
    from vsc_pyro.plots.drawing import drawing_of  # here, because `import vsc_pyro` must not import matplotlib

    file, seed, data = new_file(path, overwrite), natural_int("seed", seed), in_memory(data)
    model.check_data(data.images)
    drawing = drawing_of(data.images, names, image_shape, ink)
    generator = torch.Generator().manual_seed(seed)
    indices = _chosen(data, positive_int("num_data", num_data), generator)
    shown = data[indices].to(data.images.new_empty(0, device="cpu"))
    seen = shown.draw(slice(None), generator)
    found = codes(model, seen)
    decoder = browser_decoder(model, _codes_to_check(found, generator).to(model.reference))
    family = _slab_family(model, seen)
    run = {
        "title": title or data.name,
        "settings": {str(name): _text(value) for name, value in (settings or {}).items()},
        "picture": _picture(drawing),
        "names": None if names is None else [str(name) for name in names],
        "isLikelihood": not decoder.likelihood.of_binary or bool(((seen == 0) | (seen == 1)).all()),
        "seed": seed,
        "slab": family,
        "indices": indices.tolist(),
        **_values(shown, seen),
        **_posterior(found),
        **decoder.as_json(),
    }
    return write_page(file, "explore.html", {"run": _json(run), **_sources(decoder, family)})


def _chosen(data: Dataset, num: int, generator: torch.Generator) -> Tensor:
    """Draw the indices of `num` data, sorted by label."""
    indices = torch.randperm(len(data), generator=generator)[:num]
    return indices if data.labels is None else indices[data.labels[indices].cpu().argsort(stable=True)]


def _slab_family(model: VAE, seen: Tensor) -> str:
    with model.evaluating():
        return type(slab_of(model.encoder(seen[:1].to(model.reference)))).__name__


def _values(shown: Dataset, seen: Tensor) -> dict[str, Any]:
    return {
        "labels": None if shown.labels is None else [shown.class_name(label) for label in shown.labels.tolist()],
        "images": None if torch.equal(shown.images, seen) else packed(shown.images),
        "seen": packed(seen),
    }


def _posterior(found: Codes) -> dict[str, Any]:
    return {
        "latents": found.centre.shape[1],
        "gamma": None if bool((found.inclusion == 1).all()) else packed(found.inclusion),
        "centre": packed(found.centre),
        "scale": packed(found.scale),
    }


def _codes_to_check(found: Codes, generator: torch.Generator) -> Tensor:
    """Return the hard codes, and as many random codes spread over their range."""
    spread = found.centre.abs().clamp(max=_FAR) + 1
    return torch.cat([found.hard.clamp(-_FAR, _FAR), torch.randn(found.hard.shape, generator=generator) * spread])


def _picture(drawing: Drawing) -> dict[str, Any]:
    """Describe a drawing to the page: the size of a vector; the size, sides, scale and ink of a picture."""
    size = {"size": math.prod(drawing.shape)}
    channels, height, width = (1, 1, *drawing.shape)[-3:]
    if drawing.kind != "picture" or len(drawing.shape) > 3 or channels not in (1, 3):
        return size
    low, high = drawing.limits
    sides = {"channels": channels, "height": height, "width": width}
    return {**size, "low": low, "high": high, "ink": drawing.cmap == "gray_r" and channels == 1, **sides}


def _sources(decoder: BrowserDecoder, slab: str) -> dict[str, str]:
    activation = "x => x" if decoder.activation is None else ACTIVATION_SOURCES[decoder.activation]
    return {
        "activation": activation,
        "mean": decoder.likelihood.mean,
        "log_density": decoder.likelihood.log_density,
        "draw": DRAW_SOURCES.get(slab, "null"),
    }


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content).replace("<", "\\u003c")  # else a name could end the enclosing script


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
