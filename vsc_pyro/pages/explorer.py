"""A trained model's codes in a reader's own hands: `explore` writes a page that runs the decoder in a browser."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vsc_pyro._arguments import bool_or_auto, natural_int, positive_int, sizes
from vsc_pyro.datasets import Dataset
from vsc_pyro.distributions import slab_of
from vsc_pyro.evaluation.codes import codes
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

_ZEROS = 0.25  # share of pixels that are exactly 0 in pictures of ink
_FAR = 3.0  # standard deviations of the codes that the page's decoder is tried at


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
    """Write a web page in which a reader switches latents on and off and sees what the decoder makes of it.

    The page shows some data with their posteriors, a switch and a slider for every latent, and what their code decodes
    to. It is one file with the decoder's weights in it, needs no network, and can be sent to someone else. Grey and
    colour images are shown as pictures, everything else as bars with a table of features.

    The decoder is run in the browser: a linear one, or an MLP with any of the library's activations, under a
    `BernoulliDecoder`, `ContinuousBernoulliDecoder` or `NormalDecoder`. What it computes is held against the model's
    own before the page is written. Convolutional trunks and decoders of your own are refused; see `vsc_pyro.report`.

    Args:
        model: a trained `VAE`.
        data: data that the model has not been trained on, shape ``(N, ...)``.
        num_data: how many of them the page shows at most, drawn at random and sorted by label.
        names: one for each of D features. Data with names are vectors, whatever their shape.
        image_shape: the height and width, or channels, height and width, of the picture that a flat datum is.
        ink: whether grey pictures are dark where they are large. ``"auto"``: if all values lie in [0, 1] and a quarter
            of them or more are exactly 0, as in handwriting.
        title: what to call model and data; None for the data's name.
        settings: further facts to show, by name.
        seed: of the choice of data, their binarisation and the page's own draws.
        overwrite: replace a file that is there.

    Returns:
        The file that was written.

    Raises:
        ValueError: a decoder that a browser cannot run (the message names what it can), data that do not fit the model,
            another number of names than features, or an `image_shape` that does not fit.
        FileExistsError: a file that is there, without `overwrite`.
    """
    file = new_file(path, overwrite)
    seed, data = natural_int("seed", seed), in_memory(data)
    model.check_data(data.images)
    picture = _picture(data.images, names, image_shape, ink)
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(len(data), generator=generator)[: positive_int("num_data", num_data)]
    if data.labels is not None:
        indices = indices[data.labels[indices].cpu().argsort(stable=True)]
    shown = data[indices].to(data.images.new_empty(0, device="cpu"))
    images, seen = shown.images, shown.draw(slice(None), generator)
    found = codes(model, seen)
    spread = found.centre.abs().clamp(max=_FAR) + 1
    tried = torch.cat([found.hard.clamp(-_FAR, _FAR), torch.randn(found.hard.shape, generator=generator) * spread])
    decoder = browser_decoder(model, tried.to(model.reference))
    with model.evaluating():
        family = type(slab_of(model.encoder(seen[:1].to(model.reference)))).__name__
    run = {
        "title": title or data.name,
        "settings": {str(name): _text(value) for name, value in (settings or {}).items()},
        "decoder": decoder.description,
        "latents": found.centre.shape[1],
        "picture": picture,
        "names": None if names is None else [str(name) for name in names],
        "isLikelihood": not decoder.likelihood.of_binary or bool(((seen == 0) | (seen == 1)).all()),
        "seed": seed,
        "slab": family,
        "indices": indices.tolist(),
        "labels": None if shown.labels is None else shown.labels.tolist(),
        "images": None if torch.equal(images, seen) else packed(images),
        "seen": packed(seen),
        "gamma": None if bool((found.inclusion == 1).all()) else packed(found.inclusion),
        "centre": packed(found.centre),
        "scale": packed(found.scale),
        **decoder.as_json(),
    }
    return write_page(file, "explore.html", {"run": _json(run), **_sources(decoder, family)})


def _picture(
    data: Tensor, names: Sequence[str] | None, image_shape: Sequence[int] | None, ink: bool | str
) -> dict[str, Any]:
    """How data are drawn: of a vector its length, of a picture also its sizes and the ends of its scale."""
    size, shape, ink = math.prod(data.shape[1:]), tuple(data.shape[1:]), bool_or_auto("ink", ink)
    if names is not None and len(names) != size:
        raise ValueError(f"names must hold one name for each of {size} features, got {len(names)}; pass {size}")
    if image_shape is not None:
        shape = sizes("image_shape", image_shape)
        if math.prod(shape) != size or len(shape) < 2:
            raise ValueError(
                f"image_shape must be the height and width, or channels, height and width, of {size} pixels, "
                f"got {image_shape!r}; leave it out to draw vectors"
            )
    low, high = float(data.min()), float(data.max())
    channels, height, width = (1, 1, *shape)[-3:]
    is_flat = names is not None or sum(length > 1 for length in shape) <= 1
    if is_flat or len(shape) > 3 or channels not in (1, 3):
        return {"size": size}
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    if ink == "auto":
        ink = (low, high) == (0.0, 1.0) and float((data == 0).float().mean()) >= _ZEROS
    high = high if high > low else low + 1.0
    sides = {"channels": channels, "height": height, "width": width}
    return {"size": size, "low": low, "high": high, "ink": ink and channels == 1, **sides}


def _sources(decoder: BrowserDecoder, slab: str) -> dict[str, str]:
    activation = "x => x" if decoder.activation is None else ACTIVATION_SOURCES[decoder.activation]
    return {
        "activation": activation,
        "mean": decoder.likelihood.mean,
        "log_density": decoder.likelihood.log_density,
        "draw": DRAW_SOURCES.get(slab, "null"),
    }


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content).replace("<", "\\u003c")  # no name can end the script that holds it


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
